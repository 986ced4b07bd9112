// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queue pairs: context, state and the position in both queues.

pub mod context;
pub mod transition;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use firmware_cmds::{Cqn, DmaAddr, Pdn, Qpn, Srqn, Xrcdn};
use serde::Serialize;

use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_QP;
use crate::fault::Token;
use crate::guest::offset;
use crate::inspect::show;
use crate::numbers::Numbers;
use crate::transport::Op;
use crate::wqe::Receive;
use context::{self as qpc, QpContext};

/// Bytes of a send WQE basic block.
pub const WQEBB: u64 = 64;

/// First QP number handed out: 0 and 1 are the virtual numbers of the MAD QPs.
const FIRST_QPN: u32 = 0x40;

/// State of a QP, kernel `include/linux/mlx5/qp.h:mlx5_qp_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum QpState {
    /// Reset.
    Rst,
    /// Initialised: receives may be posted.
    Init,
    /// Ready to receive.
    Rtr,
    /// Ready to send.
    Rts,
    /// Send queue error.
    SqErr,
    /// Send queue drained.
    SqDrained,
    /// Error: everything posted is flushed.
    Err,
}

impl QpState {
    /// The state's code in the context.
    pub fn code(self) -> u32 {
        match self {
            Self::Rst => 0,
            Self::Init => 1,
            Self::Rtr => 2,
            Self::Rts => 3,
            Self::SqErr => 4,
            Self::SqDrained => 5,
            Self::Err => 6,
        }
    }

    /// Whether messages are taken from the peer.
    pub fn receives(self) -> bool {
        matches!(self, Self::Rtr | Self::Rts | Self::SqDrained | Self::SqErr)
    }
}

/// Service type, kernel `include/linux/mlx5/qp.h:MLX5_QP_ST_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ServiceType {
    /// Reliable connection.
    Rc,
    /// Unreliable connection.
    Uc,
    /// Unreliable datagram.
    Ud,
    /// Extended reliable connection.
    Xrc,
    /// Initiator of dynamic connections: each work request names its target.
    Dci,
    /// Target of dynamic connections, which is no QP to the driver.
    Dct,
    /// Management, QP 0.
    Qp0,
    /// Management, QP 1.
    Qp1,
    /// UMR of the driver.
    RegUmr,
}

impl ServiceType {
    /// Decodes the context's field, `None` for a type the device does not have.
    pub fn parse(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Rc,
            1 => Self::Uc,
            2 => Self::Ud,
            3 => Self::Xrc,
            5 => Self::Dci,
            7 => Self::Qp0,
            8 => Self::Qp1,
            0xc => Self::RegUmr,
            _ => return None,
        })
    }

    /// Whether it sends datagrams.
    pub fn is_datagram(self) -> bool {
        matches!(self, Self::Ud | Self::Qp0 | Self::Qp1)
    }
}

/// Where receive WQEs come from (`rq_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RecvKind {
    /// The QP's own queue.
    Own,
    /// A shared queue.
    Shared(#[serde(serialize_with = "show::debug")] Srqn),
    /// Nowhere.
    None,
}

/// What holds the send queue up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Wait {
    /// Nothing.
    #[default]
    Nothing,
    /// A page fault, at this QP or at its peer.
    Stall(Token),
    /// A timer.
    Until(#[serde(serialize_with = "show::debug")] Duration),
    /// A rule that holds the work request in progress back.
    Rule,
}

/// The send side.
#[derive(Debug, Default, Serialize)]
pub struct SendQueue {
    /// log2 of the number of WQEBBs, `None` without a send queue.
    pub log_size: Option<u32>,
    /// First byte of the queue in the QP's buffer.
    pub offset: u64,
    /// WQEBBs done.
    pub ci: u16,
    /// WQEBBs posted, as last read from the doorbell record.
    pub pi: u16,
    /// The work request in progress.
    pub op: Option<Op>,
    /// What it waits for.
    pub wait: Wait,
    /// RNR NAKs that the work request in progress has met.
    pub rnr_naks: u32,
    /// Timeouts that the work request in progress has met.
    pub timeouts: u32,
    /// On the UMR QP: when which WQEBBs were posted, the start of a UMR's delay by a rule.
    #[serde(serialize_with = "show::debug")]
    pub doorbells: VecDeque<(u16, Duration)>,
}

