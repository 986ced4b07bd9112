// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the mirror needs from its surroundings: the process's memory, a lock, a place for the
//! entries, the mapping for the device, and the device.

use crate::book::Book;
use crate::chunk::{LetGo, Proof, Table};
use crate::{ChunkIndex, Entry, HmmPfn, Index, Slots};

/// The value of the interval notifier's sequence that a range fault is valid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence(pub usize);

/// What a caller wants of the pages of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Take what is there; fault nothing in.
    Snapshot,
    /// Every page readable.
    Read,
    /// Every page writable.
    Write,
}

impl Need {
    /// A page of these flags is what was asked for.
    pub const fn is_met_by(self, found: HmmPfn) -> bool {
        match self {
            Self::Snapshot => true,
            Self::Read => found.is_valid(),
            Self::Write => found.is_writable(),
        }
    }
}

/// Why a range fault failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError<E> {
    /// Invalidations, or a writer on the process's memory map, took longer than the host waits.
    /// Nothing is wrong with the range.
    Busy,
    /// The range cannot be had.
    Failed(E),
}

/// Why pages could not be mapped for the device. None of them is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No memory for it now.
    Memory,
    /// The device cannot reach one of the pages.
    Unreachable,
}

/// Why a device did not take translations. It may have none, some or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// No memory, or no room in a queue, for now.
    Again,
    /// It will take no more of them: its key is gone.
    Gone,
    /// It failed.
    Failed,
}

/// The device did not confirm that translations are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotZapped;

/// How a zap was taken.
#[derive(Debug)]
pub enum Zap<T> {
    /// It is on its way: what to settle it by.
    Posted(T),
    /// The device can use none of its translations any more: its key is gone.
    Gone,
}

/// A device with a table of translations.
///
/// Updates of the table, zaps among them, take effect in the order in which they were asked for,
/// which is that of the chunk's lock; one that failed never takes effect later.
///
/// Its methods are called with a chunk's lock held or, where said so, not. None of them may
/// allocate in a way that reclaims memory: reclaim invalidates, and waits for the lock.
pub trait Device {
    /// Entries that one update of its table rewrites together, a power of two: an update covers
    /// whole groups of so many, counted from the mirror's first entry.
    const GRANULE: usize;

    /// Ticks of [`Device::now`] for which the device may still report that translations were missing
    /// after it was given them: its reports take a way of their own.
    const LATE: u32 = 0;

    /// A zap under way.
    type Ticket;

    /// Writes the translations of `table` and waits until the device uses them.
    ///
    /// # Errors
    ///
    /// See [`PublishError`].
    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError>;

    /// Has the device take the translations of `table`, of which those that are being taken back
    /// are not shown any more, in place of the ones it has. Does not wait for it.
    ///
    /// # Errors
    ///
    /// [`NotZapped`] if it could not even be posted.
    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Self::Ticket>, NotZapped>;

    /// Waits until the device neither has nor uses what a zap has taken back. Called without a
    /// lock.
    ///
    /// # Errors
    ///
    /// [`NotZapped`] if the zap failed.
    fn settle(&self, ticket: Self::Ticket) -> Result<(), NotZapped>;

    /// Takes all translations of the mirror from the device at once, for good; nothing to do if
    /// that was done before. Called without a lock.
    ///
    /// # Errors
    ///
    /// [`NotZapped`] if that failed as well.
    fn cut_off(&self) -> Result<(), NotZapped>;

    /// A clock, which wraps. What a device that says how it wants to access memory has no use for,
    /// as [`Device::moment`].
    fn now(&self) -> u32 {
        0
    }

    /// How many reports of missing translations the device has made until now. Wraps.
    fn moment(&self) -> u32 {
        0
    }
}

/// A chunk of a mirror: up to [`WINDOW_PAGES`](crate::WINDOW_PAGES) pages under one lock and one
/// interval notifier. The value keeps it in memory.
pub trait Chunk {
    /// The mirror's device.
    type Device: Device;
    /// See [`Chunk::lock`].
    type Locked<'c>: LockedChunk<Ticket = <Self::Device as Device>::Ticket>
    where
        Self: 'c;
    /// What the notifier hands to its callback for [`Chunk::set_sequence`].
    type NewSequence<'n>;

    /// The device.
    fn device(&self) -> &Self::Device;

    /// Takes the lock. What an invalidation does, it does under this lock, and memory reclaim
    /// invalidates: no allocation under it may reclaim.
    fn lock(&self) -> Self::Locked<'_>;

