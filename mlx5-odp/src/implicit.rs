// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Implicit MRs: all of a process's memory under one key.
//!
//! The key is that of a parent, a table of KSMs, one for each child that there may be. A child is a
//! region of its own, with a key and a mirror, made when its memory is first touched; where there is
//! none, the KSM leads to a null key, through which every access faults.
//!
//! ```text
//!          enter: make, show              enter                   leave
//! Absent --------------------> Busy ---> Live ----> Live(users) ----+
//!    ^                                    |  ^                      |
//!    |                      retire: hide  |  | enter: show    <-----+
//!    |                                    v  |
//!    +------------------------ Busy <---- Hidden
//!          retire: destroy
//! ```
//!
//! When the device does not confirm that it shows or hides a child, the slot is `Unsure`: entering shows
//! it, and retiring hides it, as if it were the other way round.
//!
//! Only a child that nobody is in, and with nothing mapped, is hidden: its KSM leads to the null key
//! again. In the memory scheme the device may have raised faults on the child's key before, of
//! accesses that are as good as any. So the key stays known, as one of this MR, until their events are
//! written, be they [`LATE`](crate::LATE), and all of them served; only then the child is destroyed, and
//! the key may become another region's. It costs nothing to wait, for a fault in between shows the
//! child again.
//!
//! Lock order: [`Family::with`]'s lock is held for as long as the closure runs, and nothing is done
//! under it but to look at the clock and at event numbers. Who makes a slot busy holds no lock, and
//! waits for the device and for memory, not for events: so whoever waits for a busy slot may be one
//! who serves an event.

mod layout;
mod lead;
mod slot;

pub use layout::{ChildIndex, Layout};
pub use lead::{lead, Children, Parent};
pub use slot::{Entered, Since, Slot};

use firmware_cmds::Mkey;

use crate::bring_in::NotIn;
use crate::region::Region;

/// An implicit MR, kept alive by the value.
pub trait Implicit {
    /// See [`Implicit::child`].
    type Child<'i>: Region
    where
        Self: 'i;

    /// The parent's key.
    fn mkey(&self) -> Mkey;

    /// Where its children lie.
    fn layout(&self) -> &Layout;

    /// Whether the registration allows the device to write.
    fn is_writable(&self) -> bool;

    /// The child, made if it does not exist, with the device's table leading to it; it stays for as
    /// long as the value.
    ///
    /// # Errors
    ///
    /// [`NotIn::Invalid`] if the process is gone, [`NotIn::Device`], [`NotIn::Busy`] for want of
    /// memory.
    fn child(&self, at: ChildIndex) -> Result<Self::Child<'_>, NotIn>;

    /// As [`Region::count_fault`]; what is counted of children is the parent's.
    fn count_fault(&self, base_pages: u64);

    /// As [`Region::count_prefetch`].
    fn count_prefetch(&self, base_pages: u64);
}

/// The children of one implicit MR.
pub trait Family {
    /// Why a child could not be made or shown.
    type Error;

    /// Calls `change` with the slot of a child under the lock of the table, then wakes whoever waits
    /// for it. `None`, and `change` is not called, for want of memory; that can only be for a slot
    /// that is absent.
    fn with<R>(&self, at: ChildIndex, change: impl FnOnce(&mut Slot) -> R) -> Option<R>;

    /// What [`enter()`] fails with for want of memory for a slot.
    fn no_memory(&self) -> Self::Error;

    /// Waits until the slot is not busy.
    fn wait(&self, at: ChildIndex);

    /// Makes the child: a key that is enabled, whose every access faults, and its mirror. Its slot is
    /// busy, as for all below.
    ///
    /// # Errors
    ///
    /// Then there is none.
    fn make(&self, at: ChildIndex) -> Result<(), Self::Error>;

    /// Has the device's table lead to the child, and waits until the device sees that ([`lead()`]).
    ///
    /// # Errors
    ///
    /// It may lead to the child or not.
    fn show(&self, at: ChildIndex) -> Result<(), Self::Error>;

    /// Has the device's table lead to the null key instead, and waits until the device neither uses
    /// the child nor will.
    ///
    /// # Errors
    ///
    /// It may lead to the child or not.
    fn hide(&self, at: ChildIndex) -> Result<(), Self::Error>;

    /// Destroys the child.
    fn destroy(&self, at: ChildIndex);

    /// Whether nothing of the child's memory is mirrored. Nobody who is not in makes that untrue.
    fn is_empty(&self, at: ChildIndex) -> bool;

