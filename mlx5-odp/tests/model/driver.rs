// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The crate's traits on the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{DmaAddr, Iova, Mkey, PageFaultResume, WqeFault};
use mlx5_odp::xlt::{self, Table};
use mlx5_odp::{
    invalidate, Access, Driver, FaultError, Invalidate, Invalidated, LockedPages, NoRegion, NoWqe,
    NotZapped, PageIndex, PageRun, PageShift, PageState, Placement, Pressure, Queue, Region,
    Repeats, Report, Unsupported, UserVa, VaRange,
};

use super::schedule::Schedule;
use super::world::{Frame, Mirrored, Mr, Protection, World};

const PAGE: u64 = 4096;

/// A driver on a world.
pub(crate) struct Model {
    world: Mutex<World>,
    pub(crate) schedule: Arc<Schedule>,
    repeats: Mutex<Repeats>,
    pub(crate) queues: BTreeMap<u32, ModelQueue>,
    pub(crate) unsupported: BTreeMap<u32, Unsupported>,
}

/// A queue pair.
#[derive(Clone)]
pub(crate) struct ModelQueue {
    pub(crate) transport: Option<SendTransport>,
    pub(crate) signature: bool,
    pub(crate) send: Vec<u8>,
    pub(crate) receive: Vec<u8>,
    pub(crate) error: Option<NoWqe>,
}

impl Default for ModelQueue {
    fn default() -> Self {
        Self {
            transport: Some(SendTransport::Connected),
            signature: false,
            send: Vec::new(),
            receive: Vec::new(),
            error: None,
        }
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            world: Mutex::default(),
            schedule: Schedule::new(),
            repeats: Mutex::new(Repeats::new()),
            queues: BTreeMap::new(),
            unsupported: BTreeMap::new(),
        }
    }

    /// Another thread may run, then the world.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.schedule.step();
        self.world.lock().unwrap()
    }

    /// Registers `pages` pages at `address`, which the device knows as `iova`.
    pub(crate) fn register(&self, mkey: Mkey, iova: u64, address: u64, bytes: u64, writable: bool) {
        let start = address / PAGE * PAGE;
        let end = (address + bytes).next_multiple_of(PAGE);
        let mr = Mr {
            placement: Placement {
                iova: Iova::new(iova),
                address: UserVa(address),
                pages: VaRange::new(UserVa(start), UserVa(end)).unwrap(),
                shift: PageShift::BASE,
                writable,
            },
            locked: false,
            refs: 0,
            known: true,
            revoked: false,
            sequence: 0,
            invalidating: 0,
            mirror: BTreeMap::new(),
            mapped: 0,
            kept: Default::default(),
            faults: 0,
            faults_handled: 0,
            prefetched: 0,
        };
        let mut world = self.world();
        world.mrs.insert(mkey.get(), mr);
        world.enabled.insert(mkey.get());
    }

    fn lock(&self, mkey: Mkey) {
        loop {
            let mut world = self.world();
            if !world.mr(mkey).locked {
                world.mr(mkey).locked = true;
                return;
            }
            drop(world);
            assert!(
                Arc::strong_count(&self.schedule) > 1,
                "locked by this very thread"
            );
        }
    }

    fn unlock(&self, mkey: Mkey) {
        self.world.lock().unwrap().mr(mkey).locked = false;
    }

    /// What the kernel does to take a range of page numbers away, and then to the pages.
    pub(crate) fn take_away(
        &self,
        mkey: Mkey,
        pages: PageRun,
        then: impl FnOnce(&mut World),
    ) -> Invalidated {
        // invalidate_start: from here on faults of the range wait.
        self.world().mr(mkey).invalidating += 1;
        self.lock(mkey);
        self.world().mr(mkey).sequence += 1;
        let done = invalidate(&mut Locked { model: self, mkey }, pages);
        self.unlock(mkey);
        let mut world = self.world();
        then(&mut world);
        world.mr(mkey).invalidating -= 1;
        done
    }

    /// Destroys a region as `mr.c` does: unknown to faults, unused, revoked, unmapped.
    pub(crate) fn deregister(&self, mkey: Mkey) {
        self.world().mr(mkey).known = false;
        while self.world().mr(mkey).refs > 0 {}
        self.lock(mkey);
        {
            let mut world = self.world();
            world.tables.retain(|(key, _), _| *key != mkey.get());
            world.enabled.remove(&mkey.get());
            world.mr(mkey).revoked = true;
        }
        let placement = self.world().mr(mkey).placement;
        Locked { model: self, mkey }.unmap(placement.pages_of(placement.pages));
        self.unlock(mkey);
        assert_eq!(
            self.world().mr(mkey).mapped,
            0,
            "pages mapped after the release"
        );
    }

    /// A table update of whole blocks, as umr.c does one.
    fn update(&self, mkey: Mkey, run: PageRun) {
        let count = {
            let mut world = self.world();
            world.updates += 1;
            let placement = world.mr(mkey).placement;
            placement.pages_of(placement.pages).count
        };
        let first = run.first.0 / xlt::UMR_BLOCK * xlt::UMR_BLOCK;
        let end = run.end().0.next_multiple_of(xlt::UMR_BLOCK).min(count);
        let table = Locked { model: self, mkey };
        let entries: Vec<_> = (first..end)
            .map(PageIndex)
            .map(|page| (page, xlt::entry(&table, page)))
            .collect();

        // The device writes one block at a time.
        for (page, mtt) in entries {
            let mut world = self.world();
            let key = (mkey.get(), page);
            if mtt.is_present() {
                world.tables.insert(key, (mtt.addr(), mtt.access()));
            } else {
                world.tables.remove(&key);
            }
        }
    }
}

