// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Invalidations and the end of a mirror, step by step.

use crate::scripted::{say, Double, ZapAnswer, ENTRIES};
use hmm_abi::{
    finish, release, start, Chunk, FaultError, HmmPfn, LockedChunk, MapError, Need, NotZapped,
    Slots, Snapshot, Started,
};

fn states(states: &str) -> (usize, String) {
    let mapped = states.chars().filter(|&state| state != '.').count();
    (mapped, states.into())
}

fn in_one_pass(chunk: &Double, slots: std::ops::Range<usize>) {
    let started = start(chunk, Slots::new(slots), 3, true, false);
    assert_eq!(started, Started::Done);
}

fn in_two_passes(chunk: &Double, slots: std::ops::Range<usize>) -> Started {
    start(chunk, Slots::new(slots), 3, true, true)
}

/// A chunk of which the device keeps entry 0.
fn stuck(found: &str) -> Double {
    let chunk = Double::live(found);
    say(&chunk.script.zap, [ZapAnswer::NotPosted; 4]);
    say(&chunk.script.cut_off, [Err(NotZapped)]);
    in_one_pass(&chunk, 0..1);
    chunk
}

#[test]
fn two_passes() {
    let chunk = Double::live("wwrw");
    assert_eq!(in_two_passes(&chunk, 1..3), Started::Pending);
    assert_eq!(chunk.calls(), ["set_sequence 3", "zap 0: w--w"]);
    // Mapped until the device has let go.
    assert_eq!(chunk.states(), states("LXxL"));
    assert!(!chunk.is_idle());
    finish(&chunk);
    assert_eq!(
        chunk.calls(),
        ["settle 1", "unmap 1..3", "dirty 1", "count 2"]
    );
    assert_eq!(chunk.states(), states("L..L"));
    finish(&chunk);
    assert!(chunk.calls().is_empty());
}

#[test]
fn one_pass() {
    let chunk = Double::live("w-w");
    in_one_pass(&chunk, 0..ENTRIES);
    assert_eq!(
        chunk.calls(),
        [
            "set_sequence 3",
            "zap 0: ----",
            "settle 1",
            "unmap 0..1",
            "dirty 0",
            "unmap 2..3",
            "dirty 2",
            "count 2",
        ]
    );
    assert!(chunk.is_idle());
}

#[test]
fn nothing_mapped_is_nothing_to_wait_for() {
    let chunk = Double::live("----w");
    assert_eq!(in_two_passes(&chunk, 0..4), Started::Done);
    assert_eq!(chunk.calls(), ["set_sequence 3"]);
}

/// The zap is of no more than what leaves, and its granules.
#[test]
fn only_the_granules_of_what_leaves_are_written() {
    let chunk = Double::live("w----w------");
    in_two_passes(&chunk, 2..12);
    assert_eq!(chunk.calls()[1..], ["zap 4: ----"]);
}

#[test]
fn slots_beyond_the_chunk_are_no_reason_to_leave_the_others() {
    let chunk = Double::live("ww");
    in_one_pass(&chunk, 1..ENTRIES + 500);
    assert_eq!(chunk.states(), states("L"));
}

#[test]
fn what_may_not_sleep_changes_nothing_or_has_nothing_to_do() {
    let may_not_sleep = |chunk: &Double, slots| start(chunk, Slots::new(slots), 3, false, true);
    let chunk = Double::live("ww");
    assert_eq!(may_not_sleep(&chunk, 0..1), Started::WouldBlock);
    assert!(chunk.calls().is_empty(), "not even the sequence");
    assert_eq!(chunk.states(), states("LL"));
    assert_eq!(may_not_sleep(&chunk, 2..8), Started::Done);
    assert_eq!(chunk.calls(), ["set_sequence 3"]);
    let locked = chunk.lock();
    assert_eq!(may_not_sleep(&chunk, 2..8), Started::WouldBlock);
    drop(locked);
    assert!(chunk.calls().is_empty());
    // What the device keeps was held when it was invalidated.
    let chunk = stuck("w");
    chunk.calls();
    assert_eq!(may_not_sleep(&chunk, 0..2), Started::Done);
    assert_eq!(chunk.calls(), ["set_sequence 3"]);
}

#[test]
fn a_zap_that_fails_is_tried_again() {
    for posted in [true, false] {
        let chunk = Double::live("w");
        match posted {
            true => say(&chunk.script.settle, [Err(NotZapped)]),
            false => say(&chunk.script.zap, [ZapAnswer::NotPosted]),
        }
        in_one_pass(&chunk, 0..1);
        let calls = chunk.calls();
        assert_eq!(
            calls.iter().filter(|call| *call == "zap 0: ----").count(),
            2
        );
        assert_eq!(
            calls[calls.len() - 3..],
            ["unmap 0..1", "dirty 0", "count 1"]
        );
    }
}

