// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The data path: what QPs do with what is posted to them. Every destination is local.
//!
//! A QP works on one work request at a time, in bounded steps; nothing ever blocks.
//! What cannot go on (a page fault, a peer that is not ready) leaves the request with
//! its QP and a note of what it waits for, and all other QPs go on.
//!
//! - `requester`: takes WQEs from the send queue and completes them.
//! - `connected`: RC, XRC, UC and DC messages, and the responder's part in them.
//! - `dynamic`: which target a DC message goes to, and what becomes of targets.
//! - `transfer`: moves the bytes of one, chunk by chunk.
//! - `blocked`: what keeps one from going on.
//! - `receive`: gives messages receive WQEs and completes those.
//! - `datagram`: UD messages.
//! - `flush`: what is left in the queues of a QP in error.
//! - [`mover`]: moves bytes between segment lists.

mod blocked;
mod connected;
mod datagram;
mod dynamic;
mod flush;
pub mod mover;
mod receive;
mod requester;
mod transfer;

use std::time::Duration;

use firmware_cmds::{Eqe, EventType, Qpn, Uar};
use serde::Serialize;

use crate::agenda::Work;
use crate::completion::syndrome;
use crate::device::Device;
use crate::fault::{Stall, StallKind, Token};
use crate::guest::DmaError;
use crate::inspect::show;
use crate::qp::context as qpc;
use crate::qp::{QpState, RecvKind, ServiceType, Wait};
use crate::rules::points::FaultAct;
use crate::rules::words::Hold;
use crate::wqe::{self, Receive, Request};

/// A work request in progress.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    /// What is to be done.
    pub request: Request,
    /// Bytes that have moved.
    pub done: u64,
    /// The peer's epoch in which they moved.
    pub peer_epoch: Option<u64>,
    /// When it was posted, or else when its turn came.
    #[serde(serialize_with = "show::debug")]
    pub posted: Duration,
    /// What the rules say of it.
    pub ruled: Ruled,
    /// What an atomic found at its target: it is done, and its answer on the way.
    pub answer: Option<u64>,
    /// The fault for which the responder refused it last, with an RNR NAK.
    pub refused_for: Option<Token>,
    /// How its next repetition fails: that fault was resumed with error.
    #[serde(serialize_with = "show::debug")]
    refusal: Option<Failure>,
    /// What is to be done to the fault that it is about to raise.
    fault: Option<FaultAct>,
}

impl Op {
    /// A work request that nothing was done of.
    fn new(request: Request, posted: Duration) -> Self {
        Self {
            request,
            done: 0,
            peer_epoch: None,
            posted,
            ruled: Ruled::NotYet,
            answer: None,
            refused_for: None,
            refusal: None,
            fault: None,
        }
    }
}

/// What the rules say of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ruled {
    /// They were not asked yet.
    NotYet,
    /// It is carried out from this time on.
    From(#[serde(serialize_with = "show::debug")] Duration),
    /// The same, but nobody is told when it is complete.
    InSilence,
}

/// Where a step left a work request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// It is complete.
    Done,
    /// It is complete, but nobody is told (a rule).
    Forgotten,
    /// There is more to do.
    More,
    /// It waits for a page.
    Stalled(Token),
    /// It waits for this time.
    Until(Duration),
    /// It waits for this rule to let go.
    Held(u64, Hold),
    /// It failed, and the QP with it.
    Failed(Failure),
}

/// How a work request failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// Syndrome at the requester.
    syndrome: u8,
    /// What happened to the responder.
    peer: Option<PeerFailure>,
}

impl Failure {
    /// A failure that only the requester notices.
    pub(crate) const fn local(syndrome: u8) -> Self {
        Self {
            syndrome,
            peer: None,
        }
    }

    /// The failure of an access whose page will not come.
    fn of(stall: &Stall) -> Self {
        match stall.kind {
            StallKind::SendOrWrite | StallKind::ReadOrAtomic => Self::local(syndrome::LOCAL_PROT),
            StallKind::Receive | StallKind::SharedReceive(_) => Self {
                syndrome: syndrome::REMOTE_OP,
                peer: Some(PeerFailure {
                    qpn: stall.qpn,
                    receive: Some(syndrome::LOCAL_PROT),
                    event: None,
                }),
            },
            StallKind::Rdma => Self {
                syndrome: syndrome::REMOTE_ACCESS,
                peer: Some(PeerFailure {
                    qpn: stall.qpn,
                    receive: None,
                    event: Some(EventType::WQ_ACCESS_ERROR),
                }),
            },
        }
    }
}

/// How a responder failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerFailure {
    qpn: Qpn,
    /// Syndrome of the receive WQE that the message was given.
    receive: Option<u8>,
    /// Asynchronous event.
    event: Option<EventType>,
}

