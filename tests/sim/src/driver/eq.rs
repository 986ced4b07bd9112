// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The page-fault event queue and who serves its events: `drivers/mlx5_ib/{eq,event}.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use firmware_cmds::{Eqe, PageFault};
use mlx5_odp::{Event, EventQueue};

use super::Adapter;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// Events between interrupt and workers.
pub(crate) struct Events {
    /// What there is memory for.
    slots: Cell<usize>,
    /// To be drained again when there is memory.
    later: Cell<bool>,
    queued: RefCell<VecDeque<Event>>,
    there: Channel,
    served: Cell<usize>,
    dispatched: Cell<usize>,
    closing: Cell<bool>,
}

/// The queue, locked, in interrupt context.
pub(crate) struct LockedEq<'s>(pub(crate) &'s Sim);

impl EventQueue for LockedEq<'_> {
    type Slot = ();

    fn peek(&self, ahead: u32) -> Option<Eqe> {
        self.0.adapter.borrow().peek_eq(ahead)
    }

    fn slot(&mut self) -> Option<()> {
        let left = self.0.events.slots.get().checked_sub(1)?;
        self.0.events.slots.set(left);
        Some(())
    }

    fn dispatch(&mut self, (): (), event: Event) {
        let events = &self.0.events;
        self.0.trace(|| {
            format!(
                "event {} is dispatched: {:?}",
                event.number,
                PageFault::from_eqe(&event.eqe)
            )
        });
        events.dispatched.set(events.dispatched.get() + 1);
        events.queued.borrow_mut().push_back(event);
        self.0.tasks.wake(events.there);
    }

    fn consumed(&self) -> u32 {
        self.0.adapter.borrow().consumed()
    }

    fn drain_later(&mut self) {
        self.0.events.later.set(true);
    }

    fn consume(&mut self, count: u32, arm: bool) {
        self.0.adapter.borrow_mut().consume(count, arm);
    }
}

impl Events {
    pub(crate) fn new(there: Channel, slots: usize) -> Self {
        Self {
            slots: Cell::new(slots),
            later: Cell::new(false),
            queued: RefCell::default(),
            there,
            served: Cell::new(0),
            dispatched: Cell::new(0),
            closing: Cell::new(false),
        }
    }

    /// Whether the work that drains the queue has memory for it now.
    pub(crate) fn is_to_be_drained(&self) -> bool {
        self.later.get() && self.slots.get() > 0
    }

    /// The work, or the interrupt.
    pub(crate) fn drain(&self, sim: &Sim) {
        self.later.set(false);
        sim.adapter.borrow_mut().see_events();
        mlx5_odp::drain(&mut LockedEq(sim));
    }

    /// The workers end when there is nothing to do.
    pub(crate) fn close(&self, sim: &Sim) {
        self.closing.set(true);
        sim.tasks.wake(self.there);
    }

    /// All that was dispatched is served.
    pub(crate) fn is_idle(&self) -> bool {
        self.served == self.dispatched && !self.later.get()
    }

    /// How many were served.
    pub(crate) fn served(&self) -> usize {
        self.served.get()
    }
}

impl Thread<'_> {
    /// A worker.
    pub(crate) fn serve_events(&self) {
        let events = &self.sim.events;
        loop {
            let next = events.queued.borrow_mut().pop_front();
            let Some(event) = next else {
                if events.closing.get() || self.sim.is_over() {
                    return;
                }
                self.wait(events.there);
                continue;
            };
            self.step();
            mlx5_odp::serve(
                &Adapter(self),
                PageFault::from_eqe(&event.eqe),
                event.number,
            );
            events.slots.set(events.slots.get() + 1);
            events.served.set(events.served.get() + 1);
        }
    }
}
