// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The guest's memory as QEMU shares it: files, mapped into this process.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use connectx::guest::{to_u64, DmaReason};
use connectx::{DmaError, GuestMemory};
use firmware_cmds::DmaAddr;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Rights of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    /// The device may read.
    pub(crate) read: bool,
    /// The device may write.
    pub(crate) write: bool,
}

#[derive(Clone)]
struct Range {
    len: u64,
    /// `None`: memory that came without a file descriptor.
    backing: Option<Arc<MmapRegion>>,
    offset: u64,
    rights: Rights,
}

#[derive(Default)]
struct Table {
    /// Each file is mapped whole and once: behind an IOMMU the guest maps it in pieces of
    /// 4 KiB, and those must cost no system call.
    files: HashMap<(u64, u64), Arc<MmapRegion>>,
    ranges: BTreeMap<u64, Range>,
}

/// Guest memory that is mapped into this process, behind a table of IOVA ranges.
#[derive(Default)]
pub(crate) struct MappedMemory {
    table: RwLock<Table>,
}

#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

impl MappedMemory {
    /// An empty address space.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Maps `len` bytes of `file` from `offset` on at `iova`. Without a file the range
    /// exists but cannot be accessed.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the range is empty, wraps, overlaps another or lies beyond the
    /// end of the file; otherwise what `fstat` and `mmap` return.
    pub(crate) fn map(
        &self,
        iova: DmaAddr,
        len: u64,
        file: Option<File>,
        offset: u64,
        rights: Rights,
    ) -> io::Result<()> {
        let end = iova
            .get()
            .checked_add(len)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file_end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        self.write_table(|table| {
            if table.first_below(end).is_some_and(|(_, e)| e > iova.get()) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let backing = match file {
                Some(file) => Some(table.backing(file, file_end)?),
                None => None,
            };
            table.ranges.insert(
                iova.get(),
                Range {
                    len,
                    backing,
                    offset,
                    rights,
                },
            );
            Ok(())
        })
    }

    /// Takes `[iova, iova + len)` out of the address space and returns how many bytes of
    /// it were mapped. When this returns, no access through the old mapping is under way.
    pub(crate) fn unmap(&self, iova: DmaAddr, len: u64) -> u64 {
        self.write_table(|table| table.remove(iova.get(), iova.get().saturating_add(len)))
    }