/// A region that its holder has locked.
pub(crate) struct Locked<'a> {
    pub(crate) model: &'a Model,
    pub(crate) mkey: Mkey,
}

impl Table for Locked<'_> {
    fn state(&self, page: PageIndex) -> PageState {
        let mut world = self.model.world.lock().unwrap();
        let mr = world.mr(self.mkey);
        if mr.kept.contains(&page) {
            return PageState::Stuck;
        }
        let mirrored = mr.mirror.get(&page);
        mirrored.map_or(PageState::Absent, Mirrored::state)
    }

    fn dma_addr(&self, page: PageIndex) -> Option<DmaAddr> {
        let mut world = self.model.world.lock().unwrap();
        world
            .mr(self.mkey)
            .mirror
            .get(&page)
            .map(|page| page.frame.dma())
    }
}

impl Invalidate for Locked<'_> {
    fn has_mkey(&self) -> bool {
        !self.model.world().mr(self.mkey).revoked
    }

    fn state(&self, page: PageIndex) -> PageState {
        Table::state(self, page)
    }

    fn leave(&mut self, page: PageIndex) {
        let mut world = self.model.world();
        let mirrored = world.mr(self.mkey).mirror.get_mut(&page);
        mirrored.expect("a mapped page").leaving = true;
    }

    fn zap(&mut self, run: PageRun) -> Result<(), NotZapped> {
        {
            let mut world = self.model.world();
            world.zaps += 1;
            if world.trouble.zaps.pop_front() == Some(true) {
                return Err(NotZapped);
            }
            if world.trouble.skip_zap == Some(world.zaps) {
                return Ok(());
            }
        }
        self.model.update(self.mkey, run);
        Ok(())
    }

    fn revoke(&mut self) -> Result<(), NotZapped> {
        let mut world = self.model.world();
        if world.trouble.revoke {
            return Err(NotZapped);
        }
        world.tables.retain(|(key, _), _| *key != self.mkey.get());
        world.mr(self.mkey).revoked = true;
        Ok(())
    }

    fn unmap(&mut self, run: PageRun) {
        let mut world = self.model.world();
        for page in run.iter() {
            if world.mr(self.mkey).kept.contains(&page) {
                continue;
            }
            let Some(old) = world.mr(self.mkey).mirror.remove(&page) else {
                continue;
            };
            if old.mapped {
                world.mr(self.mkey).mapped -= 1;
                if old.access == Access::Write {
                    if world.freed.contains(&old.frame) {
                        world.violations.push("a freed frame marked dirty".into());
                    }
                    world.dirty.insert(old.frame);
                }
            }
        }
    }

    fn keep(&mut self, page: PageIndex) {
        let mut world = self.model.world();
        assert!(world.mr(self.mkey).kept.insert(page), "kept twice");
    }
}

/// A reference to a region.
pub(crate) struct ModelRegion<'a> {
    model: &'a Model,
    mkey: Mkey,
}

impl Drop for ModelRegion<'_> {
    fn drop(&mut self) {
        self.model.world.lock().unwrap().mr(self.mkey).refs -= 1;
    }
}

