// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From a range fault to translations that the device has.
//!
//! ```text
//! range_fault -> Snapshot -- validate, under the lock --> Valid -- merge, map --> Ready -- publish
//!                         \- Stale: an invalidation came between; again
//! ```
//!
//! [`Device::publish`] is reached through a [`Ready`] alone, a [`Ready`] through a [`Valid`]
//! alone, and a [`Valid`] exists only under the lock.

use crate::around::{glance, Ahead, Around, Glance, Next, Wanted};
use crate::chunk::{change, Proof, Table};
use crate::merge::{merge, News};
use crate::{
    Device, FaultChunk, Geometry, Given, HmmPfn, LockedChunk, MapError, Need, PublishError,
    RangeError, Sequence, Slots, State, CHUNK_ENTRIES,
};

/// How often a window is tried while invalidations come between its range fault and the lock.
pub const ATTEMPTS: u32 = 32;

/// How often a window is tried while the host is busy for as long as it waits. The kernel waits
/// for a second.
pub const BUSY_ATTEMPTS: u32 = 4;

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
    /// No memory for what a range fault finds.
    Memory,
    /// Invalidations won every time.
    Race,
    /// The host was busy for as long as it waits, every time.
    Busy,
    /// The pages cannot be mapped for the device.
    Map(MapError),
    /// The device did not take the translations.
    Publish(PublishError),
    /// The memory manager refused.
    Host(E),
}

/// What a range fault found for some slots of a chunk, and for which sequence. Worth nothing by
/// itself.
///
/// The way to the device is
///
/// ```
/// # use hmm_abi::{FaultChunk, PublishError, Served, Snapshot};
/// fn all<C: FaultChunk>(snapshot: Snapshot<'_, C>) -> Option<Result<Served, PublishError>> {
///     let valid = snapshot.validate().ok()?;
///     let ready = valid.map().ok()?;
///     Some(ready.publish())
/// }
/// ```
///
/// and no step of it can be left out: a snapshot can be neither mapped
///
/// ```compile_fail,E0599
/// # use hmm_abi::{FaultChunk, PublishError, Served, Snapshot};
/// fn all<C: FaultChunk>(snapshot: Snapshot<'_, C>) -> Option<Result<Served, PublishError>> {
///     let ready = snapshot.map().ok()?;
///     Some(ready.publish())
/// }
/// ```
///
/// nor published, nor used again when it turned out to be stale.
///
/// ```compile_fail,E0599
/// # use hmm_abi::{FaultChunk, PublishError, Served, Snapshot};
/// fn all<C: FaultChunk>(snapshot: Snapshot<'_, C>) -> Option<Result<Served, PublishError>> {
///     Some(snapshot.publish())
/// }
/// ```
///
/// ```compile_fail,E0382
/// # use hmm_abi::{FaultChunk, PublishError, Served, Snapshot};
/// fn all<C: FaultChunk>(snapshot: Snapshot<'_, C>) -> Option<Result<Served, PublishError>> {
///     if snapshot.validate().is_err() {
///         let valid = snapshot.validate().ok()?;
///         return Some(valid.map().ok()?.publish());
///     }
///     None
/// }
/// ```
#[must_use = "a snapshot is of no use until it is validated and published"]
pub struct Snapshot<'f, C: FaultChunk> {
    chunk: &'f C,
    found: Found<'f>,
}

/// What a range fault found.
pub(crate) struct Found<'f> {
    pub(crate) demanded: Slots,
    pub(crate) wanted: Wanted,
    sequence: Sequence,
    pages: &'f [HmmPfn],
    geometry: &'f Geometry,
}

/// A snapshot that no invalidation has overtaken, and the chunk's lock, under which that is so.
///
/// It is not ready to be published:
///
/// ```compile_fail,E0599
/// # use hmm_abi::{FaultChunk, PublishError, Served, Snapshot};
/// fn all<C: FaultChunk>(snapshot: Snapshot<'_, C>) -> Option<Result<Served, PublishError>> {
///     let valid = snapshot.validate().ok()?;
///     Some(valid.publish())
/// }
/// ```
#[must_use = "a valid snapshot wants to be mapped"]
pub struct Valid<'f, C: FaultChunk> {
    chunk: &'f C,
    found: Found<'f>,
    locked: C::Locked<'f>,
}

/// Entries that are validated, merged and mapped, and the chunk's lock.
#[must_use = "the device waits for it"]
pub struct Ready<'f, C: FaultChunk> {
    chunk: &'f C,
    locked: C::Locked<'f>,
    news: News,
}

/// What serving a fault changed of what it demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The device has been given translations, or access, that it did not have.
    New,
    /// It had it all.
    Nothing {
        /// When it was given the last of this chunk.
        given: Given,
    },
}

impl<'f, C: FaultChunk> Snapshot<'f, C> {
    /// Faults `slots` of `chunk` in, no more than a window. `scratch` is private to the caller and
    /// at least as long as [`Geometry::scratch_len`] says.
    ///
    /// # Errors
    ///
    /// The host's, unchanged.
    pub fn take(
        chunk: &'f C,
        geometry: &'f Geometry,
        slots: Slots,
        need: Need,
        scratch: &'f mut [HmmPfn],
    ) -> Result<Self, RangeError<C::Error>> {
        let (pages, _) = scratch.split_at_mut(slots.len() * geometry.pages_per_entry());
        Self::find(chunk, geometry, slots, Wanted::all(slots, need), pages)
    }

