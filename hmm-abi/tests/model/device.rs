// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A device with a table of translations and a queue of updates of it, done in order by a thread
//! of its own; and the bus between it and memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hmm_abi::{Device, LockedChunk, NotZapped, PublishError, Table, Translation, Zap};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

use super::memory::Memory;
use super::{Failures, Sabotage, Threads};

/// DMA mappings: by bus address, the frame, and whether the device can see it yet.
#[derive(Default)]
pub(crate) struct Bus {
    mappings: std::sync::Mutex<BTreeMap<u64, (usize, bool)>>,
    next: AtomicUsize,
}

impl Bus {
    pub(crate) fn map(&self, frame: usize) -> u64 {
        // No address is used twice.
        let address = self.next.fetch_add(1, Ordering::Relaxed) as u64 + 0x1_0000;
        self.mappings
            .lock()
            .unwrap()
            .insert(address, (frame, false));
        address
    }

    pub(crate) fn sync(&self, address: u64) {
        self.mappings.lock().unwrap().get_mut(&address).unwrap().1 = true;
    }

    pub(crate) fn unmap(&self, address: u64) -> usize {
        let mapping = self.mappings.lock().unwrap().remove(&address);
        mapping.expect("unmapped twice").0
    }

    fn frame(&self, address: u64) -> usize {
        let mappings = self.mappings.lock().unwrap();
        let mapping = mappings.get(&address);
        let (frame, visible) = *mapping.expect("the device uses an address that is not mapped");
        assert!(visible, "the device uses a mapping that was not synced");
        frame
    }

    pub(crate) fn check_empty(&self) {
        assert!(self.mappings.lock().unwrap().is_empty(), "still mapped");
    }
}

struct Update {
    first: usize,
    translations: Vec<Option<Translation>>,
    is_zap: bool,
}

#[derive(Default)]
struct Queue {
    updates: VecDeque<Update>,
    posted: usize,
    /// Of each that was done, whether it succeeded.
    done: Vec<bool>,
    stop: bool,
}

#[derive(Default)]
struct Shown {
    translations: Vec<Option<Translation>>,
    gone: bool,
}

pub(crate) struct Nic {
    failures: Failures,
    sabotage: Sabotage,
    threads: Arc<Threads>,
    memory: Arc<Memory>,
    bus: Arc<Bus>,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Condvar,
    table: std::sync::Mutex<Shown>,
    /// Zaps posted and not settled.
    unsettled: AtomicUsize,
    /// Nothing fails any more.
    pub(crate) healthy: AtomicBool,
}

/// A zap that was posted: the number of its update.
#[derive(Debug)]
pub(crate) struct Ticket(usize);

impl Nic {
    pub(crate) fn new(
        entries: usize,
        failures: Failures,
        sabotage: Sabotage,
        threads: Arc<Threads>,
        memory: Arc<Memory>,
        bus: Arc<Bus>,
    ) -> Self {
        Self {
            failures,
            sabotage,
            threads,
            memory,
            bus,
            queue: Mutex::new(Queue::default()),
            work: Condvar::new(),
            done: Condvar::new(),
            table: std::sync::Mutex::new(Shown {
                translations: vec![None; entries],
                gone: false,
            }),
            unsettled: AtomicUsize::new(0),
            healthy: AtomicBool::new(false),
        }
    }

    fn fails(&self, percent: u32) -> bool {
        let healthy = self.healthy.load(Ordering::Relaxed);
        percent > 0 && !healthy && thread_rng().gen_range(0..100) < percent
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.table.lock().unwrap().gone
    }

    /// One access, and all that it does: false if it is a fault.
    pub(crate) fn access(&self, at: usize, write: bool) -> bool {
        let table = self.table.lock().unwrap();
        match table.translations[at] {
            Some(translation) if translation.write || !write => {
                let frame = self.bus.frame(translation.address);
                self.memory.access(at, frame, translation.write, write);
                true
            }
            _ => false,
        }
    }

