// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The state of one entry of a chunk.

use crate::{HmmPfn, Pfn};

/// What the device has of an entry's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing; the memory is not known.
    Empty,
    /// Mapped; it was not told of it.
    Mapped,
    /// Mapped, and perhaps a translation: it was offered one, and has not confirmed it.
    Offered,
    /// Mapped, and a translation that it has confirmed.
    Live,
    /// Mapped, and perhaps a translation, which is being taken back.
    Leaving,
    /// Mapped, and perhaps a translation, of memory that the process has given up: the device
    /// did not give it back. The entry holds a reference on the page.
    Stuck,
}

/// One entry of a chunk: a page frame, what the device may do with it, and its [`State`].
///
/// An entry that is not empty is mapped for the device, whatever that means for it: a DMA
/// mapping for one, nothing at all for one that reaches memory by the CPU.
///
/// Layout: state in bits 63:61, write in bit 60, PFN below.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// Nothing known of this memory.
    pub const EMPTY: Self = Self(0);

    const STATE_SHIFT: u32 = 61;
    const MAPPED: u64 = 1 << Self::STATE_SHIFT;
    const OFFERED: u64 = 2 << Self::STATE_SHIFT;
    const LIVE: u64 = 3 << Self::STATE_SHIFT;
    const LEAVING: u64 = 4 << Self::STATE_SHIFT;
    const STUCK: u64 = 5 << Self::STATE_SHIFT;
    const STATE_MASK: u64 = 7 << Self::STATE_SHIFT;
    const WRITE: u64 = 1 << 60;
    const PFN_MASK: u64 = Self::WRITE - 1;

    /// Entries that are looked at in one go, to see whether all of them are empty.
    const BLOCK: usize = 8;

    /// What a range fault found, about to be mapped.
    #[inline]
    pub(crate) const fn mapped(found: HmmPfn) -> Self {
        let write = if found.is_writable() { Self::WRITE } else { 0 };
        // CAST: widens.
        Self(Self::MAPPED | write | (found.pfn().0 as u64 & Self::PFN_MASK))
    }

    #[inline]
    const fn in_state(self, state: u64) -> Self {
        Self(self.0 & !Self::STATE_MASK | state)
    }

    /// The same entry, while the device is being told of it.
    #[inline]
    pub(crate) const fn offered(self) -> Self {
        self.in_state(Self::OFFERED)
    }

    /// The same entry, confirmed by the device.
    #[inline]
    pub(crate) const fn live(self) -> Self {
        self.in_state(Self::LIVE)
    }

    /// The same entry, for writing too.
    #[inline]
    pub(crate) const fn writable(self) -> Self {
        Self(self.0 | Self::WRITE)
    }

    /// The same entry, while its translation is being taken back.
    #[inline]
    pub(crate) const fn leaving(self) -> Self {
        self.in_state(Self::LEAVING)
    }

    /// The same entry, after the device did not give it back. Whoever stores it must hold a
    /// reference on the page.
    #[inline]
    pub(crate) const fn stuck(self) -> Self {
        self.in_state(Self::STUCK)
    }

    /// What the device has.
    #[inline]
    pub const fn state(self) -> State {
        match self.0 & Self::STATE_MASK {
            0 => State::Empty,
            Self::MAPPED => State::Mapped,
            Self::OFFERED => State::Offered,
            Self::LIVE => State::Live,
            Self::LEAVING => State::Leaving,
            // Nothing else is ever stored.
            _ => State::Stuck,
        }
    }

    /// Whether there is a mapping.
    #[inline]
    pub const fn is_mapped(self) -> bool {
        self.0 & Self::STATE_MASK != 0
    }

    /// Whether all of them are empty.
    #[inline]
    fn are_empty(entries: &[Self]) -> bool {
        entries.iter().fold(0, |bits, entry| bits | entry.0) == 0
    }

    /// Where the first of `entries` is for which `wanted` holds; it holds for none that is empty.
    /// These are passed over several at a time, for most entries of a chunk may be so.
    #[inline]
    pub(crate) fn position(entries: &[Self], wanted: impl Fn(Self) -> bool) -> Option<usize> {
        let mut before = 0;
        for block in entries.chunks(Self::BLOCK) {
            if !Self::are_empty(block) {
                if let Some(at) = block.iter().position(|&entry| wanted(entry)) {
                    return Some(before + at);
                }
            }
            before += block.len();
        }
        None
    }

    /// The entries among `entries` that are not empty, and where they are.
    #[inline]
    pub(crate) fn for_each_mapped(entries: &mut [Self], mut each: impl FnMut(usize, &mut Self)) {
        let mut before = 0;
        for block in entries.chunks_mut(Self::BLOCK) {
            let len = block.len();
            if !Self::are_empty(block) {
                for (at, entry) in block.iter_mut().enumerate() {
                    if entry.is_mapped() {
                        each(before + at, entry);
                    }
                }
            }
            before += len;
        }
    }

    /// Whether the device's table shows it: offered or live.
    #[inline]
    pub const fn is_shown(self) -> bool {
        matches!(self.0 & Self::STATE_MASK, Self::OFFERED | Self::LIVE)
    }

    /// Whether the device may write.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// The page frame; of use only when mapped.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        // CAST: it came from a `usize`.
        Pfn((self.0 & Self::PFN_MASK) as usize)
    }
}

