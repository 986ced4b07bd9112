// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! UMR WQEs: what changes an MKey and its translation list.
//!
//! Source: PRM "UMR WQE"; kernel `struct mlx5_wqe_umr_ctrl_seg`, `MLX5_UMR_*`,
//! `MLX5_MKEY_MASK_*`, `umr.c`, `umr.h:struct mlx5r_umr_wqe`.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::bounded;
use crate::mkc::Mkc;
use crate::wire::{Error, Wire};
use crate::wqe::{CtrlSeg, DataSeg, SendWqe, WqeOpcode};

/// Unit in which a translation list is measured, in bytes.
pub const OCTOWORD: usize = 16;

/// Offset and length of a translation update must be multiples of this many bytes
/// (kernel: `MLX5_UMR_FLEX_ALIGNMENT`).
pub const UMR_ALIGN: usize = 64;

/// Flags of the UMR control segment, in the order of the kernel's `MLX5_UMR_*`.
#[bitfield(u8, order = Lsb)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct UmrFlags {
    #[bits(3)]
    __: u8,
    /// Fail if the key belongs to another queue pair (rdma-core only).
    pub check_qpn: bool,
    /// The update starts at an offset in the translation list.
    pub translation_offset_en: bool,
    /// Fail if the key is not free.
    pub check_not_free: bool,
    /// Fail if the key is free.
    pub check_free: bool,
    /// The translation list, if any, is in the WQE.
    pub inline: bool,
}

/// Which fields of the MKey a UMR changes, in the order of the kernel's `MLX5_MKEY_MASK_*`.
#[bitfield(u64, order = Lsb, repr = U64, from = U64::new, into = U64::get)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkeyMask {
    /// `len` and `length64`.
    pub len: bool,
    /// Bits 4:0 of `log_page_size`.
    pub page_size: bool,
    #[bits(4)]
    __: u8,
    /// `start_addr`.
    pub start_addr: bool,
    /// `pd`.
    pub pd: bool,
    /// `en_rinval`.
    pub en_rinval: bool,
    /// Signature error reporting.
    pub en_sigerr: bool,
    #[bits(2)]
    __: u8,
    /// `bsf_en`.
    pub bsf_en: bool,
    /// `mkey_7_0`.
    pub key: bool,
    /// `qpn`.
    pub qpn: bool,
    #[bits(2)]
    __: u8,
    /// `lr`.
    pub lr: bool,
    /// `lw`.
    pub lw: bool,
    /// `rr`.
    pub rr: bool,
    /// `rw`.
    pub rw: bool,
    /// `a`.
    pub a: bool,
    __: bool,
    /// `small_fence_on_rdma_read_response`.
    pub small_fence: bool,
    __: bool,
    /// `relaxed_ordering_write`.
    pub relaxed_ordering_write: bool,
    #[bits(3)]
    __: u8,
    /// `free`.
    pub free: bool,
    #[bits(12)]
    __: u16,
    /// Bit 5 of `log_page_size`.
    pub page_size_5: bool,
    #[bits(4)]
    __: u8,
    /// `relaxed_ordering_read`.
    pub relaxed_ordering_read: bool,
    __: u16,
}

impl MkeyMask {
    /// Every bit that has a meaning here.
    pub const KNOWN: u64 = Self::new()
        .with_len(true)
        .with_page_size(true)
        .with_start_addr(true)
        .with_pd(true)
        .with_en_rinval(true)
        .with_en_sigerr(true)
        .with_bsf_en(true)
        .with_key(true)
        .with_qpn(true)
        .with_lr(true)
        .with_lw(true)
        .with_rr(true)
        .with_rw(true)
        .with_a(true)
        .with_small_fence(true)
        .with_relaxed_ordering_write(true)
        .with_free(true)
        .with_page_size_5(true)
        .with_relaxed_ordering_read(true)
        .get();

    /// The mask as a number.
    pub const fn get(self) -> u64 {
        self.into_bits().get()
    }

    /// Bits set that have no meaning here.
    pub const fn unknown(self) -> u64 {
        self.get() & !Self::KNOWN
    }

    /// Whether nothing of the MKey changes.
    pub const fn is_empty(self) -> bool {
        self.get() == 0
    }
}

/// Layout of the UMR control segment (`struct mlx5_wqe_umr_ctrl_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UmrCtrlSegLayout {
    /// Flags.
    pub flags: UmrFlags,
    /// Reserved.
    pub rsvd0: [u8; 3],
    /// Length of the update in octowords.
    pub xlt_octowords: U16,
    /// Bits 15:0 of the update's offset in octowords; without `translation_offset_en` the length
    /// of the signature descriptors in octowords (`bsf_octowords`).
    pub xlt_offset: U16,
    /// Which fields of the MKey change.
    pub mkey_mask: MkeyMask,
    /// Bits 47:16 of the update's offset in octowords.
    pub xlt_offset_47_16: U32,
    /// Reserved.
    pub rsvd1: [u8; 28],
}

