// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The crate's traits on the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{DmaAddr, Iova, Mkey, PageFaultResume, WqeFault};
use hmm_abi::{
    Entry, Geometry, Host, Index, Need, Order, Proof, RangeError, Sequence, Shared, Span,
};
use mlx5_odp::xlt::{self, Table};
use mlx5_odp::{
    invalidate, Access, Driver, FaultError, Invalidate, Invalidated, LockedPages, NoRegion, NoWqe,
    NotZapped, PageIndex, PageRun, PageShift, PageState, Placement, Pressure, Queue, Region,
    Repeats, Report, Unsupported, UserVa, VaRange,
};

use super::schedule::Schedule;
use super::world::{Frame, Mr, Protection, World};

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
            entries: vec![Entry::EMPTY; usize::try_from((end - start) / PAGE).unwrap()],
            mapped: 0,
            faults: 0,
            faults_handled: 0,
            prefetched: 0,
        };
        let mut world = self.world();
        world.mrs.insert(mkey.get(), mr);
        world.enabled.insert(mkey.get());
    }

    fn lock(&self, mkey: Mkey) -> Locked<'_> {
        loop {
            let mut world = self.world();
            if !world.mr(mkey).locked {
                world.mr(mkey).locked = true;
                return Locked(View { model: self, mkey });
            }
            drop(world);
            assert!(
                Arc::strong_count(&self.schedule) > 1,
                "locked by this very thread"
            );
        }
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
        let mut locked = self.lock(mkey);
        self.world().mr(mkey).sequence += 1;
        let done = invalidate(&mut locked, pages);
        drop(locked);
        let mut world = self.world();
        then(&mut world);
        world.mr(mkey).invalidating -= 1;
        done
    }

    /// Destroys a region as `mr.c` does: unknown to faults, unused, revoked, unmapped.
    pub(crate) fn deregister(&self, mkey: Mkey) {
        self.world().mr(mkey).known = false;
        while self.world().mr(mkey).refs > 0 {}
        let mut locked = self.lock(mkey);
        {
            let mut world = self.world();
            world.tables.retain(|(key, _), _| *key != mkey.get());
            world.enabled.remove(&mkey.get());
            world.mr(mkey).revoked = true;
        }
        let geometry = locked.0.geometry();
        hmm_abi::release(&mut locked, &geometry, &());
        drop(locked);
        let mut world = self.world();
        assert_eq!(world.mr(mkey).mapped, 0, "pages mapped after the release");
        assert!(world.held.is_empty(), "pages held after the release");
    }

    /// The pages that the device did not give back.
    pub(crate) fn stuck(&self, mkey: Mkey) -> Vec<u64> {
        let view = View { model: self, mkey };
        let pages = 0..u64::try_from(view.geometry().indices().len()).unwrap();
        pages
            .filter(|page| view.state(PageIndex(*page)) == PageState::Stuck)
            .collect()
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
        let table = View { model: self, mkey };
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

/// A region's mirror.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    model: &'a Model,
    mkey: Mkey,
}

impl View<'_> {
    fn geometry(self) -> Geometry {
        let pages = self
            .model
            .world
            .lock()
            .unwrap()
            .mr(self.mkey)
            .placement
            .pages;
        let address = |va: UserVa| usize::try_from(va.0).unwrap();
        Geometry::of_span(address(pages.start())..address(pages.end()), 12, 12).unwrap()
    }

    fn entry(self, page: PageIndex) -> Entry {
        let mut world = self.model.world.lock().unwrap();
        world.mr(self.mkey).entries[usize::try_from(page.0).unwrap()]
    }

    fn set_entry(self, page: PageIndex, entry: Entry) {
        let mut world = self.model.world();
        world.mr(self.mkey).entries[usize::try_from(page.0).unwrap()] = entry;
    }
}

impl Table for View<'_> {
    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn dma_addr(&self, page: PageIndex) -> Option<DmaAddr> {
        Some(Frame::of(self.entry(page)).dma())
    }
}

/// Faults and the entries they find, as the kernel serves them.
impl<'a> Host for View<'a> {
    type Error = FaultError;
    type Shared<'h>
        = Locked<'a>
    where
        Self: 'h;

