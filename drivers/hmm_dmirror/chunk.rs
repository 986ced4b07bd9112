// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The chunks of the mirror.
//!
//! Lock order: what the memory manager holds when it invalidates, a chunk's lock, its page table's.

use core::ptr::NonNull;

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
    Span,
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
        NewSequence,
        Operations,
        Registration, //
    },
};

use crate::{
    bindings,
    mirror::{
        Cause,
        Mirror, //
    },
    table::{
        PageTable,
        Pte, //
    },
};

/// What the mirror's index holds.
pub(crate) type Subscribed = Registration<ChunkData>;

/// A chunk of a mirror.
///
/// # Invariants
///
/// The mirror outlives the value.
#[derive(Clone)]
pub(crate) struct Chunk {
    subscribed: Arc<Subscribed>,
    /// What is mapped through this value is exclusive to the device.
    exclusive: bool,
}

/// What a chunk has besides its notifier.
///
/// # Invariants
///
/// `mirror` outlives the value, and this is its chunk `at`.
#[pin_data]
pub(crate) struct ChunkData {
    mirror: NonNull<Mirror>,
    at: ChunkIndex,
    #[pin]
    table: PageTable,
    #[pin]
    state: Mutex<State>,
}

// SAFETY: A `Mirror` may be used by any thread.
unsafe impl Send for ChunkData {}
// SAFETY: As above; the rest is behind locks.
unsafe impl Sync for ChunkData {}

/// What the lock protects.
struct State {
    entries: KVec<Entry>,
    /// Which of them are exclusive to the device.
    exclusive: KVec<bool>,
    book: Book<()>,
}

impl Chunk {
    /// Makes chunk `at` of a mirror. The `mmap` lock must not be held.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR`; `EFAULT` if the process is gone.
    ///
    /// # Safety
    ///
    /// The mirror outlives the chunk.
    pub(crate) unsafe fn new(mirror: &Mirror, at: ChunkIndex) -> Result<Self> {
        let geometry = mirror.geometry();
        let indices = geometry.chunk(at);
        let mm = mirror.mm()?;
        let entries = KVec::from_elem(Entry::EMPTY, indices.len(), GFP_KERNEL)?;
        let exclusive = KVec::from_elem(false, indices.len(), GFP_KERNEL)?;
        let table = PageTable::new(indices.first(), indices.len())?;
        // INVARIANT: By the safety requirements.
        let data = pin_init!(ChunkData {
            mirror: NonNull::from(mirror),
            at,
            table <- table,
            state <- new_mutex!(
                State {
                    entries,
                    exclusive,
                    book: Book::new(),
                },
                "hmm_dmirror_chunk"
            ),
        });
        let registration = Registration::new(&mm, geometry.span_of(indices), data);
        let subscribed = Arc::pin_init(registration, GFP_KERNEL)?;
        Ok(Self::from_arc(subscribed))
    }

    /// For the mirror's index.
    pub(crate) fn into_arc(self) -> Arc<Subscribed> {
        self.subscribed
    }

    /// From the mirror's index.
    pub(crate) fn from_arc(subscribed: Arc<Subscribed>) -> Self {
        Self {
            subscribed,
            exclusive: false,
        }
    }

    /// The same chunk; what is mapped through it is exclusive to the device.
    pub(crate) fn exclusively(self) -> Self {
        Self {
            exclusive: true,
            ..self
        }
    }

    /// The device's page table.
    pub(crate) fn table(&self) -> &PageTable {
        &self.subscribed.data().table
    }

    /// The sequence for what the driver finds out next, by itself.
    pub(crate) fn read_begin(&self) -> Sequence {
        Sequence(self.subscribed.notifier().read_begin().into_raw())
    }

    fn data(&self) -> &ChunkData {
        self.subscribed.data()
    }
}

impl ChunkData {
    fn mirror(&self) -> &Mirror {
        // SAFETY: By the type invariants.
        unsafe { self.mirror.as_ref() }
    }

    /// The slots of addresses, none for those of other chunks.
    fn slots(&self, span: &Span) -> Slots {
        let geometry = self.mirror().geometry();
        let (own, touched) = (geometry.chunk(self.at), geometry.touched(span));
        let first = touched.first().0.max(own.first().0);
        let end = touched.end().0.min(own.end().0);
        match end.checked_sub(first) {
            Some(_) => Slots::new(first - own.first().0..end - own.first().0),
            None => Slots::NONE,
        }
    }

    fn lock(&self, exclusive: bool) -> Locked<'_> {
        Locked::new(self, self.state.lock(), exclusive)
    }
}

