// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Work queue entries: from the bytes in a queue to what is to be done.
//!
//! The bytes belong to the guest's user, so nothing in them is trusted.

use firmware_cmds::wqe::{
    AddressVector, AtomicSeg, CompletionMode, CtrlSeg, RaddrSeg, RecvSges, SendTransport, SendWqe,
    Sge, DS_LEN, WQEBB_LEN,
};
use firmware_cmds::{DmaAddr, Mkey, Srqn, Wire};
use serde::Serialize;

use crate::guest::offset;
use crate::guest::{to_u64, DmaError, GuestMemory};
use crate::inspect::show;
use crate::qp::{Qp, ServiceType};
use crate::transport::mover::{total, Segment};

/// A send WQE whose segments make sense.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    /// Position of the WQE in its queue, in WQEBBs, modulo 2^16.
    pub index: u16,
    /// WQEBBs it takes.
    pub wqebbs: u16,
    /// Control segment.
    #[serde(serialize_with = "show::debug")]
    pub ctrl: CtrlSeg,
    /// SRQ of the peer (XRC).
    #[serde(serialize_with = "show::debug")]
    pub xrc: Option<Srqn>,
    /// Address vector (UD, DC).
    #[serde(serialize_with = "show::debug")]
    pub av: Option<AddressVector>,
    /// Remote address (RDMA and atomics).
    #[serde(serialize_with = "show::debug")]
    pub raddr: Option<RaddrSeg>,
    /// Operands (atomics).
    #[serde(serialize_with = "show::debug")]
    pub atomic: Option<AtomicSeg>,
    /// Local memory or inline data; empty for a UMR.
    pub local: Vec<Segment>,
    /// Bytes of `local`.
    pub len: u64,
    /// The whole WQE.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

impl Request {
    /// Whether its success is reported.
    pub fn signalled(&self) -> bool {
        matches!(
            self.ctrl.completion,
            CompletionMode::Always | CompletionMode::AlwaysAndEvent
        )
    }
}

/// What a send queue has at its head.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// A WQE.
    Request(Box<Request>),
    /// Bytes that are no WQE of this QP.
    Malformed {
        /// WQEBBs to skip.
        wqebbs: u16,
        /// Opcode that the control segment has.
        opcode: u8,
    },
}

/// Number of WQEBBs in a send queue, 0 without one.
fn sq_wqebbs(qp: &Qp) -> u32 {
    qp.sq.log_size.map_or(0, |log| 1 << log)
}

/// WQEBBs posted and not done, never more than the queue holds: the doorbell record is
/// the user's.
pub fn sq_pending(qp: &Qp) -> u16 {
    let posted = u32::from(qp.sq.pi.wrapping_sub(qp.sq.ci));
    u16::try_from(posted.min(sq_wqebbs(qp))).unwrap_or(u16::MAX)
}

/// Reads `len` bytes of the send queue from WQEBB `index` on, around its end.
fn read_sq(qp: &Qp, mem: &dyn GuestMemory, index: u16, len: usize) -> Result<Vec<u8>, DmaError> {
    let size = u64::from(sq_wqebbs(qp)) * to_u64(WQEBB_LEN);
    let start = u64::from(index) * to_u64(WQEBB_LEN) % size;
    let first = usize::try_from(size - start).map_or(len, |left| left.min(len));
    let mut bytes = vec![0; len];
    let (head, tail) = bytes.split_at_mut(first);
    qp.buffer.read(mem, qp.sq.offset + start, head)?;
    qp.buffer.read(mem, qp.sq.offset, tail)?;
    Ok(bytes)
}

/// WQEBBs of the WQE at the head of the send queue, at least 1 and at most what is posted.
pub fn head_wqebbs(qp: &Qp, mem: &dyn GuestMemory) -> Result<u16, DmaError> {
    let head = read_sq(qp, mem, qp.sq.ci, CtrlSeg::LEN)?;
    let ds = CtrlSeg::parse(&head).map_or(0, |ctrl| ctrl.ds.bytes());
    let wqebbs = u16::try_from(ds.div_ceil(WQEBB_LEN)).unwrap_or(1);
    Ok(wqebbs.max(1).min(sq_pending(qp)))
}

