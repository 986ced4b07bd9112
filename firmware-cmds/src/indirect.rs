// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Through an MKey that refers to MKeys: which bytes of which others an access to it comes to.
//!
//! Source: PRM "Indirect MKeys"; kernel `odp.c:pagefault_single_data_segment`; rdma-core
//! `providers/mlx5/qp.c:mlx5_umr_fill_inl_data_interleaved`.

use crate::handle::{Iova, Mkey};
use crate::mkc::{AccessMode, Mkc};
use crate::wire::{Error, Wire};
use crate::xlt::{Klm, Ksm, Stride, StrideBlock};

/// A stretch of an MKey's space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The key.
    pub key: Mkey,
    /// First address in its space.
    pub at: Iova,
    /// Bytes.
    pub bytes: u64,
}

/// The pieces that an access comes to, in order.
///
/// It holds no translation list: [`Pieces::next`] is given the same one each time.
#[derive(Clone, Debug)]
pub struct Pieces {
    format: Format,
    /// Entry that comes next.
    index: usize,
    /// Bytes from the start of that entry to the access.
    skip: u64,
    /// Bytes of the access that are to come.
    left: u64,
}

/// What the next entry is.
#[derive(Clone, Debug)]
enum Format {
    /// A [`Ksm`], for so many bytes.
    Ksm(u64),
    /// A [`Klm`], or the head of a strided block.
    Klm,
    /// A [`Stride`], gone through so many times before.
    Stride {
        block: StrideBlock,
        first: usize,
        repetition: u32,
    },
}

impl Pieces {
    /// Of `bytes` at `at` of a key with this context; `None` if they are not all inside, or if the
    /// key is free or refers to none.
    pub fn new(mkc: &Mkc, at: Iova, bytes: u64) -> Option<Self> {
        let skip = at.get().checked_sub(mkc.start_addr.get())?;
        let end = skip.checked_add(bytes)?;
        if mkc.free || (end > mkc.len && !mkc.length64) {
            return None;
        }
        let (format, index, skip) = match mkc.access_mode {
            AccessMode::Klms => (Format::Klm, 0, skip),
            AccessMode::Ksm => {
                let page = mkc.log_page_size.bytes();
                (Format::Ksm(page), skip / page, skip % page)
            }
            _ => return None,
        };
        Some(Self {
            format,
            index: usize::try_from(index).ok()?,
            skip,
            left: bytes,
        })
    }

    /// The next piece; `list` is the key's translation list. It takes time by the entries that
    /// are passed over, never by what they say.
    ///
    /// # Errors
    ///
    /// [`Error::Xlt`]: the list is shorter than the access, an address lies beyond the end of the
    /// address space, or the entries of a strided block are not what a repetition takes, or one of
    /// them takes nothing.
    pub fn next(&mut self, list: &[u8]) -> Result<Option<Piece>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        loop {
            match self.format {
                Format::Ksm(page) => {
                    let ksm: Ksm = entry(list, self.index)?;
                    self.index += 1;
                    return self.rest_of(ksm.key, Some(ksm.va), page).map(Some);
                }
                Format::Klm => {
                    if let Ok(block) = entry::<StrideBlock>(list, self.index) {
                        self.index += 1;
                        self.enter(block, list)?;
                        continue;
                    }
                    let klm: Klm = entry(list, self.index)?;
                    self.index += 1;
                    let bytes = u64::from(klm.bcount);
                    if self.skip < bytes {
                        return self.rest_of(klm.key, Some(klm.va), bytes).map(Some);
                    }
                    self.skip -= bytes;
                }
                Format::Stride {
                    block,
                    first,
                    repetition,
                } => {
                    if self.index == first + usize::from(block.num_entries) {
                        self.repeat(block, first, repetition);
                        continue;
                    }
                    let stride: Stride = entry(list, self.index)?;
                    self.index += 1;
                    let bytes = u64::from(stride.bcount);
                    if self.skip < bytes {
                        let before = u64::from(stride.stride) * u64::from(repetition);
                        let va = stride.va.checked_add(before);
                        return self.rest_of(stride.key, va, bytes).map(Some);
                    }
                    self.skip -= bytes;
                }
            }
        }
    }

    /// What the access takes of an entry of `bytes` bytes.
    fn rest_of(&mut self, key: Mkey, va: Option<Iova>, bytes: u64) -> Result<Piece, Error> {
        let at = va.and_then(|va| va.checked_add(self.skip));
        let bytes = self.left.min(bytes - self.skip);
        self.left -= bytes;
        self.skip = 0;
        Ok(Piece {
            key,
            at: at.ok_or(Error::Xlt)?,
            bytes,
        })
    }

    /// Goes into the block whose entries come next, or passes over it.
    fn enter(&mut self, block: StrideBlock, list: &[u8]) -> Result<(), Error> {
        let first = self.index;
        let end = first + usize::from(block.num_entries);
        if self.skip >= block.bytes() {
            self.skip -= block.bytes();
            self.index = end;
            return Ok(());
        }
        let mut cycle = 0;
        for index in first..end {
            let stride: Stride = entry(list, index)?;
            if stride.bcount == 0 {
                return Err(Error::Xlt);
            }
            cycle += u64::from(stride.bcount);
        }
        if cycle != u64::from(block.bcount_per_cycle) {
            return Err(Error::Xlt);
        }
        // Less than `repeat_count`: the access begins within the block.
        let repetition = u32::try_from(self.skip / cycle).map_err(|_| Error::Xlt)?;
        self.skip %= cycle;
        self.format = Format::Stride {
            block,
            first,
            repetition,
        };
        Ok(())
    }

    /// Behind the last entry of a block: at the first again, or out of it.
    fn repeat(&mut self, block: StrideBlock, first: usize, repetition: u32) {
        let repetition = repetition + 1;
        if repetition == block.repeat_count {
            self.format = Format::Klm;
            return;
        }
        self.index = first;
        self.format = Format::Stride {
            block,
            first,
            repetition,
        };
    }
}

fn entry<T: Wire>(list: &[u8], index: usize) -> Result<T, Error> {
    let at = index.checked_mul(T::LEN).ok_or(Error::Xlt)?;
    let entry = list.get(at..).ok_or(Error::Xlt)?;
    T::parse(entry).map_err(|_| Error::Xlt)
}
