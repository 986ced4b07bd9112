// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Dynamic connections: initiators that name a target with each message, and targets.

use connectx::ifc::dctc;
use connectx::qp::context as qpc;
use firmware_cmds::wqe::{BaseAv, ServiceLevel, StatRate, WqeOpcode};
use firmware_cmds::{EventType, MttAccess, Qpn, Scheme};

use crate::devx::{about, number, run, user, BAD_PARAM, BAD_RES};
use crate::pair::{kinds, page_in, RW, VA};
use crate::rig::{atomic, data, emit, raddr, Rig, TestMr, TestQp, TestSrq, LOG_SQ};

const DCI: u32 = 5;
const KEY: u64 = 0x1234_5678_9abc_def0;
const LEN: usize = 0x1800;

const REQ: u8 = 0;
const RESP_SEND: u8 = 2;
const REQ_ERR: u8 = 0xd;
const RESP_ERR: u8 = 0xe;

const CREATE: u16 = 0x710;
const DESTROY: u16 = 0x711;
const DRAIN: u16 = 0x712;
const QUERY: u16 = 0x713;
const BAD_RES_STATE: u8 = 0x09;

/// A target, an initiator or more, and memory on either side.
struct Dynamic {
    rig: Rig,
    initiators: Vec<TestQp>,
    srq: TestSrq,
    dctn: u32,
    src: TestMr,
    dst: TestMr,
}

impl Dynamic {
    fn new(initiators: usize, present: MttAccess) -> Self {
        let mut rig = Rig::new(Scheme::Memory);
        let srq = rig.create_srq();
        let mut input = vec![0; 0x80];
        input[..2].copy_from_slice(&CREATE.to_be_bytes());
        for (field, value) in [
            (dctc::PD, rig.pd.into()),
            (dctc::CQN, rig.cqn.into()),
            (dctc::SRQN, srq.srqn.into()),
            (dctc::DC_ACCESS_KEY, KEY),
            (dctc::RWE, 1),
            (dctc::RAE, 1),
            (dctc::MIN_RNR_NAK, 12),
            (dctc::MTU, 3),
        ] {
            field.set(&mut input[0x10..], value);
        }
        let out = rig.command(&input, 16);
        let dctn = u32::from_be_bytes(out[8..12].try_into().unwrap());
        let initiators: Vec<_> = (0..initiators).map(|_| rig.create_qp(DCI)).collect();
        for qp in &initiators {
            rig.connect(qp.qpn, 0);
        }
        let src = rig.mr(VA, 16, RW);
        let dst = rig.mr(2 * VA, 16, present);
        Self {
            rig,
            initiators,
            srq,
            dctn,
            src,
            dst,
        }
    }

    fn address(&self, key: u64) -> Vec<u8> {
        let base = BaseAv {
            key,
            extended: true,
            dqp_dct: Qpn::new(self.dctn).unwrap(),
            stat_rate: StatRate::truncate(0),
            sl: ServiceLevel::truncate(0),
            fl_mlid: 0,
            rlid: 1,
        };
        emit(&base, 48)
    }

    fn post_to(&mut self, from: usize, opcode: WqeOpcode, key: u64, rest: &[u8]) {
        let mut body = self.address(key);
        body.extend_from_slice(rest);
        self.rig.post(&mut self.initiators[from], opcode, 0, &body);
    }

    fn send(&mut self, from: usize) {
        let payload = data(self.src.key, self.src.va, LEN);
        self.post_to(from, WqeOpcode::SEND, KEY, &payload);
    }

    fn write(&mut self, from: usize, key: u64) {
        let mut rest = raddr(self.dst.key, self.dst.va);
        rest.extend(data(self.src.key, self.src.va, LEN));
        self.post_to(from, WqeOpcode::RDMA_WRITE, key, &rest);
    }

    fn receive(&mut self, at: u64) {
        let (key, va) = (self.dst.key, self.dst.va + at);
        self.rig.post_srq(&mut self.srq, key, va, LEN).unwrap();
    }

    fn state(&mut self) -> u64 {
        let out = self.rig.command(&about(QUERY, self.dctn, 16), 0x50);
        dctc::STATE.get(&out[0x10..])
    }
}

