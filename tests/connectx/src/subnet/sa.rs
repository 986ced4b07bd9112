// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The administrator (SA): paths and multicast groups (IBTA 15).

use serde::{Serialize, Serializer};

use super::mad::{attribute, class_port_info, mc_member_record as member, method};
use super::mad::{path_record as path, Refusal, SaMad, LAYOUTS};
use super::{Gid, Subnet, PKEY};
use crate::caps::{GID, LID};
use crate::ifc::Field;
use crate::inspect::show;

const PATH_RECORD_LEN: usize = 64;
const MC_MEMBER_RECORD_LEN: usize = 52;
const CLASS_PORT_INFO_LEN: usize = 72;

/// Selector of a value that is exact; 0 is "greater than", 1 "less than", 3 "largest available".
const EXACTLY: u64 = 2;
/// Code of 4096 bytes.
const MTU_4096: u64 = 5;
/// Code of 400 Gb/s, 4X NDR (`enum ib_rate`).
const RATE_400: u64 = 21;
/// Packets live at most 4.096 us * 2^n, and requests take as long; OpenSM's choice.
const LIFE: u64 = 18;

/// Q_Key of IPoIB's broadcast group, OpenSM's choice.
const IPOIB_QKEY: u64 = 0x0b1b;
/// MGID of IPoIB's IPv4 broadcast group: link-local scope, the signature of IPv4, the P_Key,
/// 255.255.255.255 (RFC 4391 4).
const IPOIB_BROADCAST: Gid = [
    0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

/// Bits of JoinState: the port receives and the group stays for it.
const FULL_MEMBER: u64 = 1;
/// The kinds of membership there are: full, non-member, send-only non-member. Send-only full
/// members, of newer subnet managers, are not offered (CapabilityMask2).
const MEMBERSHIPS: u64 = 0x7;

/// Places of fields in the component mask of a record.
mod component {
    pub(super) const PATH_DGID: u32 = 2;
    pub(super) const PATH_SGID: u32 = 3;
    pub(super) const PATH_PKEY: u32 = 13;

    pub(super) const MGID: u32 = 0;
    pub(super) const PORT_GID: u32 = 1;
    pub(super) const QKEY: u32 = 2;
    pub(super) const MTU_SELECTOR: u32 = 4;
    pub(super) const MTU: u32 = 5;
    pub(super) const TCLASS: u32 = 6;
    pub(super) const PKEY: u32 = 7;
    pub(super) const RATE_SELECTOR: u32 = 8;
    pub(super) const RATE: u32 = 9;
    pub(super) const LIFE_SELECTOR: u32 = 10;
    pub(super) const LIFE: u32 = 11;
    pub(super) const SL: u32 = 12;
    pub(super) const FLOW_LABEL: u32 = 13;
    pub(super) const HOP_LIMIT: u32 = 14;
    pub(super) const JOIN_STATE: u32 = 16;
}

/// What a join says of the group, beside MTU, rate and life time.
const EXACT: &[(u32, Field)] = &[
    (component::QKEY, member::QKEY),
    (component::TCLASS, member::TCLASS),
    (component::PKEY, member::PKEY),
    (component::SL, member::SL),
    (component::FLOW_LABEL, member::FLOW_LABEL),
    (component::HOP_LIMIT, member::HOP_LIMIT),
];

/// What it says with a selector: places of selector and value in the mask, and their fields.
const SELECTED: &[(u32, Field, u32, Field)] = &[
    (
        component::MTU_SELECTOR,
        member::MTU_SELECTOR,
        component::MTU,
        member::MTU,
    ),
    (
        component::RATE_SELECTOR,
        member::RATE_SELECTOR,
        component::RATE,
        member::RATE,
    ),
    (
        component::LIFE_SELECTOR,
        member::LIFE_SELECTOR,
        component::LIFE,
        member::LIFE,
    ),
];

/// What a join that makes a group must say (IBTA 15.2.5.17.2).
const NEEDED_TO_CREATE: u64 = 1 << component::QKEY
    | 1 << component::TCLASS
    | 1 << component::PKEY
    | 1 << component::SL
    | 1 << component::FLOW_LABEL;

/// A multicast group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its MCMemberRecord with the port's membership: 0 if the port is no member.
    record: [u8; MC_MEMBER_RECORD_LEN],
    /// The subnet manager made it, and it stays without members.
    permanent: bool,
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let layout = LAYOUTS.iter().find(|(name, _)| *name == "mc_member_record");
        show::fields(layout.map_or(&[], |(_, fields)| fields), &self.record, to)
    }
}

