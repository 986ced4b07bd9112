// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queue buffers: rings that the driver hands over as a list of pages.

use firmware_cmds::DmaAddr;
use serde::Serialize;

use crate::command::{CmdError, CmdStatus};
use crate::guest::offset;
use crate::guest::{to_u64, DmaError, GuestMemory};
use crate::inspect::show;

/// The largest queue the model accepts, in bytes: 2^22 CQEs of 128 bytes.
const MAX_BYTES: u64 = 1 << 29;

/// The memory of one queue: pages of equal size, the first used from an offset on.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QueueBuffer {
    #[serde(serialize_with = "show::debug")]
    pages: Vec<DmaAddr>,
    log_page: u32,
    offset: u64,
    len: u64,
}

impl QueueBuffer {
    /// A buffer of `len` bytes from the `pas` array of a command.
    ///
    /// `log_page_size` is the context field: the page size is `2^(log_page_size + 12)`
    /// bytes. `page_offset` counts 1/64ths of a page (`mlx5_ib/mem.c`).
    ///
    /// # Errors
    ///
    /// BAD_PARAM if the page size is absurd or the queue too large, BAD_INPUT_LEN if
    /// `pas` holds too few pages.
    pub fn new(
        pas: &[u8],
        log_page_size: u64,
        page_offset: u64,
        len: u64,
    ) -> Result<Self, CmdError> {
        let log_page = u32::try_from(log_page_size + 12)
            .ok()
            .filter(|&log| log < 52)
            .ok_or(CmdError::new(CmdStatus::BadParam))?;
        if page_offset > 63 || len > MAX_BYTES {
            return Err(CmdError::new(CmdStatus::BadParam));
        }
        let offset = page_offset << (log_page - 6);
        let count = usize::try_from((offset + len).div_ceil(1 << log_page))
            .map_err(|_| CmdError::new(CmdStatus::BadParam))?;
        let bytes = pas
            .get(..count * 8)
            .ok_or(CmdError::new(CmdStatus::BadInpLen))?;
        let mask = !0 << log_page;
        let pages = bytes
            .chunks_exact(8)
            .map(|entry| {
                let mut word = [0; 8];
                word.copy_from_slice(entry);
                DmaAddr::new(u64::from_be_bytes(word) & mask)
            })
            .collect();
        Ok(Self {
            pages,
            log_page,
            offset,
            len,
        })
    }

    /// A buffer of `len` bytes from byte `offset` of the first page on, in pages of `2^log_page`
    /// bytes.
    ///
    /// # Errors
    ///
    /// BAD_PARAM if the queue is too large, or its pages are not.
    pub fn over(
        pages: Vec<DmaAddr>,
        log_page: u32,
        offset: u64,
        len: u64,
    ) -> Result<Self, CmdError> {
        let room = to_u64(pages.len()) << log_page;
        if len > MAX_BYTES || offset >> log_page != 0 || offset + len > room {
            return Err(CmdError::new(CmdStatus::BadParam));
        }
        Ok(Self {
            pages,
            log_page,
            offset,
            len,
        })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where byte `at` is, and how many bytes follow it in the same page.
    ///
    /// # Panics
    ///
    /// If `at` lies beyond the end: positions come from the queue's own size.
    #[must_use]
    pub fn locate(&self, at: u64) -> (DmaAddr, usize) {
        assert!(at < self.len, "queue position beyond its buffer");
        let byte = self.offset + at;
        let page = usize::try_from(byte >> self.log_page).unwrap_or(usize::MAX);
        let within = byte & ((1 << self.log_page) - 1);
        let left = ((1 << self.log_page) - within).min(self.len - at);
        (
            offset(self.pages[page], within),
            usize::try_from(left).unwrap_or(usize::MAX),
        )
    }

    /// Reads from byte `at` on.
    ///
    /// # Errors
    ///
    /// Those of [`GuestMemory::read`].
    ///
    /// # Panics
    ///
    /// If the bytes lie beyond the end.
    pub fn read(&self, mem: &dyn GuestMemory, at: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        let mut done = 0;
        while done < buf.len() {
            let (iova, left) = self.locate(at + to_u64(done));
            let piece = left.min(buf.len() - done);
            mem.read(iova, &mut buf[done..done + piece])?;
            done += piece;
        }
        Ok(())
    }

    /// Writes from byte `at` on.
    ///
    /// # Errors
    ///
    /// Those of [`GuestMemory::write`].
    ///
    /// # Panics
    ///
    /// If the bytes lie beyond the end.
    pub fn write(&self, mem: &dyn GuestMemory, at: u64, data: &[u8]) -> Result<(), DmaError> {
        let mut done = 0;
        while done < data.len() {
            let (iova, left) = self.locate(at + to_u64(done));
            let piece = left.min(data.len() - done);
            mem.write(iova, &data[done..done + piece])?;
            done += piece;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Ram;

    fn pas(pages: &[u64]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.to_be_bytes()).collect()
    }

    #[test]
    fn scattered_pages_and_offset() {
        let mem = Ram::new(0x8000);
        let buffer = QueueBuffer::new(&pas(&[0x5000, 0x2000]), 0, 63, 128).unwrap();
        buffer.write(&mem, 60, &[7; 8]).unwrap();
        let mut bytes = [0; 4];
        mem.read(DmaAddr::new(0x5ffc), &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4]);
        mem.read(DmaAddr::new(0x2000), &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4]);
    }

    #[test]
    fn offset_is_a_fraction_of_large_pages() {
        let buffer = QueueBuffer::new(&pas(&[0x20_0000]), 9, 2, 64).unwrap();
        assert_eq!(buffer.locate(0).0, DmaAddr::new(0x20_0000 + 2 * 0x8000));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let status = |result: Result<QueueBuffer, CmdError>| result.unwrap_err().status;
        let one = pas(&[0x1000]);
        assert_eq!(
            status(QueueBuffer::new(&one, 0, 1, 4096)),
            CmdStatus::BadInpLen
        );
        assert_eq!(
            status(QueueBuffer::new(&one, 63, 0, 64)),
            CmdStatus::BadParam
        );
        assert_eq!(
            status(QueueBuffer::new(&one, 0, 0, u64::MAX)),
            CmdStatus::BadParam
        );
    }
}
