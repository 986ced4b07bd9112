// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Who faults on pages that it may read and not write: readers get on, writers are refused, and
//! what the process may write to is never refused.

use std::collections::VecDeque;

use firmware_cmds::resume::FaultToken;
use firmware_cmds::{MemoryToken, PageFault};
use hmm_abi::WINDOW_PAGES;

use super::model::Protection;
use super::*;

#[test]
fn a_fault_publishes_each_page_as_its_mapping_allows() {
    let model = model();
    protect(&model, 2..4, Protection::Read);
    fault(&model, PageFault::Memory(memory(IOVA + PAGE, 4)));
    assert_eq!(resumed(&model), [true]);
    // The one before them was made writable until the first was refused.
    assert_eq!(table(&model, 1, 4), [RW, R, R, R]);
    // The one behind them is when somebody wants to write to it.
    fault(&model, PageFault::Memory(memory(iova(4), 1)));
    assert_eq!(table(&model, 1, 4), [RW, R, R, RW]);
    assert_eq!(resumed(&model), [true; 2]);
}

#[test]
fn a_fault_on_what_was_published_long_before_wants_to_write() {
    let model = model();
    protect(&model, 2..3, Protection::Read);
    let event = PageFault::Memory(memory(iova(2), 1));
    // Three queues, before anything is published.
    for _ in 0..3 {
        model.raise(event);
    }
    for served in 1..=3 {
        assert!(model.serve_next());
        assert_eq!(resumed(&model), vec![true; served]);
        assert_eq!(table(&model, 2, 1), [R]);
    }
    assert_eq!(model.world().nic.publishes, 1);
    // The first one that comes later may have been written before, too.
    later(&model);
    fault(&model, event);
    assert_eq!(resumed(&model), [true; 4]);
    // And one that has seen it.
    fault(&model, event);
    assert_eq!(resumed(&model), [true, true, true, true, false]);
}

/// The firmware writes the events of accesses one after the other, when a UMR may have been done
/// long since: all of them are of READs that missed the page.
#[test]
fn an_event_that_is_written_late_wants_nothing_else() {
    let model = model();
    protect(&model, 2..3, Protection::Read);
    let event = PageFault::Memory(memory(iova(2), 1));
    fault(&model, event);
    let mut events = 1;
    while model.world().clock < LATE / 2 {
        fault(&model, event);
        events += 1;
    }
    assert_eq!(resumed(&model), vec![true; events]);
    // A device that repeats a WRITE is not let do so as fast as it can.
    assert!(events < 10, "{events} in {LATE} ms");
    assert_eq!(model.world().nic.publishes, 1);
}

#[test]
fn a_window_around_it_changes_nothing() {
    let model = model();
    protect(&model, 2..6, Protection::Read);
    let mut event = memory(iova(3), 1);
    event.pre_demand_pages = 1;
    event.post_demand_pages = 1;
    fault(&model, PageFault::Memory(event));
    later(&model);
    fault(&model, PageFault::Memory(event));
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [true, true, false]);
}

/// Events are served long after they were written, when more has happened.
#[test]
fn an_event_is_as_old_as_it_was_when_it_was_written() {
    let model = model();
    protect(&model, 2..3, Protection::Read);
    let event = PageFault::Memory(memory(iova(2), 1));
    fault(&model, event);
    later(&model);
    model.world().nic.eq.slots = 0;
    // Written and not dispatched when the first of them is served.
    for _ in 0..6 {
        model.raise(event);
    }
    assert!(!model.serve_next(), "there is no memory");
    model.world().nic.eq.slots = 1;
    for _ in 0..6 {
        assert!(model.serve_next());
    }
    assert_eq!(resumed(&model), [true; 7]);
    fault(&model, event);
    assert_eq!(resumed(&model)[7..], [false]);
}

#[test]
fn what_was_taken_away_meanwhile_begins_anew() {
    let model = model();
    protect(&model, 2..3, Protection::Read);
    for _ in 0..40 {
        fault(&model, PageFault::Memory(memory(iova(2), 1)));
        drop_pages(&model, 2..3);
    }
    assert_eq!(resumed(&model), [true; 40]);
}

