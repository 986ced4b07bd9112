// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Interval notifiers as `mm/mmu_notifier.c` of Linux 7.3 has them: one sequence per process, odd
//! while anything that is mirrored is being invalidated, and a tree that is frozen then.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use crate::mutant::Mutant;
use crate::task::{Channel, Thread};

/// Pages of the process, by number.
pub(crate) type Pages = Range<usize>;

/// `struct mmu_interval_notifier`.
pub(crate) struct Notifier {
    pages: Pages,
    /// `invalidate_seq`: written under the lock of whoever mirrors, read without it too.
    sequence: Cell<usize>,
}

/// `struct mmu_interval_notifier_ops` and what it is called for.
pub(crate) trait Interval {
    fn notifier(&self) -> &Notifier;

    /// False is `-EAGAIN`; what it leaves to the second pass is in `pending`.
    fn invalidate_start(
        &self,
        thread: &Thread<'_>,
        pages: &Pages,
        sequence: usize,
        may_sleep: bool,
        pending: &mut bool,
    ) -> bool;

    fn invalidate_finish(&self, thread: &Thread<'_>);
}

type Subscribed = Rc<dyn Interval>;

/// `struct mmu_notifier_subscriptions`, and a log for the oracles.
pub(crate) struct Notifiers {
    sequence: Cell<usize>,
    active: Cell<usize>,
    tree: RefCell<Vec<Subscribed>>,
    /// To be inserted if not in the tree, and removed if in it.
    deferred: RefCell<Vec<Subscribed>>,
    wait: Channel,
    /// Ranges whose callbacks have returned, and whose invalidation has not ended.
    settled: RefCell<Vec<Pages>>,
    /// With a mutant: what one invalidation has from start to end.
    umem_rwsem: Cell<bool>,
}

pub(crate) fn overlap(one: &Pages, other: &Pages) -> bool {
    one.start < other.end && other.start < one.end
}

fn position(list: &[Subscribed], of: &Subscribed) -> Option<usize> {
    list.iter().position(|other| Rc::ptr_eq(other, of))
}

impl Notifier {
    pub(crate) fn new(pages: Pages) -> Self {
        Self {
            pages,
            sequence: Cell::new(0),
        }
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// `mmu_interval_set_seq`.
    pub(crate) fn set_sequence(&self, sequence: usize) {
        self.sequence.set(sequence);
    }

    /// `mmu_interval_read_retry`.
    pub(crate) fn read_retry(&self, sequence: usize) -> bool {
        self.sequence.get() != sequence
    }
}

impl Notifiers {
    pub(crate) fn new(wait: Channel) -> Self {
        Self {
            sequence: Cell::new(2),
            active: Cell::new(0),
            tree: RefCell::default(),
            deferred: RefCell::default(),
            wait,
            settled: RefCell::default(),
            umem_rwsem: Cell::new(false),
        }
    }

    fn is_invalidating(&self) -> bool {
        self.sequence.get() & 1 != 0
    }

    /// Whether an invalidation of the page has begun and taken back what there was, and not ended.
    pub(crate) fn is_settled(&self, page: usize) -> bool {
        self.settled
            .borrow()
            .iter()
            .any(|pages| pages.contains(&page))
    }

    /// Invalidations between start and end.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }

    /// Notifiers that are subscribed.
    pub(crate) fn subscribed(&self) -> usize {
        self.tree.borrow().len() + self.deferred.borrow().len()
    }

