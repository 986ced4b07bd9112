// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! CREATE_MKEY, QUERY_MKEY and DESTROY_MKEY.
//!
//! Source: PRM "CREATE_MKEY", "QUERY_MKEY", "DESTROY_MKEY"; kernel
//! `mlx5_ifc_{create,query,destroy}_mkey_{in,out}_bits`. Of a key over a umem, rdma-core's
//! `tests/mlx5_prm_structs.py:CreateMkeyIn`: the kernel takes those two fields from user space as
//! they are, and does not name them.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cmd::{EmptyOut, InHeader, InHeaderLayout, Opcode, OutHeader, OutHeaderLayout};
use crate::handle::MkeyIndex;
use crate::mkc::{Mkc, MkcLayout};
use crate::wire::{Error, Wire};

/// Word with an MKey's index.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MkeyIndexWord {
    __: u8,
    /// The index.
    #[bits(24)]
    pub mkey_index: MkeyIndex,
}

/// Word 3 of CREATE_MKEY's input.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct CreateMkeyFlags {
    /// Accesses through entries that are not present fault.
    pub pg_access: bool,
    /// A umem object takes the place of the translation list.
    pub mkey_umem_valid: bool,
    /// Data goes over the direct path.
    pub data_direct: bool,
    #[bits(29)]
    __: u32,
}

/// Layout of CREATE_MKEY's input up to the translation list (`create_mkey_in`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CreateMkeyInLayout {
    /// Opcode, uid, modifier.
    pub header: InHeaderLayout,
    /// Reserved.
    pub reserved_at_40: [u8; 4],
    /// Flags.
    pub flags: CreateMkeyFlags,
    /// Context of the new key.
    pub memory_key_mkey_entry: MkcLayout,
    /// Reserved.
    pub reserved_at_280: [u8; 16],
    /// Length of the translation list that follows, in octowords.
    pub translations_octword_actual_size: U32,
    /// The umem object.
    pub mkey_umem_id: U32,
    /// Where in it the key's memory starts, in bytes.
    pub mkey_umem_offset: U64,
    /// Reserved.
    pub reserved_at_380: [u8; 160],
}

/// Input of CREATE_MKEY; the translation list follows it in the mailbox
/// ([`Wire::parse_prefix`] returns it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CreateMkeyIn {
    /// On whose behalf.
    pub uid: u16,
    /// Accesses through entries that are not present fault.
    pub pg_access: bool,
    /// A umem object takes the place of the translation list.
    pub mkey_umem_valid: bool,
    /// Data goes over the direct path.
    pub data_direct: bool,
    /// Context of the new key.
    pub mkc: Mkc,
    /// Length of the translation list that follows, in octowords; of no meaning with a umem.
    pub translations_octword_actual_size: u32,
    /// The umem object whose pages the key translates to.
    pub mkey_umem_id: u32,
    /// Where in it the key's memory starts, in bytes.
    pub mkey_umem_offset: u64,
}

impl Wire for CreateMkeyIn {
    type Layout = CreateMkeyInLayout;

    /// # Errors
    ///
    /// [`Error::Opcode`], [`Error::OpMod`], [`Error::AccessMode`].
    fn decode(layout: &CreateMkeyInLayout) -> Result<Self, Error> {
        Ok(Self {
            uid: InHeader::decode(&layout.header)?.check(Opcode::CreateMkey)?,
            pg_access: layout.flags.pg_access(),
            mkey_umem_valid: layout.flags.mkey_umem_valid(),
            data_direct: layout.flags.data_direct(),
            mkc: Mkc::decode(&layout.memory_key_mkey_entry)?,
            translations_octword_actual_size: layout.translations_octword_actual_size.get(),
            mkey_umem_id: layout.mkey_umem_id.get(),
            mkey_umem_offset: layout.mkey_umem_offset.get(),
        })
    }

    fn encode(&self) -> CreateMkeyInLayout {
        CreateMkeyInLayout {
            header: InHeader::new(Opcode::CreateMkey, self.uid).encode(),
            flags: CreateMkeyFlags::new()
                .with_pg_access(self.pg_access)
                .with_mkey_umem_valid(self.mkey_umem_valid)
                .with_data_direct(self.data_direct),
            memory_key_mkey_entry: self.mkc.encode(),
            translations_octword_actual_size: U32::new(self.translations_octword_actual_size),
            mkey_umem_id: U32::new(self.mkey_umem_id),
            mkey_umem_offset: U64::new(self.mkey_umem_offset),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of CREATE_MKEY's output (`create_mkey_out`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CreateMkeyOutLayout {
    /// Status and syndrome.
    pub header: OutHeaderLayout,
    /// Index of the new key.
    pub mkey: MkeyIndexWord,
    /// Reserved.
    pub reserved_at_60: [u8; 4],
}

/// Output of CREATE_MKEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CreateMkeyOut {
    /// Status and syndrome.
    pub header: OutHeader,
    /// Index of the new key.
    pub mkey_index: MkeyIndex,
}

impl Wire for CreateMkeyOut {
    type Layout = CreateMkeyOutLayout;

