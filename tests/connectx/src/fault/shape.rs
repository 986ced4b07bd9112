// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a page fault looks like from outside: the events that report it, and what the
//! requester hears meanwhile. A card has a choice in all of it; the default is the least.

use std::num::NonZeroU32;

use firmware_cmds::page_fault::{DemandPages, FaultType, MEMORY_FAULT_PAGE};
use firmware_cmds::{
    Iova, MemoryFault, PageFault, RdmaFault, Scheme, TransportToken, WqeFault, WqeFaultKind,
};
use serde::{Deserialize, Serialize};

use super::{Stall, StallKind, Token};

/// Most pages that one access demands in the memory scheme.
const MAX_DEMAND_PAGES: u64 = 512;

/// What a responder whose page is missing tells the requester.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing, until the fault is resumed.
    #[default]
    Nothing,
    /// An RNR NAK: the requester repeats the request as often as its `rnr_retry` allows, each
    /// time after the responder's `min_rnr_timer`. While the fault is not resumed each
    /// repetition is answered alike, without another event.
    Rnr,
    /// The same, but each repetition that does not find its page is a fault of its own.
    RnrEachFaults,
}

/// Which of the events of one access says that the device waits for a resume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Last {
    /// The first that is raised.
    First,
    /// The last that is raised.
    #[default]
    Final,
}

/// What has moved of a message when its fault is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Committed {
    /// All or nothing of a chunk moves, and nothing is reported.
    #[default]
    Nothing,
    /// What precedes the missing page moves at once, in whole packets, and is reported.
    Packets,
}

/// How a fault looks. What belongs to the other scheme is of no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// What the requester hears of a responder's fault. On UC it never hears anything.
    #[serde(skip_serializing_if = "is_default")]
    pub reply: Reply,
    /// Memory scheme: pages before the demanded ones that the event asks for, too.
    #[serde(skip_serializing_if = "is_default")]
    pub pre: u16,
    /// Memory scheme: the same behind the demanded ones.
    #[serde(skip_serializing_if = "is_default")]
    pub post: u16,
    /// Memory scheme: events of the access, all with its token, each about a part of the
    /// pages; no more than there are pages. 1 unless given.
    pub pieces: Option<NonZeroU32>,
    /// Memory scheme: which of the events is marked as the last.
    #[serde(skip_serializing_if = "is_default")]
    pub last: Last,
    /// Transport scheme: what has moved.
    #[serde(skip_serializing_if = "is_default")]
    pub committed: Committed,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Stall {
    /// The events for this stall, in the order in which they are raised; at least one.
    pub(super) fn events(&self, scheme: Scheme, token: Token, shape: &Shape) -> Vec<PageFault> {
        match (scheme, self.kind) {
            (Scheme::Memory, _) => self.memory_faults(token, shape),
            (Scheme::Transport, StallKind::Rdma) => {
                vec![PageFault::Rdma(self.rdma_fault(token, shape))]
            }
            (Scheme::Transport, _) => vec![PageFault::Wqe(self.wqe_fault(token, shape))],
        }
    }

    fn memory_faults(&self, token: Token, shape: &Shape) -> Vec<PageFault> {
        let page = u64::from(MEMORY_FAULT_PAGE);
        let start = self.missing.va & !(page - 1);
        let bytes = (self.missing.va - start).saturating_add(self.missing.len);
        let pages = bytes.div_ceil(page).min(MAX_DEMAND_PAGES);
        let pieces = shape.pieces.map_or(1, |n| u64::from(n.get()).min(pages));
        let last = match shape.last {
            Last::First => 0,
            Last::Final => pieces - 1,
        };
        let piece = |n| {
            let (from, to) = (pages * n / pieces, pages * (n + 1) / pieces);
            PageFault::Memory(MemoryFault {
                last: n == last,
                token: token.memory(),
                mkey: self.missing.key,
                va: Iova::new(start.wrapping_add(from * page)),
                demand_pages: DemandPages::truncate(u32::try_from(to - from).unwrap_or(1)),
                pre_demand_pages: shape.pre,
                post_demand_pages: shape.post,
            })
        };
        (0..pieces).map(piece).collect()
    }

    fn rdma_fault(&self, token: Token, shape: &Shape) -> RdmaFault {
        // The operation from its start on, or what is left of it.
        let committed = self.committed(shape);
        RdmaFault {
            fault_type: FaultType::rdma(self.target.access.writes()),
            token: TransportToken::truncate(token.0),
            r_key: self.target.key,
            rdma_va: Iova::new(self.target.va.wrapping_sub(u64::from(committed))),
            rdma_op_len: u32::try_from(self.target.len)
                .unwrap_or(u32::MAX)
                .saturating_add(committed),
            packet_length: self.packet_length(),
            bytes_committed: committed,
        }
    }

    /// The driver makes present what of the WQE is not committed.
    fn wqe_fault(&self, token: Token, shape: &Shape) -> WqeFault {
        let (kind, wq_number) = match self.kind {
            StallKind::SendOrWrite => (WqeFaultKind::SendOrWrite, self.qpn.into()),
            StallKind::ReadOrAtomic => (WqeFaultKind::ReadOrAtomic, self.qpn.into()),
            StallKind::SharedReceive(srqn) => (WqeFaultKind::SharedReceive, srqn.into()),
            StallKind::Receive | StallKind::Rdma => (WqeFaultKind::Receive, self.qpn.into()),
        };
        WqeFault {
            kind,
            wq_number,
            wqe_index: self.wqe_index,
            bytes_committed: self.committed(shape),
            packet_length: self.packet_length(),
            token: TransportToken::truncate(token.0),
        }
    }

    fn committed(&self, shape: &Shape) -> u32 {
        match shape.committed {
            Committed::Nothing => 0,
            Committed::Packets => u32::try_from(self.moved).unwrap_or(u32::MAX),
        }
    }

    fn packet_length(&self) -> u16 {
        u16::try_from(self.target.len.min(u64::from(self.mtu))).unwrap_or(u16::MAX)
    }
}
