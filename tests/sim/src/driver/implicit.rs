// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Implicit MRs: `drivers/mlx5_ib/implicit.rs`, and as much of C as makes and destroys a parent.

mod children;

use std::cell::{Cell, RefCell};
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use connectx::mkey::NULL_MKEY;
use firmware_cmds::{AccessMode, Iova, LogPageSize, Mkc, Mkey, Scheme};
use mlx5_odp::implicit::{self, Again, ChildIndex, Family, Layout, Retired, Slot};
use mlx5_odp::key::UmrError;
use mlx5_odp::xlt::{self, NullKey};
use mlx5_odp::NotIn;

use self::children::{Child, Table};
use super::mirror::Mirror;
use super::region::{rights, Mr};
use crate::lock::{Class, Lock};
use crate::memory::PAGE;
use crate::mutant::Mutant;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// `TASK_SIZE`, much shorter: two UMRs of KSMs.
const TASK_SIZE: u64 = 1 << 33;

/// An implicit MR.
pub(crate) struct ParentData {
    pub(crate) mkey: Mkey,
    pub(crate) null: NullKey,
    pub(crate) layout: Layout,
    pub(crate) writable: bool,
    lock: Lock,
    /// Protected by the lock.
    table: RefCell<Table>,
    /// A slot is not busy any more.
    changed: Channel,
    /// References on the MKey.
    users: Cell<usize>,
    /// Found by the fault path.
    known: Cell<bool>,
    /// The MKey is destroyed.
    destroyed: Cell<bool>,
    work: Work,
}

/// The parent's delayed work, which retires children.
#[derive(Default)]
struct Work {
    /// When it is to run; always, if that is over.
    due: Cell<Option<Duration>>,
    is_running: Cell<bool>,
    is_disabled: Cell<bool>,
    /// It is to run when more events are served.
    waits: Cell<bool>,
}

impl ParentData {
    pub(crate) fn is_known(&self) -> bool {
        self.known.get()
    }

    /// Whether the device has its key.
    pub(crate) fn is_there(&self) -> bool {
        !self.destroyed.get()
    }

    /// Its own keys that faults may name.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Mkey> {
        let own = self.is_known().then_some(self.mkey);
        let null = match self.null {
            NullKey::Own(key) => Some(key),
            NullKey::Device(_) => None,
        };
        own.into_iter().chain(null)
    }

    /// `mlx5r_odp_hold_mr`.
    pub(crate) fn hold(&self) -> bool {
        let is_there = self.is_known() || self.users.get() > 0;
        self.users.set(self.users.get() + usize::from(is_there));
        is_there
    }

    /// `mlx5r_odp_put_mr`.
    pub(crate) fn put(&self, sim: &Sim) {
        self.users.set(self.users.get().saturating_sub(1));
        sim.tasks.wake(sim.unused);
    }

    /// Has [`Parent::retire`] called: `mod_delayed_work`.
    fn retire_at(&self, sim: &Sim, time: Duration) {
        if !self.work.is_disabled.get() {
            self.work.due.set(Some(time));
            sim.tasks.wake(sim.retire);
        }
    }

    /// When it is to be called.
    pub(crate) fn retires_at(&self) -> Option<Duration> {
        self.work.due.get()
    }

    /// Whether nobody uses it, and its work is not to be done.
    pub(crate) fn is_at_rest(&self) -> bool {
        let work = &self.work;
        let is_retiring = work.is_running.get() || work.waits.get() || work.due.get().is_some();
        !is_retiring && self.users.get() == 0
    }

    /// More events are served.
    pub(crate) fn more_are_served(&self, sim: &Sim) {
        if self.work.waits.take() {
            self.retire_at(sim, Duration::ZERO);
        }
    }

    /// For the oracles: a child, and what is to be said of it.
    pub(crate) fn child(&self, at: ChildIndex) -> Option<(Slot, Option<Rc<Mirror>>)> {
        let table = self.table.borrow();
        let child = table.children.get(&at.0)?;
        Some((child.slot, child.mirror.clone()))
    }

    /// For the oracles: how many children have nothing in them.
    pub(crate) fn empty_children(&self) -> usize {
        let table = self.table.borrow();
        let is_empty = |child: &&Child| child.mirror.as_ref().is_some_and(|m| m.is_empty());
        table.children.values().filter(is_empty).count()
    }
}

