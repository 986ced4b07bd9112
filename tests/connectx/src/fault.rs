// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Accesses stalled on a page fault, and the events that report them.
//!
//! Each stall has a token of its own, whatever the scheme, and exactly one event
//! outstanding. PAGE_FAULT_RESUME takes the stall away; the access that is retried
//! may stall again, with another token.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use firmware_cmds::page_fault::{DemandPages, FaultType, MEMORY_FAULT_PAGE};
use firmware_cmds::{
    EventType, FaultToken, MemoryFault, MemoryToken, PageFault, PageFaultResume, Qpn, RdmaFault,
    Scheme, Srqn, TransportToken, WqeFault, WqeFaultKind,
};
use serde::{Serialize, Serializer};

use crate::device::Device;
use crate::inspect::show;
use crate::mkey::{Missing, Target};
use crate::rules::points::{self as rules, FaultAct};

/// Most pages that one event of the memory scheme demands.
const MAX_DEMAND_PAGES: u64 = 512;

/// Stalls whose end is remembered, to tell a second resume from one that crossed the end
/// of its QP.
const ENDED_KEPT: usize = 1 << 16;

/// Names a stall to the driver: 24 bits, neither all clear nor all set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Token(u32);

impl Token {
    const BITS: u32 = TransportToken::MAX.get().count_ones();
    const LAST: u32 = TransportToken::MAX.get() - 1;

    /// What the memory scheme calls it. The upper half of the 48 bits is the complement of
    /// the lower one: a driver that loses bits is found out.
    fn memory(self) -> MemoryToken {
        let high = u64::from(!self.0 & TransportToken::MAX.get());
        MemoryToken::truncate(high << Self::BITS | u64::from(self.0))
    }

    /// The token that a resume is about, whatever else the resume says.
    fn of(fault: FaultToken) -> Self {
        let low = fault.get() & u64::from(TransportToken::MAX.get());
        Self(u32::try_from(low).unwrap_or(0))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which access stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StallKind {
    /// The requester's gather of a SEND or RDMA WRITE.
    SendOrWrite,
    /// The requester's scatter of an RDMA READ or atomic response.
    ReadOrAtomic,
    /// The responder's scatter of a SEND, into a WQE of its own queue.
    Receive,
    /// The same into a WQE of a shared queue.
    SharedReceive(#[serde(serialize_with = "show::debug")] Srqn),
    /// The responder's access for an RDMA operation or atomic.
    Rdma,
}

/// An access that waits for its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// The QP whose direction stands still.
    #[serde(serialize_with = "show::debug")]
    pub qpn: Qpn,
    /// The QP whose work request it is; the same on the requester's side.
    #[serde(serialize_with = "show::debug")]
    pub requester: Qpn,
    /// Which access.
    pub kind: StallKind,
    /// Index of the WQE in its queue; of no meaning for [`StallKind::Rdma`].
    pub wqe_index: u16,
    /// The access as the WQE or the packet names it, from where it stalled to its end.
    pub target: Target,
    /// What is missing.
    pub missing: Missing,
    /// Path MTU: no packet is longer.
    pub mtu: u32,
}

impl Stall {
    /// The event for this stall.
    fn report(&self, scheme: Scheme, token: Token) -> PageFault {
        match (scheme, self.kind) {
            (Scheme::Memory, _) => PageFault::Memory(self.memory_fault(token)),
            (Scheme::Transport, StallKind::Rdma) => PageFault::Rdma(self.rdma_fault(token)),
            (Scheme::Transport, _) => PageFault::Wqe(self.wqe_fault(token)),
        }
    }

    fn memory_fault(&self, token: Token) -> MemoryFault {
        let page = u64::from(MEMORY_FAULT_PAGE);
        let start = self.missing.va & !(page - 1);
        let bytes = (self.missing.va - start).saturating_add(self.missing.len);
        let pages = bytes.div_ceil(page).min(MAX_DEMAND_PAGES);
        MemoryFault {
            last: true,
            token: token.memory(),
            mkey: self.missing.key,
            va: firmware_cmds::Iova::new(start),
            demand_pages: DemandPages::truncate(u32::try_from(pages).unwrap_or(1)),
            pre_demand_pages: 0,
            post_demand_pages: 0,
        }
    }

    fn rdma_fault(&self, token: Token) -> RdmaFault {
        RdmaFault {
            fault_type: FaultType::rdma(self.target.access.writes()),
            token: TransportToken::truncate(token.0),
            r_key: self.target.key,
            rdma_va: firmware_cmds::Iova::new(self.target.va),
            rdma_op_len: u32::try_from(self.target.len).unwrap_or(u32::MAX),
            packet_length: self.packet_length(),
            bytes_committed: 0,
        }
    }

    /// The driver makes the whole WQE present: nothing is reported as committed, and
    /// what already moved does not have to move again.
    fn wqe_fault(&self, token: Token) -> WqeFault {
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
            bytes_committed: 0,
            packet_length: self.packet_length(),
            token: TransportToken::truncate(token.0),
        }
    }

    fn packet_length(&self) -> u16 {
        u16::try_from(self.target.len.min(u64::from(self.mtu))).unwrap_or(u16::MAX)
    }
}

/// How a stall ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum End {
    /// The driver resumed it.
    Resumed,
    /// Its QP went away. The driver cannot know and resumes it later.
    Discarded,
}