/// The receive side.
#[derive(Debug, Serialize)]
pub struct RecvQueue {
    /// Where WQEs come from.
    pub kind: RecvKind,
    /// log2 of the number of WQEs, `None` without an own queue.
    pub log_size: Option<u32>,
    /// log2 of the size of a WQE in bytes.
    pub log_stride: u32,
    /// WQEs done.
    pub ci: u16,
    /// WQEs posted, as last read from the doorbell record by a flush.
    pub pi: u16,
    /// The WQE that the message under way was given.
    pub bound: Option<Receive>,
    /// Whose message that is, at a DC target.
    #[serde(serialize_with = "show::debug")]
    pub serves: Option<Qpn>,
}

/// What only a target of dynamic connections has.
#[derive(Clone, Debug, Serialize)]
pub struct Dct {
    /// Initiators must know it.
    #[serde(serialize_with = "show::hex")]
    pub key: u64,
    /// Messages of initiators that did not.
    pub violations: u32,
    /// Context as created, for the query.
    #[serde(skip)]
    pub context: Vec<u8>,
}

/// A queue pair, or a target of dynamic connections.
#[derive(Debug, Serialize)]
pub struct Qp {
    /// Its number.
    #[serde(serialize_with = "show::debug")]
    pub qpn: Qpn,
    /// Service type.
    pub st: ServiceType,
    /// State.
    pub state: QpState,
    /// The context as the driver sees it.
    pub context: QpContext,
    /// Set at a target of dynamic connections.
    pub dct: Option<Dct>,
    /// The pages of both queues.
    pub buffer: QueueBuffer,
    /// The doorbell record, if it is in a umem; otherwise the context says where it is.
    #[serde(serialize_with = "show::debug")]
    pub record: Option<DmaAddr>,
    /// Umems that the queues and the doorbell record are in.
    pub umems: Vec<u32>,
    /// Send side.
    pub sq: SendQueue,
    /// Receive side.
    pub rq: RecvQueue,
    /// Counts resets and errors: what was bound to an earlier life is void.
    pub epoch: u64,
    /// A flush read the doorbell records and is not done with what they said.
    pub flushing: bool,
    /// Its queues or doorbell record cannot be reached: nothing of it works until a reset.
    pub lost: bool,
}

/// Bytes of both queues, and the first byte of the send queue, that a context asks for.
///
/// Returns `None` for a queue type the device does not have.
pub fn buffer_layout(context: &QpContext) -> Option<(u64, u64)> {
    let rq = match context.get(qpc::RQ_TYPE) {
        0 => 1 << (context.get(qpc::LOG_RQ_SIZE) + context.get(qpc::LOG_RQ_STRIDE) + 4),
        1 | 3 => 0,
        _ => return None,
    };
    let sq = if context.flag(qpc::NO_SQ) {
        0
    } else {
        WQEBB << context.get(qpc::LOG_SQ_SIZE)
    };
    Some((rq + sq, rq))
}

impl Qp {
    /// Makes a QP in state RST, in a buffer as [`buffer_layout`] says.
    ///
    /// Returns `None` for a service type or queue type the device does not have.
    pub fn new(qpn: Qpn, mut context: QpContext, buffer: QueueBuffer) -> Option<Self> {
        let st = ServiceType::parse(context.get(qpc::ST))?;
        let (_, offset) = buffer_layout(&context)?;
        let kind = match context.get(qpc::RQ_TYPE) {
            0 => RecvKind::Own,
            // A DCI receives nothing, whatever queue the driver names.
            1 if st != ServiceType::Dci => RecvKind::Shared(Srqn::truncate(context.get(qpc::SRQN))),
            _ => RecvKind::None,
        };
        let rq_size = (kind == RecvKind::Own).then(|| context.get(qpc::LOG_RQ_SIZE));
        let sq_size = (!context.flag(qpc::NO_SQ)).then(|| context.get(qpc::LOG_SQ_SIZE));
        context.set(qpc::STATE, QpState::Rst.code());
        Some(Self {
            qpn,
            st,
            state: QpState::Rst,
            dct: None,
            buffer,
            record: None,
            umems: Vec::new(),
            sq: SendQueue {
                log_size: sq_size,
                offset,
                ..SendQueue::default()
            },
            rq: RecvQueue {
                kind,
                log_size: rq_size,
                log_stride: context.get(qpc::LOG_RQ_STRIDE) + 4,
                ci: 0,
                pi: 0,
                bound: None,
                serves: None,
            },
            context,
            epoch: 0,
            flushing: false,
            lost: false,
        })
    }

