// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Page faults: what is reported, and what a resume does, in both schemes.

use firmware_cmds::page_fault::FaultType;
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{
    AccessMode, FaultToken, Klm, MemoryToken, Mkey, Mtt, MttAccess, PageFault, PageFaultResume,
    Scheme, Wire, WqeFaultKind,
};

use crate::pair::{kinds, page_in, pair, post_rdma, Pair, LEN, PAGES, RW, VA};
use crate::rig::{atomic, data, raddr, Rig, TestMr};

/// (key, va, pages) of a fault in the memory scheme.
fn memory(fault: PageFault) -> (Mkey, u64, u32) {
    let PageFault::Memory(fault) = fault else {
        panic!("{fault:?}");
    };
    assert!(fault.last);
    assert_eq!((fault.pre_demand_pages, fault.post_demand_pages), (0, 0));
    (fault.mkey, fault.va.get(), fault.demand_pages.get())
}

#[test]
fn memory_scheme_write_to_missing_memory() {
    let mut t = pair(Scheme::Memory, true, false);
    let bytes = t.rig.fill(t.src.iova, LEN, 1);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    assert_eq!(memory(fault), (t.dst.key, t.dst.va, 16));
    // The page-in itself is a UMR on another QP: it must get through.
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
    assert_eq!(t.rig.peek(t.dst.iova, LEN), bytes);
    let counters = t.rig.device.counters;
    assert_eq!((counters.faults_memory, counters.resumes_ok), (1, 1));
    assert_eq!(counters.faults_rdma, 0);
    assert!(t.rig.faults().is_empty());
}

#[test]
fn memory_scheme_reports_one_piece_at_a_time() {
    let mut t = pair(Scheme::Memory, true, false);
    let (src, dst) = (t.src, t.dst);
    let bytes = t.rig.fill(src.iova, LEN, 2);
    page_in(&mut t.rig, &dst, 8, 2, RW);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    assert_eq!(memory(fault), (dst.key, dst.va, 8));
    page_in(&mut t.rig, &dst, 0, 8, RW);
    assert_eq!(t.rig.resume(&fault, false), []);
    let fault = t.rig.fault();
    assert_eq!(memory(fault), (dst.key, dst.va + 10 * 4096, 6));
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
    assert_eq!(t.rig.peek(dst.iova, LEN), bytes);
}

#[test]
fn memory_scheme_aligns_the_address_and_counts_pages_touched() {
    let mut t = pair(Scheme::Memory, false, true);
    let body = [
        raddr(t.dst.key, t.dst.va),
        data(t.src.key, t.src.va + 4095, 2),
    ]
    .concat();
    t.rig.post(&mut t.a, WqeOpcode::RDMA_WRITE, 0, &body);
    t.rig.run();
    assert_eq!(memory(t.rig.fault()), (t.src.key, t.src.va, 2));
}

#[test]
fn transport_scheme_names_the_operation_at_the_responder() {
    for (opcode, write) in [(WqeOpcode::RDMA_WRITE, true), (WqeOpcode::RDMA_READ, false)] {
        let mut t = pair(Scheme::Transport, true, false);
        post_rdma(&mut t, opcode);
        t.rig.run();
        let fault = t.rig.fault();
        let PageFault::Rdma(rdma) = fault else {
            panic!("{fault:?}");
        };
        assert_eq!(rdma.r_key, t.dst.key);
        assert_eq!(rdma.rdma_va.get(), t.dst.va);
        assert_eq!(u64::from(rdma.rdma_op_len), LEN as u64);
        assert_eq!(rdma.bytes_committed, 0);
        assert_eq!(rdma.packet_length, 1024);
        assert_eq!(rdma.fault_type, FaultType::rdma(write));
        let dst = t.dst;
        page_in(&mut t.rig, &dst, 0, PAGES, RW);
        assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
        assert_eq!(t.rig.device.counters.faults_rdma, 1);
    }
}

