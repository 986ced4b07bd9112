// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The requester: takes WQEs from the send queue and completes them.

use std::time::Duration;

use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::Qpn;

use super::{Failure, Op, Outcome, Ruled};
use crate::completion::{cqe_opcode, syndrome, Cqe};
use crate::device::Device;
use crate::qp::{Qp, ServiceType};
use crate::rules::points::{self as rules, SeenMessage, SeenUmr, WqeAct};
use crate::rules::words::Delay;
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
                Some(Op::new(*request, posted_at(qp).unwrap_or(self.now)))
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

    /// Does the next piece of a work request, as the rules let it.
    pub(super) fn advance(&mut self, qpn: Qpn, op: &mut Op) -> Outcome {
        let Some(st) = self.qps.get(qpn).map(|qp| qp.st) else {
            return Outcome::Forgotten;
        };
        if op.ruled == Ruled::NotYet {
            if let Some(outcome) = self.ask_rules(qpn, st, op) {
                return outcome;
            }
        }
        match op.ruled {
            Ruled::From(at) if at > self.now => Outcome::Until(at),
            Ruled::NotYet | Ruled::From(_) => self.carry_on(qpn, st, op),
            Ruled::InSilence => match self.carry_on(qpn, st, op) {
                Outcome::Done => Outcome::Forgotten,
                outcome => outcome,
            },
        }
    }

    /// Asks the rules about a work request whose turn it is; what it comes to, unless it is to
    /// be carried out.
    fn ask_rules(&mut self, qpn: Qpn, st: ServiceType, op: &mut Op) -> Option<Outcome> {
        op.ruled = Ruled::From(op.posted);
        let driver = st == ServiceType::RegUmr;
        let ruled = if !driver {
            self.rule::<rules::Message>(&SeenMessage {
                op: op.request.ctrl.opcode.0,
                qp: qpn,
            })
        } else if op.request.ctrl.opcode == WqeOpcode::UMR && self.rules.any::<rules::Umr>() {
            let seen = SeenUmr {
                mkey: op.request.ctrl.mkey(),
                kind: self.umr_kind(op),
            };
            self.rule::<rules::Umr>(&seen)
        } else {
            None
        };
        match ruled {
            None => None,
            Some((_, WqeAct::Delay(Delay(delay)))) => {
                op.ruled = Ruled::From(op.posted.saturating_add(delay));
                None
            }
            Some((_, WqeAct::Drop {})) if driver => {
                op.ruled = Ruled::InSilence;
                None
            }
            Some((_, WqeAct::Drop {})) if st.is_datagram() => Some(Outcome::Done),
            Some((_, WqeAct::Drop {})) => {
                op.ruled = Ruled::NotYet;
                Some(self.no_answer(qpn))
            }
            Some((_, WqeAct::Fail { syndrome })) => {
                Some(Outcome::Failed(Failure::local(WqeAct::failure(syndrome))))
            }
            Some((_, WqeAct::Complete {})) => Some(Outcome::Done),
            Some((rule, WqeAct::Hold(hold))) => Some(Outcome::Held(rule, hold)),
        }
    }

    /// Does the next piece of a work request.
    fn carry_on(&mut self, qpn: Qpn, st: ServiceType, op: &mut Op) -> Outcome {
        match op.request.ctrl.opcode {
            WqeOpcode::NOP => Outcome::Done,
            WqeOpcode::UMR => self.umr(qpn, op),
            _ if st == ServiceType::RegUmr => {
                Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP))
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