#[test]
fn every_operation_reaches_the_target() {
    let mut t = Dynamic::new(2, RW);
    let sent = t.rig.fill(t.src.iova, LEN, 3);
    t.receive(0x4000);
    t.receive(0x8000);
    t.send(0);
    t.send(1);
    let mut done = kinds(&t.rig.run());
    done.sort_unstable();
    assert_eq!(done, [(REQ, 0), (REQ, 0), (RESP_SEND, 0), (RESP_SEND, 0)]);
    assert_eq!(t.rig.peek(t.dst.iova + 0x4000, LEN), sent);
    assert_eq!(t.rig.peek(t.dst.iova + 0x8000, LEN), sent);
    t.write(1, KEY);
    assert_eq!(kinds(&t.rig.run()), [(REQ, 0)]);
    assert_eq!(t.rig.peek(t.dst.iova, LEN), sent);
    let before = u64::from_be_bytes(t.rig.peek(t.dst.iova + 8, 8).try_into().unwrap());
    let mut rest = raddr(t.dst.key, t.dst.va + 8);
    rest.extend(atomic(5, 0));
    rest.extend(data(t.src.key, t.src.va, 8));
    t.post_to(0, WqeOpcode::ATOMIC_FA, KEY, &rest);
    assert_eq!(kinds(&t.rig.run()), [(REQ, 0)]);
    let now = u64::from_be_bytes(t.rig.peek(t.dst.iova + 8, 8).try_into().unwrap());
    assert_ne!(now, before);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn what_fails_costs_the_initiator_its_qp_and_the_target_nothing() {
    let mut t = Dynamic::new(4, RW);
    // Not the key; READ, which the target does not allow; more than the receive takes.
    t.write(0, KEY ^ 1);
    assert_eq!(kinds(&t.rig.run()), [(REQ_ERR, 0x13)]);
    let out = t.rig.command(&about(QUERY, t.dctn, 16), 0x50);
    assert_eq!(dctc::VIOLATIONS.get(&out[0x10..]), 1);
    let mut rest = raddr(t.dst.key, t.dst.va);
    rest.extend(data(t.src.key, t.src.va, LEN));
    t.post_to(1, WqeOpcode::RDMA_READ, KEY, &rest);
    assert_eq!(kinds(&t.rig.run()), [(REQ_ERR, 0x12)]);
    let (key, va) = (t.dst.key, t.dst.va);
    t.rig.post_srq(&mut t.srq, key, va, LEN - 1).unwrap();
    t.send(2);
    assert_eq!(kinds(&t.rig.run()), [(REQ_ERR, 0x12), (RESP_ERR, 0x01)]);
    assert!(t.rig.events().is_empty());
    assert_eq!(t.state(), 0);
    t.write(3, KEY);
    assert_eq!(kinds(&t.rig.run()), [(REQ, 0)]);
}

#[test]
fn a_target_that_waits_for_a_page_keeps_its_message() {
    let mut t = Dynamic::new(2, MttAccess::NONE);
    t.receive(0);
    t.receive(0x4000);
    t.send(0);
    assert!(t.rig.run().is_empty());
    let fault = t.rig.fault();
    // The other one waits; what needs no receive does not.
    t.send(1);
    assert!(t.rig.run().is_empty());
    assert!(t.rig.faults().is_empty());
    let sent = t.rig.fill(t.src.iova, LEN, 9);
    let (mr, rig) = (t.dst, &mut t.rig);
    page_in(rig, &mr, 0, 8, RW);
    assert_eq!(
        kinds(&rig.resume(&fault, false)),
        [(RESP_SEND, 0), (REQ, 0)]
    );
    assert_eq!(kinds(&rig.run_after(1)), [(RESP_SEND, 0), (REQ, 0)]);
    assert_eq!(rig.peek(mr.iova, LEN), sent);
    assert_eq!(rig.peek(mr.iova + 0x4000, LEN), sent);
}

#[test]
fn an_initiator_that_goes_leaves_the_target_to_others() {
    let mut t = Dynamic::new(2, MttAccess::NONE);
    t.receive(0);
    t.receive(0x4000);
    t.send(0);
    assert!(t.rig.run().is_empty());
    t.rig.fault();
    let qpn = t.initiators[0].qpn;
    t.rig.command(&about(0x507, qpn, 16), 16);
    // Its receive and its request are flushed.
    let mut done = kinds(&t.rig.run());
    done.sort_unstable();
    assert_eq!(done, [(REQ_ERR, 5), (RESP_ERR, 5)]);
    let (mr, rig) = (t.dst, &mut t.rig);
    page_in(rig, &mr, 0, 8, RW);
    t.send(1);
    assert_eq!(kinds(&t.rig.run()), [(RESP_SEND, 0), (REQ, 0)]);
}

#[test]
fn a_target_is_drained_and_then_destroyed() {
    let mut t = Dynamic::new(1, MttAccess::NONE);
    t.receive(0);
    t.send(0);
    assert!(t.rig.run().is_empty());
    t.rig.fault();
    assert_eq!(t.rig.status(&about(DESTROY, t.dctn, 16)), BAD_RES_STATE);
    t.rig.command(&about(DRAIN, t.dctn, 16), 16);
    let events = t.rig.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].event_type, EventType::DCT_DRAINED);
    assert_eq!(events[0].data[24..28], t.dctn.to_be_bytes());
    assert_eq!(kinds(&t.rig.run()), [(RESP_ERR, 5)]);
    assert_eq!(t.state(), 2);
    assert_eq!(t.rig.status(&about(DRAIN, t.dctn, 16)), BAD_RES_STATE);
    t.rig.command(&about(DESTROY, t.dctn, 16), 16);
    assert_eq!(t.rig.status(&about(QUERY, t.dctn, 16)), BAD_RES);
    // Nobody answers the initiator.
    let mut done = Vec::new();
    for _ in 0..8 {
        done.extend(t.rig.run_after(1000));
    }
    assert_eq!(kinds(&done), [(REQ_ERR, 0x15)]);
}