#[test]
fn transport_scheme_names_the_wqe_of_the_requester() {
    for (opcode, kind) in [
        (WqeOpcode::RDMA_WRITE, WqeFaultKind::SendOrWrite),
        (WqeOpcode::RDMA_READ, WqeFaultKind::ReadOrAtomic),
    ] {
        let mut t = pair(Scheme::Transport, false, true);
        // The index counts WQEBBs: the NOP before takes one.
        t.rig.post(&mut t.a, WqeOpcode::NOP, 0, &[]);
        t.rig.run();
        let bytes = t.rig.fill(t.dst.iova, LEN, 3);
        post_rdma(&mut t, opcode);
        t.rig.run();
        let fault = t.rig.fault();
        let PageFault::Wqe(wqe) = fault else {
            panic!("{fault:?}");
        };
        assert_eq!((wqe.kind, wqe.wq_number.get()), (kind, t.a.qpn));
        assert_eq!((wqe.wqe_index, wqe.bytes_committed), (1, 0));
        let src = t.src;
        page_in(&mut t.rig, &src, 0, PAGES, RW);
        assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
        if opcode == WqeOpcode::RDMA_READ {
            assert_eq!(t.rig.peek(src.iova, LEN), bytes);
        }
        assert_eq!(t.rig.device.counters.faults_wqe_requester, 1);
    }
}

#[test]
fn transport_scheme_names_the_receive_wqe() {
    let mut t = pair(Scheme::Transport, true, false);
    let bytes = t.rig.fill(t.src.iova, LEN, 4);
    for _ in 0..2 {
        t.rig.post_recv(&mut t.b, &[(t.dst.key, t.dst.va, LEN)]);
    }
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &[]);
    assert_eq!(kinds(&t.rig.run()), [(2, 0), (0, 0)]);
    let body = data(t.src.key, t.src.va, LEN);
    t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
    t.rig.run();
    let fault = t.rig.fault();
    let PageFault::Wqe(wqe) = fault else {
        panic!("{fault:?}");
    };
    assert_eq!(wqe.kind, WqeFaultKind::Receive);
    assert_eq!((wqe.wq_number.get(), wqe.wqe_index), (t.b.qpn, 1));
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(2, 0), (0, 0)]);
    assert_eq!(t.rig.peek(dst.iova, LEN), bytes);
    assert_eq!(t.rig.device.counters.faults_wqe_responder, 1);
}

#[test]
fn a_read_only_page_faults_when_it_is_written() {
    let mut t = pair(Scheme::Memory, true, false);
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, MttAccess::READ);
    post_rdma(&mut t, WqeOpcode::RDMA_READ);
    assert_eq!(kinds(&t.rig.run()), [(0, 0)]);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(t.rig.run(), []);
    assert_eq!(memory(t.rig.fault()), (dst.key, dst.va, 16));
}

#[test]
fn resume_without_a_page_faults_again_with_another_token() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let mut tokens = Vec::new();
    for _ in 0..5 {
        let fault = t.rig.fault();
        tokens.push(fault.fault_token().get());
        // Paged in, and zapped before the resume.
        let dst = t.dst;
        page_in(&mut t.rig, &dst, 0, PAGES, RW);
        page_in(&mut t.rig, &dst, 0, PAGES, MttAccess::NONE);
        assert_eq!(t.rig.resume(&fault, false), []);
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 5);
    assert_eq!(t.rig.device.counters.faults_memory, 6);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn resume_with_error() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        // The requester's own memory.
        for opcode in [WqeOpcode::RDMA_WRITE, WqeOpcode::RDMA_READ] {
            let mut t = pair(scheme, false, true);
            post_rdma(&mut t, opcode);
            t.rig.run();
            let fault = t.rig.fault();
            assert_eq!(kinds(&t.rig.resume(&fault, true)), [(0xd, 0x04)]);
        }
        // The target of RDMA.
        let mut t = pair(scheme, true, false);
        post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
        t.rig.run();
        let fault = t.rig.fault();
        assert_eq!(kinds(&t.rig.resume(&fault, true)), [(0xd, 0x13)]);
        // A receive.
        let mut t = pair(scheme, true, false);
        t.rig.post_recv(&mut t.b, &[(t.dst.key, t.dst.va, LEN)]);
        let body = data(t.src.key, t.src.va, LEN);
        t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
        t.rig.run();
        let fault = t.rig.fault();
        let done = t.rig.resume(&fault, true);
        assert_eq!(kinds(&done), [(0xd, 0x14), (0xe, 0x04)]);
        assert_eq!(t.rig.device.counters.resumes_error, 1);
    }
}

