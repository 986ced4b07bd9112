// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The table of an implicit MR's children: `drivers/mlx5_ib/implicit/children.rs`.

use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use firmware_cmds::Scheme;
use mlx5_odp::implicit::{ChildIndex, Family, Slot};
use mlx5_odp::key::{UmrError, RETRIES};
use mlx5_odp::{xlt, NotIn, Pressure, LATE};

use super::{Parent, ParentData};
use crate::driver::mirror::Mirror;
use crate::driver::umr::Piece;
use crate::memory::PAGE;
use crate::mutant::Mutant;

/// The children whose slots are not absent.
#[derive(Default)]
pub(super) struct Table {
    pub(super) children: BTreeMap<usize, Child>,
    /// Those to be retired.
    pub(super) idle: Vec<ChildIndex>,
}

/// An entry of the table.
#[derive(Default)]
pub(super) struct Child {
    pub(super) slot: Slot,
    pub(super) mirror: Option<Rc<Mirror>>,
    /// The KSM leads to it, or shall from the next UMR on.
    is_shown: bool,
    was_shown: bool,
    /// It is among those to be retired.
    pub(super) is_idle: bool,
}

impl Parent<'_> {
    pub(super) fn locked<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        self.data.lock.lock(self.thread);
        let result = f(&mut self.data.table.borrow_mut());
        self.data.lock.unlock(self.thread);
        result
    }

    /// Adds a child to those to be retired, unless it is one of them, or gone.
    pub(super) fn push_idle(&self, at: ChildIndex) {
        self.locked(|table| {
            let child = table.children.get_mut(&at.0);
            if let Some(child) = child.filter(|child| !child.is_idle) {
                child.is_idle = true;
                table.idle.push(at);
            }
        });
    }

    /// Has the device's table lead to a child, or not, and waits for it.
    fn lead(&self, at: ChildIndex, is_shown: bool) -> Result<(), NotIn> {
        let (sim, thread) = (self.thread.sim, self.thread);
        let umrs = sim.umrs();
        let mut umr = umrs.get(thread);
        let mut led = Err(NotIn::Busy(Pressure::Memory));
        for _ in 0..=RETRIES {
            // What is posted first comes first: under the lock, so do the states.
            let is_locked = !sim.has(Mutant::KsmsPostedUnlocked);
            self.data.lock.lock(thread);
            let ksms = self.ksms_with(at, is_shown);
            if !is_locked {
                self.data.lock.unlock(thread);
                thread.step();
            }
            sim.adapter.borrow().write(umr.buffer, &ksms);
            let piece = Piece {
                first: first_of_block(at).0 * xlt::KSM_LEN,
                len: ksms.len(),
            };
            umrs.post(thread, &mut umr, self.data.mkey, piece);
            if is_locked {
                self.data.lock.unlock(thread);
            }
            led = match umrs.wait(thread, &umr, self.data.mkey) {
                Err(UmrError::Flushed) => continue,
                Err(UmrError::Failed) => Err(NotIn::Device),
                Ok(()) => Ok(()),
            };
            break;
        }
        umrs.put(thread, &umr);
        led
    }

    /// A child is shown from now on, or not: the KSMs around its own.
    fn ksms_with(&self, at: ChildIndex, is_shown: bool) -> Vec<u8> {
        let mut table = self.data.table.borrow_mut();
        if let Some(child) = table.children.get_mut(&at.0) {
            child.is_shown = is_shown;
        }
        let key_of = |at: ChildIndex| {
            let child = table.children.get(&at.0).filter(|child| child.is_shown)?;
            Some(child.mirror.as_ref()?.key().mkey)
        };
        let ParentData { layout, null, .. } = &*self.data;
        let mut ksms = vec![0; xlt::KSM_BLOCK * xlt::KSM_LEN];
        xlt::fill_ksms(&mut ksms, layout, first_of_block(at), *null, key_of);
        if self.thread.sim.has(Mutant::UnalignedKsm) {
            // Not where the child starts, but a page behind.
            for ksm in ksms.chunks_exact_mut(xlt::KSM_LEN) {
                ksm[14] |= 0x10;
            }
        }
        ksms
    }

    /// Makes the MR of a child.
    fn make_child(&self, at: ChildIndex) -> Result<Rc<Mirror>, NotIn> {
        let (sim, thread) = (self.thread.sim, self.thread);
        // For a process that is gone no child is made; while it is there, chunks see to themselves.
        if !sim.has(Mutant::NotifierOfNobody) {
            if !sim.get_mm() {
                return Err(NotIn::Invalid);
            }
            sim.put_mm();
        }
        let layout = &self.data.layout;
        let placement = layout.placement(at, self.data.writable);
        let placement = placement.ok_or(NotIn::Invalid)?;
        if !thread.allocate() {
            return Err(NotIn::Busy(Pressure::Memory));
        }
        let span = placement.geometry.span();
        let parent = Some((Rc::downgrade(&self.data), at));
        let mirror = thread.alloc_mr(placement, span.start / PAGE..span.end / PAGE, parent);
        if thread.enable(&mirror).is_err() {
            thread.deregister(&mirror);
            return Err(NotIn::Device);
        }
        mirror.set_known(sim.scheme == Scheme::Memory);
        sim.coverage(|c| c.children += 1);
        Ok(mirror)
    }
}

