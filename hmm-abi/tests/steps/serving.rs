// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Serving a fault, step by step: what is asked of the chunk and the device, and what is left
//! when something fails.

use crate::scripted::{say, Double, Trouble};
use hmm_abi::{
    start, Device, FaultError, Given, MapError, Need, Order, PublishError, Served, Slots, ATTEMPTS,
    BUSY_ATTEMPTS,
};

fn states(states: &str) -> (usize, String) {
    let mapped = states.chars().filter(|&state| state != '.').count();
    (mapped, states.into())
}

fn nothing(given: Given) -> Result<Served, FaultError<&'static str>> {
    Ok(Served::Nothing { given })
}

const NOW: Given = Given::Lately { ago: 0 };

#[test]
fn what_is_found_is_mapped_and_published() {
    let chunk = Double::new("-ww-");
    assert_eq!(chunk.serve(1..3, Need::Write), Ok(Served::New));
    assert_eq!(
        chunk.calls(),
        [
            "range_fault (1..3, Write)",
            "map 1..3",
            "sync 1..3",
            "publish 0: -ww-",
        ]
    );
    assert_eq!(chunk.states(), states(".LL"));
    // Once more, and there is nothing to do, nor to look for.
    assert_eq!(chunk.serve(1..3, Need::Write), nothing(NOW));
    assert!(chunk.calls().is_empty());
}

#[test]
fn runs_are_mapped_and_the_window_is_synced_once() {
    let chunk = Double::new("r--wr-r");
    assert_eq!(chunk.serve(0..8, Need::Snapshot), Ok(Served::New));
    assert_eq!(
        chunk.calls()[1..],
        [
            "map 0..1",
            "map 3..5",
            "map 6..7",
            "sync 0..7",
            "publish 0: r--wr-r-",
        ]
    );
    assert_eq!(chunk.states(), states("l..Ll.l"));
}

#[test]
fn only_what_is_new_is_mapped_and_published() {
    let chunk = Double::live("-----w");
    chunk.find("----wwww");
    assert_eq!(chunk.serve(4..8, Need::Write), Ok(Served::New));
    // The neighbours of the granule come out right.
    assert_eq!(
        chunk.calls()[1..],
        ["map 4..5", "map 6..8", "sync 4..8", "publish 4: wwww"]
    );
    chunk.find("----wwwww");
    assert_eq!(chunk.serve(4..9, Need::Write), Ok(Served::New));
    let calls = chunk.calls();
    assert_eq!(calls[1..], ["map 8..9", "sync 8..9", "publish 8: w---"]);
}

#[test]
fn an_empty_window_publishes_nothing() {
    let chunk = Double::new("----");
    assert_eq!(chunk.serve(0..4, Need::Snapshot), nothing(Given::Never));
    assert_eq!(chunk.calls(), ["range_fault (0..4, Snapshot)"]);
    assert_eq!(chunk.serve(4..4, Need::Read), Err(FaultError::Empty));
    assert!(chunk.calls().is_empty());
}

#[test]
fn what_is_stale_is_looked_up_again() {
    let chunk = Double::new("ww");
    say(&chunk.script.range_fault, [Trouble::Stale, Trouble::Busy]);
    assert_eq!(chunk.serve(0..2, Need::Read), Ok(Served::New));
    let calls = chunk.calls();
    assert_eq!(calls[..3], ["range_fault (0..2, Read)"; 3]);
    assert_eq!(calls[3], "map 0..2");
}

#[test]
fn every_fault_ends() {
    let all = |trouble: Trouble, need| {
        let chunk = Double::new("rr");
        say(&chunk.script.range_fault, [trouble; 100]);
        let result = chunk.serve(0..2, need);
        assert_eq!(chunk.states(), states(""), "nothing is mapped");
        (result, u32::try_from(chunk.calls().len()).unwrap())
    };
    let race = (Err(FaultError::Race), ATTEMPTS);
    assert_eq!(all(Trouble::Stale, Need::Read), race);
    assert_eq!(all(Trouble::Stale, Need::Snapshot), race);
    let busy = (Err(FaultError::Busy), BUSY_ATTEMPTS);
    assert_eq!(all(Trouble::Busy, Need::Read), busy);
    let refused = (Err(FaultError::Host("refused")), 1);
    assert_eq!(all(Trouble::Refused, Need::Read), refused);
}

#[test]
fn less_than_was_asked_for_is_no_success() {
    for (found, need) in [("wr", Need::Write), ("w-", Need::Write), ("r-", Need::Read)] {
        let chunk = Double::new(found);
        assert_eq!(chunk.serve(0..2, need), Err(FaultError::Race));
        assert_eq!(chunk.states(), states(""));
    }
}

#[test]
fn an_entry_of_many_pages_wants_one_mapping() {
    let chunk = Double::with_entries("wwww", 13, Order(0));
    assert_eq!(chunk.serve(0..2, Need::Read), Err(FaultError::Fragmented));
    assert_eq!(chunk.states(), states(""));
    let chunk = Double::with_entries("wwww", 13, Order(1));
    assert_eq!(chunk.serve(0..2, Need::Read), Ok(Served::New));
    assert_eq!(chunk.calls()[3], "publish 0: ww--");
}

