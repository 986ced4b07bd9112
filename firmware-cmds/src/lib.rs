// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bytes and values of the ConnectX firmware interface that On-Demand Paging speaks.
//!
//! Every format has two faces. The *layout* (`MkcLayout`, `DataSegLayout`, ...) is a struct of
//! big-endian words, named field by field after the kernel's `mlx5_ifc.h`, `qp.h` and `device.h`;
//! any bytes are a layout. The *value* (`Mkc`, `DataSeg`, ...) is plain Rust in host order that can
//! only hold what the format can carry. [`Wire`] goes from one to the other: [`Wire::parse`] checks,
//! [`Wire::emit`] writes every byte. Both sides of the device use the same definitions: the driver
//! encodes what the device model decodes, and the reverse.
//!
//! The crate needs neither `std` nor `alloc` and holds no `unsafe` code. No bytes make a parser
//! panic and no value `emit`. (The setters of a layout's words, which `bitfield` makes, panic on a
//! number of too many bits; the fields of a value cannot hold such a number.)
//!
//! ```
//! use firmware_cmds::{Eqe, EventType, PageFault, Wire};
//!
//! // What the device wrote: a read of 4 KiB through MKey 0xa15c found nothing there.
//! let mut entry = [0; Eqe::LEN];
//! entry[1] = EventType::PAGE_FAULT.0;
//! entry[3] = 2; // memory scheme
//! entry[0x20..0x3c].copy_from_slice(&[
//!     0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, // last; token 7
//!     0, 0, 0x10, 0, 0, 0, 0xa1, 0x5c, // one page, the key
//!     0, 0, 0x7f, 0x12, 0x34, 0x56, 0x70, 0, // the address
//! ]);
//! let fault = PageFault::from_eqe(&Eqe::parse(&entry)?).expect("a page fault");
//! assert!(matches!(fault, PageFault::Memory(memory) if memory.demand_bytes() == 4096));
//!
//! // What the driver answers once the page is there.
//! let command = fault.resume(false).to_bytes();
//! assert_eq!(command, [2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
//! # Ok::<(), firmware_cmds::Error>(())
//! ```
//!
//! # Glossary
//!
//! - BSF: byte stream format, an MKey's signature descriptor.
//! - CQE, EQE: completion / event queue entry.
//! - DCT, DC: dynamically connected target, the transport that uses it.
//! - DS: 16-byte unit ("data segment") in which a WQE's length is counted.
//! - IOVA: address in the space of an MKey.
//! - KLM, KSM: translation entry that names another MKey; KLMs carry a length each, the entries of
//!   a KSM list all have the page size of their MKey.
//! - MKC: MKey context, what the device holds about an MKey.
//! - MKey: memory key. Bits 31:8 are its index, bits 7:0 a variant that the owner picks.
//! - MTT: memory translation table entry, one page's bus address with its access bits.
//! - Octoword: 16 bytes, the unit in which translation lists are measured.
//! - PRM: Programmer's Reference Manual of the adapter.
//! - UMR: user-mode memory registration, a WQE that changes an MKey.
//! - WQE, SGE: work queue entry, scatter/gather entry.
//! - XLT: translation list of an MKey: MTTs, KLMs or KSMs.

#![crate_name = "firmware_cmds"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(CONFIG_RUST),
    allow(
        non_ascii_idents,
        reason = "zerocopy-derive generates them; the kernel's copy does not"
    )
)]

pub mod cmd;
pub mod eqe;
pub mod handle;
pub mod indirect;
pub mod mkc;
pub mod mkey;
pub mod page_fault;
pub mod resume;
pub mod umr;
pub mod wire;
pub mod wqe;
pub mod xlt;

pub use cmd::{CmdStatus, InHeader, Opcode, OutHeader};
pub use eqe::{Eqe, EventType};
pub use handle::{
    Cqn, DmaAddr, Eqn, Iova, MemoryToken, Mkey, MkeyIndex, MkeyVariant, Pdn, Qpn, Srqn, Tdn,
    TransportToken, Uar, WqNumber, Xrcdn,
};
pub use indirect::{Piece, Pieces};
pub use mkc::{Access, AccessMode, LogPageSize, Mkc};
pub use page_fault::{MemoryFault, PageFault, PageFaultError, RdmaFault, WqeFault, WqeFaultKind};
pub use resume::{FaultToken, PageFaultResume, Scheme};
pub use wire::{Error, Wire};
pub use xlt::{Klm, Ksm, Mtt, MttAccess, Stride, StrideBlock};
