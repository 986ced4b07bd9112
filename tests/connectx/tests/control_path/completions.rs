// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Completion queues: ownership, arming, overrun.

use std::time::Duration;

use connectx::caps::CapType;
use connectx::completion::cqe_opcode;
use connectx::ifc::cqc;
use connectx::{Cqe, GuestMemory};
use firmware_cmds::{Cqn, DmaAddr, EventType, Qpn};

use crate::rig::{command, with_pas, Rig};

const LOG_SIZE: u32 = 2;
const SIZE: u64 = 1 << LOG_SIZE;
/// MODIFY_CQ: the modifier, and the fields that a new ring needs.
const RESIZE: u16 = 1;
const RING: u32 = 7;
/// Last byte of an entry that was never written.
const INVALID: u8 = 0xf1;
const SOLICITED_ONLY: u32 = 1 << 24;

struct Queue {
    rig: Rig,
    uar: u32,
    eqn: u32,
    cqn: u32,
    ring: u64,
    dbr: u64,
}

impl Queue {
    fn new() -> Self {
        let mut rig = Rig::ready();
        let uar = rig.alloc_uar();
        let (eqn, _) = rig.create_eq(uar, &[EventType::CQ_ERROR], 6, 1);
        let (cqn, ring, dbr) = rig.create_cq(uar, eqn, LOG_SIZE);
        Self {
            rig,
            uar,
            eqn,
            cqn,
            ring,
            dbr,
        }
    }

    fn push(&mut self, counter: u16, solicited: bool) {
        let cqe = Cqe {
            opcode: cqe_opcode::RESP_SEND,
            qpn: Qpn::truncate(0x77),
            user_index: 0x1234,
            byte_count: 99,
            wqe_counter: counter,
            solicited,
            ..Cqe::default()
        };
        self.rig.device.push_cqe(Cqn::truncate(self.cqn), &cqe);
    }

    /// Asks for a ring of `1 << log_size` entries; returns the status, and the ring.
    fn resize(&mut self, log_size: u32, select: u32) -> (u8, u64) {
        let ring = self.rig.pages(64 << log_size);
        let mut input = with_pas(0x403, ring, 64 << log_size);
        input[6..8].copy_from_slice(&RESIZE.to_be_bytes());
        input[8..12].copy_from_slice(&self.cqn.to_be_bytes());
        input[12..16].copy_from_slice(&select.to_be_bytes());
        cqc::LOG_CQ_SIZE.set(&mut input[0x10..0x50], log_size.into());
        for entry in 0..1 << log_size {
            let at = DmaAddr::new(ring + entry * 64 + 63);
            self.rig.mem.write(at, &[INVALID]).unwrap();
        }
        (self.rig.command(&input, 16).status(), ring)
    }

    fn consume(&mut self, consumer: u32) {
        self.rig
            .mem
            .write(DmaAddr::new(self.dbr), &consumer.to_be_bytes())
            .unwrap();
    }

    fn arm(&mut self, flags: u32, consumer: u32) {
        let offset = u64::from(self.uar) * 4096 + 0x20;
        self.rig.write64(offset, flags | consumer, self.cqn);
    }

    /// Events written so far.
    fn events(&self) -> u64 {
        self.rig.device.counters.eqes
    }

    fn counter(&self, index: u64) -> Option<u16> {
        let entry = self.rig.entry(self.ring, index % SIZE);
        let valid = entry[0x3f] >> 4 != cqe_opcode::INVALID;
        (valid && u64::from(entry[0x3f] & 1) == (index / SIZE) & 1)
            .then(|| u16::from_be_bytes([entry[0x3c], entry[0x3d]]))
    }
}

#[test]
fn owner_changes_with_every_lap_and_fields_are_in_place() {
    let mut queue = Queue::new();
    for index in 0..3 * SIZE {
        assert_eq!(queue.counter(index), None);
        let counter = u16::try_from(index).unwrap();
        queue.push(counter, false);
        assert_eq!(queue.counter(index), Some(counter));
        queue.consume(u32::from(counter) + 1);
    }
    let entry = queue.rig.entry(queue.ring, 0);
    assert_eq!(entry[0x20..0x24], 0x1234_u32.to_be_bytes());
    assert_eq!(entry[0x2c..0x30], 99_u32.to_be_bytes());
    assert_eq!(entry[0x38..0x3c], 0x77_u32.to_be_bytes());
}

#[test]
fn one_event_per_arming() {
    let mut queue = Queue::new();
    queue.push(0, false);
    assert_eq!(queue.events(), 0);
    queue.arm(0, 0);
    assert_eq!(queue.events(), 1);
    queue.push(1, false);
    assert_eq!(queue.events(), 1);
    queue.arm(0, 2);
    assert_eq!(queue.events(), 1);
    queue.consume(2);
    queue.push(2, false);
    queue.push(3, false);
    assert_eq!(queue.events(), 2);
}