impl Operations for ChunkData {
    fn invalidate(&self, range: &mmu_notifier::Range, sequence: NewSequence<'_>) -> bool {
        let may_sleep = range.is_blockable();
        let started = match self.mirror().cause(range) {
            Cause::Foreign => {
                let slots = self.slots(&range.span());
                hmm_abi::start(self, slots, sequence, may_sleep, false)
            }
            Cause::Migration => hmm_abi::pass(self, sequence, may_sleep),
            // The page stays where it is.
            Cause::Exclusive => Started::Done,
        };
        started == Started::Done
    }
}

impl hmm_abi::Chunk for ChunkData {
    type Device = PageTable;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = NewSequence<'n>;

    fn device(&self) -> &PageTable {
        &self.table
    }

    fn lock(&self) -> Locked<'_> {
        self.lock(false)
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        Some(Locked::new(self, self.state.try_lock()?, false))
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: NewSequence<'_>) {
        sequence.set(&locked.state);
    }

    fn count_invalidated(&self, _entries: usize) {}

    fn not_zapped(&self, held: usize) {
        pr_err!("translations not taken back, {held} pages are kept\n");
    }
}

impl hmm_abi::Chunk for Chunk {
    type Device = PageTable;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = NewSequence<'n>;

    fn device(&self) -> &PageTable {
        self.table()
    }

    fn lock(&self) -> Locked<'_> {
        self.data().lock(self.exclusive)
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        let data = self.data();
        Some(Locked::new(data, data.state.try_lock()?, self.exclusive))
    }

    fn set_sequence(&self, locked: &mut Locked<'_>, sequence: NewSequence<'_>) {
        sequence.set(&locked.state);
    }

    fn count_invalidated(&self, _entries: usize) {}

    fn not_zapped(&self, held: usize) {
        hmm_abi::Chunk::not_zapped(self.data(), held);
    }
}

impl hmm_abi::FaultChunk for Chunk {
    type Error = Error;

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<Error>> {
        let (data, mirror) = (self.data(), self.data().mirror());
        let mm = mirror.mm().map_err(RangeError::Failed)?;
        let span = mirror.geometry().span_of_slots(data.at, slots);
        let request = match need {
            Need::Snapshot => Request::Snapshot,
            Need::Read => Request::Read,
            Need::Write => Request::Write,
        };
        let notifier = self.subscribed.notifier();
        let found = pfns(found);
        match hmm::range_fault_for(notifier, &mm, &span, request, mirror.owner(), found) {
            Ok(sequence) => Ok(Sequence(sequence.into_raw())),
            Err(e) if e == EBUSY => Err(RangeError::Busy),
            Err(e) => Err(RangeError::Failed(e)),
        }
    }

    fn read_retry(&self, _: &Locked<'_>, sequence: Sequence) -> bool {
        let sequence = mmu_notifier::Sequence::from_raw(sequence.0);
        self.subscribed.notifier().read_retry(sequence)
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
fn pfns(found: &mut [HmmPfn]) -> &mut [Pfn] {
    // SAFETY: Both are transparent wrappers of one word, of which every value is valid.
    unsafe { core::slice::from_raw_parts_mut(found.as_mut_ptr().cast(), found.len()) }
}

/// The page of an entry.
fn page_of(entry: Entry) -> Pfn {
    Pfn::from_raw(HmmPfn::VALID | entry.pfn().0)
}

/// A chunk, locked.
pub(crate) struct Locked<'c> {
    chunk: &'c ChunkData,
    state: Guard<'c, State, MutexBackend>,
    /// What is mapped now is exclusive to the device.
    exclusive: bool,
}

impl<'c> Locked<'c> {
    fn new(chunk: &'c ChunkData, state: Guard<'c, State, MutexBackend>, exclusive: bool) -> Self {
        Self {
            chunk,
            state,
            exclusive,
        }
    }
}

impl hmm_abi::LockedChunk for Locked<'_> {
    type Ticket = ();

    fn first(&self) -> Index {
        self.chunk.mirror().geometry().chunk(self.chunk.at).first()
    }

    fn entries(&self) -> &[Entry] {
        &self.state.entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.state.entries
    }

    fn book(&self) -> &Book<()> {
        &self.state.book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<()> {
        &mut self.state.book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        // The CPU reaches every page. All that there is to note is whose they are.
        self.state.exclusive[slots.range()].fill(self.exclusive);
        Ok(())
    }

    fn sync(&mut self, _: Slots) -> Result<(), MapError> {
        Ok(())
    }

    fn address(&self, slot: usize) -> u64 {
        // SAFETY: The entry is mapped: the process has the page until it is taken back.
        let pfn = unsafe { bindings::hmm_dmirror_backing_pfn(self.state.entries[slot].pfn().0) };
        Pte::address(pfn, self.state.exclusive[slot])
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        self.state.exclusive[slots.range()].fill(false);
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        // SAFETY: The page was mapped until now: the process still has it, or the entry holds a
        // reference.
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
