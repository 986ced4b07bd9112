// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a valid range fault found, merged into a chunk's entries and mapped.

use crate::chunk::{unmap, LetGo, Proof};
use crate::fault::{FaultError, Found};
use crate::{Entry, HmmPfn, LockedChunk, MapError, Slots, State};

/// Why nothing was merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
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

/// What the device has to be told.
pub(crate) struct News {
    /// The slots that it does not have as they are, and what lies between them.
    pub(crate) slots: Slots,
    /// Some of them were demanded.
    pub(crate) of_demanded: bool,
    /// How many were not.
    pub(crate) others: usize,
}

/// Merges and maps. Of what was only looked at, what cannot be had as it is stays as it was.
pub(crate) fn merge<L: LockedChunk>(found: &Found<'_>, locked: &mut L) -> Result<News, Unready> {
    let slots = found.wanted.slots();
    let entries = locked.entries().get(slots.range());
    let entries = entries.ok_or(Unready::Race)?;
    // All of it is looked at before any of it is changed.
    let (mut news, mut unmapped) = (Reach::NONE, Reach::NONE);
    let (mut upgraded, mut of_demanded, mut others) = (false, false, 0);
    for ((at, &old), unit) in entries.iter().enumerate().zip(found.units()) {
        let slot = slots.first() + at;
        let is_faulted = found.wanted.faulted().holds(slot);
        let page = match unit {
            Ok(page) => page,
            Err(_) if is_faulted => return Err(Unready::Fragmented),
            Err(_) => continue,
        };
        // A host that met the need has left no such page.
        if is_faulted && !found.wanted.need().is_met_by(page) {
            return Err(Unready::Race);
        }
        if !page.is_valid() {
            continue;
        }
        match is_news(old, page) {
            Ok(true) => {}
            Err(why) if is_faulted => return Err(why),
            Ok(false) | Err(_) => continue,
        }
        news.add(at);
        match found.demanded.holds(slot) {
            true => of_demanded = true,
            false => others += 1,
        }
        match old.is_mapped() {
            true => upgraded |= page.is_writable() && !old.is_writable(),
            false => unmapped.add(at),
        }
    }
    let unmapped = unmapped.within(slots);
    if !unmapped.is_empty() {
        map_new(found, locked, unmapped).map_err(Unready::Map)?;
    }
    if upgraded {
        allow_writing(found, locked);
    }
    Ok(News {
        slots: news.within(slots),
        of_demanded,
        others,
    })
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
    found: &Found<'_>,
    locked: &mut L,
    unmapped: Slots,
) -> Result<(), MapError> {
    let mut units = found.units();
    let before = unmapped.first() - found.wanted.slots().first();
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
fn allow_writing<L: LockedChunk>(found: &Found<'_>, locked: &mut L) {
    let slots = found.wanted.slots();
    let entries = &mut locked.entries_mut(Proof::new())[slots.range()];
    for (entry, unit) in entries.iter_mut().zip(found.units()) {
        let page = unit.unwrap_or(HmmPfn::EMPTY);
        if !entry.is_writable() && page.is_writable() && is_news(*entry, page) == Ok(true) {
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
