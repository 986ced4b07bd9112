// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a seed decides, and what it does not.

use std::collections::BTreeSet;

use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{MttAccess, Scheme};

use crate::rig::{data, inline, raddr, Completion, Rig};

const VA: u64 = 0x7f00_0000_1000;

/// Everything that happens with one of these seeds; without a seed it is `fifo`.
fn outcomes<T: Ord + std::fmt::Debug>(fifo: &T, run: impl Fn(&mut Rig) -> T) -> BTreeSet<T> {
    let outcome = |seed| run(&mut Rig::with_seed(Scheme::Memory, seed));
    assert_eq!(&outcome(None), fifo);
    let outcomes: BTreeSet<T> = (0..64).map(|seed| outcome(Some(seed))).collect();
    assert_eq!(outcome(Some(5)), outcome(Some(5)));
    outcomes
}

fn senders(done: &[Completion], of: &[u32]) -> Vec<usize> {
    let index = |completion: &Completion| of.iter().position(|&qpn| qpn == completion.qpn);
    done.iter().filter_map(index).collect()
}

#[test]
fn which_ready_qp_works_next() {
    let found = outcomes(&vec![0, 1, 0, 1], |rig| {
        let (mut a, _b) = rig.rc_pair();
        let (mut c, _d) = rig.rc_pair();
        for _ in 0..2 {
            rig.post(&mut a, WqeOpcode::NOP, 0, &[]);
            rig.post(&mut c, WqeOpcode::NOP, 0, &[]);
        }
        senders(&rig.run(), &[a.qpn, c.qpn])
    });
    // All six orders of two WQEs each of two QPs.
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn the_wqes_of_one_qp_keep_their_order() {
    let found = outcomes(&vec![0, 1, 2, 3], |rig| {
        let (mut a, _b) = rig.rc_pair();
        for _ in 0..4 {
            rig.post(&mut a, WqeOpcode::NOP, 0, &[]);
        }
        rig.run().iter().map(|done| done.counter).collect()
    });
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn how_far_a_message_gets_before_others_have_their_turn() {
    let found = outcomes(&vec![0x4_0000], |rig| {
        let (mut a, _b) = rig.rc_pair();
        let mr = rig.mr(VA, 128, MttAccess::READ_WRITE);
        let len = 64 * 4096;
        let mut body = raddr(mr.key, mr.va + 64 * 4096);
        body.extend(data(mr.key, mr.va, len));
        let bytes = rig.fill(mr.iova, len, 7);
        rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
        let mut slices = Vec::new();
        let mut written = 0;
        while rig.device.step(rig.now).is_some_and(|at| at <= rig.now)
            || written < rig.device.counters.bytes_written
        {
            slices.push(rig.device.counters.bytes_written - written);
            written = rig.device.counters.bytes_written;
        }
        assert_eq!(rig.peek(mr.iova + 64 * 4096, len), bytes);
        slices
    });
    assert!(found.len() > 8, "{found:?}");
}

#[test]
fn which_end_of_a_message_completes_first() {
    let found = outcomes(&vec![1, 0], |rig| {
        let (mut a, mut b) = rig.rc_pair();
        rig.post_recv(&mut b, &[]);
        rig.post(&mut a, WqeOpcode::SEND, 0, &[]);
        senders(&rig.run(), &[a.qpn, b.qpn])
    });
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn which_queue_of_a_qp_in_error_is_flushed_first() {
    let sends = |done: &[Completion]| done.iter().map(|done| done.opcode == 0xd).collect();
    let found = outcomes(&vec![true, true, false, false], |rig| {
        let (mut a, _b) = rig.rc_pair();
        for _ in 0..2 {
            rig.post_recv(&mut a, &[]);
            rig.post(&mut a, WqeOpcode::SEND, 0, &inline(&[1]));
        }
        let mut input = vec![0; 16];
        input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
        input[8..12].copy_from_slice(&a.qpn.to_be_bytes());
        rig.command(&input, 16);
        let done = rig.run();
        for opcode in [0xd, 0xe] {
            let queue = done.iter().filter(|done| done.opcode == opcode);
            assert!(queue.map(|done| done.counter).eq(0..2), "{done:?}");
        }
        sends(&done)
    });
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn which_page_fault_is_seen_first() {
    let found = outcomes(&vec![0, 1], |rig| {
        let (mut a, _b) = rig.rc_pair();
        let (mut c, _d) = rig.rc_pair();
        let first = rig.mr(VA, 1, MttAccess::NONE);
        let second = rig.mr(2 * VA, 1, MttAccess::NONE);
        rig.post(&mut a, WqeOpcode::SEND, 0, &data(first.key, first.va, 8));
        rig.post(&mut c, WqeOpcode::SEND, 0, &data(second.key, second.va, 8));
        for qp in [_b, _d] {
            let mut qp = qp;
            rig.post_recv(&mut qp, &[(first.key, first.va, 8)]);
        }
        rig.run();
        let addresses = rig.faults().into_iter().map(|fault| match fault {
            firmware_cmds::PageFault::Memory(fault) => fault.va.get() / VA - 1,
            other => panic!("{other:?}"),
        });
        addresses.collect()
    });
    assert_eq!(found.len(), 2, "{found:?}");
}

/// A reset is the end: what completed before it is reported before it.
#[test]
fn nothing_is_reported_of_a_qp_after_its_reset() {
    for seed in 0..64 {
        let mut rig = Rig::with_seed(Scheme::Memory, Some(seed));
        let (mut a, _b) = rig.rc_pair();
        let mut before = 0;
        for _ in 0..4 {
            rig.post(&mut a, WqeOpcode::NOP, 0, &[]);
        }
        for _ in 0..seed % 4 {
            let _ = rig.device.step(rig.now);
        }
        let worked = rig.device.qps.iter().find(|qp| qp.qpn.get() == a.qpn);
        let worked = usize::from(worked.unwrap().sq.ci);
        rig.reset(&mut a);
        before += rig.poll_cq().len();
        assert_eq!(before, worked, "seed {seed}");
        assert_eq!(rig.run(), []);
    }
}
