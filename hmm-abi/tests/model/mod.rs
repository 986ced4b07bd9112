// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A process that changes its memory, a device that accesses it, and the mirror between them.
//!
//! Every lock of the mirror and of the notifiers, and every place where the kernel could be
//! preempted, is a point where the scheduler may run somebody else.

pub(crate) mod chunk;
pub(crate) mod device;
pub(crate) mod memory;
pub(crate) mod notifier;
pub(crate) mod process;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hmm_abi::{
    carried, release, serve, Around, Chunk, ChunkIndex, Device, Fault, FaultError, Geometry,
    HmmPfn, Indices, LockedChunk, MapError, Need, PublishError, Store,
};
use shuttle::rand::{thread_rng, Rng};
use shuttle::sync::{Arc, Mutex, RwLock};
use shuttle::thread::{self, ThreadId};

use chunk::Ref;
use device::{Bus, Nic};
use memory::Memory;
use notifier::{Interval, Notifiers, Pages};

/// What a run may do wrong, on purpose.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sabotage {
    /// Not to look whether an invalidation has come.
    pub(crate) skip_retry_check: bool,
    /// Not to record an invalidation.
    pub(crate) skip_set_sequence: bool,
    /// Of each zap, not to take the first translation back.
    pub(crate) skip_one_zap: bool,
    /// Not to wait for a zap.
    pub(crate) settle_without_waiting: bool,
    /// Not to call the second pass.
    pub(crate) skip_finish: bool,
    /// To take no reference on what the device keeps.
    pub(crate) skip_hold: bool,
    /// A notifier that is inserted during an invalidation does not count as concerned.
    pub(crate) insert_as_if_quiet: bool,
    /// The removal of a notifier returns while its callbacks still run.
    pub(crate) remove_without_waiting: bool,
    /// To free chunks that somebody holds.
    pub(crate) reap_held: bool,
    /// The device takes updates after it was cut off.
    pub(crate) update_after_cut_off: bool,
}

/// How often, of 100, something fails.
#[derive(Clone, Copy, Default)]
pub(crate) struct Failures {
    pub(crate) zap: u32,
    pub(crate) cut_off: u32,
    pub(crate) publish: u32,
    pub(crate) map: u32,
    pub(crate) busy: u32,
    /// An invalidation has to do all in one pass.
    pub(crate) one_pass: u32,
}

/// What each thread is in the middle of: locks held, and whether it is in a callback.
#[derive(Default)]
pub(crate) struct Threads(std::sync::Mutex<HashMap<ThreadId, (usize, bool)>>);

impl Threads {
    fn change<T>(&self, change: impl FnOnce(&mut (usize, bool)) -> T) -> T {
        let id = thread::current().id();
        change(self.0.lock().unwrap().entry(id).or_default())
    }

    fn lock(&self) {
        self.change(|thread| thread.0 += 1);
    }

    fn unlock(&self) {
        self.change(|thread| thread.0 -= 1);
    }

    fn check_unlocked(&self) {
        let locks = self.change(|thread| thread.0);
        assert_eq!(locks, 0, "a lock is held");
    }

    /// Returns what it was.
    fn enter_callback(&self, inside: bool) -> bool {
        self.change(|thread| std::mem::replace(&mut thread.1, inside))
    }

    fn check_may_allocate(&self) {
        let inside = self.change(|thread| thread.1);
        assert!(!inside, "an invalidation allocates");
    }
}

/// What all chunks have in common.
pub(crate) struct Parts {
    pub(crate) geometry: Geometry,
    sabotage: Sabotage,
    failures: Failures,
    threads: Arc<Threads>,
    pub(crate) notifiers: Notifiers,
    pub(crate) memory: Arc<Memory>,
    bus: Arc<Bus>,
    pub(crate) nic: Nic,
    pub(crate) invalidated: AtomicUsize,
    pub(crate) not_zapped: AtomicUsize,
}

