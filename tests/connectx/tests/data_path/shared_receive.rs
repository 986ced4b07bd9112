// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! WQEs of shared receive queues whose buffers are missing: whose they are meanwhile, and what
//! becomes of them.

use connectx::ifc::{rmpc, xrc_srqc};
use connectx::qp::context as qpc;
use connectx::GuestMemory;
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{DmaAddr, EventType, MttAccess, PageFault, Qpn, Scheme, WqeFaultKind};

use crate::pair::{kinds, page_in, RW, VA};
use crate::rig::{data, Rig, TestMr, TestQp, LOG_SQ};

const LEN: usize = 64;
const LOG_STRIDE: u32 = 6;
const LOG_SIZE: u32 = 2;

/// A shared receive queue.
struct Srq {
    srqn: u32,
    buffer: u64,
    dbr: u64,
    posted: u32,
}

impl Srq {
    /// A receive memory pool, as a basic SRQ is made.
    fn rmp(rig: &mut Rig) -> Self {
        let (buffer, dbr) = (rig.pages(1), rig.pages(1));
        let pd = rig.pd;
        let create = |input: &mut [u8]| {
            let context = &mut input[0x20..];
            rmpc::PD.set(context, pd.into());
            rmpc::LOG_WQ_STRIDE.set(context, LOG_STRIDE.into());
            rmpc::LOG_WQ_SZ.set(context, LOG_SIZE.into());
            rmpc::DBR_ADDR.set(context, dbr);
        };
        Self::create(rig, 0x90c, buffer, dbr, create)
    }

    /// An XRC SRQ.
    fn xrc(rig: &mut Rig) -> Self {
        let (buffer, dbr) = (rig.pages(1), rig.pages(1));
        let (pd, xrcd, cqn) = (rig.pd, rig.xrcd, rig.cqn);
        let create = |input: &mut [u8]| {
            let context = &mut input[0x10..];
            xrc_srqc::PD.set(context, pd.into());
            xrc_srqc::XRCD.set(context, xrcd.into());
            xrc_srqc::CQN.set(context, cqn.into());
            xrc_srqc::LOG_RQ_STRIDE.set(context, (LOG_STRIDE - 4).into());
            xrc_srqc::LOG_XRC_SRQ_SIZE.set(context, LOG_SIZE.into());
            xrc_srqc::DB_RECORD_ADDR_L.set(context, dbr >> 2);
        };
        Self::create(rig, 0x705, buffer, dbr, create)
    }

    fn create(
        rig: &mut Rig,
        opcode: u16,
        buffer: u64,
        dbr: u64,
        context: impl Fn(&mut [u8]),
    ) -> Self {
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        context(&mut input);
        input.extend(buffer.to_be_bytes());
        let output = rig.command(&input, 16);
        Self {
            srqn: u32::from_be_bytes(output[8..12].try_into().unwrap()),
            buffer,
            dbr,
            posted: 0,
        }
    }

