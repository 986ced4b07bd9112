// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Management datagrams of class SubnAdm (IBTA 13.4.3, 15.2.1; kernel
//! `include/rdma/ib_mad.h:ib_sa_mad`) and the records in them (IBTA 15.2.5; kernel
//! `drivers/infiniband/core/sa_query.c:path_rec_table`, `mcmember_rec_table`).

use crate::ifc::layouts;

/// Bytes of a management datagram.
pub const MAD_LEN: usize = 256;
/// Class SubnAdm.
pub const SUBN_ADM: u64 = 3;
/// Where a record starts.
const RECORD_AT: usize = 56;

/// What is asked.
pub mod method {
    /// Read one record.
    pub const GET: u64 = 0x01;
    /// Make or change one.
    pub const SET: u64 = 0x02;
    /// Remove one.
    pub const DELETE: u64 = 0x15;
    /// Set in an answer.
    pub const RESPONSE: u64 = 0x80;
}

/// What it is about.
pub mod attribute {
    /// What the administrator can do.
    pub const CLASS_PORT_INFO: u64 = 0x01;
    /// A path between two ports.
    pub const PATH_RECORD: u64 = 0x35;
    /// A port in a multicast group.
    pub const MC_MEMBER_RECORD: u64 = 0x38;
}

/// How a request was refused: the low byte is common to all classes (IBTA 13.4.7), the high one
/// belongs to SubnAdm (IBTA 15.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody does that with this attribute.
    UnsupportedMethodOrAttribute,
    /// No more groups.
    NoResources,
    /// The request contradicts itself or what is there.
    Invalid,
    /// There is nothing like that.
    NoRecords,
    /// The GID is not a port's, or no group's.
    InvalidGid,
    /// The request leaves out what it must say.
    InsufficientComponents,
}

impl Refusal {
    /// Its status.
    #[must_use]
    pub fn status(self) -> u64 {
        match self {
            Self::UnsupportedMethodOrAttribute => 0x000c,
            Self::NoResources => 0x0100,
            Self::Invalid => 0x0200,
            Self::NoRecords => 0x0300,
            Self::InvalidGid => 0x0500,
            Self::InsufficientComponents => 0x0600,
        }
    }
}

layouts! {
    /// The part in front of a record.
    sa_mad {
        BASE_VERSION "base_version" @ 0x0, 8;
        MGMT_CLASS "mgmt_class" @ 0x8, 8;
        CLASS_VERSION "class_version" @ 0x10, 8;
        METHOD "method" @ 0x18, 8;
        STATUS "status" @ 0x20, 16;
        ATTR_ID "attr_id" @ 0x80, 16;
        RMPP_FLAGS "rmpp_flags" @ 0xd5, 3;
        /// Which fields of the record say something, a bit each in their order.
        COMPONENT_MASK "comp_mask" @ 0x180, 64;
    }

    /// ClassPortInfo (IBTA 13.4.8.1).
    class_port_info {
        BASE_VERSION "base_version" @ 0x0, 8;
        CLASS_VERSION "class_version" @ 0x8, 8;
        /// Answers come within 4.096 us * 2^n.
        RESPONSE_TIME "response_time" @ 0x3b, 5;
    }

    /// PathRecord (IBTA 15.2.5.16).
    path_record {
        DLID "dlid" @ 0x140, 16;
        SLID "slid" @ 0x150, 16;
        REVERSIBLE "reversible" @ 0x188, 1;
        NUMB_PATH "numb_path" @ 0x189, 7;
        PKEY "pkey" @ 0x190, 16;
        MTU_SELECTOR "mtu_selector" @ 0x1b0, 2;
        MTU "mtu" @ 0x1b2, 6;
        RATE_SELECTOR "rate_selector" @ 0x1b8, 2;
        RATE "rate" @ 0x1ba, 6;
        LIFE_SELECTOR "packet_life_time_selector" @ 0x1c0, 2;
        LIFE "packet_life_time" @ 0x1c2, 6;
    }

    /// MCMemberRecord (IBTA 15.2.5.17).
    mc_member_record {
        QKEY "qkey" @ 0x100, 32;
        MLID "mlid" @ 0x120, 16;
        MTU_SELECTOR "mtu_selector" @ 0x130, 2;
        MTU "mtu" @ 0x132, 6;
        TCLASS "traffic_class" @ 0x138, 8;
        PKEY "pkey" @ 0x140, 16;
        RATE_SELECTOR "rate_selector" @ 0x150, 2;
        RATE "rate" @ 0x152, 6;
        LIFE_SELECTOR "packet_life_time_selector" @ 0x158, 2;
        LIFE "packet_life_time" @ 0x15a, 6;
        SL "sl" @ 0x160, 4;
        FLOW_LABEL "flow_label" @ 0x164, 20;
        HOP_LIMIT "hop_limit" @ 0x178, 8;
        SCOPE "scope" @ 0x180, 4;
        JOIN_STATE "join_state" @ 0x184, 4;
    }
}

/// A management datagram of class SubnAdm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaMad([u8; MAD_LEN]);

impl SaMad {
    /// Takes a datagram for a request to the administrator; `None` if it is of another class or
    /// is an answer.
    #[must_use]
    pub fn request(bytes: &[u8]) -> Option<Self> {
        let mad = Self(bytes.get(..MAD_LEN)?.try_into().ok()?);
        let fits = sa_mad::BASE_VERSION.get(&mad.0) == 1
            && sa_mad::MGMT_CLASS.get(&mad.0) == SUBN_ADM
            && sa_mad::CLASS_VERSION.get(&mad.0) == 2
            && mad.method() & method::RESPONSE == 0;
        fits.then_some(mad)
    }

    /// What is asked, see [`method`].
    #[must_use]
    pub fn method(&self) -> u64 {
        sa_mad::METHOD.get(&self.0)
    }

    /// What it is about, see [`attribute`].
    #[must_use]
    pub fn attribute(&self) -> u64 {
        sa_mad::ATTR_ID.get(&self.0)
    }

    /// Which fields of the record say something.
    #[must_use]
    pub fn components(&self) -> u64 {
        sa_mad::COMPONENT_MASK.get(&self.0)
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        &self.0[RECORD_AT..]
    }

    /// The answer: the request with a record or a refusal in it.
    #[must_use]
    pub fn answer(&self, result: Result<Vec<u8>, Refusal>) -> Vec<u8> {
        let mut bytes = self.0;
        let response = match self.method() {
            // An answer to SET is one to GET: GetResp (IBTA 13.4.5).
            method::SET => method::GET,
            other => other,
        };
        sa_mad::METHOD.set(&mut bytes, response | method::RESPONSE);
        sa_mad::RMPP_FLAGS.set(&mut bytes, 0);
        match result {
            Ok(record) => {
                sa_mad::STATUS.set(&mut bytes, 0);
                bytes[RECORD_AT..][..record.len()].copy_from_slice(&record);
            }
            Err(refusal) => sa_mad::STATUS.set(&mut bytes, refusal.status()),
        }
        bytes.to_vec()
    }
}