    /// Looks for what is wanted. `pages` has one element for each CPU page.
    ///
    /// Neighbours are looked at first, for that is all where nothing is missing, and by themselves:
    /// HMM faults in all of a hole, whatever of it was asked for.
    fn find(
        chunk: &'f C,
        geometry: &'f Geometry,
        demanded: Slots,
        wanted: Wanted,
        pages: &'f mut [HmmPfn],
    ) -> Result<Self, RangeError<C::Error>> {
        let (slots, faulted, need) = (wanted.slots(), wanted.faulted(), wanted.need());
        pages.fill(HmmPfn::EMPTY);
        let sequence = if slots == faulted {
            chunk.range_fault(slots, need, pages)?
        } else {
            let looked = chunk.range_fault(slots, Need::Snapshot, pages)?;
            let unit = geometry.pages_per_entry();
            let (before, rest) = pages.split_at_mut(wanted.among().start * unit);
            let (missing, after) = rest.split_at_mut(faulted.len() * unit);
            if missing.iter().all(|&page| need.is_met_by(page)) {
                looked
            } else {
                missing.fill(HmmPfn::EMPTY);
                let sequence = chunk.range_fault(faulted, need, missing)?;
                if sequence != looked {
                    before.fill(HmmPfn::EMPTY);
                    after.fill(HmmPfn::EMPTY);
                }
                sequence
            }
        };
        Ok(Self {
            chunk,
            found: Found {
                demanded,
                wanted,
                sequence,
                pages,
                geometry,
            },
        })
    }

    /// No more than `slots` of it.
    fn narrowed(self, slots: Slots) -> Self {
        let Found {
            wanted,
            pages,
            geometry,
            ..
        } = self.found;
        let unit = geometry.pages_per_entry();
        let skipped = (slots.first() - wanted.slots().first()) * unit;
        let pages = pages.get(skipped..skipped + slots.len() * unit);
        match pages {
            Some(pages) => Self {
                found: Found {
                    wanted: wanted.narrowed(slots),
                    pages,
                    ..self.found
                },
                ..self
            },
            None => self,
        }
    }

    /// What the driver knows of `slots` by itself, no more than a window: one element of `pages` for
    /// each CPU page. A page that it has made exclusive to its device, for one, is not among what a
    /// range fault finds.
    ///
    /// `sequence` is that of the notifier from before, waited for as a range fault does
    /// (`mmu_interval_read_begin`): an invalidation that has come since makes this stale too. The one
    /// that is the driver's own doing must not count; it leaves the sequence alone.
    pub fn known(
        chunk: &'f C,
        geometry: &'f Geometry,
        slots: Slots,
        sequence: Sequence,
        pages: &'f [HmmPfn],
    ) -> Self {
        Self {
            chunk,
            found: Found {
                demanded: slots,
                wanted: Wanted::all(slots, Need::Snapshot),
                sequence,
                pages,
                geometry,
            },
        }
    }

    /// Takes the chunk's lock and checks that no invalidation has come since.
    ///
    /// # Errors
    ///
    /// [`Stale`]: what was found may be anybody's memory by now. Fault again; the lock is not held.
    pub fn validate(self) -> Result<Valid<'f, C>, Stale> {
        let Self { chunk, found } = self;
        let locked = chunk.lock();
        if chunk.read_retry(&locked, found.sequence) {
            return Err(Stale);
        }
        Ok(Valid {
            chunk,
            found,
            locked,
        })
    }
}

impl Found<'_> {
    /// What was found for each slot, an error where memory is mapped in pieces smaller than an
    /// entry.
    #[inline]
    pub(crate) fn units(&self) -> impl Iterator<Item = Result<HmmPfn, Fragmented>> + '_ {
        let units = self.pages.chunks_exact(self.geometry.pages_per_entry());
        units.map(|unit| self.geometry.one_entry(unit).ok_or(Fragmented))
    }
}

/// A page is mapped in pieces smaller than an entry.
pub(crate) struct Fragmented;

impl<'f, C: FaultChunk> Valid<'f, C> {
    /// What was found for each CPU page, errors and sizes of mappings included; so it is for as long
    /// as this value lives.
    pub fn found(&self) -> &[HmmPfn] {
        self.found.pages
    }

    /// Merges what was found into the entries and maps what is new among it.
    ///
    /// # Errors
    ///
    /// Then nothing has changed, and the lock is not held: what this call mapped is unmapped again.
    ///
    /// - [`FaultError::Fragmented`], [`FaultError::Stuck`], [`FaultError::Map`];
    /// - [`FaultError::Race`] if an entry is being taken back, or does not meet the need.
    pub fn map(self) -> Result<Ready<'f, C>, FaultError<C::Error>> {
        let Self {
            chunk,
            found,
            mut locked,
        } = self;
        let news = merge(&found, &mut locked)?;
        Ok(Ready {
            chunk,
            locked,
            news,
        })
    }
}

