// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From a range fault to published entries.
//!
//! ```text
//! range_fault -> Snapshot -- validate, under the lock --> Valid -- merge --> entries
//!                         \- Stale: an invalidation came between; again
//! ```
//!
//! A snapshot cannot be merged, and [`Shared::store`] cannot be called with what
//! it found, except through a [`Valid`].

use crate::{
    Entry, Geometry, Host, Indices, Need, Proof, RangeError, Sequence, Shared, State, Stuck, Window,
};

/// How often a window is tried while invalidations come between its range fault and
/// the lock.
pub const ATTEMPTS: u32 = 32;

/// How often a window is tried while the host is busy for as long as it waits. The
/// kernel waits for a second.
pub const BUSY_ATTEMPTS: u32 = 4;

/// How often a range of several windows is tried as a whole.
pub const PASSES: u32 = 8;

/// An invalidation has come since the range fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// Why a fault failed. The lock is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError<E> {
    /// A page is mapped in pieces smaller than an entry.
    Fragmented,
    /// An entry is still mapped for another page, which the device did not give back.
    Stuck,
    /// There is nothing to fault.
    Empty,
    /// Invalidations won every time, or the host stayed busy.
    Busy,
    /// The memory manager refused.
    Host(E),
}

impl<E> From<Stuck> for FaultError<E> {
    fn from(_: Stuck) -> Self {
        Self::Stuck
    }
}

/// What a range fault found, and for which sequence. Worth nothing by itself.
#[derive(Debug)]
#[must_use = "a snapshot is of no use until it is validated and merged"]
pub struct Snapshot<'f> {
    window: Window,
    need: Need,
    sequence: Sequence,
    found: &'f [Entry],
}

/// A snapshot that no invalidation has overtaken, for as long as the lock is held.
#[derive(Debug)]
#[must_use = "a valid snapshot wants to be merged"]
pub struct Valid<'f, 'l, S> {
    snapshot: Snapshot<'f>,
    shared: &'l mut S,
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
        scratch: &'f mut [Entry],
    ) -> Result<Self, RangeError<H::Error>> {
        let pages = window.indices.len() * geometry.pages_per_entry();
        let (found, _) = scratch.split_at_mut(pages);
        found.fill(Entry::EMPTY);
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
    /// [`Stale`]: what was found may be anybody's memory by now. Unlock, and fault
    /// again.
    pub fn validate<'l, S: Shared>(self, shared: &'l mut S) -> Result<Valid<'f, 'l, S>, Stale> {
        if shared.read_retry(self.sequence) {
            return Err(Stale);
        }
        Ok(Valid {
            snapshot: self,
            shared,
        })
    }
}

impl<S: Shared> Valid<'_, '_, S> {
    /// Merges what was found into the shared state. Entries keep the DMA mapping
    /// that they have. Returns the sequence that it was found for.
    ///
    /// # Errors
    ///
    /// [`FaultError::Fragmented`] and [`FaultError::Stuck`]; entries before the
    /// offending one are merged.
    pub fn merge<E>(self, geometry: &Geometry) -> Result<Sequence, FaultError<E>> {
        let Snapshot {
            window,
            need,
            sequence,
            found,
        } = self.snapshot;
        let proof = Proof::new();
        let units = found.chunks_exact(geometry.pages_per_entry());
        for (index, unit) in window.indices.iter().zip(units) {
            let entry = one_entry(geometry, unit)?;
            // A host that met the need has left no such page.
            if !need.is_met_by(entry) {
                return Err(FaultError::Busy);
            }
            let old = self.shared.entry(index);
            let new = old.refreshed(entry)?;
            if new != old {
                self.shared.store(index, new, &proof);
            }
        }
        Ok(sequence)
    }
}

/// The one entry that stands for the CPU pages of `unit`. HMM reports CPU pages,
/// whatever the size of an entry.
fn one_entry<E>(geometry: &Geometry, unit: &[Entry]) -> Result<Entry, FaultError<E>> {
    let Some(&head) = unit.first() else {
        return Ok(Entry::EMPTY);
    };
    if !head.is_valid() {
        return Ok(Entry::EMPTY);
    }
    if head.order().0 < geometry.entry_order() {
        return Err(FaultError::Fragmented);
    }
    Ok(head)
}

/// Faults `indices` in and returns with the lock held, every entry being valid, and as
/// `need` wants it, for as long as the lock is held; a snapshot may have holes.
///
/// A range of one window ([`WINDOW_PAGES`](crate::WINDOW_PAGES)) is found for one
/// sequence. A longer one is valid as a whole if all of its windows were found for the
/// same sequence, that is still the notifier's under the lock that is returned, and no
/// other fault has since merged less than is wanted. Otherwise it is done again. When
/// invalidations keep coming, a snapshot gives up the entries that are not mapped for
/// DMA, and is whole: a later fault finds them again. Anything else fails: who wants to
/// get on among invalidations asks for a window at a time.
///
/// `scratch` is private to the call and [`Geometry::scratch_len`] long.
///
/// # Errors
///
/// See [`FaultError`]; no entries at all are [`FaultError::Empty`]. Windows before the
/// failing one may have been merged.
pub fn fault<'h, H: Host>(
    host: &'h H,
    geometry: &Geometry,
    indices: Indices,
    need: Need,
    scratch: &mut [Entry],
) -> Result<H::Shared<'h>, FaultError<H::Error>> {
    if indices.is_empty() {
        return Err(FaultError::Empty);
    }
    for pass in 1..=PASSES {
        let mut same = None;
        let mut uniform = true;
        for window in geometry.windows(indices) {
            let is_last = window.indices.end() == indices.end();
            let first = window.indices.first();
            let (mut shared, sequence) = fault_window(host, geometry, window, need, scratch)?;
            uniform &= *same.get_or_insert(sequence) == sequence;
            if !is_last {
                continue;
            }
            if uniform && meets(&shared, indices, need) {
                return Ok(shared);
            }
            if need == Need::Snapshot && pass == PASSES {
                withdraw_unmapped(&mut shared, Indices::new(indices.first().0..first.0));
                return Ok(shared);
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
    scratch: &mut [Entry],
) -> Result<(H::Shared<'h>, Sequence), FaultError<H::Error>> {
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
        let mut shared = host.lock();
        match snapshot.validate(&mut shared) {
            Ok(valid) => {
                let sequence = valid.merge(geometry)?;
                return Ok((shared, sequence));
            }
            Err(Stale) => continue,
        }
    }
    Err(FaultError::Busy)
}

/// Every entry is as `need` wants it.
fn meets<S: Shared>(shared: &S, indices: Indices, need: Need) -> bool {
    need == Need::Snapshot
        || indices
            .iter()
            .all(|index| need.is_met_by(shared.entry(index)))
}

/// Forgets the entries that the device does not have.
fn withdraw_unmapped<S: Shared>(shared: &mut S, indices: Indices) {
    let proof = Proof::new();
    for index in indices.iter() {
        if shared.entry(index).state() == State::Present {
            shared.store(index, Entry::EMPTY, &proof);
        }
    }
}