    /// Posts a WQE for the start of an MR.
    fn post(&mut self, rig: &Rig, mr: &TestMr) {
        let slot = self.buffer + u64::from(self.posted << LOG_STRIDE);
        self.posted += 1;
        let next = u16::try_from(self.posted).unwrap().to_be_bytes();
        let mut wqe = vec![0; 16];
        wqe[2..4].copy_from_slice(&next);
        wqe.extend(data(mr.key, mr.va, LEN));
        // The end of the list.
        wqe.extend([0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rig.mem.write(DmaAddr::new(slot), &wqe).unwrap();
        let count = self.posted.to_be_bytes();
        rig.mem.write(DmaAddr::new(self.dbr), &count).unwrap();
    }
}

/// Two connections whose receivers share a queue of two WQEs: the buffer of the first is
/// missing.
struct Shared {
    rig: Rig,
    srq: Srq,
    a: (TestQp, TestQp),
    b: (TestQp, TestQp),
    src: TestMr,
    missing: TestMr,
    present: TestMr,
}

impl Shared {
    fn new(scheme: Scheme) -> Self {
        let mut rig = Rig::new(scheme);
        let mut srq = Srq::rmp(&mut rig);
        let src = rig.mr(VA, 8, RW);
        let missing = rig.mr(2 * VA, 8, MttAccess::NONE);
        let present = rig.mr(3 * VA, 8, RW);
        srq.post(&rig, &missing);
        srq.post(&rig, &present);
        let srqn = srq.srqn;
        let mut connection = || {
            let mut context = rig.qp_context(0, LOG_SQ);
            context.set(qpc::RQ_TYPE, 1);
            context.set(qpc::SRQN, srqn);
            let (from, to) = (rig.create_qp(0), rig.create_qp_from(context, LOG_SQ));
            rig.connect(from.qpn, to.qpn);
            rig.connect(to.qpn, from.qpn);
            (from, to)
        };
        let (a, b) = (connection(), connection());
        Self {
            rig,
            srq,
            a,
            b,
            src,
            missing,
            present,
        }
    }

    /// SENDs on the first connection, into the WQE whose buffer is missing.
    fn stall(&mut self) -> PageFault {
        let body = data(self.src.key, self.src.va, LEN);
        self.rig.post(&mut self.a.0, WqeOpcode::SEND, 0, &body);
        assert_eq!(self.rig.run(), []);
        self.rig.fault()
    }

    /// SENDs on the second connection, into the other WQE.
    fn other(&mut self) {
        let body = data(self.src.key, self.src.va, LEN);
        self.rig.post(&mut self.b.0, WqeOpcode::SEND, 0, &body);
        let done = self.rig.run();
        assert_eq!(kinds(&done), [(2, 0), (0, 0)]);
        assert_eq!((done[0].qpn, done[0].counter), (self.b.1.qpn, 1));
    }

    /// A command that names a QP.
    fn qp_command(&mut self, opcode: u16, qpn: u32) {
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        input[8..12].copy_from_slice(&qpn.to_be_bytes());
        self.rig.command(&input, 16);
    }
}

#[test]
fn a_wqe_stays_with_its_message_while_that_waits() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        for reply in ["", "rnr", "rnr_each_faults"] {
            let mut t = Shared::new(scheme);
            t.rig.answer_faults(reply);
            let requester = t.rig.device.qps.get_mut(Qpn::truncate(t.a.0.qpn)).unwrap();
            requester.context.set(qpc::RNR_RETRY, 7);
            let bytes = t.rig.fill(t.src.iova, LEN, 1);
            let mut faults = vec![t.stall()];
            if let PageFault::Wqe(fault) = faults[0] {
                assert_eq!(fault.kind, WqeFaultKind::SharedReceive);
                assert_eq!(fault.wq_number.get(), t.srq.srqn);
                assert_eq!(fault.wqe_index, 0);
            }
            // Another message gets another WQE, and the retries of this one get none.
            t.other();
            assert_eq!(t.rig.run_after(1), []);
            assert_eq!(t.rig.run_after(1), []);
            faults.extend(t.rig.faults());
            let again = if reply == "rnr_each_faults" { 2 } else { 0 };
            assert_eq!(faults.len(), 1 + again);
            let missing = t.missing;
            page_in(&mut t.rig, &missing, 0, 8, RW);
            let mut done = Vec::new();
            for fault in &faults {
                done.extend(t.rig.resume(fault, false));
            }
            done.extend(t.rig.run_after(1));
            assert_eq!(kinds(&done), [(2, 0), (0, 0)], "{reply}");
            assert_eq!((done[0].qpn, done[0].counter), (t.a.1.qpn, 0));
            assert_eq!(t.rig.peek(t.missing.iova, LEN), bytes);
            assert_eq!(t.rig.peek(t.present.iova, LEN), bytes);
            assert!(t.rig.violations().is_empty());
        }
    }
}

#[test]
fn there_is_no_wqe_left_for_a_third_message() {
    let mut t = Shared::new(Scheme::Memory);
    t.stall();
    t.other();
    let body = data(t.src.key, t.src.va, LEN);
    t.rig.post(&mut t.b.0, WqeOpcode::SEND, 0, &body);
    assert_eq!(t.rig.run(), []);
    assert_eq!(t.rig.device.counters.rnr_naks, 1);
    let missing = t.missing;
    t.srq.post(&t.rig, &missing);
    // The third WQE has the same buffer as the first.
    page_in(&mut t.rig, &missing, 0, 8, RW);
    let done = t.rig.run_after(1);
    assert_eq!(kinds(&done), [(2, 0), (0, 0)]);
    assert_eq!(done[0].counter, 2);
}

