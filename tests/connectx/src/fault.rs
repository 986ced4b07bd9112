// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Accesses stalled on a page fault, and the events that report them.
//!
//! Each stall has a token of its own, whatever the scheme, and one event, or several
//! that share the token ([`shape`]). PAGE_FAULT_RESUME takes the stall away; the access
//! that is retried may stall again, with another token.

pub mod shape;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use firmware_cmds::{
    EventType, FaultToken, MemoryToken, PageFaultResume, Qpn, Scheme, Srqn, TransportToken,
};
use serde::{Deserialize, Serialize, Serializer};

use crate::device::Device;
use crate::inspect::show;
use crate::mkey::{Missing, Target};
use crate::qp::ServiceType;
use crate::rules::points::{self as rules, FaultAct};
use shape::{Committed, Reply, Shape};

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

/// Which end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The one whose work request it is.
    Requester,
    /// The other one.
    Responder,
}

impl StallKind {
    /// The end whose memory is missing.
    #[must_use]
    pub fn side(self) -> Side {
        match self {
            Self::SendOrWrite | Self::ReadOrAtomic => Side::Requester,
            Self::Receive | Self::SharedReceive(_) | Self::Rdma => Side::Responder,
        }
    }
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
    /// Bytes of the message that have moved before it.
    pub moved: u64,
    /// Path MTU: no packet is longer.
    pub mtu: u32,
}

/// A stall that waits for its resume.
#[derive(Clone, Copy, Debug, Serialize)]
struct Live {
    #[serde(flatten)]
    stall: Stall,
    /// What its events say that a resume must name.
    #[serde(rename = "event", serialize_with = "show::debug")]
    named: FaultToken,
    /// Number of its events.
    events: u32,
    reply: Reply,
}

