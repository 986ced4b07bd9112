// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a fault brings in besides what is demanded: neighbours that are there, and streams.

use firmware_cmds::PageFault;
use hmm_abi::{Indices, MAX_STREAM, WINDOW_PAGES};
use mlx5_odp::{bring_in, Asked, Intent};

use super::model::driver::HeldMr;
use super::*;

/// WRITEs pages of the region, `op` at a time, in the order of `ops`; each faults if a page of it is
/// missing. Returns how many did.
fn write(model: &Model, ops: impl IntoIterator<Item = usize>, op: usize) -> usize {
    let mut faults = 0;
    for at in ops {
        let first = at * op;
        if table(model, first, op).iter().any(|access| *access != RW) {
            let bytes = u32::try_from(op).unwrap() * 4096;
            fault(model, PageFault::Rdma(rdma(iova(first), bytes, true)));
            assert_eq!(table(model, first, op), vec![RW; op]);
            faults += 1;
        }
    }
    assert!(resumed(model).iter().all(|&success| success));
    faults
}

fn present(pages: usize) -> Model {
    let model = model_of(pages);
    for page in 0..pages {
        model.world().memory.write(FIRST + page);
    }
    model
}

/// Pages that the device has.
fn mapped(model: &Model, pages: usize) -> usize {
    let table = table(model, 0, pages);
    table.iter().filter(|access| **access != NONE).count()
}

#[test]
fn memory_that_is_there_costs_a_fault_for_each_chunk() {
    const PAGES: usize = 4 * WINDOW_PAGES;
    // In order, and in none.
    for stride in [1, 37] {
        let model = present(PAGES);
        let ops = PAGES / 16;
        let order = (0..ops).map(|i| i * stride % ops);
        assert_eq!(write(&model, order, 16), 4);
        assert_eq!(model.world().looks, 2 * 4, "the group, then all of it");
        assert_eq!(model.world().walks, 0);
        assert_eq!(model.world().nic.publishes, 4);
    }
}

#[test]
fn a_stream_takes_twice_as_much_each_time() {
    const PAGES: usize = 64 * WINDOW_PAGES;
    let model = model_of(PAGES);
    let faults = write(&model, 0..PAGES / 16, 16);
    // 16 pages twice, 32, 64 and so on to the most.
    let doubling = (MAX_STREAM / 16).ilog2() as usize;
    assert_eq!(
        faults,
        1 + doubling + (PAGES - MAX_STREAM).div_ceil(MAX_STREAM)
    );
    assert_eq!(mapped(&model, PAGES), PAGES);
}

#[test]
fn no_page_is_made_that_nobody_is_likely_to_want() {
    const PAGES: usize = 8 * WINDOW_PAGES;
    let model = model_of(PAGES);
    // One page in 64, up and down.
    let ops = PAGES / 64;
    let order = (0..ops).map(|i| i * 5 % ops * 64);
    assert_eq!(write(&model, order, 1), ops);
    assert_eq!(mapped(&model, PAGES), ops);
    let world = model.world();
    let made = (FIRST..FIRST + PAGES).filter(|&page| world.memory.page(page).is_some());
    assert_eq!(made.count(), ops);
}

#[test]
fn a_stream_ends_where_memory_does() {
    let model = model_of(2 * WINDOW_PAGES);
    protect(&model, 48..64, Protection::None);
    // 16 pages twice; then 32, of which the last are not to be had.
    assert_eq!(write(&model, [0, 1, 2], 16), 3);
    assert_eq!(mapped(&model, 64), 48);
    fault(&model, PageFault::Memory(memory(iova(48), 1)));
    assert_eq!(resumed(&model).last(), Some(&false));
    protect(&model, 48..64, Protection::Write);
    fault(&model, PageFault::Memory(memory(iova(48), 1)));
    assert_eq!(resumed(&model).last(), Some(&true));
}

#[test]
fn a_stream_of_reads_breaks_no_sharing() {
    let model = model_of(WINDOW_PAGES);
    let mut faults = 0;
    for first in (0..WINDOW_PAGES).step_by(16) {
        if table(&model, first, 16).contains(&NONE) {
            fault(&model, PageFault::Rdma(rdma(iova(first), 65536, false)));
            faults += 1;
        }
    }
    assert_eq!(faults, 6);
    assert_eq!(table(&model, 0, WINDOW_PAGES), vec![R; WINDOW_PAGES]);
    assert_eq!(model.world().writes_asked, 0);
}

/// Nobody has asked for what it would have been for.
#[test]
fn a_stream_ends_where_there_is_no_memory_for_a_chunk() {
    for (troubles, chunks) in [(0, 4), (1, 3)] {
        let model = model_of(8 * WINDOW_PAGES);
        // It has come to the end of the second chunk, and wants two more.
        write(&model, 0..2 * WINDOW_PAGES / 16, 16);
        assert_eq!(mapped(&model, 8 * WINDOW_PAGES), 2 * WINDOW_PAGES);
        // The third is there already.
        fault(
            &model,
            PageFault::Memory(memory(iova(2 * WINDOW_PAGES + 100), 1)),
        );
        model.world().trouble.chunks = troubles;
        write(&model, [2 * WINDOW_PAGES / 16], 16);
        assert_eq!(mapped(&model, 8 * WINDOW_PAGES), chunks * WINDOW_PAGES);
    }
}

#[test]
fn nothing_brings_nothing_in() {
    let model = model();
    let region = HeldMr::new(&model.mr(KEY));
    for asked in [
        Asked::by_nobody(Intent::Write),
        Asked::by_event(0, Intent::Write),
    ] {
        let done = bring_in(&region, Indices::new(3..3), asked, &model).unwrap();
        assert_eq!((done.base_pages, done.others), (0, 0));
    }
    assert_eq!(model.world().nic.publishes, 0);
}

/// What one fault has brought in, those that were raised with it need not look for.
#[test]
fn faults_that_were_raised_together_are_served_by_the_first() {
    let model = present(WINDOW_PAGES);
    for page in 0..WINDOW_PAGES / 2 {
        model.raise(PageFault::Memory(memory(iova(page), 1)));
    }
    while model.serve_next() {}
    assert_eq!(resumed(&model), vec![true; WINDOW_PAGES / 2]);
    let world = model.world();
    assert_eq!((world.looks, world.walks, world.nic.publishes), (2, 0, 1));
}

/// Events of one access follow each other as a stream's do.
#[test]
fn the_parts_of_an_access_are_no_stream() {
    for parts in [2_usize, 4, 8] {
        let model = model();
        for part in 0..parts {
            let event = MemoryFault {
                last: part + 1 == parts,
                ..memory(iova(part * 2), 2)
            };
            fault(&model, PageFault::Memory(event));
        }
        assert_eq!(mapped(&model, 64), 2 * parts);
        assert_eq!(resumed(&model), [true]);
    }
}
