// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Taking translations back: runs, failures, order.

mod model;

use firmware_cmds::page_fault::DemandPages;
use firmware_cmds::{Iova, MemoryFault, MemoryToken, Mkey, PageFault};
use mlx5_odp::{serve, Invalidated, PageIndex, PageRun};

use model::{Model, Protection};

const KEY: Mkey = Mkey::new(0x1200);
const PAGE: u64 = 4096;
const IOVA: u64 = 0x7000_0000;
const PAGES: u64 = 256;

/// A region with these pages published.
fn published(pages: &[u64]) -> Model {
    let model = Model::new();
    model.world().mmap(0x100, PAGES, Protection::Write);
    model.register(KEY, IOVA, 0x10_0000, PAGES * PAGE, true);
    for page in pages {
        fault(&model, *page);
    }
    model.world().updates = 0;
    model
}

fn fault(model: &Model, page: u64) {
    let fault = MemoryFault {
        last: true,
        token: MemoryToken::truncate(page),
        mkey: KEY,
        va: Iova::new(IOVA + page * PAGE),
        demand_pages: DemandPages::truncate(1),
        pre_demand_pages: 0,
        post_demand_pages: 0,
    };
    serve(model, Ok(PageFault::Memory(fault)));
}

fn run(first: u64, end: u64) -> PageRun {
    PageRun::new(PageIndex(first), PageIndex(end))
}

/// Takes a range and frees its frames, as `munmap` does.
fn take(model: &Model, range: PageRun) -> Invalidated {
    model.take_away(KEY, range, |world| {
        for page in range.iter() {
            world.free(0x100 + page.0);
        }
    })
}

/// The device touches every page of the region; what it reaches must not be freed.
fn reachable(model: &Model) -> Vec<u64> {
    let mut world = model.world();
    let reached = (0..PAGES)
        .filter(|page| world.device_access(KEY, PageIndex(*page), false))
        .collect();
    assert_eq!(world.violations, [""; 0]);
    reached
}

#[test]
fn one_update_for_a_run() {
    let model = published(&[10, 11, 12, 13]);
    let done = take(&model, run(0, 100));
    assert_eq!((done.pages, done.updates), (4, 1));
    assert_eq!(reachable(&model), []);
    assert_eq!(model.world().mr(KEY).mapped, 0);
}

#[test]
fn runs_share_an_update_only_when_their_blocks_touch() {
    // Blocks 0 and 1 touch; block 3 is apart.
    let model = published(&[1, 6, 9, 24]);
    let done = take(&model, run(0, 100));
    assert_eq!((done.pages, done.updates), (4, 2));
    assert_eq!(reachable(&model), []);
}

#[test]
fn only_published_pages_of_the_range_count() {
    let model = published(&[1, 2, 3, 200]);
    assert_eq!(take(&model, run(50, 100)), Invalidated::default());
    assert_eq!(model.world().updates, 0);
    let done = take(&model, run(2, 3));
    assert_eq!((done.pages, done.updates), (1, 1));
    assert_eq!(reachable(&model), [1, 3, 200]);
    // A second time there is nothing left.
    assert_eq!(take(&model, run(2, 3)), Invalidated::default());
}

#[test]
fn an_earlier_run_does_not_bring_a_later_one_back() {
    // One block, cut by the range's end; and a block of its own further on.
    let model = published(&[0, 1, 2, 3, 40, 41]);
    let done = take(&model, run(1, 41));
    assert_eq!(done.pages, 4);
    assert_eq!(reachable(&model), [0, 41]);
}

#[test]
fn written_pages_become_dirty_and_no_others() {
    let model = published(&[1, 2]);
    let frames: Vec<_> = {
        let world = model.world();
        [0x101, 0x102, 0x103]
            .map(|page| world.present.get(&page).copied())
            .into()
    };
    take(&model, run(0, PAGES));
    let world = model.world();
    assert_eq!(
        world.dirty.iter().copied().map(Some).collect::<Vec<_>>(),
        frames[..2]
    );
}

#[test]
fn without_an_mkey_pages_are_unmapped_all_the_same() {
    let model = published(&[1, 2]);
    model.world().mr(KEY).revoked = true;
    model.world().tables.clear();
    let done = take(&model, run(0, PAGES));
    assert_eq!(done, Invalidated::default());
    let mut world = model.world();
    assert_eq!(world.mr(KEY).mapped, 0);
    assert_eq!(world.updates, 0);
    assert_eq!(world.dirty.len(), 2);
}

#[test]
fn a_failed_zap_takes_the_whole_key() {
    let model = published(&[1, 50, 100]);
    model.world().trouble.zaps = [false, true].into();
    let done = take(&model, run(0, 60));
    assert!(done.failed);
    assert_eq!((done.pages, done.kept), (1, 0));
    assert_eq!(reachable(&model), []);
    // Later faults are refused, and say so.
    fault(&model, 1);
    assert!(model.world().resumes.last().unwrap().error);
    model.deregister(KEY);
}

#[test]
fn what_the_device_does_not_give_back_is_kept() {
    let model = published(&[1, 2, 50, 51, 100]);
    model.world().trouble.zaps = [false, true].into();
    model.world().trouble.revoke = true;
    // The kernel takes the frames, but those that are held do not become free.
    let done = take(&model, run(0, 60));
    assert_eq!((done.pages, done.updates, done.kept), (2, 1, 2));
    assert_eq!(model.stuck(KEY), [50, 51]);
    assert_eq!(reachable(&model), [50, 51, 100]);
    // The next invalidation keeps its hands off them.
    let done = take(&model, run(40, 52));
    assert_eq!(done, Invalidated::default());
    assert_eq!(model.world().mr(KEY).mapped, 3);
    // Nor do faults: the process may have another page there by now.
    fault(&model, 50);
    assert!(model.world().resumes.last().unwrap().error);
    // With the key they go.
    model.deregister(KEY);
}