/// A mirror and all around it.
pub(crate) struct World {
    pub(crate) parts: Arc<Parts>,
    index: Mutex<BTreeMap<ChunkIndex, Arc<Ref>>>,
    /// Whether the mirror is at its end; faults go on while it is held for reading.
    closed: RwLock<bool>,
    pub(crate) served: AtomicUsize,
    pub(crate) reaped: AtomicUsize,
    released: AtomicBool,
}

/// Why a fault came to nothing.
pub(crate) type Refused = Option<FaultError<()>>;

impl World {
    pub(crate) fn new(geometry: Geometry, sabotage: Sabotage, failures: Failures) -> Self {
        let entries = geometry.indices().len();
        let (threads, memory, bus) = (Arc::default(), Arc::default(), Arc::default());
        let parts = Parts {
            geometry,
            sabotage,
            failures,
            threads: Arc::clone(&threads),
            notifiers: Notifiers::new(sabotage, entries),
            memory: Arc::clone(&memory),
            bus: Arc::clone(&bus),
            nic: Nic::new(entries, failures, sabotage, threads, memory, bus),
            invalidated: AtomicUsize::new(0),
            not_zapped: AtomicUsize::new(0),
        };
        Self {
            parts: Arc::new(parts),
            index: Mutex::default(),
            closed: RwLock::new(false),
            served: AtomicUsize::new(0),
            reaped: AtomicUsize::new(0),
            released: AtomicBool::new(false),
        }
    }

    /// Serves a fault on `pages`; `Err(None)` if the mirror is at its end.
    pub(crate) fn fault(&self, pages: &Pages, need: Need) -> Result<(), Refused> {
        let closed = self.closed.read().unwrap();
        if *closed {
            return Err(None);
        }
        let geometry = &self.parts.geometry;
        let indices = Indices::new(pages.clone());
        let mut scratch = vec![HmmPfn::EMPTY; geometry.scratch_len(geometry.indices())];
        for (at, slots) in geometry.by_chunk(indices) {
            let chunk = self.find_or_make(at).map_err(|()| None)?;
            let first = geometry.chunk(at).first().0;
            let log = |slot| self.parts.notifiers.activity(first + slot);
            let before: Vec<_> = slots.range().map(log).collect();
            let around = match (need, slots.first().checked_sub(1), at.0.checked_sub(1)) {
                (Need::Snapshot, ..) => Around::Nothing,
                (_, None, Some(before)) => Around::Likely {
                    before: self
                        .find(ChunkIndex(before))
                        .map_or(0, |chunk| carried(&chunk)),
                },
                _ => Around::Likely { before: 0 },
            };
            let fault = Fault {
                slots,
                need,
                around,
            };
            let result = serve(&chunk, geometry, &fault, scratch.as_mut_slice())
                .map(|outcome| outcome.served);
            self.check_error(result.err());
            result.map_err(Some)?;
            self.served.fetch_add(1, Ordering::Relaxed);
            // What was served is served.
            for (slot, before) in slots.range().zip(before) {
                let at = first + slot;
                if need != Need::Snapshot && !self.parts.nic.access(at, need == Need::Write) {
                    let disturbed = before.1 || log(slot) != before;
                    let gone = self.parts.nic.is_gone();
                    assert!(
                        disturbed || gone,
                        "the device does not have what was served"
                    );
                }
            }
        }
        drop(closed);
        Ok(())
    }

    fn check_error(&self, error: Option<FaultError<()>>) {
        let failures = &self.parts.failures;
        match error {
            None | Some(FaultError::Race) => {}
            Some(FaultError::Busy) => {}
            Some(FaultError::Stuck) => assert!(failures.cut_off > 0),
            Some(FaultError::Map(MapError::Memory | MapError::Unreachable)) => {
                assert!(failures.map > 0);
            }
            Some(FaultError::Publish(PublishError::Gone)) => assert!(self.parts.nic.is_gone()),
            Some(FaultError::Publish(_)) => {
                assert!(failures.publish > 0 || self.parts.nic.is_gone());
            }
            Some(error) => panic!("{error:?}"),
        }
    }

