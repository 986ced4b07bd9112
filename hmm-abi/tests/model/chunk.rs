// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A chunk of the model's mirror: what a driver supplies for one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hmm_abi::{
    start, Book, Chunk, Entry, FaultChunk, HmmPfn, Index, LetGo, LockedChunk, MapError, Need,
    Order, Pfn, Proof, RangeError, Sequence, Slots, Started, State,
};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::{Arc, Mutex, MutexGuard};
use shuttle::thread;

use super::device::{Nic, Ticket};
use super::memory::{Page, Walked};
use super::notifier::{Interval, Notifier, Pages};
use super::Parts;

/// How often a range fault that an invalidation has overtaken begins anew, before it has lasted
/// for as long as the host waits.
const PATIENCE: usize = 4;

/// A chunk in memory.
pub(crate) struct Area {
    parts: Arc<Parts>,
    notifier: Notifier,
    state: Mutex<Kept>,
    /// How many have found it and go on using it.
    pub(crate) holders: AtomicUsize,
    freed: AtomicBool,
}

/// What the lock protects.
struct Kept {
    entries: Vec<Entry>,
    addresses: Vec<Option<u64>>,
    book: Book<Ticket>,
}

/// A reference to a chunk: the index's, the notifier's, or one that holds it.
pub(crate) struct Ref {
    pub(crate) area: Arc<Area>,
    holds: bool,
}

/// A chunk under its lock.
pub(crate) struct Locked<'c> {
    area: &'c Area,
    kept: MutexGuard<'c, Kept>,
    syncs: usize,
}

impl Ref {
    pub(crate) fn new(parts: Arc<Parts>, pages: Pages) -> Self {
        let area = Area {
            parts,
            state: Mutex::new(Kept {
                entries: vec![Entry::EMPTY; pages.len()],
                addresses: vec![None; pages.len()],
                book: Book::new(),
            }),
            notifier: Notifier::new(pages),
            holders: AtomicUsize::new(0),
            freed: AtomicBool::new(false),
        };
        Self {
            area: Arc::new(area),
            holds: false,
        }
    }

    pub(crate) fn hold(&self) -> Self {
        self.area.holders.fetch_add(1, Ordering::Relaxed);
        Self {
            area: Arc::clone(&self.area),
            holds: true,
        }
    }
}

impl Drop for Ref {
    fn drop(&mut self) {
        if self.holds {
            self.area.holders.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Area {
    fn locked<'c>(&'c self, kept: MutexGuard<'c, Kept>) -> Locked<'c> {
        self.check_alive();
        self.parts.threads.lock();
        Locked {
            area: self,
            kept,
            syncs: 0,
        }
    }

    fn check_alive(&self) {
        let freed = self.freed.load(Ordering::Relaxed);
        assert!(!freed, "a chunk is used that was freed");
    }

    /// Its memory is given back: its notifier is removed, and it is out of the index.
    pub(crate) fn free(&self) {
        self.check_alive();
        let kept = self.state.lock().unwrap();
        let empty = kept.entries.iter().all(|&entry| entry == Entry::EMPTY);
        let idle = empty && kept.book.is_idle() && kept.book.mapped() == 0;
        assert!(idle, "a chunk is freed that is mapped");
        let holders = self.holders.load(Ordering::Relaxed);
        assert_eq!(holders, 0, "a chunk is freed that is in use");
        self.freed.store(true, Ordering::Relaxed);
    }
}

impl Interval for Ref {
    fn notifier(&self) -> &Notifier {
        &self.area.notifier
    }

    fn invalidate_start(
        &self,
        pages: &Pages,
        sequence: usize,
        may_sleep: bool,
        pending: &mut bool,
    ) -> bool {
        self.area.check_alive();
        let threads = &self.area.parts.threads;
        let all = self.area.notifier.pages();
        let first = pages.start.max(all.start) - all.start;
        let end = pages.end.min(all.end) - all.start;
        let two_passes = !self.area.parts.chance(self.area.parts.failures.one_pass);

        let was = threads.enter_callback(true);
        let slots = Slots::new(first..end);
        let started = start(self, slots, sequence, may_sleep, two_passes);
        threads.enter_callback(was);
        assert!(started != Started::Pending || (may_sleep && two_passes));
        *pending = started == Started::Pending;
        started != Started::WouldBlock
    }

    fn invalidate_finish(&self) {
        self.area.check_alive();
        let was = self.area.parts.threads.enter_callback(true);
        hmm_abi::finish(self);
        self.area.parts.threads.enter_callback(was);
    }
}

impl Chunk for Ref {
    type Device = Nic;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = usize;

    fn device(&self) -> &Nic {
        &self.area.parts.nic
    }

    fn lock(&self) -> Locked<'_> {
        // One chunk's lock at a time.
        self.area.parts.threads.check_unlocked();
        self.area.locked(self.area.state.lock().unwrap())
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        let kept = self.area.state.try_lock().ok()?;
        Some(self.area.locked(kept))
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: usize) {
        assert!(std::ptr::eq(locked.area, &*self.area));
        if !self.area.parts.sabotage.skip_set_sequence {
            self.area.notifier.set_sequence(sequence);
        }
    }

    fn count_invalidated(&self, entries: usize) {
        let parts = &self.area.parts;
        parts.threads.check_unlocked();
        parts.invalidated.fetch_add(entries, Ordering::Relaxed);
    }

    fn not_zapped(&self, held: usize) {
        self.area.parts.threads.check_unlocked();
        assert!(held > 0 || self.device().is_gone());
        self.area.parts.not_zapped.fetch_add(1, Ordering::Relaxed);
    }
}

impl FaultChunk for Ref {
    type Error = ();

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<()>> {
        let Parts {
            notifiers,
            memory,
            threads,
            geometry,
            ..
        } = &*self.area.parts;
        assert!(self.holds && !slots.is_empty());
        threads.check_unlocked();
        threads.check_may_allocate();
        let per_entry = geometry.pages_per_entry();
        assert_eq!(found.len(), slots.len() * per_entry);
        let empty = found.iter().all(|&found| found == HmmPfn::EMPTY);
        assert!(empty, "the scratch comes in empty");
        let first = self.area.notifier.pages().start;
        'again: for _ in 0..PATIENCE {
            let sequence = notifiers.read_begin(&self.area.notifier);
            for (slot, unit) in slots.range().zip(found.chunks_exact_mut(per_entry)) {
                thread::yield_now();
                let page = match memory.walk(first + slot, need) {
                    Walked::Hole => {
                        unit.fill(HmmPfn::EMPTY);
                        continue;
                    }
                    Walked::Found(page) => page,
                    Walked::Shared(page) => {
                        self.area.parts.copy_on_write(first + slot, page);
                        continue 'again;
                    }
                };
                for (i, found) in unit.iter_mut().enumerate() {
                    *found = self.area.parts.found(page, i);
                }
            }
            if self.area.parts.chance(self.area.parts.failures.busy) {
                break;
            }
            return Ok(Sequence(sequence));
        }
        Err(RangeError::Busy)
    }

    fn read_ahead(&self, slots: Slots, _: Need) -> Slots {
        slots
    }

    fn read_retry(&self, locked: &Locked<'_>, Sequence(sequence): Sequence) -> bool {
        assert!(std::ptr::eq(locked.area, &*self.area));
        !self.area.parts.sabotage.skip_retry_check && self.area.notifier.read_retry(sequence)
    }
}

impl Parts {
    /// How the page is found by a range fault.
    fn found(&self, page: Page, within: usize) -> HmmPfn {
        let per_entry = self.geometry.pages_per_entry();
        let pfn = Pfn(page.frame * per_entry + within);
        HmmPfn::present(pfn, page.writable, Order(per_entry.trailing_zeros()))
    }

