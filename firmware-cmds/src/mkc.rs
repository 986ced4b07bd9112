// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MKC: what the device holds about an MKey. Also the MKey segment of a UMR WQE.
//!
//! Source: PRM "MKey Context"; kernel `mlx5_ifc_mkc_bits`, `struct mlx5_mkey_seg`.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::{bounded, Iova, MkeyVariant, Pdn, Qpn};
use crate::wire::{Error, Wire};

/// Word 0: state, access mode and access rights.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkcFlags {
    __: bool,
    /// The key is not valid at present.
    pub free: bool,
    __: bool,
    /// Bits 4:2 of the access mode.
    #[bits(3)]
    pub access_mode_4_2: u8,
    #[bits(7)]
    __: u8,
    /// Writes may pass other writes.
    pub relaxed_ordering_write: bool,
    __: bool,
    /// A small fence does for an RDMA READ response.
    pub small_fence_on_rdma_read_response: bool,
    /// A UMR WQE may change the key.
    pub umr_en: bool,
    /// Remote atomics are allowed.
    pub a: bool,
    /// Remote writes are allowed.
    pub rw: bool,
    /// Remote reads are allowed.
    pub rr: bool,
    /// Local writes are allowed.
    pub lw: bool,
    /// Local reads are allowed.
    pub lr: bool,
    /// Bits 1:0 of the access mode.
    #[bits(2)]
    pub access_mode_1_0: u8,
    #[bits(2)]
    __: u8,
    /// Address translation services to use.
    #[bits(2)]
    pub ma_translation_mode: MaTranslationMode,
    #[bits(4)]
    __: u8,
}

/// Word 1: who may use the key, and its variant.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkcQpn {
    /// The only queue pair that may use the key, or all ones.
    #[bits(24)]
    pub qpn: Qpn,
    /// The key's variant.
    #[bits(8)]
    pub mkey_7_0: MkeyVariant,
}

/// Word 3: flags and protection domain.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkcPd {
    /// The key spans the whole 64-bit address space; `len` does not count.
    pub length64: bool,
    /// The key has signature descriptors.
    pub bsf_en: bool,
    /// Synchronous UMR.
    pub sync_umr: bool,
    #[bits(2)]
    __: u8,
    /// Parity of the count of expected signature errors.
    pub expected_sigerr_count: bool,
    __: bool,
    /// A remote peer may invalidate the key.
    pub en_rinval: bool,
    /// Protection domain.
    #[bits(24)]
    pub pd: Pdn,
}

/// Word 14: page size.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkcPage {
    #[bits(25)]
    __: u32,
    /// Reads may pass writes.
    pub relaxed_ordering_read: bool,
    /// Base-2 logarithm of the bytes that a translation entry covers.
    #[bits(6)]
    pub log_page_size: LogPageSize,
}

/// Word 15: PCIe TLP processing hints.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkcTph {
    #[bits(5)]
    __: u8,
    /// Hints are sent.
    pub pcie_tph_en: bool,
    /// The hint.
    #[bits(2)]
    pub pcie_tph_ph: TphHint,
    /// Index of the steering tag.
    pub pcie_tph_steering_tag_index: u8,
    __: u16,
}

/// Layout of an MKC (`mkc`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MkcLayout {
    /// State, access mode and access rights.
    pub flags: MkcFlags,
    /// Who may use the key, and its variant.
    pub qpn_mkey: MkcQpn,
    /// Reserved.
    pub reserved_at_40: [u8; 4],
    /// Flags and protection domain.
    pub flags_pd: MkcPd,
    /// First address of the key's space.
    pub start_addr: U64,
    /// Length of the key's space in bytes.
    pub len: U64,
    /// Size of the signature descriptors in octowords.
    pub bsf_octword_size: U32,
    /// Reserved.
    pub reserved_at_120: [u8; 12],
    /// The function into whose memory the key crosses over.
    pub crossing_target_vhca_id: U16,
    /// Reserved.
    pub reserved_at_190: [u8; 2],
    /// Room for translation entries, in octowords.
    pub translations_octword_size: U32,
    /// Page size.
    pub page: MkcPage,
    /// TLP processing hints.
    pub tph: MkcTph,
}

