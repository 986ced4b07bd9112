// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Segments that say where a send WQE goes: XRC, address vector, remote address, atomic.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::{bounded, Iova, Mkey, Qpn, Srqn};
use crate::wire::{Error, Wire};

/// Word 0 of the XRC segment.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct XrcSrqnWord {
    __: u8,
    /// The peer's shared receive queue.
    #[bits(24)]
    pub xrc_srqn: Srqn,
}

/// Layout of the XRC segment (`struct mlx5_wqe_xrc_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XrcSegLayout {
    /// The peer's shared receive queue.
    pub xrc_srqn: XrcSrqnWord,
    /// Reserved.
    pub rsvd: [u8; 12],
}

/// XRC segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct XrcSeg {
    /// The peer's shared receive queue.
    pub srqn: Srqn,
}

impl Wire for XrcSeg {
    type Layout = XrcSegLayout;

    /// Every layout is accepted.
    fn decode(layout: &XrcSegLayout) -> Result<Self, Error> {
        Ok(Self {
            srqn: layout.xrc_srqn.xrc_srqn(),
        })
    }

    fn encode(&self) -> XrcSegLayout {
        XrcSegLayout {
            xrc_srqn: XrcSrqnWord::new().with_xrc_srqn(self.srqn),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Word 2 of an address vector.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct DqpDct {
    /// The address vector is the long one (kernel: `MLX5_EXTENDED_UD_AV`).
    pub extended: bool,
    #[bits(7)]
    __: u8,
    /// The peer's queue pair or DCT.
    #[bits(24)]
    pub dqp_dct: Qpn,
}

/// Byte 12 of an address vector.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct StatRateSl {
    /// Static rate.
    #[bits(4)]
    pub stat_rate: StatRate,
    /// Service level.
    #[bits(4)]
    pub sl: ServiceLevel,
}

/// Layout of the short address vector (`struct mlx5_base_av`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BaseAvLayout {
    /// Queue key in bits 63:32, or DC access key.
    pub key: U64,
    /// The peer's queue, and which address vector this is.
    pub dqp_dct: DqpDct,
    /// Static rate and service level.
    pub stat_rate_sl: StatRateSl,
    /// Force-loopback bit and path bits of the source LID.
    pub fl_mlid: u8,
    /// The peer's LID, or the UDP source port.
    pub rlid: U16,
}

bounded! {
    /// Static rate: how fast packets leave at the most, 0 for as fast as the port.
    StatRate(u8), 4 bits of a word
}

bounded! {
    /// Service level.
    ServiceLevel(u8), 4 bits of a word
}

/// Short address vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseAv {
    /// Queue key in bits 63:32, or DC access key.
    pub key: u64,
    /// The long address vector follows in place of this one.
    pub extended: bool,
    /// The peer's queue pair or DCT.
    pub dqp_dct: Qpn,
    /// Static rate.
    pub stat_rate: StatRate,
    /// Service level.
    pub sl: ServiceLevel,
    /// Force-loopback bit and path bits of the source LID.
    pub fl_mlid: u8,
    /// The peer's LID, or the UDP source port.
    pub rlid: u16,
}

impl Wire for BaseAv {
    type Layout = BaseAvLayout;

    /// Every layout is accepted.
    fn decode(layout: &BaseAvLayout) -> Result<Self, Error> {
        Ok(Self {
            key: layout.key.get(),
            extended: layout.dqp_dct.extended(),
            dqp_dct: layout.dqp_dct.dqp_dct(),
            stat_rate: layout.stat_rate_sl.stat_rate(),
            sl: layout.stat_rate_sl.sl(),
            fl_mlid: layout.fl_mlid,
            rlid: layout.rlid.get(),
        })
    }

    fn encode(&self) -> BaseAvLayout {
        BaseAvLayout {
            key: U64::new(self.key),
            dqp_dct: DqpDct::new()
                .with_extended(self.extended)
                .with_dqp_dct(self.dqp_dct),
            stat_rate_sl: StatRateSl::new()
                .with_stat_rate(self.stat_rate)
                .with_sl(self.sl),
            fl_mlid: self.fl_mlid,
            rlid: U16::new(self.rlid),
        }
    }
}