bounded! {
    /// Offset in a translation list, in octowords.
    XltOffset(u64), 48 bits
}

impl XltOffset {
    /// The offset in bytes, at most 2^52.
    pub const fn bytes(self) -> u64 {
        self.get() << 4
    }
}

/// UMR control segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct UmrCtrlSeg {
    /// Flags.
    pub flags: UmrFlags,
    /// Length of the update in octowords.
    pub xlt_octowords: u16,
    /// Offset of the update; see [`UmrCtrlSeg::xlt_offset`].
    pub offset: XltOffset,
    /// Which fields of the MKey change.
    pub mkey_mask: MkeyMask,
}

impl UmrCtrlSeg {
    /// Where in the translation list the update starts: at 0 unless the flags say otherwise.
    pub const fn xlt_offset(&self) -> XltOffset {
        if self.flags.translation_offset_en() {
            self.offset
        } else {
            XltOffset::truncate(0)
        }
    }

    /// Length of the update in bytes, at most 1 MiB less one octoword.
    pub fn xlt_bytes(&self) -> usize {
        usize::from(self.xlt_octowords) * OCTOWORD
    }
}

impl Wire for UmrCtrlSeg {
    type Layout = UmrCtrlSegLayout;

    /// Every layout is accepted.
    fn decode(layout: &UmrCtrlSegLayout) -> Result<Self, Error> {
        Ok(Self {
            flags: layout.flags,
            xlt_octowords: layout.xlt_octowords.get(),
            // Cannot lose bits: 32 and 16 make 48.
            offset: XltOffset::truncate(
                u64::from(layout.xlt_offset_47_16.get()) << 16 | u64::from(layout.xlt_offset.get()),
            ),
            mkey_mask: layout.mkey_mask,
        })
    }

    fn encode(&self) -> UmrCtrlSegLayout {
        let [_, _, high @ .., a, b] = self.offset.get().to_be_bytes();
        UmrCtrlSegLayout {
            flags: self.flags,
            xlt_octowords: U16::new(self.xlt_octowords),
            xlt_offset: U16::new(u16::from_be_bytes([a, b])),
            mkey_mask: self.mkey_mask,
            xlt_offset_47_16: U32::new(u32::from_be_bytes(high)),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Where a UMR WQE has its translation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UmrXlt<'a> {
    /// It has none.
    None,
    /// In memory.
    Data(DataSeg),
    /// In the WQE. The length is [`UmrCtrlSeg::xlt_bytes`].
    Inline(&'a [u8]),
}

/// A UMR WQE, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UmrWqe<'a> {
    /// Control segment; [`CtrlSeg::mkey`] is the key to change.
    pub ctrl: CtrlSeg,
    /// UMR control segment.
    pub umr: UmrCtrlSeg,
    /// New values; those count that [`UmrCtrlSeg::mkey_mask`] names.
    pub mkc: Mkc,
    /// Translation list.
    pub xlt: UmrXlt<'a>,
}

impl<'a> UmrWqe<'a> {
    /// Reads the rest of a send WQE with the opcode [`WqeOpcode::UMR`].
    ///
    /// # Errors
    ///
    /// - [`Error::WqeOpcode`]: another opcode.
    /// - [`Error::Truncated`]: the WQE is shorter than its segments, or than its inline list.
    /// - [`Error::AccessMode`]: of the MKey segment.
    /// - [`Error::Inline`]: an inline segment where the flags promise a pointer.
    pub fn parse(wqe: &SendWqe<'a>) -> Result<Self, Error> {
        if wqe.ctrl.opcode != WqeOpcode::UMR {
            return Err(Error::WqeOpcode(wqe.ctrl.opcode.0));
        }
        let (umr, rest) = UmrCtrlSeg::parse_prefix(wqe.rest)?;
        let (mkc, rest) = Mkc::parse_prefix(rest)?;
        let xlt = if umr.flags.inline() {
            match umr.xlt_bytes() {
                0 => UmrXlt::None,
                needed => UmrXlt::Inline(rest.get(..needed).ok_or(Error::Truncated {
                    needed,
                    available: rest.len(),
                })?),
            }
        } else if rest.is_empty() {
            UmrXlt::None
        } else {
            UmrXlt::Data(DataSeg::parse(rest)?)
        };
        Ok(Self {
            ctrl: wqe.ctrl,
            umr,
            mkc,
            xlt,
        })
    }
}
