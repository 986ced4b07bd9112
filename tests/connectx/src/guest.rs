// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The guest's memory as the device reaches it: by IOVA, through what is mapped now.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use firmware_cmds::DmaAddr;

/// The address `bytes` further on; wraps like the hardware's adder.
#[must_use]
pub fn offset(address: DmaAddr, bytes: u64) -> DmaAddr {
    DmaAddr::new(address.get().wrapping_add(bytes))
}

/// Why an access to guest memory failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaError {
    /// First byte that could not be reached.
    pub iova: DmaAddr,
    /// What is wrong with it.
    pub reason: DmaReason,
}

/// What is wrong with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaReason {
    /// Nothing is mapped there, or no longer.
    Unmapped,
    /// Mapped without the right to write.
    ReadOnly,
    /// Mapped without the right to read.
    WriteOnly,
    /// Mapped, but to memory that was not shared with the device.
    NotShared,
    /// An atomic access that is not naturally aligned.
    Misaligned,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            DmaReason::Unmapped => "not mapped",
            DmaReason::ReadOnly => "mapped read-only",
            DmaReason::WriteOnly => "mapped write-only",
            DmaReason::NotShared => "not shared with the device",
            DmaReason::Misaligned => "misaligned",
        };
        write!(f, "IOVA {:#x} is {reason}", self.iova)
    }
}

impl std::error::Error for DmaError {}

/// Memory that the device reads and writes by IOVA.
///
/// The guest uses the same memory at the same time, so nothing read is stable. An access
/// that fails may have been done in part, up to [`DmaError::iova`].
pub trait GuestMemory: Send {
    /// Fills `buf` from `iova` on.
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError>;

    /// Stores `data` from `iova` on.
    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError>;

    /// Stores one byte after every earlier write has become visible: ownership bits.
    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError>;

    /// Adds to an 8-byte integer in host order, atomically; returns what was there.
    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError>;

    /// Replaces an 8-byte integer in host order if it equals `compare`, atomically;
    /// returns what was there.
    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError>;
}

impl<M: GuestMemory + Sync + ?Sized> GuestMemory for Arc<M> {
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError> {
        (**self).read(iova, buf)
    }
    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError> {
        (**self).write(iova, data)
    }
    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError> {
        (**self).write_release(iova, value)
    }
    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError> {
        (**self).fetch_add(iova, add)
    }
    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError> {
        (**self).compare_exchange(iova, compare, swap)
    }
}

/// Reads a big-endian 32-bit word.
pub fn read_be32(mem: &dyn GuestMemory, iova: DmaAddr) -> Result<u32, DmaError> {
    let mut word = [0; 4];
    mem.read(iova, &mut word)?;
    Ok(u32::from_be_bytes(word))
}

/// Reads a big-endian 64-bit word.
pub fn read_be64(mem: &dyn GuestMemory, iova: DmaAddr) -> Result<u64, DmaError> {
    let mut word = [0; 8];
    mem.read(iova, &mut word)?;
    Ok(u64::from_be_bytes(word))
}

/// Bytes of a page of [`Ram`].
const PAGE: usize = 4096;

/// A page; `None` reads as zeros and was never written.
type Page = Option<Box<[u8; PAGE]>>;

/// Memory of this process in pages of 4 KiB, for a device without a guest around it.
#[derive(Debug, Default)]
pub struct Ram {
    /// Pages that follow each other, by the number of the first.
    ranges: Mutex<BTreeMap<u64, Vec<Page>>>,
}

impl Ram {
    /// `len` bytes of zeroed memory at IOVA 0.
    #[must_use]
    pub fn new(len: u64) -> Self {
        let ram = Self::default();
        ram.map(DmaAddr::new(0), len);
        ram
    }

    /// Puts zeroed memory at `[iova, iova + len)`, widened to whole pages.
    ///
    /// # Panics
    ///
    /// If there is memory already.
    pub fn map(&self, iova: DmaAddr, len: u64) {
        let (first, end) = page_numbers(iova, len);
        self.with(|ranges| {
            let taken = last_below(ranges, end).is_some_and(|(_, taken)| taken > first);
            assert!(!taken, "memory at {iova:#x} + {len:#x} already");
            let pages = usize::try_from(end - first).unwrap_or(usize::MAX);
            ranges.insert(first, vec![None; pages]);
        });
    }

