// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation walk: from (MKey, virtual address) to IOVAs, or to the page that
//! is missing, or to the rule that forbids the access.
//!
//! An indirect MKey (KLMs, KSMs) refers to others by their local keys. Its own rights say what a
//! peer may do; of those below it the local rights count, so that a window may open to a peer
//! what the region does not.

use std::fmt;

use firmware_cmds::{AccessMode, DmaAddr, Klm, Ksm, Mkey, Mtt, Pdn, Qpn, Stride, StrideBlock};
use serde::Serialize;

use super::{MKey, Mkeys, NULL_MKEY};
use crate::caps::MAX_INDIRECTION;
use crate::inspect::show;

/// What an access does, and from where it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Access {
    /// Gather of a local work request.
    LocalRead,
    /// Scatter of a local work request.
    LocalWrite,
    /// Source of an RDMA READ.
    RemoteRead,
    /// Destination of an RDMA WRITE.
    RemoteWrite,
    /// Target of an atomic.
    Atomic,
}

impl Access {
    /// True if memory is written.
    pub fn writes(self) -> bool {
        !matches!(self, Self::LocalRead | Self::RemoteRead)
    }

    /// What it is to an MKey that an indirect one refers to.
    fn below(self) -> Self {
        if self.writes() {
            Self::LocalWrite
        } else {
            Self::LocalRead
        }
    }
}

/// One access of a QP to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The key the work request or the packet names.
    #[serde(serialize_with = "show::debug")]
    pub key: Mkey,
    /// Virtual address in the space of that MKey.
    pub va: u64,
    /// Bytes; 0 is an access to nothing and always allowed.
    pub len: u64,
    /// Kind of access.
    pub access: Access,
    /// Protection domain to compare with, `None` to skip the comparison.
    #[serde(serialize_with = "show::debug")]
    pub pd: Option<Pdn>,
    /// QP that accesses, for MKeys that belong to one; `None` if that does not matter.
    #[serde(serialize_with = "show::debug")]
    pub qpn: Option<Qpn>,
}

/// A contiguous piece of memory that an access resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it is.
    pub iova: DmaAddr,
    /// Bytes.
    pub len: u64,
    /// The MKey whose entry gave the IOVA, for the journal.
    pub key: Mkey,
    /// Virtual address in the space of that MKey, for the journal.
    pub va: u64,
}

/// A translation entry that lacks the bit the access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The MKey whose entry it is: below an implicit MR, its child or null MKey.
    #[serde(serialize_with = "show::debug")]
    pub key: Mkey,
    /// First missing address in the space of that MKey.
    pub va: u64,
    /// Bytes from `va` on that are missing without a gap and that the access needs.
    pub len: u64,
    /// Bytes of the access before `va`.
    pub done: u64,
}

/// Why an access is forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No MKey has this index.
    Unknown,
    /// The low byte of the key is another.
    Variant,
    /// The MKey is free.
    Free,
    /// Another protection domain.
    Pd,
    /// The MKey belongs to another QP.
    Qpn,
    /// A right is missing.
    Permission,
    /// Outside the MKey's range.
    Range,
    /// The range is larger than the translation table.
    Table,
    /// MKeys refer to each other too deeply.
    Depth,
    /// A KSM key, or what one of its entries refers to, does not start at a page of its size.
    Unaligned,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown MKey",
            Self::Variant => "MKey variant mismatch",
            Self::Free => "MKey is free",
            Self::Pd => "protection domain mismatch",
            Self::Qpn => "MKey of another QP",
            Self::Permission => "no permission",
            Self::Range => "out of range",
            Self::Table => "beyond the translation table",
            Self::Depth => "MKeys nested too deeply",
            Self::Unaligned => "KSM not aligned to its page size",
        })
    }
}

/// Why an access did not resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A page fault.
    Missing(Missing),
    /// A protection error.
    Denied(Denied),
}

