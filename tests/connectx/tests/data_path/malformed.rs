// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! WQEs that make no sense: an error completion, never a panic, and the device goes on.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;

use connectx::{DmaError, GuestMemory, Ram};
use firmware_cmds::wqe::{CtrlSeg, Ds, WqeOpcode};
use firmware_cmds::{DmaAddr, MttAccess, Scheme, Wire};
use proptest::prelude::*;

use crate::rig::{ctrl, data, raddr, Rig, LOG_RQ, LOG_SQ};

const VA: u64 = 0x7f00_0000_1000;

fn with_ds(ds: u8) -> Vec<(u8, u8)> {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    let mut head = ctrl(&a, WqeOpcode::SEND, 0, 0);
    head.ds = Ds::truncate(ds);
    let mut wqe = vec![0; 64];
    head.emit(&mut wqe[..CtrlSeg::LEN]).unwrap();
    rig.post_raw(&mut a, &wqe);
    rig.run().iter().map(|c| (c.opcode, c.syndrome)).collect()
}

#[test]
fn length_of_zero_and_beyond_what_is_posted() {
    assert_eq!(with_ds(0), [(0xd, 2)]);
    assert_eq!(with_ds(5), [(0xd, 2)]);
    assert_eq!(with_ds(63), [(0xd, 2)]);
}

#[test]
fn unknown_opcode() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    rig.post(&mut a, WqeOpcode(0x3f), 0, &[]);
    let done = rig.run();
    assert_eq!((done[0].opcode, done[0].syndrome), (0xd, 2));
}

#[test]
fn memory_window_bind_is_refused_and_noted() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    rig.post(&mut a, WqeOpcode::UMR, 0x1234, &[0; 112]);
    assert_eq!(rig.run()[0].syndrome, 6);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_doorbell_record_far_ahead_flushes_no_more_than_the_queue() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    a.sq_pi = 0x7fff;
    rig.ring(&a);
    // The first WQE fails, and then the queue is flushed.
    let done = rig.run();
    assert_eq!(done.len(), 1 + (1 << LOG_SQ));
    assert!(done[1..].iter().all(|c| c.syndrome == 5), "{done:?}");
    assert_eq!(rig.run_after(1000), []);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_step_flushes_a_bounded_part_of_a_long_queue() {
    const LOG: u32 = 13;
    let mut rig = Rig::new(Scheme::Memory);
    let mut qp = rig.create_qp_with(0, LOG);
    rig.connect(qp.qpn, 0);
    qp.sq_pi = 1 << LOG;
    rig.ring(&qp);
    assert_eq!(rig.device.step(rig.now), Some(rig.now));
    let flushed = |rig: &Rig| {
        rig.device
            .qps
            .get(firmware_cmds::Qpn::truncate(qp.qpn))
            .unwrap()
            .sq
            .ci
    };
    let first = flushed(&rig);
    assert!(first > 0 && first < 1 << (LOG - 1), "{first}");
    rig.run();
    assert_eq!(flushed(&rig), 1 << LOG);
}

/// A user that writes to its doorbell record all the time: both counters go up with every
/// read. A device that reads on and on is caught after a while.
struct Restless {
    memory: Arc<Ram>,
    dbr: u64,
    reads: AtomicU16,
}

impl GuestMemory for Restless {
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError> {
        self.memory.read(iova, buf)?;
        if iova.get() & !7 == self.dbr {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(reads < 1000, "the device reads the record without end");
            buf.copy_from_slice(&reads.to_be_bytes());
        }
        Ok(())
    }
    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError> {
        self.memory.write(iova, data)
    }
    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError> {
        self.memory.write_release(iova, value)
    }
    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError> {
        self.memory.fetch_add(iova, add)
    }
    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError> {
        self.memory.compare_exchange(iova, compare, swap)
    }
}

#[test]
fn a_doorbell_record_that_changes_all_the_time_does_not_hold_the_device_up() {
    let mut rig = Rig::new(Scheme::Memory);
    let (a, _b) = rig.rc_pair();
    rig.device.mem = Box::new(Restless {
        memory: Arc::clone(&rig.mem),
        dbr: a.dbr,
        reads: AtomicU16::new(0),
    });
    rig.ring(&a);
    for _ in 0..10 {
        let done = rig.run_after(20);
        assert!(!done.is_empty() && done.len() <= 1 + (1 << LOG_SQ) + (1 << LOG_RQ));
    }
    assert!(rig.violations().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is in the queue: no panic, no violation that would blame the driver for
    /// its user, no more completions than WQEBBs, and other QPs still work.
    #[test]
    fn any_bytes(
        wqe in proptest::collection::vec(any::<u8>(), 64..512),
        opcode in prop_oneof![Just(0xa_u8), Just(8), Just(0x10), Just(0x11), Just(0x12), any::<u8>()],
        ds in 0..64_u8,
        st in prop_oneof![Just(0_u32), Just(1), Just(2), Just(3)],
    ) {
        let mut rig = Rig::new(Scheme::Transport);
        let (a, b) = (rig.create_qp(st), rig.create_qp(st));
        let (mut a, b) = (a, b);
        rig.connect(a.qpn, b.qpn);
        rig.connect(b.qpn, a.qpn);
        let mut wqe = wqe;
        wqe[3] = opcode;
        wqe[7] = ds;
        let wqebbs = wqe.len().div_ceil(64);
        rig.post_raw(&mut a, &wqe);
        let mut done = rig.run();
        for _ in 0..8 {
            done.extend(rig.run_after(1000));
        }
        prop_assert!(done.len() <= wqebbs);
        prop_assert!(rig.violations().is_empty(), "{:?}", rig.violations());
        let (mut c, _d) = rig.rc_pair();
        let mr = rig.mr(VA, 2, MttAccess::READ_WRITE);
        let mut body = raddr(mr.key, mr.va);
        body.extend(data(mr.key, mr.va + 64, 8));
        rig.post(&mut c, WqeOpcode::RDMA_WRITE, 0, &body);
        let done = rig.run();
        prop_assert_eq!((done[0].opcode, done[0].syndrome), (0, 0));
    }

    /// The same with a valid head and garbage in the segments of a receive.
    #[test]
    fn any_receive(wqe in proptest::collection::vec(any::<u8>(), 64)) {
        let mut rig = Rig::new(Scheme::Memory);
        let (mut a, mut b) = rig.rc_pair();
        let mr = rig.mr(VA, 2, MttAccess::READ_WRITE);
        rig.post_recv_raw(&mut b, &wqe);
        rig.post(&mut a, WqeOpcode::SEND, 0, &data(mr.key, mr.va, 64));
        rig.run();
        prop_assert!(rig.violations().is_empty());
    }
}
