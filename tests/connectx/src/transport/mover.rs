// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Moves the bytes of a message from one list of segments to another.
//!
//! A message moves in chunks. The translations of a chunk, of source and of
//! destination, are looked up and used within one step of the device, and are
//! looked up again for the next chunk: a UMR never completes between the two, so
//! no access goes through a translation that a completed UMR took back.

use std::ops::Range;

use firmware_cmds::{Mkey, Pdn, Qpn};
use serde::Serialize;

use crate::counters::Counters;
use crate::device::Device;
use crate::guest::{DmaError, GuestMemory};
use crate::inspect::show;
use crate::mkey::{Access, Denied, Extent, Missing, Mkeys, Target, WalkError};

/// The most bytes that move in one step.
pub const CHUNK: u64 = 256 << 10;

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Segment {
    /// Memory behind an MKey.
    Memory {
        /// The key.
        #[serde(serialize_with = "show::debug")]
        key: Mkey,
        /// First address.
        va: u64,
        /// Bytes.
        len: u64,
    },
    /// Bytes that came with the work request.
    Inline(Vec<u8>),
}

impl Segment {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory { len, .. } => *len,
            Self::Inline(bytes) => crate::guest::to_u64(bytes.len()),
        }
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of a whole list.
pub fn total(list: &[Segment]) -> u64 {
    list.iter().map(Segment::len).sum()
}

/// One end of a transfer.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// What it consists of.
    pub list: &'a [Segment],
    /// How memory is accessed.
    pub access: Access,
    /// Protection domain that keys must belong to, `None` for any.
    pub pd: Option<Pdn>,
    /// QP that accesses it.
    pub qpn: Qpn,
}

/// What keeps an end from being accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A page fault; the target is what the message still needs of the segment that it was
    /// met in. [`Missing::done`] counts from where the chunk begins.
    Fault(Target, Missing),
    /// A protection error.
    Denied(Target, Denied),
    /// The IOVA behind a valid translation cannot be reached.
    Dma(Extent, DmaError),
}

impl Obstacle {
    /// What keeps `target` from being accessed.
    pub(super) fn new(target: Target, error: WalkError) -> Self {
        match error {
            WalkError::Missing(missing) => Self::Fault(target, missing),
            WalkError::Denied(denied) => Self::Denied(target, denied),
        }
    }

    /// The same, `bytes` further on in the chunk.
    fn behind(mut self, bytes: u64) -> Self {
        if let Self::Fault(_, missing) = &mut self {
            missing.done += bytes;
        }
        self
    }
}

/// The end that could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The bytes could not be read.
    Source(Obstacle),
    /// The bytes could not be written.
    Destination(Obstacle),
}

enum Piece<'a> {
    Memory(Extent),
    Inline(&'a [u8]),
}

/// Resolves bytes `range` of `end`. Of what follows only the bytes up to `total`, which the
/// message needs, are looked at: a segment may be larger than the rest of the message.
fn pieces<'a>(
    mkeys: &Mkeys,
    end: &End<'a>,
    range: Range<u64>,
    total: u64,
) -> Result<Vec<Piece<'a>>, Obstacle> {
    let mut pieces = Vec::new();
    let mut extents = Vec::new();
    let mut skip = range.start;
    let len = range.end - range.start;
    let mut left = len;
    let mut needed = total - range.start;
    for segment in end.list {
        if left == 0 {
            break;
        }
        let size = segment.len();
        if skip >= size {
            skip -= size;
            continue;
        }
        let rest = (size - skip).min(needed);
        match segment {
            Segment::Memory { key, va, .. } => {
                let target = Target {
                    key: *key,
                    va: va.wrapping_add(skip),
                    len: rest,
                    access: end.access,
                    pd: end.pd,
                    qpn: Some(end.qpn),
                };
                mkeys
                    .resolve(&target, left.min(rest), &mut extents)
                    .map_err(|error| Obstacle::new(target, error).behind(len - left))?;
                pieces.extend(extents.drain(..).map(Piece::Memory));
            }
            Segment::Inline(bytes) => {
                let from = usize::try_from(skip).unwrap_or(usize::MAX);
                let take = usize::try_from(left.min(rest)).unwrap_or(usize::MAX);
                pieces.push(Piece::Inline(&bytes[from..from + take]));
            }
        }
        left -= left.min(rest);
        needed -= rest;
        skip = 0;
    }
    Ok(pieces)
}

impl Device {
    /// Moves the next chunk, at most `limit` of bytes `done..` of `total`, and returns its
    /// length.
    ///
    /// # Errors
    ///
    /// [`Blocked`]. Nothing was written unless the obstacle is [`Obstacle::Dma`].
    pub(super) fn move_chunk(
        &mut self,
        source: &End<'_>,
        destination: &End<'_>,
        limit: u64,
        done: u64,
        total: u64,
    ) -> Result<u64, Blocked> {
        let len = limit.min(total - done);
        let chunk = done..done + len;
        let from = pieces(&self.mkeys, source, chunk.clone(), total).map_err(Blocked::Source)?;
        let to = pieces(&self.mkeys, destination, chunk, total).map_err(Blocked::Destination)?;
        let buffer = Self::read_pieces(&*self.mem, &mut self.counters, &from, len);
        let mut buffer = buffer.map_err(Blocked::Source)?;
        let mut rest = &mut buffer[..];
        for piece in &to {
            if let Piece::Memory(extent) = piece {
                let (now, later) = split(rest, extent.len);
                if let Err(error) = self.mem.write(extent.iova, now) {
                    return Err(Blocked::Destination(Obstacle::Dma(*extent, error)));
                }
                self.counters.bytes_written += extent.len;
                rest = later;
            }
        }
        Ok(len)
    }
}

impl Device {
    /// The first `len` bytes of an end.
    ///
    /// # Errors
    ///
    /// What keeps them from being read.
    pub(super) fn gather(&mut self, end: &End<'_>, len: u64) -> Result<Vec<u8>, Obstacle> {
        let from = pieces(&self.mkeys, end, 0..len, len)?;
        Self::read_pieces(&*self.mem, &mut self.counters, &from, len)
    }

    fn read_pieces(
        mem: &dyn GuestMemory,
        counters: &mut Counters,
        from: &[Piece<'_>],
        len: u64,
    ) -> Result<Vec<u8>, Obstacle> {
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let mut rest = &mut buffer[..];
        for piece in from {
            rest = match piece {
                Piece::Memory(extent) => {
                    let (now, later) = split(rest, extent.len);
                    mem.read(extent.iova, now)
                        .map_err(|error| Obstacle::Dma(*extent, error))?;
                    counters.bytes_read += extent.len;
                    later
                }
                Piece::Inline(bytes) => {
                    let (now, later) = rest.split_at_mut(bytes.len());
                    now.copy_from_slice(bytes);
                    later
                }
            };
        }
        Ok(buffer)
    }

    /// Whether the first `len` bytes of an end could be accessed now.
    pub(super) fn probe(&self, end: &End<'_>, len: u64) -> Result<(), Obstacle> {
        pieces(&self.mkeys, end, 0..len, len).map(drop)
    }
}

fn split(bytes: &mut [u8], at: u64) -> (&mut [u8], &mut [u8]) {
    bytes.split_at_mut(usize::try_from(at).unwrap_or(usize::MAX))
}
