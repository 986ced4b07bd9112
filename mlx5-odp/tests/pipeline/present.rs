// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What is in memory already is published before anybody asks.

use hmm_abi::{ChunkIndex, PublishError, Slots, ATTEMPTS, WINDOW_PAGES};
use mlx5_odp::{bring_in_present, Driver, Found, MemoryError, NotIn, Pressure, Region};

use super::model::world::Walk;
use super::*;

/// A region of three chunks and a bit, with these pages in memory.
fn with_pages(pages: &[usize]) -> Model {
    let model = model_of(3 * WINDOW_PAGES + 5);
    for page in pages {
        model.world().memory.write(FIRST + page);
    }
    model
}

/// Brings in what is present, in chunks that `occupied` picks.
fn bring_in(model: &Model, occupied: impl FnMut(ChunkIndex, Slots) -> bool) -> Result<(), NotIn> {
    let Ok(Found::Region(region)) = model.region(KEY) else {
        unreachable!("it is explicit");
    };
    let all = region.placement().geometry.indices();
    bring_in_present(&region, all, occupied)
}

/// The pages that the device has.
fn published(model: &Model) -> Vec<usize> {
    let all = table(model, 0, 3 * WINDOW_PAGES + 5);
    (0..all.len()).filter(|&page| all[page] != NONE).collect()
}

#[test]
fn what_is_there_is_published_and_nothing_else_is_touched() {
    let pages = [
        0,
        1,
        7,
        WINDOW_PAGES - 1,
        WINDOW_PAGES,
        3 * WINDOW_PAGES + 4,
    ];
    let model = with_pages(&pages);
    model.world().memory.clean(FIRST + 7);
    let mut asked = Vec::new();
    let occupied = |ChunkIndex(at), slots: Slots| {
        asked.push((at, slots.len()));
        true
    };
    assert_eq!(bring_in(&model, occupied), Ok(()));
    let whole = WINDOW_PAGES;
    assert_eq!(asked, [(0, whole), (1, whole), (2, whole), (3, 5)]);
    assert_eq!(published(&model), pages);
    assert_eq!(table(&model, 7, 1), [R]);
    assert_eq!(model.mapped(KEY), pages.len());
    let world = model.world();
    assert_eq!((world.looks, world.nic.publishes), (4, 3));
    assert_eq!(
        (world.writes_asked, world.memory.page(FIRST + 2)),
        (0, None)
    );
}

#[test]
fn a_chunk_that_is_not_worth_it_is_not_made() {
    let model = with_pages(&[3, WINDOW_PAGES + 3]);
    assert_eq!(bring_in(&model, |at, _| at == ChunkIndex(1)), Ok(()));
    assert_eq!(published(&model), [WINDOW_PAGES + 3]);
    assert_eq!(model.mr(KEY).chunks().len(), 1);
    assert_eq!(model.world().looks, 1);
}

/// A registration needs no page: what cannot be had is asked for when it is wanted.
#[test]
fn what_cannot_be_had_is_left_for_the_device() {
    let stale = vec![Walk::Stale; usize::try_from(ATTEMPTS).unwrap()];
    let refused = vec![Walk::Failed(MemoryError::Invalid)];
    let memory = vec![Walk::Failed(MemoryError::Again(Pressure::Memory))];
    for walks in [stale, vec![Walk::Busy; 4], refused, memory] {
        let model = with_pages(&[3, WINDOW_PAGES + 3]);
        model.world().trouble.looks = walks.into();
        assert_eq!(bring_in(&model, |_, _| true), Ok(()));
        assert_eq!(published(&model), [WINDOW_PAGES + 3]);
    }
    let model = with_pages(&[3, WINDOW_PAGES + 3]);
    model.world().trouble.chunks = 1;
    assert_eq!(bring_in(&model, |_, _| true), Ok(()));
    assert_eq!(published(&model), [WINDOW_PAGES + 3]);

    let model = with_pages(&[3, WINDOW_PAGES + 3]);
    model.world().trouble.publishes = [PublishError::Again].into();
    assert_eq!(bring_in(&model, |_, _| true), Ok(()));
    assert_eq!(published(&model), [WINDOW_PAGES + 3]);
    assert_eq!(model.world().sleeps, 0);
}

#[test]
fn without_scratch_or_a_device_it_fails() {
    let model = with_pages(&[3]);
    model.world().trouble.scratch = true;
    let no_memory = Err(NotIn::Busy(Pressure::Memory));
    assert_eq!(bring_in(&model, |_, _| true), no_memory);

    let model = with_pages(&[3]);
    model.world().trouble.publishes = [PublishError::Failed].into();
    assert_eq!(bring_in(&model, |_, _| true), Err(NotIn::Device));
}

/// Entries of 2 MiB over memory in pages of 4 KiB: the device is told of none of them, and need not
/// ask again.
#[test]
fn memory_in_smaller_pieces_than_the_entries_is_invalid() {
    const HUGE: usize = 2 << 20;
    let model = Model::new();
    let pages = HUGE / 4096..3 * HUGE / 4096;
    model.world().memory.mmap(pages.clone(), Protection::Write);
    model.register_huge(KEY, IOVA, HUGE, 2 * HUGE);

    // Nothing is there, and nothing is in pieces.
    assert_eq!(bring_in(&model, |_, _| true), Ok(()));
    for event in [
        PageFault::Memory(memory(IOVA, 1)),
        PageFault::Rdma(rdma(IOVA, 100, true)),
    ] {
        fault(&model, event);
    }
    assert_eq!(resumed(&model), [false, false]);
    assert_eq!(bring_in(&model, |_, _| true), Err(NotIn::Invalid));
    let first_of_second = bring_in(&model, |at, _| at != ChunkIndex(0));
    assert_eq!(first_of_second, Ok(()));
    assert_eq!((model.mapped(KEY), model.world().nic.publishes), (0, 0));
    assert_eq!(table(&model, 0, 2), [NONE; 2]);
    // The first page stands for the entry.
    model.drop_pages(&pages);
    model.world().memory.write(pages.start + 511);
    assert_eq!(bring_in(&model, |_, _| true), Ok(()));
    model.world().memory.write(pages.start);
    assert_eq!(bring_in(&model, |_, _| true), Err(NotIn::Invalid));
}
