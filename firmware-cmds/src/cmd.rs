// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands: the header that all of them share, and their status.
//!
//! Source: PRM "Command Interface"; kernel: the first fields of every `mlx5_ifc_*_in_bits` and
//! `mlx5_ifc_*_out_bits`, `MLX5_CMD_OP_*`, `MLX5_CMD_STAT_*`.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{Error, Wire};

/// Commands that this crate encodes and decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Opcode {
    /// CREATE_MKEY.
    CreateMkey = 0x200,
    /// QUERY_MKEY.
    QueryMkey = 0x201,
    /// DESTROY_MKEY.
    DestroyMkey = 0x202,
    /// PAGE_FAULT_RESUME.
    PageFaultResume = 0x204,
}

impl Opcode {
    /// The opcode's number.
    pub const fn get(self) -> u16 {
        // CAST: reads the discriminant of a `repr(u16)` enum.
        self as u16
    }
}

/// Layout of the first 8 bytes of every command's input. The kernel's headers give some commands
/// no `uid`; the place is the same for all.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InHeaderLayout {
    /// Which command.
    pub opcode: U16,
    /// On whose behalf: 0 is the kernel, else a user context.
    pub uid: U16,
    /// Reserved.
    pub reserved_at_20: U16,
    /// Modifier of the opcode.
    pub op_mod: U16,
}

/// First 8 bytes of every command's input. Every layout is accepted: the opcode may be any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct InHeader {
    /// Which command; see [`Opcode`] for those of this crate.
    pub opcode: u16,
    /// On whose behalf: 0 is the kernel, else a user context.
    pub uid: u16,
    /// Modifier of the opcode.
    pub op_mod: u16,
}

impl InHeader {
    /// Header of `opcode` without modifier.
    pub const fn new(opcode: Opcode, uid: u16) -> Self {
        Self {
            opcode: opcode.get(),
            uid,
            op_mod: 0,
        }
    }

    /// Checks that this is `expected` without modifier and returns the uid.
    ///
    /// # Errors
    ///
    /// [`Error::Opcode`] and [`Error::OpMod`].
    pub fn check(self, expected: Opcode) -> Result<u16, Error> {
        if self.opcode != expected.get() {
            return Err(Error::Opcode {
                expected,
                found: self.opcode,
            });
        }
        if self.op_mod != 0 {
            return Err(Error::OpMod(self.op_mod));
        }
        Ok(self.uid)
    }
}

impl Wire for InHeader {
    type Layout = InHeaderLayout;

    fn decode(layout: &InHeaderLayout) -> Result<Self, Error> {
        Ok(Self {
            opcode: layout.opcode.get(),
            uid: layout.uid.get(),
            op_mod: layout.op_mod.get(),
        })
    }

    fn encode(&self) -> InHeaderLayout {
        InHeaderLayout {
            opcode: U16::new(self.opcode),
            uid: U16::new(self.uid),
            op_mod: U16::new(self.op_mod),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of the first 8 bytes of every command's output.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OutHeaderLayout {
    /// How the command ended; see [`CmdStatus`].
    pub status: u8,
    /// Reserved.
    pub reserved_at_8: [u8; 3],
    /// The firmware's own code for the reason of a failure.
    pub syndrome: U32,
}

/// First 8 bytes of every command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutHeader {
    /// How the command ended.
    pub status: CmdStatus,
    /// The firmware's own code for the reason of a failure.
    pub syndrome: u32,
}

impl OutHeader {
    /// The command succeeded.
    pub const OK: Self = Self {
        status: CmdStatus::Ok,
        syndrome: 0,
    };
}

impl Wire for OutHeader {
    type Layout = OutHeaderLayout;

    /// # Errors
    ///
    /// [`Error::Status`].
    fn decode(layout: &OutHeaderLayout) -> Result<Self, Error> {
        Ok(Self {
            status: CmdStatus::try_from(layout.status)?,
            syndrome: layout.syndrome.get(),
        })
    }

    fn encode(&self) -> OutHeaderLayout {
        OutHeaderLayout {
            status: self.status.get(),
            syndrome: U32::new(self.syndrome),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of the output of a command that returns nothing (`destroy_mkey_out`,
/// `page_fault_resume_out`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EmptyOutLayout {
    /// Status and syndrome.
    pub header: OutHeaderLayout,
    /// Reserved.
    pub reserved_at_40: [u8; 8],
}

/// Output of a command that returns nothing but its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EmptyOut {
    /// Status and syndrome.
    pub header: OutHeader,
}

impl Wire for EmptyOut {
    type Layout = EmptyOutLayout;

    /// # Errors
    ///
    /// [`Error::Status`].
    fn decode(layout: &EmptyOutLayout) -> Result<Self, Error> {
        Ok(Self {
            header: OutHeader::decode(&layout.header)?,
        })
    }

    fn encode(&self) -> EmptyOutLayout {
        EmptyOutLayout {
            header: self.header.encode(),
            ..FromZeros::new_zeroed()
        }
    }
}

macro_rules! statuses {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        /// How a command ended (kernel: `MLX5_CMD_STAT_*`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum CmdStatus {
            $($(#[$meta])* $name = $value,)*
        }

        impl TryFrom<u8> for CmdStatus {
            type Error = Error;

            /// # Errors
            ///
            /// [`Error::Status`].
            fn try_from(status: u8) -> Result<Self, Error> {
                match status {
                    $($value => Ok(Self::$name),)*
                    _ => Err(Error::Status(status)),
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0x00,
    /// Internal error.
    InternalError = 0x01,
    /// Operation not supported.
    BadOp = 0x02,
    /// Parameter not supported or out of range.
    BadParam = 0x03,
    /// The system is not in a state for this.
    BadSysState = 0x04,
    /// A resource that is not there or not to be used.
    BadRes = 0x05,
    /// The resource is in use.
    ResBusy = 0x06,
    /// Not ready.
    NotReady = 0x07,
    /// A limit is exceeded.
    Lim = 0x08,
    /// The resource is not in a state for this.
    BadResState = 0x09,
    /// Index out of range.
    Ix = 0x0a,
    /// Out of resources.
    NoRes = 0x0f,
    /// The queue pair is not in a state for this.
    BadQpState = 0x10,
    /// A management packet that cannot be parsed.
    BadPkt = 0x30,
    /// Outstanding completions do not fit in the new size.
    BadSizeOutsCqes = 0x40,
    /// Input too short or too long.
    BadInpLen = 0x50,
    /// Output too short or too long.
    BadOutpLen = 0x51,
}

impl CmdStatus {
    /// The status's number.
    pub const fn get(self) -> u8 {
        // CAST: reads the discriminant of a `repr(u8)` enum.
        self as u8
    }
}
