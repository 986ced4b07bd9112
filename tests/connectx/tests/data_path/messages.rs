// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! RC messages: what arrives, what completes, and what goes wrong properly.

use std::time::Duration;

use connectx::qp::context as qpc;
use connectx::qp::context::QpContext;
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{DmaAddr, MttAccess, Qpn, Scheme, Wire};

use crate::rig::{atomic, data, inline, raddr, Completion, Rig, TestMr, TestQp, LOG_SQ};

const RW: MttAccess = MttAccess::READ_WRITE;
const VA: u64 = 0x7f00_0000_1000;

struct Pair {
    rig: Rig,
    a: TestQp,
    b: TestQp,
    src: TestMr,
    dst: TestMr,
}

fn pair() -> Pair {
    let mut rig = Rig::new(Scheme::Memory);
    let (a, b) = rig.rc_pair();
    let src = rig.mr(VA, 64, RW);
    let dst = rig.mr(2 * VA, 64, RW);
    Pair {
        rig,
        a,
        b,
        src,
        dst,
    }
}

fn kinds(done: &[Completion]) -> Vec<(u8, u8)> {
    done.iter().map(|c| (c.opcode, c.syndrome)).collect()
}

#[test]
fn send_gathers_and_scatters() {
    let mut t = pair();
    let bytes = t.rig.fill(t.src.iova, 0x4000, 0);
    let segments = [
        (t.dst.key, t.dst.va + 0x10, 0x1000),
        (t.dst.key, t.dst.va + 0x2000, 0x4000),
    ];
    t.rig.post_recv(&mut t.b, &segments);
    let mut body = data(t.src.key, t.src.va, 0x1800);
    body.extend(data(t.src.key, t.src.va + 0x1800, 0x2800));
    t.rig
        .post(&mut t.a, WqeOpcode::SEND_IMM, 0x1122_3344, &body);
    let done = t.rig.run();
    assert_eq!(kinds(&done), [(3, 0), (0, 0)]);
    assert_eq!(done[0].byte_count, 0x4000);
    assert_eq!(done[0].immediate, 0x1122_3344);
    assert_eq!((done[0].qpn, done[1].qpn), (t.b.qpn, t.a.qpn));
    assert_eq!(t.rig.peek(t.dst.iova + 0x10, 0x1000), bytes[..0x1000]);
    assert_eq!(t.rig.peek(t.dst.iova + 0x2000, 0x3000), bytes[0x1000..]);
    assert_eq!(t.rig.device.counters.msgs_send, 1);
}

#[test]
fn inline_data_and_a_ring_that_wraps_inside_a_wqe() {
    let mut t = pair();
    let payload: Vec<u8> = (0..100).collect();
    // Three WQEBBs each: in a ring of 16 the sixth WQE wraps.
    for round in 0..20_u16 {
        let to = (t.dst.key, t.dst.va, 4096);
        t.rig.post_recv(&mut t.b, &[to]);
        let mut body = inline(&payload);
        body.extend(data(t.src.key, t.src.va, 16));
        body.extend(inline(&[7; 5]));
        assert_eq!(t.a.sq_pi, round * 3);
        t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
        let done = t.rig.run();
        assert_eq!(kinds(&done), [(2, 0), (0, 0)], "round {round}");
        assert_eq!(done[0].byte_count, 121);
        assert_eq!((done[0].counter, done[1].counter), (round, round * 3));
        assert_eq!(t.rig.peek(t.dst.iova, 100), payload);
        assert_eq!(t.rig.peek(t.dst.iova + 116, 5), [7; 5]);
    }
    assert!(t.a.sq_pi > 3 << LOG_SQ);
}