/// A chunk that no read-only page is in: nobody ever has to be refused.
#[test]
fn faults_on_what_is_writable_are_never_refused() {
    let model = model();
    for _ in 0..20 {
        fault(&model, PageFault::Memory(memory(IOVA, 2)));
    }
    assert_eq!(resumed(&model), [true; 20]);
    assert_eq!(table(&model, 0, 2), [RW; 2]);
}

/// The zero page, and a page that was written back: not writable in the page table, and the
/// mapping is.
#[test]
fn pages_that_can_be_made_writable_are() {
    for clean in [false, true] {
        let model = model();
        // Another one in the chunk that cannot: there is a stamp.
        protect(&model, 9..10, Protection::Read);
        fault(&model, PageFault::Memory(memory(iova(9), 1)));
        if clean {
            let mut world = model.world();
            world.memory.write(FIRST + 2);
            world.memory.clean(FIRST + 2);
        }
        // A READ publishes it as it is.
        fault(&model, PageFault::Rdma(rdma(iova(2), 10, false)));
        assert_eq!(table(&model, 2, 1), [R]);
        let before = model.world().memory.page(FIRST + 2).unwrap();
        // A device that wants to write then, by either scheme's event.
        fault(&model, PageFault::Memory(memory(iova(2), 1)));
        assert_eq!(table(&model, 2, 1), [RW]);
        let after = model.world().memory.page(FIRST + 2).unwrap();
        assert_eq!(before.frame == after.frame, clean);

        fault(&model, PageFault::Rdma(rdma(iova(3), 10, false)));
        fault(&model, PageFault::Rdma(rdma(iova(3), 10, true)));
        assert_eq!(table(&model, 3, 1), [RW]);
        assert_eq!(resumed(&model), [true; 5]);
        assert!(model.deregister(KEY).is_ok());
        model.check_at_end();
    }
}

#[test]
fn one_read_only_page_costs_a_window_one_walk_more() {
    let model = model_of(WINDOW_PAGES);
    for page in 0..WINDOW_PAGES {
        model.world().memory.write(FIRST + page);
    }
    model.invalidate(&(FIRST + 77..FIRST + 78), |memory| {
        memory.mmap(FIRST + 77..FIRST + 78, Protection::Read);
        memory.clean(FIRST + 77);
    });
    let all = u32::try_from(WINDOW_PAGES).unwrap();
    fault(&model, PageFault::Memory(memory(IOVA, all)));
    {
        let world = model.world();
        assert_eq!((world.walks, world.nic.publishes), (2, 1));
    }
    let mut expected = vec![RW; WINDOW_PAGES];
    expected[77] = R;
    assert_eq!(table(&model, 0, WINDOW_PAGES), expected);
    assert_eq!(resumed(&model), [true]);
}

/// A queue pair: its page, and what it does to it.
#[derive(Clone, Copy)]
struct Qp {
    page: usize,
    write: bool,
    faults: usize,
    ended: Option<bool>,
}

/// The device of `qps`, each of which makes one access at a time until it is done or refused.
/// Events are served in the order in which they were raised, `burst` of them between two rounds.
fn run(model: &Model, qps: &mut [Qp], post: u16, burst: usize) {
    let mut seen = 0;
    let mut ready: VecDeque<usize> = (0..qps.len()).collect();
    for _ in 0..1000 {
        while let Some(number) = ready.pop_front() {
            let qp = &mut qps[number];
            let mut event = memory(iova(qp.page), 1);
            event.token = MemoryToken::truncate(u64::try_from(number).unwrap());
            event.post_demand_pages = post;
            if model.access(KEY, qp.page, qp.write) {
                qp.ended = Some(true);
            } else {
                qp.faults += 1;
                model.raise(PageFault::Memory(event));
            }
        }
        for _ in 0..burst {
            model.serve_next();
        }
        let world = model.world();
        for resume in &world.resumes[seen..] {
            let FaultToken::Memory(token) = resume.fault else {
                panic!("another scheme")
            };
            let number = usize::try_from(token.get()).unwrap();
            match resume.error {
                true => qps[number].ended = Some(false),
                false => ready.push_back(number),
            }
        }
        seen = world.resumes.len();
        drop(world);
        if qps.iter().all(|qp| qp.ended.is_some()) {
            return;
        }
    }
    panic!("accesses that never end");
}