/// How an MKey translates addresses (kernel: `MLX5_MKC_ACCESS_MODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum AccessMode {
    /// Not at all: addresses are bus addresses.
    #[default]
    Pa = 0,
    /// By MTTs.
    Mtt = 1,
    /// By KLMs.
    Klms = 2,
    /// By KSMs.
    Ksm = 3,
    /// Memory on the device that software manages.
    SwIcm = 4,
    /// Memory on the device.
    Memic = 5,
    /// By another function's key.
    Crossing = 6,
}

impl AccessMode {
    /// The mode's number.
    pub const fn get(self) -> u8 {
        // CAST: reads the discriminant of a `repr(u8)` enum.
        self as u8
    }
}

impl TryFrom<u8> for AccessMode {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::AccessMode`].
    fn try_from(mode: u8) -> Result<Self, Error> {
        match mode {
            0 => Ok(Self::Pa),
            1 => Ok(Self::Mtt),
            2 => Ok(Self::Klms),
            3 => Ok(Self::Ksm),
            4 => Ok(Self::SwIcm),
            5 => Ok(Self::Memic),
            6 => Ok(Self::Crossing),
            _ => Err(Error::AccessMode(mode)),
        }
    }
}

/// What an MKey allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Access {
    /// Remote atomics.
    pub atomic: bool,
    /// Remote writes.
    pub remote_write: bool,
    /// Remote reads.
    pub remote_read: bool,
    /// Local writes.
    pub local_write: bool,
    /// Local reads.
    pub local_read: bool,
}

bounded! {
    /// Base-2 logarithm of the bytes that a translation entry covers.
    LogPageSize(u8), 6 bits of a word
}

impl LogPageSize {
    /// 4 KiB, the adapter's smallest.
    pub const ADAPTER_PAGE: Self = Self::truncate(12);

    /// The bytes that a translation entry covers: a power of two, at most 2^63.
    pub const fn bytes(self) -> u64 {
        1 << self.get()
    }
}

bounded! {
    /// Address translation services to use.
    MaTranslationMode(u8), 2 bits of a word
}

bounded! {
    /// A TLP processing hint.
    TphHint(u8), 2 bits of a word
}

/// PCIe TLP processing hints of an MKey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tph {
    /// Hints are sent.
    pub enabled: bool,
    /// The hint.
    pub hint: TphHint,
    /// Index of the steering tag.
    pub steering_tag_index: u8,
}

/// Context of an MKey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mkc {
    /// The key is not valid at present.
    pub free: bool,
    /// How addresses are translated.
    pub access_mode: AccessMode,
    /// Writes may pass other writes.
    pub relaxed_ordering_write: bool,
    /// Reads may pass writes.
    pub relaxed_ordering_read: bool,
    /// A small fence does for an RDMA READ response.
    pub small_fence_on_rdma_read_response: bool,
    /// A UMR WQE may change the key.
    pub umr_en: bool,
    /// What accesses are allowed.
    pub access: Access,
    /// Address translation services to use.
    pub ma_translation_mode: MaTranslationMode,
    /// The only queue pair that may use the key, or [`Qpn::ANY`].
    pub qpn: Qpn,
    /// The key's variant.
    pub variant: MkeyVariant,
    /// The key spans the whole 64-bit address space; `len` does not count.
    pub length64: bool,
    /// The key has signature descriptors.
    pub bsf_en: bool,
    /// Synchronous UMR.
    pub sync_umr: bool,
    /// Parity of the count of expected signature errors.
    pub expected_sigerr_count: bool,
    /// A remote peer may invalidate the key.
    pub en_rinval: bool,
    /// Protection domain.
    pub pd: Pdn,
    /// First address of the key's space.
    pub start_addr: Iova,
    /// Length of the key's space in bytes.
    pub len: u64,
    /// Size of the signature descriptors in octowords.
    pub bsf_octword_size: u32,
    /// The function into whose memory the key crosses over.
    pub crossing_target_vhca_id: u16,
    /// Room for translation entries, in octowords.
    pub translations_octword_size: u32,
    /// Base-2 logarithm of the bytes that a translation entry covers.
    pub log_page_size: LogPageSize,
    /// TLP processing hints.
    pub tph: Tph,
}

impl Wire for Mkc {
    type Layout = MkcLayout;

    /// # Errors
    ///
    /// [`Error::AccessMode`].
    fn decode(layout: &MkcLayout) -> Result<Self, Error> {
        let flags = layout.flags;
        Ok(Self {
            free: flags.free(),
            access_mode: AccessMode::try_from(
                flags.access_mode_4_2() << 2 | flags.access_mode_1_0(),
            )?,
            relaxed_ordering_write: flags.relaxed_ordering_write(),
            relaxed_ordering_read: layout.page.relaxed_ordering_read(),
            small_fence_on_rdma_read_response: flags.small_fence_on_rdma_read_response(),
            umr_en: flags.umr_en(),
            access: Access {
                atomic: flags.a(),
                remote_write: flags.rw(),
                remote_read: flags.rr(),
                local_write: flags.lw(),
                local_read: flags.lr(),
            },
            ma_translation_mode: flags.ma_translation_mode(),
            qpn: layout.qpn_mkey.qpn(),
            variant: layout.qpn_mkey.mkey_7_0(),
            length64: layout.flags_pd.length64(),
            bsf_en: layout.flags_pd.bsf_en(),
            sync_umr: layout.flags_pd.sync_umr(),
            expected_sigerr_count: layout.flags_pd.expected_sigerr_count(),
            en_rinval: layout.flags_pd.en_rinval(),
            pd: layout.flags_pd.pd(),
            start_addr: Iova::new(layout.start_addr.get()),
            len: layout.len.get(),
            bsf_octword_size: layout.bsf_octword_size.get(),
            crossing_target_vhca_id: layout.crossing_target_vhca_id.get(),
            translations_octword_size: layout.translations_octword_size.get(),
            log_page_size: layout.page.log_page_size(),
            tph: Tph {
                enabled: layout.tph.pcie_tph_en(),
                hint: layout.tph.pcie_tph_ph(),
                steering_tag_index: layout.tph.pcie_tph_steering_tag_index(),
            },
        })
    }

    fn encode(&self) -> MkcLayout {
        let mode = self.access_mode.get();
        MkcLayout {
            flags: MkcFlags::new()
                .with_free(self.free)
                .with_access_mode_4_2(mode >> 2)
                .with_relaxed_ordering_write(self.relaxed_ordering_write)
                .with_small_fence_on_rdma_read_response(self.small_fence_on_rdma_read_response)
                .with_umr_en(self.umr_en)
                .with_a(self.access.atomic)
                .with_rw(self.access.remote_write)
                .with_rr(self.access.remote_read)
                .with_lw(self.access.local_write)
                .with_lr(self.access.local_read)
                .with_access_mode_1_0(mode & 3)
                .with_ma_translation_mode(self.ma_translation_mode),
            qpn_mkey: MkcQpn::new().with_qpn(self.qpn).with_mkey_7_0(self.variant),
            flags_pd: MkcPd::new()
                .with_length64(self.length64)
                .with_bsf_en(self.bsf_en)
                .with_sync_umr(self.sync_umr)
                .with_expected_sigerr_count(self.expected_sigerr_count)
                .with_en_rinval(self.en_rinval)
                .with_pd(self.pd),
            start_addr: U64::new(self.start_addr.get()),
            len: U64::new(self.len),
            bsf_octword_size: U32::new(self.bsf_octword_size),
            crossing_target_vhca_id: U16::new(self.crossing_target_vhca_id),
            translations_octword_size: U32::new(self.translations_octword_size),
            page: MkcPage::new()
                .with_relaxed_ordering_read(self.relaxed_ordering_read)
                .with_log_page_size(self.log_page_size),
            tph: MkcTph::new()
                .with_pcie_tph_en(self.tph.enabled)
                .with_pcie_tph_ph(self.tph.hint)
                .with_pcie_tph_steering_tag_index(self.tph.steering_tag_index),
            ..FromZeros::new_zeroed()
        }
    }
}
