// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Shared receive queues: RMPs and XRC SRQs (`mlx5_ib/srq_cmd.c`, libmlx5 `srq.c`).

use std::collections::BTreeMap;

use firmware_cmds::{Cqn, DmaAddr, Pdn, Srqn, Xrcdn};
use serde::Serialize;

use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_SRQ;
use crate::guest::{read_be32, DmaError, GuestMemory};
use crate::inspect::show;
use crate::numbers::Numbers;

/// What is particular to one kind of SRQ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum SrqKind {
    /// A receive memory pool: completions go to the CQ of the QP.
    Rmp,
    /// An XRC SRQ: it has a CQ of its own.
    Xrc {
        /// Its XRC domain.
        #[serde(serialize_with = "show::debug")]
        xrcd: Xrcdn,
        /// Its CQ.
        #[serde(serialize_with = "show::debug")]
        cqn: Cqn,
        /// Index reported in its completions.
        user_index: u32,
    },
}

/// One shared receive queue: a linked list of WQEs in a ring of slots.
#[derive(Clone, Debug, Serialize)]
pub struct Srq {
    /// Its kind.
    pub kind: SrqKind,
    /// Domain that its buffers are checked against.
    #[serde(serialize_with = "show::debug")]
    pub pd: Pdn,
    /// Slots, as a power of two.
    pub log_size: u32,
    /// Bytes of a slot, as a power of two.
    pub log_stride: u32,
    /// Doorbell record: WQEs posted.
    #[serde(serialize_with = "show::debug")]
    pub dbr: DmaAddr,
    /// Its slots.
    pub buffer: QueueBuffer,
    /// Umems that its slots and its doorbell record are in.
    pub umems: Vec<u32>,
    /// Raise an event once fewer WQEs than this are left; 0 is off.
    pub limit: u16,
    /// Context as created, for the query.
    #[serde(skip)]
    pub context: Vec<u8>,
    consumed: u16,
    head: u16,
}

impl Srq {
    /// A queue without WQEs.
    #[must_use]
    pub fn new(
        kind: SrqKind,
        log_size: u32,
        log_stride: u32,
        dbr: DmaAddr,
        buffer: QueueBuffer,
    ) -> Self {
        Self {
            kind,
            pd: Pdn::truncate(0),
            log_size,
            log_stride,
            dbr,
            buffer,
            umems: Vec::new(),
            limit: 0,
            context: Vec::new(),
            consumed: 0,
            head: 0,
        }
    }

    /// Whether it is an XRC SRQ.
    #[must_use]
    pub fn is_xrc(&self) -> bool {
        matches!(self.kind, SrqKind::Xrc { .. })
    }

    /// Its own CQ, if it has one.
    #[must_use]
    pub fn cqn(&self) -> Option<Cqn> {
        match self.kind {
            SrqKind::Rmp => None,
            SrqKind::Xrc { cqn, .. } => Some(cqn),
        }
    }

    /// WQEs posted and not taken.
    ///
    /// # Errors
    ///
    /// If the doorbell record cannot be read.
    pub fn posted(&self, mem: &dyn GuestMemory) -> Result<u16, DmaError> {
        let [_, _, high, low] = read_be32(mem, self.dbr)?.to_be_bytes();
        Ok(u16::from_be_bytes([high, low]).wrapping_sub(self.consumed))
    }

    /// Takes the next WQE: its index and its data segments, without the next segment.
    /// `None` if none is posted.
    ///
    /// The link to the following one is read now and not earlier: libmlx5 rewrites the
    /// links of WQEs that are not posted yet.
    ///
    /// # Errors
    ///
    /// If the doorbell record or the slot cannot be read.
    pub fn take(&mut self, mem: &dyn GuestMemory) -> Result<Option<(u16, Vec<u8>)>, DmaError> {
        if self.posted(mem)? == 0 {
            return Ok(None);
        }
        let index = self.head;
        let mut slot = vec![0; 1 << self.log_stride];
        self.buffer
            .read(mem, u64::from(index) << self.log_stride, &mut slot)?;
        let next = u16::from_be_bytes([slot[2], slot[3]]);
        let last = u16::try_from((1_u32 << self.log_size) - 1).unwrap_or(u16::MAX);
        self.head = next & last;
        self.consumed = self.consumed.wrapping_add(1);
        slot.drain(..16);
        Ok(Some((index, slot)))
    }
}

/// All shared receive queues.
#[derive(Debug, Serialize)]
pub struct Srqs {
    /// By number; RMPs and XRC SRQs share one space.
    #[serde(flatten, serialize_with = "show::by_number")]
    pub queues: BTreeMap<Srqn, Srq>,
    /// Numbers for new queues.
    pub numbers: Numbers,
}

impl Default for Srqs {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            numbers: Numbers::below(0x40, LOG_MAX_SRQ),
        }
    }
}
