// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MRs of a dma-buf.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use firmware_cmds::{Iova, PageFault};
use mlx5_odp::{prefetch, Advice, Found, NotIn, Pressure, TRIES};

use super::model::buffer::{Exported, HeldBuffer};
use super::model::driver::HeldMr;
use super::model::implicit::HeldParent;
use super::model::Model;
use super::*;

const PAGES: u64 = 16;

fn exported(writable: bool) -> (Model, Arc<Exported>) {
    let mut model = Model::new();
    let buffer = Exported::new(KEY, IOVA, PAGES * PAGE, writable);
    model.buffers.push(Arc::clone(&buffer));
    (model, buffer)
}

#[test]
fn a_fault_anywhere_publishes_all_of_it() {
    let (model, buffer) = exported(true);
    fault(&model, PageFault::Memory(memory(iova(15), 1)));
    fault(&model, PageFault::Rdma(rdma(iova(3), 100, true)));

    assert_eq!(resumed(&model), [true, true]);
    assert_eq!(buffer.faults.load(Ordering::Relaxed), 2 * PAGES);
    assert_eq!(buffer.faults_handled.load(Ordering::Relaxed), 2);
}

#[test]
fn what_lies_outside_fails() {
    let (model, buffer) = exported(true);
    let end = IOVA + PAGES * PAGE;
    for (at, bytes, is_inside) in [
        (end - 1, 1, true),
        (end - 1, 2, false),
        (end, 1, false),
        (IOVA - 1, 2, false),
        (u64::MAX, 2, false),
    ] {
        fault(&model, PageFault::Rdma(rdma(at, bytes, false)));
        assert_eq!(
            resumed(&model).last(),
            Some(&is_inside),
            "{bytes} at {at:#x}"
        );
    }
    // The memory scheme does not know where an MR ends.
    for (at, is_inside) in [
        (end - PAGE, true),
        (end, false),
        (IOVA - PAGE, true),
        (IOVA - 2 * PAGE, false),
    ] {
        fault(&model, PageFault::Memory(memory(at, 2)));
        assert_eq!(resumed(&model).last(), Some(&is_inside), "2 at {at:#x}");
    }
    assert_eq!(buffer.asked.load(Ordering::Relaxed), 1 + 2);
}

#[test]
fn one_that_is_read_only_is_not_written() {
    let (model, buffer) = exported(false);
    fault(&model, PageFault::Rdma(rdma(IOVA, 1, true)));
    assert_eq!(buffer.asked.load(Ordering::Relaxed), 0);
    // Those that were raised before it was there.
    for _ in 0..3 {
        fault(&model, PageFault::Memory(memory(IOVA, 1)));
        fault(&model, PageFault::Rdma(rdma(IOVA, 1, false)));
    }
    assert_eq!(resumed(&model), [false, true, true, true, true, true, true]);
}

#[test]
fn an_exporter_that_cannot_now_is_asked_again() {
    for why in [Pressure::Race, Pressure::Memory] {
        let (model, buffer) = exported(true);
        *buffer.trouble.lock().unwrap() = vec![NotIn::Busy(why); 2];
        fault(&model, PageFault::Memory(memory(IOVA, 1)));
        assert_eq!(buffer.published.load(Ordering::Relaxed), 1);
        let sleeps = model.world().sleeps;
        assert_eq!(sleeps > 0, why == Pressure::Memory, "{why:?}");

        // In the end the device asks again, and nothing has failed.
        *buffer.trouble.lock().unwrap() = vec![NotIn::Busy(why); 100];
        fault(&model, PageFault::Memory(memory(IOVA, 1)));
        assert_eq!(buffer.asked.load(Ordering::Relaxed), 3 + u64::from(TRIES));
        assert_eq!(model.world().gave_back, 1);
        assert_eq!(resumed(&model), [true, true]);
    }
}

#[test]
fn one_that_was_taken_away_or_not_told_fails() {
    let (model, buffer) = exported(true);
    *buffer.trouble.lock().unwrap() = vec![NotIn::Device, NotIn::Invalid];
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(model.world().refused, [NotIn::Invalid, NotIn::Device]);
    assert_eq!(resumed(&model), [false, false]);
}

#[test]
fn a_prefetch_publishes_it_too() {
    let (model, buffer) = exported(false);
    let found = Found::<HeldMr, HeldParent<'_>, _>::Buffer(HeldBuffer(Arc::clone(&buffer)));
    let advise = |at, bytes, advice| prefetch(&found, Iova::new(at), bytes, advice, &model);
    assert_eq!(advise(IOVA, 100, Advice::Read), Ok(()));
    assert_eq!(advise(IOVA, 100, Advice::Present), Ok(()));
    assert_eq!(advise(IOVA, 100, Advice::Write), Err(NotIn::ReadOnly));
    assert_eq!(advise(IOVA - 1, 100, Advice::Read), Err(NotIn::Invalid));
    assert_eq!(buffer.prefetched.load(Ordering::Relaxed), 2 * PAGES);
    assert_eq!(buffer.faults_handled.load(Ordering::Relaxed), 0);
}
