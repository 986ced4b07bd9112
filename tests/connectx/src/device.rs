// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device: everything it owns, its registers, and its turn to work.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use firmware_cmds::{Eqe, Eqn};

use crate::caps::Hca;
use crate::command;
use crate::completion::Completions;
use crate::counters::Counters;
use crate::event::Events;
use crate::fault::Faults;
use crate::guest::GuestMemory;
use crate::init_segment::{self, InitSegment};
use crate::journal::Journal;
use crate::knobs::Knobs;
use crate::mkey::Mkeys;
use crate::qp::Qps;
use crate::srq::Srqs;
use crate::uar::Uars;

/// Bytes of BAR 0, as on a ConnectX-7.
pub const BAR0_SIZE: u64 = 32 << 20;

/// The device's interrupts.
pub trait Interrupts: Send {
    /// Signals one vector of the MSI-X table. A vector that nobody listens to is lost.
    fn fire(&mut self, vector: u16);
}

/// Work put off to a later time.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Execute the command in this slot.
    Command(u8),
    /// Write an event.
    Event(Eqn, Eqe),
}

/// A software ConnectX.
pub struct Device {
    /// The guest's memory.
    pub mem: Box<dyn GuestMemory>,
    /// The guest's interrupts.
    pub irq: Box<dyn Interrupts>,
    /// What happened, in words.
    pub journal: Journal,
    /// What happened, in numbers.
    pub counters: Counters,
    /// How to misbehave.
    pub knobs: Knobs,
    /// Time since the device was made, as last told by its owner.
    pub now: Duration,
    /// Registers at the start of BAR 0.
    pub init: InitSegment,
    /// The command queue.
    pub commands: command::Queue,
    /// What the function can do, and what of it the driver chose.
    pub hca: Hca,
    /// Event queues.
    pub events: Events,
    /// Completion queues.
    pub cqs: Completions,
    /// Doorbell pages.
    pub uars: Uars,
    /// Protection, transport and XRC domains.
    pub domains: command::domain::Domains,
    /// Shared receive queues.
    pub srqs: Srqs,
    /// Memory keys.
    pub mkeys: Mkeys,
    /// Queue pairs.
    pub qps: Qps,
    /// Accesses stalled on a page fault.
    pub faults: Faults,
    timers: BTreeMap<(Duration, u64), Work>,
    timer_sequence: u64,
}

impl Device {
    /// A device in its state after power-on.
    #[must_use]
    pub fn new(
        mem: Box<dyn GuestMemory>,
        irq: Box<dyn Interrupts>,
        journal: Journal,
        knobs: Knobs,
    ) -> Self {
        Self {
            mem,
            irq,
            journal,
            counters: Counters::default(),
            knobs,
            now: Duration::ZERO,
            init: InitSegment::default(),
            commands: command::Queue::default(),
            hca: Hca::new(knobs.scheme),
            events: Events::default(),
            cqs: Completions::default(),
            uars: Uars::new(BAR0_SIZE),
            domains: command::domain::Domains::default(),
            srqs: Srqs::default(),
            mkeys: Mkeys::default(),
            qps: Qps::default(),
            faults: Faults::default(),
            timers: BTreeMap::new(),
            timer_sequence: 0,
        }
    }

    /// Function-level reset: every object and register back to power-on; counters, knobs
    /// and journal stay. A driver that is bound finds out by itself, and until then its
    /// doorbells are lost.
    pub fn reset(&mut self) {
        self.init = self.init.after_reset();
        self.commands = command::Queue::default();
        self.timers.clear();
        self.reset_objects();
    }

    /// Drops every object: what a reset and ENABLE_HCA have in common.
    pub(crate) fn reset_objects(&mut self) {
        self.hca = Hca::new(self.knobs.scheme);
        self.events = Events::default();
        self.cqs = Completions::default();
        self.uars = Uars::new(BAR0_SIZE);
        self.domains = command::domain::Domains::default();
        self.srqs = Srqs::default();
        self.mkeys = Mkeys::default();
        self.qps = Qps::default();
        self.faults = Faults::default();
    }

    /// Reads from BAR 0. Registers that do not exist read as 0, and are noted once each.
    pub fn mmio_read(&mut self, now: Duration, offset: u64, data: &mut [u8]) {
        self.now = self.now.max(now);
        data.fill(0);
        if offset < init_segment::SIZE {
            self.init_segment_read(offset, data);
        } else {
            self.uar_read(offset);
        }
    }

    /// Writes to BAR 0. The work this causes is done by [`Device::step`].
    pub fn mmio_write(&mut self, now: Duration, offset: u64, data: &[u8]) {
        self.now = self.now.max(now);
        if offset < init_segment::SIZE {
            self.init_segment_write(offset, data);
        } else if offset < BAR0_SIZE {
            if !self.doorbell_is_lost() {
                self.uar_write(offset, data);
            }
        } else {
            self.violation(format_args!("write at {offset:#x}, beyond BAR 0"));
        }
    }

    /// Works for a bounded while. Returns when to be called again unless a register is
    /// written first: `Some(now)` if there is more to do at once, `None` if nothing waits.
    pub fn step(&mut self, now: Duration) -> Option<Duration> {
        self.now = self.now.max(now);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Work::Command(slot) => self.run_command(slot),
                Work::Event(eqn, eqe) => self.deliver_eqe(eqn, eqe),
            }
        }
        self.take_commands();
        let data_path = self.step_qps();
        let timer = self.timers.first_key_value().map(|(&(at, _), _)| at);
        match (data_path, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Puts work off by some milliseconds.
    pub(crate) fn after_ms(&mut self, ms: u64, work: Work) {
        let at = self.now.saturating_add(Duration::from_millis(ms));
        self.timer_sequence += 1;
        self.timers.insert((at, self.timer_sequence), work);
    }

    /// Whether a doorbell comes from before a reset that the driver has not noticed.
    pub(crate) fn doorbell_is_lost(&mut self) -> bool {
        let lost = self.init.driver_is_stale;
        self.counters.doorbells_lost += u64::from(lost);
        lost
    }

    /// Records that the driver broke the protocol.
    pub fn violation(&mut self, line: fmt::Arguments<'_>) {
        self.counters.violations += 1;
        self.journal.violation(line);
    }

    /// Live objects by kind, in the order of their names.
    #[must_use]
    pub fn objects(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("cq", self.cqs.queues.len()),
            ("eq", self.events.queues.len()),
            ("mkey", self.mkeys.len()),
            ("pd", self.domains.pds.len()),
            ("qp", self.qps.len()),
            ("srq", self.srqs.queues.len()),
            ("stall", self.faults.len()),
            ("td", self.domains.tds.len()),
            ("uar", self.uars.pages.len()),
            ("xrcd", self.domains.xrcds.len()),
        ]
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("now", &self.now)
            .field("counters", &self.counters)
            .field("objects", &self.objects())
            .finish_non_exhaustive()
    }
}
