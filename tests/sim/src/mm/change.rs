// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Operations on the memory of a process. Whatever changes a page table entry that is there calls
//! the notifiers before and after.

use std::time::Duration;

use hmm_abi::Need;
use mlx5_odp::LATE;

use crate::memory::{Area, FrameId, Kind, Memory, Page, Protection, Pte, Walked, EDGE};
use crate::notifier::Pages;
use crate::task::Thread;

/// How often a write of the process's is tried.
const PATIENCE: usize = 40;
/// How long nothing happens.
pub(crate) const PAUSE: Duration = Duration::from_millis(LATE as u64 + 10);

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `MADV_DONTNEED`.
    DontNeed(Pages),
    /// `munmap` of some pages, then `mmap` of new ones.
    Remap(Pages),
    /// `mprotect`.
    Protect(Pages, Protection),
    /// `fork`.
    Fork(Pages),
    /// The children end.
    ChildrenEnd,
    /// The process writes.
    Write(usize),
    /// Pages move to other frames: compaction, NUMA balancing, a device's memory and back.
    Migrate(Pages),
    /// Pages go to swap space or to disk, and their frames to others.
    Reclaim(Pages),
    /// Pages of a file are written to disk, and stay.
    WriteBack(Pages),
    /// Pages become one large folio (khugepaged).
    Collapse(Pages),
    /// A large mapping is mapped page by page.
    Split(Pages),
    /// A part of a large mapping is unmapped: it is split in the middle of the invalidation.
    NestedSplit(Pages),
    /// The OOM reaper: it may not sleep.
    Reap(Pages),
    /// A userfaultfd takes over missing pages.
    Uffd(Pages),
    /// And lets go of them.
    NoUffd(Pages),
    /// A file becomes shorter, and as long as before.
    Truncate(Pages),
    /// Nothing, for longer than events may be late.
    Pause,
}

impl Change {
    /// How many kinds there are.
    pub(crate) const KINDS: usize = 17;
    /// The kind of [`Change::Reap`].
    pub(crate) const OOM_REAPER: usize = 12;

    /// One of them on some pages.
    pub(crate) fn of(kind: usize, pages: Pages, protection: Protection) -> Self {
        match kind {
            0 => Self::DontNeed(pages),
            1 => Self::Remap(pages),
            2 => Self::Protect(pages, protection),
            3 => Self::Fork(pages),
            4 => Self::ChildrenEnd,
            5 => Self::Write(pages.start),
            6 => Self::Migrate(pages),
            7 => Self::Reclaim(pages),
            8 => Self::WriteBack(pages),
            9 => Self::Collapse(pages),
            10 => Self::Split(pages),
            11 => Self::NestedSplit(pages),
            Self::OOM_REAPER => Self::Reap(pages),
            13 => Self::Uffd(pages),
            14 => Self::NoUffd(pages),
            15 => Self::Truncate(pages),
            _ => Self::Pause,
        }
    }
}

