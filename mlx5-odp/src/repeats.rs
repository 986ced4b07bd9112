// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Telling a device that cannot go on from one that asked twice.
//!
//! The memory scheme does not say whether the device reads or writes. On a read-only mapping the
//! driver can only publish a read translation; a device that wanted to write faults again at once,
//! and would so for ever. But a fault on a page that is readable already may also have been raised
//! just before it became so, by any number of QPs. Those faults run out; the others do not. And
//! whenever the page has been taken away and given back, it all begins anew.

use firmware_cmds::Mkey;

use crate::{PageIndex, PageRun};

/// Fewer repetitions than this are never conclusive.
const ENOUGH: u32 = 32;

/// Nor are repetitions over a shorter time than this, in milliseconds.
const LONG: u64 = 1000;

/// A page that has been quiet for so long, in milliseconds, starts anew.
const QUIET: u64 = 10_000;

#[derive(Clone, Copy)]
struct Entry {
    mkey: Mkey,
    page: PageIndex,
    count: u32,
    since: u64,
    last: u64,
}

impl Default for Repeats {
    fn default() -> Self {
        Self::new()
    }
}

/// Pages on which the device lately faulted although it could read them.
///
/// It holds a few; when more pages repeat at a time, those that are left out are noticed when
/// others have got their error.
pub struct Repeats {
    entries: [Option<Entry>; 16],
}

impl Repeats {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            entries: [None; 16],
        }
    }

    /// Nothing is noted.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
    }

    /// Forgets what was noted of `pages`.
    pub fn forget(&mut self, mkey: Mkey, pages: PageRun) {
        let gone =
            |entry: &Entry| entry.mkey == mkey && (pages.first..pages.end()).contains(&entry.page);
        for slot in &mut self.entries {
            if slot.as_ref().is_some_and(gone) {
                *slot = None;
            }
        }
    }

    /// Notes one more fault on `page` at `now`, in milliseconds of a clock that does not go back.
    /// Returns true, and forgets the page, once that cannot be explained by earlier faults.
    pub fn note(&mut self, mkey: Mkey, page: PageIndex, now: u64) -> bool {
        let quiet = |entry: &Entry| now.saturating_sub(entry.last) > QUIET;
        let same = |entry: &Entry| entry.mkey == mkey && entry.page == page;
        for slot in &mut self.entries {
            if slot.as_ref().is_some_and(quiet) {
                *slot = None;
            }
        }

        let found = self
            .entries
            .iter()
            .position(|slot| slot.as_ref().is_some_and(same))
            .or_else(|| self.entries.iter().position(Option::is_none));
        let Some(slot) = found.and_then(|i| self.entries.get_mut(i)) else {
            return false;
        };
        let entry = slot.get_or_insert(Entry {
            mkey,
            page,
            count: 0,
            since: now,
            last: now,
        });
        entry.count += 1;
        entry.last = now;

        let certain = entry.count >= ENOUGH && now.saturating_sub(entry.since) >= LONG;
        if certain {
            *slot = None;
        }
        certain
    }
}