    /// # Errors
    ///
    /// [`Error::Status`].
    fn decode(layout: &CreateMkeyOutLayout) -> Result<Self, Error> {
        Ok(Self {
            header: OutHeader::decode(&layout.header)?,
            mkey_index: layout.mkey.mkey_index(),
        })
    }

    fn encode(&self) -> CreateMkeyOutLayout {
        CreateMkeyOutLayout {
            header: self.header.encode(),
            mkey: MkeyIndexWord::new().with_mkey_index(self.mkey_index),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Word 3 of QUERY_MKEY's input.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct QueryMkeyFlags {
    /// As [`CreateMkeyFlags::pg_access`]. Linux never sets it.
    pub pg_access: bool,
    #[bits(31)]
    __: u32,
}

/// Layout of QUERY_MKEY's input (`query_mkey_in`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryMkeyInLayout {
    /// Opcode, uid, modifier.
    pub header: InHeaderLayout,
    /// Index of the key.
    pub mkey: MkeyIndexWord,
    /// Flags.
    pub flags: QueryMkeyFlags,
}

/// Input of QUERY_MKEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct QueryMkeyIn {
    /// On whose behalf.
    pub uid: u16,
    /// Which key.
    pub mkey_index: MkeyIndex,
    /// As [`CreateMkeyIn::pg_access`]. Linux never sets it, and finds the entries of a key that
    /// refers to keys all the same (kernel: `odp.c:pagefault_single_data_segment`).
    pub pg_access: bool,
}

impl Wire for QueryMkeyIn {
    type Layout = QueryMkeyInLayout;

    /// # Errors
    ///
    /// [`Error::Opcode`], [`Error::OpMod`].
    fn decode(layout: &QueryMkeyInLayout) -> Result<Self, Error> {
        Ok(Self {
            uid: InHeader::decode(&layout.header)?.check(Opcode::QueryMkey)?,
            mkey_index: layout.mkey.mkey_index(),
            pg_access: layout.flags.pg_access(),
        })
    }

    fn encode(&self) -> QueryMkeyInLayout {
        QueryMkeyInLayout {
            header: InHeader::new(Opcode::QueryMkey, self.uid).encode(),
            mkey: MkeyIndexWord::new().with_mkey_index(self.mkey_index),
            flags: QueryMkeyFlags::new().with_pg_access(self.pg_access),
        }
    }
}

/// Layout of QUERY_MKEY's output up to the translation entries (`query_mkey_out`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueryMkeyOutLayout {
    /// Status and syndrome.
    pub header: OutHeaderLayout,
    /// Reserved.
    pub reserved_at_40: [u8; 8],
    /// Context of the key.
    pub memory_key_mkey_entry: MkcLayout,
    /// Reserved.
    pub reserved_at_280: [u8; 192],
}

/// Output of QUERY_MKEY; the translation entries follow it in the mailbox
/// ([`Wire::parse_prefix`] returns them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryMkeyOut {
    /// Status and syndrome.
    pub header: OutHeader,
    /// Context of the key.
    pub mkc: Mkc,
}

impl Wire for QueryMkeyOut {
    type Layout = QueryMkeyOutLayout;

    /// # Errors
    ///
    /// [`Error::Status`], [`Error::AccessMode`].
    fn decode(layout: &QueryMkeyOutLayout) -> Result<Self, Error> {
        Ok(Self {
            header: OutHeader::decode(&layout.header)?,
            mkc: Mkc::decode(&layout.memory_key_mkey_entry)?,
        })
    }

    fn encode(&self) -> QueryMkeyOutLayout {
        QueryMkeyOutLayout {
            header: self.header.encode(),
            memory_key_mkey_entry: self.mkc.encode(),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Layout of DESTROY_MKEY's input (`destroy_mkey_in`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DestroyMkeyInLayout {
    /// Opcode, uid, modifier.
    pub header: InHeaderLayout,
    /// Index of the key.
    pub mkey: MkeyIndexWord,
    /// Reserved.
    pub reserved_at_60: [u8; 4],
}

/// Input of DESTROY_MKEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct DestroyMkeyIn {
    /// On whose behalf.
    pub uid: u16,
    /// Which key.
    pub mkey_index: MkeyIndex,
}

impl Wire for DestroyMkeyIn {
    type Layout = DestroyMkeyInLayout;

    /// # Errors
    ///
    /// [`Error::Opcode`], [`Error::OpMod`].
    fn decode(layout: &DestroyMkeyInLayout) -> Result<Self, Error> {
        Ok(Self {
            uid: InHeader::decode(&layout.header)?.check(Opcode::DestroyMkey)?,
            mkey_index: layout.mkey.mkey_index(),
        })
    }

    fn encode(&self) -> DestroyMkeyInLayout {
        DestroyMkeyInLayout {
            header: InHeader::new(Opcode::DestroyMkey, self.uid).encode(),
            mkey: MkeyIndexWord::new().with_mkey_index(self.mkey_index),
            ..FromZeros::new_zeroed()
        }
    }
}

/// Output of DESTROY_MKEY.
pub type DestroyMkeyOut = EmptyOut;
