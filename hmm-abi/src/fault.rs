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

use crate::chunk::{change, unmap, LetGo, Proof, Table};
use crate::{
    Device, Entry, FaultChunk, Geometry, Given, HmmPfn, LockedChunk, MapError, Need, PublishError,
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
struct Found<'f> {
    slots: Slots,
    need: Need,
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
    /// The slots that the device does not have as they are, and what lies between them.
    news: Slots,
}

/// What serving a fault changed.
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
        let pages = slots.len() * geometry.pages_per_entry();
        let (pages, _) = scratch.split_at_mut(pages);
        pages.fill(HmmPfn::EMPTY);
        let sequence = chunk.range_fault(slots, need, pages)?;
        Ok(Self {
            chunk,
            found: Found {
                slots,
                need,
                sequence,
                pages,
                geometry,
            },
        })
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
                slots,
                need: Need::Snapshot,
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
    fn units(&self) -> impl Iterator<Item = Result<HmmPfn, Fragmented>> + '_ {
        let units = self.pages.chunks_exact(self.geometry.pages_per_entry());
        units.map(|unit| self.geometry.one_entry(unit).ok_or(Fragmented))
    }
}

/// A page is mapped in pieces smaller than an entry.
struct Fragmented;

/// Why a valid snapshot could not be made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unready {
    Fragmented,
    Stuck,
    Race,
    Map(MapError),
}

impl<E> From<Unready> for FaultError<E> {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Fragmented => Self::Fragmented,
            Unready::Stuck => Self::Stuck,
            Unready::Race => Self::Race,
            Unready::Map(error) => Self::Map(error),
        }
    }
}

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

/// Merges and maps; returns the slots that the device has to be told of.
fn merge<L: LockedChunk>(snapshot: &Found<'_>, locked: &mut L) -> Result<Slots, Unready> {
    let entries = locked.entries().get(snapshot.slots.range());
    let entries = entries.ok_or(Unready::Race)?;
    // All of it is looked at before any of it is changed.
    let (mut news, mut unmapped) = (Reach::NONE, Reach::NONE);
    let mut upgraded = false;
    for ((at, &old), unit) in entries.iter().enumerate().zip(snapshot.units()) {
        let found = unit.map_err(|Fragmented| Unready::Fragmented)?;
        // A host that met the need has left no such page.
        if !snapshot.need.is_met_by(found) {
            return Err(Unready::Race);
        }
        if found.is_valid() && is_news(old, found)? {
            news.add(at);
            match old.is_mapped() {
                true => upgraded |= found.is_writable() && !old.is_writable(),
                false => unmapped.add(at),
            }
        }
    }
    let unmapped = unmapped.within(snapshot.slots);
    if !unmapped.is_empty() {
        map_new(snapshot, locked, unmapped).map_err(Unready::Map)?;
    }
    if upgraded {
        allow_writing(snapshot, locked);
    }
    Ok(news.within(snapshot.slots))
}

/// From the first to the last of some slots, counted from another.
struct Reach {
    first: usize,
    end: usize,
}

impl Reach {
    const NONE: Self = Self {
        first: usize::MAX,
        end: 0,
    };

    /// Adds a slot; they come in order.
    #[inline]
    fn add(&mut self, at: usize) {
        self.first = self.first.min(at);
        self.end = at + 1;
    }

    /// As slots, if they are counted from the first of `slots`.
    fn within(self, slots: Slots) -> Slots {
        match self.end {
            0 => Slots::NONE,
            end => Slots::new(slots.first() + self.first..slots.first() + end),
        }
    }
}

/// Whether the device has to be told of what was found for an entry.
#[inline]
fn is_news(old: Entry, found: HmmPfn) -> Result<bool, Unready> {
    match old.state() {
        State::Empty => Ok(true),
        State::Leaving => Err(Unready::Race),
        State::Stuck => Err(Unready::Stuck),
        // Another page under the same mapping: no invalidation leaves that behind.
        _ if old.pfn() != found.pfn() => Err(Unready::Stuck),
        State::Mapped | State::Offered => Ok(true),
        State::Live => Ok(found.is_writable() && !old.is_writable()),
    }
}

