// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The state of the model: memory, regions, device.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use firmware_cmds::{DmaAddr, Mkey, MttAccess, PageFaultResume};
use hmm_abi::{Entry, Pfn};
use mlx5_odp::{PageIndex, Placement, Report};

/// A page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Frame(pub(crate) u64);

impl Frame {
    /// Its bus address.
    pub(crate) fn dma(self) -> DmaAddr {
        DmaAddr::new(0x1_0000_0000 + self.0 * 4096)
    }

    /// The frame of an entry.
    pub(crate) fn of(entry: Entry) -> Self {
        Self(u64::try_from(entry.pfn().0).unwrap())
    }

    /// Its number, for an entry.
    pub(crate) fn pfn(self) -> Pfn {
        Pfn(usize::try_from(self.0).unwrap())
    }

    /// The frame at a bus address.
    pub(crate) fn at(addr: DmaAddr) -> Self {
        Self((addr.get() - 0x1_0000_0000) / 4096)
    }
}

/// What the process may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// `PROT_NONE`, or nothing mapped.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    Write,
}

/// A registered region.
pub(crate) struct Mr {
    pub(crate) placement: Placement,
    pub(crate) locked: bool,
    /// Users of the key.
    pub(crate) refs: u32,
    /// Found by [`mlx5_odp::Driver::region`].
    pub(crate) known: bool,
    pub(crate) revoked: bool,
    /// The notifier's sequence.
    pub(crate) sequence: usize,
    /// Invalidations running.
    pub(crate) invalidating: u32,
    /// The mirror, by page.
    pub(crate) entries: Vec<Entry>,
    /// Pages mapped for DMA, counted as the C ABI's `npages` is.
    pub(crate) mapped: i64,
    pub(crate) faults: u64,
    pub(crate) faults_handled: u64,
    pub(crate) prefetched: u64,
}

/// Faults that the model produces on purpose.
#[derive(Default)]
pub(crate) struct Trouble {
    /// Results of the next range faults, before any real one.
    pub(crate) faults: VecDeque<mlx5_odp::FaultError>,
    /// Results of the next table updates.
    pub(crate) publishes: VecDeque<mlx5_odp::FaultError>,
    /// The next zaps fail (true) or not.
    pub(crate) zaps: VecDeque<bool>,
    /// Revocations fail.
    pub(crate) revoke: bool,
    /// The driver does not check the sequence.
    pub(crate) no_retry_check: bool,
    /// The number of a zap that is skipped.
    pub(crate) skip_zap: Option<u64>,
    /// Something else of the region is invalidated before every range fault.
    pub(crate) restless: bool,
}

/// All there is.
#[derive(Default)]
pub(crate) struct World {
    /// Protection by page number of the address space.
    pub(crate) protection: BTreeMap<u64, Protection>,
    /// Present pages.
    pub(crate) present: BTreeMap<u64, Frame>,
    pub(crate) dirty: BTreeSet<Frame>,
    pub(crate) freed: BTreeSet<Frame>,
    /// Frames with a reference, which are not freed with their page.
    pub(crate) held: BTreeSet<Frame>,
    pub(crate) next_frame: u64,
    pub(crate) mrs: BTreeMap<u32, Mr>,
    /// The device's tables.
    pub(crate) tables: BTreeMap<(u32, PageIndex), (DmaAddr, MttAccess)>,
    pub(crate) enabled: BTreeSet<u32>,
    pub(crate) resumes: Vec<PageFaultResume>,
    pub(crate) queues_held: u32,
    /// As it was when the last access was resumed.
    pub(crate) queues_held_at_resume: u32,
    pub(crate) reports: Vec<Report>,
    pub(crate) backoffs: u32,
    pub(crate) gave_back: u32,
    pub(crate) updates: u64,
    pub(crate) zaps: u64,
    pub(crate) clock: u64,
    pub(crate) writes_asked: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) trouble: Trouble,
}

impl World {
    /// Gives the process `pages` pages from page number `first`.
    pub(crate) fn mmap(&mut self, first: u64, pages: u64, protection: Protection) {
        for page in first..first + pages {
            self.protection.insert(page, protection);
        }
    }

    /// What a CPU's or HMM's fault does. `None` if the access is not allowed.
    pub(crate) fn touch(&mut self, page: u64) -> Frame {
        let next = &mut self.next_frame;
        *self.present.entry(page).or_insert_with(|| {
            *next += 1;
            Frame(*next)
        })
    }

    /// Takes a page from the process; its frame becomes free unless somebody holds it.
    pub(crate) fn free(&mut self, page: u64) {
        if let Some(frame) = self.present.remove(&page) {
            if !self.held.contains(&frame) {
                self.freed.insert(frame);
            }
        }
    }

    pub(crate) fn mr(&mut self, mkey: Mkey) -> &mut Mr {
        self.mrs.get_mut(&mkey.get()).expect("an MR")
    }

    /// The device accesses a page. False if it must fault.
    pub(crate) fn device_access(&mut self, mkey: Mkey, page: PageIndex, write: bool) -> bool {
        let Some((addr, access)) = self.tables.get(&(mkey.get(), page)).copied() else {
            return false;
        };
        if !(if write { access.write } else { access.read }) {
            return false;
        }
        if self.freed.contains(&Frame::at(addr)) {
            self.violations.push(format!(
                "DMA to a freed frame: {mkey:?} {page:?} write {write}"
            ));
        }
        true
    }
}
