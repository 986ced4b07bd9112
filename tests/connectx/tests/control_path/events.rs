// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Event queues: ownership, wrapping, arming, overflow.

use firmware_cmds::{Eqe, EventType};

use crate::rig::{command, Post, Rig};

const LOG_SIZE: u32 = 3;
const SIZE: u64 = 1 << LOG_SIZE;
const VECTOR: u64 = 5;

struct Queue {
    rig: Rig,
    uar: u32,
    eqn: u32,
    ring: u64,
}

impl Queue {
    fn new() -> Self {
        let mut rig = Rig::ready();
        let uar = rig.alloc_uar();
        let (eqn, ring) = rig.create_eq(uar, &[EventType::PAGE_FAULT], LOG_SIZE, VECTOR);
        Self {
            rig,
            uar,
            eqn,
            ring,
        }
    }

    fn raise(&mut self, tag: u32) {
        let eqe = Eqe::new(EventType::PAGE_FAULT, 2, &tag.to_be_bytes(), false).unwrap();
        assert!(self.rig.device.raise(eqe));
    }

    /// The doorbell that arms.
    fn arm(&mut self, consumer: u32) {
        let offset = u64::from(self.uar) * 4096 + 0x40;
        self.rig.write32(offset, self.eqn << 24 | consumer);
    }

    fn update(&mut self, consumer: u32) {
        let offset = u64::from(self.uar) * 4096 + 0x48;
        self.rig.write32(offset, self.eqn << 24 | consumer);
    }

    /// The tag of the event at an index, if it is the driver's.
    fn event(&self, index: u64) -> Option<u32> {
        let entry = self.rig.entry(self.ring, index % SIZE);
        let owner = u64::from(entry[0x3f]);
        if owner != (index / SIZE) & 1 {
            return None;
        }
        assert_eq!((entry[1], entry[3]), (EventType::PAGE_FAULT.0, 2));
        Some(u32::from_be_bytes(entry[0x20..0x24].try_into().unwrap()))
    }
}

#[test]
fn owner_changes_with_every_lap() {
    let mut queue = Queue::new();
    for index in 0..4 * SIZE {
        assert_eq!(queue.event(index), None);
        let tag = u32::try_from(index).unwrap();
        queue.raise(tag);
        assert_eq!(queue.event(index), Some(tag));
        queue.update(tag + 1);
    }
}

#[test]
fn one_interrupt_per_arming() {
    let mut queue = Queue::new();
    queue.raise(0);
    assert!(queue.rig.vectors.take().is_empty());
    // Armed with events waiting: at once.
    queue.arm(0);
    assert_eq!(queue.rig.vectors.take(), [5]);
    queue.raise(1);
    assert!(queue.rig.vectors.take().is_empty());
    // Armed with nothing waiting: at the next event, once.
    queue.arm(2);
    assert!(queue.rig.vectors.take().is_empty());
    queue.raise(2);
    queue.raise(3);
    assert_eq!(queue.rig.vectors.take(), [5]);
    // An update alone does not arm.
    queue.update(4);
    queue.raise(4);
    assert!(queue.rig.vectors.take().is_empty());
}

#[test]
fn a_full_queue_keeps_events_back() {
    let mut queue = Queue::new();
    let count = u32::try_from(SIZE).unwrap() + 3;
    for tag in 0..count {
        queue.raise(tag);
    }
    assert_eq!(queue.event(SIZE), None);
    assert_eq!(queue.event(0), Some(0));
    queue.arm(2);
    assert_eq!(queue.rig.vectors.take(), [5]);
    assert_eq!(queue.event(SIZE), Some(8));
    assert_eq!(queue.event(SIZE + 1), Some(9));
    assert_eq!(queue.event(SIZE + 2), None);
    queue.update(3);
    assert_eq!(queue.event(SIZE + 2), Some(10));
}

#[test]
fn a_queue_that_nobody_empties_keeps_a_bounded_number_back() {
    const KEPT: u32 = 1 << 16;
    let mut queue = Queue::new();
    let size = u32::try_from(SIZE).unwrap();
    for tag in 0..size + KEPT {
        queue.raise(tag);
    }
    let counters = queue.rig.device.counters;
    assert_eq!((counters.eq_full, counters.eqes_lost), (KEPT.into(), 0));
    queue.raise(0);
    let counters = queue.rig.device.counters;
    assert_eq!(
        (counters.eq_full, counters.eqes_lost),
        (u64::from(KEPT) + 1, 1)
    );
    for consumer in 1..=KEPT {
        queue.update(consumer);
    }
    assert_eq!(queue.event(u64::from(KEPT)), Some(KEPT));
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
}

#[test]
fn events_without_a_queue_are_lost() {
    let mut queue = Queue::new();
    assert!(!queue
        .rig
        .device
        .raise(Eqe::empty(EventType::PORT_CHANGE, 1)));
}

