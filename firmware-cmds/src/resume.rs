// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! PAGE_FAULT_RESUME: lets a stalled access go on, or fail.
//!
//! The command does not say in which scheme it is to be read; both sides know it from the device's
//! capabilities.
//!
//! Source: PRM "PAGE_FAULT_RESUME"; kernel `mlx5_ifc_page_fault_resume_{in,out}_bits`,
//! `mlx5_ifc_{trans,mem}_page_fault_info_bits`, `odp.c:mlx5_ib_page_fault_resume`.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::U32;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cmd::{InHeader, InHeaderLayout, Opcode};
use crate::handle::{MemoryToken, TransportToken, WqNumber};
use crate::page_fault::FaultType;
use crate::wire::{read, Error, Wire};

/// How a device reports page faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// By work queue.
    Transport,
    /// By MKey and address.
    Memory,
}

/// What identifies a stalled access to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultToken {
    /// Transport scheme.
    Transport {
        /// Type of the fault, as reported.
        fault_type: FaultType,
        /// The stalled work queue; for a remote access the token.
        wq_number: WqNumber,
        /// The token.
        token: TransportToken,
    },
    /// Memory scheme.
    Memory(MemoryToken),
}

impl FaultToken {
    /// The token as a number, of 24 or 48 bits.
    pub fn get(self) -> u64 {
        match self {
            Self::Transport { token, .. } => u64::from(token.get()),
            Self::Memory(token) => token.get(),
        }
    }
}

/// Word 0 of the transport scheme's information.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct TransFaultWord {
    /// The access fails.
    pub error: bool,
    #[bits(4)]
    __: u8,
    /// Type of the fault.
    #[bits(3)]
    pub page_fault_type: FaultType,
    /// The stalled work queue.
    #[bits(24)]
    pub wq_number: WqNumber,
}

/// Word 1 of the transport scheme's information.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct TransTokenWord {
    __: u8,
    /// The token.
    #[bits(24)]
    pub fault_token: TransportToken,
}

/// Layout of PAGE_FAULT_RESUME's input in the transport scheme (`page_fault_resume_in` with
/// `trans_page_fault_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransResumeInLayout {
    /// Opcode, uid, modifier.
    pub header: InHeaderLayout,
    /// Outcome, type and work queue.
    pub fault: TransFaultWord,
    /// Token.
    pub token: TransTokenWord,
}

/// Word 0 of the memory scheme's information.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MemFaultWord {
    /// The access fails.
    pub error: bool,
    #[bits(15)]
    __: u16,
    /// Bits 47:32 of the token.
    pub fault_token_47_32: u16,
}

/// Layout of PAGE_FAULT_RESUME's input in the memory scheme (`page_fault_resume_in` with
/// `mem_page_fault_info`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemResumeInLayout {
    /// Opcode, uid, modifier.
    pub header: InHeaderLayout,
    /// Outcome and bits 47:32 of the token.
    pub fault: MemFaultWord,
    /// Bits 31:0 of the token.
    pub fault_token_31_0: U32,
}

/// Input of PAGE_FAULT_RESUME. Its output is an [`EmptyOut`](crate::cmd::EmptyOut).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageFaultResume {
    /// Which access.
    pub fault: FaultToken,
    /// It fails; else it is tried again.
    pub error: bool,
}

impl PageFaultResume {
    /// Length in bytes, in both schemes.
    pub const LEN: usize = size_of::<TransResumeInLayout>();

    /// Reads the command as a device of `scheme` does.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`], [`Error::Opcode`], [`Error::OpMod`].
    pub fn parse(bytes: &[u8], scheme: Scheme) -> Result<Self, Error> {
        match scheme {
            Scheme::Transport => {
                let (layout, _) = read::<TransResumeInLayout>(bytes)?;
                InHeader::decode(&layout.header)?.check(Opcode::PageFaultResume)?;
                Ok(Self {
                    fault: FaultToken::Transport {
                        fault_type: layout.fault.page_fault_type(),
                        wq_number: layout.fault.wq_number(),
                        token: layout.token.fault_token(),
                    },
                    error: layout.fault.error(),
                })
            }
            Scheme::Memory => {
                let (layout, _) = read::<MemResumeInLayout>(bytes)?;
                InHeader::decode(&layout.header)?.check(Opcode::PageFaultResume)?;
                Ok(Self {
                    fault: FaultToken::Memory(join_token(
                        layout.fault.fault_token_47_32(),
                        layout.fault_token_31_0.get(),
                    )),
                    error: layout.fault.error(),
                })
            }
        }
    }

    /// The command's bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let header = InHeader::new(Opcode::PageFaultResume, 0).encode();
        match self.fault {
            FaultToken::Transport {
                fault_type,
                wq_number,
                token,
            } => zerocopy::transmute!(TransResumeInLayout {
                header,
                fault: TransFaultWord::new()
                    .with_error(self.error)
                    .with_page_fault_type(fault_type)
                    .with_wq_number(wq_number),
                token: TransTokenWord::new().with_fault_token(token),
            }),
            FaultToken::Memory(token) => {
                let (high, low) = split_token(token);
                zerocopy::transmute!(MemResumeInLayout {
                    header,
                    fault: MemFaultWord::new()
                        .with_error(self.error)
                        .with_fault_token_47_32(high),
                    fault_token_31_0: U32::new(low),
                })
            }
        }
    }
}

/// Bits 47:32 and 31:0 of a token.
pub(crate) const fn split_token(token: MemoryToken) -> (u16, u32) {
    let [_, _, high @ .., a, b, c, d] = token.get().to_be_bytes();
    (u16::from_be_bytes(high), u32::from_be_bytes([a, b, c, d]))
}

/// The token of bits 47:32 and 31:0.
pub(crate) fn join_token(high: u16, low: u32) -> MemoryToken {
    // Cannot lose bits: 16 and 32 make 48.
    MemoryToken::truncate(u64::from(high) << 32 | u64::from(low))
}