#[test]
fn streams_are_taken_but_none_fails_alone() {
    let mut rig = Rig::new(Scheme::Memory);
    let mut create = |streams, errored| {
        let mut context = rig.qp_context(DCI, LOG_SQ);
        context.set(qpc::LOG_DCI_STREAMS, streams);
        context.set(qpc::LOG_DCI_ERRORED, errored);
        // The driver names a shared queue of its own, of which a DCI has no use.
        context.set(qpc::RQ_TYPE, 1);
        context.set(qpc::SRQN, 0x1234);
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&0x500_u16.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        input.extend(rig.pages(1).to_be_bytes());
        rig.status(&input)
    };
    assert_eq!(create(4, 0), 0);
    assert_eq!(create(5, 0), BAD_PARAM);
    assert_eq!(create(4, 1), BAD_PARAM);
}

#[test]
fn a_target_is_no_qp() {
    let mut t = Dynamic::new(1, RW);
    for opcode in [0x501, 0x507, 0x50a, 0x50b] {
        assert_eq!(
            t.rig.status(&about(opcode, t.dctn, 16)),
            BAD_RES,
            "{opcode:#x}"
        );
    }
    let qpn = t.initiators[0].qpn;
    for opcode in [DESTROY, DRAIN, QUERY] {
        assert_eq!(
            t.rig.status(&about(opcode, qpn, 16)),
            BAD_RES,
            "{opcode:#x}"
        );
    }
}

/// CREATE_GENERAL_OBJECT or DESTROY_GENERAL_OBJECT of a type.
fn general(opcode: u16, object_type: u16, number: u32) -> Vec<u8> {
    let mut input = about(opcode, number, 16);
    input[6..8].copy_from_slice(&object_type.to_be_bytes());
    input
}

#[test]
fn a_reserved_number_is_no_qps() {
    const RESERVED_QPN: u16 = 0x2c;
    let mut rig = Rig::new(Scheme::Memory);
    let (one, other) = (user(&mut rig), user(&mut rig));
    let reserve = general(0xa00, RESERVED_QPN, 0);
    let first = number(&mut rig, one, reserve.clone());
    // Nobody gets it, until there is none left.
    while let Some(qpn) = rig.device.qps.reserve() {
        assert_ne!(qpn.get(), first);
    }
    assert!(rig.device.qps.number().is_none());
    assert_eq!(run(&mut rig, one, reserve).0, 0x0f);
    // Whose it is gives it back, once.
    let release = |number| general(0xa03, RESERVED_QPN, number);
    assert_eq!(run(&mut rig, other, release(first)).0, BAD_RES);
    assert_eq!(run(&mut rig, one, release(first)).0, 0);
    assert_eq!(run(&mut rig, one, release(first)).0, BAD_RES);
    assert_eq!(rig.device.qps.number().unwrap().get(), first);
    // Any other kind of object, and a range of them.
    assert_eq!(run(&mut rig, one, general(0xa00, 0x10, 0)).0, BAD_PARAM);
    let mut range = general(0xa00, RESERVED_QPN, 0);
    range[12] = 1;
    assert_eq!(run(&mut rig, one, range).0, BAD_PARAM);
}
