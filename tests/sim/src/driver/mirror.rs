// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The mirror of an MR's memory: `drivers/mlx5_ib/mirror.rs`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use hmm_abi::ChunkIndex;
use mlx5_odp::implicit::ChildIndex;
use mlx5_odp::{MemoryError, Placement};

use super::chunk::{Chunk, ChunkData, NO_MEMORY};
use super::implicit::{Parent, ParentData};
use super::key::KeyData;
use crate::lock::{Class, Lock};
use crate::mutant::Mutant;
use crate::notifier::Interval;
use crate::task::Thread;

/// The mirror of an MR's memory.
pub(crate) struct Mirror {
    /// Which of the IOMMU's ranges it has.
    pub(crate) number: usize,
    pub(crate) placement: Placement,
    /// The process's page of entry 0, and the number of entries, as it was registered: for the
    /// oracles, which do not ask [`Placement`].
    pub(crate) pages: std::ops::Range<usize>,
    key: Rc<KeyData>,
    chunks: RefCell<BTreeMap<usize, Rc<ChunkData>>>,
    making: Lock,
    idle: RefCell<Vec<ChunkIndex>>,
    /// References on the MKey.
    users: Cell<usize>,
    /// Found by the fault path.
    known: Cell<bool>,
    /// Of which implicit MR it is a child, and which; that one outlives it.
    parent: Option<(Weak<ParentData>, ChildIndex)>,
    /// [`Mirror::reap`] is under way, or is not to be any more.
    reaping: Cell<bool>,
    stopped: Cell<bool>,
    /// It is freed.
    freed: Cell<bool>,
    /// The device has let go of it, or its pages are kept for good.
    pub(crate) kept: Cell<bool>,
}

impl Mirror {
    pub(crate) fn new(
        thread: &Thread<'_>,
        number: usize,
        placement: Placement,
        pages: std::ops::Range<usize>,
        key: KeyData,
        parent: Option<(Weak<ParentData>, ChildIndex)>,
    ) -> Self {
        Self {
            number,
            placement,
            pages,
            key: Rc::new(key),
            chunks: RefCell::default(),
            making: Lock::new(thread.sim, Class::Making),
            idle: RefCell::default(),
            users: Cell::new(0),
            known: Cell::new(false),
            parent,
            reaping: Cell::new(false),
            stopped: Cell::new(false),
            freed: Cell::new(false),
            kept: Cell::new(false),
        }
    }

    pub(crate) fn key(&self) -> Rc<KeyData> {
        Rc::clone(&self.key)
    }

    pub(crate) fn is_known(&self) -> bool {
        self.known.get()
    }

    /// Faults find it from now on, or no longer.
    pub(crate) fn set_known(&self, known: bool) {
        self.known.set(known);
    }

    /// Of which implicit MR it is a child, and which.
    pub(crate) fn parent(&self) -> Option<(Rc<ParentData>, ChildIndex)> {
        let (parent, at) = self.parent.as_ref()?;
        Some((parent.upgrade()?, *at))
    }

    /// Whether its destruction waits for those who use it.
    pub(crate) fn is_closing(&self) -> bool {
        match self.parent() {
            Some((parent, _)) => !parent.is_known(),
            None => !self.is_known(),
        }
    }

