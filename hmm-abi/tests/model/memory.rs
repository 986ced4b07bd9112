// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A process's page table and the frames behind it. A frame is never used twice: one that was
//! freed is an error for whoever still reaches it.
//!
//! Its locks are not the scheduler's: every function is one step.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use hmm_abi::Need;

use super::notifier::Pages;

#[derive(Clone, Copy, Default)]
struct Frame {
    /// Page tables, of this process or a child, that have it.
    users: usize,
    /// References of whoever mirrors.
    held: usize,
    dirty: bool,
    written_by_device: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Page {
    pub(crate) frame: usize,
    pub(crate) writable: bool,
}

/// What a walk of the page table comes to.
pub(crate) enum Walked {
    /// There is none, and none was asked for.
    Hole,
    Found(Page),
    /// It has to be copied before it can be written.
    Shared(Page),
}

#[derive(Default)]
struct Tables {
    pages: BTreeMap<usize, Page>,
    frames: Vec<Frame>,
    /// What children share.
    children: Vec<usize>,
}

#[derive(Default)]
pub(crate) struct Memory(Mutex<Tables>);

impl Tables {
    fn new_page(&mut self, writable: bool) -> Page {
        self.frames.push(Frame {
            users: 1,
            ..Frame::default()
        });
        Page {
            frame: self.frames.len() - 1,
            writable,
        }
    }

    /// A page table gives a frame up.
    fn put(&mut self, frame: usize) {
        let frame = &mut self.frames[frame];
        frame.users -= 1;
        frame.check_clean();
    }
}

impl Frame {
    fn is_freed(&self) -> bool {
        self.users == 0 && self.held == 0
    }

    /// Whoever looks at the dirty bit now must find it if the device has written.
    fn check_clean(&self) {
        assert!(
            self.dirty || !self.written_by_device || self.held > 0,
            "a page that the device wrote to is clean"
        );
    }
}

impl Memory {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }

    /// What `hmm_range_fault` does for one page.
    pub(crate) fn walk(&self, page: usize, need: Need) -> Walked {
        let mut tables = self.tables();
        let found = tables.pages.get(&page).copied();
        let new = match (found, need) {
            (None, Need::Snapshot) => return Walked::Hole,
            (None, _) => tables.new_page(need == Need::Write),
            (Some(page), Need::Write) if !page.writable => {
                if tables.frames[page.frame].users > 1 {
                    return Walked::Shared(page);
                }
                // Used again as it is: no notifier is called for that.
                Page {
                    writable: true,
                    ..page
                }
            }
            (Some(page), _) => page,
        };
        tables.pages.insert(page, new);
        Walked::Found(new)
    }

    /// Takes pages out of the page table; returns their frames, to be [`put`](Self::put).
    pub(crate) fn unmap(&self, pages: &Pages) -> Vec<usize> {
        let mut tables = self.tables();
        let gone = pages.clone().filter_map(|page| tables.pages.remove(&page));
        gone.map(|page| page.frame).collect()
    }

    pub(crate) fn put(&self, frames: Vec<usize>) {
        let mut tables = self.tables();
        for frame in frames {
            tables.put(frame);
        }
    }

    pub(crate) fn write_protect(&self, pages: &Pages) {
        for (_, page) in self.tables().pages.range_mut(pages.clone()) {
            page.writable = false;
        }
    }

    /// Shares pages with a new child.
    pub(crate) fn fork(&self, pages: &Pages) {
        let mut tables = self.tables();
        for page in pages.clone() {
            let Some(page) = tables.pages.get_mut(&page) else {
                continue;
            };
            page.writable = false;
            let frame = page.frame;
            tables.frames[frame].users += 1;
            tables.children.push(frame);
        }
    }

    /// The children end.
    pub(crate) fn children_end(&self) {
        let mut tables = self.tables();
        for frame in std::mem::take(&mut tables.children) {
            tables.put(frame);
        }
    }

    /// Moves pages to other frames; returns the old ones, to be put.
    pub(crate) fn move_pages(&self, pages: &Pages) -> Vec<usize> {
        let mut tables = self.tables();
        let mut old = Vec::new();
        for page in pages.clone() {
            if let Some(&Page { frame, writable }) = tables.pages.get(&page) {
                let new = tables.new_page(writable);
                tables.pages.insert(page, new);
                old.push(frame);
            }
        }
        old
    }

    /// Writes pages to disk: they are clean then, and writing to them is a fault.
    pub(crate) fn write_back(&self, pages: &Pages) {
        let mut tables = self.tables();
        let Tables {
            pages: table,
            frames,
            ..
        } = &mut *tables;
        for (_, page) in table.range_mut(pages.clone()) {
            let frame = &mut frames[page.frame];
            frame.check_clean();
            page.writable = false;
            frame.dirty = false;
            frame.written_by_device = false;
        }
    }

    /// Breaks the sharing of a page; returns the frame to be put.
    pub(crate) fn copy_on_write(&self, at: usize, old: Page) -> Option<usize> {
        let mut tables = self.tables();
        if tables.pages.get(&at) != Some(&old) {
            return None;
        }
        let new = tables.new_page(true);
        tables.pages.insert(at, new);
        Some(old.frame)
    }

    /// The device reads or writes `frame`, believing that it is at `at`, and may write if
    /// `writable`.
    pub(crate) fn access(&self, at: usize, frame: usize, writable: bool, write: bool) {
        let mut tables = self.tables();
        let page = tables.pages.get(&at).copied();
        let frame_at = &mut tables.frames[frame];
        assert!(
            !frame_at.is_freed(),
            "the device reached a page that was freed"
        );
        frame_at.written_by_device |= write;
        if frame_at.held > 0 {
            // It was not given back.
            return;
        }
        let page = page.expect("the device reached a page that was unmapped");
        assert_eq!(page.frame, frame, "the device reached another page");
        assert!(
            page.writable || !writable,
            "the device can write to a read-only page"
        );
    }

    pub(crate) fn set_dirty(&self, frame: usize) {
        self.tables().frames[frame].dirty = true;
    }

    pub(crate) fn hold(&self, frame: usize) {
        self.tables().frames[frame].held += 1;
    }

    pub(crate) fn unhold(&self, frame: usize) {
        let mut tables = self.tables();
        tables.frames[frame].held -= 1;
        tables.frames[frame].check_clean();
    }

    /// Nothing is held, and nothing clean that was written to.
    pub(crate) fn check_at_end(&self) {
        for frame in &self.tables().frames {
            assert_eq!(frame.held, 0, "a page is held");
            frame.check_clean();
        }
    }
}
