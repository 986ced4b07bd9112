// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The crate's traits on the model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use firmware_cmds::{Iova, Mkey, PageFault, PageFaultResume, WqeFault};
use hmm_abi::{
    release, Chunk, ChunkIndex, Device, Geometry, HmmPfn, LockedChunk, NotZapped, Scratch, Slots,
    Store,
};
use mlx5_odp::{
    drain, serve, Driver, Found, FoundBy, MemoryError, NoQuery, NoRegion, NotIn, Placement,
    Pressure, Region, Report, Unsupported,
};

use super::buffer::{Exported, HeldBuffer};
use super::chunk::{Area, Ref};
use super::device::Key;
use super::implicit::{HeldParent, Parent};
use super::memory::{Memory, Pages};
use super::queue::{HeldQueue, ModelQueue};
use super::world::{State, World};

const PAGE_SHIFT: u32 = 12;
const HUGE_SHIFT: u32 = 21;
const PAGE: usize = 1 << PAGE_SHIFT;

/// A driver on a world.
pub(crate) struct Model {
    world: Arc<World>,
    mrs: Mutex<BTreeMap<u32, Arc<Mr>>>,
    pub(crate) parents: Vec<Arc<Parent>>,
    pub(crate) buffers: Vec<Arc<Exported>>,
    pub(crate) queues: BTreeMap<u32, ModelQueue>,
    pub(crate) unsupported: BTreeMap<u32, Unsupported>,
    /// Keys that refer to keys, by index: what QUERY_MKEY says of them.
    pub(crate) indirect: BTreeMap<u32, Result<Vec<u8>, NoQuery>>,
}

/// A region.
pub(crate) struct Mr {
    key: Arc<Key>,
    placement: Placement,
    chunks: Mutex<BTreeMap<ChunkIndex, Arc<Area>>>,
    /// Users of the key.
    users: AtomicUsize,
    /// Found by [`Driver::region`].
    known: AtomicBool,
    pub(crate) faults: AtomicU64,
    pub(crate) faults_handled: AtomicU64,
    pub(crate) prefetched: AtomicU64,
    /// Chunks that may have nothing in them.
    pub(crate) tidied: Mutex<Vec<ChunkIndex>>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            world: Arc::default(),
            mrs: Mutex::default(),
            parents: Vec::new(),
            buffers: Vec::new(),
            queues: BTreeMap::new(),
            unsupported: BTreeMap::new(),
            indirect: BTreeMap::new(),
        }
    }

    /// The world.
    pub(crate) fn world(&self) -> MutexGuard<'_, State> {
        self.world.state()
    }

    /// Registers `bytes` bytes at `address`, which the device knows as `iova`.
    pub(crate) fn register(
        &self,
        mkey: Mkey,
        iova: u64,
        address: usize,
        bytes: usize,
        writable: bool,
    ) {
        let pages = Geometry::cover(address, bytes, PAGE_SHIFT, PAGE_SHIFT).unwrap();
        self.register_as(mkey, iova, address, pages, writable);
    }

    /// The same in huge pages, which this process does not have.
    pub(crate) fn register_huge(&self, mkey: Mkey, iova: u64, address: usize, bytes: usize) {
        let entries = Geometry::cover(address, bytes, PAGE_SHIFT, HUGE_SHIFT).unwrap();
        self.register_as(mkey, iova, address, entries, true);
    }

    fn register_as(
        &self,
        mkey: Mkey,
        iova: u64,
        address: usize,
        geometry: Geometry,
        writable: bool,
    ) {
        let mr = Mr {
            key: Arc::new(Key {
                world: Arc::clone(&self.world),
                mkey,
            }),
            placement: Placement {
                iova: Iova::new(iova),
                address,
                geometry,
                writable,
            },
            chunks: Mutex::default(),
            users: AtomicUsize::new(0),
            known: AtomicBool::new(true),
            faults: AtomicU64::new(0),
            faults_handled: AtomicU64::new(0),
            prefetched: AtomicU64::new(0),
            tidied: Mutex::default(),
        };
        self.world().nic.keys.insert(mkey.get());
        self.mrs.lock().unwrap().insert(mkey.get(), Arc::new(mr));
    }

    pub(crate) fn mr(&self, mkey: Mkey) -> Arc<Mr> {
        Arc::clone(&self.mrs.lock().unwrap()[&mkey.get()])
    }

    /// How many entries of a region are mapped.
    pub(crate) fn mapped(&self, mkey: Mkey) -> usize {
        let chunks = self.mr(mkey).chunks();
        chunks.iter().map(|area| area.lock().book().mapped()).sum()
    }

    /// The device writes an event.
    pub(crate) fn raise(&self, fault: PageFault) {
        self.world().raise(fault);
    }

    /// The interrupt, and a worker that serves one event. False if there is none.
    pub(crate) fn serve_next(&self) -> bool {
        let next = {
            let mut state = self.world();
            drain(&mut state.nic.eq);
            state.nic.eq.dispatched.pop_front()
        };
        let Some(event) = next else { return false };
        serve(self, PageFault::from_eqe(&event.eqe), event.number);
        self.world().nic.eq.slots += 1;
        true
    }

    /// One access of the device to a page of a region; false if it faults.
    pub(crate) fn access(&self, mkey: Mkey, at: usize, write: bool) -> bool {
        let page = self.mr(mkey).placement.geometry.span().start / PAGE + at;
        let state = self.world();
        let access = state.nic.mtt(mkey, at).access();
        let is_done = if write { access.write } else { access.read };
        if is_done {
            state.memory.reached(page, write);
        }
        is_done
    }

    /// What the kernel does to take pages of the process away, and then to the pages.
    pub(crate) fn invalidate(&self, pages: &Pages, then: impl FnOnce(&mut Memory)) {
        self.world.invalidate(pages, true, then);
    }

    /// `munmap`, of pages that are mapped again at once.
    pub(crate) fn drop_pages(&self, pages: &Pages) {
        let range = pages.clone();
        self.invalidate(pages, |memory| range.for_each(|page| memory.free(page)));
    }

    /// Destroys a region as `mr.c` does: unknown to faults, revoked, unused, unmapped.
    pub(crate) fn deregister(&self, mkey: Mkey) -> Result<(), NotZapped> {
        let mr = self.mr(mkey);
        mr.known.store(false, Ordering::Relaxed);
        mr.key.cut_off()?;
        assert_eq!(mr.users.load(Ordering::Relaxed), 0, "a fault is under way");
        for chunk in mr.chunks() {
            self.world.unsubscribe(&chunk.0);
            release(&chunk)?;
            assert_eq!(chunk.lock().book().mapped(), 0);
        }
        Ok(())
    }

    /// After all regions are gone, nothing is left of them.
    pub(crate) fn check_at_end(&self) {
        let state = self.world();
        assert!(!state.memory.is_anything_held(), "still held");
        assert!(state.running.is_empty());
    }
}