    fn frame(&self, entry: Entry) -> usize {
        entry.pfn().0 / self.geometry.pages_per_entry()
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.area.parts.threads.unlock();
    }
}

impl LockedChunk for Locked<'_> {
    type Ticket = Ticket;

    fn first(&self) -> Index {
        Index(self.area.notifier.pages().start)
    }

    fn entries(&self) -> &[Entry] {
        &self.kept.entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.kept.entries
    }

    fn book(&self) -> &Book<Ticket> {
        &self.kept.book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<Ticket> {
        &mut self.kept.book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        let parts = &self.area.parts;
        parts.threads.check_may_allocate();
        assert!(!slots.is_empty() && self.syncs == 0);
        for slot in slots.range() {
            assert_eq!(self.kept.entries[slot].state(), State::Mapped);
            assert_eq!(self.kept.addresses[slot], None, "mapped twice");
        }
        if parts.chance(parts.failures.map) {
            let errors = [MapError::Memory, MapError::Unreachable];
            return Err(errors[thread_rng().gen_range(0..2)]);
        }
        for slot in slots.range() {
            let frame = parts.frame(self.kept.entries[slot]);
            self.kept.addresses[slot] = Some(parts.bus.map(frame));
        }
        Ok(())
    }

    fn sync(&mut self, slots: Slots) -> Result<(), MapError> {
        let parts = &self.area.parts;
        self.syncs += 1;
        assert_eq!(self.syncs, 1, "once for a window");
        assert!(!slots.is_empty());
        for slot in [slots.first(), slots.end() - 1] {
            assert!(self.kept.addresses[slot].is_some(), "no longer than needed");
        }
        if parts.chance(parts.failures.map) {
            return Err(MapError::Memory);
        }
        for slot in slots.range() {
            assert_eq!(
                self.kept.entries[slot].is_mapped(),
                self.kept.addresses[slot].is_some()
            );
            if let Some(address) = self.kept.addresses[slot] {
                parts.bus.sync(address);
            }
        }
        Ok(())
    }

    fn address(&self, slot: usize) -> u64 {
        self.kept.addresses[slot].expect("the address of what is not mapped")
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        assert!(!slots.is_empty());
        for slot in slots.range() {
            let entry = self.kept.entries[slot];
            assert!(entry.is_mapped() && !entry.is_shown() || self.device().is_gone());
            let address = self.kept.addresses[slot].take().expect("it is mapped");
            assert_eq!(self.area.parts.bus.unmap(address), self.frame(slot));
        }
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        assert!(self.kept.addresses[slot].is_none() && self.kept.entries[slot].is_writable());
        self.area.parts.memory.set_dirty(self.frame(slot));
    }

    fn hold(&mut self, slot: usize) {
        assert!(self.kept.addresses[slot].is_some());
        if !self.area.parts.sabotage.skip_hold {
            self.area.parts.memory.hold(self.frame(slot));
        }
    }

    fn unhold(&mut self, slot: usize, _: &LetGo) {
        assert_eq!(self.kept.entries[slot].state(), State::Stuck);
        if !self.area.parts.sabotage.skip_hold {
            self.area.parts.memory.unhold(self.frame(slot));
        }
    }
}

impl Locked<'_> {
    fn device(&self) -> &Nic {
        &self.area.parts.nic
    }

    fn frame(&self, slot: usize) -> usize {
        self.area.parts.frame(self.kept.entries[slot])
    }
}
