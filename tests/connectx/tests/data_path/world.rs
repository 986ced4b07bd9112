// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Traffic of every kind while pages come and go, from one seed. An "operating system" of a
//! few lines moves pages between frames and swap the way a driver must: the UMR that takes a
//! translation back completes before the frame is unmapped. An access through a stale
//! translation is then a violation. Every WQE must end in one completion, in the order of its
//! queue, and the bytes of every page are compared with what the operations should have left.
//!
//! - [`channel`]: the operations between two QPs, their receives and completions.

mod channel;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use connectx::{GuestMemory, Order};
use firmware_cmds::umr::{MkeyMask, UmrFlags};
use firmware_cmds::{
    AccessMode, DmaAddr, EventType, MemoryFault, Mkc, Mkey, Mtt, MttAccess, PageFault, Scheme,
    WqeFaultKind,
};

use crate::rig::{mtt, Rig, TestQp};
use channel::{Channel, Message, Queue};

/// First address of the MR.
pub(crate) const VA: u64 = 0x7f12_3456_7000;
pub(crate) const PAGE: usize = 4096;
/// Pages of the MR: parts of channels, receives, and at the end what is never taken away.
pub(crate) const PAGES: usize = 144;
/// First page of the receives of datagrams, on whose receive side ODP is not offered.
const PINNED: usize = 136;
/// Frames, at these IOVAs; more than pages, so that a frame rests before it is reused.
const FRAMES: u64 = 240;
const FRAME_BASE: u64 = 0x1_0000_0000;

/// Where a page is.
enum Place {
    Swap(Vec<u8>),
    Frame {
        iova: u64,
        access: MttAccess,
    },
    /// Its translations are being taken back.
    Leaving {
        iova: u64,
    },
}

/// A UMR, and how it ended.
#[derive(PartialEq)]
enum Update {
    Posted,
    Done,
    /// In an error, and with it the UMR QP.
    Failed,
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) rig: Rig,
    /// Chooses what happens next.
    pub(crate) rng: Order,
    /// Now and then resume a fault with an error.
    pub(crate) fail_faults: bool,
    /// Leave the translations of this page when it is taken away: the bug to be caught.
    pub(crate) forget: Option<usize>,
    /// Send WQEs posted.
    pub(crate) operations: usize,
    pub(crate) key: Mkey,
    places: Vec<Place>,
    free: VecDeque<u64>,
    expected: Vec<u8>,
    pub(crate) qps: Vec<TestQp>,
    queues: Vec<Queue>,
    channels: Vec<Channel>,
    messages: BTreeMap<u32, Message>,
    faults: Vec<PageFault>,
    /// The UMR under way.
    update: Update,
}

impl World {
    /// Channels of every kind and an MR without a page. The seed chooses what happens and, if
    /// `seeded`, the order of the device.
    pub(crate) fn new(scheme: Scheme, seed: u64, seeded: bool) -> Self {
        let mut rig = Rig::with_seed(scheme, seeded.then_some(seed));
        let mut mkc = rig.mkc(AccessMode::Mtt);
        mkc.translations_octword_size = u32::try_from(PAGES / 2).unwrap();
        let key = rig.create_mkey(&mkc, &[]);
        mkc.free = false;
        mkc.start_addr = firmware_cmds::Iova::new(VA);
        mkc.len = u64::try_from(PAGES * PAGE).unwrap();
        let mask = MkeyMask::new()
            .with_free(true)
            .with_len(true)
            .with_start_addr(true);
        rig.umr_ok(key, UmrFlags::new(), mask, &mkc, 0, &[]);
        let mut world = Self {
            rig,
            // Not the numbers that the device draws.
            rng: Order::seeded(!seed),
            fail_faults: false,
            forget: None,
            operations: 0,
            key,
            places: Vec::new(),
            free: (0..FRAMES).map(|n| FRAME_BASE + n * 4096).collect(),
            expected: Vec::new(),
            qps: Vec::new(),
            queues: Vec::new(),
            channels: Vec::new(),
            messages: BTreeMap::new(),
            faults: Vec::new(),
            update: Update::Done,
        };
        for _ in 0..PAGES {
            let bytes: Vec<u8> = (0..PAGE / 8)
                .flat_map(|_| world.rng.pick(usize::MAX).to_ne_bytes())
                .collect();
            world.expected.extend(&bytes);
            world.places.push(Place::Swap(bytes));
        }
        world.open_channels();
        world.page_in(PINNED..PAGES, MttAccess::READ_WRITE);
        world
    }