#[test]
fn an_atomic_is_evaluated_once() {
    let mut t = pair(Scheme::Memory, false, false);
    let (src, dst) = (t.src, t.dst);
    let mut body = raddr(dst.key, dst.va);
    body.extend(atomic(1, 0));
    body.extend(data(src.key, src.va, 8));
    t.rig.post(&mut t.a, WqeOpcode::ATOMIC_FA, 0, &body);
    t.rig.run();
    let fault = t.rig.fault();
    assert_eq!(memory(fault), (dst.key, dst.va, 1));
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(t.rig.resume(&fault, false), []);
    // It is done; what is missing is where its answer goes, and for long.
    for _ in 0..3 {
        assert_eq!(t.rig.peek(dst.iova, 8), 1_u64.to_ne_bytes());
        let fault = t.rig.fault();
        assert_eq!(memory(fault), (src.key, src.va, 1));
        assert_eq!(t.rig.resume(&fault, false), []);
    }
    let fault = t.rig.fault();
    page_in(&mut t.rig, &src, 0, PAGES, RW);
    t.rig.fill(src.iova, 8, 1);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
    assert_eq!(t.rig.peek(src.iova, 8), [0; 8]);
    assert_eq!(t.rig.peek(dst.iova, 8), 1_u64.to_ne_bytes());
    assert_eq!(t.rig.device.counters.msgs_atomic, 1);
}

#[test]
fn an_atomic_that_may_not_be_answered_is_not_evaluated() {
    let mut t = pair(Scheme::Memory, true, true);
    let (src, dst) = (t.src, t.dst);
    let mkey = t.rig.device.mkeys.get_mut(src.key.index().get()).unwrap();
    mkey.mkc.access.local_write = false;
    let mut body = raddr(dst.key, dst.va);
    body.extend(atomic(1, 0));
    body.extend(data(src.key, src.va, 8));
    t.rig.post(&mut t.a, WqeOpcode::ATOMIC_FA, 0, &body);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x04)]);
    assert_eq!(t.rig.peek(dst.iova, 8), [0; 8]);
}

#[test]
fn the_answer_of_an_atomic_outlives_its_responder() {
    let mut t = pair(Scheme::Memory, false, true);
    let (src, dst) = (t.src, t.dst);
    let mut body = raddr(dst.key, dst.va);
    body.extend(atomic(1, 0));
    body.extend(data(src.key, src.va, 8));
    t.rig.post(&mut t.a, WqeOpcode::ATOMIC_FA, 0, &body);
    t.rig.run();
    let fault = t.rig.fault();
    // Reset and connected anew, it knows nothing of the request any more.
    t.rig.reset(&mut t.b);
    t.rig.connect(t.b.qpn, t.a.qpn);
    page_in(&mut t.rig, &src, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0, 0)]);
    assert_eq!(t.rig.peek(dst.iova, 8), 1_u64.to_ne_bytes());
}

#[test]
fn a_stall_holds_up_its_own_direction_only() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.post(&mut t.a, WqeOpcode::NOP, 0, &[]);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    // The other direction and other QPs go on.
    let mut body = raddr(t.src.key, t.src.va);
    body.extend(data(t.src.key, t.src.va + 64, 8));
    t.rig.post(&mut t.b, WqeOpcode::RDMA_WRITE, 0, &body);
    let done = t.rig.run();
    assert_eq!((kinds(&done), done[0].qpn), (vec![(0, 0)], t.b.qpn));
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    let done = t.rig.resume(&fault, false);
    assert_eq!(kinds(&done), [(0, 0), (0, 0)]);
    assert_eq!((done[0].send_opcode, done[1].send_opcode), (0x08, 0));
}

#[test]
fn the_end_of_a_qp_discards_its_stalls() {
    // 2ERR, 2RST and DESTROY of the requester.
    for opcode in [0x507_u16, 0x50a, 0x501] {
        let mut t = pair(Scheme::Transport, false, true);
        post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
        t.rig.run();
        let fault = t.rig.fault();
        assert_eq!(t.rig.device.faults.len(), 1);
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&opcode.to_be_bytes());
        input[8..12].copy_from_slice(&t.a.qpn.to_be_bytes());
        t.rig.command(&input, 16);
        assert_eq!(t.rig.device.faults.len(), 0);
        let flushed: &[(u8, u8)] = if opcode == 0x507 { &[(0xd, 5)] } else { &[] };
        assert_eq!(kinds(&t.rig.run()), flushed);
        assert_eq!(t.rig.resume(&fault, false), []);
        assert_eq!(t.rig.device.counters.resumes_unknown, 1);
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn the_end_of_a_responder_lets_its_requester_time_out() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x501_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.b.qpn.to_be_bytes());
    t.rig.command(&input, 16);
    assert_eq!(t.rig.device.faults.len(), 0);
    for _ in 0..3 {
        assert_eq!(t.rig.run(), []);
        t.rig.now += std::time::Duration::from_millis(70);
    }
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x15)]);
}

