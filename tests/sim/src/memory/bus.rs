// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory as the device has it: what it shares with the driver, and through the IOMMU the process's
//! pages. Every access must reach what the process would.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use connectx::guest::{DmaReason, GuestMemory};
use connectx::DmaError;
use firmware_cmds::DmaAddr;

use super::{FrameId, Mapping, Memory, Page, Pte, EDGE, LOW, PAGE};

/// From here on the IOMMU translates; each MR has a range of this size.
const IOVA_SHIFT: u32 = 32;

/// What the IOMMU has of one MR.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// How many there can be.
    entries: usize,
    /// By entry, in their order: no more than there are pages.
    mappings: Vec<(usize, Mapping)>,
}

impl Table {
    fn place(&self, entry: usize) -> Result<usize, usize> {
        self.mappings.binary_search_by_key(&entry, |&(at, _)| at)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Mapping> + '_ {
        self.mappings.iter().map(|&(_, mapping)| mapping)
    }
}

/// The index among the bytes that are kept.
fn kept(offset: usize) -> Option<usize> {
    if offset < EDGE {
        Some(offset)
    } else {
        offset.checked_sub(PAGE - EDGE).map(|at| EDGE + at)
    }
}

impl Memory {
    /// Room in the IOMMU for the entries of an MR.
    pub(crate) fn reserve(&mut self, mr: usize, entries: usize) {
        let missing = (mr + 1).saturating_sub(self.iommu.len());
        self.iommu
            .extend(std::iter::repeat_n(Table::default(), missing));
        self.iommu[mr].entries = entries;
    }

    /// The IOVA of an MR's entry.
    pub(crate) fn iova(mr: usize, entry: usize) -> u64 {
        let entry = u64::try_from(entry * PAGE).unwrap_or(u64::MAX);
        (u64::try_from(mr + 1).unwrap_or(u64::MAX) << IOVA_SHIFT) + entry
    }

    /// What the IOMMU has for an IOVA.
    pub(crate) fn mapping(&self, iova: u64) -> Option<Mapping> {
        let mr = usize::try_from(iova >> IOVA_SHIFT).ok()?.checked_sub(1)?;
        let entry = usize::try_from((iova & ((1 << IOVA_SHIFT) - 1)) / 4096).ok()?;
        let table = self.iommu.get(mr)?;
        let at = table.place(entry).ok()?;
        Some(table.mappings[at].1)
    }

    pub(crate) fn map(&mut self, mr: usize, entry: usize, mapping: Mapping) {
        self.version += 1;
        let table = &mut self.iommu[mr];
        match table.place(entry) {
            Ok(at) => {
                let (_, old) = table.mappings[at];
                self.fail("mapped twice", format!("entry {entry} of MR {mr}: {old:?}"));
            }
            Err(at) if entry < table.entries => table.mappings.insert(at, (entry, mapping)),
            Err(_) => self.fail("model", format!("MR {mr} has no entry {entry}")),
        }
        let frame = &self.frames[mapping.frame];
        if frame.users == 0 && frame.held == 0 {
            self.fail(
                "freed and mapped",
                format!("entry {entry} of MR {mr}: {mapping:?}"),
            );
        }
    }

    pub(crate) fn unmap(&mut self, mr: usize, entry: usize) -> Option<Mapping> {
        self.version += 1;
        let table = &mut self.iommu[mr];
        let at = table.place(entry).ok();
        if at.is_none() {
            self.fail("unmapped twice", format!("entry {entry} of MR {mr}"));
        }
        at.map(|at| self.iommu[mr].mappings.remove(at).1)
    }

    /// How many entries the IOMMU has of an MR.
    pub(crate) fn mapped(&self, mr: usize) -> usize {
        self.iommu[mr].mappings.len()
    }

