// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device and what a driver has to set up before it is of use: queues, keys, doorbells. What
//! `mlx5_core` and libmlx5 would do, no more of it than is needed.

use std::time::Duration;

use connectx::caps::CapType;
use connectx::guest::to_u64;
use connectx::ifc::{cqc, eqc, odp_cap, Field};
use connectx::qp::context::{self as qpc, QpContext};
use connectx::{Device, GuestMemory, Interrupts, Journal};
use firmware_cmds::mkey::{CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn};
use firmware_cmds::wqe::{
    ByteCount, CompletionMode, CtrlSeg, DataSeg, Ds, FenceMode, RaddrSeg, WqeOpcode,
};
use firmware_cmds::{
    Access, AccessMode, DmaAddr, Eqe, Iova, LogPageSize, Mkc, Mkey, MkeyVariant, Pdn, Qpn, Scheme,
    Wire,
};

use crate::memory::{Shared, LOW};

/// Entries of the EQ and of the CQ.
const LOG_EQ: u32 = 6;
const LOG_CQ: u32 = 7;
/// WQEBBs of each send queue, and receive WQEs of 64 bytes.
pub(crate) const LOG_SQ: u32 = 5;
const LOG_RQ: u32 = 3;
/// `log_rq_stride` of 64 bytes.
const RQ_STRIDE: u32 = 2;

/// Interrupts are looked for, not waited for.
struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn fire(&mut self, _: u16) {}
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) qpn: u32,
    /// Of a receive queue.
    pub(crate) receive: bool,
    /// Index of the WQE.
    pub(crate) index: u16,
    /// 0 for success.
    pub(crate) syndrome: u8,
}

/// A ring that the device writes and the driver polls.
#[derive(Default)]
struct Ring {
    base: u64,
    consumer: u32,
    dbr: u64,
    number: u32,
}

/// A QP as its owner sees it.
#[derive(Clone, Debug)]
pub(crate) struct Qp {
    pub(crate) qpn: u32,
    sq: u64,
    rq: u64,
    dbr: u64,
    /// WQEBBs posted.
    pub(crate) sq_pi: u16,
    rq_pi: u16,
}

/// The device, and a driver for it.
pub(crate) struct Adapter {
    pub(crate) device: Device,
    memory: Shared,
    pub(crate) now: Duration,
    next: u64,
    /// The next doorbell record, of which there is a page.
    next_record: u64,
    uar: u32,
    eq: Ring,
    cq: Ring,
    pd: u32,
    /// Translates nothing: of what driver and device share.
    pub(crate) pa: Mkey,
    /// The device has something to do.
    pub(crate) busy: bool,
    /// When it will have, without being told.
    pub(crate) alarm: Option<Duration>,
    /// Entries of the EQ and the CQ that were looked at.
    seen: (u64, u64),
}

fn words(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_be_bytes(word.unwrap_or_default())
}

/// The bytes of a value.
pub(crate) fn emit(value: &impl Wire, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    value.emit(&mut bytes).expect("the length is the right one");
    bytes
}

/// Bytes of a data segment.
pub(crate) fn data(key: Mkey, va: u64, len: usize) -> Vec<u8> {
    let segment = DataSeg {
        byte_count: ByteCount::truncate(u32::try_from(len).unwrap_or(0)),
        lkey: key,
        addr: Iova::new(va),
    };
    emit(&segment, DataSeg::LEN)
}

/// Bytes of a remote-address segment.
pub(crate) fn raddr(key: Mkey, va: u64) -> Vec<u8> {
    let segment = RaddrSeg {
        raddr: Iova::new(va),
        rkey: key,
    };
    emit(&segment, RaddrSeg::LEN)
}

impl Adapter {
    /// A device in use, with an EQ for page faults, a CQ, and a key for the memory below
    /// [`LOW`].
    pub(crate) fn new(
        scheme: Scheme,
        seed: Option<u64>,
        memory: &Shared,
        journal: Journal,
    ) -> Self {
        let mut device = Device::new(
            Box::new(memory.clone()),
            Box::new(NoInterrupts),
            journal,
            scheme,
        );
        if let Some(seed) = seed {
            device.set_seed(seed);
        }
        if scheme == Scheme::Memory {
            let mut caps = *device.hca.current().get(CapType::Odp);
            odp_cap::MEM_PAGE_FAULT.set(&mut caps, 1);
            device
                .hca
                .choose(CapType::Odp, &caps)
                .expect("it is offered");
        }
        device.hca.enabled = true;
        device.hca.initialized = true;
        let mut adapter = Self {
            device,
            memory: memory.clone(),
            now: Duration::ZERO,
            next: 8192,
            next_record: 4096,
            uar: 0,
            eq: Ring::default(),
            cq: Ring::default(),
            pd: 0,
            pa: Mkey::new(0),
            busy: false,
            alarm: None,
            seen: (0, 0),
        };
        adapter.uar = adapter.alloc(0x802);
        adapter.pd = adapter.alloc(0x800);
        adapter.create_eq();
        adapter.create_cq();
        let mut mkc = adapter.mkc(AccessMode::Pa);
        mkc.length64 = true;
        mkc.free = false;
        adapter.pa = adapter.create_mkey(&mkc);
        adapter
    }

