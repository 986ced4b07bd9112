// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Faults, invalidations, device accesses, chunks made and freed, and the end of the mirror,
//! interleaved at random: no published page outlives its invalidation.
//!
//! A failing run prints its schedule; `shuttle::replay` takes it back.

mod model;

use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};

use hmm_abi::{Geometry, Need};
use model::process::Change;
use model::{Failures, Sabotage, World};
use shuttle::rand::{thread_rng, Rng};
use shuttle::scheduler::RandomScheduler;
use shuttle::sync::atomic::AtomicBool;
use shuttle::sync::Arc;
use shuttle::{thread, Config, Runner};

const PAGE_SHIFT: u32 = 12;
const START: usize = 0x4000_0000;
const SEED: u64 = 0x6d6c_7835;

/// Entries of 32 pages: a window is a chunk, of 16 entries.
const MIDDLE: u32 = PAGE_SHIFT + 5;
/// Entries of a window: a chunk is 16 windows.
const HUGE: u32 = PAGE_SHIFT + 9;
/// One chunk and a short one.
const ENTRIES: usize = 20;
/// Where things happen: on both sides of the border of the chunks, and of a granule.
const BUSY: Range<usize> = 13..18;

const QUIET: Failures = Failures {
    zap: 0,
    cut_off: 0,
    publish: 0,
    map: 0,
    busy: 2,
    one_pass: 20,
};

fn run(iterations: usize, body: impl Fn() + Send + Sync + 'static) {
    let scheduler = RandomScheduler::new_from_seed(SEED, iterations);
    Runner::new(scheduler, Config::default()).run(body);
}

fn geometry(entry_shift: u32) -> Geometry {
    Geometry::cover(START, ENTRIES << entry_shift, PAGE_SHIFT, entry_shift).unwrap()
}

fn some_pages(most: usize) -> Range<usize> {
    let mut rng = thread_rng();
    let first = rng.gen_range(BUSY);
    first..rng.gen_range(first + 1..=BUSY.end.min(first + most))
}

/// What came of the runs of a test.
#[derive(Default)]
struct Sum {
    served: AtomicUsize,
    reaped: AtomicUsize,
    invalidated: AtomicUsize,
    not_zapped: AtomicUsize,
}

/// Two QPs, two threads of the process, a worker that frees chunks, in half of the runs the end
/// of the mirror in the middle of it all, and the device.
fn simulate(entry_shift: u32, sabotage: Sabotage, failures: Failures, sum: &Sum) {
    let world = Arc::new(World::new(geometry(entry_shift), sabotage, failures));
    let spawn = |body: fn(&World)| {
        let world = Arc::clone(&world);
        thread::spawn(move || body(&world))
    };
    let device = spawn(|world| world.parts.nic.run());
    let at_rest = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..2 {
        threads.push(spawn(|world| {
            for _ in 0..10 {
                if thread_rng().gen_bool(0.15) {
                    let _ = world.fault(&some_pages(8), Need::Snapshot);
                } else {
                    world.access(&some_pages(4), thread_rng().gen_bool(0.5));
                }
            }
        }));
        threads.push(spawn(|world| {
            for _ in 0..8 {
                for _ in 0..thread_rng().gen_range(0..20) {
                    thread::yield_now();
                }
                let change = Change::ALL[thread_rng().gen_range(0..Change::ALL.len())];
                world.parts.change(change, &some_pages(8));
            }
        }));
    }
    if thread_rng().gen_bool(0.5) {
        threads.push(spawn(|world| {
            for _ in 0..thread_rng().gen_range(0..400) {
                thread::yield_now();
            }
            world.deregister();
        }));
    }
    // They end with the others.
    let user = {
        let (world, at_rest) = (Arc::clone(&world), Arc::clone(&at_rest));
        thread::spawn(move || {
            while !at_rest.load(Ordering::Relaxed) {
                let page = thread_rng().gen_range(BUSY);
                world.parts.nic.access(page, thread_rng().gen_bool(0.5));
                thread::yield_now();
            }
        })
    };
    let worker = {
        let (world, at_rest) = (Arc::clone(&world), Arc::clone(&at_rest));
        thread::spawn(move || {
            while !at_rest.load(Ordering::Relaxed) {
                world.reap();
                thread::yield_now();
            }
        })
    };
    for thread in threads {
        thread.join().unwrap();
    }
    at_rest.store(true, Ordering::Relaxed);
    user.join().unwrap();
    worker.join().unwrap();
    for page in 0..ENTRIES {
        world.parts.nic.access(page, true);
    }
    world.deregister();
    world.parts.change(Change::Unmap, &(0..ENTRIES));
    world.parts.nic.stop();
    device.join().unwrap();
    world.check_at_end();
    let add = |sum: &AtomicUsize, value: &AtomicUsize| {
        sum.fetch_add(value.load(Ordering::Relaxed), Ordering::Relaxed);
    };
    add(&sum.served, &world.served);
    add(&sum.reaped, &world.reaped);
    add(&sum.invalidated, &world.parts.invalidated);
    add(&sum.not_zapped, &world.parts.not_zapped);
}