impl State {
    fn raise(&mut self, fault: PageFault) {
        self.nic.eq.written.push_back(fault.to_eqe(true));
    }
}

impl Mr {
    /// The chunks that exist.
    pub(crate) fn chunks(&self) -> Vec<Ref> {
        let chunks = self.chunks.lock().unwrap();
        chunks.values().cloned().map(Ref).collect()
    }
}

/// A reference to a region.
pub(crate) struct HeldMr(Arc<Mr>);

impl HeldMr {
    pub(crate) fn new(mr: &Arc<Mr>) -> Self {
        mr.users.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(mr))
    }
}

impl Drop for HeldMr {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Store for HeldMr {
    type Chunk = Ref;

    fn find(&self, at: ChunkIndex) -> Option<Ref> {
        self.0.chunks.lock().unwrap().get(&at).cloned().map(Ref)
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Ref, MemoryError> {
        let world = &self.0.key.world;
        let mut chunks = self.0.chunks.lock().unwrap();
        if let Some(area) = chunks.get(&at).cloned() {
            return Ok(Ref(area));
        }
        {
            let mut state = world.state();
            if state.trouble.chunks > 0 {
                state.trouble.chunks -= 1;
                return Err(MemoryError::Again(Pressure::Memory));
            }
        }
        let geometry = &self.0.placement.geometry;
        let indices = geometry.chunk(at);
        let span = geometry.span_of(indices);
        let pages = span.start / PAGE..span.end / PAGE;
        let area = Arc::new(Area::new(Arc::clone(&self.0.key), indices, pages));
        world.subscribe(&area);
        chunks.insert(at, Arc::clone(&area));
        Ok(Ref(area))
    }
}

/// Memory for what range faults find, if there is any.
pub(crate) struct Room {
    fails: bool,
    pages: Vec<HmmPfn>,
}

impl Scratch for Room {
    fn pages(&mut self, pages: usize) -> Option<&mut [HmmPfn]> {
        if self.fails {
            return None;
        }
        self.pages.resize(pages, HmmPfn::EMPTY);
        Some(&mut self.pages)
    }
}

impl Region for HeldMr {
    type Scratch = Room;

