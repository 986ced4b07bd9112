// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! EQE: the frame around every event.
//!
//! Source: PRM "Event Queue Entry"; kernel `struct mlx5_eqe`.

use bitfield_struct::bitfield;
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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

impl EventType {
    /// A page fault.
    pub const PAGE_FAULT: Self = Self(0x0c);
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
