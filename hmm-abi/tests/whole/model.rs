// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A model of a process's memory, its interval notifier and a device.
//!
//! Every lock, and every place where the kernel could be preempted, is a point
//! where the scheduler may run somebody else. Frames are never used twice: a frame
//! that was freed is an error for whoever still reaches it.

use std::collections::{BTreeMap, BTreeSet};

use hmm_abi::whole::{self, Host, Locked as _, Proof};
use hmm_abi::{Geometry, HmmPfn, Index, Indices, Need, Order, Pfn, RangeError, Sequence, Span};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::thread;

/// What a run may do wrong, on purpose.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sabotage {
    /// The driver does not look whether an invalidation has come.
    pub(crate) skip_retry_check: bool,
    /// The driver does not record an invalidation.
    pub(crate) skip_set_sequence: bool,
    /// The driver does not zap the first entry of a run.
    pub(crate) skip_one_zap: bool,
    /// The driver leaves the entries alone while nothing is mapped for DMA. Not a
    /// fault: the C driver of mlx5 does so.
    pub(crate) lazy_invalidate: bool,
}

#[derive(Clone, Copy, Default)]
struct Frame {
    freed: bool,
    dirty: bool,
    written_by_device: bool,
    references: usize,
}

/// The process: which frame is at which entry, and the notifier.
#[derive(Default)]
struct Process {
    /// By entry: frame and write permission.
    pages: BTreeMap<usize, (usize, bool)>,
    frames: Vec<Frame>,
    /// `mmu_notifier_subscriptions::invalidate_seq`: odd while invalidating.
    sequence: usize,
    active_invalidations: usize,
}

impl Process {
    fn new_frame(&mut self) -> usize {
        self.frames.push(Frame::default());
        self.frames.len() - 1
    }

    fn free(&mut self, frame: usize) {
        let frame = &mut self.frames[frame];
        assert!(
            !frame.written_by_device || frame.dirty || frame.references > 0,
            "a page that the device wrote to is freed clean"
        );
        frame.freed = frame.references == 0;
    }
}

/// What the lock protects.
pub(crate) struct State {
    entries: Vec<HmmPfn>,
    sequence: usize,
    /// Entries mapped for DMA, as the driver counts them.
    pub(crate) npages: usize,
    /// Entries that the device did not let go: each holds a reference on its page.
    held: BTreeSet<usize>,
}

/// A mirror of a model process, and the device behind it.
pub(crate) struct Model {
    pub(crate) geometry: Geometry,
    sabotage: Sabotage,
    process: Mutex<Process>,
    quiet: Condvar,
    state: Mutex<State>,
    /// The device's translations: by entry, frame and write permission.
    translations: Mutex<BTreeMap<usize, (usize, bool)>>,
}

/// The locked state.
pub(crate) struct Locked<'m> {
    model: &'m Model,
    pub(crate) state: MutexGuard<'m, State>,
}

impl Model {
    pub(crate) fn new(geometry: Geometry, sabotage: Sabotage) -> Self {
        Self {
            geometry,
            sabotage,
            process: Mutex::new(Process {
                sequence: 2,
                ..Process::default()
            }),
            quiet: Condvar::new(),
            state: Mutex::new(State {
                entries: vec![HmmPfn::EMPTY; geometry.indices().len()],
                sequence: 0,
                npages: 0,
                held: BTreeSet::new(),
            }),
            translations: Mutex::new(BTreeMap::new()),
        }
    }

    fn pages_per_entry_order(&self) -> Order {
        Order(self.geometry.pages_per_entry().trailing_zeros())
    }

    /// A fault by the device: fault in, map, tell the device, unlock. True if it succeeds.
    pub(crate) fn device_fault(&self, span: &Span, need: Need) -> bool {
        let indices = self.geometry.touched(span);
        let mut scratch = vec![HmmPfn::EMPTY; self.geometry.scratch_len(indices)];
        let Ok(mut locked) = whole::fault(self, &self.geometry, indices, need, &mut scratch) else {
            return false;
        };
        thread::yield_now();
        for index in indices.iter() {
            let entry = locked.entry(index);
            assert!(need.is_met_by(entry), "returned without what was asked for");
            if !entry.is_valid() {
                continue;
            }
            let translation = (self.frame_of(entry), entry.is_writable());
            (self.translations.lock().unwrap()).insert(index.0, translation);
            if !entry.is_dma_mapped() {
                locked.state.entries[index.0] =
                    HmmPfn::from_bits(entry.bits() | HmmPfn::DMA_MAPPED);
                locked.state.npages += 1;
            }
        }
        true
    }