    /// Memory that driver and device share, zeroed.
    pub(crate) fn share(&mut self, bytes: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + bytes;
        assert!(self.next <= to_u64(LOW), "more is shared than there is");
        at
    }

    fn record(&mut self) -> u64 {
        self.next_record += 64;
        assert!(
            self.next_record < 8192,
            "more records than there is room for"
        );
        self.next_record
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let written = self.memory.write(DmaAddr::new(at), bytes);
        written.expect("it is memory that is shared");
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) {
        let read = self.memory.read(DmaAddr::new(at), bytes);
        read.expect("it is memory that is shared");
    }

    /// Executes a command; the status, 0 for success.
    pub(crate) fn try_command(&mut self, input: &[u8], out: &mut [u8]) -> u8 {
        self.device.execute(input, out);
        self.busy = true;
        out[0]
    }

    /// Executes a command that must succeed.
    fn command(&mut self, input: &[u8]) -> [u8; 16] {
        let mut out = [0; 16];
        let status = self.try_command(input, &mut out);
        assert_eq!(status, 0, "command {:02x?}", &input[..8]);
        out
    }

    fn alloc(&mut self, opcode: u16) -> u32 {
        let mut input = [0; 16];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        words(&self.command(&input), 8)
    }

    fn queue_command(opcode: u16, fields: &[(Field, u64)], base: u64, pages: u64) -> Vec<u8> {
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        for &(field, value) in fields {
            field.set(&mut input[0x10..0x50], value);
        }
        for page in 0..pages {
            input.extend((base + page * 4096).to_be_bytes());
        }
        input
    }

    fn create_eq(&mut self) {
        self.eq.base = self.share(64 << LOG_EQ, 4096);
        let fields = [
            (eqc::LOG_EQ_SIZE, u64::from(LOG_EQ)),
            (eqc::UAR_PAGE, u64::from(self.uar)),
        ];
        let mut input = Self::queue_command(0x301, &fields, self.eq.base, 1);
        // Page faults only.
        input[0x58..0x60].copy_from_slice(&(1_u64 << 0xc).to_be_bytes());
        // Software initialises the owner bits to 1.
        for entry in 0..1_u64 << LOG_EQ {
            self.write(self.eq.base + entry * 64 + 63, &[1]);
        }
        self.eq.number = words(&self.command(&input), 8);
    }

    fn create_cq(&mut self) {
        self.cq.base = self.share(64 << LOG_CQ, 4096);
        self.cq.dbr = self.record();
        let fields = [
            (cqc::LOG_CQ_SIZE, u64::from(LOG_CQ)),
            (cqc::UAR_PAGE, u64::from(self.uar)),
            (cqc::C_EQN, u64::from(self.eq.number)),
            (cqc::DBR_ADDR, self.cq.dbr),
        ];
        let input = Self::queue_command(0x400, &fields, self.cq.base, 2);
        for entry in 0..1_u64 << LOG_CQ {
            self.write(self.cq.base + entry * 64 + 63, &[0xf1]);
        }
        self.cq.number = words(&self.command(&input), 8);
    }

    /// A context with every right, free.
    pub(crate) fn mkc(&self, access_mode: AccessMode) -> Mkc {
        Mkc {
            free: true,
            access_mode,
            umr_en: true,
            access: Access {
                atomic: true,
                remote_write: true,
                remote_read: true,
                local_write: true,
                local_read: true,
            },
            qpn: Qpn::ANY,
            variant: MkeyVariant::new(0x5a),
            pd: Pdn::truncate(self.pd),
            log_page_size: LogPageSize::ADAPTER_PAGE,
            ..Mkc::default()
        }
    }

    /// CREATE_MKEY.
    pub(crate) fn create_mkey(&mut self, mkc: &Mkc) -> Mkey {
        let create = CreateMkeyIn {
            mkc: *mkc,
            ..CreateMkeyIn::default()
        };
        let out = self.command(&emit(&create, CreateMkeyIn::LEN));
        let out = CreateMkeyOut::parse(&out).expect("it was executed");
        Mkey::from_parts(out.mkey_index, mkc.variant)
    }