impl Group {
    /// A group without members.
    fn new(mgid: Gid, mlid: u16) -> Self {
        let mut record = [0; MC_MEMBER_RECORD_LEN];
        record[..16].copy_from_slice(&mgid);
        record[16..32].copy_from_slice(&GID);
        for (field, value) in [
            (member::MLID, u64::from(mlid)),
            (member::PKEY, u64::from(PKEY)),
            (member::MTU_SELECTOR, EXACTLY),
            (member::MTU, MTU_4096),
            (member::RATE_SELECTOR, EXACTLY),
            (member::RATE, RATE_400),
            (member::LIFE_SELECTOR, EXACTLY),
            (member::LIFE, LIFE),
            (member::SCOPE, u64::from(mgid[1] & 0xf)),
        ] {
            field.set(&mut record, value);
        }
        Self {
            record,
            permanent: false,
        }
    }

    /// IPoIB's broadcast group, which the subnet manager makes.
    #[must_use]
    pub fn broadcast(mlid: u16) -> Self {
        let mut group = Self::new(IPOIB_BROADCAST, mlid);
        member::QKEY.set(&mut group.record, IPOIB_QKEY);
        group.permanent = true;
        group
    }

    /// Its GID.
    #[must_use]
    pub fn mgid(&self) -> Gid {
        gid(&self.record, 0)
    }

    /// Its LID.
    #[must_use]
    pub fn mlid(&self) -> u16 {
        u16::try_from(member::MLID.get(&self.record)).unwrap_or(0)
    }

    fn membership(&self) -> u64 {
        member::JOIN_STATE.get(&self.record)
    }

    /// Whether it is as a join says that it should be.
    fn fits(&self, components: u64, asked: &[u8]) -> bool {
        let says = |bit: u32| components >> bit & 1 == 1;
        let exact = EXACT
            .iter()
            .all(|&(bit, field)| !says(bit) || field.get(asked) == field.get(&self.record));
        let selected = SELECTED
            .iter()
            .all(|&(selector_bit, selector, value_bit, value)| {
                if !says(selector_bit) || !says(value_bit) {
                    return true;
                }
                let (have, want) = (value.get(&self.record), value.get(asked));
                match selector.get(asked) {
                    0 => have > want,
                    1 => have < want,
                    EXACTLY => have == want,
                    _ => true,
                }
            });
        exact && selected
    }

    /// Takes over what a join says of a group that it makes.
    fn shape(&mut self, components: u64, asked: &[u8]) {
        for &(bit, field) in EXACT {
            if components >> bit & 1 == 1 {
                field.set(&mut self.record, field.get(asked));
            }
        }
        for &(selector_bit, selector, value_bit, value) in SELECTED {
            let both = 1 << selector_bit | 1 << value_bit;
            if components & both == both && selector.get(asked) == EXACTLY {
                value.set(&mut self.record, value.get(asked));
            }
        }
    }
}

fn gid(record: &[u8], at: usize) -> Gid {
    let mut gid = [0; 16];
    gid.copy_from_slice(&record[at..at + 16]);
    gid
}

impl Subnet {
    /// Answers a request to the administrator.
    pub fn administer(&mut self, request: &SaMad) -> Vec<u8> {
        let result = match (request.attribute(), request.method()) {
            (attribute::CLASS_PORT_INFO, method::GET) => Ok(class_port_info()),
            (attribute::PATH_RECORD, method::GET) => path_record(request),
            (attribute::MC_MEMBER_RECORD, method::GET) => self.look_up(request),
            (attribute::MC_MEMBER_RECORD, method::SET) => self.join(request),
            (attribute::MC_MEMBER_RECORD, method::DELETE) => self.leave(request),
            _ => Err(Refusal::UnsupportedMethodOrAttribute),
        };
        request.answer(result)
    }

    fn look_up(&self, request: &SaMad) -> Result<Vec<u8>, Refusal> {
        let group = self.groups.get(&group_of(request)?);
        let group = group.ok_or(Refusal::NoRecords)?;
        Ok(group.record.to_vec())
    }