    fn post<L: LockedChunk>(&self, table: &Table<'_, L>, is_zap: bool) -> usize {
        let first = table.first().0;
        let entries = self.table.lock().unwrap().translations.len();
        let end = first + table.len();
        assert_eq!(first % Self::GRANULE, 0);
        assert!(end % Self::GRANULE == 0 || end == entries);
        let mut queue = self.queue.lock().unwrap();
        queue.updates.push_back(Update {
            first,
            translations: table.translations().collect(),
            is_zap,
        });
        queue.posted += 1;
        self.work.notify_one();
        queue.posted - 1
    }

    fn wait(&self, number: usize) -> bool {
        let mut queue = self.queue.lock().unwrap();
        while queue.done.len() <= number {
            queue = self.done.wait(queue).unwrap();
        }
        queue.done[number]
    }

    /// The device's thread.
    pub(crate) fn run(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap();
            let update = loop {
                if let Some(update) = queue.updates.pop_front() {
                    break update;
                }
                if queue.stop {
                    return;
                }
                queue = self.work.wait(queue).unwrap();
            };
            drop(queue);
            thread::yield_now();
            let succeeded = self.update(&update);
            self.queue.lock().unwrap().done.push(succeeded);
            self.done.notify_all();
        }
    }

    /// A failed one is done in no part, in some or as a whole.
    fn update(&self, update: &Update) -> bool {
        let fails = match update.is_zap {
            true => self.fails(self.failures.zap),
            false => self.fails(self.failures.publish),
        };
        let len = update.translations.len();
        let done = if fails {
            thread_rng().gen_range(0..=len)
        } else {
            len
        };
        let mut skip = self.sabotage.skip_one_zap && update.is_zap;
        for (at, &translation) in (update.first..).zip(&update.translations).take(done) {
            if at % Self::GRANULE == 0 {
                thread::yield_now();
            }
            let mut table = self.table.lock().unwrap();
            let had = table.translations[at].is_some();
            if skip && had && translation.is_none() {
                skip = false;
                continue;
            }
            if !table.gone || self.sabotage.update_after_cut_off {
                table.translations[at] = translation;
            }
        }
        !fails && (update.is_zap || !self.is_gone())
    }

    pub(crate) fn stop(&self) {
        self.queue.lock().unwrap().stop = true;
        self.work.notify_one();
    }

    pub(crate) fn check_at_end(&self) {
        let unsettled = self.unsettled.load(Ordering::Relaxed);
        assert_eq!(unsettled, 0, "a zap that nobody waited for");
        let table = self.table.lock().unwrap();
        assert!(table.translations.iter().all(Option::is_none));
    }
}

impl Device for Nic {
    const GRANULE: usize = 8;

    type Ticket = Ticket;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        assert!(!table.is_blank(), "nothing to publish");
        if self.is_gone() && !self.sabotage.update_after_cut_off {
            return Err(PublishError::Gone);
        }
        if self.fails(self.failures.publish) {
            return Err(PublishError::Again);
        }
        let number = self.post(table, false);
        match self.wait(number) {
            true => Ok(()),
            false => Err(PublishError::Failed),
        }
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Ticket>, NotZapped> {
        if self.is_gone() {
            return Ok(Zap::Gone);
        }
        if self.fails(self.failures.zap) {
            return Err(NotZapped);
        }
        self.unsettled.fetch_add(1, Ordering::Relaxed);
        Ok(Zap::Posted(Ticket(self.post(table, true))))
    }

    fn settle(&self, ticket: Ticket) -> Result<(), NotZapped> {
        self.threads.check_unlocked();
        self.unsettled.fetch_sub(1, Ordering::Relaxed);
        if self.sabotage.settle_without_waiting {
            return Ok(());
        }
        self.wait(ticket.0).then_some(()).ok_or(NotZapped)
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.threads.check_unlocked();
        thread::yield_now();
        let fails = self.fails(self.failures.cut_off);
        let mut table = self.table.lock().unwrap();
        if table.gone {
            return Ok(());
        }
        if fails {
            return Err(NotZapped);
        }
        table.gone = true;
        table.translations.fill(None);
        Ok(())
    }
}
