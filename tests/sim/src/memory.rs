// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! All memory there is: the process's page table and the frames behind it, the IOMMU, and what the
//! driver and the device have between them. Every function is one step.
//!
//! A frame is never used twice: one that was freed is an error for whoever still reaches it. Of a
//! page only the first and the last [`EDGE`] bytes are kept, for messages begin and end there.
//!
//! Beside the page table stands what the process would see ([`Page::shadow`]): it changes when the
//! process or the device writes, and stays when the kernel moves a page about. At any time the page
//! table must lead to the same bytes.

mod bus;

use std::fmt;
use std::ops::Range;

use hmm_abi::Need;

pub(crate) use bus::Shared;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Bytes that are kept at either end of a page.
pub(crate) const EDGE: usize = 64;
/// How many pages of the process there can be anything at.
pub(crate) const COUNT: usize = 32;
/// What is in the middle of them: a page that is the first of a chunk, and of a child.
pub(crate) const BORDER: usize = 0x8_0000;
/// The first of them.
pub(crate) const FIRST: usize = BORDER - COUNT / 2;
/// Bytes of what driver and device share, from address 0 on.
pub(crate) const LOW: usize = 96 << 10;

pub(crate) type Bytes = [u8; 2 * EDGE];

/// A number of a frame; 0 is the page of zeros.
pub(crate) type FrameId = usize;

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    /// Page tables, of this process or a child, and caches, that have it.
    pub(crate) users: usize,
    /// References of whoever mirrors.
    pub(crate) held: usize,
    pub(crate) dirty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pte {
    None,
    Present {
        frame: FrameId,
        write: bool,
        order: u32,
    },
    /// In swap space: [`Page::backing`].
    Swapped,
    /// Being moved; whoever wants it waits.
    Migrating(FrameId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Anonymous,
    /// A shared mapping of a file, one page of it each.
    File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    None,
    Read,
    Write,
}

/// What is mapped at a page of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) mapped: bool,
    pub(crate) kind: Kind,
    pub(crate) protection: Protection,
    /// Missing pages are for a userfaultfd to fill.
    pub(crate) uffd: bool,
    /// Beyond the end of the file.
    pub(crate) truncated: bool,
}

impl Area {
    /// Whether an access is within the rules.
    pub(crate) fn allows(&self, write: bool) -> bool {
        let allowed = match self.protection {
            Protection::None => false,
            Protection::Read => !write,
            Protection::Write => true,
        };
        self.mapped && !self.truncated && allowed
    }
}

#[derive(Clone)]
pub(crate) struct Page {
    pub(crate) area: Area,
    pub(crate) pte: Pte,
    /// Of an anonymous page in swap space, of a file on disk.
    pub(crate) backing: Bytes,
    /// The file's page cache.
    pub(crate) cache: Option<FrameId>,
    /// What the process would see.
    pub(crate) shadow: Bytes,
    /// How often the shadow has changed.
    pub(crate) changes: u32,
    /// When an access to it, reading and writing, was last against the rules.
    pub(crate) refused: [Option<usize>; 2],
}

impl Page {
    /// The frame that the process would reach, if there is one.
    pub(crate) fn frame(&self) -> Option<FrameId> {
        match (self.pte, self.area.kind) {
            (Pte::Present { frame, .. } | Pte::Migrating(frame), _) => Some(frame),
            (Pte::None, Kind::File) => self.cache,
            (Pte::None, Kind::Anonymous) | (Pte::Swapped, _) => None,
        }
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} cache {:?}", self.area, self.pte, self.cache)
    }
}

/// What the IOMMU has for an IOVA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) frame: FrameId,
    /// The process's page.
    pub(crate) page: usize,
}

/// What a walk of the page table comes to.
pub(crate) enum Walked {
    /// There is none, and none was asked for.
    Hole,
    Found {
        frame: FrameId,
        write: bool,
        order: u32,
    },
    /// Nothing that can be had.
    Invalid,
    /// Mapped, not for writing.
    WriteRefused,
    /// It is being moved.
    Migrating,
    /// A userfaultfd has to fill it first.
    Missing,
    /// It has to be copied before it can be written.
    Shared,
}

