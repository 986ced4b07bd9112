// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MKeys: what a key lets an access do, and where its bytes are.

pub mod walk;
pub mod xlt;

use std::collections::BTreeMap;

use firmware_cmds::{AccessMode, Klm, Mkc, Mkey, Mtt, Qpn, Wire};
use serde::Serialize;

use crate::caps::LOG_MAX_MKEY;
use crate::inspect::show;
use crate::numbers::Numbers;
pub use walk::{Access, Denied, Extent, Missing, Target, WalkError};
pub use xlt::Xlt;

/// The null MKey: every access through it faults.
pub const NULL_MKEY: Mkey = Mkey::new(0x0000_0200);

/// First index handed out; lower ones belong to the special keys.
const FIRST_INDEX: u32 = 0x10;

/// An MKey.
#[derive(Clone, Debug, Serialize)]
pub struct MKey {
    /// Its context.
    #[serde(serialize_with = "show::debug")]
    pub mkc: Mkc,
    /// Its translation entries.
    pub xlt: Xlt,
    /// The umem that it translates to.
    pub umem: Option<u32>,
}

impl MKey {
    /// An MKey with room for as many octwords as its context says.
    pub fn new(mkc: Mkc) -> Self {
        Self {
            xlt: Xlt::new(mkc.translations_octword_size),
            mkc,
            umem: None,
        }
    }

    /// True if its context allows `access`.
    fn allows(&self, access: Access) -> bool {
        let rights = self.mkc.access;
        match access {
            Access::LocalRead => rights.local_read,
            Access::LocalWrite => rights.local_write,
            Access::RemoteRead => rights.remote_read,
            Access::RemoteWrite => rights.remote_write,
            Access::Atomic => rights.atomic,
        }
    }

    /// Whether this QP may use it; `None` for an access where that does not matter.
    pub fn belongs_to(&self, qpn: Option<Qpn>) -> bool {
        let own = self.mkc.qpn;
        own == Qpn::ANY || qpn.is_none_or(|qpn| qpn == own)
    }

    fn start(&self) -> u64 {
        self.mkc.start_addr.get()
    }

    /// True if `[va, va + len)` is inside the range; `len` must not be 0.
    fn covers(&self, va: u64, len: u64) -> bool {
        let Some(last) = va.checked_add(len - 1) else {
            return false;
        };
        if self.mkc.access_mode == AccessMode::Pa && self.mkc.length64 {
            return true;
        }
        // `last - start < len` and not `last < start + len`: that sum may be 2^64.
        va >= self.start() && (self.mkc.length64 || last - self.start() < self.mkc.len)
    }

    fn log_page_size(&self) -> u32 {
        u32::from(self.mkc.log_page_size.get())
    }

    fn page_mask(&self) -> u64 {
        self.mkc.log_page_size.bytes() - 1
    }

    /// The last address of the page that holds `va`.
    fn page_end(&self, va: u64) -> u64 {
        va | self.page_mask()
    }

    /// Whether `mkc`, if it were the context, would be in use and span more than the table
    /// can translate.
    pub fn too_short_for(&self, mkc: &Mkc) -> bool {
        let room = match mkc.access_mode {
            AccessMode::Mtt => self.xlt.capacity(Mtt::LEN),
            _ => self.xlt.capacity(Klm::LEN),
        };
        !mkc.free && entries_needed(mkc) > room
    }
}

/// Entries that the range needs, 0 where that cannot be said.
pub fn entries_needed(mkc: &Mkc) -> u64 {
    let log = mkc.log_page_size.get();
    let Some(last) = mkc.len.checked_sub(1).filter(|_| !mkc.length64) else {
        return 0;
    };
    match mkc.access_mode {
        AccessMode::Mtt => {
            let start = mkc.start_addr.get();
            (start.saturating_add(last) >> log) - (start >> log) + 1
        }
        AccessMode::Ksm => (last >> log) + 1,
        _ => 0,
    }
}

/// Every MKey, by index.
#[derive(Debug, Serialize)]
pub struct Mkeys {
    #[serde(flatten, serialize_with = "show::by_number")]
    by_index: BTreeMap<u32, MKey>,
    numbers: Numbers,
}

impl Default for Mkeys {
    fn default() -> Self {
        Self {
            by_index: BTreeMap::new(),
            numbers: Numbers::below(FIRST_INDEX, LOG_MAX_MKEY),
        }
    }
}

impl Mkeys {
    /// Adds an MKey and returns its index, `None` if all are in use.
    pub fn insert(&mut self, mkey: MKey) -> Option<u32> {
        let by_index = &self.by_index;
        let index = self.numbers.take(|n| by_index.contains_key(&n))?;
        self.by_index.insert(index, mkey);
        Some(index)
    }

    /// Removes an MKey; `None` if there is none.
    pub fn remove(&mut self, index: u32) -> Option<MKey> {
        self.by_index.remove(&index)
    }

    /// The MKey with this index.
    pub fn get(&self, index: u32) -> Option<&MKey> {
        self.by_index.get(&index)
    }

    /// The MKey with this index.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut MKey> {
        self.by_index.get_mut(&index)
    }

    /// Every MKey with its index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &MKey)> {
        self.by_index.iter().map(|(&index, mkey)| (index, mkey))
    }

    /// Number of MKeys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// The MKey that `key` names, if it may be used.
    fn checked(&self, key: Mkey) -> Result<&MKey, Denied> {
        let mkey = self.get(key.index().get()).ok_or(Denied::Unknown)?;
        if mkey.mkc.variant != key.variant() {
            Err(Denied::Variant)
        } else if mkey.mkc.free {
            Err(Denied::Free)
        } else {
            Ok(mkey)
        }
    }
}