/// All stalls.
#[derive(Debug, Default, Serialize)]
pub struct Faults {
    #[serde(flatten, serialize_with = "by_token")]
    live: BTreeMap<Token, (Stall, FaultToken)>,
    last: u32,
    /// Every token was given out at least once.
    wrapped: bool,
    ended: VecDeque<(Token, End)>,
}

/// A stall and what its event calls it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    stall: &'a Stall,
    #[serde(serialize_with = "show::debug")]
    event: FaultToken,
}

fn by_token<S: Serializer>(
    live: &BTreeMap<Token, (Stall, FaultToken)>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(live.iter().map(|(token, (stall, event))| {
        let event = *event;
        (token.to_string(), Shown { stall, event })
    }))
}

impl Faults {
    /// Number of stalls waiting for a resume.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Every stall with its token.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &Stall)> {
        self.live.iter().map(|(&token, (stall, _))| (token, stall))
    }

    fn token(&mut self) -> Token {
        loop {
            self.wrapped |= self.last == Token::LAST;
            self.last = self.last % Token::LAST + 1;
            let token = Token(self.last);
            if !self.live.contains_key(&token) {
                return token;
            }
        }
    }

    /// Whether this token was ever given out.
    fn issued(&self, token: Token) -> bool {
        let last = if self.wrapped { Token::LAST } else { self.last };
        (1..=last).contains(&token.0)
    }

    fn end(&mut self, token: Token, end: End) {
        if self.ended.len() == ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back((token, end));
    }

    /// How a stall ended, if that is remembered.
    fn ended(&self, token: Token) -> Option<End> {
        let mut newest_first = self.ended.iter().rev();
        newest_first
            .find(|&&(ended, _)| ended == token)
            .map(|&(_, end)| end)
    }

    /// Drops every stall at `qpn` or for its work requests, and returns the others
    /// whose requester waited for them.
    pub(crate) fn discard(&mut self, qpn: Qpn) -> Vec<Qpn> {
        let mut waiting = Vec::new();
        let mut discarded = Vec::new();
        self.live.retain(|&token, (stall, _)| {
            let gone = stall.qpn == qpn || stall.requester == qpn;
            if gone {
                discarded.push(token);
                if stall.requester != qpn {
                    waiting.push(stall.requester);
                }
            }
            !gone
        });
        for token in discarded {
            self.end(token, End::Discarded);
        }
        waiting
    }
}

impl Device {
    /// How page faults are reported: what the driver chose of what was offered.
    pub(crate) fn fault_scheme(&self) -> Scheme {
        if self.hca.memory_scheme() {
            Scheme::Memory
        } else {
            Scheme::Transport
        }
    }