#[test]
fn a_zap_that_is_not_posted_is_no_second_pass() {
    let chunk = Double::live("w");
    say(&chunk.script.zap, [ZapAnswer::NotPosted]);
    assert_eq!(in_two_passes(&chunk, 0..1), Started::Done);
    assert!(chunk.is_idle());
}

#[test]
fn a_device_that_was_cut_off_has_nothing_to_wait_for() {
    let chunk = Double::live("w");
    say(&chunk.script.zap, [ZapAnswer::Gone]);
    assert_eq!(in_two_passes(&chunk, 0..1), Started::Done);
    assert_eq!(
        chunk.calls()[1..],
        ["zap 0: ----", "unmap 0..1", "dirty 0", "count 1"]
    );
}

#[test]
fn a_device_that_fails_every_zap_is_cut_off() {
    let chunk = Double::live("ww");
    say(&chunk.script.settle, [Err(NotZapped); 10]);
    in_one_pass(&chunk, 0..1);
    let calls = chunk.calls();
    let zaps = calls.iter().filter(|call| call.starts_with("zap")).count();
    assert_eq!(zaps, 4);
    assert_eq!(
        calls[calls.len() - 5..],
        [
            "cut_off",
            "unmap 0..1",
            "dirty 0",
            "count 1",
            "not_zapped 0"
        ]
    );
    assert_eq!(chunk.states(), states(".L"));
}

#[test]
fn what_the_device_keeps_stays_and_is_held() {
    let chunk = stuck("wr");
    let calls = chunk.calls();
    assert_eq!(
        calls[calls.len() - 4..],
        ["cut_off", "hold 0", "count 0", "not_zapped 1"]
    );
    assert_eq!(chunk.states(), states("Sl"));
    assert!(!chunk.is_idle());
    // The next invalidation leaves it alone, as what was taken from it already.
    in_one_pass(&chunk, 0..2);
    assert_eq!(
        chunk.calls(),
        [
            "set_sequence 3",
            "zap 0: ----",
            "settle 1",
            "unmap 1..2",
            "count 1"
        ]
    );
    assert_eq!(chunk.states(), states("S"));
    assert_eq!(chunk.serve(0..1, Need::Read), Err(FaultError::Stuck));
}

#[test]
fn what_was_never_published_is_just_unmapped() {
    let chunk = Double::new("ww");
    let mut scratch = [HmmPfn::EMPTY; 2];
    let slots = Slots::new(0..2);
    let snapshot =
        Snapshot::take(&chunk, &chunk.geometry, slots, Need::Write, &mut scratch).unwrap();
    let valid = snapshot.validate().ok().unwrap();
    drop(valid.map().ok().unwrap());
    assert_eq!(chunk.states(), states("MM"));
    chunk.calls();
    assert_eq!(in_two_passes(&chunk, 1..2), Started::Done);
    assert_eq!(chunk.calls(), ["set_sequence 3", "unmap 1..2"]);
    assert_eq!(chunk.states(), states("M"));
}

/// It must not return before the first has been served: its pages are given up when it does.
#[test]
fn an_invalidation_takes_back_what_is_leaving_on_anothers_account() {
    let chunk = Double::live("wwwwwwwwwwww");
    assert_eq!(in_two_passes(&chunk, 0..6), Started::Pending);
    chunk.calls();
    // The first is between its passes: the second has no second pass.
    assert_eq!(in_two_passes(&chunk, 4..9), Started::Done);
    let calls = chunk.calls();
    assert_eq!(
        calls[..4],
        [
            "set_sequence 3",
            "zap 4: -----www",
            "settle 2",
            "unmap 4..9",
        ]
    );
    assert_eq!(calls[9], "count 5");
    assert_eq!(chunk.states(), states("XXXX.....LLL"));
    finish(&chunk);
    let calls = chunk.calls();
    assert_eq!(calls[..2], ["settle 1", "unmap 0..4"]);
    assert_eq!(calls[6], "count 4");
    assert_eq!(chunk.states(), states(".........LLL"));
}

#[test]
fn what_only_leaves_on_anothers_account_is_not_nothing() {
    let chunk = Double::live("www");
    assert_eq!(in_two_passes(&chunk, 0..3), Started::Pending);
    chunk.calls();
    let may_not_sleep = start(&chunk, Slots::new(1..2), 3, false, true);
    assert_eq!(may_not_sleep, Started::WouldBlock);
    assert_eq!(in_two_passes(&chunk, 1..2), Started::Done);
    assert_eq!(
        chunk.calls(),
        [
            "set_sequence 3",
            "zap 0: ----",
            "settle 2",
            "unmap 1..2",
            "dirty 1",
            "count 1"
        ]
    );
    finish(&chunk);
    assert!(chunk.is_idle());
}