#[test]
fn second_resume_and_foreign_resume_are_violations() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    let dst = t.dst;
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    t.rig.resume(&fault, false);
    assert!(t.rig.violations().is_empty());
    t.rig.resume(&fault, false);
    assert!(t.rig.violations()[0].contains("twice"));
    // Tokens that were never given out.
    for token in [0, 0x123, 0xff_ffff] {
        let unknown = PageFaultResume {
            fault: FaultToken::Memory(MemoryToken::truncate(token)),
            error: false,
        };
        t.rig.command(&unknown.to_bytes(), 16);
        let violations = t.rig.violations();
        assert!(violations.last().unwrap().contains("there was none"));
    }
    assert_eq!(t.rig.violations().len(), 4);
    assert_eq!(t.rig.device.counters.resumes_unknown, 4);
}

#[test]
fn a_token_has_48_bits_and_none_may_be_lost() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    let token = fault.fault_token().get();
    let (low, high) = (token & 0xff_ffff, token >> 24);
    assert!(high != 0 && high >> 24 == 0 && high != low, "{token:#x}");
    let cut = PageFaultResume {
        fault: FaultToken::Memory(MemoryToken::truncate(low)),
        error: false,
    };
    t.rig.command(&cut.to_bytes(), 16);
    assert_eq!(t.rig.violations().len(), 1);
    assert!(t.rig.violations()[0].contains("the event named"));
}

#[test]
fn a_receive_demands_what_the_message_needs_and_not_its_whole_segment() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        let mut t = pair(scheme, true, false);
        let bytes = t.rig.fill(t.src.iova, 64, 6);
        // The segment ends far beyond the MR, but the message does not.
        t.rig.post_recv(&mut t.b, &[(t.dst.key, t.dst.va, 2 * LEN)]);
        let body = data(t.src.key, t.src.va, 64);
        t.rig.post(&mut t.a, WqeOpcode::SEND, 0, &body);
        t.rig.run();
        let fault = t.rig.fault();
        match fault {
            PageFault::Wqe(fault) => assert_eq!(fault.packet_length, 64),
            _ => assert_eq!(memory(fault), (t.dst.key, t.dst.va, 1)),
        }
        let dst = t.dst;
        page_in(&mut t.rig, &dst, 0, 8, RW);
        assert_eq!(kinds(&t.rig.resume(&fault, false)), [(2, 0), (0, 0)]);
        assert_eq!(t.rig.peek(dst.iova, 64), bytes);
    }
}

#[test]
fn an_atomic_in_two_pieces_faults_on_the_second() {
    let mut t = pair(Scheme::Memory, true, false);
    let (src, dst) = (t.src, t.dst);
    let half = |mr: &TestMr| Klm {
        bcount: 4,
        key: mr.key,
        va: firmware_cmds::Iova::new(mr.va),
    };
    let list: Vec<u8> = [half(&src), half(&dst)]
        .iter()
        .flat_map(|klm| {
            let mut bytes = vec![0; Klm::LEN];
            klm.emit(&mut bytes).unwrap();
            bytes
        })
        .collect();
    let mut mkc = t.rig.mkc(AccessMode::Klms);
    mkc.free = false;
    mkc.len = 8;
    mkc.translations_octword_size = 2;
    let key = t.rig.create_mkey(&mkc, &list);
    let before = t.rig.peek(src.iova, 8);
    let mut body = raddr(key, 0);
    body.extend(atomic(1, 0));
    body.extend(data(src.key, src.va + 64, 8));
    t.rig.post(&mut t.a, WqeOpcode::ATOMIC_FA, 0, &body);
    assert_eq!(t.rig.run(), []);
    let fault = t.rig.fault();
    assert_eq!(memory(fault), (dst.key, dst.va, 1));
    // Memory in two places cannot be changed atomically.
    page_in(&mut t.rig, &dst, 0, PAGES, RW);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0xd, 0x12)]);
    assert_eq!(t.rig.peek(src.iova, 8), before);
}