    /// Records a stall and reports it; `None` if no event queue takes page faults, so
    /// that nobody would ever resume it, or if a rule says that it fails.
    pub(crate) fn stall(&mut self, stall: Stall) -> Option<Token> {
        self.events.queue_for(EventType::PAGE_FAULT)?;
        match self.rule::<rules::Fault>(&stall) {
            None => {}
            Some((_, FaultAct::Fail {})) => return None,
        }
        let scheme = self.fault_scheme();
        let token = self.faults.token();
        let fault = stall.report(scheme, token);
        self.count_fault(scheme, &stall);
        self.journal.trace(format_args!(
            "fault token={token} qp={} {:?} key={} va={:#x} len={:#x} missing {}:{:#x}+{:#x}",
            stall.qpn,
            stall.kind,
            stall.target.key,
            stall.target.va,
            stall.target.len,
            stall.missing.key,
            stall.missing.va,
            stall.missing.len
        ));
        self.faults.live.insert(token, (stall, fault.fault_token()));
        self.stalls_changed();
        // The queue sets the owner bit when it writes the entry.
        self.raise(fault.to_eqe(false));
        Some(token)
    }

    fn count_fault(&mut self, scheme: Scheme, stall: &Stall) {
        let counters = &mut self.counters;
        if scheme == Scheme::Memory {
            counters.faults_memory += 1;
        }
        let counter = match (scheme, stall.kind) {
            (Scheme::Memory, StallKind::SendOrWrite) => &mut counters.faults_memory_requester_read,
            (Scheme::Memory, StallKind::ReadOrAtomic) => {
                &mut counters.faults_memory_requester_write
            }
            (Scheme::Memory, StallKind::Receive | StallKind::SharedReceive(_)) => {
                &mut counters.faults_memory_receive_write
            }
            (Scheme::Memory, StallKind::Rdma) if stall.target.access.writes() => {
                &mut counters.faults_memory_rdma_write
            }
            (Scheme::Memory, StallKind::Rdma) => &mut counters.faults_memory_rdma_read,
            (Scheme::Transport, StallKind::SendOrWrite | StallKind::ReadOrAtomic) => {
                &mut counters.faults_wqe_requester
            }
            (Scheme::Transport, StallKind::Receive | StallKind::SharedReceive(_)) => {
                &mut counters.faults_wqe_responder
            }
            (Scheme::Transport, StallKind::Rdma) => &mut counters.faults_rdma,
        };
        *counter += 1;
    }

    /// Executes PAGE_FAULT_RESUME: the stall ends, and its access is retried or fails.
    pub(crate) fn resume(&mut self, resume: PageFaultResume) {
        let token = Token::of(resume.fault);
        self.journal
            .trace(format_args!("resume token={token} error={}", resume.error));
        let Some((stall, expected)) = self.faults.live.remove(&token) else {
            self.unknown_resume(token);
            return;
        };
        if resume.fault != expected {
            self.violation(format_args!(
                "resume of page fault {token} names {:?}, the event named {expected:?}",
                resume.fault
            ));
        }
        self.faults.end(token, End::Resumed);
        if resume.error {
            self.counters.resumes_error += 1;
            self.fail_stalled(token, &stall);
        } else {
            self.counters.resumes_ok += 1;
            self.retry_stalled(token, &stall);
        }
    }

    /// A resume of something that is not stalled: right only if its QP went away first.
    fn unknown_resume(&mut self, token: Token) {
        self.counters.resumes_unknown += 1;
        match self.faults.ended(token) {
            Some(End::Resumed) => {
                self.violation(format_args!("page fault {token} resumed twice"));
            }
            None if !self.faults.issued(token) => {
                self.violation(format_args!("page fault {token} resumed, there was none"));
            }
            Some(End::Discarded) | None => self.journal.note(format_args!(
                "page fault {token} resumed after its QP went away"
            )),
        }
    }
}
