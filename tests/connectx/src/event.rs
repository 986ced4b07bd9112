// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Event queues (`mlx5_core/eq.c`).

use std::collections::{BTreeMap, VecDeque};

use firmware_cmds::{Cqn, Eqe, Eqn, EventType, Uar, Wire};
use serde::Serialize;

use crate::agenda::Work;
use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_EQ;
use crate::device::Device;
use crate::guest::to_u64;
use crate::inspect::show;
use crate::numbers::Numbers;
use crate::rules::points::{self as rules, EntryAct};
use crate::rules::words::{Corrupt, Delay};

/// Last byte of an EQE, with the owner bit.
const OWNER: usize = Eqe::LEN - 1;
/// Producer and consumer index have 24 bits.
const INDEX_MASK: u32 = 0xff_ffff;
/// Events that wait for room in a queue; what comes on top of them is lost.
const MAX_BACKLOG: usize = 1 << 16;

/// One event queue.
#[derive(Clone, Debug, Serialize)]
pub struct EventQueue {
    /// Entries, as a power of two.
    pub log_size: u32,
    /// The UAR whose doorbells belong to it.
    #[serde(serialize_with = "show::debug")]
    pub uar: Uar,
    /// Index into the MSI-X table.
    pub vector: u16,
    /// Event types it takes, by number.
    #[serde(serialize_with = "show::hexes")]
    pub mask: [u64; 4],
    /// Its entries.
    pub buffer: QueueBuffer,
    producer: u32,
    consumer: u32,
    armed: bool,
    /// Entries that wait for room, with the bits that a rule changes in them.
    #[serde(serialize_with = "show::debug")]
    backlog: VecDeque<(Eqe, Option<Corrupt>)>,
    /// It was full, and that was noted.
    overflowed: bool,
}

impl EventQueue {
    /// An empty, unarmed queue.
    #[must_use]
    pub fn new(log_size: u32, uar: Uar, vector: u16, mask: [u64; 4], buffer: QueueBuffer) -> Self {
        Self {
            log_size,
            uar,
            vector,
            mask,
            buffer,
            producer: 0,
            consumer: 0,
            armed: false,
            backlog: VecDeque::new(),
            overflowed: false,
        }
    }

    /// Whether it takes events of this type.
    #[must_use]
    pub fn takes(&self, event_type: EventType) -> bool {
        let number = event_type.0;
        self.mask[usize::from(number / 64)] >> (number % 64) & 1 == 1
    }

    /// Whether the next event fires the interrupt.
    #[must_use]
    pub fn armed(&self) -> bool {
        self.armed
    }

    /// Entries written, 24 bits.
    #[must_use]
    pub fn producer(&self) -> u32 {
        self.producer
    }

    /// Entries consumed as of the last doorbell, 24 bits.
    #[must_use]
    pub fn consumer(&self) -> u32 {
        self.consumer
    }

    fn full(&self) -> bool {
        self.producer.wrapping_sub(self.consumer) & INDEX_MASK >= 1 << self.log_size
    }
}

/// All event queues.
#[derive(Debug, Serialize)]
pub struct Events {
    /// By number.
    #[serde(flatten, serialize_with = "show::by_number")]
    pub queues: BTreeMap<Eqn, EventQueue>,
    /// Numbers for new queues.
    pub numbers: Numbers,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            numbers: Numbers::below(1, LOG_MAX_EQ),
        }
    }
}

impl Events {
    /// The queue that takes events of this type, but for completions: a CQ names its own.
    #[must_use]
    pub fn queue_for(&self, event_type: EventType) -> Option<Eqn> {
        self.queues
            .iter()
            .find(|(_, eq)| eq.takes(event_type))
            .map(|(&eqn, _)| eqn)
    }
}

impl Device {
    /// Reports an event to the queue that takes its type. Without such a queue the event
    /// is lost, as on the hardware; returns whether there was one.
    pub fn raise(&mut self, eqe: Eqe) -> bool {
        let Some(eqn) = self.events.queue_for(eqe.event_type) else {
            self.journal.note(format_args!(
                "event {:#04x}/{} has no queue",
                eqe.event_type.0, eqe.sub_type
            ));
            return false;
        };
        self.push_eqe(eqn, eqe);
        true
    }

    /// Reports that an armed CQ has a new entry.
    pub(crate) fn raise_completion(&mut self, eqn: Eqn, cqn: Cqn) {
        self.push_eqe(eqn, Eqe::completion(cqn));
    }