impl Device {
    /// A send queue doorbell in a UAR page. Only notes it: the work is done in
    /// [`Device::step`].
    pub(crate) fn ring_sq(&mut self, uar: Uar, qpn: Qpn) {
        let Some(qp) = self.qps.get_mut(qpn) else {
            // A user may ring for a QP that is just being destroyed.
            self.counters.doorbells_refused += 1;
            self.journal.note(format_args!(
                "doorbell in UAR {uar} for QP {qpn}, which does not exist"
            ));
            return;
        };
        if qp.context.get(qpc::UAR_PAGE) != uar.get() {
            self.counters.doorbells_refused += 1;
            self.journal.note(format_args!(
                "doorbell of QP {qpn} in UAR {uar}, which is not its own"
            ));
            return;
        }
        if qp.st == ServiceType::RegUmr {
            // The delay of each UMR starts when it is posted, not when the one before
            // it completes.
            if let Ok(pi) = wqe::counter(&*self.mem, qp.send_dbr()) {
                qp.sq.doorbells.push_back((pi, self.now));
            }
        }
        self.qps.wake(qpn);
    }

    /// Does one piece of work of a QP that was ready.
    pub(crate) fn step_qp(&mut self, qpn: Qpn) {
        if self.run_qp(qpn) {
            self.qps.wake(qpn);
        }
    }