    fn mkey(&self) -> Mkey {
        self.0.key.mkey
    }

    fn placement(&self) -> &Placement {
        &self.0.placement
    }

    fn scratch(&self) -> Room {
        Room {
            fails: self.0.key.world.state().trouble.scratch,
            pages: Vec::new(),
        }
    }

    fn occupancy(&self) -> Result<impl FnMut(ChunkIndex, Slots) -> bool + '_, NotIn> {
        Ok(|_, _| true)
    }

    fn tidy(&self, at: ChunkIndex) {
        self.0.tidied.lock().unwrap().push(at);
    }

    fn is_closing(&self) -> bool {
        !self.0.known.load(Ordering::Relaxed)
    }

    fn count_fault(&self, base_pages: u64) {
        self.0.faults.fetch_add(base_pages, Ordering::Relaxed);
        self.0.faults_handled.fetch_add(1, Ordering::Relaxed);
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.0.prefetched.fetch_add(base_pages, Ordering::Relaxed);
    }
}

impl Driver for Model {
    type Region<'a> = HeldMr;
    type Implicit<'a> = HeldParent<'a>;
    type Buffer<'a> = HeldBuffer;
    type Queue<'a> = HeldQueue<'a>;
    type Query = Vec<u8>;

    fn region(&self, mkey: Mkey) -> Result<FoundBy<'_, Self>, NoRegion> {
        if let Some(what) = self.unsupported.get(&mkey.get()) {
            return Err(NoRegion::Unsupported(*what));
        }
        if self.indirect.contains_key(&mkey.index().get()) {
            return Err(NoRegion::Indirect);
        }
        if let Some(parent) = self.parents.iter().find(|parent| parent.has_key(mkey)) {
            return Ok(Found::Implicit(HeldParent::new(self, parent)));
        }
        if let Some(buffer) = self.buffers.iter().find(|buffer| buffer.mkey == mkey) {
            return Ok(Found::Buffer(HeldBuffer(Arc::clone(buffer))));
        }
        let mrs = self.mrs.lock().unwrap();
        let known = |mr: &&Arc<Mr>| mr.known.load(Ordering::Relaxed);
        match mrs.get(&mkey.get()).filter(known) {
            Some(mr) => Ok(Found::Region(HeldMr::new(mr))),
            None => {
                let same_index = |mr: &Arc<Mr>| mr.key.mkey.index() == mkey.index();
                let stale = mrs.values().any(|mr| known(&mr) && same_index(mr));
                Err(if stale {
                    NoRegion::Stale
                } else {
                    NoRegion::NotOdp
                })
            }
        }
    }

    fn query(&self, mkey: Mkey) -> Result<Vec<u8>, NoQuery> {
        self.world().queries += 1;
        self.indirect[&mkey.index().get()].clone()
    }

    fn max_indirection(&self) -> u8 {
        4
    }

    fn queue(&self, fault: &WqeFault) -> Option<HeldQueue<'_>> {
        let queue = self.queues.get(&fault.wq_number.get())?;
        self.world().queues_held += 1;
        Some(HeldQueue { model: self, queue })
    }

    fn end_of_list(&self) -> Mkey {
        Mkey::TERMINATE_SCATTER_LIST
    }

    fn resume(&self, command: &PageFaultResume) {
        let mut state = self.world();
        state.queues_held_at_resume = state.queues_held;
        state.resumes.push(*command);
    }

    fn sleep(&self, milliseconds: u32) {
        let mut world = self.world();
        world.sleeps += 1;
        world.clock = world.clock.wrapping_add(milliseconds);
    }

    fn gave_back(&self, _why: Pressure) {
        self.world().gave_back += 1;
    }

    fn refused(&self, _: &PageFault, why: NotIn) {
        self.world().refused.push(why);
    }

    fn report(&self, report: Report) {
        self.world().reports.push(report);
    }
}