    /// Reports an event to a queue, subject to the rules.
    pub fn push_eqe(&mut self, eqn: Eqn, eqe: Eqe) {
        let event = |corrupt| Work::Event(eqn, eqe, corrupt);
        match self.rule::<rules::Event>(&eqe) {
            None => self.report(event(None)),
            Some((_, EntryAct::Drop {})) => {}
            Some((_, EntryAct::Duplicate {})) => {
                self.report(event(None));
                self.report(event(None));
            }
            Some((_, EntryAct::Corrupt(corrupt))) => self.report(event(Some(corrupt))),
            Some((_, EntryAct::Delay(Delay(delay)))) => self.after(delay, event(None)),
            Some((rule, EntryAct::Hold(hold))) => self.hold(rule, hold, event(None)),
        }
    }

    /// Writes an event to its queue, or has it wait there for room.
    pub(crate) fn deliver_eqe(&mut self, eqn: Eqn, eqe: Eqe, corrupt: Option<Corrupt>) {
        let Some(eq) = self.events.queues.get_mut(&eqn) else {
            self.journal
                .note(format_args!("event {eqe:02x?} for EQ {eqn}, which is gone"));
            return;
        };
        if eq.full() {
            self.counters.eq_full += 1;
            if !eq.overflowed {
                eq.overflowed = true;
                self.journal
                    .note(format_args!("EQ {eqn} is full, its events wait"));
            }
            if eq.backlog.len() == MAX_BACKLOG {
                self.counters.eqes_lost += 1;
                self.journal
                    .note(format_args!("event {eqe:02x?} for EQ {eqn} is lost"));
                return;
            }
        }
        eq.backlog.push_back((eqe, corrupt));
        self.drain_eq(eqn);
    }

    /// Writes what waits for room in a queue, then fires the interrupt if it is armed.
    fn drain_eq(&mut self, eqn: Eqn) {
        let Some(eq) = self.events.queues.get_mut(&eqn) else {
            return;
        };
        while !eq.full() {
            let Some((eqe, corrupt)) = eq.backlog.pop_front() else {
                break;
            };
            let slot = u64::from(eq.producer & ((1 << eq.log_size) - 1)) * to_u64(Eqe::LEN);
            let owner = eq.producer >> eq.log_size & 1 == 1;
            let mut bytes = Eqe { owner, ..eqe }.to_bytes();
            if let Some(corrupt) = corrupt {
                corrupt.apply(&mut bytes);
            }
            let mem = &*self.mem;
            let written = eq
                .buffer
                .write(mem, slot, &bytes[..OWNER])
                .and_then(|()| mem.write_release(eq.buffer.locate(slot + 0x3f).0, bytes[OWNER]));
            if let Err(error) = written {
                self.counters.violations += 1;
                self.journal
                    .violation(format_args!("EQ {eqn}: cannot write an entry: {error}"));
                return;
            }
            self.journal.trace(format_args!(
                "eqe eq={eqn} pi={} type={:#04x}/{} {:02x?}",
                eq.producer, eqe.event_type.0, eqe.sub_type, eqe.data
            ));
            self.counters.eqes += 1;
            eq.producer = eq.producer.wrapping_add(1) & INDEX_MASK;
        }
        if eq.armed && eq.producer != eq.consumer {
            eq.armed = false;
            self.counters.interrupts += 1;
            self.irq.fire(eq.vector);
        }
    }

    /// An EQ doorbell: the driver consumed entries up to `consumer`.
    pub(crate) fn eq_doorbell(&mut self, uar: Uar, eqn: Eqn, consumer: u32, arm: bool) {
        match self.events.queues.get_mut(&eqn) {
            Some(eq) if eq.uar == uar => {
                self.journal.trace(format_args!(
                    "doorbell uar={uar} eq={eqn} ci={consumer} arm={arm}"
                ));
                eq.consumer = consumer & INDEX_MASK;
                eq.armed |= arm;
                self.drain_eq(eqn);
            }
            Some(eq) => {
                let right = eq.uar;
                self.refuse_doorbell(
                    uar,
                    format_args!("doorbell of EQ {eqn} in UAR {uar}, it belongs to UAR {right}"),
                );
            }
            None => self.refuse_doorbell(
                uar,
                format_args!("doorbell of EQ {eqn}, which does not exist, in UAR {uar}"),
            ),
        }
    }
}