    fn write_table<T>(&self, f: impl FnOnce(&mut Table) -> T) -> T {
        f(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_table<T>(&self, f: impl FnOnce(&Table) -> T) -> T {
        f(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `f(region, offset in region, offset in access, length)` for each piece.
    fn pieces(
        &self,
        iova: DmaAddr,
        len: usize,
        access: Access,
        mut f: impl FnMut(
            &MmapRegion,
            usize,
            usize,
            usize,
        ) -> Result<(), vm_memory::VolatileMemoryError>,
    ) -> Result<(), DmaError> {
        self.read_table(|table| {
            let mut done = 0;
            while done < len {
                let at = DmaAddr::new(iova.get().wrapping_add(to_u64(done)));
                let error = |reason| DmaError { iova: at, reason };
                let (range, skip) = table
                    .find(at.get())
                    .ok_or_else(|| error(DmaReason::Unmapped))?;
                match access {
                    Access::Read if !range.rights.read => return Err(error(DmaReason::WriteOnly)),
                    Access::Write if !range.rights.write => return Err(error(DmaReason::ReadOnly)),
                    Access::Read | Access::Write => {}
                }
                let region = range
                    .backing
                    .as_ref()
                    .ok_or_else(|| error(DmaReason::NotShared))?;
                let left = usize::try_from(range.len - skip).unwrap_or(usize::MAX);
                let piece = left.min(len - done);
                let start = usize::try_from(range.offset + skip)
                    .map_err(|_| error(DmaReason::NotShared))?;
                f(region, start, done, piece).map_err(|_| error(DmaReason::NotShared))?;
                done += piece;
            }
            Ok(())
        })
    }

    fn atomic(&self, iova: DmaAddr, op: impl Fn(&AtomicU64) -> u64) -> Result<u64, DmaError> {
        if iova.get() % 8 != 0 {
            return Err(DmaError {
                iova,
                reason: DmaReason::Misaligned,
            });
        }
        let mut old = 0;
        // Ranges are made of pages, so an aligned 8-byte access is one piece.
        self.pieces(iova, 8, Access::Write, |region, start, _, _| {
            old = op(region.get_atomic_ref::<AtomicU64>(start)?);
            Ok(())
        })?;
        Ok(old)
    }
}

impl Table {
    /// The last range that starts below `end`, as `(start, end)`.
    fn first_below(&self, end: u64) -> Option<(u64, u64)> {
        let (&start, range) = self.ranges.range(..end).next_back()?;
        Some((start, start + range.len))
    }

    fn find(&self, at: u64) -> Option<(&Range, u64)> {
        let (&start, range) = self.ranges.range(..=at).next_back()?;
        let skip = at - start;
        (skip < range.len).then_some((range, skip))
    }

    fn backing(&mut self, file: File, end: u64) -> io::Result<Arc<MmapRegion>> {
        let stat = file.metadata()?;
        let key = (stat.dev(), stat.ino());
        let size = stat.size();
        if end > size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(region) = self.files.get(&key) {
            if to_u64(region.size()) >= end {
                return Ok(Arc::clone(region));
            }
        }
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), size)
            .map(Arc::new)
            .map_err(io::Error::other)?;
        self.files.insert(key, Arc::clone(&region));
        Ok(region)
    }

    fn remove(&mut self, start: u64, end: u64) -> u64 {
        let mut removed = 0;
        while let Some((at, range_end)) = self.first_below(end) {
            if range_end <= start {
                break;
            }
            let Some(range) = self.ranges.remove(&at) else {
                break;
            };
            let (cut_start, cut_end) = (at.max(start), range_end.min(end));
            removed += cut_end - cut_start;
            if cut_end < range_end {
                let tail = Range {
                    len: range_end - cut_end,
                    offset: range.offset + (cut_end - at),
                    ..range.clone()
                };
                self.ranges.insert(cut_end, tail);
            }
            if at < cut_start {
                let head = Range {
                    len: cut_start - at,
                    ..range
                };
                self.ranges.insert(at, head);
            }
        }
        removed
    }
}

impl GuestMemory for MappedMemory {
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError> {
        self.pieces(
            iova,
            buf.len(),
            Access::Read,
            |region, start, done, piece| {
                region
                    .get_slice(start, piece)?
                    .copy_to(&mut buf[done..done + piece]);
                Ok(())
            },
        )
    }

    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError> {
        self.pieces(
            iova,
            data.len(),
            Access::Write,
            |region, start, done, piece| {
                region
                    .get_slice(start, piece)?
                    .copy_from(&data[done..done + piece]);
                Ok(())
            },
        )
    }

    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError> {
        self.pieces(iova, 1, Access::Write, |region, start, _, _| {
            region
                .get_atomic_ref::<AtomicU8>(start)?
                .store(value, Ordering::Release);
            Ok(())
        })
    }

    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError> {
        self.atomic(iova, |cell| cell.fetch_add(add, Ordering::SeqCst))
    }

    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError> {
        self.atomic(iova, |cell| {
            match cell.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(old) | Err(old) => old,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rights = Rights {
        read: true,
        write: true,
    };

    /// `len` bytes of a file of their own at IOVA 0.
    fn shared(len: u64) -> MappedMemory {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let memory = MappedMemory::new();
        memory
            .map(DmaAddr::new(0), len, Some(file), 0, ALL)
            .unwrap();
        memory
    }

    fn unmapped(iova: u64) -> DmaError {
        DmaError {
            iova: DmaAddr::new(iova),
            reason: DmaReason::Unmapped,
        }
    }

    #[test]
    fn reads_what_was_written_across_ranges() {
        let mem = shared(0x4000);
        mem.write(DmaAddr::new(0xffe), &[1, 2, 3, 4]).unwrap();
        // Cuts the range in three; the outer two keep their contents.
        assert_eq!(mem.unmap(DmaAddr::new(0x2000), 0x1000), 0x1000);
        assert_eq!(mem.read_table(|table| table.ranges.len()), 2);
        let mut buf = [0; 4];
        mem.read(DmaAddr::new(0xffe), &mut buf).unwrap();
        assert_eq!(buf, [1, 2, 3, 4]);
        assert_eq!(
            mem.read(DmaAddr::new(0x1ffe), &mut buf),
            Err(unmapped(0x2000))
        );
        assert_eq!(mem.write(DmaAddr::new(0x2fff), &buf), Err(unmapped(0x2fff)));
        mem.write(DmaAddr::new(0x3000), &buf).unwrap();
        assert_eq!(mem.unmap(DmaAddr::new(0), u64::MAX), 0x3000);
        assert_eq!(mem.read(DmaAddr::new(0), &mut buf), Err(unmapped(0)));
    }

    #[test]
    fn an_access_past_the_last_address_fails() {
        let mem = shared(0x1000);
        let mut buf = [0; 16];
        assert!(mem.read(DmaAddr::new(u64::MAX - 3), &mut buf).is_err());
    }

    #[test]
    fn maps_must_not_overlap() {
        let mem = MappedMemory::new();
        let map = |iova, len| mem.map(DmaAddr::new(iova), len, None, 0, ALL);
        map(0x1000, 0x1000).unwrap();
        assert!(map(0x1fff, 1).is_err());
        assert!(map(0, 0x1001).is_err());
        assert!(map(0, 0x3000).is_err());
        assert!(map(0x5000, 0).is_err());
        assert!(map(u64::MAX, 2).is_err());
        map(0, 0x1000).unwrap();
        map(0x2000, 0x1000).unwrap();
        let mut byte = [0];
        assert_eq!(
            mem.read(DmaAddr::new(0x1000), &mut byte)
                .unwrap_err()
                .reason,
            DmaReason::NotShared
        );
    }

    #[test]
    fn atomics() {
        let mem = shared(0x1000);
        assert_eq!(mem.fetch_add(DmaAddr::new(8), 5), Ok(0));
        assert_eq!(mem.compare_exchange(DmaAddr::new(8), 4, 9), Ok(5));
        assert_eq!(mem.compare_exchange(DmaAddr::new(8), 5, 9), Ok(5));
        assert_eq!(mem.fetch_add(DmaAddr::new(8), u64::MAX), Ok(9));
        let mut word = [0; 8];
        mem.read(DmaAddr::new(8), &mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 8);
        assert_eq!(
            mem.fetch_add(DmaAddr::new(4), 1).unwrap_err().reason,
            DmaReason::Misaligned
        );
    }
}
