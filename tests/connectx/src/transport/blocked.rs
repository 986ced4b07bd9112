// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What keeps a message from going on: a page fault, a responder that is not ready, an access
//! that is refused.

use std::time::Duration;

use firmware_cmds::{EventType, Qpn};

use super::connected::Path;
use super::mover::Obstacle;
use super::{Failure, Op, Outcome, PeerFailure};
use crate::completion::syndrome;
use crate::device::Device;
use crate::fault::shape::Reply;
use crate::fault::{Side, Stall, StallKind, Token};
use crate::mkey::{Missing, Target};
use crate::qp::context as qpc;
use crate::qp::{Qp, ServiceType};
use crate::rules::points::FaultAct;

/// Shortest time between two looks at a receive queue that was empty. The shortest
/// RNR timer is 10 us; a responder may always take longer.
const MIN_RNR_DELAY: Duration = Duration::from_micros(200);

impl Device {
    /// The peer has no receive WQE, or a page fault: an RNR NAK.
    pub(super) fn not_ready(&mut self, path: Path) -> Outcome {
        self.counters.rnr_naks += 1;
        let timer = self
            .qps
            .get(path.peer)
            .map_or(0, |peer| peer.context.get(qpc::MIN_RNR_NAK));
        let now = self.now;
        let Some(qp) = self.qps.get_mut(path.qpn) else {
            return Outcome::Forgotten;
        };
        if qp.st == ServiceType::Uc {
            return Outcome::Done;
        }
        let limit = qp.context.get(qpc::RNR_RETRY);
        // 7 is without limit.
        if limit != 7 {
            if qp.sq.rnr_naks >= limit {
                return Outcome::Failed(Failure::local(syndrome::RNR_EXCEEDED));
            }
            qp.sq.rnr_naks += 1;
        }
        Outcome::Until(now + rnr_delay(timer).max(MIN_RNR_DELAY))
    }

    /// The stall of an access at QP `at`, for a work request of QP `requester`.
    pub(super) fn stall_of(
        &self,
        at: Qpn,
        requester: Qpn,
        op: &Op,
        kind: StallKind,
        target: Target,
        missing: Missing,
    ) -> Stall {
        let qp = self.qps.get(at);
        let bound = qp.and_then(|qp| qp.rq.bound.as_ref());
        Stall {
            qpn: at,
            requester,
            kind,
            wqe_index: match kind.side() {
                Side::Requester => op.request.index,
                Side::Responder => bound.map_or(0, |receive| receive.index),
            },
            target,
            missing,
            moved: op.done,
            mtu: qp.map_or(0, Qp::mtu),
        }
    }

    /// The requester's memory is in the way.
    pub(super) fn requester_blocked(
        &mut self,
        qpn: Qpn,
        op: &mut Op,
        kind: StallKind,
        obstacle: Obstacle,
    ) -> Outcome {
        if let Obstacle::Fault(target, missing) = obstacle {
            let stall = self.stall_of(qpn, qpn, op, kind, target, missing);
            if let Some((token, _)) = self.raise_fault(op, stall) {
                return Outcome::Stalled(token);
            }
        }
        self.report_obstacle(qpn, obstacle);
        Outcome::Failed(Failure::local(syndrome::LOCAL_PROT))
    }

    /// The responder's memory is in the way.
    pub(super) fn responder_blocked(
        &mut self,
        path: Path,
        op: &mut Op,
        kind: StallKind,
        obstacle: Obstacle,
    ) -> Outcome {
        if let Obstacle::Fault(target, missing) = obstacle {
            let stall = self.stall_of(path.peer, path.qpn, op, kind, target, missing);
            if let Some(outcome) = self.responder_faults(path, op, stall) {
                return outcome;
            }
        }
        self.report_obstacle(path.peer, obstacle);
        let (syndrome, receive, event) = match kind {
            StallKind::Rdma => (
                syndrome::REMOTE_ACCESS,
                None,
                Some(EventType::WQ_ACCESS_ERROR),
            ),
            _ => (syndrome::REMOTE_OP, Some(syndrome::LOCAL_PROT), None),
        };
        Outcome::Failed(Failure {
            syndrome,
            peer: Some(PeerFailure {
                qpn: path.peer,
                receive,
                event,
            }),
        })
    }

    /// Raises the fault of a responder, and answers the requester or leaves it waiting. `None`
    /// if nobody hears of the fault.
    fn responder_faults(&mut self, path: Path, op: &mut Op, stall: Stall) -> Option<Outcome> {
        if !self.is_covered(op, &stall) {
            let (token, reply) = self.raise_fault(op, stall)?;
            if reply == Reply::Nothing {
                return Some(Outcome::Stalled(token));
            }
            op.refused_for = Some(token);
        }
        self.counters.rnr_naks_fault += 1;
        Some(self.not_ready(path))
    }

    /// Whether the request was refused for a fault before, and this is no further one.
    pub(super) fn is_covered(&self, op: &Op, stall: &Stall) -> bool {
        stall.kind.side() == Side::Responder
            && op
                .refused_for
                .is_some_and(|token| self.faults.covers_repetition(token))
    }

    /// What is to be done to the fault that `stall` is about to raise; rules are asked once
    /// for each.
    pub(super) fn ruling_of(&mut self, op: &mut Op, stall: &Stall) -> FaultAct {
        if op.fault.is_none() {
            op.fault = Some(self.ruling(stall));
        }
        op.fault.unwrap_or(FaultAct::Fail {})
    }

    /// Raises a fault; `None` if nobody hears of it.
    fn raise_fault(&mut self, op: &mut Op, stall: Stall) -> Option<(Token, Reply)> {
        let ruling = self.ruling_of(op, &stall);
        op.fault = None;
        match ruling {
            FaultAct::Fail {} => None,
            FaultAct::Shape(shape) => Some((self.stall(stall, &shape)?, shape.reply)),
        }
    }

    /// Writes down why an access was refused. A valid translation to memory that is gone
    /// is the one thing that a driver must never leave behind.
    pub(super) fn report_obstacle(&mut self, qpn: Qpn, obstacle: Obstacle) {
        if matches!(obstacle, Obstacle::Denied(..)) {
            self.counters.denied_accesses += 1;
        }
        match obstacle {
            Obstacle::Fault(target, missing) => self.journal.note(format_args!(
                "QP {qpn}: {:?} through MKey {} at {:#x}: page fault that nobody could serve",
                target.access, missing.key, missing.va
            )),
            Obstacle::Denied(target, denied) => self.journal.note(format_args!(
                "QP {qpn}: {:?} through MKey {} at {:#x}+{:#x}: {denied}",
                target.access, target.key, target.va, target.len
            )),
            Obstacle::Dma(extent, error) => self.violation(format_args!(
                "access through a translation that was taken back: QP {qpn} MKey {} va {:#x} \
                 iova {:#x} ({error})",
                extent.key, extent.va, extent.iova
            )),
        }
    }
}

/// The RNR NAK timer of a code, IBTA table 45.
fn rnr_delay(code: u32) -> Duration {
    // Hundredths of a millisecond; code 0 is the longest.
    const TIMERS: [u64; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    let index = usize::try_from(code & 31).unwrap_or(0);
    Duration::from_micros(TIMERS[index] * 10)
}
