// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a fault takes besides what is demanded.

use hmm_abi::{
    carried, start, Ahead, Around, Fault, FaultError, Given, HmmPfn, MapError, Need, NotZapped,
    Order, Outcome, PublishError, Served, Slots, Started,
};

use crate::scripted::{say, Double, Trouble};

/// So many entries besides, of a stream that wants `ahead`.
fn new(others: usize, ahead: Ahead) -> Result<Outcome, FaultError<&'static str>> {
    Ok(Outcome {
        served: Served::New,
        others,
        ahead,
    })
}

/// Nothing of the chunks that follow.
const fn no_more(next: usize) -> Ahead {
    Ahead { entries: 0, next }
}

/// The result, without what a stream wants next.
fn served(chunk: &Double, slots: std::ops::Range<usize>, need: Need) -> Served {
    chunk.serve_around(slots, need, 0).unwrap().served
}

fn walks(chunk: &Double) -> Vec<String> {
    let calls = chunk.calls().into_iter();
    calls
        .filter(|call| call.starts_with("range_fault"))
        .collect()
}

fn live(chunk: &Double) -> usize {
    chunk.states().1.to_lowercase().matches('l').count()
}

#[test]
fn a_page_that_is_alone_is_looked_at_with_its_group() {
    let chunk = Double::long(512, &("-".repeat(20) + "w"));
    assert_eq!(served(&chunk, 20..21, Need::Write), Served::New);
    assert_eq!(walks(&chunk), ["range_fault (16..32, Snapshot)"]);
    assert_eq!(live(&chunk), 1);
}

#[test]
fn only_what_is_missing_is_faulted_in() {
    let chunk = Double::long(512, "----r");
    chunk.fills.set(true);
    assert_eq!(served(&chunk, 3..6, Need::Read), Served::New);
    assert_eq!(
        walks(&chunk),
        ["range_fault (0..16, Snapshot)", "range_fault (3..6, Read)"]
    );
    assert_eq!(live(&chunk), 3);
    // What was looked at is forgotten if something has happened since.
    let chunk = Double::long(512, "ww--");
    chunk.fills.set(true);
    say(&chunk.script.range_fault, [Trouble::Stale]);
    assert_eq!(served(&chunk, 2..3, Need::Write), Served::New);
    assert_eq!(live(&chunk), 1);
}

#[test]
fn a_huge_page_is_taken_whole() {
    let chunk = Double::long(512, "-");
    chunk.fills.set(true);
    chunk.huge.set(true);
    assert_eq!(served(&chunk, 100..101, Need::Write), Served::New);
    assert_eq!(
        walks(&chunk),
        [
            "range_fault (96..112, Snapshot)",
            "range_fault (100..101, Write)",
            "range_fault (0..512, Snapshot)",
        ]
    );
    assert_eq!(live(&chunk), 512);
}

/// An entry of two pages, which are one huge one; those around are in pieces.
#[test]
fn neighbours_in_pieces_smaller_than_entries_stay_out() {
    let chunk = Double::with_entries(&"w".repeat(16), 13, Order(0));
    for page in &mut chunk.pages.borrow_mut()[2..4] {
        *page = HmmPfn::present(page.pfn(), true, Order(1));
    }
    assert_eq!(served(&chunk, 1..2, Need::Write), Served::New);
    assert_eq!(live(&chunk), 1);
}

#[test]
fn neighbours_in_memory_come_along() {
    let found = "rw".repeat(3) + &"-".repeat(10);
    let chunk = Double::long(512, &found);
    assert_eq!(served(&chunk, 1..2, Need::Write), Served::New);
    // Fewer than half: no reason to look further.
    assert_eq!(walks(&chunk), ["range_fault (0..16, Snapshot)"]);
    // Each for what it allows.
    assert_eq!(chunk.states(), (6, "lLlLlL".into()));
}