/// However many pages of a chunk are written to by however many queues, and whoever reads them.
#[test]
fn writers_of_many_read_only_pages_come_to_an_end() {
    for (post, burst) in [(0, 1), (0, 7), (0, 1000), (8, 3), (200, 1000)] {
        let model = model_of(WINDOW_PAGES);
        protect(&model, 0..200, Protection::Read);
        let qp = |page, write| Qp {
            page,
            write,
            faults: 0,
            ended: None,
        };
        let pages = 0..200;
        let mut qps: Vec<_> = pages
            .flat_map(|page| [qp(page, true), qp(page, false)])
            .collect();
        run(&model, &mut qps, post, burst);
        for qp in &qps {
            assert_eq!(qp.ended, Some(!qp.write), "page {}", qp.page);
            let case = format!("page {}, post {post}, burst {burst}", qp.page);
            assert!(qp.faults <= 10, "{} faults: {case}", qp.faults);
        }
        let writers = qps.iter().filter(|qp| qp.write);
        let most = writers.map(|qp| qp.faults).max();
        println!("post {post}, burst {burst}: at most {most:?} faults a page");
    }
}

/// Of a message that is partly in the next chunk, only what is missing explains the fault.
#[test]
fn a_read_that_faults_elsewhere_does_not_want_to_write() {
    let border = WINDOW_PAGES;
    let events: [fn(usize, u32) -> PageFault; 2] = [
        |page, pages| PageFault::Memory(memory(iova(page), pages)),
        |page, pages| PageFault::Rdma(rdma(iova(page), pages * 4096, false)),
    ];
    for event in events {
        let model = model_of(2 * WINDOW_PAGES);
        protect(&model, border - 2..border + 2, Protection::Read);
        fault(&model, event(border - 1, 1));
        later(&model);
        fault(&model, event(border - 1, 1));
        // Here, where it was long since, and on the other side.
        fault(&model, event(border - 1, 2));
        later(&model);
        fault(&model, event(border, 1));
        drop_pages(&model, border - 2..border);
        fault(&model, event(border - 2, 4));
        later(&model);
        fault(&model, event(border - 2, 2));
        drop_pages(&model, border + 1..border + 2);
        fault(&model, event(border - 2, 4));
        assert_eq!(resumed(&model), [true; 7]);
        assert_eq!(table(&model, border - 2, 4), [R; 4]);
        // Nothing was missing.
        later(&model);
        fault(&model, event(border - 2, 4));
        fault(&model, event(border - 2, 4));
        assert_eq!(resumed(&model)[7..], [true, false]);
    }
}

/// The same with a page that may be written to, made so meanwhile by somebody else.
#[test]
fn a_read_whose_missing_page_came_in_writable_meanwhile_does_not_want_to_write() {
    let border = WINDOW_PAGES;
    let model = model_of(2 * WINDOW_PAGES);
    protect(&model, border - 1..border, Protection::Read);
    let first = PageFault::Memory(memory(iova(border - 1), 1));
    fault(&model, first);
    later(&model);
    fault(&model, first);
    // Raised by a READ of both; the second is brought in for another queue first.
    let both = PageFault::Memory(memory(iova(border - 1), 2));
    let second = PageFault::Memory(memory(iova(border), 1));
    model.raise(second);
    model.raise(both);
    assert!(model.serve_next() && model.serve_next());
    assert_eq!(resumed(&model), [true; 4]);
    assert_eq!(table(&model, border - 1, 2), [R, RW]);
    // Whoever has seen all this wants to write.
    later(&model);
    fault(&model, both);
    fault(&model, both);
    assert_eq!(resumed(&model)[4..], [true, false]);
}

/// READs of unknown length, again and again, with what follows already there.
#[test]
fn the_prefetch_of_a_read_never_counts_as_a_repeat() {
    for protection in [Protection::Read, Protection::Write] {
        let model = model();
        protect(&model, 0..64, protection);
        for round in 0..10 {
            let mut event = rdma(IOVA, 0, false);
            event.bytes_committed = 8 * 4096;
            fault(&model, PageFault::Rdma(event));
            assert_eq!(table(&model, 0, 8)[..1], [NONE]);
            assert_eq!(table(&model, 8, 8), [R; 8], "round {round}");
            // Only the page that was demanded is missing next time.
            drop_pages(&model, 8..9);
            later(&model);
        }
        assert_eq!(resumed(&model), [true; 10]);
        assert_eq!(model.world().writes_asked, 0);
    }
}
