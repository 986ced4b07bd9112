// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Messages between connected QPs (RC, XRC, UC) and from a DC initiator to its targets, and the
//! responder's part in them.

use std::time::Duration;

use firmware_cmds::wqe::{RaddrSeg, WqeOpcode};
use firmware_cmds::{EventType, Mkey, Pdn, Qpn, Srqn};

use super::dynamic::BUSY_POLL;
use super::mover::{total, Blocked, End, Obstacle, Segment};
use super::{Failure, Op, Outcome, PeerFailure};
use crate::completion::{cqe_opcode, syndrome};
use crate::device::Device;
use crate::fault::StallKind;
use crate::mkey::{Access, Target};
use crate::qp::context as qpc;
use crate::qp::{Qp, RecvKind, ServiceType};
use crate::wqe::{Receive, Request};

/// The longest message, `log_max_msg` = 30.
const MAX_MESSAGE: u64 = 1 << 30;

/// How often a peer that may answer any time is tried when there is no ACK timeout.
const NO_TIMEOUT_POLL: Duration = Duration::from_millis(100);

/// Both ends of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// The requester.
    pub(super) qpn: Qpn,
    /// The responder.
    pub(super) peer: Qpn,
    /// SRQ that the message names (XRC).
    pub(super) xrc: Option<Srqn>,
}

