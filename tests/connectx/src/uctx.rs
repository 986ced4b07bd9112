// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! User contexts (DEVX): on whose behalf a command comes, and whose an object is.
//!
//! The driver stamps every command that it sends for a user with the `uid` that CREATE_UCTX gave
//! it, those that the user wrote itself (`mlx5_ib/devx.c`) as well as its own. What such a command
//! may touch is the device's to decide: objects that were made under the same uid. The driver
//! itself has no uid, and may touch everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};

use crate::caps::LOG_MAX_UCTX;
use crate::numbers::Numbers;

/// On whose behalf a command comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Uid(u16);

impl Uid {
    /// The driver, on its own behalf.
    pub const DRIVER: Self = Self(0);

    /// The driver, for everybody: users may name what it makes like this
    /// (`MLX5_SHARED_RESOURCE_UID`).
    pub const SHARED: Self = Self(0xffff);

    /// That of a command, in its header.
    #[must_use]
    pub fn of(input: &[u8]) -> Self {
        let [_, _, high, low] = crate::command::word(input, 0).to_be_bytes();
        Self(u16::from_be_bytes([high, low]))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether a user is behind it.
    #[must_use]
    pub fn is_user(self) -> bool {
        self != Self::DRIVER && self != Self::SHARED
    }
}

impl From<u16> for Uid {
    fn from(uid: u16) -> Self {
        Self(uid)
    }
}

/// Kinds of objects that belong to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// Completion queue.
    Cq,
    /// DC target.
    Dct,
    /// Event queue.
    Eq,
    /// Memory key, by its index.
    Mkey,
    /// Protection domain.
    Pd,
    /// Queue pair.
    Qp,
    /// Number that no QP has.
    ReservedQpn,
    /// Shared receive queue: RMP or XRC SRQ.
    Srq,
    /// Transport domain.
    Td,
    /// Doorbell page.
    Uar,
    /// Memory of a user.
    Umem,
    /// XRC domain.
    Xrcd,
}

/// All user contexts, and what belongs to them.
#[derive(Debug, Serialize)]
pub struct Uctxs {
    contexts: BTreeSet<Uid>,
    numbers: Numbers,
    /// Objects of users and of everybody; all others are the driver's.
    #[serde(serialize_with = "owners")]
    owners: BTreeMap<(Object, u32), Uid>,
    /// On whose behalf the command comes that is being executed.
    acting: Uid,
}

fn owners<S: Serializer>(owners: &BTreeMap<(Object, u32), Uid>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(
        owners
            .iter()
            .map(|((object, number), uid)| (format!("{object:?} {number:#x}"), uid)),
    )
}

impl Default for Uctxs {
    fn default() -> Self {
        Self {
            contexts: BTreeSet::new(),
            numbers: Numbers::below(1, LOG_MAX_UCTX),
            owners: BTreeMap::new(),
            acting: Uid::DRIVER,
        }
    }
}

impl Uctxs {
    /// Number of user contexts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// Makes a user context; `None` if there are too many.
    pub fn create(&mut self) -> Option<Uid> {
        let contexts = &self.contexts;
        let used = |n| u16::try_from(n).is_ok_and(|n| contexts.contains(&Uid(n)));
        let uid = Uid(u16::try_from(self.numbers.take(used)?).ok()?);
        self.contexts.insert(uid);
        Some(uid)
    }

    /// Removes a user context; `false` if there is none.
    pub fn remove(&mut self, uid: Uid) -> bool {
        self.contexts.remove(&uid)
    }

    /// Whether there is such a context.
    #[must_use]
    pub fn contains(&self, uid: Uid) -> bool {
        self.contexts.contains(&uid)
    }

    /// Something that belongs to a context.
    #[must_use]
    pub fn object_of(&self, uid: Uid) -> Option<(Object, u32)> {
        let mut owners = self.owners.iter();
        owners.find(|(_, &owner)| owner == uid).map(|(&key, _)| key)
    }

    /// Whose an object is.
    #[must_use]
    pub fn owner(&self, object: Object, number: u32) -> Uid {
        let owner = self.owners.get(&(object, number));
        owner.copied().unwrap_or(Uid::DRIVER)
    }

    /// Notes whose a new object is.
    pub(crate) fn give(&mut self, object: Object, number: u32, uid: Uid) {
        if uid != Uid::DRIVER {
            self.owners.insert((object, number), uid);
        }
    }

    /// Forgets an object that is gone.
    pub(crate) fn forget(&mut self, object: Object, number: u32) {
        self.owners.remove(&(object, number));
    }

    /// On whose behalf the command comes that is being executed; otherwise the driver.
    #[must_use]
    pub fn acting(&self) -> Uid {
        self.acting
    }

    /// Says on whose behalf a command comes.
    pub(crate) fn act_for(&mut self, uid: Uid) {
        self.acting = uid;
    }

    /// Whether the command that is being executed may touch or name an object.
    ///
    /// A user may name what the driver made for everybody, and an XRC domain of the driver: they are
    /// made for all who share a file (`mlx5_ib/main.c:mlx5_ib_alloc_xrcd`). A doorbell page belongs
    /// to whoever knows its number: see "Security note" in `mlx5_ib/devx.c`.
    #[must_use]
    pub fn allow(&self, object: Object, number: u32) -> bool {
        let owner = self.owner(object, number);
        !self.acting.is_user()
            || owner == self.acting
            || owner == Uid::SHARED
            || object == Object::Xrcd && owner == Uid::DRIVER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_see_their_own_and_the_driver_sees_all() {
        let mut uctxs = Uctxs::default();
        let (a, b) = (uctxs.create().unwrap(), uctxs.create().unwrap());
        assert!(a.is_user() && b.is_user() && a != b);
        uctxs.give(Object::Cq, 5, a);
        uctxs.give(Object::Cq, 6, Uid::DRIVER);
        uctxs.give(Object::Eq, 7, Uid::SHARED);
        for (uid, own, drivers) in [
            (Uid::DRIVER, true, true),
            (a, true, false),
            (b, false, false),
        ] {
            uctxs.act_for(uid);
            assert_eq!(uctxs.allow(Object::Cq, 5), own, "{uid:?}");
            assert_eq!(uctxs.allow(Object::Cq, 6), drivers, "{uid:?}");
            assert_eq!(uctxs.allow(Object::Qp, 5), drivers, "{uid:?}");
            assert!(uctxs.allow(Object::Xrcd, 5), "{uid:?}");
            assert!(uctxs.allow(Object::Eq, 7), "{uid:?}");
        }
        assert_eq!(uctxs.object_of(a), Some((Object::Cq, 5)));
        uctxs.forget(Object::Cq, 5);
        assert_eq!(uctxs.object_of(a), None);
        assert!(uctxs.remove(a) && !uctxs.remove(a));
    }
}
