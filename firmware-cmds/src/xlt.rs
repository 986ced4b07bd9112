// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Translation entries: MTT, KLM and KSM, and the strided block that a list of KLMs may hold.
//!
//! Source: PRM "Memory Translation Table", "KLM", "KSM"; kernel `mlx5_ifc_mtt_bits`,
//! `struct mlx5_{mtt,klm,ksm}`, `MLX5_EN_RD`, `MLX5_EN_WR`,
//! `struct mlx5_stride_block_{ctrl_seg,entry}`, `MLX5_STRIDE_BLOCK_OP`.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::{DmaAddr, Iova, Mkey};
use crate::wire::{Error, Wire};

/// Layout of an MTT (`mtt`).
#[bitfield(u64, order = Msb, repr = U64, from = U64::new, into = U64::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MttLayout {
    /// Bits 63:32 of the page's bus address.
    pub ptag_63_32: u32,
    /// Bits 31:8 of the page's bus address.
    #[bits(24)]
    pub ptag_31_8: u32,
    #[bits(6)]
    __: u8,
    /// The device may write the page.
    pub wr_en: bool,
    /// The device may read the page.
    pub rd_en: bool,
}

/// What the device may do with a page without faulting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MttAccess {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

impl MttAccess {
    /// Every access faults.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };

    /// Writes fault.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };

    /// Nothing faults.
    pub const READ_WRITE: Self = Self {
        read: true,
        write: true,
    };

    /// The bits of an MTT that say so.
    #[inline]
    const fn bits(self) -> u64 {
        const READ: u64 = MttLayout::new().with_rd_en(true).into_bits().get();
        const WRITE: u64 = MttLayout::new().with_wr_en(true).into_bits().get();
        (if self.read { READ } else { 0 }) | (if self.write { WRITE } else { 0 })
    }
}

/// Translation of one page.
///
/// # Invariants
///
/// The address is a multiple of [`Mtt::ALIGN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mtt {
    addr: DmaAddr,
    access: MttAccess,
}

impl Mtt {
    /// A page's address must be a multiple of this: the entry has no room for lower bits.
    pub const ALIGN: u64 = 1 << 8;

    /// The translation of a page that is not there: all zeros, every access faults.
    pub const NOT_PRESENT: Self = Self {
        addr: DmaAddr::new(0),
        access: MttAccess::NONE,
    };

    /// Translates to the page at `addr`.
    ///
    /// # Errors
    ///
    /// [`Error::Misaligned`]: `addr` is not a multiple of [`Mtt::ALIGN`].
    #[inline]
    pub const fn new(addr: DmaAddr, access: MttAccess) -> Result<Self, Error> {
        if addr.get() % Self::ALIGN != 0 {
            return Err(Error::Misaligned(addr.get()));
        }
        // INVARIANT: just checked.
        Ok(Self { addr, access })
    }

    /// Bus address of the page.
    #[inline]
    pub const fn addr(self) -> DmaAddr {
        self.addr
    }

    /// What the device may do with the page.
    #[inline]
    pub const fn access(self) -> MttAccess {
        self.access
    }

    /// Whether any access is allowed.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.access.read || self.access.write
    }
}

impl Wire for Mtt {
    type Layout = MttLayout;

    /// Every layout is accepted.
    fn decode(layout: &MttLayout) -> Result<Self, Error> {
        // INVARIANT: both parts are at or above bit 8.
        Ok(Self {
            addr: DmaAddr::new(
                u64::from(layout.ptag_63_32()) << 32 | u64::from(layout.ptag_31_8()) << 8,
            ),
            access: MttAccess {
                read: layout.rd_en(),
                write: layout.wr_en(),
            },
        })
    }

    #[inline]
    fn encode(&self) -> MttLayout {
        // The invariant keeps the address clear of the access bits.
        MttLayout::from_bits(U64::new(self.addr.get() | self.access.bits()))
    }
}

/// Layout of a KLM (`struct mlx5_klm`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct KlmLayout {
    /// Bytes that the entry covers.
    pub bcount: U32,
    /// Key that translates further.
    pub key: U32,
    /// Where the entry starts in that key's space.
    pub va: U64,
}

/// Translation of a stretch of any length by another MKey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Klm {
    /// Bytes that the entry covers.
    pub bcount: u32,
    /// Key that translates further.
    pub key: Mkey,
    /// Where the entry starts in that key's space.
    pub va: Iova,
}

impl Wire for Klm {
    type Layout = KlmLayout;