#[test]
fn write_and_read_of_more_than_a_chunk() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    let src = rig.mr(VA, 300, RW);
    let dst = rig.mr(2 * VA, 300, RW);
    let len = 299 * 4096 + 5;
    let bytes = rig.fill(src.iova + 3, len, 0x55);
    let mut body = raddr(dst.key, dst.va + 7);
    body.extend(data(src.key, src.va + 3, len));
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(kinds(&rig.run()), [(0, 0)]);
    assert_eq!(rig.peek(dst.iova + 7, len), bytes);
    let bytes = rig.fill(dst.iova, len, 0xaa);
    let mut body = raddr(dst.key, dst.va);
    body.extend(data(src.key, src.va, 100));
    body.extend(data(src.key, src.va + 0x1000, len - 100));
    rig.post(&mut a, WqeOpcode::RDMA_READ, 0, &body);
    let done = rig.run();
    assert_eq!(kinds(&done), [(0, 0)]);
    assert_eq!(done[0].send_opcode, 0x10);
    assert_eq!(u64::from(done[0].byte_count), len as u64);
    assert_eq!(rig.peek(src.iova, 100), bytes[..100]);
    assert_eq!(rig.peek(src.iova + 0x1000, len - 100), bytes[100..]);
    assert_eq!(rig.device.counters.bytes_written, 2 * len as u64);
}

#[test]
fn a_step_is_bounded_however_long_the_message() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    let src = rig.mr(VA, 4096, RW);
    let dst = rig.mr(2 * VA, 4096, RW);
    let len = 16 << 20;
    let mut body = raddr(dst.key, dst.va);
    body.extend(data(src.key, src.va, len));
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(rig.device.step(rig.now), Some(rig.now));
    let moved = rig.device.counters.bytes_written;
    assert!(moved > 0 && moved <= 8 << 20, "{moved:#x}");
    assert_eq!(kinds(&rig.run()), [(0, 0)]);
}

#[test]
fn write_with_immediate_takes_a_receive() {
    let mut t = pair();
    t.rig.post_recv(&mut t.b, &[]);
    let mut body = raddr(t.dst.key, t.dst.va);
    body.extend(data(t.src.key, t.src.va, 64));
    t.rig.post(&mut t.a, WqeOpcode::RDMA_WRITE_IMM, 5, &body);
    let done = t.rig.run();
    assert_eq!(kinds(&done), [(1, 0), (0, 0)]);
    assert_eq!((done[0].byte_count, done[0].immediate), (64, 5));
}

#[test]
fn atomics_return_what_was_there() {
    let mut t = pair();
    let target = t.dst.iova + 8;
    t.rig.fill(target, 8, 0);
    let before = u64::from_ne_bytes(t.rig.peek(target, 8).try_into().unwrap());
    let post = |t: &mut Pair, opcode, swap_add, compare| {
        let mut body = raddr(t.dst.key, t.dst.va + 8);
        body.extend(atomic(swap_add, compare));
        body.extend(data(t.src.key, t.src.va, 8));
        t.rig.post(&mut t.a, opcode, 0, &body);
        assert_eq!(kinds(&t.rig.run()), [(0, 0)]);
        let word = |at| u64::from_ne_bytes(t.rig.peek(at, 8).try_into().unwrap());
        (word(t.src.iova), word(target))
    };
    let after = before.wrapping_add(5);
    assert_eq!(post(&mut t, WqeOpcode::ATOMIC_FA, 5, 0), (before, after));
    assert_eq!(
        post(&mut t, WqeOpcode::ATOMIC_CS, 9, before),
        (after, after)
    );
    assert_eq!(post(&mut t, WqeOpcode::ATOMIC_CS, 9, after), (after, 9));
    assert_eq!(t.rig.device.counters.msgs_atomic, 3);
}

#[test]
fn unaligned_atomic_is_an_invalid_request() {
    let mut t = pair();
    let mut body = raddr(t.dst.key, t.dst.va + 4);
    body.extend(atomic(1, 0));
    body.extend(data(t.src.key, t.src.va, 8));
    t.rig.post(&mut t.a, WqeOpcode::ATOMIC_FA, 0, &body);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x12)]);
}