/// Word 7 of the long address vector.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct GrhGidFl {
    __: bool,
    /// Packets carry a GRH.
    pub grh: bool,
    #[bits(2)]
    __: u8,
    /// Index of the source GID.
    pub sgid_index: u8,
    /// Flow label.
    #[bits(20)]
    pub flow_label: FlowLabel,
}

/// Layout of the long address vector (`struct mlx5_av`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AvLayout {
    /// What the short one has.
    pub base: BaseAvLayout,
    /// Reserved.
    pub reserved0: [u8; 4],
    /// The peer's MAC address.
    pub rmac: [u8; 6],
    /// Traffic class.
    pub tclass: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// GRH, source GID, flow label.
    pub grh_gid_fl: GrhGidFl,
    /// The peer's GID.
    pub rgid: [u8; 16],
}

bounded! {
    /// Flow label of a GRH.
    FlowLabel(u32), 20 bits of a word
}

/// Global routing header of an address vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grh {
    /// Packets carry a GRH.
    pub present: bool,
    /// Index of the source GID.
    pub sgid_index: u8,
    /// Flow label.
    pub flow_label: FlowLabel,
    /// Traffic class.
    pub tclass: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// The peer's GID.
    pub rgid: [u8; 16],
}

/// Long address vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Av {
    /// What the short one has.
    pub base: BaseAv,
    /// The peer's MAC address.
    pub rmac: [u8; 6],
    /// Global routing header.
    pub grh: Grh,
}

impl Wire for Av {
    type Layout = AvLayout;

    /// Every layout is accepted.
    fn decode(layout: &AvLayout) -> Result<Self, Error> {
        Ok(Self {
            base: BaseAv::decode(&layout.base)?,
            rmac: layout.rmac,
            grh: Grh {
                present: layout.grh_gid_fl.grh(),
                sgid_index: layout.grh_gid_fl.sgid_index(),
                flow_label: layout.grh_gid_fl.flow_label(),
                tclass: layout.tclass,
                hop_limit: layout.hop_limit,
                rgid: layout.rgid,
            },
        })
    }

    fn encode(&self) -> AvLayout {
        AvLayout {
            base: self.base.encode(),
            rmac: self.rmac,
            tclass: self.grh.tclass,
            hop_limit: self.grh.hop_limit,
            grh_gid_fl: GrhGidFl::new()
                .with_grh(self.grh.present)
                .with_sgid_index(self.grh.sgid_index)
                .with_flow_label(self.grh.flow_label),
            rgid: self.grh.rgid,
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of the remote-address segment (`struct mlx5_wqe_raddr_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RaddrSegLayout {
    /// The peer's address.
    pub raddr: U64,
    /// The peer's key.
    pub rkey: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}

/// Remote-address segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RaddrSeg {
    /// The peer's address.
    pub raddr: Iova,
    /// The peer's key.
    pub rkey: Mkey,
}

impl Wire for RaddrSeg {
    type Layout = RaddrSegLayout;

    /// Every layout is accepted.
    fn decode(layout: &RaddrSegLayout) -> Result<Self, Error> {
        Ok(Self {
            raddr: Iova::new(layout.raddr.get()),
            rkey: Mkey::new(layout.rkey.get()),
        })
    }

    fn encode(&self) -> RaddrSegLayout {
        RaddrSegLayout {
            raddr: U64::new(self.raddr.get()),
            rkey: U32::new(self.rkey.get()),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of the atomic segment (`struct mlx5_wqe_atomic_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AtomicSegLayout {
    /// Value to swap in or to add.
    pub swap_add: U64,
    /// Value to compare with.
    pub compare: U64,
}

/// Atomic segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AtomicSeg {
    /// Value to swap in or to add.
    pub swap_add: u64,
    /// Value to compare with.
    pub compare: u64,
}

impl Wire for AtomicSeg {
    type Layout = AtomicSegLayout;

    /// Every layout is accepted.
    fn decode(layout: &AtomicSegLayout) -> Result<Self, Error> {
        Ok(Self {
            swap_add: layout.swap_add.get(),
            compare: layout.compare.get(),
        })
    }

    fn encode(&self) -> AtomicSegLayout {
        AtomicSegLayout {
            swap_add: U64::new(self.swap_add),
            compare: U64::new(self.compare),
        }
    }
}