impl Thread<'_> {
    /// What happens to pages between the two calls of the notifiers.
    fn invalidating(&self, pages: &Pages, change: impl FnOnce(&Self)) {
        self.sim.notifiers.start(self, pages, true);
        self.step();
        change(self);
        self.sim.notifiers.end(self, pages);
    }

    pub(super) fn memory<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        f(&mut self.sim.memory.lock())
    }

    fn put_all(&self, frames: Vec<FrameId>) {
        self.step();
        self.memory(|memory| frames.into_iter().for_each(|frame| memory.put(frame)));
    }

    /// Does it, unless the process has ended.
    pub(crate) fn change(&self, change: &Change) {
        if self.sim.get_mm() {
            self.do_change(change);
            self.sim.put_mm();
        }
    }

    fn do_change(&self, change: &Change) {
        let sim = self.sim;
        sim.trace(|| format!("{}: {change:x?}", self.name()));
        match change {
            Change::DontNeed(pages) => {
                let mut frames = Vec::new();
                self.invalidating(pages, |thread| frames = thread.memory(|m| zap(m, pages)));
                self.put_all(frames);
            }
            Change::Remap(pages) => self.remap(pages),
            Change::Protect(pages, protection) => self.protect(pages, *protection),
            Change::Fork(pages) => self.fork(pages),
            Change::ChildrenEnd => {
                let children = self.memory(|memory| std::mem::take(&mut memory.children));
                self.put_all(children);
            }
            Change::Write(page) => self.write(*page),
            Change::Migrate(pages) => self.migrate(pages, true),
            Change::Collapse(pages) => self.migrate(&folio(pages), false),
            Change::Reclaim(pages) => pages.clone().for_each(|page| self.reclaim(page)),
            Change::WriteBack(pages) => pages.clone().for_each(|page| self.write_back(page)),
            Change::Split(pages) => self.split(&folio(pages)),
            Change::NestedSplit(pages) => {
                let mut frames = Vec::new();
                self.invalidating(pages, |thread| {
                    thread.split(&folio(pages));
                    frames = thread.memory(|memory| zap(memory, pages));
                });
                self.put_all(frames);
            }
            Change::Reap(pages) => {
                if sim.notifiers.start(self, pages, false) {
                    let frames = self.memory(|memory| zap(memory, pages));
                    sim.notifiers.end(self, pages);
                    self.put_all(frames);
                }
            }
            Change::Uffd(pages) => self.memory(|m| set_areas(m, pages, |area| area.uffd = true)),
            Change::NoUffd(pages) => {
                self.memory(|memory| {
                    set_areas(memory, pages, |area| area.uffd = false);
                    memory.missing.retain(|page| !pages.contains(page));
                });
                sim.tasks.wake(sim.resolved);
            }
            Change::Truncate(pages) => self.truncate(pages),
            Change::Pause => self.sleep(PAUSE),
        }
    }

    fn remap(&self, pages: &Pages) {
        let sim = self.sim;
        sim.mmap_lock.write(self);
        let mut frames = Vec::new();
        self.memory(|memory| {
            set_areas(memory, pages, |area| area.mapped = false);
            pages.clone().for_each(|page| memory.note_refused(page));
            memory.missing.retain(|page| !pages.contains(page));
        });
        sim.tasks.wake(sim.resolved);
        self.invalidating(pages, |thread| {
            frames = thread.memory(|memory| zap(memory, pages))
        });
        self.put_all(frames);
        sim.mmap_lock.unlock(self);
        self.step();
        sim.mmap_lock.write(self);
        self.memory(|memory| {
            for page in pages.clone() {
                memory.note_refused(page);
                // Somebody else may have mapped something there.
                let is_free = |page: &&mut Page| !page.area.mapped;
                if let Some(page) = memory.page_mut(page).filter(is_free) {
                    page.area.mapped = true;
                    page.area.protection = Protection::Write;
                    page.area.uffd = false;
                }
            }
        });
        sim.mmap_lock.unlock(self);
    }

    fn protect(&self, pages: &Pages, protection: Protection) {
        let sim = self.sim;
        sim.mmap_lock.write(self);
        self.memory(|memory| {
            pages.clone().for_each(|page| memory.note_refused(page));
            set_areas(memory, pages, |area| area.protection = protection);
        });
        self.invalidating(pages, |thread| {
            thread.memory(|memory| {
                for page in pages.clone() {
                    match memory.page(page).map(|page| page.pte) {
                        Some(Pte::Present { frame, order, .. }) => {
                            if let Some(page) = memory.page_mut(page) {
                                page.pte = match protection {
                                    // PROT_NONE keeps the frame; nobody gets at it.
                                    Protection::None => Pte::Migrating(frame),
                                    _ => Pte::Present {
                                        frame,
                                        write: false,
                                        order,
                                    },
                                };
                            }
                        }
                        Some(Pte::Migrating(frame)) if protection != Protection::None => {
                            if let Some(page) = memory.page_mut(page) {
                                page.pte = Pte::Present {
                                    frame,
                                    write: false,
                                    order: 0,
                                };
                            }
                        }
                        _ => {}
                    }
                }
            });
        });
        sim.tasks.wake(sim.resolved);
        sim.mmap_lock.unlock(self);
    }

    fn fork(&self, pages: &Pages) {
        let sim = self.sim;
        sim.mmap_lock.write(self);
        self.invalidating(pages, |thread| {
            for page in pages.clone() {
                thread.step();
                thread.memory(|memory| {
                    let Some(Pte::Present { frame, order, .. }) = anonymous(memory, page) else {
                        return;
                    };
                    if let Some(page) = memory.page_mut(page) {
                        page.pte = Pte::Present {
                            frame,
                            write: false,
                            order,
                        };
                    }
                    if frame != 0 {
                        memory.frames[frame].users += 1;
                        memory.children.push(frame);
                    }
                });
            }
        });
        sim.mmap_lock.unlock(self);
    }

    /// The process writes a byte to a page, as far as it may.
    fn write(&self, page: usize) {
        for _ in 0..PATIENCE {
            self.sim.mmap_lock.read(self);
            let walked = self.memory(|memory| memory.walk(page, Need::Write));
            let retry = match walked {
                Walked::Found { .. } => {
                    let value = self.sim.choices.borrow_mut().pick(256);
                    let value = u8::try_from(value).unwrap_or(0);
                    self.memory(|memory| memory.cpu_write(page, value));
                    false
                }
                Walked::Shared => {
                    self.copy(page);
                    true
                }
                Walked::Migrating => true,
                Walked::Missing | Walked::Hole | Walked::Invalid | Walked::WriteRefused => false,
            };
            self.sim.mmap_lock.unlock(self);
            if !retry {
                return;
            }
            self.step();
        }
    }

    /// Breaks the sharing of a page: `wp_page_copy`.
    pub(super) fn copy(&self, at: usize) {
        let Some(old) = self.memory(|memory| memory.page(at).map(|page| page.pte)) else {
            return;
        };
        let pages = at..at + 1;
        let mut frames = Vec::new();
        self.invalidating(&pages, |thread| {
            thread.memory(|memory| {
                let Pte::Present { frame, .. } = old else {
                    return;
                };
                // Somebody else may have been here.
                if memory.page(at).is_none_or(|page| page.pte != old) {
                    return;
                }
                let bytes = memory.frames[frame].bytes;
                let new = memory.new_frame(bytes);
                memory.frames[new].dirty = true;
                if let Some(page) = memory.page_mut(at) {
                    page.pte = Pte::Present {
                        frame: new,
                        write: true,
                        order: 0,
                    };
                }
                frames.push(frame);
            });
        });
        self.put_all(frames);
    }

    /// To other frames, page by page with migration entries, or all at once as one folio.
    fn migrate(&self, pages: &Pages, one_by_one: bool) {
        let mut old = Vec::new();
        self.invalidating(pages, |thread| {
            let mut moving = Vec::new();
            for page in pages.clone() {
                thread.memory(|memory| {
                    if let Some(Pte::Present { frame, write, .. }) = anonymous(memory, page) {
                        // What others have is not moved here, nor what the device keeps.
                        let only_ours = memory.frames[frame].users == 1;
                        if frame != 0 && only_ours && memory.frames[frame].held == 0 {
                            if let Some(page) = memory.page_mut(page) {
                                page.pte = Pte::Migrating(frame);
                            }
                            moving.push((page, frame, write));
                        }
                    }
                });
                if one_by_one {
                    thread.step();
                }
            }
            let is_folio = !one_by_one && moving.len() == pages.len();
            for (page, frame, write) in moving {
                thread.step();
                thread.memory(|memory| {
                    if memory
                        .page(page)
                        .is_none_or(|page| page.pte != Pte::Migrating(frame))
                    {
                        return;
                    }
                    let (bytes, dirty) = (memory.frames[frame].bytes, memory.frames[frame].dirty);
                    let new = memory.new_frame(bytes);
                    memory.frames[new].dirty = dirty;
                    let allowed = memory
                        .page(page)
                        .is_some_and(|page| page.area.protection == Protection::Write);
                    let order = if is_folio {
                        pages.len().trailing_zeros()
                    } else {
                        0
                    };
                    if let Some(page) = memory.page_mut(page) {
                        page.pte = Pte::Present {
                            frame: new,
                            write: write && allowed,
                            order,
                        };
                    }
                    old.push(frame);
                });
            }
        });
        self.sim.tasks.wake(self.sim.resolved);
        self.put_all(old);
    }

    /// `try_to_unmap` and `pageout`.
    pub(super) fn reclaim(&self, page: usize) {
        let pages = page..page + 1;
        let mut frames = Vec::new();
        self.invalidating(&pages, |thread| {
            thread.memory(|memory| {
                let Some((area, pte)) = memory.page(page).map(|page| (page.area, page.pte)) else {
                    return;
                };
                let Pte::Present { frame, .. } = pte else {
                    return;
                };
                if frame == 0 || memory.frames[frame].held > 0 {
                    return;
                }
                let bytes = memory.frames[frame].bytes;
                let dirty = memory.frames[frame].dirty;
                let Some(page) = memory.page_mut(page) else {
                    return;
                };
                match area.kind {
                    Kind::Anonymous => page.pte = Pte::Swapped,
                    Kind::File => {
                        page.pte = Pte::None;
                        page.cache = None;
                        frames.push(frame);
                    }
                }
                // Clean is what is there as it is.
                if dirty {
                    page.backing = bytes;
                }
                frames.push(frame);
            });
        });
        self.put_all(frames);
    }

    /// `folio_mkclean`, then the I/O.
    fn write_back(&self, at: usize) {
        let pages = at..at + 1;
        self.invalidating(&pages, |thread| {
            thread.memory(|memory| {
                let Some(page) = memory.page(at) else { return };
                let Pte::Present { frame, order, .. } = page.pte else {
                    return;
                };
                if page.area.kind != Kind::File || memory.frames[frame].held > 0 {
                    return;
                }
                let bytes = memory.frames[frame].bytes;
                let dirty = std::mem::take(&mut memory.frames[frame].dirty);
                if let Some(page) = memory.page_mut(at) {
                    page.pte = Pte::Present {
                        frame,
                        write: false,
                        order,
                    };
                    if dirty {
                        page.backing = bytes;
                    }
                }
            });
        });
    }

    /// The same frames, mapped page by page.
    fn split(&self, pages: &Pages) {
        self.invalidating(pages, |thread| {
            thread.memory(|memory| {
                for page in pages.clone() {
                    if let Some(page) = memory.page_mut(page) {
                        if let Pte::Present { order, .. } = &mut page.pte {
                            *order = 0;
                        }
                    }
                }
            });
        });
    }

    fn truncate(&self, pages: &Pages) {
        let sim = self.sim;
        let set = |memory: &mut Memory, truncated: bool| {
            for at in pages.clone() {
                memory.note_refused(at);
                if let Some(page) = memory.page_mut(at) {
                    page.area.truncated = truncated && page.area.kind == Kind::File;
                }
                memory.note_refused(at);
            }
        };
        let mut frames = Vec::new();
        self.memory(|memory| set(memory, true));
        self.invalidating(pages, |thread| {
            thread.memory(|memory| {
                for at in pages.clone() {
                    let Some(page) = memory.page_mut(at) else {
                        continue;
                    };
                    if page.area.kind == Kind::File {
                        frames.extend(page.cache.take());
                        page.backing = [0; 2 * EDGE];
                        frames.extend(zap(memory, &(at..at + 1)));
                    }
                }
            });
        });
        self.put_all(frames);
        // As long as before.
        self.memory(|memory| set(memory, false));
        sim.tasks.wake(sim.resolved);
    }

    /// The process ends: `exit_mmap`.
    pub(crate) fn exit(&self) {
        let sim = self.sim;
        let all = Memory::all();
        sim.trace(|| "the process ends".to_owned());
        self.memory(|memory| {
            memory.missing.clear();
            set_areas(memory, &all, |area| area.uffd = false);
        });
        sim.tasks.wake(sim.resolved);
        // `mmput`: the last one does the rest.
        sim.put_mm();
        while sim.mm_users.get() > 0 && !sim.is_over() {
            self.wait(sim.mm_unused);
        }
        self.memory(|memory| {
            for page in all.clone() {
                if let Some(page) = memory.page_mut(page) {
                    page.area.mapped = false;
                }
                memory.note_refused(page);
            }
        });
        let mut frames = Vec::new();
        // `mn_itree_release`, of the whole address space.
        self.invalidating(&(0..usize::MAX), |thread| {
            frames = thread.memory(|memory| zap(memory, &all));
        });
        self.memory(|memory| {
            for page in all {
                if let Some(page) = memory.page_mut(page) {
                    frames.extend(page.cache.take());
                }
            }
        });
        self.put_all(frames);
        self.do_change(&Change::ChildrenEnd);
    }
}

