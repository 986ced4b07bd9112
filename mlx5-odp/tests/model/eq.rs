// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A page-fault event queue, from the device to those who serve its events.

use std::collections::VecDeque;

use firmware_cmds::Eqe;
use mlx5_odp::{Event, EventQueue};

/// A queue whose events are handed out as far as there is memory for it.
pub(crate) struct Eq {
    /// Written by the device and not consumed.
    pub(crate) written: VecDeque<Eqe>,
    /// Events that there is memory for.
    pub(crate) slots: usize,
    /// Handed out, and not served yet.
    pub(crate) dispatched: VecDeque<Event>,
    consumed: u32,
    /// How often it is to be drained again.
    pub(crate) later: u32,
    /// What the device was told.
    pub(crate) told: Vec<(u32, bool)>,
}

impl Default for Eq {
    /// With memory for all events, whose numbers wrap early on.
    fn default() -> Self {
        Self::new(usize::MAX, u32::MAX - 10)
    }
}

impl Eq {
    /// An empty queue, with memory for so many events, of which `consumed` were before.
    pub(crate) fn new(slots: usize, consumed: u32) -> Self {
        Self {
            written: VecDeque::new(),
            slots,
            dispatched: VecDeque::new(),
            consumed,
            later: 0,
            told: Vec::new(),
        }
    }
}

impl EventQueue for Eq {
    type Slot = ();

    fn peek(&self, ahead: u32) -> Option<Eqe> {
        self.written.get(usize::try_from(ahead).unwrap()).copied()
    }

    fn slot(&mut self) -> Option<()> {
        self.slots = self.slots.checked_sub(1)?;
        Some(())
    }

    fn dispatch(&mut self, (): (), event: Event) {
        self.dispatched.push_back(event);
    }

    fn consumed(&self) -> u32 {
        self.consumed
    }

    fn drain_later(&mut self) {
        self.later += 1;
    }

    fn consume(&mut self, count: u32, arm: bool) {
        self.written.drain(..usize::try_from(count).unwrap());
        self.consumed = self.consumed.wrapping_add(count);
        self.told.push((count, arm));
    }
}
