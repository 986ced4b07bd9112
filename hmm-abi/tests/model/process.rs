// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a process does to its memory, in the steps of the kernel: notifiers, page table,
//! notifiers, pages given up.

use shuttle::rand::{thread_rng, Rng};
use shuttle::thread;

use super::memory::Page;
use super::notifier::Pages;
use super::Parts;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// `munmap`, with an invalidation of a part of the range within that of the range.
    Unmap,
    /// What the OOM killer takes from a process: without sleeping, or not at all.
    Reap,
    /// `mprotect` to read-only.
    Protect,
    /// `fork`: pages are shared until they are written.
    Fork,
    /// The children of a fork end.
    ChildrenEnd,
    Migrate,
    WriteBack,
}

impl Change {
    pub(crate) const ALL: [Self; 7] = [
        Self::Unmap,
        Self::Reap,
        Self::Protect,
        Self::Fork,
        Self::ChildrenEnd,
        Self::Migrate,
        Self::WriteBack,
    ];
}

impl Parts {
    pub(crate) fn change(&self, change: Change, pages: &Pages) {
        let memory = &self.memory;
        let may_sleep = !matches!(change, Change::Reap);
        if let Change::ChildrenEnd = change {
            memory.children_end();
            return;
        }
        if !self.notifiers.invalidate_start(pages, may_sleep) {
            return;
        }
        thread::yield_now();
        let mut given_up = Vec::new();
        match change {
            Change::Unmap => {
                if thread_rng().gen_bool(0.3) {
                    let part = pages.start..thread_rng().gen_range(pages.clone()) + 1;
                    self.notifiers.invalidate_start(&part, true);
                    thread::yield_now();
                    self.notifiers.invalidate_end(&part);
                }
                given_up = memory.unmap(pages);
            }
            Change::Reap => given_up = memory.unmap(pages),
            Change::Protect => memory.write_protect(pages),
            Change::Fork => memory.fork(pages),
            Change::Migrate => given_up = memory.move_pages(pages),
            Change::WriteBack => memory.write_back(pages),
            Change::ChildrenEnd => {}
        }
        // A batch of pages is freed when it is full, which may be before the end.
        if thread_rng().gen_bool(0.5) {
            memory.put(std::mem::take(&mut given_up));
        }
        thread::yield_now();
        self.notifiers.invalidate_end(pages);
        memory.put(given_up);
    }

    /// A write to a page that is shared: it is copied, which is an invalidation too.
    pub(crate) fn copy_on_write(&self, at: usize, page: Page) {
        let pages = at..at + 1;
        self.notifiers.invalidate_start(&pages, true);
        thread::yield_now();
        let old = self.memory.copy_on_write(at, page);
        self.notifiers.invalidate_end(&pages);
        self.memory.put(old.into_iter().collect());
    }
}
