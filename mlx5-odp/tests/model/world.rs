// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! All there is, behind one lock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use firmware_cmds::PageFaultResume;
use hmm_abi::{finish, PublishError, Started};
use mlx5_odp::{MemoryError, NotIn, Report};

use super::chunk::{Area, Ref};
use super::device::Nic;
use super::memory::{Memory, Pages};

/// What a range fault comes to, other than success.
#[derive(Clone, Copy)]
pub(crate) enum Walk {
    Busy,
    Failed(MemoryError),
    /// An invalidation of something else comes right after it.
    Stale,
}

/// What goes wrong, on purpose.
#[derive(Default)]
pub(crate) struct Trouble {
    /// Of the next range faults.
    pub(crate) walks: VecDeque<Walk>,
    /// The same of those that fault nothing in.
    pub(crate) looks: VecDeque<Walk>,
    /// Of the next publications.
    pub(crate) publishes: VecDeque<PublishError>,
    /// The next zaps fail (true) or not.
    pub(crate) zaps: VecDeque<bool>,
    /// Chunks cannot be made so many times.
    pub(crate) chunks: usize,
    /// There is no scratch.
    pub(crate) scratch: bool,
    /// Revocations fail.
    pub(crate) revoke: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) memory: Memory,
    pub(crate) nic: Nic,
    /// Invalidations between start and end, by number.
    pub(crate) running: Vec<(usize, Pages)>,
    last_invalidation: usize,
    pub(crate) resumes: Vec<PageFaultResume>,
    pub(crate) queues_held: u32,
    /// As it was when the last access was resumed.
    pub(crate) queues_held_at_resume: u32,
    pub(crate) reports: Vec<Report>,
    /// Why accesses have failed.
    pub(crate) refused: Vec<NotIn>,
    /// Milliseconds; only sleeping passes them.
    pub(crate) clock: u32,
    pub(crate) sleeps: u32,
    pub(crate) gave_back: u32,
    /// QUERY_MKEYs.
    pub(crate) queries: u32,
    /// Range faults.
    pub(crate) walks: usize,
    /// The same, of those that fault nothing in.
    pub(crate) looks: usize,
    /// Those that asked for write.
    pub(crate) writes_asked: usize,
    pub(crate) trouble: Trouble,
}

fn overlap(one: &Pages, other: &Pages) -> bool {
    one.start < other.end && other.start < one.end
}

impl State {
    /// The number of an invalidation that begins, or of one that nobody hears of.
    pub(crate) fn next_invalidation(&mut self) -> usize {
        self.last_invalidation += 1;
        self.last_invalidation
    }

    /// Whether any of `pages` is being invalidated.
    pub(crate) fn is_invalidating(&self, pages: &Pages) -> bool {
        self.running.iter().any(|(_, other)| overlap(other, pages))
    }
}

/// The state, its lock, and who wants to hear of invalidations.
#[derive(Default)]
pub(crate) struct World {
    state: Mutex<State>,
    subscribed: Mutex<Vec<Weak<Area>>>,
}

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// `mmu_interval_notifier_insert`.
    pub(crate) fn subscribe(&self, area: &Arc<Area>) {
        self.subscribed.lock().unwrap().push(Arc::downgrade(area));
    }

    /// `mmu_interval_notifier_remove`: no callback runs any more when it returns.
    pub(crate) fn unsubscribe(&self, area: &Arc<Area>) {
        let other = |weak: &Weak<Area>| !std::ptr::eq(weak.as_ptr(), Arc::as_ptr(area));
        self.subscribed.lock().unwrap().retain(other);
        assert!(!self.state().is_invalidating(&area.pages));
    }

    /// What the kernel does to take `pages` away, and then to the pages. `finish` says whether
    /// there is a second pass.
    pub(crate) fn invalidate(
        &self,
        pages: &Pages,
        two_passes: bool,
        then: impl FnOnce(&mut Memory),
    ) {
        let number = {
            let mut state = self.state();
            let number = state.next_invalidation();
            // From here on faults of the range wait.
            state.running.push((number, pages.clone()));
            number
        };
        let concerned: Vec<_> = {
            let subscribed = self.subscribed.lock().unwrap();
            let alive = subscribed.iter().filter_map(Weak::upgrade);
            alive.filter(|area| overlap(&area.pages, pages)).collect()
        };
        let mut second_pass = Vec::new();
        for area in concerned {
            let chunk = Ref(area);
            match chunk.invalidate(pages, number, two_passes) {
                Started::Pending => second_pass.push(chunk),
                Started::Done => {}
                Started::WouldBlock => panic!("it may sleep"),
            }
        }
        for chunk in second_pass {
            finish(&chunk);
        }
        then(&mut self.state().memory);
        let end = |(other, _): &(usize, Pages)| *other != number;
        self.state().running.retain(end);
    }
}