impl Device {
    /// Does the next piece of a message.
    pub(super) fn connected(&mut self, qpn: Qpn, op: &mut Op) -> Outcome {
        if op.request.len > MAX_MESSAGE {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_LENGTH));
        }
        if let Some(old) = op.answer {
            return self.atomic_answer(qpn, op, old);
        }
        if let Some(failure) = op.refusal {
            return Outcome::Failed(failure);
        }
        let path = match self.path(qpn, &op.request) {
            Ok(Some(path)) => path,
            Ok(None) => {
                op.done = 0;
                return self.no_answer(qpn);
            }
            Err(failure) => return Outcome::Failed(failure),
        };
        let epoch = self.qps.get(path.peer).map(|peer| peer.epoch);
        if op.peer_epoch != epoch {
            // The peer has forgotten what it was sent so far.
            op.peer_epoch = epoch;
            op.done = 0;
        }
        let outcome = match (op.request.ctrl.opcode, op.request.raddr) {
            (WqeOpcode::SEND | WqeOpcode::SEND_IMM | WqeOpcode::SEND_INVAL, _) => {
                self.send(path, op)
            }
            (WqeOpcode::RDMA_WRITE | WqeOpcode::RDMA_WRITE_IMM, Some(raddr)) => {
                self.rdma_write(path, op, raddr)
            }
            (WqeOpcode::RDMA_READ, Some(raddr)) => self.rdma_read(path, op, raddr),
            (WqeOpcode::ATOMIC_CS | WqeOpcode::ATOMIC_FA, Some(raddr)) => {
                self.atomic(path, op, raddr)
            }
            _ => Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP)),
        };
        match (self.qps.get(qpn).map(|qp| qp.st), outcome) {
            // Nobody answers on UC: what goes wrong at the responder drops the message.
            (Some(ServiceType::Uc), Outcome::Failed(Failure { peer: Some(_), .. })) => {
                self.drop_receive(path.peer);
                Outcome::Done
            }
            (_, outcome) => outcome,
        }
    }

    /// The way to a QP's peer, if that listens.
    ///
    /// # Errors
    ///
    /// If the peer does not want to hear the QP.
    fn path(&mut self, qpn: Qpn, request: &Request) -> Result<Option<Path>, Failure> {
        let Some(qp) = self.qps.get(qpn) else {
            return Ok(None);
        };
        let peer = if qp.st == ServiceType::Dci {
            self.target_of(request)?
        } else {
            let peer = self.qps.get(qp.remote_qpn());
            let listens =
                |peer: &&Qp| peer.st == qp.st && peer.state.receives() && peer.remote_qpn() == qpn;
            peer.filter(listens).map(|peer| peer.qpn)
        };
        Ok(peer.map(|peer| Path {
            qpn,
            peer,
            xrc: request.xrc,
        }))
    }

    /// Nothing came back: tries again after the ACK timeout, as often as the QP says.
    pub(super) fn no_answer(&mut self, qpn: Qpn) -> Outcome {
        let now = self.now;
        let Some(qp) = self.qps.get_mut(qpn) else {
            return Outcome::Forgotten;
        };
        if qp.st == ServiceType::Uc {
            return Outcome::Done;
        }
        let code = qp.context.get(qpc::ACK_TIMEOUT);
        if code == 0 {
            return Outcome::Until(now + NO_TIMEOUT_POLL);
        }
        if qp.sq.timeouts > qp.context.get(qpc::RETRY_COUNT) {
            return Outcome::Failed(Failure::local(syndrome::RETRY_EXCEEDED));
        }
        qp.sq.timeouts += 1;
        self.counters.ack_timeouts += 1;
        Outcome::Until(now + Duration::from_nanos(4096 << code))
    }

    fn send(&mut self, path: Path, op: &mut Op) -> Outcome {
        let receive = match self.bind_receive(path) {
            Ok(receive) => receive,
            Err(outcome) => return outcome,
        };
        let refuse = |syndrome, receive| {
            Outcome::Failed(Failure {
                syndrome,
                peer: Some(PeerFailure {
                    qpn: path.peer,
                    receive: Some(receive),
                    event: None,
                }),
            })
        };
        let Some(list) = &receive.list else {
            return refuse(syndrome::REMOTE_OP, syndrome::LOCAL_QP_OP);
        };
        if op.request.len > total(list) {
            return refuse(syndrome::REMOTE_INVALID_REQUEST, syndrome::LOCAL_LENGTH);
        }
        let inval =
            (op.request.ctrl.opcode == WqeOpcode::SEND_INVAL).then(|| op.request.ctrl.mkey());
        if inval.is_some_and(|key| !self.may_invalidate(path, key)) {
            return refuse(syndrome::REMOTE_ACCESS, syndrome::LOCAL_QP_OP);
        }
        let kind = match receive.srq {
            Some(srqn) => StallKind::SharedReceive(srqn),
            None => StallKind::Receive,
        };
        if let Some(outcome) = self.transfer(path, op, list, Access::LocalWrite, kind) {
            return outcome;
        }
        if let Some(mkey) = inval.and_then(|key| self.mkeys.get_mut(key.index().get())) {
            mkey.mkc.free = true;
        }
        self.counters.msgs_send += 1;
        let opcode = match op.request.ctrl.opcode {
            WqeOpcode::SEND_IMM => cqe_opcode::RESP_SEND_IMM,
            WqeOpcode::SEND_INVAL => cqe_opcode::RESP_SEND_INV,
            _ => cqe_opcode::RESP_SEND,
        };
        self.complete_receive(path.peer, op, opcode);
        Outcome::Done
    }

    fn rdma_write(&mut self, path: Path, op: &mut Op, raddr: RaddrSeg) -> Outcome {
        if let Some(outcome) = self.disallowed(path, qpc::RWE) {
            return outcome;
        }
        let immediate = op.request.ctrl.opcode == WqeOpcode::RDMA_WRITE_IMM;
        if immediate {
            if let Err(outcome) = self.bind_receive(path) {
                return outcome;
            }
        }
        let list = [remote(raddr, op.request.len)];
        let moved = self.transfer(path, op, &list, Access::RemoteWrite, StallKind::Rdma);
        if let Some(outcome) = moved {
            return outcome;
        }
        self.counters.msgs_write += 1;
        if immediate {
            self.complete_receive(path.peer, op, cqe_opcode::RESP_WR_IMM);
        }
        Outcome::Done
    }

    fn rdma_read(&mut self, path: Path, op: &mut Op, raddr: RaddrSeg) -> Outcome {
        if let Some(outcome) = self.disallowed(path, qpc::RRE) {
            return outcome;
        }
        if has_inline(op) {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP));
        }
        let list = [remote(raddr, op.request.len)];
        let moved = self.transfer(path, op, &list, Access::RemoteRead, StallKind::Rdma);
        if let Some(outcome) = moved {
            return outcome;
        }
        self.counters.msgs_read += 1;
        Outcome::Done
    }

    /// An 8-byte atomic. It takes effect once, as soon as its target is there, whatever
    /// happens to its answer: the requester's buffer for that may be missing, but what the
    /// requester may not write ends the request before.
    fn atomic(&mut self, path: Path, op: &mut Op, raddr: RaddrSeg) -> Outcome {
        if let Some(outcome) = self.disallowed(path, qpc::RAE) {
            return outcome;
        }
        let Some(operands) = op.request.atomic else {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP));
        };
        if has_inline(op) || op.request.len != 8 {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_LENGTH));
        }
        if raddr.raddr.get() % 8 != 0 {
            return invalid_request(path);
        }
        let target = Target {
            key: raddr.rkey,
            va: raddr.raddr.get(),
            len: 8,
            access: Access::Atomic,
            pd: self.responder_pd(path),
            qpn: Some(path.peer),
        };
        let mut extents = Vec::new();
        if let Err(error) = self.mkeys.resolve(&target, 8, &mut extents) {
            let obstacle = Obstacle::new(target, error);
            return self.responder_blocked(path, op, StallKind::Rdma, obstacle);
        }
        // The address is aligned, but behind a KLM list that says little about the memory.
        let &[extent] = &extents[..] else {
            return invalid_request(path);
        };
        let local = self.local_end(path.qpn, &op.request.local, Access::LocalWrite);
        if let Err(obstacle @ Obstacle::Denied(..)) = self.probe(&local, 8) {
            return self.requester_blocked(path.qpn, op, StallKind::ReadOrAtomic, obstacle);
        }
        let done = match op.request.ctrl.opcode {
            WqeOpcode::ATOMIC_CS => {
                self.mem
                    .compare_exchange(extent.iova, operands.compare, operands.swap_add)
            }
            _ => self.mem.fetch_add(extent.iova, operands.swap_add),
        };
        let old = match done {
            Ok(old) => old,
            Err(error) => {
                let obstacle = Obstacle::Dma(extent, error);
                return self.responder_blocked(path, op, StallKind::Rdma, obstacle);
            }
        };
        op.answer = Some(old);
        self.counters.msgs_atomic += 1;
        self.counters.bytes_read += 8;
        self.counters.bytes_written += 8;
        self.atomic_answer(path.qpn, op, old)
    }

    /// Writes the old value of an atomic's target to where a READ of 8 bytes would.
    fn atomic_answer(&mut self, qpn: Qpn, op: &mut Op, old: u64) -> Outcome {
        let value = [Segment::Inline(old.to_ne_bytes().to_vec())];
        let source = End {
            list: &value,
            access: Access::LocalRead,
            pd: None,
            qpn,
        };
        let local = self.local_end(qpn, &op.request.local, Access::LocalWrite);
        match self.move_chunk(&source, &local, 8, 0, 8) {
            Ok(_) => Outcome::Done,
            Err(Blocked::Source(obstacle) | Blocked::Destination(obstacle)) => {
                self.requester_blocked(qpn, op, StallKind::ReadOrAtomic, obstacle)
            }
        }
    }

    pub(super) fn local_end<'a>(&self, qpn: Qpn, list: &'a [Segment], access: Access) -> End<'a> {
        End {
            list,
            access,
            pd: self.qps.get(qpn).and_then(Qp::pd),
            qpn,
        }
    }

    /// Domain that the responder's keys must belong to. An XRC target QP has the
    /// driver's own, so there the SRQ of the packet counts (kernel
    /// `drivers/infiniband/hw/mlx5/qp.c:create_xrc_tgt_qp`).
    pub(super) fn responder_pd(&self, path: Path) -> Option<Pdn> {
        match path.xrc {
            Some(srqn) => self.srq_pd(srqn),
            None => self.receive_pd(path.peer),
        }
    }

    /// Refuses an operation that the responder's QP does not have enabled.
    fn disallowed(&self, path: Path, right: qpc::Field) -> Option<Outcome> {
        let enabled = self.qps.get(path.peer)?.context.flag(right);
        (!enabled).then(|| invalid_request(path))
    }

    fn may_invalidate(&self, path: Path, key: Mkey) -> bool {
        let pd = self.responder_pd(path);
        self.mkeys.get(key.index().get()).is_some_and(|mkey| {
            mkey.mkc.en_rinval
                && !mkey.mkc.free
                && mkey.mkc.variant == key.variant()
                && pd.is_none_or(|pd| pd == mkey.mkc.pd)
                && mkey.belongs_to(Some(path.peer))
        })
    }

    /// Gives the message a receive WQE: the one it has already, or the next one.
    fn bind_receive(&mut self, path: Path) -> Result<Receive, Outcome> {
        let Some(peer) = self.qps.get(path.peer) else {
            return Err(Outcome::Forgotten);
        };
        if self.serves_another(path) {
            return Err(Outcome::Until(self.now + BUSY_POLL));
        }
        if peer.rq.bound.is_none() {
            let kind = path.xrc.map_or(peer.rq.kind, RecvKind::Shared);
            if let RecvKind::Shared(srqn) = kind {
                if !self.srqs.queues.contains_key(&srqn) {
                    return Err(invalid_request(path));
                }
            }
            match self.take_receive(path.peer, kind) {
                Ok(true) => {}
                Ok(false) => return Err(self.not_ready(path)),
                Err(error) => {
                    self.queue_lost(path.peer, error);
                    return Err(self.no_answer(path.qpn));
                }
            }
        }
        let peer = self.qps.get_mut(path.peer).ok_or(Outcome::Forgotten)?;
        peer.rq.serves = peer.dct.is_some().then_some(path.qpn);
        peer.rq.bound.clone().ok_or(Outcome::Forgotten)
    }
}

/// Refuses a request that makes no sense to the responder.
fn invalid_request(path: Path) -> Outcome {
    Outcome::Failed(Failure {
        syndrome: syndrome::REMOTE_INVALID_REQUEST,
        peer: Some(PeerFailure {
            qpn: path.peer,
            receive: None,
            event: Some(EventType::WQ_INVAL_REQ_ERROR),
        }),
    })
}

fn remote(raddr: RaddrSeg, len: u64) -> Segment {
    Segment::Memory {
        key: raddr.rkey,
        va: raddr.raddr.get(),
        len,
    }
}

fn has_inline(op: &Op) -> bool {
    op.request
        .local
        .iter()
        .any(|segment| matches!(segment, Segment::Inline(_)))
}
