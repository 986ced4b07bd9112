// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a mirror needs from its surroundings.

use core::marker::PhantomData;

use crate::{Entry, Index, Span};

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
    /// An entry of these flags is what was asked for.
    pub const fn is_met_by(self, entry: Entry) -> bool {
        match self {
            Self::Snapshot => true,
            Self::Read => entry.is_valid(),
            Self::Write => entry.is_writable(),
        }
    }
}

/// Why a range fault failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError<E> {
    /// Invalidations, or a writer on the process's memory map, took longer than the
    /// host waits. Nothing is wrong with the range.
    Busy,
    /// The range cannot be had.
    Failed(E),
}

/// The process's memory and the lock of the mirror.
pub trait Host {
    /// Why the memory manager refused.
    type Error;

    /// The shared state of the mirror while its lock is held; the lock is released
    /// on drop.
    type Shared<'h>: Shared
    where
        Self: 'h;

    /// Takes the lock. What an invalidation does, it does under this lock, and
    /// memory reclaim invalidates: no allocation under it may reclaim.
    fn lock(&self) -> Self::Shared<'_>;

    /// Puts one entry for every CPU page of `span` into `found`, faulting in what
    /// `need` wants, and returns the sequence that this is valid for. Called without
    /// the lock; may sleep for long.
    ///
    /// `found` has exactly one element for each page and comes in empty.
    ///
    /// # Errors
    ///
    /// [`RangeError::Busy`] is tried again, a bounded number of times; an error of
    /// the host's own is final.
    fn range_fault(
        &self,
        span: &Span,
        need: Need,
        found: &mut [Entry],
    ) -> Result<Sequence, RangeError<Self::Error>>;
}

/// The right to write an entry: only this crate makes one, after validation or
/// after taking back.
#[derive(Debug)]
pub struct Proof<'a>(PhantomData<&'a ()>);

impl Proof<'_> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// The shared state of a mirror under its lock: the entries and the sequence.
///
/// The methods take indices of the mirror's [`Geometry`](crate::Geometry) only; others
/// do nothing.
pub trait Shared {
    /// Stands for a promise that this crate cannot check: the device neither has nor
    /// uses translations of the entries that it is shown for.
    type LetGo;

    /// The notifier's sequence is another one than `sequence`, or an invalidation is
    /// under way.
    fn read_retry(&self, sequence: Sequence) -> bool;

    /// Entry `index`.
    fn entry(&self, index: Index) -> Entry;

    /// Makes `entry` entry `index`.
    fn store(&mut self, index: Index, entry: Entry, proof: &Proof<'_>);

    /// Removes the DMA mapping of entry `index`, which is valid and mapped, and
    /// clears [`Entry::DMA_MAPPED`] in it.
    fn dma_unmap(&mut self, index: Index, let_go: &Self::LetGo);

    /// Marks the page of entry `index`, which is valid and was mapped until now, dirty.
    fn set_dirty(&mut self, index: Index, let_go: &Self::LetGo);

    /// Drops the reference on the page of entry `index`, which was stuck.
    fn unhold(&mut self, index: Index, let_go: &Self::LetGo);
}