/// An implicit MR, to a thread.
pub(crate) struct Parent<'t> {
    data: Rc<ParentData>,
    thread: &'t Thread<'t>,
}

impl<'t> Parent<'t> {
    pub(crate) fn new(data: &Rc<ParentData>, thread: &'t Thread<'t>) -> Self {
        Self {
            data: Rc::clone(data),
            thread,
        }
    }

    /// Registers one. `None` for want of a device that takes it.
    pub(crate) fn register(thread: &'t Thread<'t>, writable: bool) -> Option<Rc<ParentData>> {
        let sim = thread.sim;
        let layout = Layout::of(TASK_SIZE, PAGE.trailing_zeros())?;
        let count = u32::try_from(layout.count()).ok()?;
        thread.step();
        let mkc = Mkc {
            translations_octword_size: count,
            ..sim.adapter.borrow().mkc(AccessMode::Ksm)
        };
        let mkey = sim.adapter.borrow_mut().create_mkey(&mkc);
        let null = match sim.scheme {
            Scheme::Memory => NullKey::Own(make_null_key(sim)),
            Scheme::Transport => NullKey::Device(NULL_MKEY),
        };
        let parent = Self {
            data: Rc::new(ParentData {
                mkey,
                null,
                layout,
                writable,
                lock: Lock::new(sim, Class::Table),
                table: RefCell::default(),
                changed: sim.tasks.channel(),
                users: Cell::new(0),
                known: Cell::new(false),
                destroyed: Cell::new(false),
                work: Work::default(),
            }),
            thread,
        };
        let mut parents = sim.driver.parents.borrow_mut();
        parents.push(Rc::clone(&parent.data));
        drop(parents);
        if parent.enable(&mkc).is_err() {
            parent.deregister();
            return None;
        }
        parent.data.known.set(true);
        Some(parent.data)
    }

    /// Makes a new MR usable, with no child.
    fn enable(&self, mkc: &Mkc) -> Result<(), UmrError> {
        let ParentData {
            mkey,
            null,
            layout,
            writable,
            ..
        } = &*self.data;
        let mut ksms = vec![0; layout.count() * xlt::KSM_LEN];
        xlt::fill_ksms(&mut ksms, layout, ChildIndex(0), *null, |_| None);
        let enabled = Mkc {
            free: false,
            len: layout.end(),
            start_addr: Iova::new(0),
            log_page_size: LogPageSize::truncate(u8::try_from(layout.child_shift()).unwrap_or(0)),
            access: rights(mkc, *writable),
            ..*mkc
        };
        let umrs = self.thread.sim.umrs();
        umrs.enable_with(self.thread, *mkey, &enabled, &ksms)
    }

    /// `ibv_dereg_mr`: unknown to faults, unused, revoked, destroyed, and so its children.
    pub(crate) fn deregister(&self) {
        let (sim, thread) = (self.thread.sim, self.thread);
        let data = &self.data;
        sim.trace(|| format!("{}: deregisters {:?}", thread.name(), data.mkey));
        data.known.set(false);
        thread.step();
        while data.users.get() > 0 && !sim.is_over() {
            thread.wait(sim.unused);
        }
        // Nobody posts UMRs that name it any more. If it cannot be revoked, it can be destroyed.
        let _ = sim.umrs().revoke(thread, data.mkey);
        thread.step();
        data.destroyed.set(true);
        sim.adapter.borrow_mut().destroy_mkey(data.mkey);
        self.release();
        thread.step();
        let mut parents = sim.driver.parents.borrow_mut();
        parents.retain(|other| !Rc::ptr_eq(other, data));
        drop(parents);
        if let NullKey::Own(key) = data.null {
            sim.adapter.borrow_mut().destroy_mkey(key);
        }
    }

