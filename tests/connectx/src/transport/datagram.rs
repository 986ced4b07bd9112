// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Datagrams (UD and the management QPs): one packet each, dropped if the receiver
//! cannot take it. To a multicast group everybody listens who is attached to it, the sender
//! included unless it says otherwise; requests to the subnet administrator are answered on the spot.

use firmware_cmds::wqe::{AddressVector, BaseAv, Grh, WqeOpcode};
use firmware_cmds::Qpn;

use super::mover::{total, Blocked, End, Obstacle, Segment};
use super::{Failure, Op, Outcome};
use crate::caps::{GID, LID};
use crate::completion::{cqe_opcode, syndrome, Cqe};
use crate::device::Device;
use crate::fault::StallKind;
use crate::mkey::Access;
use crate::qp::context as qpc;
use crate::qp::ServiceType;
use crate::subnet::mad::{SaMad, MAD_LEN};
use crate::subnet::multicast::MULTICAST_QPN;
use crate::subnet::{PKEY, SM_LID};

/// Room that a receive WQE leaves for the global routing header.
const GRH_LEN: u64 = 40;

/// Q_Keys with this bit are privileged: the sender's own is used instead.
const PRIVILEGED: u32 = 1 << 31;

/// Number of the general services QP of every port.
const GSI_QPN: u32 = 1;

