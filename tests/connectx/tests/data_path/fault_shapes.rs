// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a card may do with a fault beside the least: RNR NAKs, hints, several events, and what
//! has moved already.

use connectx::qp::context as qpc;
use connectx::qp::QpState;
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{MemoryFault, MttAccess, PageFault, Qpn, Scheme};

use crate::pair::{kinds, page_in, pair, post_rdma, Pair, LEN, PAGES, RW, VA};
use crate::rig::{atomic, data, raddr, Rig};

const SCHEMES: [Scheme; 2] = [Scheme::Memory, Scheme::Transport];
const PAGE: u64 = 4096;
const SUCCESS: [(u8, u8); 1] = [(0, 0)];

/// Responder's accesses of each kind.
const OPCODES: [WqeOpcode; 4] = [
    WqeOpcode::RDMA_WRITE,
    WqeOpcode::RDMA_READ,
    WqeOpcode::SEND,
    WqeOpcode::ATOMIC_FA,
];

/// Posts `opcode` from the first MR to the second.
fn post(t: &mut Pair, opcode: WqeOpcode) {
    let (src, dst) = (t.src, t.dst);
    if opcode == WqeOpcode::SEND {
        t.rig.post_recv(&mut t.b, &[(dst.key, dst.va, LEN)]);
        let body = data(src.key, src.va, LEN);
        t.rig.post(&mut t.a, opcode, 0, &body);
    } else if opcode == WqeOpcode::ATOMIC_FA {
        let mut body = raddr(dst.key, dst.va);
        body.extend(atomic(1, 0));
        body.extend(data(src.key, src.va, 8));
        t.rig.post(&mut t.a, opcode, 0, &body);
    } else {
        post_rdma(t, opcode);
    }
}

/// What completes when `opcode` succeeds.
fn success(opcode: WqeOpcode) -> Vec<(u8, u8)> {
    match opcode {
        WqeOpcode::SEND => vec![(2, 0), (0, 0)],
        _ => SUCCESS.to_vec(),
    }
}

/// The responder's memory is missing, and it answers faults as `reply` says.
fn refusing(scheme: Scheme, reply: &str, rnr_retry: u32) -> Pair {
    let mut t = pair(scheme, true, false);
    t.rig
        .rule(&format!("fault side=responder do=shape reply={reply}"));
    let qp = t.rig.device.qps.get_mut(Qpn::truncate(t.a.qpn)).unwrap();
    qp.context.set(qpc::RNR_RETRY, rnr_retry);
    t
}

fn state(t: &Pair, qpn: u32) -> QpState {
    t.rig.device.qps.get(Qpn::truncate(qpn)).unwrap().state
}

#[test]
fn without_retries_an_rnr_nak_ends_the_request_and_the_fault_is_served_all_the_same() {
    for scheme in SCHEMES {
        for opcode in OPCODES {
            let mut t = refusing(scheme, "rnr", 0);
            post(&mut t, opcode);
            assert_eq!(kinds(&t.rig.run()), [(0xd, 0x16)], "{opcode:?}");
            let fault = t.rig.fault();
            assert_eq!(state(&t, t.b.qpn), QpState::Rts);
            assert_eq!(t.rig.device.faults.len(), 1);
            let dst = t.dst;
            page_in(&mut t.rig, &dst, 0, PAGES, RW);
            assert_eq!(t.rig.resume(&fault, false), []);
            let counters = t.rig.device.counters;
            assert_eq!((counters.resumes_ok, counters.resumes_unknown), (1, 0));
            assert_eq!((counters.rnr_naks, counters.rnr_naks_fault), (1, 1));
            assert!(t.rig.violations().is_empty());
        }
    }
}