    /// Destroys the children: `Parent::put`.
    fn release(&self) {
        let (sim, thread) = (self.thread.sim, self.thread);
        let work = &self.data.work;
        work.is_disabled.set(true);
        work.due.set(None);
        work.waits.set(false);
        while work.is_running.get() && !sim.is_over() {
            thread.wait(sim.reaped);
        }
        let first = || {
            let table = self.data.table.borrow();
            let at = table.children.keys().next().copied();
            at.map(ChildIndex)
        };
        while let Some(at) = first() {
            self.destroy(at);
            self.data.table.borrow_mut().children.remove(&at.0);
        }
    }

    /// Enters a child.
    pub(crate) fn child(&self, at: ChildIndex) -> Result<Mr<'t>, NotIn> {
        implicit::enter(self, at)?;
        let (_, mirror) = self.data.child(at).ok_or(NotIn::Device)?;
        let mirror = mirror.ok_or(NotIn::Device)?;
        Ok(Mr::enter(mirror, self.thread, &self.data, at))
    }

    /// Leaves a child.
    pub(crate) fn leave(&self, at: ChildIndex) {
        implicit::leave(self, at);
    }

    /// A child has nothing in its mirror.
    pub(crate) fn emptied(&self, at: ChildIndex) {
        self.retire_later(at);
    }

    /// Retires children: what the work does.
    pub(crate) fn retire(&self) {
        let (sim, data) = (self.thread.sim, &self.data);
        data.work.due.set(None);
        data.work.is_running.set(true);
        if data.hold() {
            let was_anything_retired = self.retire_idle();
            // With a mutant, who has nothing to destroy returns at once.
            if was_anything_retired || !sim.has(Mutant::RetiredNothingAndHeld) {
                data.put(sim);
            }
        }
        data.work.is_running.set(false);
        sim.tasks.wake(sim.reaped);
    }

    /// Whether a child was destroyed.
    fn retire_idle(&self) -> bool {
        let (sim, data) = (self.thread.sim, &self.data);
        let idle = self.locked(|table| mem::take(&mut table.idle));
        let mut again = Again::default();
        let mut was_any_destroyed = false;
        for at in idle {
            self.locked(|table| {
                if let Some(child) = table.children.get_mut(&at.0) {
                    child.is_idle = false;
                }
            });
            let retired = implicit::retire(self, at);
            if retired == Retired::Yes {
                was_any_destroyed = true;
                sim.coverage(|c| c.children_retired += 1);
            }
            if again.add(retired) {
                self.push_idle(at);
            }
        }
        if let Some(time) = again.time {
            // One more, for the part of a jiffy.
            let after = Duration::from_millis(u64::from(time) + 1);
            if data.work.due.get().is_none() {
                data.retire_at(sim, sim.now() + after);
            }
        }
        if let Some(event) = again.event {
            let behind = event.wrapping_sub(sim.events.all_served_before());
            match behind == 0 || behind > u32::MAX / 2 {
                true => data.retire_at(sim, Duration::ZERO),
                false => data.work.waits.set(!data.work.is_disabled.get()),
            }
        }
        was_any_destroyed
    }
}

/// `mlx5r_odp_make_null_key`: a key through which every access faults.
fn make_null_key(sim: &Sim) -> Mkey {
    let mut adapter = sim.adapter.borrow_mut();
    let mkc = Mkc {
        free: false,
        umr_en: false,
        length64: true,
        log_page_size: LogPageSize::truncate(61),
        translations_octword_size: 4,
        ..adapter.mkc(AccessMode::Mtt)
    };
    adapter.create_mkey(&mkc)
}