/// Runs the simulation; what it is about must have happened.
fn simulate_all(iterations: usize, entry_shift: u32, failures: Failures) {
    let sum = std::sync::Arc::new(Sum::default());
    let total = std::sync::Arc::clone(&sum);
    run(iterations, move || {
        simulate(entry_shift, Sabotage::default(), failures, &total);
    });
    let [served, reaped, invalidated, not_zapped] =
        [&sum.served, &sum.reaped, &sum.invalidated, &sum.not_zapped]
            .map(|sum| sum.load(Ordering::Relaxed));
    println!("{iterations} runs: {served} served, {reaped} reaped, {invalidated} entries invalidated, {not_zapped} not zapped");
    assert!(served > 3 * iterations, "nothing was tested");
    assert!(reaped > iterations / 4, "no chunk was freed");
    assert!(invalidated > iterations, "nothing was taken back");
    assert_eq!(not_zapped > 0, failures.zap > 0);
}

#[test]
fn no_published_page_outlives_its_invalidation() {
    simulate_all(120, MIDDLE, QUIET);
}

#[test]
fn chunks_of_several_windows() {
    simulate_all(20, HUGE, QUIET);
}

#[test]
fn a_device_that_does_not_let_go() {
    let failures = Failures {
        zap: 60,
        cut_off: 60,
        ..QUIET
    };
    simulate_all(100, MIDDLE, failures);
}

#[test]
fn all_that_can_fail_does() {
    let failures = Failures {
        zap: 40,
        cut_off: 20,
        publish: 10,
        map: 10,
        busy: 5,
        one_pass: 20,
    };
    simulate_all(100, MIDDLE, failures);
}

/// A world with its device at work, for tests that follow a script; what is called in `body` and
/// waits for what does not come is a deadlock, which fails.
fn scripted(body: impl Fn(&Arc<World>) + Send + Sync + 'static) {
    run(20, move || {
        let world = World::new(geometry(MIDDLE), Sabotage::default(), Failures::default());
        let world = Arc::new(world);
        let device = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.parts.nic.run())
        };
        body(&world);
        world.deregister();
        world.parts.nic.stop();
        device.join().unwrap();
        world.check_at_end();
    });
}

#[test]
fn faults_in_one_chunk_go_on_while_another_is_invalidated() {
    scripted(|world| {
        let notifiers = &world.parts.notifiers;
        // Both chunks exist.
        assert_eq!(world.fault(&(15..17), Need::Write), Ok(()));
        assert!(notifiers.invalidate_start(&(16..20), true));
        assert!(!world.parts.nic.access(16, false));
        // The other's is served in this very thread, between start and end.
        assert_eq!(world.fault(&(0..16), Need::Write), Ok(()));
        assert!((0..16).all(|page| world.parts.nic.access(page, true)));
        // One in the chunk itself waits for the end.
        let ended = Arc::new(AtomicBool::new(false));
        let waits = {
            let (world, ended) = (Arc::clone(world), Arc::clone(&ended));
            thread::spawn(move || {
                assert_eq!(world.fault(&(16..17), Need::Read), Ok(()));
                assert!(ended.load(Ordering::SeqCst), "it did not wait for the end");
            })
        };
        for _ in 0..20 {
            thread::yield_now();
        }
        assert!(!world.parts.nic.access(16, false));
        ended.store(true, Ordering::SeqCst);
        notifiers.invalidate_end(&(16..20));
        waits.join().unwrap();
        assert!(world.parts.nic.access(16, true), "it had stayed writable");
    });
}

