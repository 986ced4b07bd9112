// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The memory scheme: windows, keys, neighbours.

use std::sync::atomic::Ordering;

use firmware_cmds::resume::FaultToken;
use firmware_cmds::{Iova, MemoryToken, Mkey, PageFault};
use hmm_abi::WINDOW_PAGES;

use super::model::Protection;
use super::*;

#[test]
fn a_fault_publishes_and_resumes() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA + 8 * PAGE, 2)));

    assert_eq!(resumed(&model), [true]);
    let token = MemoryToken::truncate(0xabcd_1234_5678);
    assert_eq!(model.world().resumes[0].fault, FaultToken::Memory(token));
    assert_eq!(table(&model, 7, 4), [NONE, RW, RW, NONE]);
    let mr = model.mr(KEY);
    assert_eq!(mr.faults.load(Ordering::Relaxed), 2);
    assert_eq!(mr.faults_handled.load(Ordering::Relaxed), 1);
    assert_eq!(model.mapped(KEY), 2);
}

#[test]
fn a_window_is_clamped_to_the_region() {
    let model = model();
    let mut event = memory(IOVA + PAGE, 1);
    event.pre_demand_pages = 5;
    event.post_demand_pages = 200;
    fault(&model, PageFault::Memory(event));

    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.mapped(KEY), 64);
}

/// Whatever is around it, and whatever it is asked for.
#[test]
fn hints_never_fail_a_fault() {
    for (pre, post) in [(2, 0), (0, 2), (2, 2), (60, 60)] {
        for around in [Protection::None, Protection::Read] {
            for demanded in [Protection::Write, Protection::Read] {
                let model = model();
                protect(&model, 3..4, around);
                protect(&model, 5..6, around);
                protect(&model, 4..5, demanded);
                let mut event = memory(IOVA + 4 * PAGE, 1);
                event.pre_demand_pages = pre;
                event.post_demand_pages = post;
                fault(&model, PageFault::Memory(event));

                assert_eq!(resumed(&model), [true], "{pre} {post} {around:?}");
                let access = if demanded == Protection::Write { RW } else { R };
                assert_eq!(table(&model, 4, 1), [access]);
            }
        }
    }
}

#[test]
fn a_demand_beyond_the_region_fails() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA + 64 * PAGE, 1)));
    fault(&model, PageFault::Memory(memory(IOVA - PAGE, 1)));
    fault(&model, PageFault::Memory(memory(u64::MAX - PAGE + 1, 1)));
    fault(&model, PageFault::Memory(memory(IOVA, 0)));

    assert_eq!(resumed(&model), [false; 4]);
    assert_eq!(model.mapped(KEY), 0);
}

/// Its token is the last one's too: a resume here would be one too many, perhaps of another access.
#[test]
fn an_event_that_fails_and_is_not_the_last_is_not_resumed() {
    let model = model();
    protect(&model, 4..5, Protection::None);
    let mut event = memory(IOVA + 4 * PAGE, 1);
    event.last = false;
    fault(&model, PageFault::Memory(event));
    assert!(resumed(&model).is_empty());

    // The rest of the access came, and it is repeated: what is missing is all that is left.
    event.last = true;
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [false]);
}

#[test]
fn an_event_that_is_not_the_last_is_not_resumed() {
    let model = model();
    let mut event = memory(IOVA, 1);
    event.last = false;
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [false; 0]);
    assert_eq!(table(&model, 0, 1), [RW]);
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 1)));
    assert_eq!(resumed(&model), [true]);
}

#[test]
fn an_unknown_or_stale_key_fails() {
    let model = model();
    for key in [0x9900, KEY.get() + 1] {
        let mut event = memory(IOVA, 1);
        event.mkey = Mkey::new(key);
        fault(&model, PageFault::Memory(event));
    }
    assert_eq!(resumed(&model), [false, false]);
}

#[test]
fn memory_that_is_not_accessible_fails() {
    let model = model();
    protect(&model, 1..2, Protection::None);
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 1)));
    fault(&model, PageFault::Memory(memory(IOVA, 2)));
    assert_eq!(resumed(&model), [false, false]);
}