/// The second pass is still to come: the chunk has to be there for it.
#[test]
fn a_chunk_between_two_passes_is_not_idle() {
    let chunk = Double::live("w");
    assert_eq!(in_two_passes(&chunk, 0..1), Started::Pending);
    in_one_pass(&chunk, 0..1);
    assert_eq!(chunk.states(), states(""));
    assert!(!chunk.is_idle());
    finish(&chunk);
    assert!(chunk.is_idle());
}

/// The other way round: the second comes while the first waits.
#[test]
fn what_another_has_taken_back_meanwhile_is_not_taken_again() {
    let chunk = Double::live("www");
    say(&chunk.script.settle, [Ok(()), Err(NotZapped)]);
    chunk.script.meanwhile.replace(Some(|chunk| {
        assert_eq!(in_two_passes(chunk, 0..4), Started::Pending);
        finish(chunk);
    }));
    // The second's zap succeeds, the first's fails; which is no reason to zap once more.
    assert_eq!(in_two_passes(&chunk, 0..2), Started::Pending);
    finish(&chunk);
    let calls = chunk.calls();
    let starting = |with: &str| calls.iter().filter(|call| call.starts_with(with)).count();
    assert_eq!((starting("zap"), starting("settle")), (2, 2));
    assert_eq!((starting("unmap"), starting("cut_off")), (1, 0));
    assert_eq!(starting("count 3"), 1);
    assert!(chunk.is_idle());
}

/// A device that is not cut off, and keeps nothing, is not said to be either.
#[test]
fn nothing_is_reported_of_what_another_has_taken_back() {
    let chunk = Double::live("w");
    say(&chunk.script.zap, [ZapAnswer::NotPosted; 3]);
    say(&chunk.script.settle, [Ok(()), Err(NotZapped)]);
    say(&chunk.script.cut_off, [Err(NotZapped)]);
    chunk.script.meanwhile.replace(Some(|chunk| {
        in_one_pass(chunk, 0..1);
    }));
    in_one_pass(&chunk, 0..1);
    let calls = chunk.calls();
    assert!(!calls.iter().any(|call| call.starts_with("not_zapped")));
    assert!(chunk.is_idle());
}

#[test]
fn release_unmaps_all() {
    let chunk = Double::live("wr-w");
    assert_eq!(release(&chunk), Ok(3));
    assert_eq!(
        chunk.calls(),
        ["cut_off", "unmap 0..2", "dirty 0", "unmap 3..4", "dirty 3",]
    );
    assert!(chunk.is_idle());
    assert_eq!(release(&chunk), Ok(0));
}

#[test]
fn release_gives_back_what_was_held() {
    let chunk = stuck("ww");
    chunk.calls();
    assert_eq!(release(&chunk), Ok(2));
    let calls = chunk.calls();
    assert_eq!(
        calls,
        ["cut_off", "unmap 0..2", "dirty 0", "unhold 0", "dirty 1"]
    );
    assert!(chunk.is_idle());
}

#[test]
fn a_device_that_is_not_cut_off_keeps_what_it_has() {
    let chunk = Double::live("wr");
    // One that it was not told of.
    chunk.find("wrw");
    let mut scratch = [HmmPfn::EMPTY; 3];
    let slots = Slots::new(0..3);
    let snapshot =
        Snapshot::take(&chunk, &chunk.geometry, slots, Need::Read, &mut scratch).unwrap();
    drop(snapshot.validate().ok().unwrap().map().ok().unwrap());
    assert_eq!(chunk.lock().book().mapped(), 3);
    chunk.calls();

    say(&chunk.script.cut_off, [Err(NotZapped)]);
    assert_eq!(release(&chunk), Err(NotZapped));
    assert_eq!(chunk.calls(), ["cut_off", "unmap 2..3", "hold 0", "hold 1"]);
    assert_eq!(chunk.states(), states("Ss"));
    // Later it is reset.
    assert_eq!(release(&chunk), Ok(2));
    assert_eq!(
        chunk.calls(),
        ["cut_off", "unmap 0..2", "dirty 0", "unhold 0", "unhold 1"]
    );
    assert!(chunk.is_idle());
}

#[test]
fn a_fault_after_a_failed_one_finds_the_chunk_as_it_was() {
    let chunk = Double::new("ww");
    say(&chunk.script.map, [Err(MapError::Memory)]);
    assert!(chunk.serve(0..2, Need::Write).is_err());
    assert!(chunk.is_idle());
    assert!(chunk.serve(0..2, Need::Write).is_ok());
    assert_eq!(chunk.states(), states("LL"));
}
