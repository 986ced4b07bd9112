// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From translations that the device has to none, before the kernel takes the pages.
//!
//! ```text
//! start:   lock; set_seq; entries leave; post the zap; unlock
//! finish:  wait for the zap; lock; unmap, dirty, forget; unlock; only then return
//! ```
//!
//! The kernel calls `start` for every notifier that an invalidation concerns, and `finish` for
//! each of them afterwards: all zaps are under way before the first is waited for. Between the
//! two no lock is held, and another invalidation of the same chunk may come. It takes back for
//! itself whatever in its range is still mapped, and returns when that is done, whoever else is
//! about to do it too.

use crate::book::Pending;
use crate::chunk::{change, unmap, LetGo, Proof, Table};
use crate::{Chunk, Device, Entry, LockedChunk, NotZapped, Slots, State, Zap};

/// How often a zap that failed is tried again before the device is cut off.
const RETRIES: u32 = 3;

/// What an invalidation's first pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It would have to sleep, and must not. Nothing has changed.
    WouldBlock,
    /// All is done.
    Done,
    /// [`finish()`] has to be called, whatever else happens.
    Pending,
}

/// The first pass, or all of an invalidation of `slots`. Called by the notifier.
///
/// An invalidation that may not sleep succeeds if nothing in its range is mapped. `two_passes`
/// says whether [`finish()`] can be called later.
pub fn start<C: Chunk>(
    chunk: &C,
    slots: Slots,
    sequence: C::NewSequence<'_>,
    may_sleep: bool,
    two_passes: bool,
) -> Started {
    let Some(mut locked) = lock(chunk, may_sleep) else {
        return Started::WouldBlock;
    };
    // Whatever is asked for: what is there must not be left.
    let slots = clip(&locked, slots);
    if !may_sleep && is_in_use(&locked, slots) {
        return Started::WouldBlock;
    }
    chunk.set_sequence(&mut locked, sequence);
    take_back(chunk, locked, slots, two_passes)
}

/// Records an invalidation that is the driver's own doing, and takes nothing back. Called by the
/// notifier.
///
/// A driver that migrates pages to its device is told of it for all of the range
/// (`MMU_NOTIFY_MIGRATE`, by the owner that it gave). What it does not move stays as it is; what it
/// moves it takes back by itself ([`withdraw()`]) before the contents are copied, and once more when
/// they have been replaced. What anybody has looked up before is stale in any case.
pub fn pass<C: Chunk>(chunk: &C, sequence: C::NewSequence<'_>, may_sleep: bool) -> Started {
    let Some(mut locked) = lock(chunk, may_sleep) else {
        return Started::WouldBlock;
    };
    chunk.set_sequence(&mut locked, sequence);
    Started::Done
}

/// Takes `slots` back on the driver's own account, and returns when the device has let go of them.
/// The process has their pages until then.
///
/// It makes nothing stale: a fault that is under way may give them to the device again. See
/// [`pass()`] and [`Snapshot::known`](crate::Snapshot::known).
pub fn withdraw<C: Chunk>(chunk: &C, slots: Slots) {
    let locked = chunk.lock();
    let slots = clip(&locked, slots);
    take_back(chunk, locked, slots, false);
}

/// The lock, if it can be had.
#[inline]
fn lock<C: Chunk>(chunk: &C, may_sleep: bool) -> Option<C::Locked<'_>> {
    match may_sleep {
        true => Some(chunk.lock()),
        false => chunk.try_lock(),
    }
}

/// `slots` as far as the chunk goes.
#[inline]
fn clip<L: LockedChunk>(locked: &L, slots: Slots) -> Slots {
    Slots::new(slots.first()..slots.end().min(locked.entries().len()))
}

/// Takes back what is mapped of `slots`.
#[inline]
fn take_back<C: Chunk>(
    chunk: &C,
    mut locked: C::Locked<'_>,
    slots: Slots,
    two_passes: bool,
) -> Started {
    let left = leave(&mut locked, slots);
    if left.has_untold {
        let let_go = LetGo::new();
        unmap(&mut locked, slots, |state| state == State::Mapped, &let_go);
    }
    let Some(leaving) = left.leaving else {
        return Started::Done;
    };
    match zap(chunk, &locked, leaving) {
        Ok(Zap::Posted(ticket)) if two_passes && locked.book().pending.is_none() => {
            let slots = leaving;
            locked.book_mut(Proof::new()).pending = Some(Pending { slots, ticket });
            Started::Pending
        }
        zap => {
            drop(locked);
            conclude(chunk, leaving, zap);
            Started::Done
        }
    }
}

/// The second pass of an invalidation for which [`start()`] returned [`Started::Pending`].
pub fn finish<C: Chunk>(chunk: &C) {
    let pending = chunk.lock().book_mut(Proof::new()).pending.take();
    if let Some(Pending { slots, ticket }) = pending {
        conclude(chunk, slots, Ok(Zap::Posted(ticket)));
    }
}

