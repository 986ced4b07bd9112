// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! EQE: the frame around every event.
//!
//! Source: PRM "Event Queue Entry"; kernel `struct mlx5_eqe`.

use bitfield_struct::bitfield;
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::handle::{Cqn, Qpn, Srqn};
use crate::wire::{Error, Wire};

/// Bytes of an EQE that belong to the event itself.
pub const EQE_DATA_LEN: usize = 28;

/// Last byte of an EQE.
#[bitfield(u8, order = Msb)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct EqeOwner {
    #[bits(7)]
    __: u8,
    /// Changes with each pass over the queue.
    pub owner: bool,
}

/// Layout of an EQE (`struct mlx5_eqe`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EqeLayout {
    /// Reserved.
    pub rsvd0: u8,
    /// Kind of event; see [`EventType`].
    pub event_type: u8,
    /// Reserved.
    pub rsvd1: u8,
    /// Kind of event within its type.
    pub sub_type: u8,
    /// Reserved.
    pub rsvd2: [u8; 28],
    /// The event itself.
    pub data: [u8; EQE_DATA_LEN],
    /// Reserved.
    pub rsvd3: [u8; 2],
    /// Checksum, where enabled.
    pub signature: u8,
    /// Owner bit.
    pub owner: EqeOwner,
}

/// Kind of event (kernel: `enum mlx5_event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(pub u8);

macro_rules! event_types {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        impl EventType {
            $($(#[$meta])* pub const $name: Self = Self($value);)*

            /// Every kind that this crate knows, with the kernel's name without
            /// `MLX5_EVENT_TYPE_`.
            pub const NAMES: &'static [(Self, &'static str)] = &[
                $((Self::$name, stringify!($name)),)*
            ];
        }
    };
}

event_types! {
    /// A completion queue that was armed has a new entry.
    COMP = 0x00,
    /// A send queue was drained.
    SQ_DRAINED = 0x03,
    /// A completion queue overran or could not be written.
    CQ_ERROR = 0x04,
    /// A work queue is unusable.
    WQ_CATAS_ERROR = 0x05,
    /// A port came up or went down.
    PORT_CHANGE = 0x09,
    /// Commands completed.
    CMD = 0x0a,
    /// The device wants pages for itself.
    PAGE_REQUEST = 0x0b,
    /// A page fault.
    PAGE_FAULT = 0x0c,
    /// A queue pair was sent an invalid request.
    WQ_INVAL_REQ_ERROR = 0x10,
    /// A queue pair was sent a request that it does not allow.
    WQ_ACCESS_ERROR = 0x11,
    /// The last WQE that a queue pair in error had taken from its shared receive queue is done.
    SRQ_LAST_WQE = 0x13,
    /// A shared receive queue fell below its limit.
    SRQ_RQ_LIMIT = 0x14,
    /// A DC target that was to be drained is.
    DCT_DRAINED = 0x1c,
}

/// Event queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eqe {
    /// Kind of event.
    pub event_type: EventType,
    /// Kind of event within its type.
    pub sub_type: u8,
    /// The event itself.
    pub data: [u8; EQE_DATA_LEN],
    /// Checksum, where enabled.
    pub signature: u8,
    /// Changes with each pass over the queue; who owns the entry follows from it and the pass.
    pub owner: bool,
}

impl Eqe {
    /// An entry with `data` at the start of the event, as many bytes as there are, zeros behind.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`]: `data` is longer than [`EQE_DATA_LEN`].
    pub fn new(
        event_type: EventType,
        sub_type: u8,
        data: &[u8],
        owner: bool,
    ) -> Result<Self, Error> {
        let mut event = [0; EQE_DATA_LEN];
        event
            .get_mut(..data.len())
            .ok_or(Error::Truncated {
                needed: data.len(),
                available: EQE_DATA_LEN,
            })?
            .copy_from_slice(data);
        Ok(Self {
            event_type,
            sub_type,
            data: event,
            signature: 0,
            owner,
        })
    }

    /// An entry whose event is all zero.
    pub const fn empty(event_type: EventType, sub_type: u8) -> Self {
        Self {
            event_type,
            sub_type,
            data: [0; EQE_DATA_LEN],
            signature: 0,
            owner: false,
        }
    }

    /// An event about a queue pair (`data.qp_srq`).
    pub fn about_qp(event_type: EventType, qpn: Qpn) -> Self {
        Self::empty(event_type, 0).with_word(24, qpn.get())
    }

    /// An event about a shared receive queue (`data.qp_srq`).
    pub fn about_srq(event_type: EventType, srqn: Srqn) -> Self {
        Self::empty(event_type, 0).with_word(24, srqn.get())
    }

    /// [`EventType::DCT_DRAINED`] of this target (`data.dct`).
    pub fn dct_drained(dctn: Qpn) -> Self {
        Self::empty(EventType::DCT_DRAINED, 0).with_word(24, dctn.get())
    }

    /// [`EventType::COMP`] of this queue (`data.comp`).
    pub fn completion(cqn: Cqn) -> Self {
        Self::empty(EventType::COMP, 0).with_word(24, cqn.get())
    }

    /// [`EventType::CQ_ERROR`] of this queue (`data.cq_err`); syndrome 1 is an overrun, 2 a queue
    /// out of reach.
    pub fn cq_error(cqn: Cqn, syndrome: u8) -> Self {
        Self::empty(EventType::CQ_ERROR, 0)
            .with_word(0, cqn.get())
            .with_word(8, u32::from(syndrome))
    }

    /// [`EventType::CMD`] for these slots of the command queue, a bit each (`data.cmd`).
    pub fn commands(slots: u32) -> Self {
        Self::empty(EventType::CMD, 0).with_word(0, slots)
    }

    /// The entry's bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(self.encode())
    }

    /// Stores a big-endian word at byte `at` of the event, which is below 25.
    fn with_word(mut self, at: usize, word: u32) -> Self {
        self.data[at..at + 4].copy_from_slice(&word.to_be_bytes());
        self
    }
}

impl Wire for Eqe {
    type Layout = EqeLayout;

    /// Every layout is accepted.
    fn decode(layout: &EqeLayout) -> Result<Self, Error> {
        Ok(Self {
            event_type: EventType(layout.event_type),
            sub_type: layout.sub_type,
            data: layout.data,
            signature: layout.signature,
            owner: layout.owner.owner(),
        })
    }

    fn encode(&self) -> EqeLayout {
        EqeLayout {
            event_type: self.event_type.0,
            sub_type: self.sub_type,
            data: self.data,
            signature: self.signature,
            owner: EqeOwner::new().with_owner(self.owner),
            ..FromZeros::new_zeroed()
        }
    }
}
