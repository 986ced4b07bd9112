// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The chunks of a mirror: `drivers/mlx5_ib/chunk.rs`.

use std::cell::{Cell, RefCell, RefMut};
use std::rc::{Rc, Weak};

use hmm_abi::{
    Book, ChunkIndex, Entry, FaultChunk, HmmPfn, Index, LetGo, LockedChunk, MapError, Need, Proof,
    RangeError, Sequence, Slots, Started, State,
};
use mlx5_odp::{MemoryError, Pressure};

use super::key::{Key, Ticket};
use super::mirror::Mirror;
use crate::lock::{Class, Lock};
use crate::memory::{Mapping, Memory, PAGE};
use crate::mm::RangeFault;
use crate::mutant::Mutant;
use crate::notifier::{Interval, Notifier, Pages};
use crate::task::Thread;

/// A chunk's notifier, lock, and what it protects.
pub(crate) struct ChunkData {
    this: Weak<Self>,
    /// Who keeps it: the mirror's index, and faults. With the last the notifier goes.
    refs: Cell<usize>,
    pub(crate) mirror: Rc<Mirror>,
    pub(crate) at: ChunkIndex,
    notifier: Notifier,
    lock: Lock,
    state: RefCell<Kept>,
}

/// What the lock protects.
struct Kept {
    entries: Vec<Entry>,
    book: Book<Ticket>,
    is_queued: bool,
    is_retired: bool,
}

impl ChunkData {
    pub(crate) fn new(thread: &Thread<'_>, mirror: &Rc<Mirror>, at: ChunkIndex) -> Rc<Self> {
        let geometry = &mirror.placement.geometry;
        let indices = geometry.chunk(at);
        let span = geometry.span_of(indices);
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            refs: Cell::new(0),
            mirror: Rc::clone(mirror),
            at,
            notifier: Notifier::new(span.start / PAGE..span.end / PAGE),
            lock: Lock::new(thread.sim, Class::Chunk),
            state: RefCell::new(Kept {
                entries: vec![Entry::EMPTY; indices.len()],
                book: Book::new(),
                is_queued: false,
                is_retired: false,
            }),
        })
    }

    fn chunk<'t>(&self, thread: &'t Thread<'t>) -> Chunk<'t> {
        Chunk {
            is_borrowed: true,
            key: Key::new(self.mirror.key(), thread),
            data: self.this.upgrade().expect("it is in use"),
        }
    }

    /// The slots of pages of the process.
    fn slots(&self, pages: &Pages) -> Slots {
        let own = self.notifier.pages();
        let first = pages.start.max(own.start) - own.start;
        let end = pages.end.min(own.end).saturating_sub(own.start);
        Slots::new(first..end)
    }

    /// For the oracles: the state of an entry, and whether it may be written to.
    pub(crate) fn entry(&self, slot: usize) -> Option<Entry> {
        self.state.try_borrow().ok()?.entries.get(slot).copied()
    }
}

/// A chunk, to a thread.
pub(crate) struct Chunk<'t> {
    data: Rc<ChunkData>,
    key: Key<'t>,
    /// To a callback, which keeps nothing.
    is_borrowed: bool,
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        let thread = self.thread();
        if self.is_borrowed || thread.sim.is_over() {
            return;
        }
        self.data.refs.set(self.data.refs.get() - 1);
        if self.data.refs.get() == 0 {
            let interval: Rc<dyn Interval> = Rc::clone(&self.data) as Rc<dyn Interval>;
            thread.sim.notifiers.remove(thread, &interval);
        }
    }
}

impl<'t> Chunk<'t> {
    /// A reference.
    pub(crate) fn new(data: &Rc<ChunkData>, thread: &'t Thread<'t>) -> Self {
        data.refs.set(data.refs.get() + 1);
        Self::adopt(Rc::clone(data), thread)
    }

    /// A reference that was kept without its thread.
    pub(crate) fn adopt(data: Rc<ChunkData>, thread: &'t Thread<'t>) -> Self {
        let key = Key::new(data.mirror.key(), thread);
        Self {
            data,
            key,
            is_borrowed: false,
        }
    }

    /// For the mirror's index.
    pub(crate) fn keep(&self) -> Rc<ChunkData> {
        self.data.refs.set(self.data.refs.get() + 1);
        Rc::clone(&self.data)
    }

    fn thread(&self) -> &'t Thread<'t> {
        self.key.thread
    }

    /// Takes it out of use if it is idle still; returns whether that is so.
    pub(crate) fn retire(&self) -> bool {
        let mut locked = self.lock_it();
        let kept = locked.kept();
        kept.is_queued = false;
        kept.is_retired |= kept.book.is_idle();
        kept.is_retired
    }