impl core::fmt::Debug for Entry {
    #[inline]
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Entry")
            .field("pfn", &self.pfn().0)
            .field("state", &self.state())
            .field("writable", &self.is_writable())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Order;

    #[test]
    fn a_state_for_every_step() {
        let page = HmmPfn::present(Pfn(0x1234), true, Order(9));
        let entry = Entry::mapped(page);
        assert_eq!(Entry::EMPTY.state(), State::Empty);
        let steps = [
            (entry, State::Mapped),
            (entry.offered(), State::Offered),
            (entry.live(), State::Live),
            (entry.live().leaving(), State::Leaving),
            (entry.live().leaving().stuck(), State::Stuck),
        ];
        for (entry, state) in steps {
            assert_eq!(entry.state(), state);
            assert_eq!(entry.pfn(), Pfn(0x1234));
            assert!(entry.is_mapped() && entry.is_writable());
            assert_eq!(
                entry.is_shown(),
                matches!(state, State::Offered | State::Live)
            );
        }
    }

    #[test]
    fn empty_entries_are_passed_over() {
        let mapped = Entry::mapped(HmmPfn::present(Pfn(1), true, Order(0)));
        for len in [1, 7, 8, 9, 31] {
            for at in 0..len {
                let mut entries = [Entry::EMPTY; 31];
                let entries = &mut entries[..len];
                assert_eq!(Entry::position(entries, Entry::is_mapped), None);
                entries[len - 1] = mapped.live();
                entries[at] = mapped;
                assert_eq!(Entry::position(entries, Entry::is_mapped), Some(at));
                let shown = (at + 1 < len).then_some(len - 1);
                assert_eq!(Entry::position(entries, Entry::is_shown), shown);
                let mut seen = 0_u32;
                Entry::for_each_mapped(entries, |at, entry| {
                    seen |= 1 << at;
                    *entry = Entry::EMPTY;
                });
                assert_eq!(seen, 1 << at | 1 << (len - 1));
                assert_eq!(Entry::position(entries, |_| true), None);
            }
        }
    }

    #[test]
    fn flags_are_apart() {
        let read = Entry::mapped(HmmPfn::present(Pfn(7), false, Order(0)));
        assert!(!read.is_writable());
        let both = read.writable().live();
        assert!(both.is_writable());
        assert_eq!((both.pfn(), both.state()), (Pfn(7), State::Live));
    }
}