/// Maps what was found in the empty slots among `unmapped`, run by run, and makes it visible to
/// the device at once. On failure nothing has changed.
fn map_new<L: LockedChunk>(
    snapshot: &Found<'_>,
    locked: &mut L,
    unmapped: Slots,
) -> Result<(), MapError> {
    let mut units = snapshot.units();
    let before = unmapped.first() - snapshot.slots.first();
    if before > 0 {
        units.nth(before - 1);
    }
    let mut next = unmapped.first();
    let mut result = Ok(());

    while next < unmapped.end() && result.is_ok() {
        // The entries of a run are made while it lasts; the slot that ends it is passed over.
        let entries = &mut locked.entries_mut(Proof::new())[next..unmapped.end()];
        let mut len = 0;
        for (entry, unit) in entries.iter_mut().zip(&mut units) {
            let found = unit.unwrap_or(HmmPfn::EMPTY);
            if !found.is_valid() || entry.is_mapped() {
                break;
            }
            *entry = Entry::mapped(found);
            len += 1;
        }
        if len > 0 {
            result = map_run(locked, Slots::new(next..next + len));
        }
        if result.is_ok() {
            next += len + 1;
        }
    }
    let mapped = Slots::new(unmapped.first()..next.min(unmapped.end()));
    if result.is_ok() {
        result = locked.sync(mapped);
    }
    if result.is_err() {
        // The device was never told.
        let let_go = LetGo::new();
        unmap(locked, mapped, |state| state == State::Mapped, &let_go);
    }
    result
}

/// Allows writing where that is new; the device has to be told.
fn allow_writing<L: LockedChunk>(snapshot: &Found<'_>, locked: &mut L) {
    let entries = &mut locked.entries_mut(Proof::new())[snapshot.slots.range()];
    for (entry, unit) in entries.iter_mut().zip(snapshot.units()) {
        if !entry.is_writable() && unit.is_ok_and(HmmPfn::is_writable) {
            *entry = match entry.state() {
                State::Live => entry.writable().offered(),
                _ => entry.writable(),
            };
        }
    }
}

/// Maps the entries of `slots`; on failure they are empty again.
fn map_run<L: LockedChunk>(locked: &mut L, slots: Slots) -> Result<(), MapError> {
    let proof = Proof::new();
    let result = locked.map(slots);
    match result {
        // CAST: a chunk has no more slots than a `u16` counts.
        Ok(()) => locked.book_mut(proof).mapped += u16::try_from(slots.len()).unwrap_or(0),
        Err(_) => locked.entries_mut(proof)[slots.range()].fill(Entry::EMPTY),
    }
    result
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
        if news.is_empty() {
            let given = locked.book_mut(Proof::new()).given(device);
            return Ok(Served::Nothing { given });
        }
        change(&mut locked, news, |entry| {
            (entry.state() == State::Mapped).then(|| entry.offered())
        });
        device.publish(&Table::around(&locked, news, granule))?;
        change(&mut locked, news, |entry| {
            (entry.state() == State::Offered).then(|| entry.live())
        });
        // Those for writing too: a fault on more than one chunk may have been raised for them.
        locked.book_mut(Proof::new()).give(device);
        Ok(Served::New)
    }
}

/// Serves a fault on `slots` of one chunk, no more than one window: faulted in as `need` wants
/// it, mapped, and published. A snapshot publishes what is there.
///
/// `scratch` is private to the call and [`Geometry::scratch_len`] long.
///
/// # Errors
///
/// See [`FaultError`].
pub fn serve<C: FaultChunk>(
    chunk: &C,
    geometry: &Geometry,
    slots: Slots,
    need: Need,
    scratch: &mut [HmmPfn],
) -> Result<Served, FaultError<C::Error>> {
    if slots.is_empty() {
        return Err(FaultError::Empty);
    }
    let mut busy = 0;
    for _ in 0..ATTEMPTS {
        let snapshot = match Snapshot::take(chunk, geometry, slots, need, scratch) {
            Ok(snapshot) => snapshot,
            Err(RangeError::Busy) => {
                busy += 1;
                if busy == BUSY_ATTEMPTS {
                    return Err(FaultError::Busy);
                }
                continue;
            }
            Err(RangeError::Failed(error)) => return Err(FaultError::Host(error)),
        };
        let ready = match snapshot.validate() {
            Ok(valid) => valid.map(),
            Err(Stale) => continue,
        };
        match ready {
            Ok(ready) => return ready.publish().map_err(FaultError::Publish),
            Err(FaultError::Race) => continue,
            Err(error) => return Err(error),
        }
    }
    Err(FaultError::Race)
}
