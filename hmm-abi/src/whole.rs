// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! All of a range under one lock: the contract of `ib_umem_odp`.
//!
//! ```text
//! range_fault -> Snapshot -- validate, under the lock --> Valid -- merge --> entries
//!                         \- Stale: an invalidation came between; again
//! ```
//!
//! Here the mirror ends with the entries, a list of one [`HmmPfn`] each: drivers in C map them for
//! DMA, tell their device, and take both back, under the lock that a fault returns with.

use crate::fault::{Stale, ATTEMPTS, BUSY_ATTEMPTS};
use crate::{Geometry, HmmPfn, Index, Indices, Need, RangeError, Sequence, Span, Window};

/// How often a range of several windows is tried as a whole.
pub const PASSES: u32 = 8;

/// Why a fault failed. The lock is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError<E> {
    /// A page is mapped in pieces smaller than an entry.
    Fragmented,
    /// An entry is still mapped for another page, which the driver did not unmap.
    Stuck,
    /// There is nothing to fault.
    Empty,
    /// Invalidations won every time, or the host stayed busy.
    Busy,
    /// The memory manager refused.
    Host(E),
}

/// The process's memory and the lock of the mirror.
pub trait Host {
    /// Why the memory manager refused.
    type Error;

    /// The entries while the lock is held; the drop releases it.
    type Locked<'h>: Locked
    where
        Self: 'h;

    /// Takes the lock. What an invalidation does, it does under this lock, and memory reclaim
    /// invalidates: no allocation under it may reclaim.
    fn lock(&self) -> Self::Locked<'_>;

    /// Puts what HMM finds for every CPU page of `span` into `found`, faulting in what `need`
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
        span: &Span,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<Self::Error>>;
}

/// The right to write an entry: only this crate makes one, after validation or after unmapping.
#[derive(Debug)]
pub struct Proof(());

/// The entries of a mirror under its lock, and the sequence.
///
/// The methods take indices of the mirror's [`Geometry`] only; others do nothing.
pub trait Locked {
    /// Stands for a promise that this crate cannot check: the device neither has nor uses
    /// translations of the entries that it is shown for.
    type LetGo;

    /// The notifier's sequence is another one than `sequence`, or an invalidation is under way.
    fn read_retry(&self, sequence: Sequence) -> bool;

    /// Entry `index`.
    fn entry(&self, index: Index) -> HmmPfn;

    /// Makes `entry` entry `index`.
    fn store(&mut self, index: Index, entry: HmmPfn, proof: &Proof);

    /// Removes the DMA mapping of entry `index`, which is valid and mapped, and clears
    /// [`HmmPfn::DMA_MAPPED`] in it.
    fn dma_unmap(&mut self, index: Index, let_go: &Self::LetGo);

    /// Marks the page of entry `index`, which is valid and was mapped until now, dirty.
    fn set_dirty(&mut self, index: Index, let_go: &Self::LetGo);
}

/// What a range fault found, and for which sequence. Worth nothing by itself.
#[derive(Debug)]
#[must_use = "a snapshot is of no use until it is validated and merged"]
pub struct Snapshot<'f> {
    window: Window,
    need: Need,
    sequence: Sequence,
    found: &'f [HmmPfn],
}

/// A snapshot that no invalidation has overtaken, for as long as the lock is held.
#[derive(Debug)]
#[must_use = "a valid snapshot wants to be merged"]
pub struct Valid<'f, 'l, L> {
    snapshot: Snapshot<'f>,
    locked: &'l mut L,
}

impl<'f> Snapshot<'f> {
    /// Faults `window` in. `scratch` is private to the caller and at least as long as
    /// [`Geometry::scratch_len`] says.
    ///
    /// # Errors
    ///
    /// The host's, unchanged.
    pub fn take<H: Host>(
        host: &H,
        geometry: &Geometry,
        window: Window,
        need: Need,
        scratch: &'f mut [HmmPfn],
    ) -> Result<Self, RangeError<H::Error>> {
        let pages = window.indices.len() * geometry.pages_per_entry();
        let (found, _) = scratch.split_at_mut(pages);
        found.fill(HmmPfn::EMPTY);
        let sequence = host.range_fault(&window.span, need, found)?;
        Ok(Self {
            window,
            need,
            sequence,
            found,
        })
    }

    /// Checks, under the lock, that no invalidation has come since.
    ///
    /// # Errors
    ///
    /// [`Stale`]: what was found may be anybody's memory by now. Unlock, and fault again.
    pub fn validate<'l, L: Locked>(self, locked: &'l mut L) -> Result<Valid<'f, 'l, L>, Stale> {
        if locked.read_retry(self.sequence) {
            return Err(Stale);
        }
        Ok(Valid {
            snapshot: self,
            locked,
        })
    }
}

impl<L: Locked> Valid<'_, '_, L> {
    /// Merges what was found into the entries, which keep the DMA mapping that they have. Returns
    /// the sequence that it was found for.
    ///
    /// # Errors
    ///
    /// [`FaultError::Fragmented`] and [`FaultError::Stuck`]; entries before the offending one are
    /// merged.
    pub fn merge<E>(self, geometry: &Geometry) -> Result<Sequence, FaultError<E>> {
        let Snapshot {
            window,
            need,
            sequence,
            found,
        } = self.snapshot;
        let proof = Proof(());
        let units = found.chunks_exact(geometry.pages_per_entry());
        for (index, unit) in window.indices.iter().zip(units) {
            let found = geometry.one_entry(unit).ok_or(FaultError::Fragmented)?;
            // A host that met the need has left no such page.
            if !need.is_met_by(found) {
                return Err(FaultError::Busy);
            }
            let old = self.locked.entry(index);
            let new = old.refreshed(found).ok_or(FaultError::Stuck)?;
            if new != old {
                self.locked.store(index, new, &proof);
            }
        }
        Ok(sequence)
    }
}

