// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The table of an implicit MR's children: `drivers/mlx5_ib/implicit/children.rs`.

use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use firmware_cmds::{Mkey, Scheme};
use mlx5_odp::implicit::{self, ChildIndex, Family, Layout, Slot};
use mlx5_odp::key::UmrError;
use mlx5_odp::xlt::{self, NullKey};
use mlx5_odp::{NotIn, Pressure, LATE};

use super::{Parent, ParentData};
use crate::driver::mirror::Mirror;
use crate::driver::umr::{Piece, Umr};
use crate::memory::PAGE;
use crate::mutant::Mutant;
use crate::sim::Sim;

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

/// The children, under the lock; what is not of the protocol may be done in between.
pub(crate) struct Shown<'t> {
    sim: &'t Sim,
    data: Rc<ParentData>,
}

impl implicit::Children for Shown<'_> {
    fn show(&mut self, at: ChildIndex, is_shown: bool) {
        let mut table = self.data.table.borrow_mut();
        if let Some(child) = table.children.get_mut(&at.0) {
            child.is_shown = is_shown;
            if is_shown && mem::replace(&mut child.was_shown, true) {
                self.sim.coverage(|c| c.children_shown_again += 1);
            }
        }
    }

    fn shown(&self, at: ChildIndex) -> Option<Mkey> {
        let table = self.data.table.borrow();
        let child = table.children.get(&at.0).filter(|child| child.is_shown)?;
        Some(child.mirror.as_ref()?.key().mkey)
    }
}

/// A UMR, and what it is to write.
pub(crate) struct KsmUmr {
    umr: Umr,
    ksms: [u8; xlt::KSM_BLOCK * xlt::KSM_LEN],
}

impl AsMut<[u8]> for KsmUmr {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.ksms
    }
}

impl<'t> implicit::Parent for Parent<'t> {
    type Children = Shown<'t>;
    type Umr = KsmUmr;
    type Error = NotIn;

    fn layout(&self) -> &Layout {
        &self.data.layout
    }

    fn null_key(&self) -> NullKey {
        self.data.null
    }

    fn children<R>(&self, f: impl FnOnce(&mut Shown<'t>) -> R) -> R {
        self.data.lock.lock(self.thread);
        let result = f(&mut Shown {
            sim: self.thread.sim,
            data: Rc::clone(&self.data),
        });
        self.data.lock.unlock(self.thread);
        result
    }

    fn umr(&self) -> KsmUmr {
        KsmUmr {
            umr: self.thread.sim.umrs().get(self.thread),
            ksms: [0; xlt::KSM_BLOCK * xlt::KSM_LEN],
        }
    }

    fn put(&self, umr: KsmUmr) {
        self.thread.sim.umrs().put(self.thread, &umr.umr);
    }

    fn post(&self, umr: &mut KsmUmr, first: usize, len: usize) -> Result<(), NotIn> {
        let (sim, thread) = (self.thread.sim, self.thread);
        let is_unlocked = sim.has(Mutant::KsmsPostedUnlocked);
        if is_unlocked {
            self.data.lock.unlock(thread);
            thread.step();
        }
        let ksms = &mut umr.ksms[..len];
        if sim.has(Mutant::UnalignedKsm) {
            // Not where the child starts, but a page behind.
            for ksm in ksms.chunks_exact_mut(xlt::KSM_LEN) {
                ksm[14] |= 0x10;
            }
        }
        sim.adapter.borrow().write(umr.umr.buffer, ksms);
        let piece = Piece { first, len };
        sim.umrs().post(thread, &mut umr.umr, self.data.mkey, piece);
        if is_unlocked {
            self.data.lock.lock(thread);
        }
        Ok(())
    }

    fn settle(&self, umr: &KsmUmr) -> Result<(), UmrError> {
        let umrs = self.thread.sim.umrs();
        umrs.wait(self.thread, &umr.umr, self.data.mkey)
    }

    fn error(&self, error: UmrError) -> NotIn {
        match error {
            UmrError::Flushed => NotIn::Busy(Pressure::Memory),
            UmrError::Failed => NotIn::Device,
        }
    }
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
        implicit::lead(self, at, true)
    }

    fn hide(&self, at: ChildIndex) -> Result<(), NotIn> {
        implicit::lead(self, at, false)
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
