// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The chunks of a mirror.
//!
//! Lock order: the reverse map's locks and `mmap_lock`, then a chunk's, then those of
//! [`crate::umr`] or the mirror's list of idle chunks. Reclaim may come with any of the former, so
//! nothing under a chunk's lock allocates in a way that reclaims.

use core::{
    ops::Range,
    ptr::NonNull, //
};

use hmm_abi::{
    Book,
    ChunkIndex,
    Entry,
    HmmPfn,
    Index,
    LetGo,
    MapError,
    Need,
    Proof,
    RangeError,
    Sequence,
    Slots,
    Started, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        lock::{
            mutex::MutexBackend,
            Guard, //
        },
        Arc,
        Mutex, //
    },
};
use kernel_ext::{
    hmm::{
        self,
        Pfn,
        Request, //
    },
    mmu_notifier::{
        self,
        FirstPass,
        NewSequence,
        Registration,
        TwoPass,
        TwoPassOperations, //
    },
};
use mlx5_odp::{
    MemoryError,
    Pressure, //
};

use crate::{
    dma::Addresses,
    mirror::Mirror,
    umr::{
        Key,
        Ticket, //
    },
};

/// A chunk that is subscribed to invalidations.
type Subscribed = Registration<ChunkData, TwoPass>;

/// A chunk of a mirror.
///
/// # Invariants
///
/// The mirror outlives the value.
#[derive(Clone)]
pub(crate) struct Chunk(Arc<Subscribed>);

/// What a chunk has besides its notifier.
///
/// # Invariants
///
/// `mirror` outlives the value, and this is its chunk `at`.
#[pin_data]
pub(crate) struct ChunkData {
    mirror: NonNull<Mirror>,
    at: u32,
    #[pin]
    state: Mutex<State>,
}

// SAFETY: A `Mirror` may be used by any thread.
unsafe impl Send for ChunkData {}
// SAFETY: As above; the rest is behind a lock.
unsafe impl Sync for ChunkData {}

/// What the lock protects.
struct State {
    entries: KVec<Entry>,
    /// Where the device finds the entries' pages, on the paths that have to note it.
    addresses: Addresses,
    book: Book<Ticket>,
    /// The next one of the mirror's idle chunks, if this is one of them.
    next_idle: u32,
    is_queued: bool,
    /// Out of the mirror's index: nobody may publish through it any more.
    is_retired: bool,
}

/// No chunk.
pub(crate) const NO_CHUNK: u32 = u32::MAX;

impl Chunk {
    /// Makes chunk `at` of a mirror.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Again`] for want of memory, [`MemoryError::Invalid`] if the process is gone.
    ///
    /// # Safety
    ///
    /// The mirror outlives the chunk.
    pub(crate) unsafe fn new(mirror: &Mirror, at: ChunkIndex) -> Result<Self, MemoryError> {
        let geometry = &mirror.placement().geometry;
        let indices = geometry.chunk(at);
        let no_memory = MemoryError::Again(Pressure::Memory);
        let mm = mirror.mm().ok_or(MemoryError::Invalid)?;
        let number = u32::try_from(at.0).map_err(|_| MemoryError::Invalid)?;
        let entries =
            KVec::from_elem(Entry::EMPTY, indices.len(), GFP_KERNEL).map_err(|_| no_memory)?;
        let addresses = mirror
            .dma()
            .addresses(indices.len())
            .map_err(|_| no_memory)?;
        // INVARIANT: By the safety requirements.
        let data = pin_init!(ChunkData {
            mirror: NonNull::from(mirror),
            at: number,
            state <- new_mutex!(
                State {
                    entries,
                    addresses,
                    book: Book::new(),
                    next_idle: NO_CHUNK,
                    is_queued: false,
                    is_retired: false,
                },
                "mlx5_ib_odp_chunk"
            ),
        });
        let registration = Registration::new(&mm, geometry.span_of(indices), data);
        Arc::pin_init(registration, GFP_KERNEL)
            // INVARIANT: By the safety requirements.
            .map(Self)
            .map_err(|error| memory_error(error))
    }

    /// Takes the chunk, which is one of the mirror's idle ones, off that list; out of use too, if
    /// it is idle still. Returns whether that is so, and the next one of the list.
    pub(crate) fn retire(&self) -> (bool, u32) {
        let mut state = self.0.data().state.lock();
        state.is_queued = false;
        state.is_retired |= state.book.is_idle();
        (state.is_retired, state.next_idle)
    }

    /// Has it go, in some time, if it has nothing in it.
    pub(crate) fn tidy(&self) {
        self.0.data().tidy();
    }

    /// For the mirror's index.
    pub(crate) fn into_arc(self) -> Arc<Subscribed> {
        self.0
    }

    /// From the mirror's index.
    pub(crate) fn from_arc(arc: Arc<Subscribed>) -> Self {
        Self(arc)
    }
}