#[test]
fn as_many_queues_and_vectors_as_there_are() {
    use connectx::caps::CapType;
    use connectx::ifc::cmd_hca_cap as general;
    let mut rig = Rig::ready();
    let uar = rig.alloc_uar();
    let caps = *rig.device.hca.current().get(CapType::General);
    let count = general::MAX_NUM_EQS.get(&caps);
    let ring = rig.pages(64);
    let create = |rig: &mut Rig, vector| {
        let mut input = crate::rig::with_pas(0x301, ring, 64);
        connectx::ifc::eqc::UAR_PAGE.set(&mut input[0x10..0x50], uar.into());
        connectx::ifc::eqc::INTR.set(&mut input[0x10..0x50], vector);
        rig.command(&input, 16)
    };
    assert_eq!(
        create(&mut rig, u64::from(connectx::pci::VECTORS)).status(),
        3
    );
    for n in 0..count {
        let answer = create(&mut rig, n);
        assert_eq!(answer.status(), 0, "{n}");
        assert!(answer.word(8) < 1 << general::LOG_MAX_EQ.get(&caps));
    }
    assert_eq!(create(&mut rig, 0).status(), 0xf);
}

#[test]
fn a_second_queue_for_a_type_is_refused() {
    let mut queue = Queue::new();
    let mut input = crate::rig::with_pas(0x301, 0x20_0000, 4096);
    let context = &mut input[0x10..0x50];
    connectx::ifc::eqc::LOG_EQ_SIZE.set(context, 3);
    connectx::ifc::eqc::UAR_PAGE.set(context, queue.uar.into());
    input[0x58..0x60].copy_from_slice(&(1_u64 << EventType::PAGE_FAULT.0).to_be_bytes());
    assert_eq!(queue.rig.command(&input, 16).status(), 6);
}

#[test]
fn doorbells_must_name_a_queue_of_their_page() {
    let mut queue = Queue::new();
    let (cqn, _, _) = queue.rig.create_cq(queue.uar, queue.eqn, 2);
    let other = u64::from(queue.rig.alloc_uar()) * 4096;
    let own = u64::from(queue.uar) * 4096;
    let eq = queue.eqn << 24;
    // A page that may be a user's: refused, and nothing else.
    queue.rig.write32(other + 0x40, eq);
    queue.rig.write32(other + 0x40, 77 << 24);
    queue.rig.write64(other + 0x20, 0, cqn);
    queue.rig.write64(other + 0x20, 0, 0xff_ffff);
    queue.rig.write64(other + 0x28, 0, cqn);
    queue.rig.write32(other + 0x28, 0);
    queue.rig.write32(other + 0x800, 0);
    queue.rig.device.mmio_write(queue.rig.now, other + 3, &[0]);
    assert_eq!(queue.rig.device.journal.violation_count(), 0);
    assert_eq!(queue.rig.device.counters.doorbells_refused, 7);
    // The driver's own page.
    queue.rig.write32(own + 0x40, 77 << 24);
    queue.rig.write32(own + 0x44, 0);
    queue.rig.write64(own + 0x20, 0, 0xff_ffff);
    queue.rig.write32(own + 0x28, 0);
    assert_eq!(queue.rig.device.journal.violation_count(), 4);
    // Nobody's page.
    queue.rig.write32(own + 9 * 4096 + 0x40, 0);
    assert_eq!(queue.rig.device.journal.violation_count(), 5);
}

#[test]
fn commands_complete_by_event_once_there_is_a_queue() {
    let mut rig = Rig::ready();
    let uar = rig.alloc_uar();
    let (eqn, ring) = rig.create_eq(uar, &[EventType::CMD], LOG_SIZE, 0);
    rig.write32(u64::from(uar) * 4096 + 0x40, eqn << 24);
    // The driver polled for CREATE_EQ: no event for it.
    assert!(rig.vectors.take().is_empty());
    let input = command(0x800, 0, 16);
    rig.post(Post {
        slot: 9,
        ..Post::new(&input, 16)
    });
    rig.settle();
    assert_eq!(rig.vectors.take(), [0]);
    let entry = rig.entry(ring, 0);
    assert_eq!(entry[1], EventType::CMD.0);
    assert_eq!(entry[0x20..0x24], (1_u32 << 9).to_be_bytes());
    // Destroyed by a command that the driver polls for.
    let mut destroy = command(0x302, 0, 16);
    destroy[11] = u8::try_from(eqn).unwrap();
    assert_eq!(rig.command(&destroy, 16).status(), 0);
    assert!(rig.vectors.take().is_empty());
}

#[test]
fn an_unmapped_ring_is_a_violation() {
    let mut queue = Queue::new();
    queue
        .rig
        .mem
        .unmap(firmware_cmds::DmaAddr::new(queue.ring), 4096);
    queue.raise(0);
    let expected = format!(
        "EQ 0x1: cannot write an entry: IOVA {:#x} is not mapped",
        queue.ring
    );
    assert_eq!(queue.rig.device.journal.violations(), [expected]);
    assert_eq!(queue.rig.device.counters.violations, 1);
}