    /// DESTROY_MKEY.
    pub(crate) fn destroy_mkey(&mut self, mkey: Mkey) {
        let destroy = DestroyMkeyIn {
            mkey_index: mkey.index(),
            ..DestroyMkeyIn::default()
        };
        self.command(&emit(&destroy, DestroyMkeyIn::LEN));
    }

    /// A QP of a service type, in RST.
    pub(crate) fn create_qp(&mut self, st: u32) -> Qp {
        let mut context = QpContext::zeroed();
        context.set(qpc::ST, st);
        context.set(qpc::PD, self.pd);
        context.set(qpc::LOG_SQ_SIZE, LOG_SQ);
        context.set(qpc::LOG_RQ_SIZE, LOG_RQ);
        context.set(qpc::LOG_RQ_STRIDE, RQ_STRIDE);
        context.set(qpc::UAR_PAGE, self.uar);
        context.set(qpc::CQN_SND, self.cq.number);
        context.set(qpc::CQN_RCV, self.cq.number);
        let pages = ((64_u64 << LOG_RQ) + (64 << LOG_SQ)).div_ceil(4096);
        let (buffer, dbr) = (self.share(pages * 4096, 4096), self.record());
        context.set(qpc::DBR_ADDR, u32::try_from(dbr).unwrap_or(0));
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&0x500_u16.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        for page in 0..pages {
            input.extend((buffer + page * 4096).to_be_bytes());
        }
        Qp {
            qpn: words(&self.command(&input), 8),
            rq: buffer,
            sq: buffer + (64 << LOG_RQ),
            dbr,
            sq_pi: 0,
            rq_pi: 0,
        }
    }

    /// Takes a QP from RST to RTS.
    pub(crate) fn connect(&mut self, qpn: u32, remote: u32) {
        let mut context = QpContext::zeroed();
        for right in [qpc::RRE, qpc::RWE, qpc::RAE] {
            context.set(right, 1);
        }
        context.set(qpc::PD, self.pd);
        context.set(qpc::CQN_SND, self.cq.number);
        context.set(qpc::CQN_RCV, self.cq.number);
        context.set(qpc::REMOTE_QPN, remote);
        context.set(qpc::MTU, 5);
        context.set(qpc::ACK_TIMEOUT, 14);
        context.set(qpc::RETRY_COUNT, 7);
        context.set(qpc::RNR_RETRY, 7);
        context.set(qpc::MIN_RNR_NAK, 12);
        for opcode in [0x502_u16, 0x503, 0x504] {
            let mut input = [0; 0x110];
            input[..2].copy_from_slice(&opcode.to_be_bytes());
            input[8..12].copy_from_slice(&qpn.to_be_bytes());
            input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
            self.command(&input);
        }
    }

    /// 2RST, and both queues empty again.
    pub(crate) fn reset(&mut self, qp: &mut Qp) {
        let mut input = [0; 16];
        input[..2].copy_from_slice(&0x50a_u16.to_be_bytes());
        input[8..12].copy_from_slice(&qp.qpn.to_be_bytes());
        self.command(&input);
        qp.sq_pi = 0;
        qp.rq_pi = 0;
        self.write(qp.dbr, &[0; 8]);
    }

    /// Posts a send WQE and rings the doorbell; returns its index.
    pub(crate) fn post(&mut self, qp: &mut Qp, opcode: WqeOpcode, imm: u32, body: &[u8]) -> u16 {
        let index = qp.sq_pi;
        let ctrl = CtrlSeg {
            opmod: 0,
            wqe_index: index,
            opcode,
            qpn: Qpn::truncate(qp.qpn),
            ds: Ds::truncate(u8::try_from((16 + body.len()).div_ceil(16)).unwrap_or(0)),
            signature: 0,
            fence: FenceMode::NONE,
            completion: CompletionMode::Always,
            solicited: false,
            imm,
        };
        let mut wqe = emit(&ctrl, CtrlSeg::LEN);
        wqe.extend_from_slice(body);
        let size = 64_u64 << LOG_SQ;
        for (at, chunk) in (0_u64..).step_by(16).zip(wqe.chunks(16)) {
            let slot = (u64::from(index) * 64 + at) % size;
            self.write(qp.sq + slot, chunk);
        }
        let wqebbs = u16::try_from(wqe.len().div_ceil(64)).unwrap_or(0);
        qp.sq_pi = qp.sq_pi.wrapping_add(wqebbs);
        self.write(qp.dbr + 4, &u32::from(qp.sq_pi).to_be_bytes());
        let mut doorbell = [0; 8];
        doorbell[4..].copy_from_slice(&(qp.qpn << 8).to_be_bytes());
        self.ring(0x800, &doorbell);
        index
    }