    /// A clock of milliseconds, which wraps.
    fn now(&self) -> u32;

    /// Milliseconds for which a child that was hidden is kept in any case. The device may still write
    /// events about it for [`LATE`](crate::LATE); and what was emptied is often touched again soon.
    fn late(&self) -> u32;

    /// The number of the first event that the device has not written yet ([`crate::moment`]); where
    /// events do not name children, what [`Family::served`] returns. Called under the lock of
    /// [`Family::with`], as [`Family::now`] and [`Family::served`].
    fn moment(&self) -> u32;

    /// The number of an event before which all are served.
    fn served(&self) -> u32;

    /// Has [`retire`] called for the child, in some time.
    fn retire_later(&self, at: ChildIndex);
}

/// Enters a child: it is there, and stays, until [`leave`]. Waits while it is made or destroyed.
///
/// # Errors
///
/// Those of [`Family::make`] and [`Family::show`]. The next one tries again.
pub fn enter<F: Family>(family: &F, at: ChildIndex) -> Result<(), F::Error> {
    loop {
        let entered = family
            .with(at, Slot::enter)
            .ok_or_else(|| family.no_memory())?;
        match entered {
            Entered::In => return Ok(()),
            Entered::Wait => family.wait(at),
            Entered::Make => {
                if let Err(error) = family.make(at) {
                    set(family, at, Slot::Absent);
                    return Err(error);
                }
                return show(family, at);
            }
            Entered::Show => return show(family, at),
        }
    }
}

/// Shows a child whose slot is busy, and enters it.
fn show<F: Family>(family: &F, at: ChildIndex) -> Result<(), F::Error> {
    let shown = family.show(at);
    match shown {
        Ok(()) => set(family, at, Slot::Live { users: 1 }),
        Err(_) => {
            hide(family, at);
            family.retire_later(at);
        }
    }
    shown
}

/// Hides a child whose slot is busy; if the device does not take that, the child stays, and is shown
/// again to whoever enters it.
fn hide<F: Family>(family: &F, at: ChildIndex) {
    let slot = match family.hide(at) {
        Ok(()) => Slot::Hidden(Since::Hidden(family.now())),
        Err(_) => Slot::Unsure,
    };
    set(family, at, slot);
}

fn set<F: Family>(family: &F, at: ChildIndex, new: Slot) {
    // There is memory for it: it was busy.
    let _ = family.with(at, |slot| *slot = new);
}

/// Leaves a child, once for each time it was entered.
pub fn leave<F: Family>(family: &F, at: ChildIndex) {
    let was_last = family.with(at, Slot::leave) == Some(true);
    // Whoever empties it later says so.
    if was_last && family.is_empty(at) {
        family.retire_later(at);
    }
}

/// What became of a child that was to be retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// It is in use, or was never there: whoever leaves or empties it last says so again.
    No,
    /// It is hidden; to be asked again in so many milliseconds.
    In(u32),
    /// It is hidden; to be asked again when all events before this one are served.
    After(u32),
    /// It is gone.
    Yes,
}

/// When to retire children again, of which some are hidden and not gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// In so many milliseconds: when the first of them may go on.
    pub time: Option<u32>,
    /// When all events before this one are served: the first that one of them waits for.
    pub event: Option<u32>,
}

impl Again {
    /// Takes what became of one of them into account. Returns whether that one is to be retired again.
    pub fn add(&mut self, retired: Retired) -> bool {
        match retired {
            Retired::No | Retired::Yes => return false,
            Retired::In(time) => {
                self.time = Some(self.time.map_or(time, |other| other.min(time)));
            }
            Retired::After(event) => {
                // Event numbers wrap.
                let is_earlier = |other: u32| event.wrapping_sub(other) > u32::MAX / 2;
                if self.event.is_none_or(is_earlier) {
                    self.event = Some(event);
                }
            }
        }
        true
    }
}

/// Hides a child that nobody needs, and destroys it if no event can be about it. Does not wait for
/// events. May be called at any time, by one thread at a time.
pub fn retire<F: Family>(family: &F, at: ChildIndex) -> Retired {
    if family.with(at, Slot::begin_to_hide) == Some(true) {
        if !family.is_empty(at) {
            set(family, at, Slot::Live { users: 0 });
            return Retired::No;
        }
        hide(family, at);
    }
    match family.with(at, |slot| slot.begin_to_destroy(family)) {
        Some(Retired::Yes) => {
            family.destroy(at);
            set(family, at, Slot::Absent);
            Retired::Yes
        }
        Some(other) => other,
        None => Retired::No,
    }
}