/// perftest's `-e`: take the event, ask for the next, then poll one entry. An event too many
/// breaks its lockstep: it posts before there is room, or waits for what was polled.
#[test]
fn an_entry_is_told_of_once() {
    let mut queue = Queue::new();
    queue.arm(0, 0);
    for index in 0..5 {
        queue.push(0, false);
        assert_eq!(queue.events(), u64::from(index) + 1);
        queue.arm(0, index);
        assert_eq!(queue.events(), u64::from(index) + 1);
        queue.consume(index + 1);
    }
    // What came after the event and before the doorbell is told of at once.
    queue.push(0, false);
    queue.push(0, false);
    assert_eq!(queue.events(), 6);
    queue.arm(0, 5);
    assert_eq!(queue.events(), 7);
    // Unless it was polled meanwhile.
    queue.push(0, false);
    queue.consume(8);
    queue.arm(0, 8);
    assert_eq!(queue.events(), 7);
}

#[test]
fn armed_for_solicited_waits_for_a_solicited_or_failed_one() {
    let mut queue = Queue::new();
    queue.push(0, false);
    queue.arm(SOLICITED_ONLY, 0);
    queue.push(1, false);
    assert_eq!(queue.events(), 0);
    queue.push(2, true);
    assert_eq!(queue.events(), 1);
    // A solicited one that came meanwhile counts, another one does not.
    queue.consume(3);
    queue.push(3, false);
    queue.arm(SOLICITED_ONLY, 2);
    assert_eq!(queue.events(), 1);
    queue.arm(0, 3);
    assert_eq!(queue.events(), 2);
    queue.push(4, true);
    queue.arm(SOLICITED_ONLY, 3);
    assert_eq!(queue.events(), 3);
    queue.arm(SOLICITED_ONLY, 5);
    assert_eq!(queue.events(), 3);
    let failed = Cqe {
        opcode: cqe_opcode::REQ_ERR,
        syndrome: 5,
        ..Cqe::default()
    };
    queue.rig.device.push_cqe(Cqn::truncate(queue.cqn), &failed);
    assert_eq!(queue.events(), 4);
    let entry = queue.rig.entry(queue.ring, 5 % SIZE);
    assert_eq!((entry[0x3f] >> 4, entry[0x37]), (cqe_opcode::REQ_ERR, 5));
    assert_eq!(queue.rig.device.counters.error_cqes, 1);
}

#[test]
fn doorbell_in_two_halves() {
    let mut queue = Queue::new();
    let offset = u64::from(queue.uar) * 4096 + 0x20;
    queue.push(0, false);
    queue.rig.write32(offset, 0);
    assert_eq!(queue.events(), 0);
    queue.rig.write32(offset + 4, queue.cqn);
    assert_eq!(queue.events(), 1);
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
}

#[test]
fn a_half_is_not_kept_beyond_its_page() {
    let mut queue = Queue::new();
    let other = queue.rig.alloc_uar();
    let offset = u64::from(other) * 4096 + 0x20;
    queue.rig.write32(offset, 0);
    let mut dealloc = command(0x803, 0, 16);
    dealloc[8..12].copy_from_slice(&other.to_be_bytes());
    assert_eq!(queue.rig.command(&dealloc, 16).status(), 0);
    queue
        .rig
        .device
        .uars
        .pages
        .insert(firmware_cmds::Uar::truncate(other));
    queue.rig.write32(offset + 4, queue.cqn);
    assert_eq!(queue.rig.device.counters.doorbells, 0);
    assert_eq!(queue.rig.device.counters.doorbells_refused, 1);
}

/// As when a user closes the device and leaves the queue to the kernel.
#[test]
fn a_queue_may_outlive_its_page_and_nobody_gets_that_page_meanwhile() {
    let mut queue = Queue::new();
    let page = queue.rig.alloc_uar();
    let (cqn, ..) = queue.rig.create_cq(page, queue.eqn, LOG_SIZE);
    let mut dealloc = command(0x803, 0, 16);
    dealloc[8..12].copy_from_slice(&page.to_be_bytes());
    assert_eq!(queue.rig.command(&dealloc, 16).status(), 0);
    assert_eq!(queue.rig.command(&dealloc, 16).status(), 5);
    let alloc = command(0x802, 0, 16);
    let mut pages: Vec<u32> = (0..8192)
        .map(|_| queue.rig.command(&alloc, 16))
        .take_while(|answer| answer.status() == 0)
        .map(|answer| answer.word(8))
        .collect();
    assert!(!pages.contains(&page));
    let mut destroy = command(0x401, 0, 16);
    destroy[8..12].copy_from_slice(&cqn.to_be_bytes());
    assert_eq!(queue.rig.command(&destroy, 16).status(), 0);
    pages.push(queue.rig.alloc_uar());
    assert_eq!(pages.last(), Some(&page));
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
}