/// What the mirror's index holds.
pub(crate) type Indexed = Arc<Subscribed>;

/// What an errno of the memory manager means for a fault.
pub(crate) fn memory_error(error: Error) -> MemoryError {
    match error {
        e if e == EPERM => MemoryError::WriteRefused,
        e if e == ENOMEM => MemoryError::Again(Pressure::Memory),
        e if e == EAGAIN || e == EINTR => MemoryError::Again(Pressure::Race),
        _ => MemoryError::Invalid,
    }
}

impl ChunkData {
    fn mirror(&self) -> &Mirror {
        // SAFETY: By the type invariants.
        unsafe { self.mirror.as_ref() }
    }

    /// The slots of addresses, none for those of other chunks.
    fn slots(&self, span: &Range<usize>) -> Slots {
        let geometry = &self.mirror().placement().geometry;
        let (own, touched) = (geometry.chunk(self.at()), geometry.touched(span));
        let first = touched.first().0.max(own.first().0);
        let end = touched.end().0.min(own.end().0);
        match end.checked_sub(first) {
            Some(_) => Slots::new(first - own.first().0..end - own.first().0),
            None => Slots::NONE,
        }
    }

    fn at(&self) -> ChunkIndex {
        // CAST: widens.
        ChunkIndex(self.at as usize)
    }

    /// A chunk with nothing in it can go: after an invalidation, or a fault that failed.
    fn tidy(&self) {
        let mut state = self.state.lock();
        if state.book.is_idle() && !state.is_queued && !state.is_retired {
            state.is_queued = true;
            state.next_idle = self.mirror().push_idle(self.at);
            drop(state);
            self.mirror().reap_later();
        }
    }
}

impl TwoPassOperations for ChunkData {
    type Pending = ();

    fn invalidate_start(
        &self,
        range: &mmu_notifier::Range,
        sequence: NewSequence<'_>,
    ) -> FirstPass<()> {
        let slots = self.slots(&range.span());
        match hmm_abi::start(self, slots, sequence, range.is_blockable(), true) {
            Started::WouldBlock => FirstPass::WouldBlock,
            Started::Pending => FirstPass::Pending(()),
            Started::Done => {
                // It takes the lock, and whoever has that may sleep.
                if range.is_blockable() {
                    self.tidy();
                }
                FirstPass::Done
            }
        }
    }

    fn invalidate_finish(&self, (): ()) {
        hmm_abi::finish(self);
        self.tidy();
    }
}

impl hmm_abi::Chunk for ChunkData {
    type Device = Key;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = NewSequence<'n>;

    fn device(&self) -> &Key {
        self.mirror().key()
    }

    fn lock(&self) -> Locked<'_> {
        Locked::new(self, self.state.lock())
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        Some(Locked::new(self, self.state.try_lock()?))
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: NewSequence<'_>) {
        sequence.set(&locked.state);
    }

    fn count_invalidated(&self, entries: usize) {
        let mirror = self.mirror();
        mirror
            .key()
            .count_invalidated(mirror.placement().base_pages(entries));
    }

    fn not_zapped(&self, held: usize) {
        self.mirror().key().error(match held {
            0 => c"translations not taken back, the MKey is revoked",
            _ => c"translations not taken back, pages are kept until the MKey is destroyed",
        });
    }
}

impl hmm_abi::Chunk for Chunk {
    type Device = Key;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = NewSequence<'n>;

    fn device(&self) -> &Key {
        self.0.data().device()
    }

    fn lock(&self) -> Locked<'_> {
        self.0.data().lock()
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        self.0.data().try_lock()
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: NewSequence<'_>) {
        self.0.data().set_sequence(locked, sequence);
    }

    fn count_invalidated(&self, entries: usize) {
        self.0.data().count_invalidated(entries);
    }

    fn not_zapped(&self, held: usize) {
        self.0.data().not_zapped(held);
    }
}

impl hmm_abi::FaultChunk for Chunk {
    type Error = MemoryError;

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<MemoryError>> {
        let chunk = self.0.data();
        let mirror = chunk.mirror();
        let mm = mirror
            .mm()
            .ok_or(RangeError::Failed(MemoryError::Invalid))?;
        let span = mirror.placement().geometry.span_of_slots(chunk.at(), slots);
        let request = match need {
            Need::Snapshot => Request::Snapshot,
            Need::Read => Request::Read,
            Need::Write => Request::Write,
        };
        let found = pfns(found);
        match hmm::range_fault(self.0.notifier(), &mm, &span, request, found) {
            Ok(sequence) => Ok(Sequence(sequence.into_raw())),
            Err(e) if e == EBUSY => Err(RangeError::Busy),
            Err(e) => Err(RangeError::Failed(memory_error(e))),
        }
    }