#[test]
fn memory_that_is_there_costs_one_fault_for_each_chunk() {
    let chunk = Double::long(512, &"w".repeat(512));
    assert_eq!(served(&chunk, 32..48, Need::Read), Served::New);
    assert_eq!(
        walks(&chunk),
        [
            "range_fault (32..64, Snapshot)",
            "range_fault (0..512, Snapshot)"
        ]
    );
    assert_eq!(live(&chunk), 512);
    // Faults that were raised meanwhile find it.
    assert!(matches!(
        served(&chunk, 0..100, Need::Write),
        Served::Nothing { .. }
    ));
    assert!(walks(&chunk).is_empty());
}

#[test]
fn what_the_device_has_is_no_reason_to_look_further() {
    let chunk = Double::long(512, &("w".repeat(8) + &"-".repeat(504)));
    assert_eq!(served(&chunk, 0..1, Need::Write), Served::New);
    chunk.find(&("w".repeat(9) + &"-".repeat(100) + "w"));
    chunk.calls();
    assert_eq!(served(&chunk, 8..9, Need::Write), Served::New);
    assert_eq!(walks(&chunk), ["range_fault (0..16, Snapshot)"]);
    assert_eq!(live(&chunk), 9);
}

#[test]
fn what_was_demanded_says_what_is_new() {
    let chunk = Double::long(64, "w");
    assert_eq!(served(&chunk, 0..1, Need::Read), Served::New);
    // By another fault's walk, not by this one's.
    chunk.find("ww");
    let given = Given::Lately { ago: 0 };
    let snapshot = Fault {
        slots: Slots::new(0..1),
        need: Need::Snapshot,
        around: Around::Likely { before: 0 },
    };
    let nothing = chunk.serve_fault(&snapshot).unwrap();
    assert_eq!(
        (nothing.served, nothing.others),
        (Served::Nothing { given }, 0)
    );
    assert_eq!(live(&chunk), 1);
}

#[test]
fn neighbours_that_cannot_be_had_are_left() {
    let chunk = Double::long(64, "wwww");
    assert_eq!(chunk.serve(0..4, Need::Write), Ok(Served::New));
    // One that the device does not give back, and one that is on its way.
    say(&chunk.script.settle, [Err(NotZapped); 4]);
    say(&chunk.script.cut_off, [Err(NotZapped)]);
    assert_eq!(
        start(&chunk, Slots::new(2..3), 3, true, false),
        Started::Done
    );
    let leaving = start(&chunk, Slots::new(1..2), 5, true, true);
    assert_eq!(leaving, Started::Pending);
    chunk.find("wwww-w");
    chunk.calls();
    assert_eq!(served(&chunk, 5..6, Need::Write), Served::New);
    assert_eq!(chunk.states(), (5, "LXSL.L".into()));
}

#[test]
fn trouble_with_neighbours_is_none_of_the_faults() {
    for trouble in [0, 1] {
        let chunk = Double::long(64, "wwwwwwww");
        match trouble {
            0 => say(&chunk.script.map, [Err(MapError::Unreachable)]),
            _ => chunk.room.set(1),
        }
        assert_eq!(served(&chunk, 3..4, Need::Write), Served::New);
        assert_eq!(walks(&chunk).pop().unwrap(), "range_fault (3..4, Write)");
        assert_eq!(chunk.states(), (1, "...L".into()));
    }
    let chunk = Double::long(64, "wwwwwwww");
    say(&chunk.script.map, [Err(MapError::Memory); 2]);
    let no_memory = chunk.serve_around(3..4, Need::Write, 0);
    assert_eq!(no_memory, Err(FaultError::Map(MapError::Memory)));
    say(&chunk.script.publish, [Err(PublishError::Failed)]);
    let failed = chunk.serve_around(3..4, Need::Write, 0);
    assert_eq!(failed, Err(FaultError::Publish(PublishError::Failed)));
    chunk.room.set(0);
    let no_room = chunk.serve_around(12..13, Need::Write, 0);
    assert_eq!(no_room, Err(FaultError::Memory));
}

