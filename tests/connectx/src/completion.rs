// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Completion queues (`mlx5_ib/cq.c`, libmlx5 `cq.c`).

use std::collections::BTreeMap;
use std::time::Duration;

use firmware_cmds::{Cqn, DmaAddr, Eqe, Eqn, Qpn, Uar};
use serde::Serialize;

use crate::agenda::Work;
use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_CQ;
use crate::command::CmdStatus;
use crate::device::Device;
use crate::guest::{read_be32, DmaError, GuestMemory};
use crate::inspect::show;
use crate::numbers::Numbers;
use crate::rules::points::{self as rules, EntryAct};
use crate::rules::words::{Corrupt, Delay};

macro_rules! codes {
    ($($(#[$doc:meta])* $module:ident { $($(#[$code_doc:meta])* $name:ident = $value:literal;)* })*) => {
        $(
            $(#[$doc])*
            pub mod $module {
                $($(#[$code_doc])* pub const $name: u8 = $value;)*

                /// All of them with their names.
                pub const NAMES: &[(u8, &str)] = &[$(($name, stringify!($name)),)*];
            }
        )*
    };
}

codes! {
    /// Opcodes of CQEs, the high half of byte 0x3f.
    cqe_opcode {
        /// A send queue WQE completed.
        REQ = 0x0;
        /// An RDMA WRITE with immediate arrived.
        RESP_WR_IMM = 0x1;
        /// A SEND arrived.
        RESP_SEND = 0x2;
        /// A SEND with immediate arrived.
        RESP_SEND_IMM = 0x3;
        /// A SEND with invalidate arrived.
        RESP_SEND_INV = 0x4;
        /// The queue continues in another buffer.
        RESIZE_CQ = 0x5;
        /// A send queue WQE failed.
        REQ_ERR = 0xd;
        /// A receive WQE failed.
        RESP_ERR = 0xe;
        /// What software writes into entries it has consumed.
        INVALID = 0xf;
    }

    /// Syndromes of error CQEs (`enum mlx5_cqe_error_syndrome` in `include/linux/mlx5/cq.h`).
    syndrome {
        /// Message longer than the receive buffers.
        LOCAL_LENGTH = 0x01;
        /// The WQE makes no sense for this QP.
        LOCAL_QP_OP = 0x02;
        /// The local key does not allow the access.
        LOCAL_PROT = 0x04;
        /// The QP is in the error state.
        FLUSH = 0x05;
        /// A memory window could not be bound.
        MW_BIND = 0x06;
        /// The responder answered with something unexpected.
        BAD_RESPONSE = 0x10;
        /// The requester may not access its own memory like this.
        LOCAL_ACCESS = 0x11;
        /// The responder found the request invalid.
        REMOTE_INVALID_REQUEST = 0x12;
        /// The responder refused the access.
        REMOTE_ACCESS = 0x13;
        /// The responder failed.
        REMOTE_OP = 0x14;
        /// No answer in time.
        RETRY_EXCEEDED = 0x15;
        /// The responder had no receive WQE for too long.
        RNR_EXCEEDED = 0x16;
    }
}

/// Producer and consumer index have 24 bits.
const INDEX_MASK: u32 = 0xff_ffff;

/// A completion before it is written to a queue (CQE version 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Cqe {
    /// See [`cqe_opcode`].
    pub opcode: u8,
    /// For REQ: opcode of the WQE that completed.
    pub send_opcode: u8,
    /// QP the completion belongs to.
    #[serde(serialize_with = "show::debug")]
    pub qpn: Qpn,
    /// `user_index` of the QP, or of the XRC SRQ.
    pub user_index: u32,
    /// Word 0x24 in host order: immediate as it was in the WQE, invalidated key, P_Key.
    pub immediate: u32,
    /// Bytes transferred.
    pub byte_count: u32,
    /// Index of the WQE in its ring.
    pub wqe_counter: u16,
    /// Syndrome of an error, see [`syndrome`].
    pub syndrome: u8,
    /// Vendor syndrome of an error.
    pub vendor_syndrome: u8,
    /// For datagrams: LID of the sender.
    pub source_lid: u16,
    /// For datagrams: QP of the sender.
    #[serde(serialize_with = "show::debug")]
    pub source_qpn: Qpn,
    /// For datagrams: service level.
    pub service_level: u8,
    /// For datagrams: a GRH lies before the payload.
    pub grh: bool,
    /// Wakes a queue that was armed for solicited events.
    pub solicited: bool,
}

impl Cqe {
    /// Whether it reports an error.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self.opcode, cqe_opcode::REQ_ERR | cqe_opcode::RESP_ERR)
    }

    /// The entry, written when the device's clock shows `timer`. Its last byte, opcode and
    /// owner, is left to whoever knows the place in the ring.
    fn encode(&self, timer: u64) -> [u8; 64] {
        let mut bytes = [0; 64];
        let mut word = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        };
        word(0x20, self.user_index & 0xff_ffff);
        word(0x38, u32::from(self.send_opcode) << 24 | self.qpn.get());
        if self.is_error() {
            bytes[0x36] = self.vendor_syndrome;
            bytes[0x37] = self.syndrome;
        } else {
            let grh = u32::from(self.grh) << 28;
            let sl = u32::from(self.service_level & 0xf) << 24;
            word(0x18, grh | sl | self.source_qpn.get());
            word(0x24, self.immediate);
            word(0x2c, self.byte_count);
            bytes[0x16..0x18].copy_from_slice(&self.source_lid.to_be_bytes());
            bytes[0x30..0x38].copy_from_slice(&timer.to_be_bytes());
        }
        bytes[0x3c..0x3e].copy_from_slice(&self.wqe_counter.to_be_bytes());
        bytes
    }
}

/// What a queue was armed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
enum Armed {
    No,
    Solicited,
    Any,
}

/// What was written to a queue since its last event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
enum Untold {
    Nothing,
    /// None of it wakes a queue that is armed for solicited events.
    Unsolicited,
    Solicited,
}

/// One completion queue.
#[derive(Clone, Debug, Serialize)]
pub struct CompletionQueue {
    /// Entries, as a power of two.
    pub log_size: u32,
    /// Bytes from one entry to the next: 64 or 128.
    pub stride: u64,
    /// Entries may be overwritten before they are consumed.
    pub overrun_ignore: bool,
    /// Queue of its events.
    #[serde(serialize_with = "show::debug")]
    pub eqn: Eqn,
    /// The UAR whose doorbells belong to it.
    #[serde(serialize_with = "show::debug")]
    pub uar: Uar,
    /// Doorbell record: consumer index and arm word.
    #[serde(serialize_with = "show::debug")]
    pub dbr: DmaAddr,
    /// Its entries.
    pub buffer: QueueBuffer,
    /// Umems that its entries and its doorbell record are in.
    pub umems: Vec<u32>,
    /// The context as created, for QUERY_CQ.
    #[serde(serialize_with = "show::cqc")]
    pub context: [u8; 64],
    /// Entries written, 24 bits.
    pub producer: u32,
    solicited_end: u32,
    armed: Armed,
    untold: Untold,
    failed: bool,
}

impl CompletionQueue {
    /// An empty, unarmed queue.
    #[must_use]
    pub fn new(log_size: u32, stride: u64, buffer: QueueBuffer, dbr: DmaAddr) -> Self {
        Self {
            log_size,
            stride,
            overrun_ignore: false,
            eqn: Eqn::new(0),
            uar: Uar::truncate(0),
            dbr,
            buffer,
            umems: Vec::new(),
            context: [0; 64],
            producer: 0,
            solicited_end: 0,
            armed: Armed::No,
            untold: Untold::Nothing,
            failed: false,
        }
    }

    /// Entries written that software has not said to have consumed.
    fn unconsumed(&self, mem: &dyn GuestMemory) -> Result<u32, DmaError> {
        let consumer = read_be32(mem, self.dbr)?;
        Ok(self.producer.wrapping_sub(consumer) & INDEX_MASK)
    }

    /// Entries that may be written.
    fn room(&self, mem: &dyn GuestMemory) -> Result<u32, DmaError> {
        let size: u32 = 1 << self.log_size;
        if self.overrun_ignore {
            return Ok(size);
        }
        Ok(size.saturating_sub(self.unconsumed(mem)?))
    }

    /// Writes the next entry, its owner bit last.
    fn append(
        &mut self,
        mem: &dyn GuestMemory,
        cqe: &Cqe,
        timer: u64,
        corrupt: Option<Corrupt>,
    ) -> Result<(), DmaError> {
        let mut bytes = cqe.encode(timer);
        let owner = u8::from(self.producer >> self.log_size & 1 == 1);
        bytes[0x3f] = cqe.opcode << 4 | owner;
        if let Some(corrupt) = corrupt {
            corrupt.apply(&mut bytes);
        }
        // A 128-byte entry ends with the 64-byte one.
        let index = self.producer & ((1 << self.log_size) - 1);
        let slot = u64::from(index) * self.stride + (self.stride - 64);
        self.buffer.write(mem, slot, &bytes[..0x3f])?;
        mem.write_release(self.buffer.locate(slot + 0x3f).0, bytes[0x3f])?;
        self.producer = self.producer.wrapping_add(1) & INDEX_MASK;
        Ok(())
    }
}

/// All completion queues.
#[derive(Debug, Serialize)]
pub struct Completions {
    /// By number.
    #[serde(flatten, serialize_with = "show::by_number")]
    pub queues: BTreeMap<Cqn, CompletionQueue>,
    /// Numbers for new queues.
    pub numbers: Numbers,
}

impl Default for Completions {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            numbers: Numbers::below(0x80, LOG_MAX_CQ),
        }
    }
}

