// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The page-fault event queue and who serves its events: `drivers/mlx5_ib/{eq,event}.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use firmware_cmds::{Eqe, PageFault};
use mlx5_odp::{Event, EventQueue, Generation, Unserved};

use super::Adapter;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// Events between interrupt and workers.
pub(crate) struct Events {
    /// What there is memory for.
    slots: Cell<usize>,
    /// To be drained again when there is memory.
    later: Cell<bool>,
    queued: RefCell<VecDeque<(Event, Generation)>>,
    there: Channel,
    served: Cell<usize>,
    dispatched: Cell<usize>,
    /// Those whose keys may still be looked for.
    unserved: RefCell<Unserved>,
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
        let generation = events.unserved.borrow_mut().dispatch(event.number);
        events.queued.borrow_mut().push_back((event, generation));
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
            unserved: RefCell::new(Unserved::new(0)),
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

    /// The number of an event before which all are served.
    pub(crate) fn all_served_before(&self) -> u32 {
        self.unserved.borrow().served()
    }

    /// Nobody looks for this one's key any more.
    pub(crate) fn event_served(&self, sim: &Sim, generation: Generation) {
        let are_more = self.unserved.borrow_mut().serve(generation);
        if are_more {
            let parents = sim.driver.parents.borrow();
            parents
                .iter()
                .for_each(|parent| parent.more_are_served(sim));
        }
    }
}

impl Thread<'_> {
    /// A worker.
    pub(crate) fn serve_events(&self) {
        let events = &self.sim.events;
        loop {
            let next = events.queued.borrow_mut().pop_front();
            let Some((event, generation)) = next else {
                if events.closing.get() || self.sim.is_over() {
                    return;
                }
                self.wait(events.there);
                continue;
            };
            self.step();
            let adapter = Adapter::of_event(self, generation);
            let fault = PageFault::from_eqe(&event.eqe);
            mlx5_odp::serve(&adapter, fault, event.number);
            adapter.served();
            events.slots.set(events.slots.get() + 1);
            events.served.set(events.served.get() + 1);
        }
    }
}