/// Unmaps all of a chunk, once no invalidation comes any more and nobody faults: the end of a
/// mirror. Returns how many entries were mapped.
///
/// # Errors
///
/// [`NotZapped`] if the device is not cut off and cannot be. What it has stays mapped, and the
/// pages in memory.
pub fn release<C: Chunk>(chunk: &C) -> Result<usize, NotZapped> {
    let cut_off = chunk.device().cut_off();
    let mut locked = chunk.lock();
    let all = Slots::new(0..locked.entries().len());
    let never_told = |state| state == State::Mapped;
    let is_mapped = |state| state != State::Empty;
    match cut_off {
        Ok(()) => Ok(unmap(&mut locked, all, is_mapped, &LetGo::new())),
        Err(NotZapped) => {
            unmap(&mut locked, all, never_told, &LetGo::new());
            leave(&mut locked, all);
            hold(&mut locked, all);
            Err(NotZapped)
        }
    }
}

/// Whether any of `slots` is mapped, and the device has not kept it for good.
fn is_in_use<L: LockedChunk>(locked: &L, slots: Slots) -> bool {
    let entries = locked.entries().get(slots.range()).unwrap_or_default();
    let is_in_use = |entry: Entry| entry.is_mapped() && entry.state() != State::Stuck;
    locked.book().mapped() > 0 && Entry::position(entries, is_in_use).is_some()
}

/// What an invalidation has found.
struct Left {
    /// The slots from the first to the last that is leaving, on this account or another's.
    leaving: Option<Slots>,
    /// There are entries that the device was never told of.
    has_untold: bool,
}

/// Has the entries of `slots` that the device may have leave.
fn leave<L: LockedChunk>(locked: &mut L, slots: Slots) -> Left {
    let mut left = Left {
        leaving: None,
        has_untold: false,
    };
    if locked.book().mapped() == 0 {
        return left;
    }
    let mut ends: Option<(usize, usize)> = None;
    let entries = locked.entries_mut(Proof::new()).get_mut(slots.range());
    Entry::for_each_mapped(entries.unwrap_or_default(), |at, entry| {
        match entry.state() {
            State::Mapped => left.has_untold = true,
            State::Offered | State::Live => *entry = entry.leaving(),
            State::Leaving => {}
            State::Stuck | State::Empty => return,
        }
        if entry.state() == State::Leaving {
            ends = Some((ends.map_or(at, |(first, _)| first), at + 1));
        }
    });
    left.leaving = ends.map(|(first, end)| Slots::new(slots.first() + first..slots.first() + end));
    left
}

/// The slots from the first to the last of `slots` that is leaving.
fn still_leaving<L: LockedChunk>(locked: &L, slots: Slots) -> Option<Slots> {
    let entries = locked.entries().get(slots.range())?;
    let is_leaving = |entry: Entry| entry.state() == State::Leaving;
    let first = Entry::position(entries, is_leaving)?;
    let last = entries.iter().rposition(|&entry| is_leaving(entry))?;
    Some(Slots::new(slots.first() + first..slots.first() + last + 1))
}

/// Keeps what is leaving in `slots` mapped, and its pages in memory. Returns how many.
fn hold<L: LockedChunk>(locked: &mut L, slots: Slots) -> usize {
    let mut held = 0;
    for slot in slots.range() {
        if locked.entries()[slot].state() == State::Leaving {
            locked.hold(slot);
            held += 1;
        }
    }
    change(locked, slots, |entry| {
        (entry.state() == State::Leaving).then(|| entry.stuck())
    });
    held
}

type Ticket<C> = <<C as Chunk>::Device as Device>::Ticket;

/// Posts the zap of `slots`.
fn zap<C: Chunk>(
    chunk: &C,
    locked: &C::Locked<'_>,
    slots: Slots,
) -> Result<Zap<Ticket<C>>, NotZapped> {
    let table = Table::around(locked, slots, <C::Device as Device>::GRANULE);
    chunk.device().zap(&table)
}

/// Waits for a zap that was posted.
fn settle<C: Chunk>(chunk: &C, zap: Result<Zap<Ticket<C>>, NotZapped>) -> Result<(), NotZapped> {
    match zap? {
        Zap::Posted(ticket) => chunk.device().settle(ticket),
        Zap::Gone => Ok(()),
    }
}

/// Sees to it that the device has let go of what is leaving in `slots`, and unmaps that. When a
/// zap fails the device may still hold a translation, and to return would give it access to
/// memory of somebody else: it is tried again, then the device is cut off, and if even that
/// fails the pages stay mapped and in memory.
fn conclude<C: Chunk>(chunk: &C, slots: Slots, first: Result<Zap<Ticket<C>>, NotZapped>) {
    let mut settled = settle(chunk, first);
    let mut tries = 0;
    let mut failed = false;
    while settled.is_err() && !failed {
        let locked = chunk.lock();
        // Another invalidation may have taken all of it back in the meantime.
        let Some(leaving) = still_leaving(&locked, slots) else {
            return;
        };
        failed = tries == RETRIES;
        tries += 1;
        if failed {
            drop(locked);
            settled = chunk.device().cut_off();
        } else {
            let again = zap(chunk, &locked, leaving);
            drop(locked);
            settled = settle(chunk, again);
        }
    }
    let mut locked = chunk.lock();
    let (taken, held) = match settled {
        Ok(()) => {
            let is_leaving = |state| state == State::Leaving;
            (unmap(&mut locked, slots, is_leaving, &LetGo::new()), 0)
        }
        Err(NotZapped) => (0, hold(&mut locked, slots)),
    };
    drop(locked);
    chunk.count_invalidated(taken);
    // Another invalidation may have taken all of it back in the meantime.
    if failed && (settled.is_ok() || held > 0) {
        chunk.not_zapped(held);
    }
}
