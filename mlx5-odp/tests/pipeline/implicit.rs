// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Implicit MRs: events that name one of their keys, and prefetches.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use mlx5_odp::{prefetch, Advice, Driver, NotIn, Pressure, TRIES};

use super::model::implicit::Parent;
use super::model::Protection;
use super::*;

const PARENT: Mkey = Mkey::new(0x2200);
const NULL: Mkey = Mkey::new(0x2300);
const FIRST_CHILD: u32 = 0x10_0000;
const GIB: u64 = 1 << 30;
const GIB_PAGES: usize = 1 << 18;

/// Memory around the border between children 0 and 1, all writable, below an implicit MR.
fn implicit_of(writable: bool) -> Model {
    let mut model = Model::new();
    let around = GIB_PAGES - 16..GIB_PAGES + 16;
    (model.world().memory).mmap(around, Protection::Write);
    let parent = Parent::new(PARENT, NULL, FIRST_CHILD, writable);
    model.parents.push(Arc::new(parent));
    model
}

fn implicit() -> Model {
    implicit_of(true)
}

/// The pages, counted from the border, that the device may write to or read.
fn published(model: &Model) -> Vec<(i64, MttAccess)> {
    let parent = &model.parents[0];
    let world = model.world();
    let page = |page: i64| {
        let at = usize::try_from(page + i64::try_from(GIB_PAGES).unwrap()).unwrap();
        let child = parent.key_of(at / GIB_PAGES);
        (page, world.nic.mtt(child, at % GIB_PAGES).access())
    };
    (-16..16)
        .map(page)
        .filter(|&(_, access)| access != NONE)
        .collect()
}

fn on(mkey: Mkey, at: u64, pages: u32) -> PageFault {
    PageFault::Memory(MemoryFault {
        mkey,
        ..memory(at, pages)
    })
}

#[test]
fn a_fault_on_the_null_key_makes_the_child() {
    let model = implicit();
    fault(&model, on(NULL, GIB, 2));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(published(&model), [(0, RW), (1, RW)]);
    assert_eq!(model.parents[0].children(), [1]);
    // And on the child's.
    fault(&model, on(model.parents[0].key_of(1), GIB + 3 * PAGE, 1));
    assert_eq!(published(&model).last(), Some(&(3, RW)));
    // What is counted is the parent's.
    let parent = &model.parents[0];
    assert_eq!(parent.faults.load(Ordering::Relaxed), 3);
    assert_eq!(parent.faults_handled.load(Ordering::Relaxed), 2);
    let child = model.mr(parent.key_of(1));
    assert_eq!(child.faults_handled.load(Ordering::Relaxed), 0);
}

/// The key says whose memory it is, and the address where: a child's key may be of another child by
/// the time that its event is served.
#[test]
fn the_address_decides_whatever_the_key() {
    let model = implicit();
    fault(&model, on(NULL, GIB, 1));
    fault(&model, on(model.parents[0].key_of(1), GIB - PAGE, 1));
    assert_eq!(resumed(&model), [true, true]);
    assert_eq!(published(&model), [(-1, RW), (0, RW)]);
}

#[test]
fn an_access_over_two_children_is_one_fault() {
    let model = implicit();
    let mut event = rdma(GIB - PAGE, 3 * 4096, false);
    event.r_key = PARENT;
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(published(&model), [(-1, R), (0, R), (1, R)]);
    let parent = &model.parents[0];
    assert_eq!(parent.faults.load(Ordering::Relaxed), 3);
    assert_eq!(parent.faults_handled.load(Ordering::Relaxed), 1);
    // Again and again, with nothing missing: it wants to write.
    later(&model);
    fault(&model, PageFault::Rdma(event));
    fault(&model, PageFault::Rdma(event));
    assert_eq!(published(&model), [(-1, RW), (0, RW), (1, RW)]);
}

/// One page that was missing explains the fault, in whichever child it is.
#[test]
fn one_page_that_was_missing_explains_a_fault_over_two_children() {
    let model = implicit();
    for (pages, expected) in [(1, vec![(-1, R)]), (2, vec![(-1, R), (0, R)])] {
        let mut event = rdma(GIB - PAGE, pages * 4096, false);
        event.r_key = PARENT;
        fault(&model, PageFault::Rdma(event));
        assert_eq!(published(&model), expected);
    }
}

#[test]
fn hints_make_no_child() {
    let model = implicit();
    let event = MemoryFault {
        mkey: NULL,
        pre_demand_pages: 4,
        post_demand_pages: 4,
        ..memory(GIB, 1)
    };
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.parents[0].children(), [1]);
    assert_eq!(published(&model).len(), 5);
}

#[test]
fn memory_that_is_not_there_fails() {
    let model = implicit();
    fault(&model, on(NULL, GIB + 16 * PAGE, 1));
    fault(&model, on(NULL, 1 << 47, 1));
    fault(&model, on(NULL, u64::MAX - PAGE + 1, 1));
    let mut event = rdma((1 << 47) - PAGE, 2 * 4096, true);
    event.r_key = PARENT;
    fault(&model, PageFault::Rdma(event));
    assert_eq!(resumed(&model), [false; 4]);
    // The chunk of the first was made, and may go; nothing was made for the others.
    assert_eq!(model.parents[0].children(), [1]);
    let child = model.mr(model.parents[0].key_of(1));
    assert!(!child.tidied.lock().unwrap().is_empty());
}