    fn ring(&mut self, register: u64, value: &[u8]) {
        let at = u64::from(self.uar) * 4096 + register;
        self.device.mmio_write(self.now, at, value);
        self.busy = true;
    }

    /// Posts a receive WQE of one segment.
    pub(crate) fn post_receive(&mut self, qp: &mut Qp, key: Mkey, va: u64, len: usize) {
        let end = DataSeg {
            lkey: Mkey::TERMINATE_SCATTER_LIST,
            ..DataSeg::default()
        };
        let mut wqe = data(key, va, len);
        wqe.extend(emit(&end, DataSeg::LEN));
        let slot = u64::from(qp.rq_pi % (1 << LOG_RQ)) * 64;
        self.write(qp.rq + slot, &wqe);
        qp.rq_pi = qp.rq_pi.wrapping_add(1);
        self.write(qp.dbr, &u32::from(qp.rq_pi).to_be_bytes());
    }

    /// The bytes of the send WQE at a block: to the end of what a WQE can be long.
    pub(crate) fn send_wqe(&self, qp: &Qp, index: u16) -> Vec<u8> {
        let mut wqe = vec![0; 256];
        let size = 64_u64 << LOG_SQ;
        for (at, chunk) in (0_u64..).step_by(16).zip(wqe.chunks_mut(16)) {
            self.read(qp.sq + (u64::from(index) * 64 + at) % size, chunk);
        }
        wqe
    }

    /// The bytes of a receive WQE.
    pub(crate) fn receive_wqe(&self, qp: &Qp, index: u16) -> Vec<u8> {
        let mut wqe = vec![0; 64];
        let slot = u64::from(index % (1 << LOG_RQ)) * 64;
        self.read(qp.rq + slot, &mut wqe);
        wqe
    }

    /// Lets the device work for a while.
    pub(crate) fn step(&mut self) {
        let next = self.device.step(self.now);
        self.busy = next.is_some_and(|at| at <= self.now);
        self.alarm = next.filter(|&at| at > self.now);
    }

    /// Whether there are completions that nobody has looked at.
    pub(crate) fn has_completions(&self) -> bool {
        self.device.counters.cqes != self.seen.1
    }

    /// Whether there are events that nobody has looked at.
    pub(crate) fn has_events(&self) -> bool {
        self.device.counters.eqes != self.seen.0
    }

    /// All events are looked at.
    pub(crate) fn see_events(&mut self) {
        self.seen.0 = self.device.counters.eqes;
    }

    /// The next completion.
    pub(crate) fn poll_cq(&mut self) -> Option<Completion> {
        let index = self.cq.consumer;
        let at = self.cq.base + u64::from(index % (1 << LOG_CQ)) * 64;
        let mut cqe = [0; 64];
        self.read(at, &mut cqe);
        let owner = u32::from(cqe[0x3f] & 1);
        let opcode = cqe[0x3f] >> 4;
        if opcode == 0xf || owner != index >> LOG_CQ & 1 {
            self.seen.1 = self.device.counters.cqes;
            return None;
        }
        self.cq.consumer += 1;
        self.write(self.cq.dbr, &self.cq.consumer.to_be_bytes());
        let is_error = matches!(opcode, 0xd | 0xe);
        Some(Completion {
            qpn: words(&cqe, 0x38) & 0xff_ffff,
            receive: matches!(opcode, 0x1..=0x4 | 0xe),
            index: u16::from_be_bytes([cqe[0x3c], cqe[0x3d]]),
            syndrome: if is_error { cqe[0x37] } else { 0 },
        })
    }

    /// The event `ahead` of the first that was not consumed, if the device has written it.
    pub(crate) fn peek_eq(&self, ahead: u32) -> Option<Eqe> {
        let index = self.eq.consumer.wrapping_add(ahead);
        let at = self.eq.base + u64::from(index % (1 << LOG_EQ)) * 64;
        let mut bytes = [0; 64];
        self.read(at, &mut bytes);
        let eqe = Eqe::parse(&bytes).ok()?;
        (u32::from(eqe.owner) == index >> LOG_EQ & 1).then_some(eqe)
    }

    /// How many events were consumed.
    pub(crate) fn consumed(&self) -> u32 {
        self.eq.consumer
    }

    /// Tells the device how far the driver is.
    pub(crate) fn consume(&mut self, count: u32, arm: bool) {
        self.eq.consumer = self.eq.consumer.wrapping_add(count);
        let doorbell = self.eq.number << 24 | self.eq.consumer & 0xff_ffff;
        let register = if arm { 0x40 } else { 0x48 };
        self.ring(register, &doorbell.to_be_bytes());
    }
}