    /// One access of the device's to memory that the IOMMU translates: calls
    /// `f(bytes of the frame, index, offset in the access)` for every byte that is kept.
    fn access(
        &mut self,
        iova: DmaAddr,
        len: usize,
        write: bool,
        mut f: impl FnMut(&mut u8, usize),
    ) -> Result<(), DmaError> {
        let mut done = 0;
        while done < len {
            let at = iova.get() + u64::try_from(done).unwrap_or(0);
            let start = usize::try_from(at % 4096).unwrap_or(0);
            let piece = (PAGE - start).min(len - done);
            let Some(Mapping { frame, page }) = self.mapping(at) else {
                self.fail("DMA to what is not mapped", format!("IOVA {at:#x}"));
                return Err(DmaError {
                    iova: DmaAddr::new(at),
                    reason: DmaReason::Unmapped,
                });
            };
            self.check_access(frame, page, write);
            let mut bytes = self.frames[frame].bytes;
            let before = bytes;
            for offset in
                (start..EDGE.min(start + piece)).chain(start.max(PAGE - EDGE)..start + piece)
            {
                if let Some(index) = kept(offset) {
                    f(&mut bytes[index], done + offset - start);
                }
            }
            if write {
                self.device_writes += 1;
                self.frames[frame].bytes = bytes;
                // Only what was written: the rest must be the same already.
                // The device may have kept a frame that is not the process's any more.
                let is_own = |page: &&mut Page| page.frame() == Some(frame);
                if let Some(page) = self.page_mut(page).filter(is_own) {
                    for (index, (new, old)) in bytes.iter().zip(before).enumerate() {
                        if *new != old {
                            page.shadow[index] = *new;
                        }
                    }
                    page.changes += 1;
                }
            } else {
                self.device_reads += 1;
            }
            done += piece;
        }
        Ok(())
    }

    /// The device reaches what the process would.
    fn check_access(&mut self, frame: FrameId, at: usize, write: bool) {
        if self.frames[frame].held > 0 {
            // It was not given back.
            return;
        }
        if self.frames[frame].users == 0 {
            return self.fail(
                "the device reached a page that was freed",
                format!("page {at}"),
            );
        }
        match self.page(at).map(|page| page.pte) {
            Some(Pte::Present {
                frame: own,
                write: may,
                ..
            }) => {
                if own != frame {
                    self.fail("the device reached another page", format!("page {at}"));
                } else if write && !may {
                    self.fail("the device wrote to a read-only page", format!("page {at}"));
                }
            }
            other => self.fail(
                "the device reached a page that was taken away",
                format!("page {at}: {other:?}"),
            ),
        }
    }
}

/// Memory as the device has it.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Arc<Mutex<Memory>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The range of [`Memory::low`], if the access lies in it.
fn low(iova: DmaAddr, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(iova.get()).ok()?;
    let end = start.checked_add(len)?;
    (end <= LOW).then_some(start..end)
}

impl GuestMemory for Shared {
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError> {
        let mut memory = self.lock();
        if let Some(range) = low(iova, buf.len()) {
            buf.copy_from_slice(&memory.low[range]);
            return Ok(());
        }
        buf.fill(0);
        memory.access(iova, buf.len(), false, |byte, at| buf[at] = *byte)
    }

    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError> {
        let mut memory = self.lock();
        if let Some(range) = low(iova, data.len()) {
            memory.low[range].copy_from_slice(data);
            return Ok(());
        }
        memory.access(iova, data.len(), true, |byte, at| *byte = data[at])
    }

    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError> {
        self.write(iova, &[value])
    }

    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError> {
        let mut bytes = [0; 8];
        self.read(iova, &mut bytes)?;
        let old = u64::from_ne_bytes(bytes);
        self.write(iova, &old.wrapping_add(add).to_ne_bytes())?;
        Ok(old)
    }

    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError> {
        let mut bytes = [0; 8];
        self.read(iova, &mut bytes)?;
        let old = u64::from_ne_bytes(bytes);
        if old == compare {
            self.write(iova, &swap.to_ne_bytes())?;
        }
        Ok(old)
    }
}
