// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A driver small enough for tests: memory, queues, MKeys, doorbells.

mod poll;
mod srq;
mod wqe;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectx::caps::CapType;
use connectx::ifc::{cqc, eqc, odp_cap, Field};
use connectx::qp::context as qpc;
use connectx::qp::context::QpContext;
use connectx::{Device, GuestMemory, Interrupts, Journal, Ram};
use firmware_cmds::mkey::{CreateMkeyIn, CreateMkeyOut};
use firmware_cmds::umr::{MkeyMask, UmrCtrlSeg, UmrFlags, XltOffset};
use firmware_cmds::wqe::{CtrlSeg, WqeOpcode};
use firmware_cmds::{
    Access, AccessMode, DmaAddr, LogPageSize, Mkc, Mkey, MkeyVariant, Mtt, MttAccess, PageFault,
    Pdn, Qpn, Scheme, Wire,
};

pub(crate) use srq::TestSrq;
use wqe::terminator;
pub(crate) use wqe::{address, atomic, ctrl, data, emit, inline, mtt, raddr, xrc};

/// Guest memory of a rig.
const MEMORY: u64 = 256 << 20;
/// Entries of each CQ and the EQ.
const LOG_ENTRIES: u32 = 10;
/// WQEBBs of each send queue: short, so that tests wrap.
pub(crate) const LOG_SQ: u32 = 4;
/// WQEs of each receive queue, of 64 bytes.
pub(crate) const LOG_RQ: u32 = 4;
/// `log_rq_stride` of 64 bytes.
const RQ_STRIDE: u32 = 2;

struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn fire(&mut self, _: u16) {}
}

/// A completion, as the driver reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// Opcode of the CQE.
    pub(crate) opcode: u8,
    /// Opcode of the WQE.
    pub(crate) send_opcode: u8,
    /// Local QP.
    pub(crate) qpn: u32,
    /// Immediate data.
    pub(crate) immediate: u32,
    /// Bytes.
    pub(crate) byte_count: u32,
    /// Index of the WQE.
    pub(crate) counter: u16,
    /// Syndrome, 0 for success.
    pub(crate) syndrome: u8,
}

/// A ring that the device writes and the driver polls.
struct Ring {
    base: u64,
    consumer: u32,
    dbr: u64,
}

/// A QP as its owner sees it.
pub(crate) struct TestQp {
    /// Its number.
    pub(crate) qpn: u32,
    sq: u64,
    rq: u64,
    /// Its doorbell record.
    pub(crate) dbr: u64,
    /// WQEBBs posted.
    pub(crate) sq_pi: u16,
    rq_pi: u16,
}

/// An MKey made by the driver's way: CREATE_MKEY, then UMR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TestMr {
    /// The key.
    pub(crate) key: Mkey,
    /// First address of its space.
    pub(crate) va: u64,
    /// Its memory.
    pub(crate) iova: u64,
}

/// The device and a driver for it.
pub(crate) struct Rig {
    /// The device.
    pub(crate) device: Device,
    /// The guest's memory.
    pub(crate) mem: Arc<Ram>,
    /// Time told to the device.
    pub(crate) now: Duration,
    /// Lines of the journal.
    pub(crate) journal: Arc<Mutex<Vec<String>>>,
    next: u64,
    pub(crate) uar: u32,
    pub(crate) eqn: u32,
    eq: Ring,
    pub(crate) cqn: u32,
    cq: Ring,
    /// Protection domain of everything but the UMR QP.
    pub(crate) pd: u32,
    pub(crate) xrcd: u32,
    /// Translates nothing.
    pub(crate) pa: Mkey,
    umr: Option<TestQp>,
}