fn set_areas(memory: &mut Memory, pages: &Pages, f: impl Fn(&mut Area)) {
    for page in pages.clone() {
        if let Some(page) = memory.page_mut(page) {
            f(&mut page.area);
        }
    }
}

/// The entry of a page that is anonymous memory.
fn anonymous(memory: &Memory, page: usize) -> Option<Pte> {
    let page = memory.page(page)?;
    (page.area.kind == Kind::Anonymous).then_some(page.pte)
}

/// The aligned pages around `pages` that may be one folio.
fn folio(pages: &Pages) -> Pages {
    let first = pages.start & !3;
    first..first + 4
}

/// What is there after nothing was.
fn fresh(memory: &mut Memory, at: usize) {
    let Some(page) = memory.page(at) else { return };
    let bytes = match (page.area.kind, page.cache) {
        (Kind::Anonymous, _) => [0; 2 * EDGE],
        (Kind::File, Some(frame)) => memory.frames[frame].bytes,
        (Kind::File, None) => page.backing,
    };
    memory.set_shadow(at, bytes);
}

/// Takes pages out of the page table; returns their frames, to be put.
fn zap(memory: &mut Memory, pages: &Pages) -> Vec<FrameId> {
    let mut frames = Vec::new();
    for at in pages.clone() {
        let Some(page) = memory.page_mut(at) else {
            continue;
        };
        match std::mem::replace(&mut page.pte, Pte::None) {
            Pte::Present { frame, .. } | Pte::Migrating(frame) => frames.push(frame),
            Pte::None | Pte::Swapped => {}
        }
        if page.area.kind == Kind::Anonymous {
            page.backing = [0; 2 * EDGE];
        }
        fresh(memory, at);
    }
    frames
}
