// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Dynamic connections: each work request of an initiator (DCI) names the target (DCT) that it
//! goes to, and a target serves every initiator that knows its key.
//!
//! A target has one responder here: while a message that was given a receive WQE is under way,
//! others that need one wait, as at a card all of whose responders are taken. What fails at a
//! target costs the initiator its QP and the message its receive WQE, and the target nothing.

use std::time::Duration;

use firmware_cmds::wqe::AddressVector;
use firmware_cmds::Qpn;

use super::connected::Path;
use super::Failure;
use crate::completion::syndrome;
use crate::device::Device;
use crate::qp::context as qpc;
use crate::qp::{QpState, ServiceType};
use crate::wqe::Request;

/// How often a target that serves another initiator is tried.
pub(super) const BUSY_POLL: Duration = Duration::from_micros(500);

impl Device {
    /// Whether this is a target.
    pub(super) fn is_target(&self, qpn: Qpn) -> bool {
        self.qps.get(qpn).is_some_and(|qp| qp.dct.is_some())
    }

    /// The target that a work request of an initiator names, if it listens.
    ///
    /// # Errors
    ///
    /// If the WQE names none, or not by its key: then the access is refused. What a card says to a
    /// wrong key the PRM leaves open.
    pub(super) fn target_of(&mut self, request: &Request) -> Result<Option<Qpn>, Failure> {
        let base = match request.av {
            Some(AddressVector::Extended(av)) => av.base,
            Some(AddressVector::Base(base)) => base,
            None => return Err(Failure::local(syndrome::LOCAL_QP_OP)),
        };
        let Some(qp) = self.qps.get_mut(base.dqp_dct) else {
            return Ok(None);
        };
        let listens = qp.state.receives();
        match &mut qp.dct {
            Some(dct) if listens && dct.key == base.key => Ok(Some(base.dqp_dct)),
            Some(dct) if listens => {
                dct.violations = dct.violations.saturating_add(1);
                self.journal
                    .note(format_args!("DCT {}: wrong access key", base.dqp_dct));
                Err(Failure::local(syndrome::REMOTE_ACCESS))
            }
            _ => Ok(None),
        }
    }

    /// Whether the responder is a target that is busy with another initiator's message.
    pub(super) fn serves_another(&self, path: Path) -> bool {
        self.qps.get(path.peer).is_some_and(|peer| {
            peer.dct.is_some() && peer.rq.bound.is_some() && peer.rq.serves != Some(path.qpn)
        })
    }

    /// What targets had of a message whose initiator is gone is flushed.
    pub(super) fn release_targets(&mut self, initiator: Qpn) {
        if self.qps.get(initiator).map(|qp| qp.st) != Some(ServiceType::Dci) {
            return;
        }
        let serving = |qp: &&crate::qp::Qp| qp.rq.serves == Some(initiator);
        let targets: Vec<Qpn> = self.qps.iter().filter(serving).map(|qp| qp.qpn).collect();
        for target in targets {
            self.fail_receive(target, syndrome::FLUSH);
        }
    }

    /// A target takes nothing from now on, and gives up the message under way. When this returns
    /// its completions are written.
    pub(crate) fn drain_target(&mut self, dctn: Qpn) {
        self.fail_receive(dctn, syndrome::FLUSH);
        self.abandon(dctn);
        if let Some(qp) = self.qps.get_mut(dctn) {
            qp.state = QpState::Err;
            qp.context.set(qpc::STATE, QpState::Err.code());
        }
        self.report_all();
    }
}