    /// `mmu_notifier_invalidate_range_start`. False, from notifiers that may not sleep, is
    /// `-EAGAIN`: nothing is to be invalidated, and there is no end.
    pub(crate) fn start(&self, thread: &Thread<'_>, pages: &Pages, may_sleep: bool) -> bool {
        thread.step();
        if thread.sim.has(Mutant::LockedUntilTheEnd) {
            while self.umem_rwsem.replace(true) && !thread.sim.is_over() {
                thread.wait(self.wait);
            }
        }
        self.active.set(self.active.get() + 1);
        let overlaps = |of: &&Subscribed| overlap(of.notifier().pages(), pages);
        // The tree is frozen from here on if there is one.
        let concerned: Vec<_> = (self.tree.borrow().iter())
            .filter(overlaps)
            .cloned()
            .collect();
        if !concerned.is_empty() {
            self.sequence.set(self.sequence.get() | 1);
        }
        let sequence = self.sequence.get();
        thread.sim.coverage(|c| {
            c.invalidations += 1;
            c.overlapping += usize::from(self.active.get() > 1 && !concerned.is_empty());
        });

        thread.invalidating.set(thread.invalidating.get() + 1);
        thread
            .atomic
            .set(thread.atomic.get() + u32::from(!may_sleep));
        let mut second_pass = Vec::new();
        let mut again = false;
        for interval in concerned {
            let mut pending = false;
            if !interval.invalidate_start(thread, pages, sequence, may_sleep, &mut pending) {
                if may_sleep {
                    thread
                        .sim
                        .fail("-EAGAIN", format_args!("from what may sleep: {pages:?}"));
                }
                again = true;
                break;
            }
            if pending {
                second_pass.push(interval);
            }
        }
        // Whoever may not sleep is not asked for a second pass, but if it were, it would be run.
        thread.sim.coverage(|c| {
            c.two_passes += second_pass.len();
            c.would_block += usize::from(again);
        });
        for interval in second_pass {
            interval.invalidate_finish(thread);
        }
        thread
            .atomic
            .set(thread.atomic.get() - u32::from(!may_sleep));
        thread.invalidating.set(thread.invalidating.get() - 1);
        if again {
            self.ended(thread);
        } else {
            self.settled.borrow_mut().push(pages.clone());
        }
        !again
    }

    /// `mmu_notifier_invalidate_range_end`.
    pub(crate) fn end(&self, thread: &Thread<'_>, pages: &Pages) {
        thread.step();
        let mut settled = self.settled.borrow_mut();
        if let Some(at) = settled.iter().position(|other| other == pages) {
            settled.swap_remove(at);
        }
        drop(settled);
        self.ended(thread);
    }

    fn ended(&self, thread: &Thread<'_>) {
        if self.umem_rwsem.take() {
            thread.sim.tasks.wake(self.wait);
        }
        self.active.set(self.active.get() - 1);
        if self.active.get() > 0 || !self.is_invalidating() {
            return;
        }
        self.sequence.set(self.sequence.get() + 1);
        for interval in self.deferred.take() {
            let at = position(&self.tree.borrow(), &interval);
            match at {
                Some(at) => drop(self.tree.borrow_mut().remove(at)),
                None => self.tree.borrow_mut().push(interval),
            }
        }
        thread.sim.tasks.wake(self.wait);
    }

    /// `mmu_interval_read_begin`.
    pub(crate) fn read_begin(&self, thread: &Thread<'_>, notifier: &Notifier) -> usize {
        thread.step();
        let sequence = notifier.sequence.get();
        while self.sequence.get() == sequence && !thread.sim.is_over() {
            thread.wait(self.wait);
        }
        sequence
    }

    /// `mmu_interval_notifier_insert`.
    pub(crate) fn insert(&self, thread: &Thread<'_>, interval: &Subscribed) {
        thread.step();
        // Which the kernel warns of: "Must call with a mmget() held".
        if thread.sim.mm_users.get() == 0 {
            let what = format_args!("by {}", thread.name());
            thread
                .sim
                .fail("a notifier of a process that is gone", what);
        }
        let sequence = if self.active.get() > 0 {
            if self.is_invalidating() {
                self.deferred.borrow_mut().push(Rc::clone(interval));
            } else {
                self.sequence.set(self.sequence.get() | 1);
                self.tree.borrow_mut().push(Rc::clone(interval));
            }
            self.sequence.get()
        } else {
            self.tree.borrow_mut().push(Rc::clone(interval));
            // Odd, whoever is invalidating.
            (self.sequence.get() & !1) - 1
        };
        interval.notifier().set_sequence(sequence);
    }

    /// `mmu_interval_notifier_remove`: no callback runs any more when it returns.
    pub(crate) fn remove(&self, thread: &Thread<'_>, interval: &Subscribed) {
        thread.step();
        let in_tree = position(&self.tree.borrow(), interval);
        if !self.is_invalidating() {
            match in_tree {
                Some(at) => drop(self.tree.borrow_mut().remove(at)),
                None => thread
                    .sim
                    .fail("notifier", format_args!("removed and not there")),
            }
            return;
        }
        if in_tree.is_none() {
            let mut deferred = self.deferred.borrow_mut();
            match position(&deferred, interval) {
                Some(at) => drop(deferred.remove(at)),
                None => thread
                    .sim
                    .fail("notifier", format_args!("removed and not there")),
            }
            return;
        }
        self.deferred.borrow_mut().push(Rc::clone(interval));
        let sequence = self.sequence.get();
        while self.sequence.get() == sequence && !thread.sim.is_over() {
            thread.wait(self.wait);
        }
    }
}