impl Live {
    /// Whether the requester waits for the resume. It does not after an RNR NAK: then the
    /// fault is the responder's alone.
    fn holds_requester(&self) -> bool {
        self.reply == Reply::Nothing
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

/// A stall that is over.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ended {
    token: Token,
    end: End,
    events: u32,
    /// Resumes that named it.
    resumes: u32,
    /// One of them was without error.
    succeeded: bool,
}

/// All stalls.
#[derive(Debug, Default, Serialize)]
pub struct Faults {
    #[serde(flatten, serialize_with = "by_token")]
    live: BTreeMap<Token, Live>,
    last: u32,
    /// Every token was given out at least once.
    wrapped: bool,
    ended: VecDeque<Ended>,
}

fn by_token<S: Serializer>(live: &BTreeMap<Token, Live>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(live.iter().map(|(token, live)| (token.to_string(), live)))
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
        self.live.iter().map(|(&token, live)| (token, &live.stall))
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

    /// Whether a fault that was answered with an RNR NAK covers the repetitions, too.
    pub(crate) fn covers_repetition(&self, token: Token) -> bool {
        self.live
            .get(&token)
            .is_some_and(|live| live.reply == Reply::Rnr)
    }

    fn end(&mut self, ended: Ended) {
        if self.ended.len() == ENDED_KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// A stall that is over, if it is remembered.
    fn ended(&mut self, token: Token) -> Option<&mut Ended> {
        let mut newest_first = self.ended.iter_mut().rev();
        newest_first.find(|ended| ended.token == token)
    }

    /// Drops every stall at `qpn` or for its work requests, and returns the others
    /// whose requester waited for them.
    pub(crate) fn discard(&mut self, qpn: Qpn) -> Vec<Qpn> {
        let mut waiting = self.discard_if(|live| {
            let requester = live.stall.requester;
            live.stall.qpn == qpn || (requester == qpn && live.holds_requester())
        });
        waiting.retain(|&requester| requester != qpn);
        waiting
    }

    /// Drops every stall in a WQE of `srqn`, and returns the requesters that waited for them.
    pub(crate) fn discard_shared(&mut self, srqn: Srqn) -> Vec<Qpn> {
        self.discard_if(|live| live.stall.kind == StallKind::SharedReceive(srqn))
    }

    fn discard_if(&mut self, gone: impl Fn(&Live) -> bool) -> Vec<Qpn> {
        let mut discarded = Vec::new();
        self.live.retain(|&token, live| {
            let gone = gone(live);
            if gone {
                discarded.push((token, *live));
            }
            !gone
        });
        for &(token, live) in &discarded {
            self.end(Ended {
                token,
                end: End::Discarded,
                events: live.events,
                resumes: 0,
                succeeded: false,
            });
        }
        let held = discarded.iter().filter(|(_, live)| live.holds_requester());
        held.map(|(_, live)| live.stall.requester).collect()
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

    /// What is to be done to the fault that `stall` is about to raise.
    pub(crate) fn ruling(&mut self, stall: &Stall) -> FaultAct {
        let mut shape = match self.rule::<rules::Fault>(stall) {
            None => Shape::default(),
            Some((_, FaultAct::Shape(shape))) => shape,
            Some((_, FaultAct::Fail {})) => return FaultAct::Fail {},
        };
        let requester = self.qps.get(stall.requester).map(|qp| qp.st);
        if stall.kind.side() == Side::Requester || requester == Some(ServiceType::Uc) {
            shape.reply = Reply::Nothing;
        }
        if self.fault_scheme() == Scheme::Memory {
            shape.committed = Committed::Nothing;
        }
        FaultAct::Shape(shape)
    }

    /// Records a stall and reports it; `None` if no event queue takes page faults, so
    /// that nobody would ever resume it.
    pub(crate) fn stall(&mut self, stall: Stall, shape: &Shape) -> Option<Token> {
        self.events.queue_for(EventType::PAGE_FAULT)?;
        let scheme = self.fault_scheme();
        let token = self.faults.token();
        let events = stall.events(scheme, token, shape);
        let named = events.first()?.fault_token();
        self.count_fault(scheme, &stall);
        self.journal.trace(format_args!(
            "fault token={token} qp={} {:?} key={} va={:#x} len={:#x} missing {}:{:#x}+{:#x} {shape:?}",
            stall.qpn,
            stall.kind,
            stall.target.key,
            stall.target.va,
            stall.target.len,
            stall.missing.key,
            stall.missing.va,
            stall.missing.len
        ));
        let live = Live {
            stall,
            named,
            events: u32::try_from(events.len()).unwrap_or(u32::MAX),
            reply: shape.reply,
        };
        self.faults.live.insert(token, live);
        self.stalls_changed();
        for fault in events {
            // The queue sets the owner bit when it writes the entry.
            self.raise(fault.to_eqe(false));
        }
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
        let Some(live) = self.faults.live.remove(&token) else {
            self.unknown_resume(token, resume.error);
            return;
        };
        if resume.fault != live.named {
            self.violation(format_args!(
                "resume of page fault {token} names {:?}, the event named {:?}",
                resume.fault, live.named
            ));
        }
        self.faults.end(Ended {
            token,
            end: End::Resumed,
            events: live.events,
            resumes: 1,
            succeeded: !resume.error,
        });
        let stall = &live.stall;
        match (resume.error, live.holds_requester()) {
            (true, true) => self.fail_stalled(token, stall),
            (true, false) => self.refuse_repetition(token, stall),
            (false, true) => self.retry_stalled(token, stall),
            // The requester comes back by itself.
            (false, false) => {}
        }
        if resume.error {
            self.counters.resumes_error += 1;
        } else {
            self.counters.resumes_ok += 1;
        }
    }

    /// A resume of something that is not stalled: right only if its QP went away first.
    ///
    /// Linux' driver resumes with error for each event that fails, and in any case for the
    /// last one, so a stall of several events may be resumed once for each. A card has to
    /// put up with that, and loses nothing by it while the token names no other stall. It
    /// would mind a resume more than there were events, or two without error: only one event
    /// of a stall is marked as the last.
    fn unknown_resume(&mut self, token: Token, error: bool) {
        let issued = self.faults.issued(token);
        let Some(ended) = self.faults.ended(token) else {
            self.counters.resumes_unknown += 1;
            if issued {
                self.resumed_after_its_qp(token);
            } else {
                self.violation(format_args!("page fault {token} resumed, there was none"));
            }
            return;
        };
        ended.resumes += 1;
        let tolerable = ended.resumes <= ended.events && (error || !ended.succeeded);
        ended.succeeded |= !error;
        let ended = *ended;
        match ended.end {
            End::Discarded => {
                self.counters.resumes_unknown += 1;
                self.resumed_after_its_qp(token);
            }
            End::Resumed if tolerable => {
                self.counters.resumes_repeated += 1;
                self.journal.note(format_args!(
                    "resume {} of page fault {token}, which has {} events",
                    ended.resumes, ended.events
                ));
            }
            End::Resumed => {
                self.counters.resumes_unknown += 1;
                self.violation(format_args!("page fault {token} resumed twice"));
            }
        }
    }

    fn resumed_after_its_qp(&mut self, token: Token) {
        self.journal.note(format_args!(
            "page fault {token} resumed after its QP went away"
        ));
    }
}
