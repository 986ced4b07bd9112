// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Page-fault events.
//!
//! In the *transport* scheme the event names a work queue: either the WQE whose data segments are
//! to be made present ([`WqeFault`]) or the remote access that a responder stalled ([`RdmaFault`]).
//! In the *memory* scheme it names an MKey and an address ([`MemoryFault`]).
//!
//! Source: PRM "Page Fault Event"; kernel `struct mlx5_eqe_page_fault`, `MLX5_PFAULT_SUBTYPE_*`,
//! `enum wqe_page_fault_type`, `odp.c:mlx5_ib_eq_pf_process`.

use bitfield_struct::bitfield;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::eqe::{Eqe, EventType};
use crate::handle::{bounded, Iova, MemoryToken, Mkey, TransportToken, WqNumber};
use crate::resume::{join_token, split_token, FaultToken, PageFaultResume};

/// Sub-type of the event that names a WQE.
pub const SUBTYPE_WQE: u8 = 0;
/// Sub-type of the event that names a remote access.
pub const SUBTYPE_RDMA: u8 = 1;
/// Sub-type of the event that names an MKey and an address.
pub const SUBTYPE_MEMORY: u8 = 2;

/// Unit of the page counts of a [`MemoryFault`], whatever the kernel's page size.
pub const MEMORY_FAULT_PAGE: u32 = 4096;

bounded! {
    /// Type of a page fault of the transport scheme; PAGE_FAULT_RESUME hands it back.
    FaultType(u32), 3 bits of a word
}

impl FaultType {
    /// The stalled remote access writes memory (kernel: `MLX5_PFAULT_WRITE`). Of a WQE's fault
    /// [`WqeFaultKind::is_write`] says it: a shared receive queue's has this bit clear.
    pub const fn is_write(self) -> bool {
        self.get() & 2 != 0
    }

    /// The type of a remote access, which writes memory or not.
    pub const fn rdma(write: bool) -> Self {
        Self::truncate(if write { 6 } else { 4 })
    }
}

/// Whose WQE could not be carried out (kernel: `enum wqe_page_fault_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WqeFaultKind {
    /// A shared receive queue's (basic SRQ, XRC SRQ or RMP): an incoming SEND is written.
    SharedReceive,
    /// A send queue's SEND or RDMA WRITE: local memory is read.
    SendOrWrite,
    /// A queue pair's own receive queue's: an incoming SEND is written.
    Receive,
    /// A send queue's RDMA READ or atomic: the response is written to local memory.
    ReadOrAtomic,
}

impl WqeFaultKind {
    /// The kind as the event carries it.
    pub const fn fault_type(self) -> FaultType {
        FaultType::truncate(match self {
            Self::SharedReceive => 0,
            Self::SendOrWrite => 1,
            Self::Receive => 2,
            Self::ReadOrAtomic => 3,
        })
    }

    /// The kind that the event carries, if it is one of a WQE.
    pub const fn from_fault_type(fault_type: FaultType) -> Option<Self> {
        match fault_type.get() {
            0 => Some(Self::SharedReceive),
            1 => Some(Self::SendOrWrite),
            2 => Some(Self::Receive),
            3 => Some(Self::ReadOrAtomic),
            _ => None,
        }
    }

    /// Whether the WQE is on a send queue.
    pub const fn is_send_queue(self) -> bool {
        matches!(self, Self::SendOrWrite | Self::ReadOrAtomic)
    }

    /// Whether the device wants to write the memory that the WQE names.
    pub const fn is_write(self) -> bool {
        !matches!(self, Self::SendOrWrite)
    }
}

/// Type and work queue of a [`WqeFault`].
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PfTypeWq {
    #[bits(5)]
    __: u8,
    /// Type of the fault.
    #[bits(3)]
    pub pftype: FaultType,
    /// The stalled work queue.
    #[bits(24)]
    pub wq: WqNumber,
}

/// Layout of the event that names a WQE (`wqe` of `struct mlx5_eqe_page_fault`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WqeFaultLayout {
    /// Bytes of the WQE that are done.
    pub bytes_committed: U32,
    /// Reserved.
    pub reserved1: [u8; 2],
    /// Index of the WQE in its queue.
    pub wqe_index: U16,
    /// Reserved.
    pub reserved2: [u8; 2],
    /// Length of the packet, on a responder.
    pub packet_length: U16,
    /// Identifies the stalled access; PAGE_FAULT_RESUME has room for bits 23:0.
    pub token: U32,
    /// Reserved.
    pub reserved4: [u8; 8],
    /// Type and work queue.
    pub pftype_wq: PfTypeWq,
}

