// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Faults, invalidations and device accesses, interleaved at random: no published
//! page outlives its invalidation.
//!
//! A failing run prints its schedule; `shuttle::replay` takes it back.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};

use hmm_abi::{Geometry, Need};

use shuttle::rand::{thread_rng, Rng};
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::Arc;
use shuttle::{thread, Config, Runner};

use crate::model::{Model, Sabotage, Zap};

const PAGE_SHIFT: u32 = 12;
const START: usize = 0x4000_0000;
const ENTRIES: usize = 6;
const SEED: u64 = 0x6d6c_7835;

/// Entries of one page: one window.
const SMALL: u32 = PAGE_SHIFT;
/// Entries of a chunk: every entry is a window of its own.
const HUGE: u32 = PAGE_SHIFT + 9;

fn run(iterations: usize, body: impl Fn() + Send + Sync + 'static) {
    let scheduler = RandomScheduler::new_from_seed(SEED, iterations);
    Runner::new(scheduler, Config::default()).run(body);
}

fn geometry(entry_shift: u32) -> Geometry {
    Geometry::cover(START, ENTRIES << entry_shift, PAGE_SHIFT, entry_shift).unwrap()
}

fn some_span(entry_shift: u32) -> std::ops::Range<usize> {
    let mut rng = thread_rng();
    let first = rng.gen_range(0..ENTRIES);
    let end = rng.gen_range(first + 1..=ENTRIES);
    START + (first << entry_shift)..START + (end << entry_shift)
}

/// Returns how many of the device's faults were served.
fn simulate(entry_shift: u32, sabotage: Sabotage, zap_failures: u32) -> usize {
    let served = std::sync::Arc::new(AtomicUsize::new(0));
    let zap = Zap {
        fails: zap_failures,
    };
    let model = Arc::new(Model::new(geometry(entry_shift), sabotage));
    let mut threads = Vec::new();
    for _ in 0..2 {
        let (model, served) = (Arc::clone(&model), std::sync::Arc::clone(&served));
        threads.push(thread::spawn(move || {
            for _ in 0..3 {
                let need = [Need::Snapshot, Need::Read, Need::Write][thread_rng().gen_range(0..3)];
                let ok = model.device_fault(&some_span(entry_shift), need);
                served.fetch_add(usize::from(ok), Ordering::Relaxed);
            }
        }));
    }
    for _ in 0..2 {
        let model = Arc::clone(&model);
        threads.push(thread::spawn(move || {
            for _ in 0..3 {
                if thread_rng().gen_bool(0.7) {
                    model.unmap_range(&some_span(entry_shift), &zap);
                } else {
                    model.write_protect(&some_span(entry_shift), &zap);
                }
            }
        }));
    }
    let user = Arc::clone(&model);
    threads.push(thread::spawn(move || {
        for _ in 0..24 {
            let mut rng = thread_rng();
            user.device_access(rng.gen_range(0..ENTRIES), rng.gen_bool(0.5));
            thread::yield_now();
        }
    }));
    for thread in threads {
        thread.join().unwrap();
    }
    for index in 0..ENTRIES {
        model.device_access(index, false);
    }
    model.check_at_rest();
    model.tear_down();
    served.load(Ordering::Relaxed)
}

/// Runs the simulation; most of the device's faults must come to something.
fn simulate_all(iterations: usize, entry_shift: u32, sabotage: Sabotage, zap_failures: u32) {
    let served = std::sync::Arc::new(AtomicUsize::new(0));
    let sum = std::sync::Arc::clone(&served);
    run(iterations, move || {
        sum.fetch_add(
            simulate(entry_shift, sabotage, zap_failures),
            Ordering::Relaxed,
        );
    });
    let (served, faults) = (served.load(Ordering::Relaxed), 6 * iterations);
    assert!(
        served > faults / 2,
        "{served} of {faults} faults served: nothing was tested"
    );
}

#[test]
fn no_published_page_outlives_its_invalidation() {
    simulate_all(200, SMALL, Sabotage::default(), 0);
}

#[test]
fn ranges_of_several_windows() {
    simulate_all(40, HUGE, Sabotage::default(), 0);
}

#[test]
fn a_device_that_does_not_let_go() {
    simulate_all(200, SMALL, Sabotage::default(), 30);
}

#[test]
fn ranges_of_several_windows_under_a_lazy_driver() {
    let lazy = Sabotage {
        lazy_invalidate: true,
        ..Sabotage::default()
    };
    simulate_all(40, HUGE, lazy, 0);
}

/// Two range faults are valid for the same sequence; the one that found the page
/// read-only is merged last.
#[test]
fn a_late_read_fault_does_not_lose_a_dirty_page() {
    run(200, || {
        let model = Arc::new(Model::new(geometry(SMALL), Sabotage::default()));
        let page = START..START + (1 << SMALL);
        model.device_fault(&page, Need::Read);
        let faults = [Need::Read, Need::Write].map(|need| {
            let (model, page) = (Arc::clone(&model), page.clone());
            thread::spawn(move || {
                model.device_fault(&page, need);
                model.device_access(0, need == Need::Write);
            })
        });
        for thread in faults {
            thread.join().unwrap();
        }
        // Asserts that a page the device wrote to is dirty by now.
        model.unmap_range(&page, &Zap { fails: 0 });
        model.tear_down();
    });
}

/// The simulation must find what it is there to find.
fn must_be_found(sabotage: Sabotage) {
    let found = catch_unwind(AssertUnwindSafe(|| {
        run(3000, move || {
            simulate(SMALL, sabotage, 0);
        });
    }));
    assert!(found.is_err(), "the simulation did not notice");
}

#[test]
fn skipping_the_retry_check_is_found() {
    must_be_found(Sabotage {
        skip_retry_check: true,
        ..Sabotage::default()
    });
}

#[test]
fn skipping_set_sequence_is_found() {
    must_be_found(Sabotage {
        skip_set_sequence: true,
        ..Sabotage::default()
    });
}

#[test]
fn skipping_one_zap_is_found() {
    must_be_found(Sabotage {
        skip_one_zap: true,
        ..Sabotage::default()
    });
}
