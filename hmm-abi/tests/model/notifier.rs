// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Interval notifiers as `mm/mmu_notifier.c` of Linux 7.3 has them: one sequence per process, odd
//! while anything that is mirrored is being invalidated, and a tree that is frozen then.

use std::ops::Range;

use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::Sabotage;

/// Entries of the mirror, of which each is one page of the process here.
pub(crate) type Pages = Range<usize>;

/// `struct mmu_interval_notifier`.
pub(crate) struct Notifier {
    pages: Pages,
    /// `invalidate_seq`: written under the lock of whoever mirrors, read without it too.
    sequence: AtomicUsize,
}

/// `struct mmu_interval_notifier_ops` and what it is called for.
pub(crate) trait Interval: Send + Sync {
    fn notifier(&self) -> &Notifier;

    /// False is `-EAGAIN`; what it leaves to the second pass is in `pending`.
    fn invalidate_start(
        &self,
        pages: &Pages,
        sequence: usize,
        may_sleep: bool,
        pending: &mut bool,
    ) -> bool;

    fn invalidate_finish(&self);
}

type Subscribed = Arc<dyn Interval>;

/// `struct mmu_notifier_subscriptions`.
struct Subscriptions {
    sequence: usize,
    active: usize,
    tree: Vec<Subscribed>,
    /// To be inserted if not in the tree, and removed if in it.
    deferred: Vec<Subscribed>,
}

pub(crate) struct Notifiers {
    sabotage: Sabotage,
    subscriptions: Mutex<Subscriptions>,
    wait: Condvar,
    /// By page: invalidations begun, and those not ended. For the oracles, hence no lock that
    /// the scheduler sees.
    log: std::sync::Mutex<Vec<(usize, usize)>>,
}

fn overlap(one: &Pages, other: &Pages) -> bool {
    one.start < other.end && other.start < one.end
}

fn position(list: &[Subscribed], of: &Subscribed) -> Option<usize> {
    list.iter().position(|other| Arc::ptr_eq(other, of))
}

impl Subscriptions {
    fn is_invalidating(&self) -> bool {
        self.sequence & 1 != 0
    }
}