#[test]
fn writing_through_a_read_only_one_fails() {
    let model = implicit_of(false);
    let mut event = rdma(GIB, 1, true);
    event.r_key = PARENT;
    fault(&model, PageFault::Rdma(event));
    fault(&model, on(NULL, GIB, 1));
    assert_eq!(resumed(&model), [false, true]);
    assert_eq!(published(&model), [(0, R)]);
}

/// As want of memory for a page.
#[test]
fn a_child_that_there_is_no_memory_for_is_tried_again() {
    let tries = usize::try_from(TRIES).unwrap();
    for (refused, is_made) in [(tries - 1, true), (tries, false)] {
        let model = implicit();
        let no_memory = NotIn::Busy(Pressure::Memory);
        *model.parents[0].refuses.lock().unwrap() = vec![no_memory; refused];
        // The hint is what is tried first, where there is one.
        fault(&model, on(NULL, GIB, 1));
        assert_eq!(resumed(&model), [true]);
        assert_eq!(model.world().gave_back, u32::from(!is_made));
        assert_eq!(published(&model).len(), usize::from(is_made));
    }
    // What is not for want of memory is not waited for.
    let model = implicit();
    *model.parents[0].refuses.lock().unwrap() = vec![NotIn::Busy(Pressure::Race)];
    fault(&model, on(NULL, GIB, 1));
    assert_eq!((resumed(&model), model.world().sleeps), (vec![true], 0));
    assert_eq!(published(&model).len(), 1);
    let model = implicit();
    *model.parents[0].refuses.lock().unwrap() = vec![NotIn::Device];
    fault(&model, on(NULL, GIB, 1));
    assert_eq!(resumed(&model), [false]);
    assert_eq!(model.world().refused, [NotIn::Device]);
}

// --- Prefetch at the user's wish -------------------------------------------------------

fn advise(model: &Model, at: u64, bytes: u64, advice: Advice) -> Result<(), NotIn> {
    let found = model.region(PARENT).unwrap();
    prefetch(&found, Iova::new(at), bytes, advice, model)
}

#[test]
fn a_prefetch_brings_in_what_it_says() {
    for (advice, access) in [(Advice::Read, R), (Advice::Write, RW)] {
        let model = implicit();
        assert_eq!(advise(&model, GIB - 1, 2, advice), Ok(()));
        assert_eq!(published(&model), [(-1, access), (0, access)]);
        let parent = &model.parents[0];
        assert_eq!(parent.prefetched.load(Ordering::Relaxed), 2);
        assert_eq!(parent.faults_handled.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_prefetch_of_what_is_present_faults_nothing_in() {
    let model = implicit();
    model.world().memory.write(GIB_PAGES + 1);
    assert_eq!(advise(&model, GIB, 4 * PAGE, Advice::Present), Ok(()));
    assert_eq!(published(&model), [(1, RW)]);
    // Nor is it an error that there is nothing, not even a mapping.
    assert_eq!(
        advise(&model, GIB + 16 * PAGE, PAGE, Advice::Present),
        Ok(())
    );
    assert_eq!(published(&model), [(1, RW)]);
}

#[test]
fn a_prefetch_that_cannot_be_says_why() {
    let model = implicit();
    for advice in [Advice::Read, Advice::Write, Advice::Present] {
        assert_eq!(advise(&model, 1 << 47, 1, advice), Err(NotIn::Invalid));
        assert_eq!(advise(&model, 1 << 47, 0, advice), Err(NotIn::Invalid));
        assert_eq!(advise(&model, GIB + 1, 0, advice), Ok(()));
    }
    let hole = GIB + 15 * PAGE;
    assert_eq!(
        advise(&model, hole, 2 * PAGE, Advice::Read),
        Err(NotIn::Invalid)
    );
    assert_eq!(published(&model), [], "both pages are of one chunk");
    assert_eq!(model.parents[0].prefetched.load(Ordering::Relaxed), 0);

    let pages = GIB_PAGES..GIB_PAGES + 1;
    model.invalidate(&pages, |memory| {
        memory.mprotect(pages.clone(), Protection::Read);
    });
    assert_eq!(advise(&model, GIB, 1, Advice::Write), Err(NotIn::ReadOnly));
    assert_eq!(advise(&model, GIB, 1, Advice::Read), Ok(()));
    assert_eq!(published(&model), [(0, R)]);
}

/// No bytes are the page that they are in the middle of, and at its start an error.
#[test]
fn a_prefetch_of_no_bytes_of_a_region() {
    let model = model();
    let advise = |at| {
        let found = model.region(KEY).unwrap();
        prefetch(&found, Iova::new(at), 0, Advice::Read, &model)
    };
    assert_eq!(advise(IOVA + 3 * PAGE), Err(NotIn::Empty));
    assert_eq!(advise(IOVA - 1), Err(NotIn::Invalid));
    assert_eq!(advise(IOVA + 64 * PAGE), Err(NotIn::Invalid));
    assert_eq!(model.mapped(KEY), 0);
    assert_eq!(advise(IOVA + 3 * PAGE + 1), Ok(()));
    assert_eq!(table(&model, 2, 3), [NONE, R, NONE]);
}