    /// A chunk with nothing in it can go: after an invalidation, or a fault that failed.
    pub(crate) fn tidy(&self) {
        let mut locked = self.lock_it();
        let kept = locked.kept();
        if kept.book.is_idle() && !kept.is_queued && !kept.is_retired {
            kept.is_queued = true;
            drop(locked);
            self.data.mirror.push_idle(self.thread(), self.data.at);
        }
    }

    fn lock_it(&self) -> Locked<'_> {
        self.data.lock.lock(self.thread());
        self.locked()
    }

    fn locked(&self) -> Locked<'_> {
        let thread = self.thread();
        let kept = self.data.state.try_borrow_mut().ok();
        if kept.is_none() && !thread.sim.is_over() {
            thread
                .sim
                .fail("a lock that two have", format_args!("{}", thread.name()));
        }
        Locked {
            data: &self.data,
            thread,
            kept,
            is_changed: false,
            is_leaked: false,
        }
    }
}

impl Interval for ChunkData {
    fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    fn invalidate_start(
        &self,
        thread: &Thread<'_>,
        pages: &Pages,
        sequence: usize,
        may_sleep: bool,
        pending: &mut bool,
    ) -> bool {
        let chunk = self.chunk(thread);
        let slots = self.slots(pages);
        let two_passes = !thread.sim.has(Mutant::OnePass);
        match hmm_abi::start(&chunk, slots, sequence, may_sleep, two_passes) {
            Started::WouldBlock => false,
            Started::Pending => {
                *pending = true;
                true
            }
            Started::Done => {
                // It takes the lock, and whoever has that may sleep.
                if may_sleep || thread.sim.has(Mutant::TidyThatSleeps) {
                    chunk.tidy();
                }
                true
            }
        }
    }

    fn invalidate_finish(&self, thread: &Thread<'_>) {
        let chunk = self.chunk(thread);
        hmm_abi::finish(&chunk);
        chunk.tidy();
    }
}

impl<'t> hmm_abi::Chunk for Chunk<'t> {
    type Device = Key<'t>;
    type Locked<'c>
        = Locked<'c>
    where
        't: 'c;
    type NewSequence<'n> = usize;

    fn device(&self) -> &Key<'t> {
        &self.key
    }

    fn lock(&self) -> Locked<'_> {
        self.lock_it()
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        self.data.lock.try_lock(self.thread()).then(|| {
            let mut locked = self.locked();
            locked.is_leaked = self.thread().sim.has(Mutant::MissedUnlock);
            locked
        })
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: usize) {
        locked.is_leaked = false;
        if !self.thread().sim.has(Mutant::NoSetSequence) {
            self.data.notifier.set_sequence(sequence);
        }
    }

    fn count_invalidated(&self, entries: usize) {
        self.thread().sim.coverage(|c| c.taken_back += entries);
    }

    fn not_zapped(&self, held: usize) {
        self.thread().sim.coverage(|c| {
            c.not_zapped += 1;
            c.held += held;
        });
    }
}

impl FaultChunk for Chunk<'_> {
    type Error = MemoryError;

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<MemoryError>> {
        let thread = self.thread();
        let sim = thread.sim;
        if !sim.get_mm() {
            return Err(RangeError::Failed(MemoryError::Invalid));
        }
        let own = self.data.notifier.pages().start;
        let pages = own + slots.first()..own + slots.end();
        let result = thread.range_fault(&self.data.notifier, &pages, need, found);
        sim.put_mm();
        if sim.has(Mutant::SharedScratch) {
            sim.share_scratch(thread, found);
        }
        match result {
            Ok(sequence) => Ok(Sequence(sequence)),
            Err(RangeFault::Busy) => Err(RangeError::Busy),
            Err(RangeFault::Fault) => Err(RangeError::Failed(MemoryError::Invalid)),
            Err(RangeFault::Permission) => Err(RangeError::Failed(MemoryError::WriteRefused)),
        }
    }

    fn read_ahead(&self, slots: Slots, _: Need) -> Slots {
        let thread = self.thread();
        thread.step();
        let first = self.data.notifier.pages().start;
        let mut pages = slots.range().map(|slot| first + slot);
        let memory = thread.sim.memory.lock();
        let asks = |page| memory.page(page).is_none_or(|page| page.area.uffd);
        let granted = pages.position(asks).unwrap_or(slots.len());
        Slots::new(slots.first()..slots.first() + granted)
    }

    fn read_retry(&self, locked: &Locked<'_>, Sequence(sequence): Sequence) -> bool {
        if self.thread().sim.has(Mutant::NoRetryCheck) {
            return false;
        }
        let is_retired = locked.kept.as_ref().is_none_or(|kept| kept.is_retired);
        is_retired || self.data.notifier.read_retry(sequence)
    }
}