/// Whether index `a` lies before `b`, on the ring of 24-bit indices.
fn before(a: u32, b: u32) -> bool {
    let distance = b.wrapping_sub(a) & INDEX_MASK;
    distance != 0 && distance < 1 << 23
}

impl Device {
    /// Reports a completion, subject to the rules: see [`Device::deliver_cqe`].
    pub fn push_cqe(&mut self, cqn: Cqn, cqe: &Cqe) {
        let completion = |corrupt| Work::Completion(cqn, *cqe, corrupt);
        match self.rule::<rules::Completion>(&(cqn, *cqe)) {
            None => self.complete_in_order(cqe.qpn, Duration::ZERO, completion(None)),
            Some((_, EntryAct::Drop {})) => {}
            Some((_, EntryAct::Duplicate {})) => {
                self.complete_in_order(cqe.qpn, Duration::ZERO, completion(None));
                self.complete_in_order(cqe.qpn, Duration::ZERO, completion(None));
            }
            Some((_, EntryAct::Corrupt(corrupt))) => {
                self.complete_in_order(cqe.qpn, Duration::ZERO, completion(Some(corrupt)));
            }
            Some((_, EntryAct::Delay(Delay(delay)))) => {
                self.complete_in_order(cqe.qpn, delay, completion(None));
            }
            Some((rule, EntryAct::Hold(hold))) => self.hold(rule, hold, completion(None)),
        }
    }

