// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Data segments: pointers to memory and inline data.

use core::iter::FusedIterator;

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::DS_LEN;
use crate::handle::{bounded, Iova, Mkey};
use crate::wire::{read, Error, Wire};

/// Word 0 of a data segment.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ByteCountWord {
    /// Inline data follows; this is no pointer (kernel: `MLX5_INLINE_SEG`).
    pub inline: bool,
    /// Length.
    #[bits(31)]
    pub byte_count: ByteCount,
}

bounded! {
    /// Length of a data segment as it is written: 0 stands for 2 GiB
    /// (kernel: `odp.c:pagefault_data_segments`).
    ByteCount(u32), 31 bits of a word
}

impl ByteCount {
    /// The length in bytes, 1 to 2^31.
    pub fn bytes(self) -> u64 {
        match self.get() {
            0 => 1 << 31,
            count => u64::from(count),
        }
    }
}

/// Layout of a data segment (`struct mlx5_wqe_data_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataSegLayout {
    /// Length.
    pub byte_count: ByteCountWord,
    /// Key.
    pub lkey: U32,
    /// Address.
    pub addr: U64,
}

/// Data segment: a pointer to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct DataSeg {
    /// Length; 0 stands for 2 GiB.
    pub byte_count: ByteCount,
    /// Key.
    pub lkey: Mkey,
    /// Address in the space of the key.
    pub addr: Iova,
}

impl DataSeg {
    /// Whether this ends a receive WQE's scatter list on a device whose key for that is
    /// `terminate`.
    pub fn terminates(&self, terminate: Mkey) -> bool {
        self.byte_count.get() == 0 && self.lkey == terminate && self.addr.get() == 0
    }
}

impl Wire for DataSeg {
    type Layout = DataSegLayout;

    /// # Errors
    ///
    /// [`Error::Inline`]: it is inline data.
    fn decode(layout: &DataSegLayout) -> Result<Self, Error> {
        if layout.byte_count.inline() {
            return Err(Error::Inline);
        }
        Ok(Self {
            byte_count: layout.byte_count.byte_count(),
            lkey: Mkey::new(layout.lkey.get()),
            addr: Iova::new(layout.addr.get()),
        })
    }

    fn encode(&self) -> DataSegLayout {
        DataSegLayout {
            byte_count: ByteCountWord::new().with_byte_count(self.byte_count),
            lkey: U32::new(self.lkey.get()),
            addr: U64::new(self.addr.get()),
        }
    }
}

/// Word 0 of inline data.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct InlineWord {
    /// Inline data follows (kernel: `MLX5_INLINE_SEG`).
    pub inline: bool,
    #[bits(21)]
    __: u32,
    /// Length in bytes (kernel: `MLX5_WQE_INLINE_SEG_BYTE_COUNT_MASK`).
    #[bits(10)]
    pub byte_count: u16,
}

/// Layout of the head of inline data (`struct mlx5_wqe_inline_seg`). The data follows; head and
/// data are padded to whole DS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InlineSegLayout {
    /// Length.
    pub byte_count: InlineWord,
}

/// What a send WQE gathers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sge<'a> {
    /// Memory.
    Data(DataSeg),
    /// The WQE itself.
    Inline(&'a [u8]),
}

/// Walks the data segments of a send WQE. After an error it ends.
#[derive(Clone, Debug)]
pub struct Sges<'a> {
    rest: &'a [u8],
}

impl<'a> Sges<'a> {
    /// Walks `segments`, which hold data segments up to their end.
    pub const fn new(segments: &'a [u8]) -> Self {
        Self { rest: segments }
    }

    fn take(&mut self) -> Result<Sge<'a>, Error> {
        let rest = core::mem::take(&mut self.rest);
        let (head, body) = read::<InlineSegLayout>(rest)?;
        if !head.byte_count.inline() {
            let (data, rest) = DataSeg::parse_prefix(rest)?;
            self.rest = rest;
            return Ok(Sge::Data(data));
        }
        let len = usize::from(head.byte_count.byte_count());
        let inline = body.get(..len).ok_or(Error::Truncated {
            needed: len,
            available: body.len(),
        })?;
        // At most 1027 bytes, no overflow. WQEs are whole DS, so the padding is there; a buffer
        // cut short within it holds no further segment.
        let padded = (size_of::<InlineSegLayout>() + len).next_multiple_of(DS_LEN);
        self.rest = rest.get(padded..).unwrap_or_default();
        Ok(Sge::Inline(inline))
    }
}

impl<'a> Iterator for Sges<'a> {
    type Item = Result<Sge<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.take())
    }
}

impl FusedIterator for Sges<'_> {}