    fn lock(&self) -> Locked<'a> {
        self.model.lock(self.mkey)
    }

    fn range_fault(
        &self,
        span: &Span,
        need: Need,
        found: &mut [Entry],
    ) -> Result<Sequence, RangeError<FaultError>> {
        let sequence = {
            let mut world = self.model.world();
            let restless = world.trouble.restless;
            let mr = world.mr(self.mkey);
            if mr.invalidating > 0 {
                return Err(RangeError::Busy);
            }
            mr.sequence += usize::from(restless);
            mr.sequence
        };
        let first = u64::try_from(span.start).unwrap() / PAGE;
        for (number, entry) in (first..).zip(found) {
            let mut world = self.model.world();
            let protection = world.protection.get(&number).copied();
            let writable = match (protection.unwrap_or(Protection::None), need) {
                (Protection::None, _) => return Err(RangeError::Failed(FaultError::Invalid)),
                (Protection::Read, Need::Write) => {
                    return Err(RangeError::Failed(FaultError::WriteRefused))
                }
                (Protection::Read, _) => false,
                // The PTE of a page that was only read is not writable.
                (Protection::Write, need) => need == Need::Write,
            };
            *entry = Entry::present(world.touch(number).pfn(), writable, Order(0));
        }
        Ok(Sequence(sequence))
    }
}

/// A region that its holder has locked; the drop unlocks.
pub(crate) struct Locked<'a>(View<'a>);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let mut world = self.0.model.world.lock().unwrap();
        world.mr(self.0.mkey).locked = false;
    }
}

fn page_of(index: Index) -> PageIndex {
    PageIndex(u64::try_from(index.0).unwrap())
}

impl Shared for Locked<'_> {
    type LetGo = ();

    fn read_retry(&self, sequence: Sequence) -> bool {
        let mut world = self.0.model.world();
        !world.trouble.no_retry_check && world.mr(self.0.mkey).sequence != sequence.0
    }

    fn entry(&self, index: Index) -> Entry {
        self.0.entry(page_of(index))
    }

    fn store(&mut self, index: Index, entry: Entry, _: &Proof<'_>) {
        self.0.set_entry(page_of(index), entry);
    }

    fn dma_unmap(&mut self, index: Index, (): &()) {
        let entry = self.entry(index);
        assert!(entry.is_valid() && entry.is_dma_mapped());
        let bits = entry.bits() & !Entry::DMA_MAPPED;
        self.0.set_entry(page_of(index), Entry::from_bits(bits));
        self.0.model.world().mr(self.0.mkey).mapped -= 1;
    }

    fn set_dirty(&mut self, index: Index, (): &()) {
        let frame = Frame::of(self.entry(index));
        let mut world = self.0.model.world();
        if world.freed.contains(&frame) {
            world.violations.push("a freed frame marked dirty".into());
        }
        world.dirty.insert(frame);
    }

    fn unhold(&mut self, index: Index, (): &()) {
        let frame = Frame::of(self.entry(index));
        let mut world = self.0.model.world();
        assert!(world.held.remove(&frame), "a reference that nobody took");
        world.freed.insert(frame);
    }
}