    /// An access by the device, and faults until it is done or refused.
    pub(crate) fn access(&self, pages: &Pages, write: bool) {
        let need = if write { Need::Write } else { Need::Read };
        for _ in 0..4 {
            thread::yield_now();
            if pages.clone().all(|page| self.parts.nic.access(page, write)) {
                return;
            }
            if let Err(None) = self.fault(pages, need) {
                return;
            }
        }
    }

    /// Frees chunks that are idle.
    pub(crate) fn reap(&self) {
        let closed = self.closed.read().unwrap();
        let mut index = self.index.lock().unwrap();
        let idle = index.iter().find_map(|(&at, chunk)| {
            let held = chunk.area.holders.load(Ordering::Relaxed) > 0;
            if *closed || (held && !self.parts.sabotage.reap_held) {
                return None;
            }
            let locked = chunk.try_lock()?;
            locked.book().is_idle().then_some(at)
        });
        let chunk = idle.and_then(|at| index.remove(&at));
        drop(index);
        let Some(chunk) = chunk else { return };
        self.unsubscribe(&chunk);
        chunk.area.free();
        self.reaped.fetch_add(1, Ordering::Relaxed);
    }

    fn unsubscribe(&self, chunk: &Arc<Ref>) {
        self.parts.threads.check_unlocked();
        let interval: Arc<dyn Interval> = Arc::<Ref>::clone(chunk);
        self.parts.notifiers.remove(&interval);
    }

    /// The end of the mirror, once.
    pub(crate) fn deregister(&self) {
        if self.released.swap(true, Ordering::Relaxed) {
            return;
        }
        // The device is told first; who is in the middle of a fault notices.
        let _ = self.parts.nic.cut_off();
        *self.closed.write().unwrap() = true;
        let chunks = std::mem::take(&mut *self.index.lock().unwrap());
        for chunk in chunks.values() {
            self.unsubscribe(chunk);
        }
        for chunk in chunks.values() {
            let failed = release(&**chunk).is_err();
            let locked = chunk.lock();
            assert!(
                locked.book().mapped() == 0 || failed,
                "what is released is not mapped"
            );
        }
        // The device is reset.
        self.parts.nic.healthy.store(true, Ordering::Relaxed);
        for chunk in chunks.values() {
            assert!(release(&**chunk).is_ok());
            chunk.area.free();
        }
    }

    /// After [`deregister`](Self::deregister), with nobody at work: nothing is left of it.
    pub(crate) fn check_at_end(&self) {
        self.parts.notifiers.check_empty();
        self.parts.bus.check_empty();
        self.parts.nic.check_at_end();
        self.parts.memory.check_at_end();
        assert!(self.index.lock().unwrap().is_empty());
    }
}

impl Parts {
    fn chance(&self, percent: u32) -> bool {
        percent > 0 && thread_rng().gen_range(0..100) < percent
    }
}

impl Store for World {
    type Chunk = Ref;

    fn find(&self, at: ChunkIndex) -> Option<Ref> {
        self.index
            .lock()
            .unwrap()
            .get(&at)
            .map(|chunk| chunk.hold())
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Ref, ()> {
        if let Some(chunk) = self.find(at) {
            return Ok(chunk);
        }
        self.parts.threads.check_may_allocate();
        let indices = self.parts.geometry.chunk(at);
        let pages = indices.first().0..indices.end().0;
        let chunk = Arc::new(Ref::new(Arc::clone(&self.parts), pages));
        self.parts.notifiers.insert(Arc::<Ref>::clone(&chunk));
        let mut index = self.index.lock().unwrap();
        if let Some(first) = index.get(&at).map(|chunk| chunk.hold()) {
            drop(index);
            self.unsubscribe(&chunk);
            chunk.area.free();
            return Ok(first);
        }
        let found = chunk.hold();
        index.insert(at, chunk);
        Ok(found)
    }
}
