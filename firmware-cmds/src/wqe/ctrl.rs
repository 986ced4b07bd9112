// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Control segment: the head of every send WQE.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::{bounded, Mkey, Qpn};
use crate::wire::{Error, Wire};

/// Word 0: operation.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct OpmodIdxOpcode {
    /// Modifier of the opcode.
    pub opmod: u8,
    /// Index of the WQE in units of basic blocks.
    pub wqe_index: u16,
    /// Opcode.
    #[bits(8)]
    pub opcode: WqeOpcode,
}

/// Word 1: queue and length.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct QpnDs {
    /// The queue pair.
    #[bits(24)]
    pub qpn: Qpn,
    #[bits(2)]
    __: u8,
    /// Length of the WQE in DS.
    #[bits(6)]
    pub ds: Ds,
}

/// Byte 11: fence, completion, solicited event.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct FmCeSe {
    /// Fence mode.
    #[bits(3)]
    pub fm: FenceMode,
    __: bool,
    /// Completion mode.
    #[bits(2)]
    pub ce: CompletionMode,
    /// Ask for a solicited event at the peer.
    pub se: bool,
    __: bool,
}

/// Layout of the control segment (`struct mlx5_wqe_ctrl_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CtrlSegLayout {
    /// Operation.
    pub opmod_idx_opcode: OpmodIdxOpcode,
    /// Queue and length.
    pub qpn_ds: QpnDs,
    /// Checksum, where enabled.
    pub signature: u8,
    /// Reserved.
    pub rsvd: [u8; 2],
    /// Fence, completion, solicited event.
    pub fm_ce_se: FmCeSe,
    /// Depends on the opcode: immediate data, key to invalidate, key that a UMR changes.
    pub imm: U32,
}

/// What a send WQE does (kernel: `MLX5_OPCODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WqeOpcode(pub u8);

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        impl WqeOpcode {
            $($(#[$meta])* pub const $name: Self = Self($value);)*

            /// Every opcode that this crate knows, with the name of its constant.
            pub const NAMES: &'static [(Self, &'static str)] = &[
                $((Self::$name, stringify!($name)),)*
            ];
        }
    };
}

opcodes! {
    /// Nothing.
    NOP = 0x00,
    /// SEND that invalidates a key of the peer.
    SEND_INVAL = 0x01,
    /// RDMA WRITE.
    RDMA_WRITE = 0x08,
    /// RDMA WRITE with immediate data.
    RDMA_WRITE_IMM = 0x09,
    /// SEND.
    SEND = 0x0a,
    /// SEND with immediate data.
    SEND_IMM = 0x0b,
    /// RDMA READ.
    RDMA_READ = 0x10,
    /// Atomic compare and swap.
    ATOMIC_CS = 0x11,
    /// Atomic fetch and add.
    ATOMIC_FA = 0x12,
    /// Change an MKey.
    UMR = 0x25,
}

impl WqeOpcode {
    /// For `bitfield`.
    const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// For `bitfield`.
    const fn into_bits(self) -> u8 {
        self.0
    }
}

bounded! {
    /// Length of a WQE in units of 16 bytes ([`DS_LEN`](super::DS_LEN)).
    Ds(u8), 6 bits of a word
}

impl Ds {
    /// The length in bytes.
    pub fn bytes(self) -> usize {
        usize::from(self.get()) * super::DS_LEN
    }
}

bounded! {
    /// What a WQE waits for before it starts (kernel: `MLX5_FENCE_MODE_*`).
    FenceMode(u8), 3 bits of a word
}

impl FenceMode {
    /// Nothing.
    pub const NONE: Self = Self::truncate(0);
    /// Local invalidations and memory registrations before it.
    pub const INITIATOR_SMALL: Self = Self::truncate(1);
    /// RDMA READs and atomics before it.
    pub const FENCE: Self = Self::truncate(2);
    /// Everything before it.
    pub const STRONG_ORDERING: Self = Self::truncate(3);
    /// What `INITIATOR_SMALL` and `FENCE` wait for.
    pub const SMALL_AND_FENCE: Self = Self::truncate(4);
}

/// When a WQE is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum CompletionMode {
    /// Only if it fails.
    #[default]
    OnError,
    /// Only if it is the first of its queue to fail.
    OnFirstError,
    /// Always (kernel: `MLX5_WQE_CTRL_CQ_UPDATE`).
    Always,
    /// Always, with an event (kernel: `MLX5_WQE_CTRL_CQ_UPDATE_AND_EQE`).
    AlwaysAndEvent,
}

impl CompletionMode {
    /// The mode's number.
    pub const fn get(self) -> u8 {
        match self {
            Self::OnError => 0,
            Self::OnFirstError => 1,
            Self::Always => 2,
            Self::AlwaysAndEvent => 3,
        }
    }

    const fn into_bits(self) -> u8 {
        self.get()
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::OnError,
            1 => Self::OnFirstError,
            2 => Self::Always,
            _ => Self::AlwaysAndEvent,
        }
    }
}

/// Control segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CtrlSeg {
    /// Modifier of the opcode.
    pub opmod: u8,
    /// Index of the WQE in units of basic blocks, counted without end, modulo 2^16.
    pub wqe_index: u16,
    /// What to do.
    pub opcode: WqeOpcode,
    /// The queue pair.
    pub qpn: Qpn,
    /// Length of the WQE.
    pub ds: Ds,
    /// Checksum, where enabled.
    pub signature: u8,
    /// What to wait for.
    pub fence: FenceMode,
    /// When to report it.
    pub completion: CompletionMode,
    /// Ask for a solicited event at the peer.
    pub solicited: bool,
    /// Depends on the opcode: immediate data, key to invalidate, key that a UMR changes.
    pub imm: u32,
}

impl CtrlSeg {
    /// The key that a UMR WQE changes, or a SEND invalidates at the peer.
    pub const fn mkey(&self) -> Mkey {
        Mkey::new(self.imm)
    }
}

impl Wire for CtrlSeg {
    type Layout = CtrlSegLayout;

    /// Every layout is accepted: the opcode may be any, the length 0.
    fn decode(layout: &CtrlSegLayout) -> Result<Self, Error> {
        Ok(Self {
            opmod: layout.opmod_idx_opcode.opmod(),
            wqe_index: layout.opmod_idx_opcode.wqe_index(),
            opcode: layout.opmod_idx_opcode.opcode(),
            qpn: layout.qpn_ds.qpn(),
            ds: layout.qpn_ds.ds(),
            signature: layout.signature,
            fence: layout.fm_ce_se.fm(),
            completion: layout.fm_ce_se.ce(),
            solicited: layout.fm_ce_se.se(),
            imm: layout.imm.get(),
        })
    }

    fn encode(&self) -> CtrlSegLayout {
        CtrlSegLayout {
            opmod_idx_opcode: OpmodIdxOpcode::new()
                .with_opmod(self.opmod)
                .with_wqe_index(self.wqe_index)
                .with_opcode(self.opcode),
            qpn_ds: QpnDs::new().with_qpn(self.qpn).with_ds(self.ds),
            signature: self.signature,
            fm_ce_se: FmCeSe::new()
                .with_fm(self.fence)
                .with_ce(self.completion)
                .with_se(self.solicited),
            imm: U32::new(self.imm),
            ..FromZeros::new_zeroed()
        }
    }
}