pub(crate) struct Memory {
    pub(crate) low: Vec<u8>,
    pub(crate) frames: Vec<Frame>,
    pages: Vec<Page>,
    /// By MR.
    iommu: Vec<bus::Table>,
    /// What children share.
    pub(crate) children: Vec<FrameId>,
    /// Changes with the page table, the IOMMU and the bytes.
    pub(crate) version: u64,
    pub(crate) step: usize,
    /// Pages that wait for a userfaultfd.
    pub(crate) missing: Vec<usize>,
    pub(crate) finding: Option<(&'static str, String)>,
    pub(crate) device_reads: usize,
    pub(crate) device_writes: usize,
}

impl Memory {
    pub(crate) fn new(areas: &[Area]) -> Self {
        let zero = Frame {
            bytes: [0; 2 * EDGE],
            users: 1,
            held: 0,
            dirty: false,
        };
        let page = |(n, &area): (usize, &Area)| {
            let mut bytes = [0; 2 * EDGE];
            if area.kind == Kind::File {
                let seed = u8::try_from(n * 7 + 1).unwrap_or(1);
                for (byte, at) in bytes.iter_mut().zip(0_u8..) {
                    *byte = at.wrapping_mul(31) ^ seed;
                }
            }
            Page {
                area,
                pte: Pte::None,
                backing: bytes,
                cache: None,
                shadow: bytes,
                changes: 0,
                refused: [None; 2],
            }
        };
        Self {
            low: vec![0; LOW],
            frames: vec![zero],
            pages: areas.iter().enumerate().map(page).collect(),
            iommu: Vec::new(),
            children: Vec::new(),
            version: 0,
            step: 0,
            missing: Vec::new(),
            finding: None,
            device_reads: 0,
            device_writes: 0,
        }
    }

    fn fail(&mut self, kind: &'static str, text: String) {
        self.finding.get_or_insert((kind, text));
    }

    /// The page, if there can be anything.
    pub(crate) fn page(&self, page: usize) -> Option<&Page> {
        self.pages.get(page.checked_sub(FIRST)?)
    }

    /// The same, to be changed.
    pub(crate) fn page_mut(&mut self, page: usize) -> Option<&mut Page> {
        self.version += 1;
        self.pages.get_mut(page.checked_sub(FIRST)?)
    }

    /// All of them.
    pub(crate) fn all() -> Range<usize> {
        FIRST..FIRST + COUNT
    }

    pub(crate) fn new_frame(&mut self, bytes: Bytes) -> FrameId {
        self.version += 1;
        self.frames.push(Frame {
            bytes,
            users: 1,
            held: 0,
            dirty: false,
        });
        self.frames.len() - 1
    }

    /// A page table or a cache gives a frame up.
    pub(crate) fn put(&mut self, frame: FrameId) {
        self.version += 1;
        if frame == 0 {
            return;
        }
        match self.frames[frame].users.checked_sub(1) {
            Some(users) => self.frames[frame].users = users,
            None => self.fail("model", format!("frame {frame} is put once too often")),
        }
        if self.frames[frame].users == 0 && self.frames[frame].held == 0 {
            if let Some(mapping) = self.mapping_of(frame) {
                self.fail(
                    "freed and mapped",
                    format!("frame {frame} is freed and the IOMMU has it: {mapping:?}"),
                );
            }
        }
    }

    fn mapping_of(&self, frame: FrameId) -> Option<Mapping> {
        let mut all = self.iommu.iter().flat_map(bus::Table::all);
        all.find(|mapping| mapping.frame == frame)
    }

    /// The frame that a page's file has in the cache, read from disk if it is not there.
    fn cached(&mut self, page: usize) -> Option<FrameId> {
        let (cache, backing) = self.page(page).map(|page| (page.cache, page.backing))?;
        if let Some(frame) = cache {
            return Some(frame);
        }
        let frame = self.new_frame(backing);
        self.page_mut(page)?.cache = Some(frame);
        Some(frame)
    }

    fn set_pte(&mut self, page: usize, pte: Pte) {
        if let Some(page) = self.page_mut(page) {
            page.pte = pte;
        }
    }