/// Faults `indices` in and returns with the lock held, every entry being valid, and as `need`
/// wants it, for as long as the lock is held; a snapshot may have holes.
///
/// A range of one window ([`WINDOW_PAGES`](crate::WINDOW_PAGES)) is found for one sequence. A
/// longer one is valid as a whole if all of its windows were found for the same sequence, that is
/// still the notifier's under the lock that is returned, and no other fault has since merged less
/// than is wanted. Otherwise it is done again. When invalidations keep coming, a snapshot gives up
/// what is not mapped for DMA, and is whole: a later fault finds it again. Anything else fails:
/// who wants to get on among invalidations asks for a window at a time.
///
/// `scratch` is private to the call and [`Geometry::scratch_len`] long.
///
/// # Errors
///
/// See [`FaultError`]; no entries at all are [`FaultError::Empty`]. Of `indices`, what is not
/// mapped for DMA is forgotten then: whoever writes a device's table must not find a page there
/// that nobody has validated lately.
pub fn fault<'h, H: Host>(
    host: &'h H,
    geometry: &Geometry,
    indices: Indices,
    need: Need,
    scratch: &mut [HmmPfn],
) -> Result<H::Locked<'h>, FaultError<H::Error>> {
    if indices.is_empty() {
        return Err(FaultError::Empty);
    }
    let result = fault_all(host, geometry, indices, need, scratch);
    if result.is_err() {
        forget_unmapped(&mut host.lock(), indices);
    }
    result
}

fn fault_all<'h, H: Host>(
    host: &'h H,
    geometry: &Geometry,
    indices: Indices,
    need: Need,
    scratch: &mut [HmmPfn],
) -> Result<H::Locked<'h>, FaultError<H::Error>> {
    for pass in 1..=PASSES {
        let mut same = None;
        let mut uniform = true;
        for window in geometry.windows(indices) {
            let is_last = window.indices.end() == indices.end();
            let first = window.indices.first();
            let holes = window.indices;
            let found = fault_window(host, geometry, window, need, scratch);
            let (mut locked, sequence) = match found {
                Ok((locked, sequence)) => (locked, Some(sequence)),
                // What does not hold still is a hole.
                Err(FaultError::Busy) if need == Need::Snapshot => {
                    let mut locked = host.lock();
                    forget_unmapped(&mut locked, holes);
                    (locked, None)
                }
                Err(error) => return Err(error),
            };
            if let Some(sequence) = sequence {
                uniform &= *same.get_or_insert(sequence) == sequence;
            }
            if !is_last {
                continue;
            }
            // Without a sequence of its own, the last window says nothing of the others.
            if uniform && sequence.is_some() && meets(&locked, indices, need) {
                return Ok(locked);
            }
            if need == Need::Snapshot && (pass == PASSES || sequence.is_none()) {
                forget_unmapped(&mut locked, Indices::new(indices.first().0..first.0));
                return Ok(locked);
            }
        }
    }
    Err(FaultError::Busy)
}

/// Faults one window in and returns with the lock held.
fn fault_window<'h, H: Host>(
    host: &'h H,
    geometry: &Geometry,
    window: Window,
    need: Need,
    scratch: &mut [HmmPfn],
) -> Result<(H::Locked<'h>, Sequence), FaultError<H::Error>> {
    let mut busy = 0;
    for _ in 0..ATTEMPTS {
        let snapshot = match Snapshot::take(host, geometry, window.clone(), need, scratch) {
            Ok(snapshot) => snapshot,
            Err(RangeError::Busy) => {
                busy += 1;
                if busy == BUSY_ATTEMPTS {
                    break;
                }
                continue;
            }
            Err(RangeError::Failed(error)) => return Err(FaultError::Host(error)),
        };
        let mut locked = host.lock();
        match snapshot.validate(&mut locked) {
            Ok(valid) => {
                let sequence = valid.merge(geometry)?;
                return Ok((locked, sequence));
            }
            Err(Stale) => continue,
        }
    }
    Err(FaultError::Busy)
}

/// Every entry is as `need` wants it.
fn meets<L: Locked>(locked: &L, indices: Indices, need: Need) -> bool {
    need == Need::Snapshot
        || indices
            .iter()
            .all(|index| need.is_met_by(locked.entry(index)))
}

/// Forgets the entries that the device does not have.
fn forget_unmapped<L: Locked>(locked: &mut L, indices: Indices) {
    let proof = Proof(());
    for index in indices.iter() {
        let entry = locked.entry(index);
        if entry != HmmPfn::EMPTY && !entry.is_dma_mapped() {
            locked.store(index, HmmPfn::EMPTY, &proof);
        }
    }
}

/// Unmaps entries that the device has let go, marks the pages dirty that it could write to, and
/// forgets all of `indices`. Returns how many were mapped.
pub fn unmap<L: Locked>(locked: &mut L, indices: Indices, let_go: &L::LetGo) -> usize {
    let proof = Proof(());
    let mut unmapped = 0;
    for index in indices.iter() {
        let entry = locked.entry(index);
        if entry == HmmPfn::EMPTY {
            continue;
        }
        if entry.is_valid() && entry.is_dma_mapped() {
            locked.dma_unmap(index, let_go);
            if entry.is_writable() {
                locked.set_dirty(index, let_go);
            }
            unmapped += 1;
        }
        locked.store(index, HmmPfn::EMPTY, &proof);
    }
    unmapped
}
