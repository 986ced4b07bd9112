// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The parts that need no model: the event queue, the ranges, the memory of repeated faults.

use std::collections::VecDeque;

use firmware_cmds::{Eqe, EventType, Iova, Mkey};
use mlx5_odp::{
    drain, EventQueue, PageIndex, PageRun, PageShift, Placement, Repeats, UserVa, VaRange, SPARE,
};

// --- Event queue -----------------------------------------------------------------

#[derive(Default)]
struct Queue {
    events: VecDeque<u8>,
    /// Events that there is memory for.
    slots: usize,
    dispatched: Vec<u8>,
    later: u32,
    consumed: Vec<(u32, bool)>,
}

impl EventQueue for Queue {
    type Slot = ();

    fn peek(&self, ahead: u32) -> Option<Eqe> {
        let number = *self.events.get(usize::try_from(ahead).unwrap())?;
        Some(Eqe::new(EventType::PAGE_FAULT, 0, &[number], true).unwrap())
    }

    fn slot(&mut self) -> Option<()> {
        self.slots = self.slots.checked_sub(1)?;
        Some(())
    }

    fn dispatch(&mut self, (): (), event: Eqe) {
        self.dispatched.push(event.data[0]);
    }

    fn drain_later(&mut self) {
        self.later += 1;
    }

    fn consume(&mut self, count: u32, arm: bool) {
        self.events.drain(..usize::try_from(count).unwrap());
        self.consumed.push((count, arm));
    }
}

#[test]
fn events_are_dispatched_in_order_and_the_queue_is_armed() {
    let mut queue = Queue {
        events: (0..10).collect(),
        slots: 100,
        ..Default::default()
    };
    drain(&mut queue);
    assert!(queue.dispatched.iter().copied().eq(0..10));
    assert_eq!(queue.consumed, [(10, true)]);
    assert_eq!(queue.later, 0);

    // With nothing to do it is armed all the same.
    drain(&mut queue);
    assert_eq!(queue.consumed.last(), Some(&(0, true)));
}

#[test]
fn without_memory_nothing_is_lost() {
    let mut queue = Queue {
        events: (0..10).collect(),
        slots: 4,
        ..Default::default()
    };
    drain(&mut queue);
    assert_eq!(queue.dispatched, [0, 1, 2, 3]);
    assert_eq!(
        queue.events.len(),
        6,
        "what was not dispatched is still there"
    );
    assert_eq!(queue.later, 1);
    assert_eq!(queue.consumed, [(4, true)]);

    queue.slots = 100;
    drain(&mut queue);
    assert!(queue.dispatched.iter().copied().eq(0..10));
}

#[test]
fn the_device_is_told_before_its_spare_entries_run_out() {
    let mut queue = Queue {
        events: (0..u8::MAX).chain(0..u8::MAX).collect(),
        slots: 1000,
        ..Default::default()
    };
    drain(&mut queue);
    assert_eq!(queue.dispatched.len(), 510);
    assert!(queue.consumed.iter().all(|(count, _)| *count <= SPARE));
    let armed: Vec<_> = queue.consumed.iter().map(|(_, arm)| *arm).collect();
    assert_eq!(armed, [false, false, false, true]);
}

// --- Ranges ------------------------------------------------------------------------

/// 3 pages and a bit: bytes 0x1100 to 0x4200 of the process, IOVA 0x9100 on.
fn placement() -> Placement {
    Placement {
        iova: Iova::new(0x9100),
        address: UserVa(0x1100),
        pages: VaRange::new(UserVa(0x1000), UserVa(0x5000)).unwrap(),
        shift: PageShift::BASE,
        writable: true,
    }
}

fn range(start: u64, end: u64) -> Option<VaRange> {
    VaRange::new(UserVa(start), UserVa(end))
}

#[test]
fn exact_ranges_lie_within_the_pages() {
    let placement = placement();
    let exactly = |at, bytes| placement.exactly(Iova::new(at), bytes);
    assert_eq!(exactly(0x9100, 1), range(0x1100, 0x1101));
    assert_eq!(exactly(0x9100, 0x3f00), range(0x1100, 0x5000));
    assert_eq!(exactly(0x9100, 0x3f01), None);
    assert_eq!(exactly(0x90ff, 1), None, "before the MR");
    assert_eq!(exactly(0x9100, 0), None);
    assert_eq!(exactly(u64::MAX, 1), None);
    assert_eq!(exactly(0x9100, u64::MAX), None);
}