    /// Writes the MTTs of the groups of 8 that hold `pages`, and waits for it; as often as it
    /// takes.
    fn publish(&mut self, pages: Range<usize>) {
        let first = pages.start & !7;
        let last = pages.end.next_multiple_of(8).min(PAGES);
        let list: Vec<Mtt> = (first..last)
            .map(|page| match self.places[page] {
                Place::Swap(_) | Place::Leaving { .. } => Mtt::NOT_PRESENT,
                Place::Frame { iova, access } => mtt(iova, access),
            })
            .collect();
        let flags = UmrFlags::new().with_check_free(true);
        let first = u64::try_from(first).unwrap();
        let none = MkeyMask::new();
        loop {
            self.update = Update::Posted;
            self.rig
                .post_umr(self.key, flags, none, &Mkc::default(), first, &list);
            self.wait("a UMR", |world| world.update != Update::Posted);
            if self.update == Update::Done {
                return;
            }
            self.rig.recover_umr();
        }
    }

    pub(crate) fn page_in(&mut self, pages: Range<usize>, access: MttAccess) {
        for page in pages.clone() {
            match &mut self.places[page] {
                Place::Frame { access: have, .. } => have.write |= access.write,
                Place::Swap(bytes) => {
                    let iova = self.free.pop_front().unwrap();
                    self.rig.mem.map(DmaAddr::new(iova), 4096);
                    self.rig.mem.write(DmaAddr::new(iova), bytes).unwrap();
                    self.places[page] = Place::Frame { iova, access };
                }
                Place::Leaving { .. } => panic!("page {page} is on its way out"),
            }
        }
        self.publish(pages);
    }

    /// Takes pages away: the translations first, then the frames.
    pub(crate) fn page_out(&mut self, pages: Range<usize>) {
        let mut frames = Vec::new();
        for page in pages.clone() {
            if let Place::Frame { iova, .. } = self.places[page] {
                if self.forget != Some(page) {
                    self.places[page] = Place::Leaving { iova };
                }
                frames.push((page, iova));
            }
        }
        if frames.is_empty() {
            return;
        }
        self.publish(pages);
        for (page, iova) in frames {
            let bytes = self.rig.peek(iova, PAGE);
            self.rig.mem.unmap(DmaAddr::new(iova), 4096);
            self.places[page] = Place::Swap(bytes);
            self.free.push_back(iova);
        }
    }