#[test]
fn without_a_limit_the_request_is_repeated_until_the_page_is_there() {
    for scheme in SCHEMES {
        for opcode in OPCODES {
            let mut t = refusing(scheme, "rnr", 7);
            let bytes = t.rig.fill(t.src.iova, LEN, 9);
            post(&mut t, opcode);
            assert_eq!(t.rig.run(), []);
            let fault = t.rig.fault();
            for _ in 0..20 {
                assert_eq!(t.rig.run_after(1), []);
            }
            // The repetitions belong to the fault that is being served.
            assert!(t.rig.faults().is_empty());
            assert_eq!(t.rig.device.counters.rnr_naks_fault, 21);
            let dst = t.dst;
            page_in(&mut t.rig, &dst, 0, PAGES, RW);
            if opcode == WqeOpcode::RDMA_READ {
                t.rig.fill(dst.iova, LEN, 9);
            }
            // The requester does not know of the resume. It comes when its timer says so.
            assert_eq!(t.rig.resume(&fault, false), []);
            assert_eq!(kinds(&t.rig.run_after(1)), success(opcode), "{opcode:?}");
            if opcode == WqeOpcode::ATOMIC_FA {
                assert_eq!(t.rig.peek(dst.iova, 8), 1_u64.to_ne_bytes());
            } else {
                assert_eq!(t.rig.peek(t.src.iova, LEN), bytes);
                assert_eq!(t.rig.peek(dst.iova, LEN), bytes);
            }
            assert!(t.rig.violations().is_empty());
        }
    }
}