impl Region for ModelRegion<'_> {
    type Pages<'a>
        = ModelPages<'a>
    where
        Self: 'a;

    fn mkey(&self) -> Mkey {
        self.mkey
    }

    fn placement(&self) -> Placement {
        self.model.world().mr(self.mkey).placement
    }

    fn fault_and_lock(&self, range: VaRange, access: Access) -> Result<ModelPages<'_>, FaultError> {
        let placement = self.placement();
        assert!(range.start() >= placement.pages.start() && range.end() <= placement.pages.end());
        let run = placement.pages_of(range);
        if access == Access::Write {
            self.model.world().writes_asked += 1;
        }
        if let Some(error) = self.model.world().trouble.faults.pop_front() {
            return Err(error);
        }

        loop {
            // hmm_range_fault: begin, walk page by page, all without the lock.
            let sequence = {
                let mut world = self.model.world();
                let mr = world.mr(self.mkey);
                if mr.invalidating > 0 {
                    return Err(FaultError::Again(Pressure::Held));
                }
                mr.sequence
            };
            let mut snapshot: Vec<(PageIndex, Frame, Access)> = Vec::new();
            for page in run.iter() {
                let mut world = self.model.world();
                let number = placement.pages.start().0 / PAGE + page.0;
                let protection = world.protection.get(&number).copied();
                let have = match protection.unwrap_or(Protection::None) {
                    Protection::None => return Err(FaultError::Invalid),
                    Protection::Read => Access::Read,
                    // The PTE of a page that was only read is not writable.
                    Protection::Write => access,
                };
                if have < access {
                    return Err(FaultError::WriteRefused);
                }
                snapshot.push((page, world.touch(number), have));
            }

            self.model.lock(self.mkey);
            let mut world = self.model.world();
            let check = !world.trouble.no_retry_check;
            let mr = world.mr(self.mkey);
            if mr.revoked {
                mr.locked = false;
                return Err(FaultError::Invalid);
            }
            if check && (mr.sequence != sequence || mr.invalidating > 0) {
                mr.locked = false;
                continue;
            }
            for (page, frame, have) in snapshot {
                let mirrored = mr.mirror.entry(page).or_insert(Mirrored {
                    frame,
                    access: have,
                    mapped: false,
                    leaving: false,
                });
                mirrored.access = mirrored.access.max(have);
                if check {
                    assert_eq!(
                        mirrored.frame, frame,
                        "{page:?} changed without invalidation"
                    );
                }
            }
            return Ok(ModelPages {
                model: self.model,
                mkey: self.mkey,
            });
        }
    }

    fn count_fault(&self, base_pages: u64) {
        let mut world = self.model.world();
        world.mr(self.mkey).faults += base_pages;
        world.mr(self.mkey).faults_handled += 1;
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.model.world().mr(self.mkey).prefetched += base_pages;
    }
}

/// A locked range.
pub(crate) struct ModelPages<'a> {
    model: &'a Model,
    mkey: Mkey,
}

impl Drop for ModelPages<'_> {
    fn drop(&mut self) {
        self.model.unlock(self.mkey);
    }
}

impl LockedPages for ModelPages<'_> {
    fn state(&self, page: PageIndex) -> PageState {
        Table::state(
            &Locked {
                model: self.model,
                mkey: self.mkey,
            },
            page,
        )
    }

    fn map(&mut self, page: PageIndex) -> Result<(), FaultError> {
        let mut world = self.model.world();
        let mr = world.mr(self.mkey);
        let mirrored = mr.mirror.get_mut(&page).ok_or(FaultError::Invalid)?;
        if !mirrored.mapped {
            mirrored.mapped = true;
            mr.mapped += 1;
        }
        Ok(())
    }

    fn publish(&mut self, run: PageRun) -> Result<(), FaultError> {
        if let Some(error) = self.model.world().trouble.publishes.pop_front() {
            return Err(error);
        }
        self.model.update(self.mkey, run);
        Ok(())
    }
}

/// A WQE's bytes.
pub(crate) struct Bytes(Vec<u8>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Queue for ModelQueue {
    type Wqe = Bytes;

    fn transport(&self) -> Option<SendTransport> {
        self.transport
    }

    fn receive_signature(&self) -> bool {
        self.signature
    }

    fn read_send(&self, index: u16) -> Result<Bytes, NoWqe> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Bytes(self.send[usize::from(index) * 64..].to_vec())),
        }
    }

    fn read_receive(&self, _index: u16) -> Result<Bytes, NoWqe> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Bytes(self.receive.clone())),
        }
    }
}

impl Driver for Model {
    type Region<'a> = ModelRegion<'a>;
    type Queue<'a> = ModelQueue;

    fn region(&self, mkey: Mkey) -> Result<ModelRegion<'_>, NoRegion> {
        let mut world = self.world();
        if let Some(what) = self.unsupported.get(&mkey.get()) {
            return Err(NoRegion::Unsupported(*what));
        }
        let same_index = world
            .mrs
            .iter()
            .any(|(key, mr)| mr.known && Mkey::new(*key).index() == mkey.index());
        match world.mrs.get_mut(&mkey.get()).filter(|mr| mr.known) {
            Some(mr) => {
                mr.refs += 1;
                Ok(ModelRegion { model: self, mkey })
            }
            None if same_index => Err(NoRegion::Stale),
            None => Err(NoRegion::NotOdp),
        }
    }

    fn queue(&self, fault: &WqeFault) -> Option<ModelQueue> {
        self.queues.get(&fault.wq_number.get()).cloned()
    }

    fn end_of_list(&self) -> Mkey {
        Mkey::TERMINATE_SCATTER_LIST
    }

    fn resume(&self, command: &PageFaultResume) {
        self.world().resumes.push(*command);
    }

    fn back_off(&self, _why: Pressure, _attempt: u32) {
        self.world().backoffs += 1;
    }

    fn gave_back(&self, _why: Pressure) {
        self.world().gave_back += 1;
    }

    fn repeats(&self, mkey: Mkey, page: PageIndex) -> bool {
        let now = self.world().clock;
        self.repeats.lock().unwrap().note(mkey, page, now)
    }

    fn report(&self, report: Report) {
        self.world().reports.push(report);
    }
}
