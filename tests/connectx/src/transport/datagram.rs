// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Datagrams (UD and the management QPs): one packet each, dropped if the receiver
//! cannot take it.

use firmware_cmds::wqe::{AddressVector, BaseAv, Grh, WqeOpcode};
use firmware_cmds::Qpn;

use super::mover::{total, Blocked, End, Obstacle, Segment};
use super::{Failure, Op, Outcome};
use crate::completion::{cqe_opcode, syndrome, Cqe};
use crate::device::Device;
use crate::fault::StallKind;
use crate::mkey::Access;
use crate::qp::context as qpc;
use crate::qp::{Qp, ServiceType};

/// Room that a receive WQE leaves for the global routing header.
const GRH_LEN: u64 = 40;

/// Q_Keys with this bit are privileged: the sender's own is used instead.
const PRIVILEGED: u32 = 1 << 31;

impl Device {
    /// Sends a datagram.
    pub(super) fn datagram(&mut self, qpn: Qpn, op: &mut Op) -> Outcome {
        let Some(qp) = self.qps.get(qpn) else {
            return Outcome::Forgotten;
        };
        let (base, grh) = match op.request.av {
            Some(AddressVector::Extended(av)) => (av.base, Some(av.grh)),
            Some(AddressVector::Base(base)) => (base, None),
            None => return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP)),
        };
        if !matches!(
            op.request.ctrl.opcode,
            WqeOpcode::SEND | WqeOpcode::SEND_IMM
        ) {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP));
        }
        if op.request.len > 4096 {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_LENGTH));
        }
        let local = End {
            list: &op.request.local,
            access: Access::LocalRead,
            pd: qp.pd(),
            qpn,
        };
        // The sender's part is to read the payload, whoever receives it.
        if let Err(obstacle) = self.probe(&local, op.request.len) {
            return self.requester_blocked(qpn, op, StallKind::SendOrWrite, obstacle);
        }
        if let Some(peer) = self.datagram_peer(qpn, &base) {
            let grh = grh.filter(|grh| grh.present);
            if let Err(obstacle) = self.deliver_datagram(qpn, peer, op, grh.as_ref(), &base) {
                return self.requester_blocked(qpn, op, StallKind::SendOrWrite, obstacle);
            }
        }
        Outcome::Done
    }

    /// The QP that a datagram goes to, if it listens and the Q_Key is right.
    fn datagram_peer(&self, qpn: Qpn, base: &BaseAv) -> Option<Qpn> {
        let number = base.dqp_dct.get();
        let peer = match number {
            0 => self.qps.iter().find(|qp| qp.st == ServiceType::Qp0)?,
            1 => self.qps.iter().find(|qp| qp.st == ServiceType::Qp1)?,
            _ => self.qps.get(Qpn::truncate(number))?,
        };
        let [a, b, c, d, ..] = base.key.to_be_bytes();
        let named = u32::from_be_bytes([a, b, c, d]);
        let key = if named & PRIVILEGED == 0 {
            named
        } else {
            self.qps.get(qpn)?.context.get(qpc::Q_KEY)
        };
        let fits = peer.st.is_datagram()
            && peer.state.receives()
            && (peer.st != ServiceType::Ud || peer.context.get(qpc::Q_KEY) == key);
        fits.then_some(peer.qpn)
    }

    /// Puts a datagram into the receiver's next WQE, or drops it.
    ///
    /// # Errors
    ///
    /// What keeps the sender's memory from being read.
    fn deliver_datagram(
        &mut self,
        qpn: Qpn,
        peer: Qpn,
        op: &Op,
        grh: Option<&Grh>,
        base: &BaseAv,
    ) -> Result<(), Obstacle> {
        let Some(list) = self.datagram_buffer(peer, op.request.len) else {
            self.journal
                .note(format_args!("datagram from QP {qpn} to QP {peer} dropped"));
            return Ok(());
        };
        let header = grh.map(|grh| Segment::Inline(self.grh_bytes(grh, op.request.len)));
        // Without a GRH the receiver's first 40 bytes stay as they are.
        let (source, destination) = match header {
            Some(header) => {
                let mut source = vec![header];
                source.extend_from_slice(&op.request.local);
                (source, list)
            }
            None => (op.request.local.clone(), skip(&list, GRH_LEN)),
        };
        let from = End {
            list: &source,
            access: Access::LocalRead,
            pd: self.qps.get(qpn).and_then(Qp::pd),
            qpn,
        };
        let to = End {
            list: &destination,
            access: Access::LocalWrite,
            pd: self.receive_pd(peer),
            qpn: peer,
        };
        let len = total(&source);
        if len > 0 {
            match self.move_chunk(&from, &to, len, 0, len) {
                Ok(_) => {}
                Err(Blocked::Source(obstacle)) => return Err(obstacle),
                Err(Blocked::Destination(obstacle)) => {
                    // ODP on the receive side of UD is not offered: `mlx5_ib/odp.c` reports none.
                    self.journal
                        .note(format_args!("datagram from QP {qpn} to QP {peer} lost"));
                    self.report_obstacle(peer, obstacle);
                    self.fail_receive(peer, syndrome::LOCAL_PROT);
                    self.qp_to_error(peer);
                    return Ok(());
                }
            }
        }
        self.counters.msgs_send += 1;
        self.complete_datagram(qpn, peer, op, grh.is_some(), base);
        Ok(())
    }

    /// Gives a datagram the receiver's next WQE, if that has room for `len` bytes and the
    /// header.
    fn datagram_buffer(&mut self, peer: Qpn, len: u64) -> Option<Vec<Segment>> {
        let qp = self.qps.get(peer)?;
        if qp.rq.bound.is_none() {
            let kind = qp.rq.kind;
            if let Err(error) = self.take_receive(peer, kind) {
                self.queue_lost(peer, error);
            }
        }
        let receive = self.qps.get(peer)?.rq.bound.as_ref()?;
        let list = receive.list.clone()?;
        (total(&list) >= GRH_LEN + len).then_some(list)
    }

    fn complete_datagram(&mut self, qpn: Qpn, peer: Qpn, op: &Op, grh: bool, base: &BaseAv) {
        let sender = self.qps.get(qpn).map(|qp| qp.st);
        // Management QPs are known by their virtual numbers.
        let source_qpn = match sender {
            Some(ServiceType::Qp0) => Qpn::truncate(0),
            Some(ServiceType::Qp1) => Qpn::truncate(1),
            _ => qpn,
        };
        let Some(qp) = self.qps.get_mut(peer) else {
            return;
        };
        let Some(receive) = qp.rq.bound.take() else {
            return;
        };
        if receive.srq.is_none() {
            qp.rq.ci = qp.rq.ci.wrapping_add(1);
        }
        let immediate = op.request.ctrl.opcode == WqeOpcode::SEND_IMM;
        let cqe = Cqe {
            opcode: if immediate {
                cqe_opcode::RESP_SEND_IMM
            } else {
                cqe_opcode::RESP_SEND
            },
            qpn: peer,
            // QP1's receives carry the P_Key here (kernel `cq.c:handle_responder`).
            immediate: if qp.st == ServiceType::Qp1 {
                0xffff
            } else {
                op.request.ctrl.imm
            },
            byte_count: u32::try_from(op.request.len + GRH_LEN).unwrap_or(u32::MAX),
            wqe_counter: receive.index,
            source_lid: crate::caps::LID,
            source_qpn,
            service_level: base.sl.get(),
            grh,
            solicited: op.request.ctrl.solicited,
            ..Cqe::default()
        };
        let Some((cqn, user_index)) = self.receive_cq(peer, &receive) else {
            return;
        };
        self.push_cqe(cqn, &Cqe { user_index, ..cqe });
    }

    /// A global routing header as it arrives (IBTA 8.3).
    fn grh_bytes(&self, grh: &Grh, payload: u64) -> Vec<u8> {
        let traffic = 6 << 28 | u32::from(grh.tclass) << 20 | grh.flow_label.get();
        // Base and datagram transport header, and the invariant CRC.
        let length = u16::try_from(payload + 12 + 8 + 4).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&traffic.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0x1b, grh.hop_limit]);
        bytes.extend_from_slice(&crate::caps::GID);
        bytes.extend_from_slice(&grh.rgid);
        bytes
    }
}

/// A list without its first `len` bytes.
fn skip(list: &[Segment], mut len: u64) -> Vec<Segment> {
    let mut rest = Vec::new();
    for segment in list {
        let cut = len.min(segment.len());
        len -= cut;
        if let Segment::Memory { key, va, len } = *segment {
            if cut < len {
                rest.push(Segment::Memory {
                    key,
                    va: va.wrapping_add(cut),
                    len: len - cut,
                });
            }
        }
    }
    rest
}