#[test]
fn rnr_is_retried_and_then_given_up() {
    let mut t = pair();
    let body = data(t.src.key, t.src.va, 8);
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    assert_eq!(t.rig.run(), []);
    assert_eq!(t.rig.device.counters.rnr_naks, 1);
    // Ringing again must not look again before the timer expires.
    t.rig.ring(&t.a);
    assert_eq!(t.rig.run(), []);
    assert_eq!(t.rig.device.counters.rnr_naks, 1);
    let to = (t.dst.key, t.dst.va, 8);
    t.rig.post_recv(&mut t.b, &[to]);
    assert_eq!(kinds(&t.rig.run_after(1)), [(2, 0), (0, 0)]);
    // Two retries are allowed, and they count anew for each message.
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    for _ in 0..2 {
        assert_eq!(t.rig.run(), []);
        t.rig.now += std::time::Duration::from_millis(1);
    }
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x16), (0xd, 5)]);
    assert_eq!(t.rig.device.counters.rnr_naks, 4);
}

#[test]
fn a_peer_that_does_not_listen_is_given_up() {
    let mut t = pair();
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x50a_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.b.qpn.to_be_bytes());
    t.rig.command(&input, 16);
    let body = data(t.src.key, t.src.va, 8);
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    for _ in 0..3 {
        assert_eq!(t.rig.run(), []);
        t.rig.now += std::time::Duration::from_millis(70);
    }
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x15)]);
    assert_eq!(t.rig.device.counters.ack_timeouts, 3);
}

#[test]
fn message_longer_than_the_receive() {
    let mut t = pair();
    let to = (t.dst.key, t.dst.va, 7);
    t.rig.post_recv(&mut t.b, &[to]);
    t.rig.post_recv(&mut t.b, &[to]);
    let body = data(t.src.key, t.src.va, 8);
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    let done = t.rig.run();
    assert_eq!(kinds(&done), [(0xd, 0x12), (0xe, 1), (0xe, 5)]);
    assert_eq!((done[1].counter, done[2].counter), (0, 1));
}