/// A WQE stalled because memory that it names is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WqeFault {
    /// Whose WQE it is.
    pub kind: WqeFaultKind,
    /// The stalled work queue.
    pub wq_number: WqNumber,
    /// Index of the WQE in its queue.
    pub wqe_index: u16,
    /// Bytes of the WQE that are done.
    pub bytes_committed: u32,
    /// Length of the packet in bytes, on a responder.
    pub packet_length: u16,
    /// Identifies the stalled access.
    pub token: TransportToken,
}

impl WqeFault {
    fn decode(layout: &WqeFaultLayout) -> Result<Self, PageFaultError> {
        let token = TransportToken::truncate(layout.token.get());
        let wq_number = layout.pftype_wq.wq();
        let fault_type = layout.pftype_wq.pftype();
        let kind = WqeFaultKind::from_fault_type(fault_type).ok_or(PageFaultError::WqeType {
            fault_type,
            wq_number,
            token,
        })?;
        Ok(Self {
            kind,
            wq_number,
            wqe_index: layout.wqe_index.get(),
            bytes_committed: layout.bytes_committed.get(),
            packet_length: layout.packet_length.get(),
            token,
        })
    }

    fn encode(&self) -> WqeFaultLayout {
        WqeFaultLayout {
            bytes_committed: U32::new(self.bytes_committed),
            wqe_index: U16::new(self.wqe_index),
            packet_length: U16::new(self.packet_length),
            token: U32::new(self.token.get()),
            pftype_wq: PfTypeWq::new()
                .with_pftype(self.kind.fault_type())
                .with_wq(self.wq_number),
            ..FromZeros::new_zeroed()
        }
    }

    /// What to hand back to the device once the fault is served.
    pub const fn fault_token(&self) -> FaultToken {
        FaultToken::Transport {
            fault_type: self.kind.fault_type(),
            wq_number: self.wq_number,
            token: self.token,
        }
    }
}

/// Type and token of an [`RdmaFault`].
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct PfTypeToken {
    #[bits(5)]
    __: u8,
    /// Type of the fault.
    #[bits(3)]
    pub pftype: FaultType,
    /// Identifies the stalled access.
    #[bits(24)]
    pub token: TransportToken,
}

/// Layout of the event that names a remote access (`rdma` of `struct mlx5_eqe_page_fault`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RdmaFaultLayout {
    /// Bytes of the operation that are done.
    pub bytes_committed: U32,
    /// The key that the peer used.
    pub r_key: U32,
    /// Reserved.
    pub reserved1: [u8; 2],
    /// Length of the packet.
    pub packet_length: U16,
    /// Length of the operation.
    pub rdma_op_len: U32,
    /// Where the operation starts.
    pub rdma_va: U64,
    /// Type and token.
    pub pftype_token: PfTypeToken,
}

/// A remote access stalled because the memory is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RdmaFault {
    /// Type of the fault; [`FaultType::is_write`] says which access stalled.
    pub fault_type: FaultType,
    /// Identifies the stalled access.
    pub token: TransportToken,
    /// The key that the peer used.
    pub r_key: Mkey,
    /// Where the operation starts.
    pub rdma_va: Iova,
    /// Length of the operation in bytes; 0 if the device does not know it.
    pub rdma_op_len: u32,
    /// Length of the packet in bytes: what must be present for the device to go on at all.
    pub packet_length: u16,
    /// Bytes of the operation that are done.
    pub bytes_committed: u32,
}

impl RdmaFault {
    fn decode(layout: &RdmaFaultLayout) -> Self {
        Self {
            fault_type: layout.pftype_token.pftype(),
            token: layout.pftype_token.token(),
            r_key: Mkey::new(layout.r_key.get()),
            rdma_va: Iova::new(layout.rdma_va.get()),
            rdma_op_len: layout.rdma_op_len.get(),
            packet_length: layout.packet_length.get(),
            bytes_committed: layout.bytes_committed.get(),
        }
    }

