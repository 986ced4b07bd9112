// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A chunk of a region's mirror, with its notifier and its lock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hmm_abi::{
    start, Book, Chunk, Entry, FaultChunk, HmmPfn, Index, Indices, LetGo, LockedChunk, MapError,
    Need, Proof, RangeError, Sequence, Slots, Started,
};
use mlx5_odp::MemoryError;

use super::device::Key;
use super::memory::{Memory, Pages, Walked};
use super::world::Walk;

/// How often a range fault that is overtaken begins anew, before it has lasted for as long as the
/// kernel waits.
const PATIENCE: usize = 64;

/// Where the device finds frame 0.
const ADDRESS: u64 = 0x1_0000_0000;

/// A chunk in memory.
pub(crate) struct Area {
    key: Arc<Key>,
    indices: Indices,
    /// Of the process.
    pub(crate) pages: Pages,
    /// The notifier's.
    sequence: AtomicUsize,
    /// Taken by whoever has the lock.
    kept: Mutex<Option<Kept>>,
    pub(crate) invalidated: AtomicUsize,
}

/// What the lock protects.
struct Kept {
    entries: Vec<Entry>,
    addresses: Vec<Option<u64>>,
    book: Book<()>,
}

/// A chunk that is in use.
pub(crate) struct Ref(pub(crate) Arc<Area>);

/// A chunk under its lock.
pub(crate) struct Locked<'c> {
    area: &'c Area,
    /// Until the drop.
    kept: Option<Kept>,
}

impl Area {
    pub(crate) fn new(key: Arc<Key>, indices: Indices, pages: Pages) -> Self {
        Self {
            kept: Mutex::new(Some(Kept {
                entries: vec![Entry::EMPTY; indices.len()],
                addresses: vec![None; indices.len()],
                book: Book::new(),
            })),
            key,
            indices,
            pages,
            sequence: AtomicUsize::new(0),
            invalidated: AtomicUsize::new(0),
        }
    }

    fn pages_per_entry(&self) -> usize {
        self.pages.len() / self.indices.len()
    }

    fn set_sequence(&self, sequence: usize) {
        self.sequence.store(sequence, Ordering::Relaxed);
    }

    fn sequence(&self) -> usize {
        self.sequence.load(Ordering::Relaxed)
    }
}

impl Ref {
    /// The notifier's callback: the first pass.
    pub(crate) fn invalidate(&self, pages: &Pages, sequence: usize, two_passes: bool) -> Started {
        let (all, unit) = (&self.0.pages, self.0.pages_per_entry());
        let first = (pages.start.max(all.start) - all.start) / unit;
        let end = (pages.end.min(all.end) - all.start).div_ceil(unit);
        start(self, Slots::new(first..end), sequence, true, two_passes)
    }
}

impl Chunk for Ref {
    type Device = Key;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = usize;

    fn device(&self) -> &Key {
        &self.0.key
    }

    fn lock(&self) -> Locked<'_> {
        self.try_lock().expect("there is one thread")
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        let kept = self.0.kept.lock().unwrap().take()?;
        Some(Locked {
            area: &self.0,
            kept: Some(kept),
        })
    }

    fn set_sequence(&self, _: &mut Locked<'_>, sequence: usize) {
        self.0.set_sequence(sequence);
    }

    fn count_invalidated(&self, entries: usize) {
        self.0.invalidated.fetch_add(entries, Ordering::Relaxed);
    }

    fn not_zapped(&self, _: usize) {}
}

impl FaultChunk for Ref {
    type Error = MemoryError;

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<MemoryError>> {
        let area = &*self.0;
        let world = &area.key.world;
        let unit = area.pages_per_entry();
        assert_eq!(found.len(), slots.len() * unit);
        let first = area.pages.start + slots.range().start * unit;
        let trouble = {
            let mut state = world.state();
            state.writes_asked += usize::from(need == Need::Write);
            match need {
                Need::Snapshot => state.looks += 1,
                Need::Read | Need::Write => state.walks += 1,
            }
            match need {
                Need::Snapshot => state.trouble.looks.pop_front(),
                Need::Read | Need::Write => state.trouble.walks.pop_front(),
            }
        };
        match trouble {
            Some(Walk::Busy) => return Err(RangeError::Busy),
            Some(Walk::Failed(error)) => return Err(RangeError::Failed(error)),
            Some(Walk::Stale) | None => {}
        }
        'again: for _ in 0..PATIENCE {
            let sequence = {
                let state = world.state();
                if state.is_invalidating(&area.pages) {
                    continue;
                }
                area.sequence()
            };
            for (page, found) in (first..).zip(&mut *found) {
                let walked = world.state().memory.walk(page, need);
                match walked.map_err(RangeError::Failed)? {
                    Walked::Found(page) => *found = page,
                    Walked::Copy => {
                        world.invalidate(&(page..page + 1), true, |memory| memory.copy(page));
                        continue 'again;
                    }
                }
            }
            if let Some(Walk::Stale) = trouble {
                area.set_sequence(world.state().next_invalidation());
            }
            return Ok(Sequence(sequence));
        }
        Err(RangeError::Busy)
    }

    fn read_ahead(&self, slots: Slots, _: Need) -> Slots {
        slots
    }

    fn read_retry(&self, _: &Locked<'_>, Sequence(sequence): Sequence) -> bool {
        self.0.sequence() != sequence
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Ok(mut kept) = self.area.kept.lock() {
            *kept = self.kept.take();
        }
    }
}

impl Locked<'_> {
    fn kept(&self) -> &Kept {
        self.kept.as_ref().expect("not dropped")
    }

    fn kept_mut(&mut self) -> &mut Kept {
        self.kept.as_mut().expect("not dropped")
    }

    fn frame(&self, slot: usize) -> usize {
        Memory::frame(self.kept().entries[slot].pfn())
    }
}

impl LockedChunk for Locked<'_> {
    type Ticket = ();

    fn first(&self) -> Index {
        self.area.indices.first()
    }

    fn entries(&self) -> &[Entry] {
        &self.kept().entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.kept_mut().entries
    }

    fn book(&self) -> &Book<()> {
        &self.kept().book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<()> {
        &mut self.kept_mut().book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        for slot in slots.range() {
            let frame = self.frame(slot);
            let address = ADDRESS + u64::try_from(frame * 4096).unwrap();
            let old = self.kept_mut().addresses[slot].replace(address);
            assert_eq!(old, None, "mapped twice");
        }
        Ok(())
    }

    fn sync(&mut self, _: Slots) -> Result<(), MapError> {
        Ok(())
    }

    fn address(&self, slot: usize) -> u64 {
        self.kept().addresses[slot].expect("the address of what is not mapped")
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        for slot in slots.range() {
            let address = self.kept_mut().addresses[slot].take();
            assert!(address.is_some(), "unmapped and not mapped");
        }
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        let frame = self.frame(slot);
        self.area.key.world.state().memory.set_dirty(frame);
    }

    fn hold(&mut self, slot: usize) {
        let frame = self.frame(slot);
        self.area.key.world.state().memory.hold(frame);
    }

    fn unhold(&mut self, slot: usize, _: &LetGo) {
        let frame = self.frame(slot);
        self.area.key.world.state().memory.unhold(frame);
    }
}
