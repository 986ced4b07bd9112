// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The state of one child of an implicit MR.

use super::{Family, Retired};

/// Where a child is between not being there and being there ([the states](super)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    /// There is none, and the device's table leads to the null key.
    #[default]
    Absent,
    /// Somebody changes it, and everybody else waits.
    Busy,
    /// It is there, and the device's table leads to it.
    Live {
        /// How many are in it.
        users: u32,
    },
    /// It is there, and nobody is in. Where the device's table leads is not known.
    Unsure,
    /// It is there, and the device's table leads to the null key. Its key is known.
    Hidden(Since),
}

/// From when on no event is about a child that is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// It was hidden at this time ([`Family::now`](super::Family::now)), and accesses were raised before
    /// whose events may be late.
    Hidden(u32),
    /// All of those have been written. Events from this number on are not about it.
    Event(u32),
}

/// What has to be done to enter a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Nothing: it was entered.
    In,
    /// It has to be made and shown; its slot is busy now.
    Make,
    /// It has to be shown; its slot is busy now.
    Show,
    /// To wait until the slot is not busy, and to try again.
    Wait,
}

impl Slot {
    /// Enters it if it is there, or makes it busy.
    pub fn enter(&mut self) -> Entered {
        let (next, entered) = match *self {
            Self::Absent => (Self::Busy, Entered::Make),
            Self::Busy => (Self::Busy, Entered::Wait),
            Self::Live { users } => (Self::Live { users: users + 1 }, Entered::In),
            Self::Unsure | Self::Hidden(_) => (Self::Busy, Entered::Show),
        };
        *self = next;
        entered
    }

    /// Leaves it. Returns whether nobody is left.
    pub fn leave(&mut self) -> bool {
        let Self::Live { users } = self else {
            return false;
        };
        *users = users.saturating_sub(1);
        *users == 0
    }

    /// Makes it busy if the device's table may lead to it and nobody is in. Returns whether that was
    /// so.
    pub fn begin_to_hide(&mut self) -> bool {
        let is_unused = matches!(*self, Self::Live { users: 0 } | Self::Unsure);
        if is_unused {
            *self = Self::Busy;
        }
        is_unused
    }

    /// Makes it busy if it is hidden and no event can be about it ([`Retired::Yes`]).
    pub fn begin_to_destroy(&mut self, family: &impl Family) -> Retired {
        let Self::Hidden(since) = self else {
            return Retired::No;
        };
        let event = match *since {
            Since::Event(event) => event,
            Since::Hidden(at) => {
                let (ago, late) = (family.now().wrapping_sub(at), family.late());
                if ago < late {
                    return Retired::In(late - ago);
                }
                let event = family.moment();
                *since = Since::Event(event);
                event
            }
        };
        // Event numbers wrap.
        if family.served().wrapping_sub(event) > u32::MAX / 2 {
            return Retired::After(event);
        }
        *self = Self::Busy;
        Retired::Yes
    }
}