#[test]
fn protection_errors() {
    // (opcode, remote key is bad, local key is bad, what completes)
    type Case<'a> = (WqeOpcode, bool, bool, &'a [(u8, u8)]);
    let cases: [Case<'_>; 5] = [
        (WqeOpcode::RDMA_WRITE, true, false, &[(0xd, 0x13)]),
        (WqeOpcode::RDMA_READ, true, false, &[(0xd, 0x13)]),
        (WqeOpcode::RDMA_WRITE, false, true, &[(0xd, 0x04)]),
        (WqeOpcode::RDMA_READ, false, true, &[(0xd, 0x04)]),
        (WqeOpcode::SEND, true, false, &[(0xd, 0x14), (0xe, 0x04)]),
    ];
    for (opcode, remote, local, expected) in cases {
        let mut t = pair();
        let bad = |mr: &TestMr, bad| if bad { mr.va - 1 } else { mr.va };
        let to = (t.dst.key, bad(&t.dst, remote), 64);
        t.rig.post_recv(&mut t.b, &[to]);
        let mut body = Vec::new();
        if opcode != WqeOpcode::SEND {
            body.extend(raddr(t.dst.key, bad(&t.dst, remote)));
        }
        body.extend(data(t.src.key, bad(&t.src, local), 64));
        t.rig.post(&mut t.a, opcode, 0, &body);
        let mut done = kinds(&t.rig.run());
        // The receive that the message did not take is flushed where its QP failed too.
        done.retain(|&kind| kind != (0xe, 5));
        assert_eq!(done, expected, "{opcode:?}");
        assert_eq!(t.rig.device.counters.denied_accesses, 1);
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn an_mkey_of_another_qp_is_denied() {
    let mut t = pair();
    for (own, done) in [(t.b.qpn, (0, 0)), (t.a.qpn, (0xd, 0x13))] {
        let mkey = t.rig.device.mkeys.get_mut(t.dst.key.index().get()).unwrap();
        mkey.mkc.qpn = Qpn::new(own).unwrap();
        let mut body = raddr(t.dst.key, t.dst.va);
        body.extend(data(t.src.key, t.src.va, 8));
        t.rig.post(&mut t.a, WqeOpcode::RDMA_WRITE, 0, &body);
        assert_eq!(kinds(&t.rig.run()), [done]);
    }
}

#[test]
fn rights_of_the_qp() {
    let rights = [
        (WqeOpcode::RDMA_WRITE, qpc::RWE),
        (WqeOpcode::RDMA_READ, qpc::RRE),
        (WqeOpcode::ATOMIC_FA, qpc::RAE),
    ];
    for (opcode, right) in rights {
        let mut t = pair();
        // RTS2RTS with the bits of RRE, RAE and RWE: everything but this one.
        let mut context = QpContext::zeroed();
        for (_, other) in rights {
            context.set(other, u32::from(other != right));
        }
        t.rig.modify(0x505, t.b.qpn, 0xe, &context);
        let mut body = raddr(t.dst.key, t.dst.va);
        if opcode == WqeOpcode::ATOMIC_FA {
            body.extend(atomic(1, 0));
        }
        body.extend(data(t.src.key, t.src.va, 8));
        t.rig.post(&mut t.a, opcode, 0, &body);
        assert_eq!(kinds(&t.rig.run()), [(0xd, 0x12)], "{opcode:?}");
    }
}

#[test]
fn error_state_flushes_in_order_and_keeps_flushing() {
    let mut t = pair();
    for _ in 0..3 {
        t.rig.post_recv(&mut t.b, &[]);
    }
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.b.qpn.to_be_bytes());
    t.rig.post(&mut t.b, WqeOpcode::SEND, 0, &inline(&[1; 60]));
    t.rig.post(&mut t.b, WqeOpcode::NOP, 0, &[]);
    t.rig.command(&input, 16);
    let done = t.rig.run();
    let seen: Vec<_> = done
        .iter()
        .map(|c| (c.opcode, c.syndrome, c.counter))
        .collect();
    assert_eq!(
        seen,
        [
            (0xd, 5, 0),
            (0xd, 5, 2),
            (0xe, 5, 0),
            (0xe, 5, 1),
            (0xe, 5, 2)
        ]
    );
    t.rig.post(&mut t.b, WqeOpcode::NOP, 0, &[]);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 5)]);
    // The receive queue has no doorbell.
    t.rig.post_recv(&mut t.b, &[]);
    assert_eq!(kinds(&t.rig.run_after(25)), [(0xe, 5)]);
    // After a reset nothing completes any more.
    t.rig.post_recv(&mut t.b, &[]);
    input[..2].copy_from_slice(&0x50a_u16.to_be_bytes());
    t.rig.command(&input, 16);
    assert_eq!(t.rig.run_after(1000), []);
}

#[test]
fn a_qp_in_error_is_looked_at_by_one_timer() {
    let mut t = pair();
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.b.qpn.to_be_bytes());
    t.rig.command(&input, 16);
    for _ in 0..100 {
        t.rig.now += Duration::from_micros(10);
        t.rig.ring(&t.b);
        t.rig.run();
    }
    let mut looks = 0;
    let end = t.rig.now + Duration::from_millis(100);
    while let Some(at) = t.rig.device.step(t.rig.now).filter(|&at| at < end) {
        t.rig.now = t.rig.now.max(at);
        looks += 1;
    }
    assert!((4..=10).contains(&looks), "{looks}");
}

