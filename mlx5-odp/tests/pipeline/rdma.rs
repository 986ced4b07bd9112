// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme's remote accesses.

use std::sync::atomic::Ordering;

use firmware_cmds::page_fault::FaultType;
use firmware_cmds::resume::FaultToken;
use firmware_cmds::{Mkey, PageFault, TransportToken, WqNumber};

use super::model::Protection;
use super::*;

#[test]
fn fault_asks_for_what_the_event_says() {
    let model = model();
    fault(&model, PageFault::Rdma(rdma(IOVA + 100, 5000, false)));
    assert_eq!(model.world().writes_asked, 0, "a READ must not break COW");
    assert_eq!(table(&model, 0, 3), [R, R, NONE]);

    fault(&model, PageFault::Rdma(rdma(IOVA + 100, 100, true)));
    assert_eq!(table(&model, 0, 2), [RW, R]);
    assert_eq!(resumed(&model), [true, true]);
    assert_eq!(
        model.world().resumes[0].fault,
        FaultToken::Transport {
            fault_type: FaultType::rdma(false),
            wq_number: WqNumber::truncate(0x77),
            token: TransportToken::truncate(0x77),
        }
    );
}

#[test]
fn read_of_read_only_memory_succeeds_and_write_fails() {
    let model = model();
    protect(&model, 0..64, Protection::Read);
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, true)));
    assert_eq!(resumed(&model), [true, false]);
}

#[test]
fn write_through_a_read_only_region_fails() {
    let model = Model::new();
    (model.world().memory).mmap(FIRST..FIRST + 4, Protection::Write);
    model.register(KEY, IOVA, ADDRESS, 4 * 4096, false);
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, true)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
    assert_eq!(resumed(&model), [false, true]);
}

/// It wants to write and says that it reads: it says so again and again.
#[test]
fn fault_whose_event_lies_about_writing_gets_on() {
    let model = model();
    let event = PageFault::Rdma(rdma(IOVA, 100, false));
    // Brought in; perhaps late, and so is the first one after that.
    let until_it_is_known = || {
        fault(&model, event);
        fault(&model, event);
        later(&model);
        fault(&model, event);
        assert_eq!(table(&model, 0, 1), [R]);
    };
    until_it_is_known();
    fault(&model, event);
    assert_eq!(table(&model, 0, 1), [RW]);
    // Where it may not, it ends.
    protect(&model, 0..1, Protection::Read);
    until_it_is_known();
    assert_eq!(resumed(&model), [true; 7]);
    fault(&model, event);
    assert_eq!(resumed(&model)[7..], [false]);
    // Nobody was held up: most of those that say so only read what others have brought in.
    assert_eq!(model.world().sleeps, 0);
}

#[test]
fn an_address_beyond_all_addresses_fails() {
    let model = model();
    let mut event = rdma(u64::MAX - 100, 5000, false);
    event.bytes_committed = 4096;
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [false]);
}

#[test]
fn fault_skips_what_is_committed() {
    let model = model();
    let mut event = rdma(IOVA, u32::try_from(4 * PAGE).unwrap(), true);
    event.bytes_committed = u32::try_from(3 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));
    assert_eq!(model.mapped(KEY), 1);
    assert_eq!(table(&model, 3, 1), [RW]);
}

#[test]
fn fault_of_unknown_length_takes_the_packet_and_prefetches() {
    let model = model();
    let mut event = rdma(IOVA, 0, true);
    event.bytes_committed = u32::try_from(8 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));

    assert_eq!(resumed(&model), [true]);
    let mr = model.mr(KEY);
    assert_eq!(mr.faults.load(Ordering::Relaxed), 1);
    assert_eq!(mr.faults_handled.load(Ordering::Relaxed), 1);
    assert_eq!(mr.prefetched.load(Ordering::Relaxed), 8);
    assert_eq!(model.mapped(KEY), 8);
}

#[test]
fn prefetch_that_fails_harms_nobody() {
    let model = model();
    let mut event = rdma(IOVA + 60 * PAGE, 0, true);
    event.bytes_committed = u32::try_from(3 * PAGE).unwrap();
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [true], "3 pages from the last lie outside");
    assert_eq!(model.mr(KEY).prefetched.load(Ordering::Relaxed), 0);
}

#[test]
fn fault_outside_the_region_fails() {
    let model = model();
    fault(&model, PageFault::Rdma(rdma(IOVA + 63 * PAGE, 4097, true)));
    fault(&model, PageFault::Rdma(rdma(IOVA - 1, 1, true)));
    fault(&model, PageFault::Rdma(rdma(u64::MAX, 2, true)));
    assert_eq!(resumed(&model), [false; 3]);
}

#[test]
fn fault_on_a_key_without_pages_of_ours_goes_on() {
    let model = model();
    let mut event = rdma(IOVA, 1, true);
    event.r_key = Mkey::new(0x9900);
    fault(&model, PageFault::Rdma(event));
    event.r_key = Mkey::new(KEY.get() + 1);
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [true, false]);
}

#[test]
fn memory_that_is_not_accessible_fails() {
    let model = model();
    protect(&model, 1..2, Protection::None);
    fault(&model, PageFault::Rdma(rdma(IOVA, 8192, false)));
    assert_eq!(resumed(&model), [false]);
}