#[test]
fn clamped_ranges_are_cut_to_the_pages() {
    let placement = placement();
    let clamped = |at, before, bytes| placement.clamped(Iova::new(at), before, bytes);
    assert_eq!(clamped(0xa100, 0, 16), range(0x2100, 0x2110));
    assert_eq!(clamped(0xa100, 0x800, 16), range(0x1900, 0x2110));
    assert_eq!(clamped(0xa100, 0x8000, u64::MAX), range(0x1000, 0x5000));
    // The memory scheme rounds down to pages, perhaps to before the MR.
    assert_eq!(clamped(0x9000, 0, 0x1000), range(0x1000, 0x2000));
    assert_eq!(clamped(0x8000, 0, 0x1000), None);
    assert_eq!(clamped(0xd000, 0, 0x1000), None, "behind the MR");
    assert_eq!(clamped(0, u64::MAX, 1), None);
    assert_eq!(clamped(u64::MAX, 0, u64::MAX), None);
}

#[test]
fn pages_of_a_range_are_those_it_touches() {
    let mut placement = placement();
    let run = |first, end| PageRun::new(PageIndex(first), PageIndex(end));
    assert_eq!(
        placement.pages_of(range(0x1fff, 0x2001).unwrap()),
        run(0, 2)
    );
    assert_eq!(
        placement.pages_of(range(0x2000, 0x3000).unwrap()),
        run(1, 2)
    );
    assert_eq!(placement.va_of(run(1, 3)), range(0x2000, 0x4000));
    assert_eq!(placement.va_of(run(1, 1)), None);

    placement.shift = PageShift::new(21).unwrap();
    placement.pages = range(0x20_0000, 0x80_0000).unwrap();
    assert_eq!(
        placement.pages_of(range(0x3f_ffff, 0x40_0001).unwrap()),
        run(0, 2)
    );
    assert_eq!(placement.shift.base_pages(), 512);
    assert_eq!(PageShift::new(11), None);
}

// --- Repeated faults -----------------------------------------------------------------

const KEY: Mkey = Mkey::new(0x1200);
const OTHER: Mkey = Mkey::new(0x3400);

#[test]
fn many_in_a_short_time_say_nothing() {
    let mut repeats = Repeats::new();
    assert!((0..10_000).all(|n| !repeats.note(KEY, PageIndex(1), n / 11)));
}

#[test]
fn few_in_a_long_time_say_nothing() {
    let mut repeats = Repeats::new();
    // Every 11 s is quiet enough to start anew, each time.
    assert!((0..1000).all(|n| !repeats.note(KEY, PageIndex(1), n * 11_000)));
    assert!((0..20).all(|n| !repeats.note(OTHER, PageIndex(1), n * 500)));
}

#[test]
fn many_in_a_long_time_are_certain_and_then_forgotten() {
    let mut repeats = Repeats::new();
    let certain: Vec<u64> = (0..100)
        .filter(|n| repeats.note(KEY, PageIndex(1), n * 50))
        .collect();
    assert_eq!(certain, [31, 63, 95]);
}

#[test]
fn pages_and_keys_are_told_apart() {
    let mut repeats = Repeats::new();
    for n in 0..30 {
        assert!(!repeats.note(KEY, PageIndex(1), n * 100));
        assert!(!repeats.note(KEY, PageIndex(2), n * 100));
        assert!(!repeats.note(OTHER, PageIndex(1), n * 100));
    }
}

#[test]
fn a_full_table_serves_the_others_first() {
    let mut repeats = Repeats::new();
    let mut certain = [false; 40];
    for n in 0..200 {
        for page in 0..40 {
            let verdict = repeats.note(KEY, PageIndex(page), n * 50);
            certain[usize::try_from(page).unwrap()] |= verdict;
        }
    }
    assert_eq!(certain, [true; 40]);
}