    /// Makes a target of dynamic connections: it listens from the start, takes its receives from
    /// a shared queue, and sends nothing.
    pub fn target(qpn: Qpn, mut context: QpContext, dct: Dct) -> Self {
        context.set(qpc::STATE, QpState::Rtr.code());
        Self {
            qpn,
            st: ServiceType::Dct,
            state: QpState::Rtr,
            dct: Some(dct),
            buffer: QueueBuffer::default(),
            record: None,
            umems: Vec::new(),
            sq: SendQueue::default(),
            rq: RecvQueue {
                kind: RecvKind::Shared(Srqn::truncate(context.get(qpc::SRQN))),
                log_size: None,
                log_stride: 0,
                ci: 0,
                pi: 0,
                bound: None,
                serves: None,
            },
            context,
            epoch: 0,
            flushing: false,
            lost: false,
        }
    }

    /// Forgets what is in progress and starts a new epoch; the queues' positions stay.
    pub fn stop(&mut self) {
        self.epoch += 1;
        self.sq.op = None;
        self.sq.wait = Wait::Nothing;
        self.sq.rnr_naks = 0;
        self.sq.timeouts = 0;
        self.rq.bound = None;
        self.flushing = false;
    }

    /// [`Qp::stop`], and both queues are empty.
    pub fn reset(&mut self) {
        self.stop();
        self.sq.ci = 0;
        self.sq.pi = 0;
        self.sq.doorbells.clear();
        self.rq.ci = 0;
        self.lost = false;
    }

    /// Address of the receive counter of the doorbell record.
    pub fn recv_dbr(&self) -> DmaAddr {
        self.record.unwrap_or(DmaAddr::new(self.context.dbr_addr()))
    }

    /// Address of the send counter of the doorbell record.
    pub fn send_dbr(&self) -> DmaAddr {
        offset(self.recv_dbr(), 4)
    }

    /// Protection domain that keys are compared with. UMR work of the driver has none:
    /// that QP is created in domain 0 (kernel `umr.c:mlx5r_umr_resource_init`).
    pub fn pd(&self) -> Option<Pdn> {
        (self.st != ServiceType::RegUmr).then(|| Pdn::truncate(self.context.get(qpc::PD)))
    }

    /// Its XRC domain, if it is of that kind: the driver writes one into every context.
    pub fn xrcd(&self) -> Option<Xrcdn> {
        (self.st == ServiceType::Xrc).then(|| Xrcdn::truncate(self.context.get(qpc::XRCD)))
    }

    /// CQ of the send queue.
    pub fn send_cq(&self) -> Cqn {
        Cqn::truncate(self.context.get(qpc::CQN_SND))
    }

    /// CQ of the receive queue.
    pub fn recv_cq(&self) -> Cqn {
        Cqn::truncate(self.context.get(qpc::CQN_RCV))
    }

    /// What CQEs name the QP by.
    pub fn user_index(&self) -> u32 {
        self.context.get(qpc::USER_INDEX)
    }

    /// The peer's number.
    pub fn remote_qpn(&self) -> Qpn {
        Qpn::truncate(self.context.get(qpc::REMOTE_QPN))
    }

    /// Path MTU in bytes.
    pub fn mtu(&self) -> u32 {
        128 << self.context.get(qpc::MTU).clamp(1, 5)
    }
}

