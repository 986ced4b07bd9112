// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device: everything it owns, its registers, and its turn to work.

use std::fmt;
use std::time::Duration;

use firmware_cmds::Scheme;
use serde::Serialize;

use crate::agenda::{Agenda, Work};
use crate::caps::Hca;
use crate::command;
use crate::completion::Completions;
use crate::counters::Counters;
use crate::event::Events;
use crate::fault::Faults;
use crate::guest::GuestMemory;
use crate::init_segment::{self, InitSegment};
use crate::inspect::show;
use crate::journal::Journal;
use crate::mkey::Mkeys;
use crate::order::Order;
use crate::qp::Qps;
use crate::rules::Rules;
use crate::srq::Srqs;
use crate::subnet::{multicast::Attachments, Subnet};
use crate::uar::Uars;
use crate::uctx::Uctxs;
use crate::umem::Umems;

/// Bytes of BAR 0, as on a ConnectX-7.
pub const BAR0_SIZE: u64 = 32 << 20;

/// The device's interrupts.
pub trait Interrupts: Send {
    /// Signals one vector of the MSI-X table. A vector that nobody listens to is lost.
    fn fire(&mut self, vector: u16);
}

/// Pieces of work, of at most [`mover::CHUNK`](crate::transport::mover::CHUNK) bytes each,
/// that QPs do in one step.
const STEP_BUDGET: usize = 32;

/// A software ConnectX.
#[derive(Serialize)]
pub struct Device {
    /// The guest's memory.
    #[serde(skip)]
    pub mem: Box<dyn GuestMemory>,
    /// The guest's interrupts.
    #[serde(skip)]
    pub irq: Box<dyn Interrupts>,
    /// What happened, in words.
    pub journal: Journal,
    /// What happened, in numbers.
    pub counters: Counters,
    /// Faults on purpose.
    pub rules: Rules,
    /// How the next ENABLE_HCA reports page faults.
    #[serde(serialize_with = "show::debug")]
    pub scheme: Scheme,
    /// Time since the device was made, as last told by its owner.
    #[serde(serialize_with = "show::debug")]
    pub now: Duration,
    /// Registers at the start of BAR 0.
    pub init: InitSegment,
    /// The command queue.
    pub commands: command::Queue,
    /// What the function can do, and what of it the driver chose.
    pub hca: Hca,
    /// Event queues.
    #[serde(rename = "eq")]
    pub events: Events,
    /// Completion queues.
    #[serde(rename = "cq")]
    pub cqs: Completions,
    /// Doorbell pages.
    #[serde(rename = "uar")]
    pub uars: Uars,
    /// User contexts.
    #[serde(rename = "uctx")]
    pub uctxs: Uctxs,
    /// Memory of users.
    #[serde(rename = "umem")]
    pub umems: Umems,
    /// Protection, transport and XRC domains.
    #[serde(flatten)]
    pub domains: command::domain::Domains,
    /// Shared receive queues.
    #[serde(rename = "srq")]
    pub srqs: Srqs,
    /// Memory keys.
    #[serde(rename = "mkey")]
    pub mkeys: Mkeys,
    /// Queue pairs.
    #[serde(rename = "qp")]
    pub qps: Qps,
    /// What the subnet manager knows.
    pub subnet: Subnet,
    /// QPs that listen to multicast groups.
    #[serde(rename = "mcg")]
    pub attachments: Attachments,
    /// Accesses stalled on a page fault.
    #[serde(rename = "fault")]
    pub faults: Faults,
    /// What is still to be done.
    pub(crate) agenda: Agenda,
    /// Decides what the hardware leaves open.
    pub(crate) order: Order,
}

impl Device {
    /// A device in its state after power-on.
    #[must_use]
    pub fn new(
        mem: Box<dyn GuestMemory>,
        irq: Box<dyn Interrupts>,
        journal: Journal,
        scheme: Scheme,
    ) -> Self {
        Self {
            mem,
            irq,
            journal,
            counters: Counters::default(),
            rules: Rules::default(),
            scheme,
            now: Duration::ZERO,
            init: InitSegment::default(),
            commands: command::Queue::default(),
            hca: Hca::new(scheme),
            events: Events::default(),
            cqs: Completions::default(),
            uars: Uars::new(BAR0_SIZE),
            uctxs: Uctxs::default(),
            umems: Umems::default(),
            domains: command::domain::Domains::default(),
            srqs: Srqs::default(),
            mkeys: Mkeys::default(),
            qps: Qps::default(),
            subnet: Subnet::default(),
            attachments: Attachments::default(),
            faults: Faults::default(),
            agenda: Agenda::default(),
            order: Order::fifo(),
        }
    }