    fn encode(&self) -> RdmaFaultLayout {
        RdmaFaultLayout {
            bytes_committed: U32::new(self.bytes_committed),
            r_key: U32::new(self.r_key.get()),
            packet_length: U16::new(self.packet_length),
            rdma_op_len: U32::new(self.rdma_op_len),
            rdma_va: U64::new(self.rdma_va.get()),
            pftype_token: PfTypeToken::new()
                .with_pftype(self.fault_type)
                .with_token(self.token),
            ..FromZeros::new_zeroed()
        }
    }

    /// What to hand back to the device once the fault is served. The event names no work queue;
    /// the token takes its place, as the kernel has it.
    pub const fn fault_token(&self) -> FaultToken {
        FaultToken::Transport {
            fault_type: self.fault_type,
            wq_number: WqNumber::truncate(self.token.get()),
            token: self.token,
        }
    }
}

/// Flags of a [`MemoryFault`].
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct MemoryFaultFlags {
    /// The device waits for a resume.
    pub last: bool,
    #[bits(7)]
    __: u8,
}

bounded! {
    /// Number of demanded pages of a [`MemoryFault`], in units of [`MEMORY_FAULT_PAGE`].
    DemandPages(u32), 20 bits of a word
}

/// Number of demanded pages of a [`MemoryFault`]. Older firmware puts a byte count there, hence
/// the place: a count of pages of 4096 bytes in bits 31:12 reads the same.
#[bitfield(u32, order = Msb, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct DemandWord {
    /// The number.
    #[bits(20)]
    pub pages: DemandPages,
    #[bits(12)]
    __: u16,
}

/// Layout of the event that names an MKey and an address (`memory` of
/// `struct mlx5_eqe_page_fault`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemoryFaultLayout {
    /// Flags.
    pub flags: MemoryFaultFlags,
    /// Reserved.
    pub reserved1: u8,
    /// Pages behind the demanded ones that will be wanted next.
    pub post_demand_fault_pages: U16,
    /// Pages before the demanded ones that will be wanted next.
    pub pre_demand_fault_pages: U16,
    /// Bits 47:32 of the token.
    pub token47_32: U16,
    /// Bits 31:0 of the token.
    pub token31_0: U32,
    /// Demanded pages.
    pub demand_fault_pages: DemandWord,
    /// The key through which the access went.
    pub mkey: U32,
    /// First demanded address.
    pub va: U64,
}

/// An access to memory stalled because the memory is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryFault {
    /// The device waits for a resume. Without this a resume is due only if the fault failed.
    pub last: bool,
    /// Identifies the stalled access.
    pub token: MemoryToken,
    /// The key through which the access went: the lowest one, which has the MTTs.
    pub mkey: Mkey,
    /// First demanded address.
    pub va: Iova,
    /// Demanded pages, in units of [`MEMORY_FAULT_PAGE`].
    pub demand_pages: DemandPages,
    /// Pages before the demanded ones that will be wanted next.
    pub pre_demand_pages: u16,
    /// Pages behind the demanded ones that will be wanted next.
    pub post_demand_pages: u16,
}

impl MemoryFault {
    fn decode(layout: &MemoryFaultLayout) -> Self {
        Self {
            last: layout.flags.last(),
            token: join_token(layout.token47_32.get(), layout.token31_0.get()),
            mkey: Mkey::new(layout.mkey.get()),
            va: Iova::new(layout.va.get()),
            demand_pages: layout.demand_fault_pages.pages(),
            pre_demand_pages: layout.pre_demand_fault_pages.get(),
            post_demand_pages: layout.post_demand_fault_pages.get(),
        }
    }

    fn encode(&self) -> MemoryFaultLayout {
        let (token47_32, token31_0) = split_token(self.token);
        MemoryFaultLayout {
            flags: MemoryFaultFlags::new().with_last(self.last),
            post_demand_fault_pages: U16::new(self.post_demand_pages),
            pre_demand_fault_pages: U16::new(self.pre_demand_pages),
            token47_32: U16::new(token47_32),
            token31_0: U32::new(token31_0),
            demand_fault_pages: DemandWord::new().with_pages(self.demand_pages),
            mkey: U32::new(self.mkey.get()),
            va: U64::new(self.va.get()),
            ..FromZeros::new_zeroed()
        }
    }

    /// Demanded bytes, at most 4 GiB less one page.
    pub const fn demand_bytes(&self) -> u64 {
        pages_to_bytes(self.demand_pages.get())
    }

