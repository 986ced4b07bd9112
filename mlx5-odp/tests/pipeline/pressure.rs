// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What is scarce or late for now is no error of the application.

use firmware_cmds::PageFault;
use hmm_abi::{PublishError, ATTEMPTS, BUSY_ATTEMPTS};
use mlx5_odp::{MemoryError, NotIn, Pressure, TRIES};

use super::model::world::{Trouble, Walk};
use super::*;

const TIMES: usize = TRIES as usize;

fn walks(walk: Walk, times: usize) -> Trouble {
    Trouble {
        walks: vec![walk; times].into(),
        ..Trouble::default()
    }
}

fn always_stale() -> Trouble {
    Trouble {
        looks: vec![Walk::Stale; 1000].into(),
        ..walks(Walk::Stale, 1000)
    }
}

fn again(why: Pressure) -> Walk {
    Walk::Failed(MemoryError::Again(why))
}

fn publishes(times: usize) -> Trouble {
    Trouble {
        publishes: vec![PublishError::Again; times].into(),
        ..Trouble::default()
    }
}

fn chunks(times: usize) -> Trouble {
    Trouble {
        chunks: times,
        ..Trouble::default()
    }
}

fn events() -> [PageFault; 2] {
    [
        PageFault::Memory(memory(IOVA, 1)),
        PageFault::Rdma(rdma(IOVA, 100, true)),
    ]
}

#[test]
fn it_is_tried_again() {
    let attempts = usize::try_from(ATTEMPTS).unwrap();
    let cases: [fn(usize) -> Trouble; 5] = [
        |times| walks(again(Pressure::Memory), times),
        |times| walks(again(Pressure::Race), times),
        |times| walks(Walk::Stale, times * usize::try_from(ATTEMPTS).unwrap()),
        publishes,
        chunks,
    ];
    for (number, trouble) in cases.iter().enumerate() {
        for event in events() {
            let model = model();
            model.world().trouble = trouble(TIMES - 1);
            fault(&model, event);
            assert_eq!(resumed(&model), [true], "case {number}");
            assert_eq!(table(&model, 0, 1), [RW], "case {number}");
            // Only for want of memory: a race is over as soon as it is noticed.
            let sleeps = if [1, 2].contains(&number) {
                0
            } else {
                TRIES - 1
            };
            assert_eq!(model.world().sleeps, sleeps, "case {number}");
            assert_eq!(model.world().gave_back, 0);
            assert!(model.world().walks <= attempts * TIMES);
            assert_eq!(model.mapped(KEY), 1, "counted once");
        }
    }
    // Less than a try is nobody's business.
    let model = model();
    model.world().trouble = walks(Walk::Busy, usize::try_from(BUSY_ATTEMPTS).unwrap() - 1);
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!((table(&model, 0, 1), model.world().sleeps), (vec![RW], 0));
}

#[test]
fn what_lasts_goes_back_to_the_device() {
    let held = usize::try_from(BUSY_ATTEMPTS).unwrap();
    let stale = usize::try_from(ATTEMPTS).unwrap() * TIMES;
    let none = || Trouble {
        scratch: true,
        ..Trouble::default()
    };
    // What is wrong, and how often the page table is walked.
    let cases: [(&dyn Fn() -> Trouble, usize); 7] = [
        (&|| walks(again(Pressure::Race), 1000), TIMES),
        (&|| walks(again(Pressure::Memory), 1000), TIMES),
        // Whoever says so has been patient, and the MR cannot be destroyed meanwhile.
        (&|| walks(again(Pressure::Held), 1000), 1),
        (&|| walks(Walk::Busy, 1000), held),
        (&always_stale, stale),
        (&|| publishes(1000), TIMES),
        (&none, 0),
    ];
    for (number, (trouble, times)) in cases.iter().enumerate() {
        for event in events() {
            let model = model();
            model.world().trouble = trouble();
            fault(&model, event);

            // The access has not failed, nor has it got its page: it will fault again.
            assert_eq!(resumed(&model), [true], "case {number}");
            assert_eq!(table(&model, 0, 1), [NONE]);
            let world = model.world();
            assert_eq!(world.gave_back, 1);
            let walks = world.walks.max(world.looks);
            assert_eq!(walks, *times, "bounded: case {number}");
            assert!(world.reports.is_empty());
        }
    }
}

#[test]
fn no_memory_for_a_chunk_goes_back_to_the_device_too() {
    let model = model();
    model.world().trouble = chunks(1000);
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(model.world().trouble.chunks, 1000 - TIMES);
    assert!(model.mr(KEY).chunks().is_empty());
}

#[test]
fn an_update_that_fails_is_the_devices_error() {
    let model = model();
    model.world().trouble.publishes = [PublishError::Failed].into();
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(resumed(&model), [false]);
    assert_eq!(model.world().refused, [NotIn::Device]);
    // Some of it has arrived, which is taken back with the page.
    assert_eq!(model.mapped(KEY), 1);
    drop_pages(&model, 0..1);
    assert_eq!(table(&model, 0, 1), [NONE]);
    assert_eq!(model.mapped(KEY), 0);
    // It may be better next time.
    fault(&model, PageFault::Memory(memory(IOVA, 1)));
    assert_eq!(resumed(&model), [false, true]);
}

#[test]
fn what_the_memory_manager_refuses_fails_at_once() {
    for event in events() {
        let model = model();
        model.world().trouble = walks(Walk::Failed(MemoryError::Invalid), 1);
        fault(&model, event);
        assert_eq!(resumed(&model), [false]);
        assert_eq!(model.world().walks, 1);
        assert_eq!(model.world().sleeps, 0);
    }
}

/// Write refused is an answer for the one who knows that it is to be written.
#[test]
fn a_refused_write_is_final_where_the_event_says_write() {
    let [unknown, write] = events();
    for (event, succeeds) in [(unknown, true), (write, false)] {
        let model = model();
        model.world().trouble = walks(Walk::Failed(MemoryError::WriteRefused), 1);
        fault(&model, event);
        assert_eq!(resumed(&model), [succeeds]);
        let walks = model.world().walks;
        assert_eq!(walks, if succeeds { 2 } else { 1 });
    }
}