fn words(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Rig {
    /// A device in use, with one CQ, a PA MKey and a UMR QP.
    pub(crate) fn new(scheme: Scheme) -> Self {
        Self::with_seed(scheme, None)
    }

    /// The same with the order of a seed, if there is one.
    pub(crate) fn with_seed(scheme: Scheme, seed: Option<u64>) -> Self {
        let mem = Arc::new(Ram::new(MEMORY));
        let journal = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&journal);
        let mut device = Device::new(
            Box::new(Arc::clone(&mem)),
            Box::new(NoInterrupts),
            Journal::new(move |line: &str| sink.lock().unwrap().push(line.to_owned())),
            scheme,
        );
        if let Some(seed) = seed {
            device.set_seed(seed);
        }
        if scheme == Scheme::Memory {
            let mut caps = *device.hca.current().get(CapType::Odp);
            odp_cap::MEM_PAGE_FAULT.set(&mut caps, 1);
            device.hca.choose(CapType::Odp, &caps).unwrap();
        }
        device.hca.enabled = true;
        device.hca.initialized = true;
        let ring = |base| Ring {
            base,
            consumer: 0,
            dbr: 0,
        };
        let mut rig = Self {
            device,
            mem,
            now: Duration::ZERO,
            journal,
            next: 0x10_0000,
            uar: 0,
            eqn: 0,
            eq: ring(0),
            cqn: 0,
            cq: ring(0),
            pd: 0,
            xrcd: 0,
            pa: Mkey::new(0),
            umr: None,
        };
        rig.uar = rig.alloc(0x802);
        rig.pd = rig.alloc(0x800);
        rig.xrcd = rig.alloc(0x80e);
        rig.eq = ring(rig.pages(16));
        rig.eqn = rig.create_eq();
        rig.cq = ring(rig.pages(16));
        rig.cq.dbr = rig.pages(1);
        rig.cqn = rig.create_cq();
        let mut mkc = rig.mkc(AccessMode::Pa);
        mkc.length64 = true;
        mkc.free = false;
        rig.pa = rig.create_mkey(&mkc, &[]);
        rig.umr = Some(rig.create_qp(0xc));
        let qpn = rig.umr.as_ref().unwrap().qpn;
        rig.connect(qpn, 0);
        rig
    }

    /// `count` pages of memory, zeroed.
    pub(crate) fn pages(&mut self, count: u64) -> u64 {
        let at = self.next;
        self.next += count * 4096;
        assert!(self.next <= MEMORY, "rig out of memory");
        at
    }

    /// Executes a command that must succeed.
    pub(crate) fn command(&mut self, input: &[u8], output: usize) -> Vec<u8> {
        let mut out = vec![0; output];
        self.device.execute(input, &mut out);
        assert_eq!(out[0], 0, "command {:02x?}: {out:02x?}", &input[..8]);
        out
    }

    /// Executes any command and returns its status.
    pub(crate) fn status(&mut self, input: &[u8]) -> u8 {
        let mut out = vec![0; 512];
        self.device.execute(input, &mut out);
        out[0]
    }

    fn alloc(&mut self, opcode: u16) -> u32 {
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        words(&self.command(&input, 16), 8)
    }

    fn queue_command(&mut self, opcode: u16, fields: &[(Field, u64)], base: u64) -> Vec<u8> {
        let mut input = vec![0; 0x110 + 16 * 8];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        for &(field, value) in fields {
            field.set(&mut input[0x10..0x50], value);
        }
        for page in 0..16_usize {
            let at = 0x110 + page * 8;
            let address = base + u64::try_from(page).unwrap() * 4096;
            input[at..at + 8].copy_from_slice(&address.to_be_bytes());
        }
        input
    }

    fn create_eq(&mut self) -> u32 {
        let fields = [
            (eqc::LOG_EQ_SIZE, u64::from(LOG_ENTRIES)),
            (eqc::UAR_PAGE, u64::from(self.uar)),
        ];
        let mut input = self.queue_command(0x301, &fields, self.eq.base);
        // For user contexts, too.
        input[2..4].copy_from_slice(&0xffff_u16.to_be_bytes());
        input[0x58..0x60].copy_from_slice(&0xffff_fffe_u64.to_be_bytes());
        // Software initialises the owner bits to 1.
        for entry in 0..1_u64 << LOG_ENTRIES {
            let owner = DmaAddr::new(self.eq.base + entry * 64 + 63);
            self.mem.write(owner, &[1]).unwrap();
        }
        words(&self.command(&input, 16), 8)
    }

    fn create_cq(&mut self) -> u32 {
        let fields = [
            (cqc::LOG_CQ_SIZE, u64::from(LOG_ENTRIES)),
            (cqc::UAR_PAGE, u64::from(self.uar)),
            (cqc::C_EQN, u64::from(self.eqn)),
            (cqc::DBR_ADDR, self.cq.dbr),
        ];
        let input = self.queue_command(0x400, &fields, self.cq.base);
        for entry in 0..1_u64 << LOG_ENTRIES {
            let owner = DmaAddr::new(self.cq.base + entry * 64 + 63);
            self.mem.write(owner, &[0xf1]).unwrap();
        }
        words(&self.command(&input, 16), 8)
    }

    /// A context with every right, free, in the rig's domain.
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
            pd: Pdn::new(self.pd).unwrap(),
            log_page_size: LogPageSize::ADAPTER_PAGE,
            ..Mkc::default()
        }
    }

    /// CREATE_MKEY with a translation list.
    pub(crate) fn create_mkey(&mut self, mkc: &Mkc, list: &[u8]) -> Mkey {
        let create = CreateMkeyIn {
            mkc: *mkc,
            translations_octword_actual_size: u32::try_from(list.len() / 16).unwrap(),
            ..CreateMkeyIn::default()
        };
        let mut input = emit(&create, CreateMkeyIn::LEN);
        input.extend_from_slice(list);
        let out = CreateMkeyOut::parse(&self.command(&input, 16)).unwrap();
        Mkey::from_parts(out.mkey_index, mkc.variant)
    }

    /// A QP of a service type, in RST.
    pub(crate) fn create_qp(&mut self, st: u32) -> TestQp {
        self.create_qp_with(st, LOG_SQ)
    }

    /// What a QP is created with, but for the address of its doorbell record.
    pub(crate) fn qp_context(&self, st: u32, log_sq: u32) -> QpContext {
        let mut context = QpContext::zeroed();
        context.set(qpc::ST, st);
        context.set(qpc::PD, self.pd);
        context.set(qpc::LOG_SQ_SIZE, log_sq);
        context.set(qpc::LOG_RQ_SIZE, LOG_RQ);
        context.set(qpc::LOG_RQ_STRIDE, RQ_STRIDE);
        context.set(qpc::UAR_PAGE, self.uar);
        context.set(qpc::CQN_SND, self.cqn);
        context.set(qpc::CQN_RCV, self.cqn);
        context.set(qpc::XRCD, self.xrcd);
        context
    }

    /// A QP with `2^log_sq` WQEBBs of send queue.
    pub(crate) fn create_qp_with(&mut self, st: u32, log_sq: u32) -> TestQp {
        self.create_qp_from(self.qp_context(st, log_sq), log_sq)
    }

    /// A QP with this context, whose send queue has `2^log_sq` WQEBBs.
    pub(crate) fn create_qp_from(&mut self, mut context: QpContext, log_sq: u32) -> TestQp {
        let pages = ((64_u64 << LOG_RQ) + (64 << log_sq)).div_ceil(4096);
        let (buffer, dbr) = (self.pages(pages), self.pages(1));
        context.set(qpc::DBR_ADDR, u32::try_from(dbr).unwrap());
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&0x500_u16.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        for page in 0..pages {
            input.extend((buffer + page * 4096).to_be_bytes());
        }
        TestQp {
            qpn: words(&self.command(&input, 16), 8),
            rq: buffer,
            sq: buffer + (64 << LOG_RQ),
            dbr,
            sq_pi: 0,
            rq_pi: 0,
        }
    }

    /// A transition command.
    pub(crate) fn modify(&mut self, opcode: u16, qpn: u32, opt_mask: u32, context: &QpContext) {
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        input[8..12].copy_from_slice(&qpn.to_be_bytes());
        input[0x10..0x14].copy_from_slice(&opt_mask.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        self.command(&input, 16);
    }

    /// Takes a QP from RST to RTS.
    pub(crate) fn connect(&mut self, qpn: u32, remote: u32) {
        let mut context = QpContext::zeroed();
        for right in [qpc::RRE, qpc::RWE, qpc::RAE] {
            context.set(right, 1);
        }
        context.set(qpc::PD, self.pd);
        context.set(qpc::CQN_SND, self.cqn);
        context.set(qpc::CQN_RCV, self.cqn);
        context.set(qpc::REMOTE_QPN, remote);
        context.set(qpc::MTU, 3);
        context.set(qpc::ACK_TIMEOUT, 14);
        context.set(qpc::RETRY_COUNT, 2);
        context.set(qpc::RNR_RETRY, 2);
        context.set(qpc::MIN_RNR_NAK, 12);
        for opcode in [0x502, 0x503, 0x504] {
            self.modify(opcode, qpn, 0, &context);
        }
    }

    /// 2RST, and both queues empty again.
    pub(crate) fn reset(&mut self, qp: &mut TestQp) {
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&0x50a_u16.to_be_bytes());
        input[8..12].copy_from_slice(&qp.qpn.to_be_bytes());
        self.command(&input, 16);
        qp.sq_pi = 0;
        qp.rq_pi = 0;
        self.mem.write(DmaAddr::new(qp.dbr), &[0; 8]).unwrap();
    }

    /// Adds a rule.
    pub(crate) fn rule(&mut self, rule: &str) -> u64 {
        self.device.rules.add(rule).unwrap()
    }

    /// What responders tell when they fault; nothing if `reply` is empty.
    pub(crate) fn answer_faults(&mut self, reply: &str) {
        if !reply.is_empty() {
            self.rule(&format!("fault do=shape reply={reply}"));
        }
    }

    /// Takes the UMR QP through RST to RTS again.
    pub(crate) fn recover_umr(&mut self) {
        let mut umr = self.umr.take().unwrap();
        self.reset(&mut umr);
        self.connect(umr.qpn, 0);
        self.umr = Some(umr);
    }

    /// Two connected RC QPs.
    pub(crate) fn rc_pair(&mut self) -> (TestQp, TestQp) {
        let (a, b) = (self.create_qp(0), self.create_qp(0));
        self.connect(a.qpn, b.qpn);
        self.connect(b.qpn, a.qpn);
        (a, b)
    }

    /// An MKey over `pages` new pages, each with `access`, from `va` on.
    pub(crate) fn mr(&mut self, va: u64, pages: u64, access: MttAccess) -> TestMr {
        let iova = self.pages(pages);
        let mut mkc = self.mkc(AccessMode::Mtt);
        mkc.translations_octword_size = u32::try_from(pages.div_ceil(2)).unwrap();
        let key = self.create_mkey(&mkc, &[]);
        mkc.free = false;
        mkc.start_addr = firmware_cmds::Iova::new(va);
        mkc.len = pages * 4096;
        let list: Vec<_> = (0..pages).map(|n| mtt(iova + n * 4096, access)).collect();
        let mask = MkeyMask::new()
            .with_free(true)
            .with_len(true)
            .with_start_addr(true)
            .with_key(true);
        self.umr_ok(
            key,
            UmrFlags::new().with_check_not_free(true),
            mask,
            &mkc,
            0,
            &list,
        );
        TestMr { key, va, iova }
    }

    /// Writes MTTs of an MKey from entry `first` (a multiple of 8) on.
    pub(crate) fn set_mtts(&mut self, key: Mkey, first: u64, list: &[Mtt]) {
        let flags = UmrFlags::new().with_check_free(true);
        self.umr_ok(key, flags, MkeyMask::new(), &Mkc::default(), first, list);
    }

    /// A UMR that must succeed.
    pub(crate) fn umr_ok(
        &mut self,
        key: Mkey,
        flags: UmrFlags,
        mask: MkeyMask,
        mkc: &Mkc,
        first: u64,
        list: &[Mtt],
    ) {
        self.post_umr(key, flags, mask, mkc, first, list);
        let done = self.run();
        assert_eq!(done.len(), 1, "{done:?} {:?}", self.journal.lock().unwrap());
        assert_eq!((done[0].opcode, done[0].send_opcode), (0, 0x25), "{done:?}");
    }

    /// The QP that UMRs are posted to.
    pub(crate) fn umr_qpn(&self) -> u32 {
        self.umr.as_ref().map_or(0, |qp| qp.qpn)
    }

    /// Posts a UMR with a list of MTTs in memory.
    pub(crate) fn post_umr(
        &mut self,
        key: Mkey,
        flags: UmrFlags,
        mask: MkeyMask,
        mkc: &Mkc,
        first: u64,
        list: &[Mtt],
    ) {
        let mut bytes: Vec<u8> = list.iter().flat_map(|mtt| emit(mtt, Mtt::LEN)).collect();
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let at = self.pages(u64::try_from(bytes.len()).unwrap().div_ceil(4096).max(1));
        self.mem.write(DmaAddr::new(at), &bytes).unwrap();
        let umr = UmrCtrlSeg {
            flags: flags.with_translation_offset_en(true),
            xlt_octowords: u16::try_from(bytes.len() / 16).unwrap(),
            offset: XltOffset::truncate(first / 2),
            mkey_mask: mask,
        };
        let mut body = emit(&umr, UmrCtrlSeg::LEN);
        body.extend(emit(mkc, Mkc::LEN));
        body.extend(data(self.pa, at, bytes.len()));
        let mut qp = self.umr.take().unwrap();
        self.post(&mut qp, WqeOpcode::UMR, key.get(), &body);
        self.umr = Some(qp);
    }

    /// Posts a send WQE and rings the doorbell.
    pub(crate) fn post(&mut self, qp: &mut TestQp, opcode: WqeOpcode, imm: u32, body: &[u8]) {
        let ctrl = ctrl(qp, opcode, imm, body.len());
        let mut wqe = emit(&ctrl, CtrlSeg::LEN);
        wqe.extend_from_slice(body);
        self.post_raw(qp, &wqe);
    }

    /// Puts bytes into the send queue, around its end, and rings the doorbell.
    pub(crate) fn post_raw(&mut self, qp: &mut TestQp, wqe: &[u8]) {
        let size = 64_u64 << LOG_SQ;
        for (at, chunk) in (0_u64..).step_by(16).zip(wqe.chunks(16)) {
            let slot = (u64::from(qp.sq_pi) * 64 + at) % size;
            self.mem.write(DmaAddr::new(qp.sq + slot), chunk).unwrap();
        }
        let wqebbs = u16::try_from(wqe.len().div_ceil(64)).unwrap();
        qp.sq_pi = qp.sq_pi.wrapping_add(wqebbs);
        self.ring(qp);
    }

    /// Writes the doorbell record and the doorbell.
    pub(crate) fn ring(&mut self, qp: &TestQp) {
        let record = u32::from(qp.sq_pi).to_be_bytes();
        self.mem.write(DmaAddr::new(qp.dbr + 4), &record).unwrap();
        let mut doorbell = [0; 8];
        doorbell[4..].copy_from_slice(&(qp.qpn << 8).to_be_bytes());
        let at = u64::from(self.uar) * 4096 + 0x800;
        self.device.mmio_write(self.now, at, &doorbell);
    }

    /// Posts a receive WQE.
    pub(crate) fn post_recv(&mut self, qp: &mut TestQp, segments: &[(Mkey, u64, usize)]) {
        let mut wqe: Vec<u8> = segments
            .iter()
            .flat_map(|&(key, va, len)| data(key, va, len))
            .collect();
        if wqe.len() < 64 {
            wqe.extend(terminator());
        }
        self.post_recv_raw(qp, &wqe);
    }

    /// Puts bytes into the receive queue.
    pub(crate) fn post_recv_raw(&mut self, qp: &mut TestQp, wqe: &[u8]) {
        let slot = u64::from(qp.rq_pi % (1 << LOG_RQ)) * 64;
        self.mem.write(DmaAddr::new(qp.rq + slot), wqe).unwrap();
        qp.rq_pi = qp.rq_pi.wrapping_add(1);
        let record = u32::from(qp.rq_pi).to_be_bytes();
        self.mem.write(DmaAddr::new(qp.dbr), &record).unwrap();
    }

    /// Lets the device work until it has nothing to do now, and returns what completed.
    pub(crate) fn run(&mut self) -> Vec<Completion> {
        for _ in 0..10_000 {
            match self.device.step(self.now) {
                Some(at) if at <= self.now => {}
                _ => return self.poll_cq(),
            }
        }
        panic!("the device does not come to rest");
    }

    /// [`Rig::run`] after time has passed.
    pub(crate) fn run_after(&mut self, ms: u64) -> Vec<Completion> {
        self.now += Duration::from_millis(ms);
        self.run()
    }

    /// Resumes a fault and returns what completes.
    pub(crate) fn resume(&mut self, fault: &PageFault, error: bool) -> Vec<Completion> {
        self.command(&fault.resume(error).to_bytes(), 16);
        self.run()
    }

    /// Fills memory with a pattern and returns it.
    pub(crate) fn fill(&self, at: u64, len: usize, seed: u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len)
            .map(|n| u8::try_from(n * 31 % 251).unwrap() ^ seed)
            .collect();
        self.mem.write(DmaAddr::new(at), &bytes).unwrap();
        bytes
    }

    /// Reads memory.
    pub(crate) fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read(DmaAddr::new(at), &mut bytes).unwrap();
        bytes
    }

    /// Words of the strict log.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.device.journal.violations().to_vec()
    }
}
