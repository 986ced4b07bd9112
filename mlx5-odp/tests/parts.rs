// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The parts that need no model of memory and device: the event queue, and where a region lies.

#[path = "model/eq.rs"]
mod eq;

use eq::Eq;
use firmware_cmds::{Eqe, EventType, Iova};
use hmm_abi::{Geometry, Indices};
use mlx5_odp::{drain, moment, Placement, SPARE};

// --- Event queue -----------------------------------------------------------------

/// An event that can be told from others.
fn eqe(mark: usize) -> Eqe {
    let mark = u8::try_from(mark % 256).unwrap();
    Eqe::new(EventType::PAGE_FAULT, 0, &[mark], true).unwrap()
}

/// A queue in which so many events are, and which has memory for so many.
fn queue(events: usize, slots: usize, consumed: u32) -> Eq {
    let mut queue = Eq::new(slots, consumed);
    queue.written.extend((0..events).map(eqe));
    queue
}

/// The marks and the numbers of what was handed out.
fn dispatched(queue: &Eq) -> Vec<(u8, u32)> {
    let event = |event: &mlx5_odp::Event| (event.eqe.data[0], event.number);
    queue.dispatched.iter().map(event).collect()
}

#[test]
fn events_are_dispatched_in_order_and_the_queue_is_armed() {
    let mut queue = queue(10, 100, 7);
    drain(&mut queue);
    let all: Vec<_> = (0..10).map(|n| (n, u32::from(n) + 7)).collect();
    assert_eq!(dispatched(&queue), all);
    assert_eq!(queue.told, [(10, true)]);
    assert_eq!(queue.later, 0);

    // With nothing to do it is armed all the same.
    drain(&mut queue);
    assert_eq!(queue.told.last(), Some(&(0, true)));
}