impl Notifier {
    pub(crate) fn new(pages: Pages) -> Self {
        Self {
            pages,
            sequence: AtomicUsize::new(0),
        }
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// `mmu_interval_set_seq`.
    pub(crate) fn set_sequence(&self, sequence: usize) {
        assert!(sequence & 1 != 0, "the sequence that is set is odd");
        self.sequence.store(sequence, Ordering::SeqCst);
    }

    /// `mmu_interval_read_retry`.
    pub(crate) fn read_retry(&self, sequence: usize) -> bool {
        self.sequence.load(Ordering::SeqCst) != sequence
    }
}

impl Notifiers {
    pub(crate) fn new(sabotage: Sabotage, pages: usize) -> Self {
        Self {
            sabotage,
            subscriptions: Mutex::new(Subscriptions {
                sequence: 2,
                active: 0,
                tree: Vec::new(),
                deferred: Vec::new(),
            }),
            wait: Condvar::new(),
            log: std::sync::Mutex::new(vec![(0, 0); pages]),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap()
    }

    /// How many invalidations of a page have begun, and whether one is under way.
    pub(crate) fn activity(&self, page: usize) -> (usize, bool) {
        let (begun, active) = self.log.lock().unwrap()[page];
        (begun, active > 0)
    }

    /// `mmu_notifier_invalidate_range_start`. False, from notifiers that may not sleep, is
    /// `-EAGAIN`: nothing is to be invalidated, and there is no end.
    pub(crate) fn invalidate_start(&self, pages: &Pages, may_sleep: bool) -> bool {
        for log in &mut self.log.lock().unwrap()[pages.clone()] {
            *log = (log.0 + 1, log.1 + 1);
        }
        let mut subscriptions = self.lock();
        subscriptions.active += 1;
        let overlaps = |of: &&Subscribed| overlap(of.notifier().pages(), pages);
        // The tree is frozen from here on if there is one.
        let concerned: Vec<_> = subscriptions
            .tree
            .iter()
            .filter(overlaps)
            .cloned()
            .collect();
        if !concerned.is_empty() {
            subscriptions.sequence |= 1;
        }
        let sequence = subscriptions.sequence;
        drop(subscriptions);

        let mut second_pass = Vec::new();
        let mut again = false;
        for interval in concerned {
            let mut pending = false;
            if !interval.invalidate_start(pages, sequence, may_sleep, &mut pending) {
                assert!(!may_sleep, "an invalidation that may sleep has to succeed");
                again = true;
                break;
            }
            if pending {
                second_pass.push(interval);
            }
        }
        for interval in second_pass {
            if !self.sabotage.skip_finish {
                interval.invalidate_finish();
            }
        }
        if again {
            self.invalidate_end(pages);
        }
        !again
    }

    /// `mmu_notifier_invalidate_range_end`.
    pub(crate) fn invalidate_end(&self, pages: &Pages) {
        let mut subscriptions = self.lock();
        for log in &mut self.log.lock().unwrap()[pages.clone()] {
            log.1 -= 1;
        }
        subscriptions.active -= 1;
        if subscriptions.active > 0 || !subscriptions.is_invalidating() {
            return;
        }
        subscriptions.sequence += 1;
        for interval in std::mem::take(&mut subscriptions.deferred) {
            match position(&subscriptions.tree, &interval) {
                Some(at) => drop(subscriptions.tree.remove(at)),
                None => subscriptions.tree.push(interval),
            }
        }
        drop(subscriptions);
        self.wait.notify_all();
    }

    /// `mmu_interval_read_begin`.
    pub(crate) fn read_begin(&self, notifier: &Notifier) -> usize {
        let mut subscriptions = self.lock();
        let sequence = notifier.sequence.load(Ordering::SeqCst);
        while subscriptions.sequence == sequence {
            subscriptions = self.wait.wait(subscriptions).unwrap();
        }
        sequence
    }

    /// `mmu_interval_notifier_insert`.
    pub(crate) fn insert(&self, interval: Subscribed) {
        let mut subscriptions = self.lock();
        let invalidating = subscriptions.active > 0;
        let sequence = if invalidating && !self.sabotage.insert_as_if_quiet {
            if subscriptions.is_invalidating() {
                subscriptions.deferred.push(Arc::clone(&interval));
            } else {
                subscriptions.sequence |= 1;
                subscriptions.tree.push(Arc::clone(&interval));
            }
            subscriptions.sequence
        } else {
            subscriptions.tree.push(Arc::clone(&interval));
            // Odd, whoever is invalidating.
            (subscriptions.sequence & !1) - 1
        };
        interval.notifier().set_sequence(sequence);
    }

    /// `mmu_interval_notifier_remove`: no callback runs any more when it returns.
    pub(crate) fn remove(&self, interval: &Subscribed) {
        let mut subscriptions = self.lock();
        let in_tree = position(&subscriptions.tree, interval);
        if !subscriptions.is_invalidating() {
            let at = in_tree.expect("it was inserted");
            subscriptions.tree.remove(at);
            return;
        }
        if in_tree.is_none() {
            let at = position(&subscriptions.deferred, interval).expect("it was inserted");
            subscriptions.deferred.remove(at);
            return;
        }
        subscriptions.deferred.push(Arc::clone(interval));
        let sequence = subscriptions.sequence;
        while subscriptions.sequence == sequence && !self.sabotage.remove_without_waiting {
            subscriptions = self.wait.wait(subscriptions).unwrap();
        }
    }

    /// Nobody is subscribed, and nothing under way.
    pub(crate) fn check_empty(&self) {
        let subscriptions = self.lock();
        assert_eq!(subscriptions.active, 0);
        assert!(!subscriptions.is_invalidating());
        assert!(subscriptions.tree.is_empty() && subscriptions.deferred.is_empty());
    }
}