    fn read_ahead(&self, slots: Slots, need: Need) -> Slots {
        let chunk = self.0.data();
        let mirror = chunk.mirror();
        let Some(mm) = mirror.mm() else {
            return Slots::NONE;
        };
        let geometry = &mirror.placement().geometry;
        let span = geometry.span_of_slots(chunk.at(), slots);
        let granted = hmm::may_read_ahead(&mm, &span, need == Need::Write);
        let granted = granted.len() >> geometry.entry_shift();
        Slots::new(slots.first()..slots.first() + granted)
    }

    fn read_retry(&self, locked: &Locked<'_>, sequence: Sequence) -> bool {
        let sequence = mmu_notifier::Sequence::from_raw(sequence.0);
        locked.state.is_retired || self.0.notifier().read_retry(sequence)
    }
}

// An `HmmPfn` is what HMM writes.
const _: () = {
    assert!(HmmPfn::VALID == Pfn::VALID);
    assert!(HmmPfn::WRITE == Pfn::WRITE);
    assert!(HmmPfn::ORDER_SHIFT as usize == Pfn::ORDER_SHIFT);
    assert!(size_of::<HmmPfn>() == size_of::<Pfn>());
    assert!(align_of::<HmmPfn>() == align_of::<Pfn>());
};

/// The same memory, in the kernel's type.
pub(crate) fn pfns(found: &mut [HmmPfn]) -> &mut [Pfn] {
    // SAFETY: Both are transparent wrappers of one word, of which every value is valid.
    unsafe { core::slice::from_raw_parts_mut(found.as_mut_ptr().cast(), found.len()) }
}

/// The page of an entry.
pub(crate) fn page_of(entry: Entry) -> Pfn {
    Pfn::from_raw(HmmPfn::VALID | entry.pfn().0)
}

/// A chunk, locked.
pub(crate) struct Locked<'c> {
    chunk: &'c ChunkData,
    state: Guard<'c, State, MutexBackend>,
    /// Where the first entry is, in bytes from the mirror's first.
    start: usize,
    entry_shift: u32,
}

impl<'c> Locked<'c> {
    fn new(chunk: &'c ChunkData, state: Guard<'c, State, MutexBackend>) -> Self {
        let geometry = &chunk.mirror().placement().geometry;
        Self {
            chunk,
            state,
            start: geometry.offset_of(chunk.at()),
            entry_shift: geometry.entry_shift(),
        }
    }

    /// Where a slot is, in bytes from the mirror's first.
    #[inline]
    fn offset(&self, slot: usize) -> usize {
        self.start + (slot << self.entry_shift)
    }

    /// The bytes of slots, counted from the mirror's first.
    fn bytes(&self, slots: Slots) -> Range<usize> {
        self.offset(slots.first())..self.offset(slots.end())
    }
}

impl hmm_abi::LockedChunk for Locked<'_> {
    type Ticket = Ticket;

    fn first(&self) -> Index {
        Index(self.start >> self.entry_shift)
    }

    fn entries(&self) -> &[Entry] {
        &self.state.entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.state.entries
    }

    fn book(&self) -> &Book<Ticket> {
        &self.state.book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<Ticket> {
        &mut self.state.book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        let bytes = self.bytes(slots);
        let dma = self.chunk.mirror().dma();
        let state = &mut *self.state;
        let entries = &state.entries[slots.range()];
        // SAFETY: The slots are not mapped, by the contract of the trait. They name pages that the
        // process has mapped: the snapshot is valid, and an invalidation waits for the lock and
        // unmaps them before it lets the pages go.
        unsafe { dma.map(bytes, slots.first(), entries, &mut state.addresses) }
    }

    fn sync(&mut self, slots: Slots) -> Result<(), MapError> {
        self.chunk.mirror().dma().sync(self.bytes(slots))
    }

    #[inline]
    fn address(&self, slot: usize) -> u64 {
        let state = &*self.state;
        // SAFETY: The slot is mapped, by the contract of the trait.
        unsafe {
            self.chunk.mirror().dma().address(
                self.offset(slot),
                slot,
                &state.entries,
                &state.addresses,
            )
        }
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        let bytes = self.bytes(slots);
        // SAFETY: All of the slots are mapped, by the contract of the trait, and the device has let
        // go of them.
        unsafe { (self.chunk.mirror().dma()).unmap(bytes, slots, &self.state.addresses) };
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        // SAFETY: The page was mapped until now: an invalidation has not returned, so that the
        // process still has it, or the entry holds a reference.
        unsafe { page_of(self.state.entries[slot]).set_dirty() };
    }

    fn hold(&mut self, slot: usize) {
        // SAFETY: As in `set_dirty`.
        unsafe { page_of(self.state.entries[slot]).get_page() };
    }

    fn unhold(&mut self, slot: usize, _: &LetGo) {
        // SAFETY: `hold` took a reference for this slot.
        unsafe { page_of(self.state.entries[slot]).put_page() };
    }
}