    fn frame_of(&self, entry: HmmPfn) -> usize {
        entry.pfn().0 / self.geometry.pages_per_entry()
    }

    /// `munmap` of a range: notifier, page table, notifier, pages freed.
    pub(crate) fn unmap_range(&self, span: &Span, zap: &Zap) {
        self.invalidate(span, zap);
        let mut process = self.process.lock().unwrap();
        let gone: Vec<_> = (self.geometry.touched(span).iter())
            .filter_map(|index| process.pages.remove(&index.0))
            .collect();
        self.end_invalidation(&mut process);
        drop(process);
        thread::yield_now();
        let mut process = self.process.lock().unwrap();
        for (frame, _) in gone {
            process.free(frame);
        }
    }

    /// `mprotect` to read-only, as fork does it too: translations are taken back, the
    /// pages stay.
    pub(crate) fn write_protect(&self, span: &Span, zap: &Zap) {
        self.invalidate(span, zap);
        let mut process = self.process.lock().unwrap();
        for index in self.geometry.touched(span).iter() {
            if let Some(page) = process.pages.get_mut(&index.0) {
                page.1 = false;
            }
        }
        self.end_invalidation(&mut process);
    }

    fn invalidate(&self, span: &Span, zap: &Zap) {
        let mut process = self.process.lock().unwrap();
        process.active_invalidations += 1;
        process.sequence |= 1;
        let sequence = process.sequence;
        drop(process);
        self.callback(span, sequence, zap);
        thread::yield_now();
    }

    /// The notifier's callback, as a driver writes it.
    fn callback(&self, span: &Span, sequence: usize, zap: &Zap) {
        let mut locked = self.lock();
        if !self.sabotage.skip_set_sequence {
            locked.state.sequence = sequence;
        }
        if self.sabotage.lazy_invalidate && locked.state.npages == 0 {
            return;
        }
        let indices = self.geometry.touched(span);
        let is_mapped = |index: &Index| locked.entry(*index).is_dma_mapped();
        let mapped: Vec<_> = indices.iter().filter(is_mapped).collect();
        if zap.take_back(self, &mapped) {
            locked.unmap(indices);
            return;
        }
        // What the device keeps stays mapped, and its page in memory.
        for index in indices.iter() {
            if !mapped.contains(&index) {
                locked.unmap(Indices::new(index.0..index.0 + 1));
            } else if locked.state.held.insert(index.0) {
                let frame = self.frame_of(locked.entry(index));
                self.process.lock().unwrap().frames[frame].references += 1;
            }
        }
    }

    fn end_invalidation(&self, process: &mut Process) {
        process.active_invalidations -= 1;
        if process.active_invalidations == 0 {
            process.sequence += 1;
        }
        self.quiet.notify_all();
    }

    /// `mmu_interval_read_begin`: waits while an invalidation is under way.
    fn read_begin(&self) -> usize {
        let seen = self.state.lock().unwrap().sequence;
        let mut process = self.process.lock().unwrap();
        while process.sequence == seen {
            process = self.quiet.wait(process).unwrap();
        }
        seen
    }

    /// The device uses a translation: reading and using it is one step, as it is for
    /// a device that waits in `take_back` for its own accesses.
    pub(crate) fn device_access(&self, index: usize, write: bool) {
        let translations = self.translations.lock().unwrap();
        let Some(&(frame, writable)) = translations.get(&index) else {
            return;
        };
        let mut process = self.process.lock().unwrap();
        let frame = &mut process.frames[frame];
        assert!(!frame.freed, "the device reached a page that was freed");
        frame.written_by_device |= write && writable;
    }

    /// What must hold when nobody is at work.
    pub(crate) fn check_at_rest(&self) {
        let state = self.state.lock().unwrap();
        let translations = self.translations.lock().unwrap();
        let process = self.process.lock().unwrap();
        let mut mapped = 0;
        for (index, entry) in state.entries.iter().enumerate() {
            let is_mapped = entry.is_valid() && entry.is_dma_mapped();
            mapped += usize::from(is_mapped);
            if is_mapped && !state.held.contains(&index) {
                let page = process.pages.get(&index).map(|page| page.0);
                assert_eq!(page, Some(self.frame_of(*entry)));
            }
            assert!(
                is_mapped || !translations.contains_key(&index),
                "the device has a translation that nobody knows of"
            );
        }
        assert_eq!(state.npages, mapped, "every mapped page counts once");
    }