/// Takes the WQE at the head of the send queue apart. There must be one.
///
/// # Errors
///
/// Those of the guest's memory.
pub fn fetch(qp: &Qp, mem: &dyn GuestMemory) -> Result<Fetched, DmaError> {
    let head = read_sq(qp, mem, qp.sq.ci, CtrlSeg::LEN)?;
    let wqebbs = head_wqebbs(qp, mem)?;
    let malformed = |opcode| Fetched::Malformed { wqebbs, opcode };
    let Ok(ctrl) = CtrlSeg::parse(&head) else {
        return Ok(malformed(0));
    };
    if ctrl.ds.bytes() > usize::from(sq_pending(qp)) * WQEBB_LEN {
        return Ok(malformed(ctrl.opcode.0));
    }
    let bytes = read_sq(qp, mem, qp.sq.ci, ctrl.ds.bytes().max(DS_LEN))?;
    Ok(match parse(qp, wqebbs, &bytes) {
        Some(request) => Fetched::Request(Box::new(request)),
        None => malformed(ctrl.opcode.0),
    })
}

fn parse(qp: &Qp, wqebbs: u16, bytes: &[u8]) -> Option<Request> {
    use firmware_cmds::wqe::WqeOpcode;

    let transport = match qp.st {
        ServiceType::Rc | ServiceType::Uc | ServiceType::RegUmr => SendTransport::Connected,
        ServiceType::Xrc => SendTransport::XrcInitiator,
        ServiceType::Ud | ServiceType::Dci | ServiceType::Qp0 | ServiceType::Qp1 => {
            SendTransport::Datagram
        }
        ServiceType::Dct => return None,
    };
    let wqe = SendWqe::parse(bytes, transport).ok()?;
    let mut local = Vec::new();
    if !matches!(wqe.ctrl.opcode, WqeOpcode::UMR | WqeOpcode::NOP) {
        for sge in wqe.sges() {
            local.push(match sge.ok()? {
                Sge::Data(data) => Segment::Memory {
                    key: data.lkey,
                    va: data.addr.get(),
                    len: data.byte_count.bytes(),
                },
                Sge::Inline(bytes) => Segment::Inline(bytes.to_vec()),
            });
        }
    }
    Some(Request {
        index: qp.sq.ci,
        wqebbs,
        ctrl: wqe.ctrl,
        xrc: wqe.xrc.map(|xrc| Srqn::truncate(xrc.srqn.get())),
        av: wqe.av,
        raddr: wqe.raddr,
        atomic: wqe.atomic,
        len: total(&local),
        local,
        bytes: bytes.to_vec(),
    })
}

/// A receive WQE that a message was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receive {
    /// Its index in its queue; for a QP's own queue counted on without end.
    pub index: u16,
    /// The shared queue that it comes from.
    #[serde(serialize_with = "show::debug")]
    pub srq: Option<Srqn>,
    /// Where the message goes; `None` if the WQE makes no sense.
    pub list: Option<Vec<Segment>>,
}

impl Receive {
    /// Takes the scatter list of a receive WQE apart.
    pub fn parse(index: u16, srq: Option<Srqn>, wqe: &[u8]) -> Self {
        let list = RecvSges::new(wqe, Mkey::TERMINATE_SCATTER_LIST)
            .map(|data| {
                data.map(|data| Segment::Memory {
                    key: data.lkey,
                    va: data.addr.get(),
                    len: data.byte_count.bytes(),
                })
            })
            .collect::<Result<_, _>>()
            .ok();
        Self { index, srq, list }
    }
}

/// Reads the receive WQE at the head of a QP's own queue; `None` if none is posted.
///
/// # Errors
///
/// Those of the guest's memory.
pub fn fetch_receive(qp: &Qp, mem: &dyn GuestMemory) -> Result<Option<Receive>, DmaError> {
    let Some(log) = qp.rq.log_size else {
        return Ok(None);
    };
    if counter(mem, qp.recv_dbr())? == qp.rq.ci {
        return Ok(None);
    }
    let slot = u64::from(u32::from(qp.rq.ci) & ((1 << log) - 1)) << qp.rq.log_stride;
    let mut bytes = vec![0; 1 << qp.rq.log_stride];
    qp.buffer.read(mem, slot, &mut bytes)?;
    Ok(Some(Receive::parse(qp.rq.ci, None, &bytes)))
}

/// Reads a counter of a doorbell record: the low 16 bits of a big-endian word.
///
/// # Errors
///
/// Those of the guest's memory.
pub fn counter(mem: &dyn GuestMemory, at: DmaAddr) -> Result<u16, DmaError> {
    let mut low = [0; 2];
    mem.read(offset(at, 2), &mut low)?;
    Ok(u16::from_be_bytes(low))
}