/// A datagram on its way.
#[derive(Clone, Copy, Debug)]
struct Datagram<'a> {
    /// Where its payload is.
    payload: End<'a>,
    /// Bytes of the payload.
    len: u64,
    /// Its global routing header.
    grh: Option<&'a [u8]>,
    source_lid: u16,
    source_qpn: Qpn,
    service_level: u8,
    immediate: Option<u32>,
    solicited: bool,
}

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
        let immediate = match op.request.ctrl.opcode {
            WqeOpcode::SEND => None,
            WqeOpcode::SEND_IMM => Some(op.request.ctrl.imm),
            _ => return Outcome::Failed(Failure::local(syndrome::LOCAL_QP_OP)),
        };
        let len = op.request.len;
        if len > 4096 {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_LENGTH));
        }
        let payload = End {
            list: &op.request.local,
            access: Access::LocalRead,
            pd: qp.pd(),
            qpn,
        };
        let grh = grh.filter(|grh| grh.present);
        let header = grh.map(|grh| grh_bytes(&grh, len));
        let datagram = Datagram {
            payload,
            len,
            grh: header.as_deref(),
            source_lid: LID,
            source_qpn: match qp.st {
                // Management QPs are known by their virtual numbers.
                ServiceType::Qp0 => Qpn::truncate(0),
                ServiceType::Qp1 => Qpn::truncate(GSI_QPN),
                _ => qpn,
            },
            service_level: base.sl.get(),
            immediate,
            solicited: op.request.ctrl.solicited,
        };
        // The sender's part is to read the payload, whoever receives it.
        let mut sent = self.probe(&payload, len);
        if sent.is_ok() && base.rlid == SM_LID && base.dqp_dct.get() == GSI_QPN {
            sent = self.ask_administrator(&datagram);
        } else if sent.is_ok() {
            for peer in self.datagram_peers(qpn, &base, grh.as_ref()) {
                sent = sent.and_then(|()| self.deliver_datagram(peer, &datagram));
            }
        }
        match sent {
            Ok(()) => Outcome::Done,
            Err(obstacle) => self.requester_blocked(qpn, op, StallKind::SendOrWrite, obstacle),
        }
    }

    /// The QPs that a datagram goes to: those that listen and whose Q_Key is right.
    fn datagram_peers(&self, qpn: Qpn, base: &BaseAv, grh: Option<&Grh>) -> Vec<Qpn> {
        let peers = match (base.dqp_dct.get(), grh) {
            (MULTICAST_QPN, Some(grh)) => {
                let blocked = self
                    .qps
                    .get(qpn)
                    .is_some_and(|qp| qp.context.flag(qpc::BLOCK_LB_MC));
                let mut listeners = self.attachments.listeners(&grh.rgid);
                listeners.retain(|&listener| !blocked || listener != qpn);
                listeners
            }
            (0, _) => self.management_qp(ServiceType::Qp0).into_iter().collect(),
            (GSI_QPN, _) => self.management_qp(ServiceType::Qp1).into_iter().collect(),
            (number, _) => vec![Qpn::truncate(number)],
        };
        let [a, b, c, d, ..] = base.key.to_be_bytes();
        let named = u32::from_be_bytes([a, b, c, d]);
        let own = self.qps.get(qpn).map(|qp| qp.context.get(qpc::Q_KEY));
        let key = if named & PRIVILEGED == 0 {
            Some(named)
        } else {
            own
        };
        let takes = |peer: &Qpn| {
            self.qps.get(*peer).is_some_and(|peer| {
                peer.st.is_datagram()
                    && peer.state.receives()
                    && (peer.st != ServiceType::Ud || Some(peer.context.get(qpc::Q_KEY)) == key)
            })
        };
        peers.into_iter().filter(takes).collect()
    }

    fn management_qp(&self, st: ServiceType) -> Option<Qpn> {
        self.qps.iter().find(|qp| qp.st == st).map(|qp| qp.qpn)
    }

    /// Hands a request to the subnet administrator, whose answer comes back to QP 1.
    ///
    /// # Errors
    ///
    /// What keeps the sender's memory from being read.
    fn ask_administrator(&mut self, datagram: &Datagram<'_>) -> Result<(), Obstacle> {
        let bytes = self.gather(&datagram.payload, datagram.len)?;
        let Some(request) = SaMad::request(&bytes) else {
            self.journal.note(format_args!(
                "the subnet manager drops a datagram from QP {}",
                datagram.payload.qpn
            ));
            return Ok(());
        };
        let answer = self.subnet.administer(&request);
        self.counters.sa_requests += 1;
        let Some(peer) = self.management_qp(ServiceType::Qp1) else {
            return Ok(());
        };
        let list = [Segment::Inline(answer)];
        let answer = Datagram {
            payload: End {
                list: &list,
                ..datagram.payload
            },
            len: crate::guest::to_u64(MAD_LEN),
            grh: None,
            source_lid: SM_LID,
            source_qpn: Qpn::truncate(GSI_QPN),
            service_level: 0,
            immediate: None,
            solicited: false,
        };
        self.deliver_datagram(peer, &answer)
    }

    /// Puts a datagram into the receiver's next WQE, or drops it.
    ///
    /// # Errors
    ///
    /// What keeps the sender's memory from being read.
    fn deliver_datagram(&mut self, peer: Qpn, datagram: &Datagram<'_>) -> Result<(), Obstacle> {
        let qpn = datagram.payload.qpn;
        let Some(list) = self.datagram_buffer(peer, datagram.len) else {
            self.journal
                .note(format_args!("datagram from QP {qpn} to QP {peer} dropped"));
            return Ok(());
        };
        // Without a GRH the receiver's first 40 bytes stay as they are.
        let (source, destination) = match datagram.grh {
            Some(header) => {
                let mut source = vec![Segment::Inline(header.to_vec())];
                source.extend_from_slice(datagram.payload.list);
                (source, list)
            }
            None => (datagram.payload.list.to_vec(), skip(&list, GRH_LEN)),
        };
        let from = End {
            list: &source,
            ..datagram.payload
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
        self.complete_datagram(peer, datagram);
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

    fn complete_datagram(&mut self, peer: Qpn, datagram: &Datagram<'_>) {
        let Some(qp) = self.qps.get_mut(peer) else {
            return;
        };
        let Some(receive) = qp.rq.bound.take() else {
            return;
        };
        if receive.srq.is_none() {
            qp.rq.ci = qp.rq.ci.wrapping_add(1);
        }
        let cqe = Cqe {
            opcode: match datagram.immediate {
                Some(_) => cqe_opcode::RESP_SEND_IMM,
                None => cqe_opcode::RESP_SEND,
            },
            qpn: peer,
            // QP1's receives carry the P_Key here (kernel `cq.c:handle_responder`).
            immediate: if qp.st == ServiceType::Qp1 {
                u32::from(PKEY)
            } else {
                datagram.immediate.unwrap_or(0)
            },
            byte_count: u32::try_from(datagram.len + GRH_LEN).unwrap_or(u32::MAX),
            wqe_counter: receive.index,
            source_lid: datagram.source_lid,
            source_qpn: datagram.source_qpn,
            service_level: datagram.service_level,
            grh: datagram.grh.is_some(),
            solicited: datagram.solicited,
            ..Cqe::default()
        };
        let Some((cqn, user_index)) = self.receive_cq(peer, &receive) else {
            return;
        };
        self.push_cqe(cqn, &Cqe { user_index, ..cqe });
    }
}

/// A global routing header as it arrives (IBTA 8.3).
fn grh_bytes(grh: &Grh, payload: u64) -> Vec<u8> {
    let traffic = 6 << 28 | u32::from(grh.tclass) << 20 | grh.flow_label.get();
    // Base and datagram transport header, and the invariant CRC.
    let length = u16::try_from(payload + 12 + 8 + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(40);
    bytes.extend_from_slice(&traffic.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0x1b, grh.hop_limit]);
    bytes.extend_from_slice(&GID);
    bytes.extend_from_slice(&grh.rgid);
    bytes
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