/// A chunk, locked.
pub(crate) struct Locked<'c> {
    data: &'c ChunkData,
    thread: &'c Thread<'c>,
    /// There, unless the run is over.
    kept: Option<RefMut<'c, Kept>>,
    /// What it protects may have been changed.
    is_changed: bool,
    /// With a mutant: nobody unlocks it.
    is_leaked: bool,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let changed = self.kept.as_ref().filter(|_| self.is_changed);
        let counted = changed.map(|kept| {
            let mapped = kept.entries.iter().filter(|entry| entry.is_mapped());
            (mapped.count(), kept.book.mapped())
        });
        self.kept = None;
        if let Some((mapped, counted)) = counted.filter(|(mapped, counted)| mapped != counted) {
            let what = format_args!("{mapped} entries are mapped, {counted} counted");
            self.thread.sim.fail("a wrong count", what);
        }
        if !self.is_leaked {
            self.data.lock.unlock(self.thread);
        }
    }
}

impl Locked<'_> {
    fn kept(&mut self) -> &mut Kept {
        self.is_changed = true;
        self.kept.as_mut().expect("the run goes on")
    }

    fn read(&self) -> &Kept {
        self.kept.as_ref().expect("the run goes on")
    }

    fn index(&self, slot: usize) -> usize {
        self.first().0 + slot
    }

    fn frame(&self, slot: usize) -> usize {
        self.read().entries[slot].pfn().0
    }
}

impl LockedChunk for Locked<'_> {
    type Ticket = Ticket;

    fn first(&self) -> Index {
        self.data
            .mirror
            .placement
            .geometry
            .chunk(self.data.at)
            .first()
    }

    fn entries(&self) -> &[Entry] {
        &self.read().entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.kept().entries
    }

    fn book(&self) -> &Book<Ticket> {
        &self.read().book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<Ticket> {
        &mut self.kept().book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        let sim = self.thread.sim;
        if sim.has(Mutant::AllocationUnderTheLock) {
            self.thread.allocate();
        }
        let fails = sim.choices.borrow_mut().one_in(sim.trouble.memory);
        if fails {
            return Err(MapError::Memory);
        }
        let mr = self.data.mirror.number;
        for slot in slots.range() {
            let mapping = Mapping {
                frame: self.frame(slot),
                page: self.data.notifier.pages().start + slot,
            };
            sim.memory.lock().map(mr, self.index(slot), mapping);
        }
        Ok(())
    }

    fn sync(&mut self, _: Slots) -> Result<(), MapError> {
        let sim = self.thread.sim;
        match sim.choices.borrow_mut().one_in(sim.trouble.memory) {
            true => Err(MapError::Memory),
            false => Ok(()),
        }
    }

    fn address(&self, slot: usize) -> u64 {
        Memory::iova(self.data.mirror.number, self.index(slot))
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        let sim = self.thread.sim;
        if sim.has(Mutant::NoUnmapOnceTheKeyIsGone) && self.data.mirror.key().is_gone() {
            return;
        }
        for slot in slots.range() {
            let index = self.index(slot);
            let mapping = sim.memory.lock().unmap(self.data.mirror.number, index);
            if mapping.is_some_and(|mapping| mapping.frame != self.frame(slot)) {
                sim.fail("another frame is unmapped", format_args!("entry {index}"));
            }
        }
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        if self.thread.sim.has(Mutant::NoDirty) {
            return;
        }
        let frame = self.frame(slot);
        let mut memory = self.thread.sim.memory.lock();
        let is_freed = memory.frames[frame].users == 0 && memory.frames[frame].held == 0;
        memory.frames[frame].dirty = true;
        drop(memory);
        if is_freed {
            let page = self.data.notifier.pages().start + slot;
            (self.thread.sim).fail(
                "a page that was freed is dirtied",
                format_args!("page {page}"),
            );
        }
    }

    fn hold(&mut self, slot: usize) {
        let frame = self.frame(slot);
        let mut memory = self.thread.sim.memory.lock();
        memory.version += 1;
        memory.frames[frame].held += 1;
    }

    fn unhold(&mut self, slot: usize, _: &LetGo) {
        if self.read().entries[slot].state() != State::Stuck {
            self.thread
                .sim
                .fail("unheld and not held", format_args!("slot {slot}"));
        }
        let frame = self.frame(slot);
        let mut memory = self.thread.sim.memory.lock();
        memory.version += 1;
        memory.frames[frame].held -= 1;
    }
}

/// No memory for now.
pub(crate) const NO_MEMORY: MemoryError = MemoryError::Again(Pressure::Memory);
