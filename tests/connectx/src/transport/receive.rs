// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The receive side: which WQE a message is given, from which queue, and how it completes.
//!
//! A WQE stays bound to its QP until the message is complete, however often that stalls:
//! the driver finds it in its slot meanwhile, and a shared queue hands it to nobody else.

use firmware_cmds::{Cqn, Eqe, EventType, Pdn, Qpn, Srqn};

use super::Op;
use crate::completion::{cqe_opcode, Cqe};
use crate::device::Device;
use crate::guest::DmaError;
use crate::qp::RecvKind;
use crate::srq::SrqKind;
use crate::wqe::{self, Receive};

impl Device {
    /// Gives the message that a QP receives the next WQE of a queue; `false` if there is
    /// none.
    ///
    /// # Errors
    ///
    /// If the queue cannot be read.
    pub(super) fn take_receive(&mut self, qpn: Qpn, kind: RecvKind) -> Result<bool, DmaError> {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return Ok(false);
        };
        let mem = &*self.mem;
        qp.rq.bound = match kind {
            RecvKind::Own => wqe::fetch_receive(qp, mem)?,
            RecvKind::None => None,
            RecvKind::Shared(srqn) => match self.srqs.queues.get_mut(&srqn) {
                Some(srq) => srq
                    .take(mem)?
                    .map(|(index, list)| Receive::parse(index, Some(srqn), &list)),
                None => None,
            },
        };
        let found = qp.rq.bound.is_some();
        if let RecvKind::Shared(srqn) = kind {
            self.check_srq_limit(srqn)?;
        }
        Ok(found)
    }

    /// Tells the driver, once, that a shared queue has fewer WQEs left than it asked for.
    fn check_srq_limit(&mut self, srqn: Srqn) -> Result<(), DmaError> {
        let Some(srq) = self.srqs.queues.get_mut(&srqn) else {
            return Ok(());
        };
        if srq.limit > 0 && srq.posted(&*self.mem)? < srq.limit {
            srq.limit = 0;
            self.raise(Eqe::about_srq(EventType::SRQ_RQ_LIMIT, srqn));
        }
        Ok(())
    }

    /// A shared queue is destroyed: the messages that were given a WQE of it have none now.
    pub(crate) fn shared_queue_gone(&mut self, srqn: Srqn) {
        for qp in self.qps.iter_mut() {
            if qp.rq.bound.as_ref().is_some_and(|r| r.srq == Some(srqn)) {
                qp.rq.bound = None;
            }
        }
        for requester in self.faults.discard_shared(srqn) {
            self.unstall(requester, None);
        }
    }

    /// Drops a message of UC; an own receive WQE stays where it is.
    pub(super) fn drop_receive(&mut self, peer: Qpn) {
        if let Some(peer) = self.qps.get_mut(peer) {
            if peer.rq.bound.as_ref().is_some_and(|r| r.srq.is_none()) {
                peer.rq.bound = None;
            }
        }
    }

    /// Completes the receive WQE that a message was given.
    pub(super) fn complete_receive(&mut self, peer: Qpn, op: &Op, opcode: u8) {
        let Some(qp) = self.qps.get_mut(peer) else {
            return;
        };
        let Some(receive) = qp.rq.bound.take() else {
            return;
        };
        if receive.srq.is_none() {
            qp.rq.ci = qp.rq.ci.wrapping_add(1);
        }
        let source_qpn = qp.rq.serves.unwrap_or(qp.remote_qpn());
        let Some((cqn, user_index)) = self.receive_cq(peer, &receive) else {
            return;
        };
        let cqe = Cqe {
            opcode,
            qpn: peer,
            user_index,
            immediate: op.request.ctrl.imm,
            byte_count: u32::try_from(op.request.len).unwrap_or(u32::MAX),
            wqe_counter: receive.index,
            source_qpn,
            solicited: op.request.ctrl.solicited,
            ..Cqe::default()
        };
        self.push_cqe(cqn, &cqe);
    }
    /// Fails the receive WQE that the message under way was given.
    pub(super) fn fail_receive(&mut self, qpn: Qpn, syndrome: u8) {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return;
        };
        let Some(receive) = qp.rq.bound.take() else {
            return;
        };
        if receive.srq.is_none() {
            qp.rq.ci = qp.rq.ci.wrapping_add(1);
        }
        self.push_receive_error(qpn, &receive, syndrome);
    }

    pub(super) fn push_receive_error(&mut self, qpn: Qpn, receive: &Receive, syndrome: u8) {
        let Some((cqn, user_index)) = self.receive_cq(qpn, receive) else {
            return;
        };
        let cqe = Cqe {
            opcode: cqe_opcode::RESP_ERR,
            qpn,
            user_index,
            wqe_counter: receive.index,
            syndrome,
            ..Cqe::default()
        };
        self.push_cqe(cqn, &cqe);
    }

    /// CQ and user index of a receive WQE's completion.
    pub(super) fn receive_cq(&self, qpn: Qpn, receive: &Receive) -> Option<(Cqn, u32)> {
        let qp = self.qps.get(qpn)?;
        let kind = receive
            .srq
            .and_then(|srqn| self.srqs.queues.get(&srqn))
            .map(|srq| srq.kind);
        Some(match kind {
            Some(SrqKind::Xrc {
                cqn, user_index, ..
            }) => (cqn, user_index),
            _ => (qp.recv_cq(), qp.user_index()),
        })
    }

    /// Domain that the receive side of a QP belongs to: its own, or that of the shared
    /// queue whose WQE the message was given.
    pub(super) fn receive_pd(&self, qpn: Qpn) -> Option<Pdn> {
        let qp = self.qps.get(qpn)?;
        match qp.rq.bound.as_ref().and_then(|receive| receive.srq) {
            Some(srqn) => self.srq_pd(srqn),
            None => qp.pd(),
        }
    }

    pub(super) fn srq_pd(&self, srqn: Srqn) -> Option<Pdn> {
        // The last number is no domain's, so no MKey belongs to it.
        let srq = self.srqs.queues.get(&srqn);
        Some(srq.map_or(Pdn::MAX, |srq| srq.pd))
    }
}