    /// Takes the lock if that can be done without sleeping.
    fn try_lock(&self) -> Option<Self::Locked<'_>>;

    /// Records an invalidation, under the lock: `mmu_interval_set_seq`. What was looked up before
    /// is stale from now on.
    fn set_sequence(&self, locked: &mut Self::Locked<'_>, sequence: Self::NewSequence<'_>);

    /// Counts entries that an invalidation has taken from the device.
    fn count_invalidated(&self, entries: usize);

    /// An invalidation could not take translations back in the usual way. `held` is how many
    /// entries the device kept: they stay mapped, and their pages in memory; with 0 it was cut
    /// off.
    fn not_zapped(&self, held: usize);
}

/// A chunk through which the process's memory can be reached: what a fault has, and an invalidation
/// does not need.
pub trait FaultChunk: Chunk {
    /// Why the memory manager refused.
    type Error;

    /// Puts what HMM finds for every CPU page of `slots` into `found`, faulting in what `need`
    /// wants, and returns the sequence that this is valid for. Called without the lock; may sleep
    /// for long.
    ///
    /// `found` has exactly one element for each page and comes in empty.
    ///
    /// # Errors
    ///
    /// [`RangeError::Busy`] is tried again, a bounded number of times; an error of the host's own
    /// is final.
    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<Self::Error>>;

    /// How many of `slots`, from the first one on, may be faulted in as `need` has it although
    /// nobody has asked for them: not those that somebody else has to fill in (userfaultfd), nor
    /// where the process has said that it reads in no order, nor pages of a file for writing, which
    /// would be written back for nothing. Called without the lock.
    fn read_ahead(&self, slots: Slots, need: Need) -> Slots {
        let _ = need;
        Slots::new(slots.first()..slots.first())
    }

    /// Under the lock: the notifier's sequence is another one than `sequence`, or an invalidation
    /// is under way.
    fn read_retry(&self, locked: &Self::Locked<'_>, sequence: Sequence) -> bool;
}

/// A chunk under its lock, which the drop releases.
///
/// The methods take slots of the chunk only.
pub trait LockedChunk {
    /// The device's.
    type Ticket;

    /// The index, in the mirror, of the first entry.
    fn first(&self) -> Index;

    /// The entries.
    fn entries(&self) -> &[Entry];

    /// The entries, to be changed by this crate alone.
    fn entries_mut(&mut self, proof: Proof) -> &mut [Entry];

    /// What the mirror keeps beside the entries.
    fn book(&self) -> &Book<Self::Ticket>;

    /// The same, to be changed by this crate alone.
    fn book_mut(&mut self, proof: Proof) -> &mut Book<Self::Ticket>;

    /// Maps the pages of `slots`, whose entries name them, for the device. It does not have to
    /// see them yet.
    ///
    /// # Errors
    ///
    /// See [`MapError`]; none of `slots` is mapped then.
    fn map(&mut self, slots: Slots) -> Result<(), MapError>;

    /// Makes mappings of `slots` visible to the device. Entries among them that are not mapped
    /// are none of its business.
    ///
    /// # Errors
    ///
    /// [`MapError::Memory`]; the mappings stay.
    fn sync(&mut self, slots: Slots) -> Result<(), MapError>;

    /// Where the device finds the page of a slot that is mapped.
    fn address(&self, slot: usize) -> u64;

    /// Removes the mappings of `slots`, all of which are mapped.
    fn unmap(&mut self, slots: Slots, let_go: &LetGo);

    /// Marks the page of a slot, which was mapped until now, dirty.
    fn set_dirty(&mut self, slot: usize, let_go: &LetGo);

    /// Takes a reference on the page of a mapped slot.
    fn hold(&mut self, slot: usize);

    /// Drops the reference that [`LockedChunk::hold`] took.
    fn unhold(&mut self, slot: usize, let_go: &LetGo);
}

/// Where a mirror keeps its chunks.
pub trait Store {
    /// A chunk, kept in memory by the value.
    type Chunk: FaultChunk;

    /// The chunk, if it exists.
    fn find(&self, at: ChunkIndex) -> Option<Self::Chunk>;

    /// The chunk, made if it does not exist: with empty entries, and with its notifier
    /// subscribed before anybody can fault through it. May sleep for long.
    ///
    /// # Errors
    ///
    /// The host's: no memory, or the process is gone.
    fn find_or_make(
        &self,
        at: ChunkIndex,
    ) -> Result<Self::Chunk, <Self::Chunk as FaultChunk>::Error>;
}