#[test]
fn a_queue_that_was_lost_works_again_after_a_reset() {
    let mut t = pair();
    t.rig.mem.unmap(DmaAddr::new(t.a.dbr), 4096);
    let doorbell = t.a.dbr;
    t.a.dbr = t.b.dbr;
    t.rig.ring(&t.a);
    t.a.dbr = doorbell;
    assert_eq!(t.rig.run(), []);
    assert!(t.rig.violations()[0].contains("doorbell record"));
    t.rig.mem.map(DmaAddr::new(doorbell), 4096);
    t.rig.reset(&mut t.a);
    t.rig.connect(t.a.qpn, t.b.qpn);
    t.rig.post(&mut t.a, WqeOpcode::NOP, 0, &[]);
    assert_eq!(kinds(&t.rig.run()), [(0, 0)]);
    t.rig.post(&mut t.a, WqeOpcode(0x3f), 0, &[]);
    t.rig.post(&mut t.a, WqeOpcode::NOP, 0, &[]);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 2), (0xd, 5)]);
}

#[test]
fn unsignalled_work_completes_silently_and_fails_loudly() {
    let mut t = pair();
    let silent = |t: &mut Pair, va| {
        let mut body = raddr(t.dst.key, va);
        body.extend(data(t.src.key, t.src.va, 8));
        let mut wqe = vec![0; 16];
        let mut ctrl = crate::rig::ctrl(&t.a, WqeOpcode::RDMA_WRITE, 0, body.len());
        ctrl.completion = firmware_cmds::wqe::CompletionMode::OnError;
        ctrl.emit(&mut wqe).unwrap();
        wqe.extend(body);
        t.rig.post_raw(&mut t.a, &wqe);
        t.rig.run()
    };
    let good = t.dst.va;
    assert_eq!(silent(&mut t, good), []);
    assert_eq!(kinds(&silent(&mut t, 0)), [(0xd, 0x13)]);
}

#[test]
fn unknown_optional_parameters_are_refused() {
    let mut t = pair();
    let mut input = vec![0; 0x110];
    input[..2].copy_from_slice(&0x505_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.a.qpn.to_be_bytes());
    for (mask, status) in [(0xf, 0), (0x8000, 3), (1 << 31, 3)] {
        input[0x10..0x14].copy_from_slice(&u32::to_be_bytes(mask));
        assert_eq!(t.rig.status(&input), status, "{mask:#x}");
    }
    let lines = t.rig.journal.lock().unwrap().join("\n");
    assert!(
        lines.contains("unknown optional parameters 0x8000"),
        "{lines}"
    );
}

#[test]
fn unknown_bits_of_modify_rmp_are_refused() {
    let mut rig = Rig::new(Scheme::Memory);
    let mut input = vec![0; 0x200];
    input[..2].copy_from_slice(&0x90d_u16.to_be_bytes());
    // No such RMP; it is not looked for if the mask is wrong.
    for (at, bit, status) in [(0x17, 1, 5), (0x17, 2, 3), (0x10, 0x80, 3)] {
        input[at] = bit;
        assert_eq!(rig.status(&input), status, "{at:#x}");
        input[at] = 0;
    }
}

#[test]
fn commands_on_qps() {
    let mut rig = Rig::new(Scheme::Memory);
    let qp = rig.create_qp(0);
    let command = |opcode: u16, qpn: u32| {
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        input[8..12].copy_from_slice(&qpn.to_be_bytes());
        input
    };
    // INIT2RTR of a QP in RST; any command on a QP that does not exist.
    assert_eq!(rig.status(&command(0x503, qp.qpn)), 0x10);
    for opcode in [0x501, 0x502, 0x507, 0x50a, 0x50b] {
        assert_eq!(rig.status(&command(opcode, 0xff_0000)), 5, "{opcode:#x}");
    }
    rig.connect(qp.qpn, 0x123);
    let out = rig.command(&command(0x50b, qp.qpn), 0x200);
    let context = QpContext::parse(&out[0x18..]).unwrap();
    assert_eq!(context.get(qpc::STATE), 3);
    assert_eq!(context.get(qpc::REMOTE_QPN), 0x123);
    assert_eq!(context.get(qpc::LOG_SQ_SIZE), LOG_SQ);
    let before = rig.device.qps.len();
    assert_eq!(rig.status(&command(0x501, qp.qpn)), 0);
    assert_eq!(rig.device.qps.len(), before - 1);
    // A service type that the device does not have.
    let mut create = command(0x500, 0);
    create.resize(0x118, 0);
    create[0x19] = 4;
    assert_eq!(rig.status(&create), 3);
}

