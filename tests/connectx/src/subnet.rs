// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The subnet that the port is in: the port itself, and a subnet manager at a LID of its own,
//! whose administrator (SA) answers management datagrams. There is nobody else.
//!
//! - [`mad`]: management datagrams, bytes to values and back.
//! - [`sa`]: what the administrator answers.
//! - [`multicast`]: which QPs listen to which group.
//!
//! As after OpenSM's sweep of a small fabric: one partition, the IPv4 broadcast group of IPoIB
//! made beforehand, every other group made by the first full member's join.

pub mod mad;
pub mod multicast;
pub mod sa;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::inspect::show;
use sa::Group;

/// LID of the subnet manager.
pub const SM_LID: u16 = 2;
/// The only partition, of which the port is a full member.
pub const PKEY: u16 = 0xffff;
/// LIDs of multicast groups, IBTA 4.1.3.
const FIRST_MLID: u16 = 0xc000;
const LAST_MLID: u16 = 0xfffe;

/// A GID.
pub type Gid = [u8; 16];

/// What the subnet manager knows.
#[derive(Debug, Serialize)]
pub struct Subnet {
    /// Multicast groups by MGID.
    #[serde(serialize_with = "show_groups")]
    groups: BTreeMap<Gid, Group>,
}

fn show_groups<S: serde::Serializer>(
    groups: &BTreeMap<Gid, Group>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let groups: BTreeMap<_, _> = groups
        .iter()
        .map(|(gid, group)| (u128::from_be_bytes(*gid), group))
        .collect();
    show::by_number(&groups, to)
}

impl Default for Subnet {
    fn default() -> Self {
        let broadcast = Group::broadcast(FIRST_MLID);
        Self {
            groups: BTreeMap::from([(broadcast.mgid(), broadcast)]),
        }
    }
}

impl Subnet {
    /// A LID that no group has.
    fn free_mlid(&self) -> Option<u16> {
        (FIRST_MLID..=LAST_MLID)
            .find(|mlid| !self.groups.values().any(|group| group.mlid() == *mlid))
    }
}