impl Invalidate for Locked<'_> {
    fn has_mkey(&self) -> bool {
        !self.0.model.world().mr(self.0.mkey).revoked
    }

    fn state(&self, page: PageIndex) -> PageState {
        self.0.state(page)
    }

    fn leave(&mut self, page: PageIndex) {
        let entry = self.0.entry(page);
        self.0.set_entry(page, entry.leaving());
    }

    fn zap(&mut self, run: PageRun) -> Result<(), NotZapped> {
        {
            let mut world = self.0.model.world();
            world.zaps += 1;
            if world.trouble.zaps.pop_front() == Some(true) {
                return Err(NotZapped);
            }
            if world.trouble.skip_zap == Some(world.zaps) {
                return Ok(());
            }
        }
        self.0.model.update(self.0.mkey, run);
        Ok(())
    }

    fn revoke(&mut self) -> Result<(), NotZapped> {
        let mut world = self.0.model.world();
        if world.trouble.revoke {
            return Err(NotZapped);
        }
        world.tables.retain(|(key, _), _| *key != self.0.mkey.get());
        world.mr(self.0.mkey).revoked = true;
        Ok(())
    }

    fn unmap(&mut self, run: PageRun) {
        let index = |page: PageIndex| usize::try_from(page.0).unwrap();
        let indices = hmm_abi::Indices::new(index(run.first)..index(run.end()));
        hmm_abi::unmap(self, indices, &());
    }

    fn keep(&mut self, page: PageIndex) {
        let entry = self.0.entry(page);
        let frame = Frame::of(entry);
        assert!(self.0.model.world().held.insert(frame), "kept twice");
        self.0.set_entry(page, entry.stuck());
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
        = Locked<'a>
    where
        Self: 'a;

    fn mkey(&self) -> Mkey {
        self.mkey
    }

    fn placement(&self) -> Placement {
        self.model.world().mr(self.mkey).placement
    }

    fn fault_and_lock(&self, range: VaRange, access: Access) -> Result<Locked<'_>, FaultError> {
        let placement = self.placement();
        assert!(range.start() >= placement.pages.start() && range.end() <= placement.pages.end());
        if access == Access::Write {
            self.model.world().writes_asked += 1;
        }
        if let Some(error) = self.model.world().trouble.faults.pop_front() {
            return Err(error);
        }

        let view = View {
            model: self.model,
            mkey: self.mkey,
        };
        let geometry = view.geometry();
        let need = match access {
            Access::Read => Need::Read,
            Access::Write => Need::Write,
        };
        let size = |bytes: u64| usize::try_from(bytes).unwrap();
        let indices = geometry
            .within(size(range.start().0), size(range.bytes()))
            .unwrap();
        let mut scratch = vec![Entry::EMPTY; geometry.scratch_len(indices)];
        let locked =
            hmm_abi::fault(&view, &geometry, indices, need, &mut scratch).map_err(|error| {
                match error {
                    hmm_abi::FaultError::Busy => FaultError::Again(Pressure::Held),
                    hmm_abi::FaultError::Host(error) => error,
                    _ => FaultError::Invalid,
                }
            })?;
        if !Invalidate::has_mkey(&locked) {
            return Err(FaultError::Invalid);
        }
        Ok(locked)
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

impl LockedPages for Locked<'_> {
    fn state(&self, page: PageIndex) -> PageState {
        self.0.state(page)
    }

    fn map(&mut self, page: PageIndex) -> Result<(), FaultError> {
        let entry = self.0.entry(page);
        assert!(entry.is_valid(), "nothing there to be mapped: {page:?}");
        if !entry.is_dma_mapped() {
            let bits = entry.bits() | Entry::DMA_MAPPED;
            self.0.set_entry(page, Entry::from_bits(bits));
            self.0.model.world().mr(self.0.mkey).mapped += 1;
        }
        Ok(())
    }

    fn publish(&mut self, run: PageRun) -> Result<(), FaultError> {
        if let Some(error) = self.0.model.world().trouble.publishes.pop_front() {
            return Err(error);
        }
        self.0.model.update(self.0.mkey, run);
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

/// A reference to a queue.
pub(crate) struct HeldQueue<'a> {
    model: &'a Model,
    queue: &'a ModelQueue,
}

impl Drop for HeldQueue<'_> {
    fn drop(&mut self) {
        self.model.world().queues_held -= 1;
    }
}

impl Queue for HeldQueue<'_> {
    type Wqe = Bytes;

    fn transport(&self) -> Option<SendTransport> {
        self.queue.transport
    }

    fn receive_signature(&self) -> bool {
        self.queue.signature
    }

    fn read_send(&self, index: u16) -> Result<Bytes, NoWqe> {
        match self.queue.error {
            Some(error) => Err(error),
            None => Ok(Bytes(self.queue.send[usize::from(index) * 64..].to_vec())),
        }
    }

    fn read_receive(&self, _index: u16) -> Result<Bytes, NoWqe> {
        match self.queue.error {
            Some(error) => Err(error),
            None => Ok(Bytes(self.queue.receive.clone())),
        }
    }
}

impl Driver for Model {
    type Region<'a> = ModelRegion<'a>;
    type Queue<'a> = HeldQueue<'a>;

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

    fn queue(&self, fault: &WqeFault) -> Option<HeldQueue<'_>> {
        let queue = self.queues.get(&fault.wq_number.get())?;
        self.world().queues_held += 1;
        Some(HeldQueue { model: self, queue })
    }

    fn end_of_list(&self) -> Mkey {
        Mkey::TERMINATE_SCATTER_LIST
    }

    fn resume(&self, command: &PageFaultResume) {
        let mut world = self.world();
        world.queues_held_at_resume = world.queues_held;
        world.resumes.push(*command);
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

    fn progressed(&self, mkey: Mkey, pages: PageRun) {
        self.repeats.lock().unwrap().forget(mkey, pages);
    }

    fn report(&self, report: Report) {
        self.world().reports.push(report);
    }
}
