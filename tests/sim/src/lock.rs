// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Sleeping locks, and the order in which they may be taken.

use std::cell::Cell;

use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// Kinds of locks, in the order in which one may be taken under another; no two of a kind at once.
/// As the drivers document it: `drivers/mlx5_ib/{mirror,chunk,implicit,umr}.rs`, `umr_pool.c`, `umr.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// `Mirror::making`.
    Making,
    /// `mmap_lock` of the process.
    Mmap,
    /// What an allocation that may reclaim takes: reclaim invalidates.
    Reclaim,
    /// A chunk's lock.
    Chunk,
    /// The last UMR of the pool.
    LastUmr,
    /// `Parent::table`.
    Table,
    /// `Key::gate`.
    Gate,
    /// `umrc->lock`.
    Umr,
}

/// A mutex.
pub(crate) struct Lock {
    class: Class,
    channel: Channel,
    owner: Cell<Option<usize>>,
}

impl Thread<'_> {
    /// A lock of this class is about to be taken.
    pub(crate) fn check_order(&self, class: Class) {
        let held = self.held.borrow();
        if let Some(above) = held.iter().find(|&&held| held >= class) {
            self.sim.fail(
                "lock order",
                format_args!("{} takes {class:?} under {above:?}", self.name()),
            );
        }
    }

    fn released(&self, class: Class) {
        let mut held = self.held.borrow_mut();
        if let Some(at) = held.iter().rposition(|&held| held == class) {
            held.remove(at);
        }
    }
}

impl Lock {
    pub(crate) fn new(sim: &Sim, class: Class) -> Self {
        Self {
            class,
            channel: sim.tasks.channel(),
            owner: Cell::new(None),
        }
    }

    pub(crate) fn lock(&self, thread: &Thread<'_>) {
        thread.check_order(self.class);
        thread.step();
        while self.owner.get().is_some() && !thread.sim.is_over() {
            thread.wait(self.channel);
        }
        self.take(thread);
    }

    pub(crate) fn try_lock(&self, thread: &Thread<'_>) -> bool {
        thread.step();
        let free = self.owner.get().is_none();
        if free {
            self.take(thread);
        }
        free
    }

    fn take(&self, thread: &Thread<'_>) {
        self.owner.set(Some(thread.id));
        thread.held.borrow_mut().push(self.class);
    }

    pub(crate) fn unlock(&self, thread: &Thread<'_>) {
        self.owner.set(None);
        thread.released(self.class);
        thread.sim.tasks.wake(self.channel);
    }

    /// Lets go, waits, and takes it again: a condition variable.
    pub(crate) fn wait(&self, thread: &Thread<'_>, channel: Channel) {
        self.unlock(thread);
        thread.wait(channel);
        self.lock(thread);
    }
}

/// A reader-writer lock; `mmap_lock` is the only one.
pub(crate) struct RwLock {
    class: Class,
    channel: Channel,
    readers: Cell<usize>,
    writer: Cell<bool>,
}

impl RwLock {
    pub(crate) fn new(channel: Channel, class: Class) -> Self {
        Self {
            class,
            channel,
            readers: Cell::new(0),
            writer: Cell::new(false),
        }
    }

    pub(crate) fn read(&self, thread: &Thread<'_>) {
        thread.check_order(self.class);
        thread.step();
        while self.writer.get() && !thread.sim.is_over() {
            thread.wait(self.channel);
        }
        self.readers.set(self.readers.get() + 1);
        thread.held.borrow_mut().push(self.class);
    }

    pub(crate) fn write(&self, thread: &Thread<'_>) {
        thread.check_order(self.class);
        thread.step();
        while (self.writer.get() || self.readers.get() > 0) && !thread.sim.is_over() {
            thread.wait(self.channel);
        }
        self.writer.set(true);
        thread.held.borrow_mut().push(self.class);
    }

    /// What the thread has, it lets go of.
    pub(crate) fn unlock(&self, thread: &Thread<'_>) {
        if self.writer.get() {
            self.writer.set(false);
        } else {
            self.readers.set(self.readers.get().saturating_sub(1));
        }
        thread.released(self.class);
        thread.sim.tasks.wake(self.channel);
    }
}

/// A counting semaphore.
pub(crate) struct Semaphore {
    channel: Channel,
    count: Cell<usize>,
}

impl Semaphore {
    pub(crate) fn new(sim: &Sim, count: usize) -> Self {
        Self {
            channel: sim.tasks.channel(),
            count: Cell::new(count),
        }
    }

    pub(crate) fn down(&self, thread: &Thread<'_>) {
        thread.step();
        while self.count.get() == 0 && !thread.sim.is_over() {
            thread.wait(self.channel);
        }
        self.count.set(self.count.get().saturating_sub(1));
    }

    pub(crate) fn up(&self, sim: &Sim) {
        self.count.set(self.count.get() + 1);
        sim.tasks.wake(self.channel);
    }

    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }
}