#[test]
fn a_key_that_was_cut_off_fails() {
    let model = model();
    model.world().nic.keys.clear();
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(resumed(&model), [false]);
    assert!(model.world().reports.is_empty(), "nobody has to be told");
    assert!(model.deregister(KEY).is_ok());
    model.check_at_end();
}

/// Every range fault is overtaken once.
#[test]
fn a_range_among_invalidations_comes_in_whole() {
    // Not aligned to anything but pages: three chunks.
    let (first, pages) = (0x1f7, 2 * WINDOW_PAGES + 40);
    let model = Model::new();
    (model.world().memory).mmap(first..first + pages, Protection::Write);
    model.register(KEY, IOVA, first * 4096, pages * 4096, true);
    model.world().trouble.walks = vec![model::world::Walk::Stale; 1].into();
    let count = u32::try_from(pages).unwrap();
    fault(&model, PageFault::Memory(memory(IOVA, count)));

    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.mapped(KEY), pages);
    assert_eq!(table(&model, 0, pages), vec![RW; pages]);
    let (walks, publishes) = {
        let world = model.world();
        (world.walks, world.nic.publishes)
    };
    assert_eq!(
        (walks, publishes),
        (4, 3),
        "a window each, one of them twice"
    );
    let mr = model.mr(KEY);
    assert_eq!(mr.faults.load(Ordering::Relaxed), u64::from(count));
    assert_eq!(mr.faults_handled.load(Ordering::Relaxed), 1);
    assert!(model.deregister(KEY).is_ok());
    model.check_at_end();
}

/// Chunks are made where something is asked for.
#[test]
fn chunks_that_nobody_touched_do_not_exist() {
    let model = model_of(4 * WINDOW_PAGES);
    let touched = iova(2 * WINDOW_PAGES + 3);
    fault(&model, PageFault::Memory(memory(touched, 1)));
    assert_eq!(model.mr(KEY).chunks().len(), 1);
    assert_eq!(table(&model, 2 * WINDOW_PAGES + 2, 3), [NONE, RW, NONE]);
}

#[test]
fn a_fault_on_what_is_published_already_posts_no_update() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA, 4)));
    assert_eq!(model.world().nic.publishes, 1);
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 2)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, true)));
    fault(&model, PageFault::Rdma(rdma(IOVA, 100, false)));
    assert_eq!(model.world().nic.publishes, 1);
    assert_eq!(resumed(&model), [true; 4]);
}

#[test]
fn updates_keep_neighbours() {
    let model = model();
    for page in [3, 5, 3, 4, 5] {
        fault(&model, PageFault::Memory(memory(iova(page), 1)));
    }
    assert_eq!(model.mapped(KEY), 3);
    assert_eq!(table(&model, 2, 5), [NONE, RW, RW, RW, NONE]);

    // Page 4 goes; its neighbours in the block stay translated.
    drop_pages(&model, 4..5);
    assert_eq!(table(&model, 3, 3), [RW, NONE, RW]);
    assert_eq!(model.world().nic.zaps, 1);
    assert!(model.deregister(KEY).is_ok());
    model.check_at_end();
}

/// What the device did not give back is for nobody else.
#[test]
fn a_page_that_is_stuck_fails_with_a_report() {
    let model = model();
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    {
        let mut world = model.world();
        world.trouble.zaps = [true; 10].into();
        world.trouble.revoke = true;
    }
    drop_pages(&model, 0..1);
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(resumed(&model), [true, false]);
    assert_eq!(model.world().refused, [mlx5_odp::NotIn::Device]);

    model.world().trouble.revoke = false;
    assert!(model.deregister(KEY).is_ok());
    model.check_at_end();
}

/// The event says where to go on.
#[test]
fn an_address_in_the_middle_of_a_page() {
    let model = model();
    let mut event = memory(IOVA, 1);
    event.va = Iova::new(IOVA + 2 * PAGE + 0x800);
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 1, 4), [NONE, RW, RW, NONE]);
}