    /// Every layout is accepted.
    fn decode(layout: &KlmLayout) -> Result<Self, Error> {
        Ok(Self {
            bcount: layout.bcount.get(),
            key: Mkey::new(layout.key.get()),
            va: Iova::new(layout.va.get()),
        })
    }

    fn encode(&self) -> KlmLayout {
        KlmLayout {
            bcount: U32::new(self.bcount),
            key: U32::new(self.key.get()),
            va: U64::new(self.va.get()),
        }
    }
}

/// Layout of a KSM (`struct mlx5_ksm`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct KsmLayout {
    /// Reserved.
    pub reserved: [u8; 4],
    /// Key that translates further.
    pub key: U32,
    /// Where the entry starts in that key's space.
    pub va: U64,
}

/// Translation of one page of an MKey by another MKey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ksm {
    /// Key that translates further.
    pub key: Mkey,
    /// Where the entry starts in that key's space.
    pub va: Iova,
}

impl Wire for Ksm {
    type Layout = KsmLayout;

    /// Every layout is accepted.
    fn decode(layout: &KsmLayout) -> Result<Self, Error> {
        Ok(Self {
            key: Mkey::new(layout.key.get()),
            va: Iova::new(layout.va.get()),
        })
    }

    fn encode(&self) -> KsmLayout {
        KsmLayout {
            key: U32::new(self.key.get()),
            va: U64::new(self.va.get()),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of the head of a strided block (`struct mlx5_stride_block_ctrl_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StrideBlockLayout {
    /// Bytes of one repetition.
    pub bcount_per_cycle: U32,
    /// [`StrideBlock::OP`], where a KLM has its key.
    pub op: U32,
    /// Repetitions.
    pub repeat_count: U32,
    /// Reserved.
    pub rsvd: [u8; 2],
    /// Entries that follow.
    pub num_entries: U16,
}

/// Head of a strided block: takes the place of a KLM and says how often the entries behind it are
/// gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StrideBlock {
    /// Bytes of one repetition: the sum of what its entries take.
    pub bcount_per_cycle: u32,
    /// Repetitions.
    pub repeat_count: u32,
    /// [`Stride`]s that follow.
    pub num_entries: u16,
}

impl StrideBlock {
    /// What tells it from a KLM: no such key is ever handed out.
    pub const OP: u32 = 0x400;

    /// Bytes that the block covers.
    pub fn bytes(&self) -> u64 {
        u64::from(self.bcount_per_cycle) * u64::from(self.repeat_count)
    }
}

impl Wire for StrideBlock {
    type Layout = StrideBlockLayout;

    /// # Errors
    ///
    /// [`Error::StrideBlock`]: it is a KLM.
    fn decode(layout: &StrideBlockLayout) -> Result<Self, Error> {
        match layout.op.get() {
            Self::OP => Ok(Self {
                bcount_per_cycle: layout.bcount_per_cycle.get(),
                repeat_count: layout.repeat_count.get(),
                num_entries: layout.num_entries.get(),
            }),
            other => Err(Error::StrideBlock(other)),
        }
    }

    fn encode(&self) -> StrideBlockLayout {
        StrideBlockLayout {
            bcount_per_cycle: U32::new(self.bcount_per_cycle),
            op: U32::new(Self::OP),
            repeat_count: U32::new(self.repeat_count),
            num_entries: U16::new(self.num_entries),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of an entry of a strided block (`struct mlx5_stride_block_entry`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StrideLayout {
    /// Bytes from where one repetition starts to where the next does.
    pub stride: U16,
    /// Bytes of each repetition.
    pub bcount: U16,
    /// Key that translates further.
    pub key: U32,
    /// Where the first repetition starts in that key's space.
    pub va: U64,
}

/// Entry of a strided block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Stride {
    /// Bytes from where one repetition starts to where the next does.
    pub stride: u16,
    /// Bytes of each repetition.
    pub bcount: u16,
    /// Key that translates further.
    pub key: Mkey,
    /// Where the first repetition starts in that key's space.
    pub va: Iova,
}

impl Wire for Stride {
    type Layout = StrideLayout;

    /// Every layout is accepted.
    fn decode(layout: &StrideLayout) -> Result<Self, Error> {
        Ok(Self {
            stride: layout.stride.get(),
            bcount: layout.bcount.get(),
            key: Mkey::new(layout.key.get()),
            va: Iova::new(layout.va.get()),
        })
    }

    fn encode(&self) -> StrideLayout {
        StrideLayout {
            stride: U16::new(self.stride),
            bcount: U16::new(self.bcount),
            key: U32::new(self.key.get()),
            va: U64::new(self.va.get()),
        }
    }
}