/// The first child whose KSM a UMR writes together with that of `at`.
fn first_of_block(at: ChildIndex) -> ChildIndex {
    ChildIndex(at.0 & !(xlt::KSM_BLOCK - 1))
}

impl Family for Parent<'_> {
    type Error = NotIn;

    fn with<R>(&self, at: ChildIndex, change: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let (sim, thread) = (self.thread.sim, self.thread);
        let ParentData {
            lock,
            table,
            changed,
            ..
        } = &*self.data;
        lock.lock(thread);
        if !table.borrow().children.contains_key(&at.0) {
            lock.unlock(thread);
            if !thread.allocate() {
                return None;
            }
            lock.lock(thread);
        }
        let slot_of = |table: &Table| table.children.get(&at.0).map_or(Slot::Absent, |c| c.slot);
        let before = slot_of(&table.borrow());
        if sim.has(Mutant::ChildrenUnlocked) {
            lock.unlock(thread);
            thread.step();
            lock.lock(thread);
        }
        let mut slot = before;
        let result = change(&mut slot);
        if slot != before || slot != Slot::Absent {
            let mut table = table.borrow_mut();
            let child = table.children.entry(at.0).or_default();
            child.slot = slot;
            if slot == Slot::Absent && !child.is_idle {
                table.children.remove(&at.0);
            }
        }
        lock.unlock(thread);
        if before == Slot::Busy {
            sim.tasks.wake(*changed);
        }
        Some(result)
    }

    fn no_memory(&self) -> NotIn {
        NotIn::Busy(Pressure::Memory)
    }

    fn wait(&self, at: ChildIndex) {
        let (sim, thread) = (self.thread.sim, self.thread);
        let ParentData { lock, changed, .. } = &*self.data;
        let is_busy = || matches!(self.data.child(at), Some((Slot::Busy, _)));
        lock.lock(thread);
        while is_busy() && !sim.is_over() {
            lock.wait(thread, *changed);
        }
        lock.unlock(thread);
    }

    fn make(&self, at: ChildIndex) -> Result<(), NotIn> {
        let mirror = self.make_child(at)?;
        let old = self.locked(|table| {
            let child = table.children.entry(at.0).or_default();
            child.mirror.replace(mirror)
        });
        if let Some(old) = old {
            let what = format_args!("child {} is MR {} already", at.0, old.number);
            self.thread.sim.fail("made twice", what);
        }
        Ok(())
    }

    fn show(&self, at: ChildIndex) -> Result<(), NotIn> {
        // Its slot is busy.
        let mut table = self.data.table.borrow_mut();
        let child = table.children.get_mut(&at.0);
        let is_again = child.is_some_and(|child| mem::replace(&mut child.was_shown, true));
        drop(table);
        (self.thread.sim).coverage(|c| c.children_shown_again += usize::from(is_again));
        self.lead(at, true)
    }

    fn hide(&self, at: ChildIndex) -> Result<(), NotIn> {
        self.lead(at, false)
    }

    fn destroy(&self, at: ChildIndex) {
        let mirror = self.locked(|table| table.children.get_mut(&at.0)?.mirror.take());
        if let Some(mirror) = mirror {
            self.thread.deregister(&mirror);
        }
    }

    fn is_empty(&self, at: ChildIndex) -> bool {
        let child = self.locked(|table| table.children.get(&at.0)?.mirror.clone());
        child.is_some_and(|mirror| mirror.is_empty())
    }

    fn now(&self) -> u32 {
        self.thread.sim.milliseconds()
    }

    fn late(&self) -> u32 {
        match self.thread.sim.has(Mutant::ChildDestroyedAtOnce) {
            true => 0,
            false => LATE,
        }
    }

    fn moment(&self) -> u32 {
        let sim = self.thread.sim;
        match sim.scheme {
            Scheme::Memory if !sim.has(Mutant::ChildDestroyedAtOnce) => sim.moment(),
            _ => self.served(),
        }
    }

    fn served(&self) -> u32 {
        self.thread.sim.events.all_served_before()
    }

    fn retire_later(&self, at: ChildIndex) {
        self.push_idle(at);
        self.data.retire_at(self.thread.sim, Duration::ZERO);
    }
}
