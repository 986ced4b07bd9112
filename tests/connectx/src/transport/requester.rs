// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The requester: takes WQEs from the send queue and completes them.

use std::time::Duration;

use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::Qpn;

use super::{Op, Outcome};
use crate::completion::{cqe_opcode, syndrome, Cqe};
use crate::device::Device;
use crate::qp::{Qp, ServiceType};
use crate::wqe::{self, Fetched, Request};

impl Device {
    /// Takes the next WQE of a QP; `None` if there is none or the QP failed over it.
    pub(super) fn next_op(&mut self, qpn: Qpn) -> Option<Op> {
        let qp = self.qps.get_mut(qpn)?;
        qp.sq.log_size?;
        let fetched = wqe::counter(&*self.mem, qp.send_dbr()).and_then(|pi| {
            qp.sq.pi = pi;
            if wqe::sq_pending(qp) == 0 {
                return Ok(None);
            }
            wqe::fetch(qp, &*self.mem).map(Some)
        });
        match fetched {
            Ok(None) => None,
            Ok(Some(Fetched::Request(request))) => {
                let posted = posted_at(qp);
                let delay = Duration::from_millis(self.knobs.umr_delay_ms);
                Some(Op {
                    not_before: (request.ctrl.opcode == WqeOpcode::UMR && !delay.is_zero())
                        .then(|| posted.unwrap_or(self.now).saturating_add(delay)),
                    request: *request,
                    done: 0,
                    peer_epoch: None,
                })
            }
            Ok(Some(Fetched::Malformed { wqebbs, opcode })) => {
                let index = qp.sq.ci;
                self.journal.note(format_args!(
                    "QP {qpn}: WQE {index} (opcode {opcode:#x}) is malformed"
                ));
                self.complete_error(qpn, index, wqebbs, opcode, syndrome::LOCAL_QP_OP);
                self.qp_to_error(qpn);
                None
            }
            Err(error) => {
                self.queue_lost(qpn, error);
                None
            }
        }
    }

    /// Does the next piece of a work request.
    pub(super) fn advance(&mut self, qpn: Qpn, op: &mut Op) -> Outcome {
        if let Some(at) = op.not_before.filter(|&at| at > self.now) {
            return Outcome::Until(at);
        }
        let Some(st) = self.qps.get(qpn).map(|qp| qp.st) else {
            return Outcome::Forgotten;
        };
        match op.request.ctrl.opcode {
            WqeOpcode::NOP => Outcome::Done,
            WqeOpcode::UMR => self.umr(qpn, op),
            _ if st == ServiceType::RegUmr => {
                Outcome::Failed(super::Failure::local(syndrome::LOCAL_QP_OP))
            }
            _ if st.is_datagram() => self.datagram(qpn, op),
            _ => self.connected(qpn, op),
        }
    }

    /// Completes a work request with success.
    pub(super) fn complete(&mut self, qpn: Qpn, request: &Request, report: bool) {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return;
        };
        qp.sq.ci = qp.sq.ci.wrapping_add(request.wqebbs);
        qp.sq.rnr_naks = 0;
        qp.sq.timeouts = 0;
        if !report || !request.signalled() {
            return;
        }
        let cqe = Cqe {
            opcode: cqe_opcode::REQ,
            send_opcode: request.ctrl.opcode.0,
            qpn,
            user_index: qp.user_index(),
            byte_count: u32::try_from(request.len).unwrap_or(u32::MAX),
            wqe_counter: request.index,
            ..Cqe::default()
        };
        let cqn = qp.send_cq();
        self.push_cqe(cqn, &cqe);
    }

    /// Completes the WQE at the head of the send queue with an error, signalled or not.
    pub(super) fn complete_error(
        &mut self,
        qpn: Qpn,
        index: u16,
        wqebbs: u16,
        opcode: u8,
        syndrome: u8,
    ) {
        let Some(qp) = self.qps.get_mut(qpn) else {
            return;
        };
        qp.sq.ci = index.wrapping_add(wqebbs);
        let cqe = Cqe {
            opcode: cqe_opcode::REQ_ERR,
            send_opcode: opcode,
            qpn,
            user_index: qp.user_index(),
            wqe_counter: index,
            syndrome,
            ..Cqe::default()
        };
        let cqn = qp.send_cq();
        self.push_cqe(cqn, &cqe);
    }
}

/// When the WQE at the head of the send queue was posted, if that was noted.
fn posted_at(qp: &mut Qp) -> Option<Duration> {
    while let Some(&(pi, at)) = qp.sq.doorbells.front() {
        let beyond = pi.wrapping_sub(qp.sq.ci);
        if beyond != 0 && beyond < 1 << 15 {
            return Some(at);
        }
        qp.sq.doorbells.pop_front();
    }
    None
}