#[test]
fn a_run_that_cannot_be_mapped_takes_the_others_with_it() {
    let chunk = Double::live("---r");
    chunk.find("ww-ww-w");
    say(&chunk.script.map, [Ok(()), Ok(()), Err(MapError::Memory)]);
    let error = Err(FaultError::Map(MapError::Memory));
    assert_eq!(chunk.serve(0..7, Need::Snapshot), error);
    assert_eq!(
        chunk.calls()[1..],
        [
            "map 0..2",
            "map 4..5",
            "map 6..7",
            "unmap 0..2",
            "unmap 4..5",
        ]
    );
    // What was there before stays as it was: no right to write that nobody was told of.
    assert_eq!(chunk.states(), states("...l"));
}

#[test]
fn what_is_mapped_but_not_synced_is_unmapped() {
    let chunk = Double::new("w-w");
    say(&chunk.script.sync, [Err(MapError::Memory)]);
    let error = Err(FaultError::Map(MapError::Memory));
    assert_eq!(chunk.serve(0..3, Need::Snapshot), error);
    // It is not dirty: the device was never told.
    assert_eq!(chunk.calls()[4..], ["unmap 0..1", "unmap 2..3"]);
    assert_eq!(chunk.states(), states(""));
    assert!(chunk.is_idle());
}

#[test]
fn an_unreachable_page_is_said_to_be_so() {
    let chunk = Double::new("w");
    say(&chunk.script.map, [Err(MapError::Unreachable)]);
    let error = Err(FaultError::Map(MapError::Unreachable));
    assert_eq!(chunk.serve(0..1, Need::Write), error);
    assert_eq!(chunk.calls()[1..], ["map 0..1"]);
}

#[test]
fn writing_is_allowed_without_mapping_again() {
    let chunk = Double::live("rr");
    chunk.find("wr");
    assert_eq!(chunk.serve(0..1, Need::Write), Ok(Served::New));
    assert_eq!(chunk.calls()[1..], ["publish 0: wr--"]);
    assert_eq!(chunk.states(), states("Ll"));
    // A range fault that found it read-only, and is valid for the same sequence, comes late.
    chunk.find("rr");
    assert_eq!(chunk.serve(0..2, Need::Read), nothing(NOW));
    assert_eq!(chunk.states(), states("Ll"));
}

#[test]
fn what_the_device_did_not_take_is_offered_again() {
    let chunk = Double::new("r");
    say(&chunk.script.publish, [Err(PublishError::Failed)]);
    let error = Err(FaultError::Publish(PublishError::Failed));
    assert_eq!(chunk.serve(0..1, Need::Read), error);
    assert_eq!(chunk.states(), states("o"));
    chunk.calls();
    assert_eq!(chunk.serve(0..1, Need::Read), Ok(Served::New));
    assert_eq!(chunk.calls()[1..], ["publish 0: r---"]);
    assert_eq!(chunk.states(), states("l"));
}

#[test]
fn what_the_device_may_have_taken_is_taken_back() {
    let chunk = Double::live("rr");
    chunk.find("ww");
    say(&chunk.script.publish, [Err(PublishError::Again)]);
    let error = Err(FaultError::Publish(PublishError::Again));
    assert_eq!(chunk.serve(0..1, Need::Write), error);
    assert_eq!(chunk.states(), states("Ol"));
    chunk.calls();
    start(&chunk, Slots::new(0..1), 3, true, false);
    // It may have written.
    assert_eq!(
        chunk.calls(),
        [
            "set_sequence 3",
            "zap 0: -r--",
            "settle 1",
            "unmap 0..1",
            "dirty 0",
            "count 1"
        ]
    );
}

#[test]
fn another_page_under_a_mapping_is_stuck() {
    let chunk = Double::live("www");
    let found = chunk.pages.borrow()[2];
    chunk.pages.borrow_mut()[1] = found;
    assert_eq!(chunk.serve(0..3, Need::Snapshot), Err(FaultError::Stuck));
    assert_eq!(chunk.calls().len(), 1);
    assert_eq!(chunk.states(), states("LLL"));
}

#[test]
fn what_is_leaving_is_not_brought_back() {
    let chunk = Double::live("ww");
    start(&chunk, Slots::new(0..1), 3, true, true);
    // Not even if the sequence were right.
    assert_eq!(chunk.serve(0..2, Need::Read), Err(FaultError::Race));
    assert_eq!(chunk.states(), states("XL"));
}

#[test]
fn when_something_was_given_is_kept() {
    let chunk = Double::new("wrw");
    // The clock wraps.
    chunk.now.set(u32::MAX);
    assert_eq!(chunk.serve(0..1, Need::Read), Ok(Served::New));
    assert_eq!(chunk.serve(0..1, Need::Read), nothing(NOW));
    chunk.now.set(Double::LATE - 2);
    let ago = Double::LATE - 1;
    assert_eq!(
        chunk.serve(0..1, Need::Read),
        nothing(Given::Lately { ago })
    );
    chunk.now.set(Double::LATE - 1);
    // The moment of the first look is kept.
    let moment = 1;
    assert_eq!(
        chunk.serve(0..1, Need::Read),
        nothing(Given::Before { moment })
    );
    assert_eq!(
        chunk.serve(0..1, Need::Read),
        nothing(Given::Before { moment })
    );
    // The last that was given stands for the chunk.
    assert_eq!(chunk.serve(1..2, Need::Read), Ok(Served::New));
    assert_eq!(chunk.serve(0..1, Need::Read), nothing(NOW));
}