    fn join(&mut self, request: &SaMad) -> Result<Vec<u8>, Refusal> {
        let (mgid, state) = membership(request)?;
        let (components, asked) = (request.components(), request.record());
        if let Some(group) = self.groups.get_mut(&mgid) {
            if !group.fits(components, asked) {
                return Err(Refusal::Invalid);
            }
            let state = state | group.membership();
            member::JOIN_STATE.set(&mut group.record, state);
            return Ok(group.record.to_vec());
        }
        if state & FULL_MEMBER == 0 {
            return Err(Refusal::Invalid);
        }
        if components & NEEDED_TO_CREATE != NEEDED_TO_CREATE {
            return Err(Refusal::InsufficientComponents);
        }
        let mlid = self.free_mlid().ok_or(Refusal::NoResources)?;
        let mut group = Group::new(mgid, mlid);
        group.shape(components, asked);
        if !group.fits(components, asked) || member::PKEY.get(asked) != u64::from(PKEY) {
            // An MTU or a rate that the port does not have, a partition that is not there.
            return Err(Refusal::Invalid);
        }
        member::JOIN_STATE.set(&mut group.record, state);
        let record = group.record.to_vec();
        self.groups.insert(mgid, group);
        Ok(record)
    }

    /// A group without a full member is gone.
    fn leave(&mut self, request: &SaMad) -> Result<Vec<u8>, Refusal> {
        let (mgid, state) = membership(request)?;
        let group = self.groups.get_mut(&mgid).ok_or(Refusal::Invalid)?;
        if group.membership() & state == 0 {
            return Err(Refusal::Invalid);
        }
        let left = group.membership() & !state;
        member::JOIN_STATE.set(&mut group.record, left);
        let record = group.record.to_vec();
        if left & FULL_MEMBER == 0 && !group.permanent {
            self.groups.remove(&mgid);
        }
        Ok(record)
    }
}

/// The group that a request names.
fn group_of(request: &SaMad) -> Result<Gid, Refusal> {
    if request.components() >> component::MGID & 1 == 0 {
        return Err(Refusal::InsufficientComponents);
    }
    let mgid = gid(request.record(), 0);
    // An MGID of 0 would have the administrator choose one: nobody here asks for that.
    if mgid[0] == 0xff {
        Ok(mgid)
    } else {
        Err(Refusal::InvalidGid)
    }
}

/// The group that the port wants to join or leave, and what as.
fn membership(request: &SaMad) -> Result<(Gid, u64), Refusal> {
    let needed = 1 << component::PORT_GID | 1 << component::JOIN_STATE;
    if request.components() & needed != needed {
        return Err(Refusal::InsufficientComponents);
    }
    let mgid = group_of(request)?;
    if gid(request.record(), 16) != GID {
        return Err(Refusal::InvalidGid);
    }
    let state = member::JOIN_STATE.get(request.record());
    if state == 0 || state & !MEMBERSHIPS != 0 {
        return Err(Refusal::Invalid);
    }
    Ok((mgid, state))
}

fn class_port_info() -> Vec<u8> {
    let mut info = vec![0; CLASS_PORT_INFO_LEN];
    class_port_info::BASE_VERSION.set(&mut info, 1);
    class_port_info::CLASS_VERSION.set(&mut info, 2);
    class_port_info::RESPONSE_TIME.set(&mut info, LIFE);
    info
}

/// The path from the port to itself: there is no other.
fn path_record(request: &SaMad) -> Result<Vec<u8>, Refusal> {
    let (components, asked) = (request.components(), request.record());
    let says = |bit: u32| components >> bit & 1 == 1;
    if !says(component::PATH_DGID) || !says(component::PATH_SGID) {
        return Err(Refusal::InsufficientComponents);
    }
    let elsewhere = gid(asked, 8) != GID || gid(asked, 24) != GID;
    // A limited member may ask with the limited P_Key, without the top bit.
    let pkey = path::PKEY.get(asked) | 0x8000;
    if elsewhere || says(component::PATH_PKEY) && pkey != u64::from(PKEY) {
        return Err(Refusal::NoRecords);
    }
    // What is asked for (service, traffic class, flow label) comes back as it is.
    let mut record = asked[..PATH_RECORD_LEN].to_vec();
    for (field, value) in [
        (path::DLID, u64::from(LID)),
        (path::SLID, u64::from(LID)),
        (path::REVERSIBLE, 1),
        (path::NUMB_PATH, 1),
        (path::PKEY, u64::from(PKEY)),
        (path::MTU_SELECTOR, EXACTLY),
        (path::MTU, MTU_4096),
        (path::RATE_SELECTOR, EXACTLY),
        (path::RATE, RATE_400),
        (path::LIFE_SELECTOR, EXACTLY),
        (path::LIFE, LIFE),
    ] {
        field.set(&mut record, value);
    }
    Ok(record)
}
