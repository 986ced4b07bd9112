// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Receive WQEs: a scatter list, on a shared receive queue behind a link to the next WQE.

use core::iter::FusedIterator;

use zerocopy::byteorder::big_endian::U16;
use zerocopy::FromZeros;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::data::DataSeg;
use crate::handle::Mkey;
use crate::wire::{Error, Wire};

/// Walks the scatter list of a receive WQE up to its end or the segment that terminates it.
/// After an error it ends.
#[derive(Clone, Debug)]
pub struct RecvSges<'a> {
    rest: &'a [u8],
    terminate: Mkey,
}

impl<'a> RecvSges<'a> {
    /// Walks `wqe`, all of a receive WQE's bytes, on a shared receive queue those behind the
    /// [`SrqNextSeg`]. `terminate` is the device's key for the end of the list,
    /// [`Mkey::TERMINATE_SCATTER_LIST`] if it names no other.
    pub const fn new(wqe: &'a [u8], terminate: Mkey) -> Self {
        Self {
            rest: wqe,
            terminate,
        }
    }
}

impl Iterator for RecvSges<'_> {
    /// Inline data is [`Error::Inline`], a list that ends within a segment [`Error::Truncated`].
    type Item = Result<DataSeg, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let list = core::mem::take(&mut self.rest);
        if list.is_empty() {
            return None;
        }
        match DataSeg::parse_prefix(list) {
            Ok((data, _)) if data.terminates(self.terminate) => None,
            Ok((data, rest)) => {
                self.rest = rest;
                Some(Ok(data))
            }
            Err(error) => Some(Err(error)),
        }
    }
}

impl FusedIterator for RecvSges<'_> {}

/// Layout of the link at the head of a shared receive queue's WQE
/// (`struct mlx5_wqe_srq_next_seg`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SrqNextSegLayout {
    /// Reserved.
    pub rsvd0: [u8; 2],
    /// Index of the next WQE.
    pub next_wqe_index: U16,
    /// Checksum, where enabled.
    pub signature: u8,
    /// Reserved.
    pub rsvd1: [u8; 11],
}

/// Link at the head of a shared receive queue's WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SrqNextSeg {
    /// Index of the next WQE.
    pub next_wqe_index: u16,
    /// Checksum, where enabled.
    pub signature: u8,
}

impl Wire for SrqNextSeg {
    type Layout = SrqNextSegLayout;

    /// Every layout is accepted.
    fn decode(layout: &SrqNextSegLayout) -> Result<Self, Error> {
        Ok(Self {
            next_wqe_index: layout.next_wqe_index.get(),
            signature: layout.signature,
        })
    }

    fn encode(&self) -> SrqNextSegLayout {
        SrqNextSegLayout {
            next_wqe_index: U16::new(self.next_wqe_index),
            signature: self.signature,
            ..FromZeros::new_zeroed()
        }
    }
}