    /// What is in the MR now.
    fn actual(&self, bytes: Range<usize>) -> Vec<u8> {
        let mut found = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let end = (at / PAGE + 1) * PAGE;
            let piece = at % PAGE..at % PAGE + end.min(bytes.end) - at;
            match &self.places[at / PAGE] {
                Place::Swap(page) => found.extend(&page[piece]),
                Place::Frame { iova, .. } | Place::Leaving { iova } => {
                    let start = iova + u64::try_from(piece.start).unwrap();
                    found.extend(self.rig.peek(start, piece.len()));
                }
            }
            at = end;
        }
        found
    }

    /// Lets the device work for a step and takes note of what it reports; returns when it
    /// has more to do.
    pub(crate) fn step(&mut self) -> Option<Duration> {
        let next = self.rig.device.step(self.rig.now);
        self.collect();
        next
    }

    /// Lets the device work, and time go on, until something has happened.
    fn wait(&mut self, what: &str, happened: impl Fn(&Self) -> bool) {
        while !happened(self) {
            match self.step() {
                Some(next) => self.rig.now = self.rig.now.max(next),
                None => assert!(happened(self), "{what} never ends\n{}", self.story()),
            }
        }
    }

    /// Lets the device work until it has nothing to do now.
    pub(crate) fn rest(&mut self) {
        for _ in 0..100_000 {
            if self.step().is_none_or(|next| next > self.rig.now) {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    fn collect(&mut self) {
        for completion in self.rig.poll_cq() {
            if completion.qpn == self.rig.umr_qpn() {
                assert!(self.update == Update::Posted, "{completion:?}");
                self.update = match completion.syndrome {
                    0 => Update::Done,
                    _ => Update::Failed,
                };
            } else {
                self.completed(&completion);
            }
        }
        for eqe in self.rig.events() {
            if eqe.event_type == EventType::PAGE_FAULT {
                self.faults.push(PageFault::from_eqe(&eqe).unwrap());
            }
        }
    }

    /// The bytes of the MR that a fault is about, less those that have moved, and whether they
    /// are written; `None` if what stalled is over by now.
    fn wanted(&self, fault: &PageFault) -> Option<(usize, usize, bool)> {
        let offset = |va: u64| usize::try_from(va - VA).unwrap();
        let len = |len: u64| usize::try_from(len).unwrap();
        match fault {
            PageFault::Memory(fault) => {
                assert_eq!(fault.mkey, self.key);
                let bytes = len(fault.demand_bytes());
                Some((offset(fault.va.get()), bytes, true))
            }
            PageFault::Rdma(fault) => {
                assert_eq!(fault.r_key, self.key);
                let moved = len(fault.bytes_committed.into());
                let bytes = len(fault.rdma_op_len.into()) - moved;
                let write = fault.fault_type.is_write();
                Some((offset(fault.rdma_va.get()) + moved, bytes, write))
            }
            PageFault::Wqe(fault) => {
                let (number, index) = (fault.wq_number.get(), fault.wqe_index);
                let (start, bytes, write) = match fault.kind {
                    WqeFaultKind::SendOrWrite => self.local(number, index, false),
                    WqeFaultKind::ReadOrAtomic => self.local(number, index, true),
                    WqeFaultKind::Receive => self.slot(number, index, false),
                    WqeFaultKind::SharedReceive => self.slot(number, index, true),
                }?;
                let moved = len(fault.bytes_committed.into());
                Some((start + moved, bytes - moved, write))
            }
        }
    }

    /// Whether an access may fail for its fault.
    fn faults_may_fail(&self) -> bool {
        self.fail_faults || !self.rig.device.rules.entries().is_empty()
    }

    /// Serves one fault as the driver does: whatever it names, or sometimes only a part.
    fn serve(&mut self) {
        let index = self.rng.pick(self.faults.len());
        let fault = self.faults.swap_remove(index);
        // Of the events of one access only the last one is answered.
        let answered = !matches!(fault, PageFault::Memory(MemoryFault { last: false, .. }));
        let fail = answered && self.fail_faults && self.rng.pick(12) == 0;
        if let Some((start, len, write)) = self.wanted(&fault).filter(|_| !fail) {
            let first = start / PAGE;
            let end = (start + len).div_ceil(PAGE);
            assert!(
                first < end && end <= PAGES,
                "{fault:?} is past the MR's end"
            );
            let take = 1 + self.rng.pick(end - first);
            let access = MttAccess { read: true, write };
            self.page_in(first..first + take, access);
        }
        if answered {
            self.rig.command(&fault.resume(fail).to_bytes(), 16);
        }
    }

    /// Posts so many operations of every kind, and ends them all.
    pub(crate) fn run(&mut self, operations: usize) {
        while self.operations < operations {
            match self.rng.pick(16) {
                0..=5 => self.post_some(),
                6..=8 => self.post_receive(),
                9 => {
                    let first = self.rng.pick(PINNED);
                    let end = (first + 1 + self.rng.pick(12)).min(PINNED);
                    self.page_out(first..end);
                }
                10..=13 if !self.faults.is_empty() => self.serve(),
                14 => {
                    let us = u64::try_from(self.rng.pick(3000)).unwrap();
                    self.rig.now += Duration::from_micros(us);
                }
                _ => self.heal_some(),
            }
            match self.rng.pick(3) {
                0 => {}
                1 => drop(self.step()),
                _ => self.rest(),
            }
            self.check();
        }
        self.finish();
    }

    /// What holds at any time, whatever happened so far.
    fn check(&self) {
        assert_eq!(self.rig.violations(), [""; 0], "{}", self.story());
        let events = self.rig.device.faults.len();
        // A stall without an event would stand for ever.
        assert!(
            self.rig.device.seed().is_some() || events <= self.faults.len(),
            "{events} stalls, {} faults\n{}",
            self.faults.len(),
            self.story()
        );
    }

    /// The last lines of the journal.
    pub(crate) fn story(&self) -> String {
        let journal = self.rig.journal.lock().unwrap();
        journal[journal.len().saturating_sub(40)..].join("\n")
    }

    /// Ends everything that is under way.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.rest();
            self.check();
            if !self.faults.is_empty() {
                self.serve();
            } else if self.under_way() || !self.rig.device.faults.is_empty() {
                self.rig.now += Duration::from_millis(70);
            } else {
                self.heal_all();
                self.check_messages();
                return;
            }
        }
        panic!("something never ends\n{}", self.story());
    }

    /// Compares every byte.
    pub(crate) fn verify(&mut self) {
        self.page_out(0..PAGES);
        for page in 0..PAGES {
            let bytes = page * PAGE..(page + 1) * PAGE;
            let same = self.actual(bytes.clone()) == self.expected[bytes];
            assert!(same, "page {page}\n{}", self.story());
        }
    }
}