    /// Does one piece of work of a QP; `true` if there may be more at once.
    fn run_qp(&mut self, qpn: Qpn) -> bool {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return false;
        };
        match qp.state {
            QpState::Rts => {}
            QpState::Err => return self.flush(qpn),
            _ => return false,
        }
        match qp.sq.wait {
            Wait::Stall(_) | Wait::Rule => return false,
            Wait::Until(at) if at > self.now => {
                self.qps.wake_at(at, qpn);
                return false;
            }
            Wait::Until(_) | Wait::Nothing => qp.sq.wait = Wait::Nothing,
        }
        let taken = qp.sq.op.take();
        let Some(mut op) = taken.or_else(|| self.next_op(qpn)) else {
            return false;
        };
        let outcome = self.advance(qpn, &mut op);
        self.settle(qpn, op, outcome)
    }

    /// Acts on the outcome of a step; `true` if there may be more to do at once.
    fn settle(&mut self, qpn: Qpn, op: Op, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Done => self.complete(qpn, &op.request, true),
            Outcome::Forgotten => self.complete(qpn, &op.request, false),
            Outcome::Failed(failure) => {
                self.fail(qpn, &op.request, failure);
                return false;
            }
            Outcome::More | Outcome::Stalled(_) | Outcome::Until(_) | Outcome::Held(..) => {
                let Some(qp) = self.qps.get_mut(qpn) else {
                    return false;
                };
                qp.sq.op = Some(op);
                match outcome {
                    Outcome::Stalled(token) => {
                        qp.sq.wait = Wait::Stall(token);
                        return false;
                    }
                    Outcome::Until(at) => {
                        qp.sq.wait = Wait::Until(at);
                        self.qps.wake_at(at, qpn);
                        return false;
                    }
                    Outcome::Held(rule, hold) => {
                        qp.sq.wait = Wait::Rule;
                        self.hold(rule, hold, Work::Request(qpn));
                        return false;
                    }
                    _ => {}
                }
            }
        }
        true
    }

    /// A rule lets the work request go that it held back.
    pub(crate) fn unhold(&mut self, qpn: Qpn) {
        if let Some(qp) = self.qps.get_mut(qpn).filter(|qp| qp.sq.wait == Wait::Rule) {
            qp.sq.wait = Wait::Nothing;
            self.qps.wake(qpn);
        }
    }

    /// Fails a work request: its error completion, then the responder's, then both QPs
    /// to the error state with everything else that is posted flushed.
    fn fail(&mut self, qpn: Qpn, request: &Request, failure: Failure) {
        self.journal.note(format_args!(
            "QP {qpn}: WQE {} (opcode {:#x}) failed with syndrome {:#x}",
            request.index, request.ctrl.opcode.0, failure.syndrome
        ));
        self.complete_error(
            qpn,
            request.index,
            request.wqebbs,
            request.ctrl.opcode.0,
            failure.syndrome,
        );
        if let Some(peer) = failure.peer {
            if let Some(syndrome) = peer.receive {
                self.fail_receive(peer.qpn, syndrome);
            }
            // A target of dynamic connections stays for the others.
            if let Some(event) = peer.event.filter(|_| !self.is_target(peer.qpn)) {
                self.raise(Eqe::about_qp(event, peer.qpn));
            }
        }
        let mut qpns = vec![qpn];
        let peer = failure.peer.map(|peer| peer.qpn);
        qpns.extend(peer.filter(|peer| !self.is_target(*peer)));
        if self.order.later() {
            qpns.reverse();
        }
        for qpn in qpns {
            self.qp_to_error(qpn);
        }
    }

    /// A QP's own memory (queues, doorbell record) cannot be reached.
    fn queue_lost(&mut self, qpn: Qpn, error: DmaError) {
        self.violation(format_args!(
            "QP {qpn}: work queue or doorbell record: {error}"
        ));
        self.raise(Eqe::about_qp(EventType::WQ_CATAS_ERROR, qpn));
        self.abandon(qpn);
        if let Some(qp) = self.qps.get_mut(qpn) {
            qp.state = QpState::Err;
            qp.context.set(qpc::STATE, QpState::Err.code());
            // No flush: it would read the same memory.
            qp.lost = true;
        }
    }

    /// Drops what a QP has in progress and the stalls that belong to it.
    fn abandon(&mut self, qpn: Qpn) {
        self.release_targets(qpn);
        self.forget_work(|work| matches!(work, Work::Request(held) if *held == qpn));
        let waiting = self.faults.discard(qpn);
        if let Some(qp) = self.qps.get_mut(qpn) {
            qp.stop();
        }
        for requester in waiting {
            self.unstall(requester, None);
        }
    }

    /// Moves a QP to the error state and flushes it.
    pub(crate) fn qp_to_error(&mut self, qpn: Qpn) {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return;
        };
        if qp.state == QpState::Err {
            return;
        }
        let from = qp.state;
        let bound = qp.rq.bound.take();
        let shared = matches!(qp.rq.kind, RecvKind::Shared(_)) && qp.st != ServiceType::Xrc;
        self.abandon(qpn);
        if let Some(qp) = self.qps.get_mut(qpn) {
            qp.state = QpState::Err;
            qp.context.set(qpc::STATE, QpState::Err.code());
        }
        if from == QpState::Rst {
            return;
        }
        if let Some(receive @ Receive { srq: Some(_), .. }) = bound {
            self.push_receive_error(qpn, &receive, syndrome::FLUSH);
        }
        if shared {
            // Says that everything that the QP had taken from the SRQ is reported.
            self.report_all();
            self.raise(Eqe::about_qp(EventType::SRQ_LAST_WQE, qpn));
        }
        if self.order.later() || self.flush(qpn) {
            self.qps.wake(qpn);
        }
    }

    /// Empties a QP. When this returns nothing of it is under way.
    pub(crate) fn reset_qp(&mut self, qpn: Qpn) {
        self.report_all();
        self.abandon(qpn);
        self.forget_completions(qpn);
        if let Some(qp) = self.qps.get_mut(qpn) {
            qp.reset();
            qp.state = QpState::Rst;
            qp.context.set(qpc::STATE, QpState::Rst.code());
        }
    }

    /// Forgets completions of a QP that a rule puts off or holds back.
    fn forget_completions(&mut self, qpn: Qpn) {
        self.forget_work(|work| matches!(work, Work::Completion(_, cqe, _) if cqe.qpn == qpn));
    }

    /// Destroys a QP; `false` if there is none.
    pub(crate) fn destroy_qp(&mut self, qpn: Qpn) -> bool {
        self.report_all();
        self.abandon(qpn);
        self.forget_completions(qpn);
        self.qps.remove(qpn).is_some()
    }

    /// Ends the wait of a requester for a stall: for `token` only, or for any.
    pub(super) fn unstall(&mut self, requester: Qpn, token: Option<Token>) -> bool {
        let Some(qp) = self.qps.get_mut(requester) else {
            return false;
        };
        match qp.sq.wait {
            Wait::Stall(found) if token.is_none_or(|token| token == found) => {
                qp.sq.wait = Wait::Nothing;
                self.qps.wake(requester);
                true
            }
            _ => false,
        }
    }

    /// The page came: the access is tried again.
    pub(crate) fn retry_stalled(&mut self, token: Token, stall: &Stall) {
        self.unstall(stall.requester, Some(token));
    }

    /// The page will not come, and the requester was told to come again: then it fails.
    pub(crate) fn refuse_repetition(&mut self, token: Token, stall: &Stall) {
        let requester = self.qps.get_mut(stall.requester);
        let op = requester.and_then(|qp| qp.sq.op.as_mut());
        if let Some(op) = op.filter(|op| op.refused_for == Some(token)) {
            op.refusal = Some(Failure::of(stall));
        }
    }

    /// The page will not come: the access fails.
    pub(crate) fn fail_stalled(&mut self, token: Token, stall: &Stall) {
        if !self.unstall(stall.requester, Some(token)) {
            return;
        }
        let op = self
            .qps
            .get_mut(stall.requester)
            .and_then(|qp| qp.sq.op.take());
        if let Some(op) = op {
            self.fail(stall.requester, &op.request, Failure::of(stall));
        }
    }
}