#[test]
fn the_page_may_come_before_the_resume() {
    let mut t = refusing(Scheme::Memory, "rnr", 7);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
    assert_eq!(t.rig.resume(&fault, false), []);
    assert_eq!(t.rig.device.counters.resumes_ok, 1);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn the_timer_is_the_responders() {
    let mut t = refusing(Scheme::Memory, "rnr", 7);
    let qp = t.rig.device.qps.get_mut(Qpn::truncate(t.b.qpn)).unwrap();
    // 20.48 ms; the requester's own is 0.64 ms.
    qp.context.set(qpc::MIN_RNR_NAK, 22);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(t.rig.run_after(20), []);
    assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
}

#[test]
fn a_repetition_after_the_resume_may_fault_again() {
    let mut t = refusing(Scheme::Memory, "rnr", 7);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let first = t.rig.fault();
    assert_eq!(t.rig.resume(&first, false), []);
    assert_eq!(t.rig.run_after(1), []);
    let second = t.rig.fault();
    assert_ne!(first.fault_token(), second.fault_token());
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    t.rig.resume(&second, false);
    assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn each_repetition_may_be_a_fault_of_its_own() {
    for scheme in SCHEMES {
        let mut t = refusing(scheme, "rnr_each_faults", 7);
        post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
        t.rig.run();
        for _ in 0..4 {
            t.rig.run_after(1);
        }
        let faults = t.rig.faults();
        assert_eq!(faults.len(), 5);
        let mut tokens: Vec<_> = faults.iter().map(|f| f.fault_token().get()).collect();
        tokens.dedup();
        assert_eq!(tokens.len(), 5);
        let dst = t.dst;
        page_in(&mut t.rig, &dst, 0, PAGES, RW);
        // The last one first, and one of the others when the request is done.
        for fault in faults[1..].iter().rev() {
            assert_eq!(t.rig.resume(fault, false), []);
        }
        assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
        assert_eq!(t.rig.resume(&faults[0], false), []);
        assert_eq!(t.rig.device.counters.resumes_ok, 5);
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn a_resume_with_error_fails_the_repetition() {
    for scheme in SCHEMES {
        for (opcode, failed) in [
            (WqeOpcode::RDMA_WRITE, vec![(0xd, 0x13)]),
            (WqeOpcode::SEND, vec![(0xd, 0x14), (0xe, 0x04)]),
        ] {
            let mut t = refusing(scheme, "rnr", 7);
            post(&mut t, opcode);
            t.rig.run();
            let fault = t.rig.fault();
            assert_eq!(t.rig.resume(&fault, true), []);
            assert_eq!(kinds(&t.rig.run_after(1)), failed);
            assert_eq!(state(&t, t.b.qpn), QpState::Err);
            let counters = t.rig.device.counters;
            assert_eq!((counters.resumes_error, counters.resumes_unknown), (1, 0));
            assert!(t.rig.device.faults.is_empty());
        }
    }
}

#[test]
fn a_responder_that_goes_takes_its_fault_with_it() {
    let mut t = refusing(Scheme::Memory, "rnr", 7);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    t.rig.reset(&mut t.b);
    t.rig.connect(t.b.qpn, t.a.qpn);
    // What it is asked again is another fault.
    assert_eq!(t.rig.run_after(1), []);
    let again = t.rig.fault();
    assert_eq!(t.rig.resume(&fault, true), []);
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(t.rig.resume(&again, false), []);
    assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn a_packet_that_gets_through_starts_the_count_anew() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, b) = rig.rc_pair();
    let pages = 192;
    let len = 192 * 4096;
    let (src, dst) = (
        rig.mr(VA, pages, RW),
        rig.mr(2 * VA, pages, MttAccess::NONE),
    );
    rig.rule("fault do=shape reply=rnr");
    let qp = rig.device.qps.get_mut(Qpn::truncate(a.qpn)).unwrap();
    qp.context.set(qpc::RNR_RETRY, 1);
    let mut body = raddr(dst.key, dst.va);
    body.extend(data(src.key, src.va, len));
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    // Each chunk of 64 pages is refused once.
    for chunk in 0..3 {
        assert_eq!(rig.run_after(1), []);
        let fault = rig.fault();
        page_in(&mut rig, &dst, chunk * 64, 64, RW);
        assert_eq!(rig.resume(&fault, false), []);
    }
    assert_eq!(kinds(&rig.run_after(1)), SUCCESS);
    assert_eq!(rig.device.counters.rnr_naks, 3);
    assert_eq!(
        rig.device.qps.get(Qpn::truncate(b.qpn)).unwrap().state,
        QpState::Rts
    );
}

#[test]
fn a_requester_that_faults_itself_waits_and_so_does_unreliable_service() {
    let mut t = pair(Scheme::Memory, false, true);
    t.rig.rule("fault do=shape reply=rnr");
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run_after(1), []);
    assert_eq!(t.rig.fault().fault_token().get() & 0xff_ffff, 1);
    assert_eq!(t.rig.run_after(1), []);
    assert_eq!(t.rig.device.counters.rnr_naks, 0);

    let mut rig = Rig::new(Scheme::Memory);
    rig.rule("fault do=shape reply=rnr");
    let (mut a, b) = (rig.create_qp(1), rig.create_qp(1));
    rig.connect(a.qpn, b.qpn);
    rig.connect(b.qpn, a.qpn);
    let (src, dst) = (rig.mr(VA, 8, RW), rig.mr(2 * VA, 8, MttAccess::NONE));
    let mut body = raddr(dst.key, dst.va);
    body.extend(data(src.key, src.va, 64));
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(rig.run_after(1), []);
    let fault = rig.fault();
    page_in(&mut rig, &dst, 0, 8, RW);
    assert_eq!(kinds(&rig.resume(&fault, false)), SUCCESS);
}

/// A fault on 16 pages of the responder, as the memory scheme reports it.
fn memory_events(shape: &str) -> (Pair, Vec<MemoryFault>) {
    let mut t = pair(Scheme::Memory, true, false);
    t.rig.rule(&format!("fault do=shape {shape}"));
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run(), []);
    let events = t.rig.faults();
    let events = events.into_iter().map(|fault| match fault {
        PageFault::Memory(fault) => fault,
        _ => panic!("{fault:?}"),
    });
    (t, events.collect())
}

#[test]
fn hints_stand_beside_the_demand() {
    let (t, events) = memory_events("pre=4 post=0xffff");
    let [event] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((event.va.get(), event.demand_pages.get()), (t.dst.va, 16));
    assert_eq!(
        (event.pre_demand_pages, event.post_demand_pages),
        (4, 0xffff)
    );
    assert!(event.last);
}

#[test]
fn one_access_in_several_events() {
    for last in ["first", "final"] {
        for (pieces, pages) in [(2, vec![8, 8]), (3, vec![5, 5, 6]), (99, vec![1; 16])] {
            let shape = format!("pieces={pieces} last={last} post=2");
            let (mut t, events) = memory_events(&shape);
            let mut next = t.dst.va;
            for event in &events {
                assert_eq!((event.mkey, event.va.get()), (t.dst.key, next));
                assert_eq!(event.token, events[0].token);
                assert_eq!(event.post_demand_pages, 2);
                next += u64::from(event.demand_pages.get()) * PAGE;
            }
            let found: Vec<_> = events.iter().map(|e| e.demand_pages.get()).collect();
            assert_eq!(found, pages);
            let marked: Vec<_> = (0..events.len()).filter(|&n| events[n].last).collect();
            let due = if last == "first" { 0 } else { events.len() - 1 };
            assert_eq!(marked, [due]);
            // One resume for all of them.
            let dst = t.dst;
            page_in(&mut t.rig, &dst, 0, PAGES, RW);
            let done = t.rig.resume(&PageFault::Memory(events[due]), false);
            assert_eq!(kinds(&done), SUCCESS);
            let counters = t.rig.device.counters;
            assert_eq!((counters.faults_memory, counters.resumes_ok), (1, 1));
        }
    }
}

#[test]
fn a_part_that_fails_may_be_resumed_before_the_last_one_is() {
    let shape = "pieces=2";
    // With error, then without; the other way round; each with error.
    for errors in [[true, false], [false, true], [true, true]] {
        let (mut t, events) = memory_events(shape);
        for (event, error) in events.iter().zip(errors) {
            t.rig.resume(&PageFault::Memory(*event), error);
        }
        let counters = t.rig.device.counters;
        assert_eq!(counters.resumes_ok + counters.resumes_error, 1);
        assert_eq!(counters.resumes_repeated, 1);
        assert_eq!(counters.resumes_unknown, 0);
        assert!(t.rig.violations().is_empty());
        // There were two events, not three.
        t.rig.resume(&PageFault::Memory(events[0]), true);
        assert_eq!(t.rig.device.counters.resumes_repeated, 1);
        assert!(t.rig.violations()[0].contains("twice"));
    }
    // Only one of them was the last.
    let (mut t, events) = memory_events(shape);
    for event in events {
        t.rig.resume(&PageFault::Memory(event), false);
    }
    assert!(t.rig.violations()[0].contains("twice"));
}

/// What of a fault says how far its message is: committed, start, whole length, packet.
fn progress(fault: &PageFault) -> (u32, Option<(u64, u32)>, u16) {
    match fault {
        PageFault::Rdma(f) => (
            f.bytes_committed,
            Some((f.rdma_va.get(), f.rdma_op_len)),
            f.packet_length,
        ),
        PageFault::Wqe(f) => (f.bytes_committed, None, f.packet_length),
        PageFault::Memory(f) => panic!("{f:?}"),
    }
}

/// (opcode, whether it is the requester's memory that is missing)
const MOVING: [(WqeOpcode, bool); 5] = [
    (WqeOpcode::RDMA_WRITE, false),
    (WqeOpcode::RDMA_READ, false),
    (WqeOpcode::SEND, false),
    (WqeOpcode::RDMA_WRITE, true),
    (WqeOpcode::RDMA_READ, true),
];

#[test]
fn what_has_moved_is_committed_and_need_not_be_there_again() {
    for (opcode, requester) in MOVING {
        let mut t = pair(Scheme::Transport, true, true);
        t.rig.rule("fault do=shape committed=packets");
        let (src, dst) = (t.src, t.dst);
        let missing = if requester { src } else { dst };
        page_in(&mut t.rig, &missing, 8, 8, MttAccess::NONE);
        let (from, to) = match opcode {
            WqeOpcode::RDMA_READ => (dst, src),
            _ => (src, dst),
        };
        let bytes = t.rig.fill(from.iova, LEN, 7);
        post(&mut t, opcode);
        assert_eq!(t.rig.run(), []);
        let fault = t.rig.fault();
        let whole = (dst.va, 0x1_0000);
        let operation = matches!(fault, PageFault::Rdma(_)).then_some(whole);
        assert_eq!(progress(&fault), (0x8000, operation, 1024), "{opcode:?}");
        assert_eq!(t.rig.peek(to.iova, LEN / 2), bytes[..LEN / 2]);
        assert_eq!(t.rig.peek(to.iova + 0x8000, LEN / 2), [0; LEN / 2]);
        // The driver takes care of the rest only, and what has moved may go meanwhile.
        page_in(&mut t.rig, &src, 0, 8, MttAccess::NONE);
        page_in(&mut t.rig, &dst, 0, 8, MttAccess::NONE);
        page_in(&mut t.rig, &missing, 8, 8, RW);
        assert_eq!(kinds(&t.rig.resume(&fault, false)), success(opcode));
        assert_eq!(t.rig.peek(to.iova, LEN), bytes);
        assert!(t.rig.faults().is_empty());
    }
}

#[test]
fn otherwise_nothing_moves_of_a_chunk_that_is_not_all_there() {
    for scheme in SCHEMES {
        for (opcode, requester) in MOVING {
            let mut t = pair(scheme, true, true);
            if scheme == Scheme::Memory {
                t.rig.rule("fault do=shape committed=packets");
            }
            let (src, dst) = (t.src, t.dst);
            let missing = if requester { src } else { dst };
            page_in(&mut t.rig, &missing, 8, 8, MttAccess::NONE);
            t.rig.fill(src.iova, LEN, 7);
            t.rig.fill(dst.iova, LEN, 8);
            let before = (t.rig.peek(src.iova, LEN), t.rig.peek(dst.iova, LEN));
            post(&mut t, opcode);
            assert_eq!(t.rig.run(), []);
            let fault = t.rig.fault();
            if scheme == Scheme::Transport {
                assert_eq!(progress(&fault).0, 0);
            }
            let after = (t.rig.peek(src.iova, LEN), t.rig.peek(dst.iova, LEN));
            assert!(before == after, "{opcode:?}");
        }
    }
}

#[test]
fn only_whole_packets_are_committed() {
    let mut t = pair(Scheme::Transport, true, true);
    t.rig.rule("fault do=shape committed=packets");
    let (src, dst) = (t.src, t.dst);
    page_in(&mut t.rig, &dst, 8, 8, MttAccess::NONE);
    let bytes = t.rig.fill(src.iova, LEN, 7);
    let len = LEN - 100;
    let mut body = raddr(dst.key, dst.va + 100);
    body.extend(data(src.key, src.va, len));
    t.rig.post(&mut t.a, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    let (committed, operation, _) = progress(&fault);
    // 32,668 bytes are in front of the page: 31 packets of 1,024 and a part of one.
    assert_eq!(committed, 31 << 10);
    assert_eq!(operation, Some((dst.va + 100, u32::try_from(len).unwrap())));
    page_in(&mut t.rig, &dst, 8, 8, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), SUCCESS);
    assert_eq!(t.rig.peek(dst.iova + 100, len), bytes[..len]);
}

#[test]
fn the_packets_of_which_the_other_end_lacks_a_page_are_not_committed() {
    let mut t = pair(Scheme::Transport, true, true);
    t.rig.rule("fault do=shape committed=packets");
    let (src, dst) = (t.src, t.dst);
    // The requester's page is the first that is looked for, and not the first that is missing.
    page_in(&mut t.rig, &src, 8, 8, MttAccess::NONE);
    let hole = [MttAccess::READ_WRITE, MttAccess::NONE];
    let list: Vec<_> = (0..8)
        .map(|page| crate::rig::mtt(dst.iova + page * PAGE, hole[usize::from(page >= 3)]))
        .collect();
    t.rig.set_mtts(dst.key, 0, &list);
    let bytes = t.rig.fill(src.iova, LEN, 7);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    assert_eq!(progress(&fault).0, 3 << 12);
    page_in(&mut t.rig, &src, 8, 8, RW);
    assert_eq!(t.rig.resume(&fault, false), []);
    let fault = t.rig.fault();
    assert_eq!(progress(&fault).0, 3 << 12);
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), SUCCESS);
    assert_eq!(t.rig.peek(dst.iova, LEN), bytes);
}

#[test]
fn commits_and_rnr_naks_go_together() {
    let mut t = refusing(Scheme::Transport, "rnr committed=packets", 1);
    let (src, dst) = (t.src, t.dst);
    page_in(&mut t.rig, &dst, 0, 8, RW);
    let bytes = t.rig.fill(src.iova, LEN, 7);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    assert_eq!(progress(&fault).0, 0x8000);
    page_in(&mut t.rig, &dst, 0, 8, MttAccess::NONE);
    page_in(&mut t.rig, &dst, 8, 8, RW);
    assert_eq!(t.rig.resume(&fault, false), []);
    // The packet that was refused is repeated, not the message.
    assert_eq!(kinds(&t.rig.run_after(1)), SUCCESS);
    assert_eq!(t.rig.peek(dst.iova, LEN), bytes);
}