    /// Reports a completion of a QP after `delay`, but not before those that come before it and
    /// that a rule delays or holds back.
    fn complete_in_order(&mut self, qpn: Qpn, delay: Duration, work: Work) {
        let Err(work) = self.hold_behind(qpn, work) else {
            return;
        };
        let before = self.agenda.completions_until(qpn);
        if before.is_some() || !delay.is_zero() {
            let at = self.now.saturating_add(delay);
            self.agenda
                .put_off(before.map_or(at, |before| before.max(at)), work);
        } else if self.agenda.has_completion(qpn) {
            self.agenda.add(work);
        } else {
            self.report(work);
        }
    }

    /// Writes a completion, and the event if the queue is armed for it.
    ///
    /// A queue that does not exist or cannot be reached is a violation. One that overruns
    /// is not: how many completions a queue of a user gets is the user's choice. Both an
    /// overrun and a queue out of reach put it out of order, with an event of type CQ_ERROR.
    pub(crate) fn deliver_cqe(&mut self, cqn: Cqn, cqe: &Cqe, corrupt: Option<Corrupt>) {
        let timer = self.timer();
        let Some(cq) = self.cqs.queues.get_mut(&cqn) else {
            self.violation(format_args!(
                "completion for CQ {cqn}, which does not exist"
            ));
            return;
        };
        if cq.failed {
            return;
        }
        let mem = &*self.mem;
        let room = cq.room(mem);
        if !room.is_ok_and(|entries| entries > 0) {
            cq.failed = true;
            match room {
                Ok(_) => {
                    self.counters.cq_overruns += 1;
                    self.journal.note(format_args!("CQ {cqn} overran"));
                }
                Err(e) => self.violation(format_args!("CQ {cqn}: doorbell record: {e}")),
            }
            self.raise_cq_error(cqn, 1);
            return;
        }
        let index = cq.producer;
        if let Err(error) = cq.append(mem, cqe, timer, corrupt) {
            cq.failed = true;
            self.violation(format_args!("CQ {cqn}: cannot write an entry: {error}"));
            self.raise_cq_error(cqn, 2);
            return;
        }
        self.journal.trace(format_args!(
            "cqe cq={cqn} pi={index} qp={} op={:#x}/{:#x} counter={} bytes={} syndrome={:#x}",
            cqe.qpn, cqe.opcode, cqe.send_opcode, cqe.wqe_counter, cqe.byte_count, cqe.syndrome
        ));
        self.counters.cqes += 1;
        self.counters.error_cqes += u64::from(cqe.is_error());
        let wakes = cqe.solicited || cqe.is_error();
        if wakes {
            cq.solicited_end = cq.producer;
            cq.untold = Untold::Solicited;
        } else {
            cq.untold = cq.untold.max(Untold::Unsolicited);
        }
        let fire = match cq.armed {
            Armed::No => false,
            Armed::Solicited => wakes,
            Armed::Any => true,
        };
        if fire {
            self.notify(cqn);
        }
    }