/// Every QP, by number.
#[derive(Debug, Serialize)]
pub struct Qps {
    #[serde(flatten, serialize_with = "show::by_number")]
    by_number: BTreeMap<Qpn, Qp>,
    numbers: Numbers,
    /// Numbers that no QP gets.
    #[serde(serialize_with = "show::debug")]
    reserved: BTreeSet<Qpn>,
    /// QPs with work to do, each at most once.
    #[serde(serialize_with = "show::debug")]
    ready: VecDeque<Qpn>,
    /// When to look at which QP again, each at most once.
    #[serde(serialize_with = "show::debug")]
    timers: BTreeSet<(Duration, Qpn)>,
    /// The same by QP.
    #[serde(serialize_with = "show::debug")]
    #[serde(skip)]
    due: BTreeMap<Qpn, Duration>,
}

impl Default for Qps {
    fn default() -> Self {
        Self {
            by_number: BTreeMap::new(),
            numbers: Numbers::below(FIRST_QPN, LOG_MAX_QP),
            reserved: BTreeSet::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            due: BTreeMap::new(),
        }
    }
}

impl Qps {
    /// A number that is not in use, `None` if all are.
    pub fn number(&mut self) -> Option<Qpn> {
        let (by_number, reserved) = (&self.by_number, &self.reserved);
        let used = |n| {
            let qpn = Qpn::truncate(n);
            by_number.contains_key(&qpn) || reserved.contains(&qpn)
        };
        self.numbers.take(used).map(Qpn::truncate)
    }

    /// A number that no QP gets until it is released; `None` if all are in use.
    pub fn reserve(&mut self) -> Option<Qpn> {
        let qpn = self.number()?;
        self.reserved.insert(qpn);
        Some(qpn)
    }

    /// Ends that; `false` if it was not reserved.
    pub fn release(&mut self, qpn: Qpn) -> bool {
        self.reserved.remove(&qpn)
    }

    /// How many numbers are reserved.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reserved.len()
    }

    /// Adds a QP under its own number.
    pub fn insert(&mut self, qp: Qp) {
        self.by_number.insert(qp.qpn, qp);
    }

    /// Removes a QP; `None` if there is none.
    pub fn remove(&mut self, qpn: Qpn) -> Option<Qp> {
        self.ready.retain(|&ready| ready != qpn);
        if let Some(at) = self.due.remove(&qpn) {
            self.timers.remove(&(at, qpn));
        }
        self.by_number.remove(&qpn)
    }

    /// The QP with this number.
    pub fn get(&self, qpn: Qpn) -> Option<&Qp> {
        self.by_number.get(&qpn)
    }

    /// The QP with this number.
    pub fn get_mut(&mut self, qpn: Qpn) -> Option<&mut Qp> {
        self.by_number.get_mut(&qpn)
    }

    /// Every QP, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Qp> {
        self.by_number.values()
    }

    /// Every QP, by number.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Qp> {
        self.by_number.values_mut()
    }

    /// Number of QPs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// Has a QP looked at in this or the next step.
    pub fn wake(&mut self, qpn: Qpn) {
        if !self.ready.contains(&qpn) {
            self.ready.push_back(qpn);
        }
    }

    /// Has a QP looked at no later than `at`. A QP that was to be looked at earlier still
    /// is, and then waits for the rest: it has one timer, however often this is called.
    pub fn wake_at(&mut self, at: Duration, qpn: Qpn) {
        match self.due.get(&qpn) {
            Some(&due) if due <= at => return,
            Some(&due) => {
                self.timers.remove(&(due, qpn));
            }
            None => {}
        }
        self.due.insert(qpn, at);
        self.timers.insert((at, qpn));
    }

    /// Wakes the QPs whose timers expired by `now`.
    pub(crate) fn expire(&mut self, now: Duration) {
        while let Some(&(at, qpn)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.due.remove(&qpn);
            self.wake(qpn);
        }
    }

    /// How many QPs have work to do.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes one of the QPs with work to do, 0 for the one that waits longest.
    pub(crate) fn take_ready(&mut self, index: usize) -> Option<Qpn> {
        self.ready.remove(index)
    }

    /// When the next timer expires.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.timers.first().map(|&(at, _)| at)
    }
}