#[test]
fn without_memory_nothing_is_lost() {
    let mut queue = queue(10, 4, 0);
    drain(&mut queue);
    assert_eq!(dispatched(&queue), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    assert_eq!(queue.written.len(), 6, "what was not dispatched is there");
    assert_eq!(queue.later, 1);
    assert_eq!(queue.told, [(4, true)]);

    queue.slots = 100;
    drain(&mut queue);
    let all: Vec<_> = (0..10).map(|n| (n, u32::from(n))).collect();
    assert_eq!(dispatched(&queue), all, "each once, by its number");
}

#[test]
fn the_device_is_told_before_its_spare_entries_run_out() {
    let mut queue = queue(510, 1000, 0);
    drain(&mut queue);
    assert_eq!(queue.dispatched.len(), 510);
    assert!(queue.told.iter().all(|(count, _)| *count <= SPARE));
    let armed: Vec<_> = queue.told.iter().map(|(_, arm)| *arm).collect();
    assert_eq!(armed, [false, false, false, true]);
    // Numbers go on over what was told.
    assert!((0..510).eq(dispatched(&queue).iter().map(|(_, number)| *number)));
}

#[test]
fn numbers_wrap() {
    let mut queue = queue(4, 100, u32::MAX - 1);
    assert_eq!(moment(&queue), 2);
    drain(&mut queue);
    let numbers = dispatched(&queue);
    assert_eq!(numbers, [(0, u32::MAX - 1), (1, u32::MAX), (2, 0), (3, 1)]);
    assert_eq!(moment(&queue), 2);
}

/// Whatever was written before it has a lower number, consumed or not; whatever is written later
/// has not.
#[test]
fn a_moment_lies_between_what_was_written_and_what_will_be() {
    let mut queue = queue(0, 4, 40);
    assert_eq!(moment(&queue), 40);
    for _ in 0..6 {
        let before = moment(&queue);
        queue.written.push_back(eqe(0));
        assert_eq!(moment(&queue), before + 1);
    }
    // Two stay in the queue.
    drain(&mut queue);
    assert_eq!(queue.written.len(), 2);
    assert_eq!(moment(&queue), 46);
    queue.slots = 100;
    queue.written.push_back(eqe(0));
    drain(&mut queue);
    assert_eq!(queue.dispatched.back().unwrap().number, 46);
}

// --- Placement -------------------------------------------------------------------

const PAGE: u32 = 12;

/// 4 pages: bytes 0x1100 to 0x5000 of the process, IOVA 0x9100 on.
fn placement() -> Placement {
    Placement {
        iova: Iova::new(0x9100),
        address: 0x1100,
        geometry: Geometry::of_span(0x1000..0x5000, PAGE, PAGE).unwrap(),
        writable: true,
    }
}

fn entries(first: usize, end: usize) -> Option<Indices> {
    Some(Indices::new(first..end))
}

#[test]
fn exact_ranges_lie_within_the_pages() {
    let placement = placement();
    let exactly = |at, bytes| placement.exactly(Iova::new(at), bytes);
    assert_eq!(exactly(0x9100, 1), entries(0, 1));
    assert_eq!(exactly(0x9fff, 1), entries(0, 1));
    assert_eq!(exactly(0x9fff, 2), entries(0, 2));
    assert_eq!(exactly(0xa000, 0x1000), entries(1, 2));
    assert_eq!(exactly(0x9100, 0x3f00), entries(0, 4));
    assert_eq!(exactly(0x9100, 0x3f01), None, "a byte behind the pages");
    assert_eq!(exactly(0x90ff, 1), None, "before the MR");
    assert_eq!(exactly(0x9100, 0), None);
    assert_eq!(exactly(0, 1), None);
    assert_eq!(exactly(u64::MAX, 1), None);
    assert_eq!(exactly(0x9100, u64::MAX), None);
    assert_eq!(exactly(u64::MAX, u64::MAX), None);
}

#[test]
fn clamped_ranges_are_cut_to_the_pages() {
    let placement = placement();
    let clamped = |at, before, bytes| placement.clamped(Iova::new(at), before, bytes);
    assert_eq!(clamped(0xa100, 0, 16), entries(1, 2));
    assert_eq!(clamped(0xa100, 0x800, 16), entries(0, 2));
    assert_eq!(clamped(0xafff, 0, 2), entries(1, 3));
    assert_eq!(clamped(0xa100, 0x8000, u64::MAX), entries(0, 4));
    // The memory scheme rounds down to pages, perhaps to before the MR.
    assert_eq!(clamped(0x9000, 0, 0x1000), entries(0, 1));
    assert_eq!(clamped(0x8000, 0, 0x1000), None);
    assert_eq!(clamped(0xd000, 0, 0x1000), None, "behind the MR");
    assert_eq!(clamped(0x9100, 0, 0), None);
    assert_eq!(clamped(0, u64::MAX, 1), None);
    assert_eq!(clamped(u64::MAX, 0, u64::MAX), None);
    // Only what is before `at` is asked for of what lies before the end.
    assert_eq!(clamped(u64::MAX, u64::MAX, 0), entries(0, 4));
}

/// The last page below the end of both address spaces but one: the end can be named.
#[test]
fn addresses_at_the_borders() {
    let high = Placement {
        iova: Iova::new(u64::MAX - 0x1fff),
        address: usize::MAX - 0x2fff,
        geometry: Geometry::of_span(usize::MAX - 0x2fff..usize::MAX - 0xfff, PAGE, PAGE).unwrap(),
        writable: true,
    };
    let last = Iova::new(u64::MAX - 0xfff);
    assert_eq!(high.exactly(last, 0x1000), entries(1, 2));
    assert_eq!(high.exactly(last, 0x1001), None);
    assert_eq!(high.exactly(last, u64::MAX), None);
    assert_eq!(high.exactly(high.iova, 0x2000), entries(0, 2));
    assert_eq!(high.clamped(last, 0, u64::MAX), entries(1, 2));
    assert_eq!(high.clamped(last, u64::MAX, 0x1000), entries(0, 2));
    assert_eq!(high.clamped(Iova::new(0), 0, u64::MAX), entries(0, 2));
    assert_eq!(high.clamped(Iova::new(0), 0, 0x1000), None);

    // Low in the process, anywhere for the device.
    let low = Placement {
        iova: Iova::new(0),
        address: 0,
        geometry: Geometry::of_span(0..0x2000, PAGE, PAGE).unwrap(),
        writable: true,
    };
    assert_eq!(low.exactly(Iova::new(0), 1), entries(0, 1));
    assert_eq!(low.exactly(Iova::new(1 << 32), 1), None);
    assert_eq!(low.clamped(Iova::new(0), u64::MAX, 1), entries(0, 1));
    assert_eq!(low.clamped(Iova::new(u64::MAX), 1, u64::MAX), None);
}

#[test]
fn entries_of_2_mib_count_512_base_pages() {
    let huge = Placement {
        iova: Iova::new(0x4000_1000),
        address: 0x20_1000,
        geometry: Geometry::of_span(0x20_0000..0x80_0000, PAGE, 21).unwrap(),
        writable: true,
    };
    let at = |offset: u64| Iova::new(0x4000_0000 + offset);
    assert_eq!(huge.exactly(at(0x1f_ffff), 2), entries(0, 2));
    assert_eq!(huge.exactly(at(0x20_0000), 1), entries(1, 2));
    assert_eq!(huge.clamped(at(0x20_0000), 1, 1), entries(0, 2));
    assert_eq!(huge.base_pages(3), 3 * 512);
    assert_eq!(placement().base_pages(3), 3);
}