#[test]
fn an_error_of_the_qp_flushes_the_wqe() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        let mut t = Shared::new(scheme);
        let fault = t.stall();
        let qpn = t.a.1.qpn;
        t.qp_command(0x507, qpn);
        let done = t.rig.run();
        assert_eq!(kinds(&done), [(0xe, 5)]);
        assert_eq!((done[0].qpn, done[0].counter), (qpn, 0));
        let events: Vec<_> = t.rig.events().iter().map(|eqe| eqe.event_type).collect();
        assert_eq!(events, [EventType(0x13)]);
        assert!(t.rig.device.faults.is_empty());
        // The resume is late, the WQE gone, the queue in order.
        assert_eq!(t.rig.resume(&fault, false), []);
        t.other();
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn a_resume_with_error_fails_the_wqe() {
    let mut t = Shared::new(Scheme::Transport);
    let fault = t.stall();
    let done = t.rig.resume(&fault, true);
    assert_eq!(kinds(&done), [(0xd, 0x14), (0xe, 0x04)]);
    assert_eq!((done[1].qpn, done[1].counter), (t.a.1.qpn, 0));
    t.other();
}

#[test]
fn the_wqe_goes_with_a_qp_that_is_reset_or_destroyed() {
    // Without the error state in between it does not complete (IBTA 10.3.1).
    for opcode in [0x50a, 0x501] {
        let mut t = Shared::new(Scheme::Transport);
        let fault = t.stall();
        let qpn = t.a.1.qpn;
        t.qp_command(opcode, qpn);
        assert!(t.rig.device.faults.is_empty());
        assert_eq!(t.rig.run(), []);
        assert_eq!(t.rig.resume(&fault, false), []);
        t.other();
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn the_wqe_outlives_a_requester_that_is_reset() {
    let mut t = Shared::new(Scheme::Memory);
    let bytes = t.rig.fill(t.src.iova, LEN, 1);
    let fault = t.stall();
    t.rig.reset(&mut t.a.0);
    t.rig.connect(t.a.0.qpn, t.a.1.qpn);
    assert_eq!(t.rig.resume(&fault, false), []);
    t.other();
    let missing = t.missing;
    page_in(&mut t.rig, &missing, 0, 8, RW);
    let body = data(t.src.key, t.src.va, LEN);
    t.rig.post(&mut t.a.0, WqeOpcode::SEND, 0, &body);
    let done = t.rig.run();
    assert_eq!(kinds(&done), [(2, 0), (0, 0)]);
    assert_eq!(done[0].counter, 0);
    assert_eq!(t.rig.peek(t.missing.iova, LEN), bytes);
}

#[test]
fn an_xrc_srq_that_is_destroyed_leaves_no_message_behind() {
    for reply in ["", "rnr"] {
        let mut rig = Rig::new(Scheme::Transport);
        rig.answer_faults(reply);
        let mut srq = Srq::xrc(&mut rig);
        let src = rig.mr(VA, 8, RW);
        let dst = rig.mr(2 * VA, 8, MttAccess::NONE);
        srq.post(&rig, &dst);
        let (mut a, b) = (rig.create_qp(3), rig.create_qp(3));
        rig.connect(a.qpn, b.qpn);
        rig.connect(b.qpn, a.qpn);
        let mut body = srq.srqn.to_be_bytes().to_vec();
        body.resize(16, 0);
        body.extend(data(src.key, src.va, LEN));
        rig.post(&mut a, WqeOpcode::SEND, 0, &body);
        assert_eq!(rig.run(), []);
        let fault = rig.fault();
        let PageFault::Wqe(wqe) = fault else {
            panic!("{fault:?}");
        };
        assert_eq!(wqe.wq_number.get(), srq.srqn);
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&0x706_u16.to_be_bytes());
        input[8..12].copy_from_slice(&srq.srqn.to_be_bytes());
        rig.command(&input, 16);
        assert!(rig.device.faults.is_empty());
        // The driver finds no queue for the event and does not resume it. The request ends.
        assert_eq!(kinds(&rig.run_after(1)), [(0xd, 0x12)], "{reply}");
        assert!(rig.violations().is_empty());
    }
}
