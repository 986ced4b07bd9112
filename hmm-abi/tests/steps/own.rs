// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a driver does to the process's pages by itself, step by step: it migrates them to its
//! device, makes them exclusive to it, or only looks.

use crate::scripted::{say, Double, Trouble, ENTRIES};
use hmm_abi::{
    pass, start, withdraw, Chunk, FaultError, HmmPfn, LockedChunk, Need, Order, Pfn, Sequence,
    Served, Slots, Snapshot, Stale, Started,
};

fn states(states: &str) -> (usize, String) {
    let mapped = states.chars().filter(|&state| state != '.').count();
    (mapped, states.into())
}

fn page(pfn: usize) -> [HmmPfn; 1] {
    [HmmPfn::present(Pfn(pfn), false, Order(0))]
}

/// Gives the device one page that the driver knows of.
fn give(chunk: &Double, slot: usize, sequence: usize, pfn: usize) -> Result<Served, &'static str> {
    let (slots, page) = (Slots::new(slot..slot + 1), page(pfn));
    let sequence = Sequence(sequence);
    let known = Snapshot::known(chunk, &chunk.geometry, slots, sequence, &page);
    let valid = known.validate().map_err(|Stale| "stale")?;
    let ready = valid.map().map_err(|error| match error {
        FaultError::Stuck => "stuck",
        _ => "not mapped",
    })?;
    ready.publish().map_err(|_| "not published")
}

#[test]
fn what_is_passed_stays_and_what_was_looked_up_does_not() {
    let chunk = Double::live("ww");
    let mut scratch = [HmmPfn::EMPTY; 4];
    let slots = Slots::new(2..4);
    let before = Snapshot::take(&chunk, &chunk.geometry, slots, Need::Snapshot, &mut scratch);
    chunk.calls();
    assert_eq!(pass(&chunk, 3, true), Started::Done);
    assert_eq!(chunk.calls(), ["set_sequence 3"]);
    assert_eq!(chunk.states(), states("LL"));
    assert!(before.unwrap().validate().is_err());
}

#[test]
fn what_is_passed_may_be_something_else_under_the_lock() {
    let chunk = Double::live("w");
    // Nothing is taken back, so that there is nothing to wait for but the lock.
    assert_eq!(pass(&chunk, 3, false), Started::Done);
    let locked = chunk.lock();
    chunk.calls();
    assert_eq!(pass(&chunk, 5, false), Started::WouldBlock);
    drop(locked);
    assert!(chunk.calls().is_empty());
}

#[test]
fn what_is_withdrawn_is_gone_when_it_returns() {
    let chunk = Double::live("wrw");
    withdraw(&chunk, Slots::new(0..2));
    assert_eq!(
        chunk.calls(),
        [
            "zap 0: --w-",
            "settle 1",
            "unmap 0..2",
            "dirty 0",
            "count 2"
        ]
    );
    assert_eq!(chunk.states(), states("..L"));
    withdraw(&chunk, Slots::new(1..ENTRIES + 100));
    assert!(chunk.is_idle());
}

/// The invalidation has its own second pass to come.
#[test]
fn what_leaves_already_is_withdrawn_as_well() {
    let chunk = Double::live("ww");
    let started = start(&chunk, Slots::new(0..2), 3, true, true);
    assert_eq!(started, Started::Pending);
    withdraw(&chunk, Slots::new(0..1));
    assert_eq!(chunk.states(), states(".X"));
    hmm_abi::finish(&chunk);
    assert!(chunk.is_idle());
}

/// To withdraw makes nothing stale: whoever moves a page passes the invalidation first.
#[test]
fn a_migration_leaves_nothing_of_the_old_page() {
    let chunk = Double::live("w");
    let mut scratch = [HmmPfn::EMPTY];
    let slots = Slots::new(0..1);
    let take = |scratch| Snapshot::take(&chunk, &chunk.geometry, slots, Need::Read, scratch);
    let before = take(&mut scratch).unwrap();
    assert_eq!(pass(&chunk, 3, true), Started::Done);
    withdraw(&chunk, slots);
    // A fault that was under way.
    assert!(before.validate().is_err());
    chunk.pages.borrow_mut()[0] = page(0x900)[0];
    assert_eq!(chunk.serve(0..1, Need::Read), Ok(Served::New));
    assert_eq!(chunk.lock().entries()[0].pfn(), Pfn(0x900));
}

#[test]
fn a_page_that_the_driver_knows_is_published() {
    let chunk = Double::new("--");
    let sequence = chunk.sequence.get();
    assert_eq!(give(&chunk, 1, sequence, 0x42), Ok(Served::New));
    assert_eq!(
        chunk.calls(),
        ["map 1..2", "sync 1..2", "publish 0: -r--"],
        "HMM is not asked"
    );
    assert_eq!(chunk.states(), states(".l"));
    // HMM, which does not see it, takes nothing away.
    let nothing = chunk.serve(0..2, Need::Snapshot);
    assert!(matches!(nothing, Ok(Served::Nothing { .. })));
    assert_eq!(chunk.states(), states(".l"));
}

#[test]
fn what_the_driver_knows_grows_stale_too() {
    let chunk = Double::new("-");
    let sequence = chunk.sequence.get();
    start(&chunk, Slots::new(0..1), sequence + 2, true, false);
    assert_eq!(give(&chunk, 0, sequence, 0x42), Err("stale"));
    assert_eq!(chunk.states(), states(""));
    assert_eq!(give(&chunk, 0, sequence + 2, 0x42), Ok(Served::New));
}

#[test]
fn what_the_driver_knows_does_not_take_a_mapped_entrys_place() {
    let chunk = Double::live("w");
    let sequence = chunk.sequence.get();
    assert_eq!(give(&chunk, 0, sequence, 0x42), Err("stuck"));
    assert_eq!(chunk.states(), states("L"));
    withdraw(&chunk, Slots::new(0..1));
    assert_eq!(give(&chunk, 0, sequence, 0x42), Ok(Served::New));
}

#[test]
fn what_was_found_can_be_looked_at() {
    let chunk = Double::new("wr-");
    let error = HmmPfn::from_bits(HmmPfn::ERROR);
    chunk.pages.borrow_mut()[2] = error;
    let mut scratch = [HmmPfn::EMPTY; 3];
    let slots = Slots::new(0..3);
    let snapshot = Snapshot::take(&chunk, &chunk.geometry, slots, Need::Snapshot, &mut scratch);
    let valid = snapshot.unwrap().validate().ok().unwrap();
    assert_eq!(valid.found(), &chunk.pages.borrow()[..3]);
    assert!(valid.found()[0].is_writable());
    assert_eq!(valid.found()[2], error);
    // To look maps nothing.
    drop(valid);
    assert!(chunk.is_idle());
    say(&chunk.script.range_fault, [Trouble::Stale]);
    let snapshot = Snapshot::take(&chunk, &chunk.geometry, slots, Need::Snapshot, &mut scratch);
    assert!(snapshot.unwrap().validate().is_err());
}