    /// Bytes before the demanded ones that will be wanted next.
    pub fn pre_demand_bytes(&self) -> u64 {
        pages_to_bytes(u32::from(self.pre_demand_pages))
    }

    /// Bytes behind the demanded ones that will be wanted next.
    pub fn post_demand_bytes(&self) -> u64 {
        pages_to_bytes(u32::from(self.post_demand_pages))
    }

    /// What to hand back to the device once the fault is served.
    pub const fn fault_token(&self) -> FaultToken {
        FaultToken::Memory(self.token)
    }
}

/// Bytes of `pages` units of [`MEMORY_FAULT_PAGE`]: 2^32 times 2^12 fits easily.
const fn pages_to_bytes(pages: u32) -> u64 {
    // CAST: widens; a const fn cannot call `u64::from`.
    pages as u64 * MEMORY_FAULT_PAGE as u64
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageFault {
    /// Transport scheme: a WQE stalled.
    Wqe(WqeFault),
    /// Transport scheme: a remote access stalled.
    Rdma(RdmaFault),
    /// Memory scheme: an access stalled.
    Memory(MemoryFault),
}

impl PageFault {
    /// Takes the page fault out of its event.
    ///
    /// # Errors
    ///
    /// See [`PageFaultError`]. Where [`PageFaultError::fault_token`] still names the stalled
    /// access, resume it with error, or its queue hangs for good.
    pub fn from_eqe(eqe: &Eqe) -> Result<Self, PageFaultError> {
        if eqe.event_type != EventType::PAGE_FAULT {
            return Err(PageFaultError::EventType(eqe.event_type));
        }
        match eqe.sub_type {
            SUBTYPE_WQE => WqeFault::decode(&zerocopy::transmute!(eqe.data)).map(Self::Wqe),
            SUBTYPE_RDMA => Ok(Self::Rdma(RdmaFault::decode(&zerocopy::transmute!(
                eqe.data
            )))),
            SUBTYPE_MEMORY => Ok(Self::Memory(MemoryFault::decode(&zerocopy::transmute!(
                eqe.data
            )))),
            sub_type => Err(PageFaultError::SubType(sub_type)),
        }
    }

    /// The event that reports this fault. `owner` is the owner bit of the queue's current pass.
    pub fn to_eqe(&self, owner: bool) -> Eqe {
        let (sub_type, data) = match self {
            Self::Wqe(fault) => (SUBTYPE_WQE, zerocopy::transmute!(fault.encode())),
            Self::Rdma(fault) => (SUBTYPE_RDMA, zerocopy::transmute!(fault.encode())),
            Self::Memory(fault) => (SUBTYPE_MEMORY, zerocopy::transmute!(fault.encode())),
        };
        Eqe {
            event_type: EventType::PAGE_FAULT,
            sub_type,
            data,
            signature: 0,
            owner,
        }
    }

    /// What to hand back to the device once the fault is served.
    pub const fn fault_token(&self) -> FaultToken {
        match self {
            Self::Wqe(fault) => fault.fault_token(),
            Self::Rdma(fault) => fault.fault_token(),
            Self::Memory(fault) => fault.fault_token(),
        }
    }

    /// The command that lets the stalled access go on, or fail.
    pub const fn resume(&self, error: bool) -> PageFaultResume {
        PageFaultResume {
            fault: self.fault_token(),
            error,
        }
    }
}

/// Why an event is not a page fault that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageFaultError {
    /// It is an event of another type.
    EventType(EventType),
    /// A page fault of a sub-type that is not known: nothing can be said about it.
    SubType(u8),
    /// A WQE's page fault with a type that no WQE has.
    WqeType {
        /// The type.
        fault_type: FaultType,
        /// The stalled work queue.
        wq_number: WqNumber,
        /// Identifies the stalled access.
        token: TransportToken,
    },
}

impl PageFaultError {
    /// What to resume with error, where the event says so much.
    pub const fn fault_token(&self) -> Option<FaultToken> {
        match *self {
            Self::EventType(_) | Self::SubType(_) => None,
            Self::WqeType {
                fault_type,
                wq_number,
                token,
            } => Some(FaultToken::Transport {
                fault_type,
                wq_number,
                token,
            }),
        }
    }
}