#[test]
fn a_qp_refers_to_what_is_there_and_holds_it() {
    const NONE: u32 = 0xff_ffff;
    type Fields<'a> = &'a [(qpc::Field, u32)];
    let cases: [(&str, u32, Fields<'_>); 7] = [
        ("PD 0xffffff", 0, &[(qpc::PD, NONE)]),
        ("UAR 0xffffff", 0, &[(qpc::UAR_PAGE, NONE)]),
        ("CQ 0xffffff", 0, &[(qpc::CQN_SND, NONE)]),
        ("CQ 0xffffff", 0, &[(qpc::CQN_RCV, NONE)]),
        ("SRQ 0xffffff", 0, &[(qpc::RQ_TYPE, 1), (qpc::SRQN, NONE)]),
        ("XRCD 0xffffff", 3, &[(qpc::XRCD, NONE)]),
        // The UMR QP has no domain yet, a QP without a queue no CQ for it and no doorbells.
        (
            "",
            0xc,
            &[
                (qpc::PD, 0),
                (qpc::RQ_TYPE, 3),
                (qpc::CQN_RCV, 0),
                (qpc::NO_SQ, 1),
                (qpc::CQN_SND, 0),
                (qpc::UAR_PAGE, 0),
            ],
        ),
    ];
    for (missing, st, fields) in cases {
        let mut rig = Rig::new(Scheme::Memory);
        let mut context = rig.qp_context(st, LOG_SQ);
        for &(field, value) in fields {
            context.set(field, value);
        }
        let mut input = vec![0; 0x118];
        input[..2].copy_from_slice(&0x500_u16.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        let status = if missing.is_empty() { 0 } else { 5 };
        assert_eq!(rig.status(&input), status, "{missing}");
        let lines = rig.journal.lock().unwrap().join("\n");
        assert!(lines.contains(missing), "{missing}: {lines}");
    }
}

#[test]
fn domains_in_use_are_kept() {
    let mut rig = Rig::new(Scheme::Memory);
    let mr = rig.mr(VA, 1, RW);
    let qp = rig.create_qp(3);
    let command = |opcode: u16, number: u32| {
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        input[8..12].copy_from_slice(&number.to_be_bytes());
        input
    };
    let (pd, uar, xrcd) = (rig.pd, rig.uar, rig.xrcd);
    assert_eq!(rig.status(&command(0x801, pd)), 6);
    assert_eq!(rig.status(&command(0x803, uar)), 6);
    assert_eq!(rig.status(&command(0x80f, xrcd)), 6);
    let qpns: Vec<u32> = rig.device.qps.iter().map(|qp| qp.qpn.get()).collect();
    assert!(qpns.contains(&qp.qpn));
    for qpn in qpns {
        assert_eq!(rig.status(&command(0x501, qpn)), 0);
    }
    assert_eq!(rig.status(&command(0x80f, xrcd)), 0);
    // The EQ has its doorbell in it.
    assert_eq!(rig.status(&command(0x803, uar)), 6);
    // The MR, and the MKey that translates nothing.
    assert_eq!(rig.status(&command(0x801, pd)), 6);
    let pa = rig.pa.index().get();
    assert_eq!(rig.status(&command(0x202, pa)), 0);
    assert_eq!(rig.status(&command(0x801, pd)), 6);
    // An MKey that is free may keep the number of its last domain.
    let index = mr.key.index().get();
    rig.device.mkeys.get_mut(index).unwrap().mkc.free = true;
    assert_eq!(rig.status(&command(0x801, pd)), 0);
    assert_eq!(rig.status(&command(0x801, pd)), 5);
    assert!(rig.violations().is_empty());
}