    /// Raises the event that a queue was armed for. It tells of every entry up to now.
    fn notify(&mut self, cqn: Cqn) {
        if let Some(cq) = self.cqs.queues.get_mut(&cqn) {
            cq.armed = Armed::No;
            cq.untold = Untold::Nothing;
            let eqn = cq.eqn;
            self.raise_completion(eqn, cqn);
        }
    }

    /// Lets a queue go on in another ring, at the same index.
    ///
    /// Its last entry in the old ring is a RESIZE_CQ: software moves what lies before it to
    /// the new ring, one place further on, where it takes the place of that entry (libmlx5
    /// `cq.c:mlx5_cq_resize_copy_cqes`). Nothing completed, so there is no event.
    ///
    /// # Errors
    ///
    /// BAD_SIZE_OUTS_CQES if the new ring is too small for what was not consumed,
    /// BAD_RES_STATE if the queue is out of order or has no room for the entry. The queue
    /// stays as it was.
    pub(crate) fn resize_cq(
        &mut self,
        cqn: Cqn,
        log_size: u32,
        stride: u64,
        buffer: QueueBuffer,
    ) -> Result<(), CmdStatus> {
        let timer = self.timer();
        let cq = self.cqs.queues.get_mut(&cqn).ok_or(CmdStatus::BadRes)?;
        let mem = &*self.mem;
        let unconsumed = cq.unconsumed(mem).map_err(|_| CmdStatus::BadResState)?;
        if !cq.overrun_ignore && unconsumed >= 1 << log_size {
            return Err(CmdStatus::BadSizeOutsCqes);
        }
        if cq.failed || cq.room(mem) == Ok(0) {
            return Err(CmdStatus::BadResState);
        }
        let end = Cqe {
            opcode: cqe_opcode::RESIZE_CQ,
            ..Cqe::default()
        };
        cq.append(mem, &end, timer, None)
            .map_err(|_| CmdStatus::BadResState)?;
        cq.log_size = log_size;
        cq.stride = stride;
        cq.buffer = buffer;
        Ok(())
    }

    fn raise_cq_error(&mut self, cqn: Cqn, syndrome: u8) {
        self.raise(Eqe::cq_error(cqn, syndrome));
    }

    /// A CQ doorbell: the driver wants one event for the next entry from `consumer` on.
    ///
    /// An entry that is there already counts, or its event would be lost between the last
    /// poll and the doorbell. But not one that the last event told of: software may ask for
    /// the next event first and poll then, as perftest does, one entry for each event. That
    /// is what a card keeps `last_notified_index` for (`mlx5_ifc_cqc_bits`).
    pub(crate) fn cq_doorbell(&mut self, uar: Uar, cqn: Cqn, consumer: u32, solicited: bool) {
        let Some(cq) = self.cqs.queues.get_mut(&cqn) else {
            self.refuse_doorbell(
                uar,
                format_args!("doorbell of CQ {cqn}, which does not exist, in UAR {uar}"),
            );
            return;
        };
        if cq.uar != uar {
            let right = cq.uar;
            self.refuse_doorbell(
                uar,
                format_args!("doorbell of CQ {cqn} in UAR {uar}, it belongs to UAR {right}"),
            );
            return;
        }
        self.journal.trace(format_args!(
            "doorbell uar={uar} cq={cqn} ci={consumer} solicited={solicited}"
        ));
        let (end, news) = if solicited {
            (cq.solicited_end, Untold::Solicited)
        } else {
            (cq.producer, Untold::Unsolicited)
        };
        if before(consumer & INDEX_MASK, end) && cq.untold >= news {
            self.notify(cqn);
        } else if cq.armed != Armed::Any {
            cq.armed = if solicited {
                Armed::Solicited
            } else {
                Armed::Any
            };
        }
    }
}