/// Of a chunk that is made while anything at all is invalidated nobody knows whether it is
/// concerned: it waits. That is the notifiers', not ours.
#[test]
fn a_fault_that_makes_a_chunk_waits_for_every_invalidation() {
    scripted(|world| {
        let notifiers = &world.parts.notifiers;
        assert_eq!(world.fault(&(16..17), Need::Write), Ok(()));
        assert!(notifiers.invalidate_start(&(16..20), true));
        let ended = Arc::new(AtomicBool::new(false));
        let waits = {
            let (world, ended) = (Arc::clone(world), Arc::clone(&ended));
            thread::spawn(move || {
                assert_eq!(world.fault(&(0..1), Need::Read), Ok(()));
                assert!(ended.load(Ordering::SeqCst), "it did not wait for the end");
            })
        };
        for _ in 0..20 {
            thread::yield_now();
        }
        ended.store(true, Ordering::SeqCst);
        notifiers.invalidate_end(&(16..20));
        waits.join().unwrap();
    });
}

/// Both chunks are told before either is waited for, and neither has its pages when the first
/// pass and the second are done.
#[test]
fn an_invalidation_of_two_chunks_takes_both_back() {
    scripted(|world| {
        assert_eq!(world.fault(&(0..20), Need::Write), Ok(()));
        assert!(world.parts.notifiers.invalidate_start(&(4..18), true));
        let has = |page| world.parts.nic.access(page, false);
        assert!((0..20).all(|page| has(page) != (4..18).contains(&page)));
        world.parts.notifiers.invalidate_end(&(4..18));
        assert_eq!(world.parts.invalidated.load(Ordering::Relaxed), 14);
    });
}

/// The simulation must find what it is there to find, by one of its own assertions.
fn must_be_found(sabotage: Sabotage, failures: Failures, symptoms: &[&str]) {
    let found = catch_unwind(AssertUnwindSafe(|| {
        run(1000, move || {
            simulate(MIDDLE, sabotage, failures, &Sum::default());
        });
    }));
    let panic = found.expect_err("the simulation did not notice");
    let message = (panic.downcast_ref::<String>().map(String::as_str))
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    println!("found: {message}");
    assert!(
        symptoms.iter().any(|symptom| message.contains(symptom)),
        "not what was to be found: {message}"
    );
}

#[test]
fn skipping_the_retry_check_is_found() {
    let sabotage = Sabotage {
        skip_retry_check: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}

#[test]
fn skipping_set_sequence_is_found() {
    let sabotage = Sabotage {
        skip_set_sequence: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}

#[test]
fn skipping_one_zap_is_found() {
    let sabotage = Sabotage {
        skip_one_zap: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}

#[test]
fn not_waiting_for_a_zap_is_found() {
    let sabotage = Sabotage {
        settle_without_waiting: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}

#[test]
fn a_second_pass_that_is_never_made_is_found() {
    let sabotage = Sabotage {
        skip_finish: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device", "a chunk is freed"]);
}

#[test]
fn what_the_device_keeps_and_nobody_holds_is_found() {
    let sabotage = Sabotage {
        skip_hold: true,
        ..Sabotage::default()
    };
    let failures = Failures {
        zap: 70,
        cut_off: 90,
        ..QUIET
    };
    must_be_found(sabotage, failures, &["the device"]);
}

#[test]
fn a_notifier_inserted_as_if_nothing_were_invalidated_is_found() {
    let sabotage = Sabotage {
        insert_as_if_quiet: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}

#[test]
fn a_removal_that_does_not_wait_is_found() {
    let sabotage = Sabotage {
        remove_without_waiting: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["a chunk is used that was freed"]);
}

#[test]
fn freeing_a_chunk_that_is_in_use_is_found() {
    let sabotage = Sabotage {
        reap_held: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["a chunk is"]);
}

#[test]
fn updates_after_the_cut_off_are_found() {
    let sabotage = Sabotage {
        update_after_cut_off: true,
        ..Sabotage::default()
    };
    must_be_found(sabotage, QUIET, &["the device"]);
}