    /// The device is gone: nothing may be left.
    pub(crate) fn tear_down(&self) {
        self.translations.lock().unwrap().clear();
        let mut locked = self.lock();
        locked.unmap(self.geometry.indices());
        assert_eq!(locked.state.npages, 0);
        assert!(locked.state.entries.iter().all(|&e| e == HmmPfn::EMPTY));
        drop(locked);
        let process = self.process.lock().unwrap();
        assert!(process.frames.iter().all(|frame| frame.references == 0));
    }
}

impl Locked<'_> {
    /// The device has let go of `indices`.
    fn unmap(&mut self, indices: Indices) {
        let frames: Vec<_> = (indices.iter())
            .filter(|index| self.state.held.contains(&index.0))
            .map(|index| (index, self.model.frame_of(self.entry(index))))
            .collect();
        let unmapped = whole::unmap(self, indices, &());
        self.state.npages -= unmapped;
        for (index, frame) in frames {
            self.state.held.remove(&index.0);
            self.model.process.lock().unwrap().frames[frame].references -= 1;
        }
    }
}

impl Host for Model {
    type Error = ();
    type Locked<'h> = Locked<'h>;

    fn lock(&self) -> Locked<'_> {
        Locked {
            model: self,
            state: self.state.lock().unwrap(),
        }
    }

    fn range_fault(
        &self,
        span: &Span,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<()>> {
        let sequence = self.read_begin();
        let per_entry = self.geometry.pages_per_entry();
        assert_eq!(found.len(), self.geometry.touched(span).len() * per_entry);
        for (index, unit) in self
            .geometry
            .touched(span)
            .iter()
            .zip(found.chunks_mut(per_entry))
        {
            thread::yield_now();
            let mut process = self.process.lock().unwrap();
            let page = process.pages.get(&index.0).copied();
            let (frame, writable) = match (page, need) {
                (None, Need::Snapshot) => continue,
                (Some((frame, false)), Need::Write) => (frame, true),
                (Some(page), _) => page,
                (None, _) => (process.new_frame(), need == Need::Write),
            };
            process.pages.insert(index.0, (frame, writable));
            for (i, entry) in unit.iter_mut().enumerate() {
                let pfn = Pfn(frame * per_entry + i);
                *entry = HmmPfn::present(pfn, writable, self.pages_per_entry_order());
            }
        }
        if thread_rng().gen_bool(0.05) {
            return Err(RangeError::Busy);
        }
        Ok(Sequence(sequence))
    }
}

impl whole::Locked for Locked<'_> {
    type LetGo = ();

    fn read_retry(&self, sequence: Sequence) -> bool {
        !self.model.sabotage.skip_retry_check && self.state.sequence != sequence.0
    }

    fn entry(&self, index: Index) -> HmmPfn {
        self.state.entries[index.0]
    }

    fn store(&mut self, index: Index, entry: HmmPfn, _: &Proof) {
        self.state.entries[index.0] = entry;
    }

    fn dma_unmap(&mut self, index: Index, (): &()) {
        let entry = &mut self.state.entries[index.0];
        assert!(entry.is_valid() && entry.is_dma_mapped());
        *entry = HmmPfn::from_bits(entry.bits() & !HmmPfn::DMA_MAPPED);
    }

    fn set_dirty(&mut self, index: Index, (): &()) {
        let frame = self.model.frame_of(self.entry(index));
        self.model.process.lock().unwrap().frames[frame].dirty = true;
    }
}

/// The device's side of an invalidation.
#[derive(Clone, Copy)]
pub(crate) struct Zap {
    /// How often, of 100, the device does not let go.
    pub(crate) fails: u32,
}

impl Zap {
    fn take_back(self, model: &Model, mapped: &[Index]) -> bool {
        thread::yield_now();
        if thread_rng().gen_range(0..100) < self.fails {
            return false;
        }
        let skipped = usize::from(model.sabotage.skip_one_zap);
        let mut translations = model.translations.lock().unwrap();
        for index in mapped.iter().skip(skipped) {
            translations.remove(&index.0);
        }
        true
    }
}