#[test]
fn faults_are_counted_by_what_stalled() {
    let counts = |t: &Pair| {
        let c = t.rig.device.counters;
        assert_eq!(c.faults_memory, 1);
        [
            c.faults_memory_requester_read,
            c.faults_memory_requester_write,
            c.faults_memory_receive_write,
            c.faults_memory_rdma_read,
            c.faults_memory_rdma_write,
        ]
    };
    let cases = [
        (WqeOpcode::RDMA_WRITE, false, [1, 0, 0, 0, 0]),
        (WqeOpcode::RDMA_READ, false, [0, 1, 0, 0, 0]),
        (WqeOpcode::SEND, true, [0, 0, 1, 0, 0]),
        (WqeOpcode::RDMA_READ, true, [0, 0, 0, 1, 0]),
        (WqeOpcode::RDMA_WRITE, true, [0, 0, 0, 0, 1]),
    ];
    for (opcode, src, expected) in cases {
        let mut t = pair(Scheme::Memory, src, !src);
        t.rig.post_recv(&mut t.b, &[(t.dst.key, t.dst.va, LEN)]);
        if opcode == WqeOpcode::SEND {
            let body = data(t.src.key, t.src.va, LEN);
            t.rig.post(&mut t.a, opcode, 0, &body);
        } else {
            post_rdma(&mut t, opcode);
        }
        t.rig.run();
        assert_eq!(counts(&t), expected, "{opcode:?}");
    }
}

#[test]
fn access_through_a_translation_that_was_taken_back_is_a_violation() {
    let mut t = pair(Scheme::Memory, true, true);
    // The IOMMU took the page away and the driver left the MTT.
    t.rig
        .mem
        .unmap(firmware_cmds::DmaAddr::new(t.dst.iova + 0x3000), 4096);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x13)]);
    let violations = t.rig.violations();
    assert_eq!(violations.len(), 1);
    for part in [
        "access through a translation that was taken back".to_owned(),
        format!("MKey {}", t.dst.key),
        format!("{:#x}", t.dst.iova + 0x3000),
    ] {
        assert!(violations[0].contains(&part), "{part}: {violations:?}");
    }
}

#[test]
fn access_after_destroy_is_a_protection_error() {
    let mut t = pair(Scheme::Memory, true, false);
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    t.rig.run();
    let fault = t.rig.fault();
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x202_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.dst.key.index().get().to_be_bytes());
    t.rig.command(&input, 16);
    assert_eq!(kinds(&t.rig.resume(&fault, false)), [(0xd, 0x13)]);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn a_fault_that_nobody_would_hear_of_is_a_protection_error() {
    let mut t = pair(Scheme::Memory, true, false);
    for eq in t.rig.device.events.queues.values_mut() {
        eq.mask = [0; 4];
    }
    post_rdma(&mut t, WqeOpcode::RDMA_WRITE);
    assert_eq!(kinds(&t.rig.run()), [(0xd, 0x13)]);
    assert!(t.rig.device.faults.is_empty());
}

#[test]
fn a_message_starts_again_when_its_receiver_does() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, mut b) = rig.rc_pair();
    let pages = 80;
    let len = 80 * 4096;
    let src = rig.mr(VA, pages, RW);
    let first = rig.mr(2 * VA, pages, RW);
    let second = rig.mr(3 * VA, pages, RW);
    // The first 256 KiB move, then the receiver faults and is reset.
    rig.set_mtts(first.key, 64, &[Mtt::NOT_PRESENT; 16]);
    let bytes = rig.fill(src.iova, len, 5);
    rig.post_recv(&mut b, &[(first.key, first.va, len)]);
    rig.post(&mut a, WqeOpcode::SEND, 0, &data(src.key, src.va, len));
    assert_eq!(rig.run(), []);
    assert_eq!(memory(rig.fault()), (first.key, first.va + 64 * 4096, 16));
    rig.reset(&mut b);
    rig.connect(b.qpn, a.qpn);
    rig.post_recv(&mut b, &[(second.key, second.va, len)]);
    assert_eq!(kinds(&rig.run_after(70)), [(2, 0), (0, 0)]);
    assert_eq!(rig.peek(second.iova, len), bytes);
}