    /// Takes the pages that `[iova, iova + len)` touches away, with what is in them.
    pub fn unmap(&self, iova: DmaAddr, len: u64) {
        let (first, end) = page_numbers(iova, len);
        self.with(|ranges| {
            while let Some((start, _)) = last_below(ranges, end).filter(|&(_, e)| e > first) {
                let Some(mut pages) = ranges.remove(&start) else {
                    break;
                };
                let index = |page: u64| usize::try_from(page - start).unwrap_or(usize::MAX);
                if index(end) < pages.len() {
                    ranges.insert(end, pages.split_off(index(end)));
                }
                if start < first {
                    pages.truncate(index(first));
                    ranges.insert(start, pages);
                }
            }
        });
    }

    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Vec<Page>>) -> T) -> T {
        f(&mut self.ranges.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `f(page, offset in page, offset in access, length)` for each piece.
    fn pieces(
        &self,
        iova: DmaAddr,
        len: usize,
        mut f: impl FnMut(&mut Page, usize, usize, usize),
    ) -> Result<(), DmaError> {
        self.with(|ranges| {
            let mut done = 0;
            while done < len {
                let at = offset(iova, to_u64(done));
                let page = page(ranges, at.get() / to_u64(PAGE)).ok_or(DmaError {
                    iova: at,
                    reason: DmaReason::Unmapped,
                })?;
                let start = usize::try_from(at.get() % to_u64(PAGE)).unwrap_or(0);
                let piece = (PAGE - start).min(len - done);
                f(page, start, done, piece);
                done += piece;
            }
            Ok(())
        })
    }

    fn atomic(&self, iova: DmaAddr, op: impl Fn(u64) -> u64) -> Result<u64, DmaError> {
        if iova.get() % 8 != 0 {
            return Err(DmaError {
                iova,
                reason: DmaReason::Misaligned,
            });
        }
        let mut old = [0; 8];
        self.pieces(iova, 8, |page, start, _, _| {
            let bytes = &mut written(page)[start..start + 8];
            old.copy_from_slice(bytes);
            bytes.copy_from_slice(&op(u64::from_ne_bytes(old)).to_ne_bytes());
        })?;
        Ok(u64::from_ne_bytes(old))
    }
}

/// The pages that `[iova, iova + len)` touches, from the first to before the last number.
fn page_numbers(iova: DmaAddr, len: u64) -> (u64, u64) {
    let end = iova.get().saturating_add(len).div_ceil(to_u64(PAGE));
    (iova.get() / to_u64(PAGE), end)
}

/// The last range that starts below page `end`: its first page, and the one after its last.
fn last_below(ranges: &BTreeMap<u64, Vec<Page>>, end: u64) -> Option<(u64, u64)> {
    let (&start, pages) = ranges.range(..end).next_back()?;
    Some((start, start + to_u64(pages.len())))
}

fn page(ranges: &mut BTreeMap<u64, Vec<Page>>, number: u64) -> Option<&mut Page> {
    let (&start, pages) = ranges.range_mut(..=number).next_back()?;
    pages.get_mut(usize::try_from(number - start).ok()?)
}

/// The bytes of a page that is about to be written.
fn written(page: &mut Page) -> &mut [u8; PAGE] {
    page.get_or_insert_with(|| Box::new([0; PAGE]))
}

impl GuestMemory for Ram {
    fn read(&self, iova: DmaAddr, buf: &mut [u8]) -> Result<(), DmaError> {
        self.pieces(iova, buf.len(), |page, start, done, piece| {
            let buf = &mut buf[done..done + piece];
            match page {
                Some(bytes) => buf.copy_from_slice(&bytes[start..start + piece]),
                None => buf.fill(0),
            }
        })
    }

    fn write(&self, iova: DmaAddr, data: &[u8]) -> Result<(), DmaError> {
        self.pieces(iova, data.len(), |page, start, done, piece| {
            written(page)[start..start + piece].copy_from_slice(&data[done..done + piece]);
        })
    }

    fn write_release(&self, iova: DmaAddr, value: u8) -> Result<(), DmaError> {
        self.write(iova, &[value])
    }

    fn fetch_add(&self, iova: DmaAddr, add: u64) -> Result<u64, DmaError> {
        self.atomic(iova, |old| old.wrapping_add(add))
    }

    fn compare_exchange(&self, iova: DmaAddr, compare: u64, swap: u64) -> Result<u64, DmaError> {
        self.atomic(iova, |old| if old == compare { swap } else { old })
    }
}

/// `usize` always fits: the model needs a 64-bit host.
#[must_use]
pub fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmapped(iova: u64) -> DmaError {
        DmaError {
            iova: DmaAddr::new(iova),
            reason: DmaReason::Unmapped,
        }
    }

    #[test]
    fn ram_reads_what_was_written_until_it_is_unmapped() {
        let mem = Ram::new(0x4000);
        mem.write(DmaAddr::new(0xffe), &[1, 2, 3, 4]).unwrap();
        mem.write(DmaAddr::new(0x3000), &[5]).unwrap();
        mem.unmap(DmaAddr::new(0x2000), 0x1000);
        let mut buf = [9; 6];
        mem.read(DmaAddr::new(0xffd), &mut buf).unwrap();
        assert_eq!(buf, [0, 1, 2, 3, 4, 0]);
        assert_eq!(
            mem.read(DmaAddr::new(0x1ffe), &mut buf),
            Err(unmapped(0x2000))
        );
        assert_eq!(mem.write(DmaAddr::new(0x2fff), &buf), Err(unmapped(0x2fff)));
        mem.read(DmaAddr::new(0x3000), &mut buf).unwrap();
        assert_eq!(buf, [5, 0, 0, 0, 0, 0]);
        // What comes again is zero.
        mem.unmap(DmaAddr::new(0x1000), 1);
        mem.map(DmaAddr::new(0x1000), 0x2000);
        mem.read(DmaAddr::new(0x1000), &mut buf).unwrap();
        assert_eq!(buf, [0; 6]);
        mem.unmap(DmaAddr::new(0), u64::MAX);
        assert_eq!(mem.read(DmaAddr::new(0), &mut buf), Err(unmapped(0)));
        assert!(mem.read(DmaAddr::new(u64::MAX - 3), &mut buf).is_err());
    }

    #[test]
    #[should_panic(expected = "already")]
    fn ram_is_not_mapped_twice() {
        Ram::new(0x2000).map(DmaAddr::new(0x1fff), 1);
    }

    #[test]
    fn ram_atomics() {
        let mem = Ram::new(0x1000);
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