    /// What `hmm_range_fault` does for one page.
    pub(crate) fn walk(&mut self, at: usize, need: Need) -> Walked {
        let Some(page) = self.page(at) else {
            return match need {
                Need::Snapshot => Walked::Hole,
                _ => Walked::Invalid,
            };
        };
        let (area, pte, backing) = (page.area, page.pte, page.backing);
        if need == Need::Snapshot {
            return match pte {
                Pte::Present {
                    frame,
                    write,
                    order,
                } => Walked::Found {
                    frame,
                    write,
                    order,
                },
                _ => Walked::Hole,
            };
        }
        if !area.allows(false) {
            return Walked::Invalid;
        }
        let wants_write = need == Need::Write;
        if wants_write && area.protection == Protection::Read {
            return Walked::WriteRefused;
        }
        let pte = match (pte, area.kind) {
            (
                Pte::Present {
                    frame,
                    write: false,
                    order,
                },
                _,
            ) if wants_write => {
                if area.kind == Kind::Anonymous && (frame == 0 || self.frames[frame].users > 1) {
                    return Walked::Shared;
                }
                // Used again as it is: no notifier is called for that.
                Pte::Present {
                    frame,
                    write: true,
                    order,
                }
            }
            (pte @ Pte::Present { .. }, _) => pte,
            (Pte::Migrating(_), _) => return Walked::Migrating,
            (Pte::None, _) if area.uffd => {
                if !self.missing.contains(&at) {
                    self.missing.push(at);
                }
                return Walked::Missing;
            }
            (Pte::None, Kind::Anonymous) if !wants_write => Pte::Present {
                frame: 0,
                write: false,
                order: 0,
            },
            (Pte::None, Kind::Anonymous) => Pte::Present {
                frame: self.new_frame([0; 2 * EDGE]),
                write: true,
                order: 0,
            },
            (Pte::Swapped, _) => Pte::Present {
                frame: self.new_frame(backing),
                write: wants_write,
                order: 0,
            },
            (Pte::None, Kind::File) => {
                let Some(frame) = self.cached(at) else {
                    return Walked::Invalid;
                };
                self.frames[frame].users += 1;
                Pte::Present {
                    frame,
                    write: wants_write,
                    order: 0,
                }
            }
        };
        self.set_pte(at, pte);
        match pte {
            Pte::Present {
                frame,
                write,
                order,
            } => Walked::Found {
                frame,
                write,
                order,
            },
            _ => Walked::Hole,
        }
    }

    /// The bytes that the page table leads to.
    fn bytes<'p>(&'p self, page: &'p Page) -> &'p Bytes {
        match page.frame() {
            Some(frame) => &self.frames[frame].bytes,
            None if page.pte == Pte::None && page.area.kind == Kind::Anonymous => &[0; 2 * EDGE],
            None => &page.backing,
        }
    }

    /// No write is lost: the page table leads to what the process would see.
    pub(crate) fn lost(&self) -> Option<usize> {
        let lost = |page: &Page| page.area.mapped && *self.bytes(page) != page.shadow;
        self.pages.iter().position(lost).map(|at| FIRST + at)
    }

    /// The process sees other bytes from now on.
    pub(crate) fn set_shadow(&mut self, page: usize, bytes: Bytes) {
        if let Some(page) = self.page_mut(page) {
            page.changes += u32::from(page.shadow != bytes);
            page.shadow = bytes;
        }
    }

    /// The process writes a byte at the start of the page, which it has for writing.
    pub(crate) fn cpu_write(&mut self, at: usize, value: u8) {
        let Some(Pte::Present { frame, .. }) = self.page(at).map(|page| page.pte) else {
            return;
        };
        self.frames[frame].dirty = true;
        self.frames[frame].bytes[0] = value;
        let bytes = self.frames[frame].bytes;
        self.set_shadow(at, bytes);
    }

    /// Accesses to the page, reading and writing, are against the rules, now or until now.
    pub(crate) fn note_refused(&mut self, at: usize) {
        let step = self.step;
        if let Some(page) = self.page_mut(at) {
            for write in [false, true] {
                if !page.area.allows(write) {
                    page.refused[usize::from(write)] = Some(step);
                }
            }
        }
    }

    /// Whether an access that began at `since` may have been against the rules.
    pub(crate) fn was_refused(&self, at: usize, write: bool, since: usize) -> bool {
        let Some(page) = self.page(at) else {
            return true;
        };
        !page.area.allows(write)
            || page.refused[usize::from(write)].is_some_and(|step| step >= since)
    }
}
