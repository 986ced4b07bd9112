// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A chunk is made while an invalidation comes: either the invalidation finds the chunk, or the
//! fault that made it finds the invalidation.
//!
//! Where each chunk has a notifier the kernel sees to that: it inserts the notifier, and looks up
//! whom an invalidation concerns, under one spinlock. A mirror with one notifier that looks its
//! chunks up after `mmu_interval_set_seq` has to see to it by itself, which a simulation of
//! sequentially consistent interleavings would not tell. Hence all executions, in the memory
//! orderings of the kernel: a spinlock is a mutex, `WRITE_ONCE` and `READ_ONCE` are relaxed.

use std::panic::{catch_unwind, AssertUnwindSafe};

use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{fence, AtomicBool, AtomicUsize};
use loom::sync::{Arc, Mutex};
use loom::thread;

const MISSED: &str = "the device has a page that is gone";

/// `struct mmu_notifier_subscriptions`, with one notifier in the tree or not.
struct Subscriptions {
    sequence: usize,
    active: usize,
    inserted: bool,
    deferred: bool,
}

/// How an invalidation finds the chunk.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    /// By the chunk's own notifier.
    ByNotifier,
    /// In the mirror's index, which nothing orders against the sequence.
    InIndex,
    /// The same, with a full barrier on both sides.
    InIndexWithBarriers,
    /// In the index under its lock, with the sequence set under the same one.
    InLockedIndex,
}

struct Mirror {
    found: Found,
    subscriptions: Mutex<Subscriptions>,
    /// `mmu_interval_notifier::invalidate_seq`, of the chunk or of the whole mirror.
    sequence: AtomicUsize,
    index: AtomicBool,
    index_lock: Mutex<()>,
    /// The chunk: whether the device has its page.
    chunk: Mutex<bool>,
    /// The process's page table: whether the page is there.
    page: Mutex<bool>,
}

impl Mirror {
    fn new(found: Found) -> Self {
        Self {
            found,
            subscriptions: Mutex::new(Subscriptions {
                sequence: 2,
                active: 0,
                inserted: found != Found::ByNotifier,
                deferred: false,
            }),
            sequence: AtomicUsize::new(1),
            index: AtomicBool::new(false),
            index_lock: Mutex::new(()),
            chunk: Mutex::new(false),
            page: Mutex::new(true),
        }
    }

    /// `mmu_interval_notifier_insert`.
    fn insert(&self) {
        let mut subscriptions = self.subscriptions.lock().unwrap();
        if subscriptions.active > 0 {
            if subscriptions.sequence & 1 != 0 {
                subscriptions.deferred = true;
            } else {
                subscriptions.sequence |= 1;
                subscriptions.inserted = true;
            }
            self.sequence.store(subscriptions.sequence, Relaxed);
        } else {
            self.sequence.store(subscriptions.sequence - 1, Relaxed);
            subscriptions.inserted = true;
        }
    }

    /// `mmu_interval_read_begin`, or `None` where it would wait.
    fn read_begin(&self) -> Option<usize> {
        let subscriptions = self.subscriptions.lock().unwrap();
        let sequence = self.sequence.load(Relaxed);
        (sequence != subscriptions.sequence).then_some(sequence)
    }

    /// Makes the chunk's place in the mirror's own index.
    fn make(&self) {
        match self.found {
            Found::ByNotifier => {}
            Found::InIndex => self.index.store(true, Release),
            Found::InIndexWithBarriers => {
                self.index.store(true, Release);
                fence(SeqCst);
            }
            Found::InLockedIndex => {
                let _index = self.index_lock.lock().unwrap();
                self.index.store(true, Relaxed);
            }
        }
    }

    /// A fault in a chunk that does not exist yet.
    fn fault(&self) {
        if self.found == Found::ByNotifier {
            self.insert();
        }
        let Some(sequence) = self.read_begin() else {
            return;
        };
        let present = *self.page.lock().unwrap();
        self.make();
        let mut chunk = self.chunk.lock().unwrap();
        if self.sequence.load(Relaxed) == sequence {
            *chunk = present;
        }
    }

    /// Sets the sequence, and says whether there is a chunk to take something back in.
    fn set_sequence(&self, sequence: usize) -> bool {
        let _index = (self.found == Found::InLockedIndex).then(|| self.index_lock.lock().unwrap());
        self.sequence.store(sequence, Relaxed);
        if self.found == Found::InIndexWithBarriers {
            fence(SeqCst);
        }
        self.index.load(Acquire)
    }

    /// `munmap` of the page.
    fn unmap(&self) {
        let mut subscriptions = self.subscriptions.lock().unwrap();
        subscriptions.active += 1;
        let concerned = subscriptions.inserted;
        if concerned {
            subscriptions.sequence |= 1;
        }
        let sequence = subscriptions.sequence;
        drop(subscriptions);
        if concerned && self.found == Found::ByNotifier {
            let mut chunk = self.chunk.lock().unwrap();
            self.sequence.store(sequence, Relaxed);
            *chunk = false;
        } else if concerned && self.set_sequence(sequence) {
            *self.chunk.lock().unwrap() = false;
        }
        *self.page.lock().unwrap() = false;

        let mut subscriptions = self.subscriptions.lock().unwrap();
        subscriptions.active -= 1;
        if subscriptions.sequence & 1 != 0 {
            subscriptions.sequence += 1;
            subscriptions.inserted |= subscriptions.deferred;
        }
    }
}

/// All executions of a fault that makes the chunk, and an invalidation.
fn explore(found: Found) {
    loom::model(move || {
        let mirror = Arc::new(Mirror::new(found));
        let fault = {
            let mirror = Arc::clone(&mirror);
            thread::spawn(move || mirror.fault())
        };
        mirror.unmap();
        fault.join().unwrap();
        let (chunk, page) = (mirror.chunk.lock().unwrap(), mirror.page.lock().unwrap());
        assert!(!*chunk || *page, "{MISSED}");
    });
}

#[test]
fn a_notifier_for_each_chunk_misses_nothing() {
    explore(Found::ByNotifier);
}

#[test]
fn one_notifier_and_an_index_without_order_miss_each_other() {
    let missed = catch_unwind(AssertUnwindSafe(|| explore(Found::InIndex)));
    let panic = missed.expect_err("not found");
    let message = (panic.downcast_ref::<String>().map(String::as_str))
        .or_else(|| panic.downcast_ref::<&str>().copied());
    assert_eq!(message, Some(MISSED));
}

#[test]
fn barriers_or_a_common_lock_would_do_too() {
    explore(Found::InIndexWithBarriers);
    explore(Found::InLockedIndex);
}