impl<C: FaultChunk> Ready<'_, C> {
    /// Tells the device. What it does not take stays offered, and is taken back by the next
    /// invalidation as if it had.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn publish(self) -> Result<Served, PublishError> {
        let granule = <C::Device as Device>::GRANULE;
        const { assert!(<C::Device as Device>::GRANULE.is_power_of_two()) };
        const { assert!(<C::Device as Device>::GRANULE <= CHUNK_ENTRIES) };
        let Self {
            chunk,
            mut locked,
            news,
        } = self;
        let device = chunk.device();
        let News {
            slots, of_demanded, ..
        } = news;
        let proof = Proof::new();
        // Before it is given the rest, which says nothing of what was demanded.
        let served = match of_demanded {
            true => Served::New,
            false => Served::Nothing {
                given: locked.book_mut(proof).given(device),
            },
        };
        if slots.is_empty() {
            return Ok(served);
        }
        change(&mut locked, slots, |entry| {
            (entry.state() == State::Mapped).then(|| entry.offered())
        });
        device.publish(&Table::around(&locked, slots, granule))?;
        change(&mut locked, slots, |entry| {
            (entry.state() == State::Offered).then(|| entry.live())
        });
        // Those for writing too: a fault on more than one chunk may have been raised for them.
        locked.book_mut(proof).give(device);
        Ok(served)
    }
}

/// Memory for what range faults find, private to whoever has it.
pub trait Scratch {
    /// Room for so many CPU pages, with anything in it; `None` for want of memory.
    fn pages(&mut self, pages: usize) -> Option<&mut [HmmPfn]>;
}

impl Scratch for [HmmPfn] {
    fn pages(&mut self, pages: usize) -> Option<&mut [HmmPfn]> {
        self.get_mut(..pages)
    }
}

/// A fault on slots of one chunk.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What is demanded, no more than a window.
    pub slots: Slots,
    /// How it is demanded. A snapshot publishes what is there.
    pub need: Need,
    /// What it takes besides.
    pub around: Around,
}

impl Fault {
    /// What is demanded, and nothing else.
    pub const fn exactly(slots: Slots, need: Need) -> Self {
        Self {
            slots,
            need,
            around: Around::Nothing,
        }
    }
}

/// A fault that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What that changed of what was demanded.
    pub served: Served,
    /// Entries besides of which the device has been told.
    pub others: usize,
    /// What a stream wants of the chunks that follow.
    pub ahead: Ahead,
}

/// Serves a fault: faulted in as it needs it, mapped, and published.
///
/// # Errors
///
/// See [`FaultError`]. What the fault takes besides is never the reason.
pub fn serve<C: FaultChunk>(
    chunk: &C,
    geometry: &Geometry,
    fault: &Fault,
    scratch: &mut (impl Scratch + ?Sized),
) -> Result<Outcome, FaultError<C::Error>> {
    if fault.slots.is_empty() {
        return Err(FaultError::Empty);
    }
    // An entry of several pages is large enough.
    let around = match geometry.pages_per_entry() {
        1 => fault.around,
        _ => Around::Nothing,
    };
    let mut plan = match glance(chunk, fault.slots, fault.need, around) {
        Glance::Live { given } => {
            return Ok(Outcome {
                served: Served::Nothing { given },
                others: 0,
                ahead: Ahead::default(),
            })
        }
        Glance::Missing(plan) => plan,
    };
    let mut busy = 0;
    for _ in 0..ATTEMPTS {
        let pages = plan.wanted.slots().len() * geometry.pages_per_entry();
        let pages = match scratch.pages(pages) {
            Some(pages) => pages,
            None if plan.is_bare() => return Err(FaultError::Memory),
            None => {
                plan.strip();
                continue;
            }
        };
        let snapshot = match Snapshot::find(chunk, geometry, fault.slots, plan.wanted, pages) {
            Ok(snapshot) => snapshot,
            Err(RangeError::Busy) => {
                busy += 1;
                if busy == BUSY_ATTEMPTS {
                    return Err(FaultError::Busy);
                }
                continue;
            }
            Err(RangeError::Failed(_)) if plan.reads_ahead() => {
                plan.strip();
                continue;
            }
            Err(RangeError::Failed(error)) => return Err(FaultError::Host(error)),
        };
        let snapshot = match plan.next(chunk, snapshot.found.pages) {
            Next::Merge(slots) => snapshot.narrowed(slots),
            Next::Widen(wider) => {
                plan = wider;
                continue;
            }
        };
        let ready = match snapshot.validate() {
            Ok(valid) => valid.map(),
            Err(Stale) => continue,
        };
        match ready {
            Ok(ready) => {
                let others = ready.news.others;
                let served = ready.publish().map_err(FaultError::Publish)?;
                return Ok(Outcome {
                    served,
                    others,
                    ahead: plan.ahead,
                });
            }
            Err(FaultError::Race) => continue,
            Err(_) if !plan.is_bare() => plan.strip(),
            Err(error) => return Err(error),
        }
    }
    Err(FaultError::Race)
}
