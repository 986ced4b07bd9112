// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A process's page table and the frames behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hmm_abi::{HmmPfn, Need, Order, Pfn};
use mlx5_odp::MemoryError;

/// Page numbers of the process's address space.
pub(crate) type Pages = Range<usize>;

/// A page frame's number.
pub(crate) type Frame = usize;

/// The frame that a page has that was read and never written: shared by all of them.
pub(crate) const ZERO: Frame = 0;

/// What the process may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// `PROT_NONE`.
    None,
    /// `PROT_READ`.
    Read,
    /// `PROT_READ | PROT_WRITE`.
    Write,
}

/// An entry of the page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) frame: Frame,
    pub(crate) writable: bool,
}

/// What a walk of the page table comes to.
pub(crate) enum Walked {
    Found(HmmPfn),
    /// The page has to be copied before it can be written: an invalidation of its own.
    Copy,
}

#[derive(Default)]
pub(crate) struct Memory {
    /// Where nothing is said, nothing is mapped.
    protection: BTreeMap<usize, Protection>,
    table: BTreeMap<usize, Page>,
    last: Frame,
    freed: BTreeSet<Frame>,
    /// Frames with a reference, which are not freed with their page.
    held: BTreeSet<Frame>,
    pub(crate) dirty: BTreeSet<Frame>,
}

impl Memory {
    /// Gives the process `pages` with this protection; what was there stays.
    pub(crate) fn mmap(&mut self, pages: Pages, protection: Protection) {
        for page in pages {
            self.protection.insert(page, protection);
        }
    }

    /// Changes the protection; page table entries shrink with it.
    pub(crate) fn mprotect(&mut self, pages: Pages, protection: Protection) {
        for page in pages {
            self.protection.insert(page, protection);
            if protection == Protection::None {
                self.free(page);
            } else if let Some(page) = self.table.get_mut(&page) {
                page.writable = false;
            }
        }
    }

    fn new_frame(&mut self) -> Frame {
        self.last += 1;
        self.last
    }

    /// The process writes to a page.
    pub(crate) fn write(&mut self, page: usize) -> Frame {
        let frame = match self.table.get(&page) {
            Some(page) if page.frame != ZERO => page.frame,
            _ => self.new_frame(),
        };
        let writable = self.protection.get(&page) == Some(&Protection::Write);
        self.table.insert(page, Page { frame, writable });
        frame
    }

    /// A page was written to disk: the next write is a fault, and needs no other frame.
    pub(crate) fn clean(&mut self, page: usize) {
        if let Some(page) = self.table.get_mut(&page) {
            page.writable = false;
        }
    }

    /// The second half of a copy: the page has a frame of its own.
    pub(crate) fn copy(&mut self, page: usize) {
        let frame = self.new_frame();
        if let Some(page) = self.table.get_mut(&page) {
            page.frame = frame;
        }
    }

    /// Takes a page from the process; its frame becomes free unless somebody holds it.
    pub(crate) fn free(&mut self, page: usize) {
        match self.table.remove(&page) {
            Some(Page { frame, .. }) if frame != ZERO && !self.held.contains(&frame) => {
                self.freed.insert(frame);
            }
            _ => {}
        }
    }

    pub(crate) fn page(&self, page: usize) -> Option<Page> {
        self.table.get(&page).copied()
    }

    /// What `hmm_range_fault` does for one page.
    pub(crate) fn walk(&mut self, page: usize, need: Need) -> Result<Walked, MemoryError> {
        let protection = self.protection.get(&page).copied();
        let found = self.table.get(&page).copied();
        let refused = match (protection, need) {
            (_, Need::Snapshot) => None,
            (None | Some(Protection::None), _) => Some(MemoryError::Invalid),
            (Some(Protection::Read), Need::Write) => Some(MemoryError::WriteRefused),
            _ => None,
        };
        if let Some(refused) = refused {
            return Err(refused);
        }
        let new = match (found, need) {
            (None, Need::Snapshot) => return Ok(Walked::Found(HmmPfn::EMPTY)),
            (None, Need::Read) => Page {
                frame: ZERO,
                writable: false,
            },
            (None, Need::Write) => Page {
                frame: self.new_frame(),
                writable: true,
            },
            (Some(Page { frame: ZERO, .. }), Need::Write) => return Ok(Walked::Copy),
            (Some(page), Need::Write) => Page {
                writable: true,
                ..page
            },
            (Some(page), _) => page,
        };
        self.table.insert(page, new);
        let pfn = Pfn(0x1000 + new.frame);
        Ok(Walked::Found(HmmPfn::present(pfn, new.writable, Order(0))))
    }

    /// The frame of a PFN.
    pub(crate) fn frame(Pfn(pfn): Pfn) -> Frame {
        pfn - 0x1000
    }

    /// The device reaches the process's `page`.
    pub(crate) fn reached(&self, page: usize, write: bool) {
        let there = self.table.get(&page).copied();
        let there = there.expect("the device reached a page that is not there");
        assert!(
            there.writable || !write,
            "the device wrote to read-only page {page:#x}"
        );
    }

    pub(crate) fn set_dirty(&mut self, frame: Frame) {
        assert!(!self.freed.contains(&frame), "a freed frame marked dirty");
        assert_ne!(frame, ZERO, "the zero page marked dirty");
        self.dirty.insert(frame);
    }

    pub(crate) fn hold(&mut self, frame: Frame) {
        assert!(self.held.insert(frame), "held twice");
    }

    pub(crate) fn unhold(&mut self, frame: Frame) {
        assert!(self.held.remove(&frame), "a reference that nobody took");
        self.freed.insert(frame);
    }

    pub(crate) fn is_anything_held(&self) -> bool {
        !self.held.is_empty()
    }
}