    /// Has a seed decide the order of everything that hardware leaves open; the journal says
    /// so in a line.
    pub fn set_seed(&mut self, seed: u64) {
        self.order = Order::seeded(seed);
        self.journal.note(format_args!("seed {seed}"));
    }

    /// The seed that decides the order, if there is one.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.order.seed()
    }

    /// Function-level reset: every object and register back to power-on; counters, rules,
    /// order and journal stay. A driver that is bound finds out by itself, and until then its
    /// doorbells are lost.
    pub fn reset(&mut self) {
        self.init = self.init.after_reset();
        self.commands = command::Queue::default();
        self.forget_work(|_| true);
        self.reset_objects();
    }

    /// Drops every object: what a reset and ENABLE_HCA have in common.
    pub(crate) fn reset_objects(&mut self) {
        self.hca = Hca::new(self.scheme);
        self.events = Events::default();
        self.cqs = Completions::default();
        self.uars = Uars::new(BAR0_SIZE);
        self.uctxs = Uctxs::default();
        self.umems = Umems::default();
        self.domains = command::domain::Domains::default();
        self.srqs = Srqs::default();
        self.mkeys = Mkeys::default();
        self.qps = Qps::default();
        // The port goes down, and the subnet manager forgets its memberships.
        self.subnet = Subnet::default();
        self.attachments = Attachments::default();
        self.faults = Faults::default();
        // Of the objects that were.
        self.forget_work(|work| !matches!(work, Work::Command(..)));
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
        self.agenda.expire(self.now);
        self.take_released();
        self.take_commands();
        let mut budget = STEP_BUDGET - self.order.pick(STEP_BUDGET);
        while budget > 0 {
            self.qps.expire(self.now);
            let due = self.agenda.due();
            let candidates = due + self.qps.ready();
            if candidates == 0 {
                return [self.agenda.next(), self.qps.next_deadline()]
                    .into_iter()
                    .flatten()
                    .min();
            }
            let at = self.order.pick(candidates);
            if let Some(work) = self.agenda.take(at) {
                self.work(work);
            } else if let Some(qpn) = self.qps.take_ready(at - due) {
                budget -= 1;
                self.step_qp(qpn);
            }
        }
        Some(self.now)
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Command(slot, act) => self.run_command(slot, act),
            Work::Event(eqn, eqe, corrupt) => self.deliver_eqe(eqn, eqe, corrupt),
            Work::Completion(cqn, cqe, corrupt) => self.deliver_cqe(cqn, &cqe, corrupt),
            Work::Request(qpn) => self.unhold(qpn),
        }
    }

    /// Writes every completion and event that could be visible by now: what is destroyed,
    /// reset or resized gets no report afterwards.
    pub(crate) fn report_all(&mut self) {
        while let Some(work) = self.agenda.take_report() {
            self.work(work);
        }
    }

    /// Puts work off.
    pub(crate) fn after(&mut self, delay: Duration, work: Work) {
        self.agenda.put_off(self.now.saturating_add(delay), work);
    }

    /// Forgets work whose object goes away, what rules hold back included.
    pub(crate) fn forget_work(&mut self, forget: impl Fn(&Work) -> bool) {
        self.agenda.forget(&forget);
        self.forget_held(forget);
    }

    /// Makes a completion or an event visible: at once, or as the seed has it.
    pub(crate) fn report(&mut self, work: Work) {
        if self.seed().is_some() {
            self.agenda.add(work);
        } else {
            self.work(work);
        }
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
            ("reserved_qpn", self.qps.reserved()),
            ("srq", self.srqs.queues.len()),
            ("stall", self.faults.len()),
            ("td", self.domains.tds.len()),
            ("uar", self.uars.pages.len()),
            ("uctx", self.uctxs.len()),
            ("umem", self.umems.len()),
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