impl From<Denied> for WalkError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Mkeys {
    /// Resolves the first `limit` bytes of `target`, or all if it is shorter, and
    /// appends the pieces to `out`. Range and rights are checked for the whole.
    ///
    /// # Errors
    ///
    /// [`WalkError`]; `out` then holds the pieces before the one in question.
    pub fn resolve(
        &self,
        target: &Target,
        limit: u64,
        out: &mut Vec<Extent>,
    ) -> Result<(), WalkError> {
        if target.len == 0 {
            return Ok(());
        }
        let mut walk = Walk {
            table: self,
            access: target.access,
            pd: target.pd,
            qpn: target.qpn,
            limit,
            done: 0,
            out,
        };
        walk.mkey(target.key, target.va, target.len, 0)
    }
}

struct Walk<'a> {
    table: &'a Mkeys,
    access: Access,
    pd: Option<Pdn>,
    qpn: Option<Qpn>,
    /// Bytes wanted; what lies beyond is looked at only to size a fault.
    limit: u64,
    /// Bytes resolved.
    done: u64,
    out: &'a mut Vec<Extent>,
}

impl Walk<'_> {
    /// Resolves `len` bytes from `va` on behind `key`, which `depth` indirect MKeys led to.
    fn mkey(&mut self, key: Mkey, va: u64, len: u64, depth: u64) -> Result<(), WalkError> {
        if key == NULL_MKEY {
            return Err(WalkError::Missing(Missing {
                key,
                va,
                len,
                done: self.done,
            }));
        }
        let mkey = self.table.checked(key)?;
        let mode = mkey.mkc.access_mode;
        if mode != AccessMode::Pa && self.pd.is_some_and(|pd| pd != mkey.mkc.pd) {
            return Err(Denied::Pd.into());
        }
        if !mkey.belongs_to(self.qpn) {
            return Err(Denied::Qpn.into());
        }
        let access = if depth == 0 {
            self.access
        } else {
            self.access.below()
        };
        if !mkey.allows(access) {
            return Err(Denied::Permission.into());
        }
        if !mkey.covers(va, len) {
            return Err(Denied::Range.into());
        }
        match mode {
            AccessMode::Pa => {
                let len = len.min(self.limit - self.done);
                self.push(key, va, DmaAddr::new(va), len);
                Ok(())
            }
            AccessMode::Mtt => self.mtts(mkey, key, va, len),
            AccessMode::Ksm | AccessMode::Klms if depth == MAX_INDIRECTION => {
                Err(Denied::Depth.into())
            }
            AccessMode::Ksm => self.ksms(mkey, va, len, depth),
            AccessMode::Klms => self.klms(mkey, va, len, depth),
            AccessMode::SwIcm | AccessMode::Memic | AccessMode::Crossing => {
                Err(Denied::Table.into())
            }
        }
    }

    fn mtts(&mut self, mkey: &MKey, key: Mkey, va: u64, len: u64) -> Result<(), WalkError> {
        let end = va + (len - 1);
        let mut at = va;
        loop {
            let page_end = mkey.page_end(at);
            let piece = (end.min(page_end) - at + 1).min(self.limit - self.done);
            let mtt = self.mtt(mkey, at).ok_or(Denied::Table)?;
            if !self.usable(mtt) {
                let missing_end = self.missing_end(mkey, at, end);
                return Err(WalkError::Missing(Missing {
                    key,
                    va: at,
                    len: (missing_end - at).saturating_add(1),
                    done: self.done,
                }));
            }
            let offset = at & mkey.page_mask();
            self.push(
                key,
                at,
                DmaAddr::new(mtt.addr().get().wrapping_add(offset)),
                piece,
            );
            if self.done == self.limit || page_end >= end {
                return Ok(());
            }
            at = page_end + 1;
        }
    }

    fn mtt(&self, mkey: &MKey, va: u64) -> Option<Mtt> {
        let log = mkey.log_page_size();
        mkey.xlt.entry((va >> log) - (mkey.start() >> log))
    }

    fn usable(&self, mtt: Mtt) -> bool {
        if self.access.writes() {
            mtt.access().write
        } else {
            mtt.access().read
        }
    }

    /// The last byte, at most `end`, up to which nothing from `at` on is usable.
    fn missing_end(&self, mkey: &MKey, at: u64, end: u64) -> u64 {
        let mut last = mkey.page_end(at).min(end);
        while last < end {
            match self.mtt(mkey, last + 1) {
                Some(mtt) if !self.usable(mtt) => last = mkey.page_end(last + 1).min(end),
                _ => break,
            }
        }
        last
    }

    fn ksms(&mut self, mkey: &MKey, va: u64, len: u64, depth: u64) -> Result<(), WalkError> {
        if mkey.start() & mkey.page_mask() != 0 {
            return Err(Denied::Unaligned.into());
        }
        let end = va + (len - 1);
        let mut at = va;
        loop {
            let offset = at - mkey.start();
            let index = offset >> mkey.log_page_size();
            let within = offset & mkey.page_mask();
            let entry: Ksm = mkey.xlt.entry(index).ok_or(Denied::Table)?;
            if entry.va.get() & mkey.page_mask() != 0 {
                return Err(Denied::Unaligned.into());
            }
            let left = end - at;
            let room = mkey.page_mask() - within;
            let piece = left.min(room) + 1;
            let target = entry.va.get() | within;
            self.mkey(entry.key, target, piece, depth + 1)?;
            if self.done == self.limit || left <= room {
                return Ok(());
            }
            at += piece;
        }
    }

    /// A list of KLMs, in which strided blocks may stand.
    fn klms(&mut self, mkey: &MKey, va: u64, len: u64, depth: u64) -> Result<(), WalkError> {
        let mut skip = va - mkey.start();
        let mut left = len;
        let mut index = 0;
        while let Some(entry) = mkey.xlt.entry::<Klm>(index) {
            let block = mkey.xlt.entry::<StrideBlock>(index);
            index += 1;
            let size = match &block {
                Some(block) => block.bytes(),
                None => u64::from(entry.bcount),
            };
            let piece = left.min(size.saturating_sub(skip));
            if piece > 0 {
                match &block {
                    Some(block) => self.strides(mkey, index, block, skip, piece, depth)?,
                    None => {
                        let target = entry.va.get().wrapping_add(skip);
                        self.mkey(entry.key, target, piece, depth + 1)?;
                    }
                }
                left -= piece;
            }
            if left == 0 || self.done == self.limit {
                return Ok(());
            }
            skip = skip.saturating_sub(size);
            index += block.map_or(0, |block| u64::from(block.num_entries));
        }
        Err(Denied::Table.into())
    }

    /// Bytes `skip..skip + left` of a strided block whose entries start at index `first`.
    fn strides(
        &mut self,
        mkey: &MKey,
        first: u64,
        block: &StrideBlock,
        skip: u64,
        mut left: u64,
        depth: u64,
    ) -> Result<(), WalkError> {
        let cycle = u64::from(block.bcount_per_cycle);
        let mut repetition = skip / cycle;
        let mut skip = skip % cycle;
        while left > 0 {
            let before = left;
            for index in first..first + u64::from(block.num_entries) {
                let entry: Stride = mkey.xlt.entry(index).ok_or(Denied::Table)?;
                let size = u64::from(entry.bcount);
                let piece = left.min(size.saturating_sub(skip));
                if piece > 0 {
                    let start = u64::from(entry.stride).wrapping_mul(repetition);
                    let target = entry.va.get().wrapping_add(start).wrapping_add(skip);
                    self.mkey(entry.key, target, piece, depth + 1)?;
                    left -= piece;
                }
                skip = skip.saturating_sub(size);
                if left == 0 || self.done == self.limit {
                    return Ok(());
                }
            }
            // The entries hold less than a repetition is said to have.
            if before == left || skip > 0 {
                return Err(Denied::Table.into());
            }
            repetition += 1;
        }
        Ok(())
    }

    fn push(&mut self, key: Mkey, va: u64, iova: DmaAddr, len: u64) {
        self.done += len;
        if let Some(last) = self.out.last_mut() {
            let adjacent = last.key == key
                && last.va.wrapping_add(last.len) == va
                && last.iova.get().wrapping_add(last.len) == iova.get();
            if adjacent {
                last.len += len;
                return;
            }
        }
        self.out.push(Extent { iova, len, key, va });
    }
}