#[test]
fn trouble_with_what_is_read_ahead_is_none_of_the_faults() {
    let chunk = Double::long(64, "--------");
    // The look, what is demanded and what follows; then what is demanded alone.
    say(&chunk.script.range_fault, [Trouble::None, Trouble::Refused]);
    chunk.fills.set(true);
    let result = chunk.serve_around(0..1, Need::Write, 4);
    assert_eq!(result, new(0, no_more(0)));
    assert_eq!(
        walks(&chunk),
        [
            "range_fault (0..16, Snapshot)",
            "range_fault (0..4, Write)",
            "range_fault (0..1, Write)"
        ]
    );
    // What is refused of that is final.
    say(&chunk.script.range_fault, [Trouble::None, Trouble::Refused]);
    let refused = chunk.serve_around(30..31, Need::Write, 0);
    assert_eq!(refused, Err(FaultError::Host("refused")));
    assert_eq!(walks(&chunk).len(), 2);
}

#[test]
fn a_stream_is_read_ahead() {
    let chunk = Double::long(512, "-");
    chunk.fills.set(true);
    let mut at = 0;
    for (len, looked) in [(4, 0..16), (4, 0..16), (8, 0..16), (16, 0..32)] {
        let demanded = at..at + 4;
        assert_eq!(served(&chunk, demanded.clone(), Need::Write), Served::New);
        let faulted = at..at + len;
        assert_eq!(
            walks(&chunk),
            [
                format!("range_fault {:?}", (looked, Need::Snapshot)),
                format!("range_fault {:?}", (faulted, Need::Write))
            ]
        );
        at += len;
        assert_eq!(live(&chunk), at);
    }
    // Where it goes on is not where it would have: no stream.
    assert_eq!(served(&chunk, 100..101, Need::Write), Served::New);
    assert_eq!(walks(&chunk)[1], "range_fault (100..101, Write)");
}

#[test]
fn a_stream_goes_on_in_the_chunks_that_follow() {
    let chunk = Double::long(32, &"w".repeat(32));
    let ahead = Ahead {
        entries: 8,
        next: 80,
    };
    let result = chunk.serve_around(0..8, Need::Write, 40);
    assert_eq!(result, new(24, ahead));
    assert_eq!(live(&chunk), 32);
    assert_eq!(carried(&chunk), 80);
    let next = Double::long(32, &"w".repeat(32));
    let part = Fault {
        slots: Slots::new(0..8),
        need: Need::Write,
        around: Around::Stream { next: 80 },
    };
    assert_eq!(next.serve_fault(&part), new(0, no_more(0)));
    assert_eq!(walks(&next), ["range_fault (0..8, Write)"]);
    assert_eq!(carried(&next), 0, "it has not come to the end of it");
    let result = next.serve_around(8..9, Need::Write, 0);
    let ahead = Ahead {
        entries: 56,
        next: 160,
    };
    assert_eq!(result, new(23, ahead));
    assert_eq!(carried(&next), 160);
}

#[test]
fn what_may_not_be_read_ahead_is_not() {
    let chunk = Double::long(64, &"w".repeat(64));
    chunk.may_read_ahead.set(6);
    let result = chunk.serve_around(0..4, Need::Write, 100);
    assert_eq!(result, new(60, no_more(0)), "and nothing of the next chunk");
    // Up to there, and then what is there already.
    assert_eq!(
        walks(&chunk),
        [
            "range_fault (0..16, Snapshot)",
            "range_fault (0..64, Snapshot)"
        ]
    );
}

#[test]
fn a_fault_that_is_repeated_goes_on_with_its_stream() {
    let chunk = Double::long(64, "-");
    chunk.fills.set(true);
    for page in 0..2 {
        assert_eq!(served(&chunk, page..page + 1, Need::Read), Served::New);
    }
    say(
        &chunk.script.range_fault,
        [Trouble::None, Trouble::Refused, Trouble::Refused],
    );
    assert!(chunk.serve_around(2..3, Need::Write, 0).is_err());
    chunk.calls();
    assert_eq!(served(&chunk, 2..3, Need::Read), Served::New);
    assert_eq!(walks(&chunk)[1], "range_fault (2..4, Read)");
}