    /// Whether it has no chunk.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.borrow().is_empty()
    }

    pub(crate) fn hold(&self) {
        self.users.set(self.users.get() + 1);
    }

    pub(crate) fn put(&self) {
        self.users.set(self.users.get() - 1);
    }

    pub(crate) fn users(&self) -> usize {
        self.users.get()
    }

    /// A chunk, for the oracles.
    pub(crate) fn chunk(&self, at: ChunkIndex) -> Option<Rc<ChunkData>> {
        self.chunks.borrow().get(&at.0).cloned()
    }

    pub(crate) fn find<'t>(&self, thread: &'t Thread<'t>, at: ChunkIndex) -> Option<Chunk<'t>> {
        thread.step();
        if self.freed.get() {
            thread.sim.fail(
                "used after it was freed",
                format_args!("MR {}, by {}", self.number, thread.name()),
            );
        }
        let chunks = self.chunks.borrow();
        chunks.get(&at.0).map(|data| Chunk::new(data, thread))
    }

    pub(crate) fn find_or_make<'t>(
        self: &Rc<Self>,
        thread: &'t Thread<'t>,
        at: ChunkIndex,
    ) -> Result<Chunk<'t>, MemoryError> {
        if let Some(chunk) = self.find(thread, at) {
            return Ok(chunk);
        }
        self.making.lock(thread);
        let made = self.make(thread, at);
        self.making.unlock(thread);
        made
    }

    fn make<'t>(
        self: &Rc<Self>,
        thread: &'t Thread<'t>,
        at: ChunkIndex,
    ) -> Result<Chunk<'t>, MemoryError> {
        let sim = thread.sim;
        if let Some(chunk) = self.find(thread, at) {
            return Ok(chunk);
        }
        let has_mm = sim.get_mm();
        if !has_mm && !sim.has(Mutant::NotifierOfNobody) {
            return Err(MemoryError::Invalid);
        }
        let made = thread.allocate().then(|| {
            let data = ChunkData::new(thread, self, at);
            let interval: Rc<dyn Interval> = Rc::clone(&data) as Rc<dyn Interval>;
            sim.notifiers.insert(thread, &interval);
            Chunk::new(&data, thread)
        });
        if has_mm {
            sim.put_mm();
        }
        let chunk = made.ok_or(NO_MEMORY)?;
        // `xa_store`, which may fail too.
        if !thread.allocate() {
            return Err(NO_MEMORY);
        }
        sim.coverage(|c| c.chunks += 1);
        self.chunks.borrow_mut().insert(at.0, chunk.keep());
        Ok(chunk)
    }

    /// Has a chunk go if it has nothing in it.
    pub(crate) fn tidy(&self, thread: &Thread<'_>, at: ChunkIndex) {
        if let Some(chunk) = self.find(thread, at) {
            chunk.tidy();
        }
    }

    pub(crate) fn push_idle(&self, thread: &Thread<'_>, at: ChunkIndex) {
        self.idle.borrow_mut().push(at);
        thread.sim.tasks.wake(thread.sim.reap);
    }

    /// Whether [`Mirror::reap`] has anything to do.
    pub(crate) fn is_to_be_reaped(&self) -> bool {
        !self.idle.borrow().is_empty() && !self.stopped.get()
    }

    /// Whether [`Mirror::reap`] has nothing to do, and is not at it.
    pub(crate) fn is_reaped(&self) -> bool {
        !self.is_to_be_reaped() && !self.reaping.get()
    }

    /// Frees chunks with nothing in them.
    pub(crate) fn reap<'t>(&self, thread: &'t Thread<'t>) {
        self.reaping.set(true);
        self.reap_idle(thread);
        if let Some((parent, at)) = self.parent().filter(|_| self.is_empty()) {
            Parent::new(&parent, thread).emptied(at);
        }
        self.reaping.set(false);
        thread.sim.tasks.wake(thread.sim.reaped);
    }

    fn reap_idle(&self, thread: &Thread<'_>) {
        let idle = self.idle.take();
        for at in idle {
            self.making.lock(thread);
            let Some(chunk) = self.find(thread, at) else {
                self.making.unlock(thread);
                continue;
            };
            let removed = match chunk.retire() {
                true => self.chunks.borrow_mut().remove(&at.0),
                false => None,
            };
            self.making.unlock(thread);
            // Here the notifier may go, which waits for invalidations.
            if let Some(data) = removed {
                thread.sim.coverage(|c| c.reaped += 1);
                drop(Chunk::adopt(data, thread));
            }
            drop(chunk);
        }
    }

    /// Unmaps everything: `Mirror::put`.
    pub(crate) fn release(&self, thread: &Thread<'_>) {
        // `mlx5r_odp_mirror_stop`.
        self.stopped.set(true);
        while self.reaping.get() && !thread.sim.is_over() {
            thread.wait(thread.sim.reaped);
        }
        let mut cut_off = true;
        loop {
            let first = self.chunks.borrow_mut().pop_first();
            let Some((_, data)) = first else { break };
            let chunk = Chunk::adopt(data, thread);
            cut_off &= hmm_abi::release(&chunk).is_ok();
            if !cut_off {
                // Its pages are held and mapped for good.
                std::mem::forget(chunk);
            }
        }
        self.kept.set(!cut_off);
        self.freed.set(true);
    }
}