#[test]
fn an_overrun_is_the_users_and_raises_an_event() {
    let mut queue = Queue::new();
    for counter in 0..6 {
        queue.push(counter, false);
    }
    assert_eq!(queue.counter(0), Some(0));
    assert_eq!(queue.rig.device.counters.cqes, SIZE);
    assert_eq!(queue.events(), 1);
    assert_eq!(queue.rig.device.counters.cq_overruns, 1);
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
}

#[test]
fn an_eq_with_cqs_cannot_be_destroyed() {
    let mut queue = Queue::new();
    let mut destroy = command(0x302, 0, 16);
    destroy[11] = u8::try_from(queue.eqn).unwrap();
    assert_eq!(queue.rig.command(&destroy, 16).status(), 6);
    let mut destroy_cq = command(0x401, 0, 16);
    destroy_cq[8..12].copy_from_slice(&queue.cqn.to_be_bytes());
    assert_eq!(queue.rig.command(&destroy_cq, 16).status(), 0);
    assert_eq!(queue.rig.command(&destroy_cq, 16).status(), 5);
    assert_eq!(queue.rig.command(&destroy, 16).status(), 0);
}

/// What a consumer finds that does as libmlx5 does: the queue in two rings, what was not
/// consumed before the RESIZE_CQ moved over by the consumer.
#[test]
fn no_completion_is_lost_or_doubled_by_a_resize() {
    for log_size in [1, 3] {
        let mut queue = Queue::new();
        for counter in 0..3 {
            queue.push(counter, false);
        }
        queue.consume(2);
        queue.arm(0, 3);
        let (status, ring) = queue.resize(log_size, RING);
        assert_eq!(status, 0);
        // It is not a completion: nobody is woken, and it is not counted.
        assert_eq!(queue.events(), 0);
        assert_eq!(queue.rig.device.counters.cqes, 3);
        let end = queue.rig.entry(queue.ring, 3);
        assert_eq!(end[0x3f], cqe_opcode::RESIZE_CQ << 4);
        // The consumer moves entry 2 to place 3 of the new ring and goes on from there.
        queue.consume(3);
        let size = 1 << log_size;
        for (counter, index) in (3..).zip(4..4 + 3 * size) {
            queue.push(counter, false);
            let entry = queue.rig.entry(ring, index % size);
            assert_eq!(entry[0x3c..0x3e], counter.to_be_bytes());
            assert_eq!(u64::from(entry[0x3f] & 1), (index / size) & 1);
            queue.consume(u32::try_from(index).unwrap() + 1);
        }
        assert_eq!(queue.rig.device.counters.cq_overruns, 0);
        let query = command(0x402, 0, 16);
        let mut input = query;
        input[8..12].copy_from_slice(&queue.cqn.to_be_bytes());
        let answer = queue.rig.command(&input, 0x110);
        let context = &answer.output[0x10..0x50];
        assert_eq!(cqc::LOG_CQ_SIZE.get(context), u64::from(log_size));
    }
}

#[test]
fn a_resize_that_loses_completions_is_refused() {
    const BAD_PARAM: u8 = 3;
    const BAD_RES_STATE: u8 = 9;
    const BAD_SIZE_OUTS_CQES: u8 = 0x40;
    let mut queue = Queue::new();
    assert_eq!(queue.resize(3, RING & !1).0, BAD_PARAM);
    queue.push(0, false);
    queue.push(1, false);
    // Two entries fill the ring that is asked for, and leave no place for the next.
    assert_eq!(queue.resize(1, RING).0, BAD_SIZE_OUTS_CQES);
    queue.push(2, false);
    queue.push(3, false);
    assert_eq!(queue.resize(3, RING).0, BAD_RES_STATE);
    // It goes on as if nothing had been asked.
    queue.consume(4);
    queue.push(4, false);
    assert_eq!(queue.counter(4), Some(4));
    assert_eq!(queue.resize(3, RING).0, 0);
    assert_eq!(queue.rig.device.counters.cq_overruns, 0);
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
}

#[test]
fn completions_carry_the_time_that_the_clock_shows() {
    let mut queue = Queue::new();
    let khz = connectx::ifc::cmd_hca_cap::DEVICE_FREQUENCY_KHZ
        .get(queue.rig.device.hca.current().get(CapType::General));
    for (index, millis) in [3, 5_000_000].into_iter().enumerate() {
        queue.rig.now = Duration::from_millis(millis);
        let high = u64::from(queue.rig.read32(0x1000));
        let clock = high << 32 | u64::from(queue.rig.read32(0x1004));
        assert_eq!(clock, millis * khz);
        queue.push(0, false);
        let entry = queue.rig.entry(queue.ring, u64::try_from(index).unwrap());
        assert_eq!(entry[0x30..0x38], clock.to_be_bytes());
    }
}
