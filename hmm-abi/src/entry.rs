// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The state of one page: an HMM entry.

/// A page frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pfn(pub usize);

/// How far the CPU's mapping of a page reaches: `1 << order` CPU pages, and
/// physically contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(pub u32);

/// The entry belongs to a DMA mapping that the device did not give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck;

/// What a device has of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing, and the page is not known.
    Empty,
    /// Nothing; the page is in the page table of the process.
    Present,
    /// A DMA mapping, and perhaps the translation.
    Mapped {
        /// The translation may be for writing.
        writable: bool,
    },
    /// A DMA mapping; the translation is being taken back.
    Leaving,
    /// A DMA mapping and perhaps the translation of a page that is gone from the process.
    Stuck,
}

/// A PFN with its flags, laid out as `enum hmm_pfn_flags` has it
/// (include/linux/hmm.h): flags in the top bits of a `long`, five bits of order
/// below them, the PFN at the bottom.
///
/// | `VALID` | `DMA_MAPPED` | `ERROR` | [`State`] |
/// |---|---|---|---|
/// | 0 | 0 | any | empty |
/// | 1 | 0 | 0 | present: in the page table of the process, not visible to the device |
/// | 1 | 1 | 0 | mapped for DMA; the device may hold the translation |
/// | 1 | 1 | 1 | leaving: mapped, the translation is being taken back |
/// | 0 | 1 | any | stuck: gone from the process, but the device kept it; holds a page reference |
///
/// HMM reports a page that cannot be accessed as `ERROR` without `VALID`, so that a
/// valid entry is free to say something else with it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(usize);

impl Entry {
    /// Nothing known of this page.
    pub const EMPTY: Self = Self(0);

    /// At least readable.
    pub const VALID: usize = 1 << (usize::BITS - 1);
    /// Writable; together with [`Self::VALID`].
    pub const WRITE: usize = 1 << (usize::BITS - 2);
    /// Access is impossible, or in a mapped entry: leaving.
    pub const ERROR: usize = 1 << (usize::BITS - 3);
    /// Mapped for DMA.
    pub const DMA_MAPPED: usize = 1 << (usize::BITS - 4);
    /// Peer-to-peer memory that is reached through the host bridge.
    pub const P2PDMA: usize = 1 << (usize::BITS - 5);
    /// Peer-to-peer memory that is reached by its bus address.
    pub const P2PDMA_BUS: usize = 1 << (usize::BITS - 6);
    /// Bit position of the order.
    pub const ORDER_SHIFT: u32 = usize::BITS - 11;

    const ORDER_MASK: usize = 0x1f;
    const PFN_MASK: usize = (1 << Self::ORDER_SHIFT) - 1;
    /// Properties of the DMA mapping, not of the page table.
    const STICKY: usize = Self::DMA_MAPPED | Self::P2PDMA | Self::P2PDMA_BUS;

    /// The entry with exactly these bits.
    pub const fn from_bits(bits: usize) -> Self {
        Self(bits)
    }

    /// The bits of the entry.
    pub const fn bits(self) -> usize {
        self.0
    }

    /// What the page table of a process holds for a page.
    pub const fn present(pfn: Pfn, writable: bool, order: Order) -> Self {
        let write = if writable { Self::WRITE } else { 0 };
        // CAST: at most 31, by the mask.
        let order = order.0 as usize & Self::ORDER_MASK;
        Self(Self::VALID | write | (order << Self::ORDER_SHIFT) | (pfn.0 & Self::PFN_MASK))
    }

    /// In the page table of the process.
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Valid and writable.
    pub const fn is_writable(self) -> bool {
        self.is_valid() && self.0 & Self::WRITE != 0
    }

    /// There is a DMA mapping; the device may hold the translation.
    pub const fn is_dma_mapped(self) -> bool {
        self.0 & Self::DMA_MAPPED != 0
    }

    /// What the device has of the page.
    pub const fn state(self) -> State {
        match (self.is_valid(), self.is_dma_mapped()) {
            (false, false) => State::Empty,
            (true, false) => State::Present,
            (true, true) if self.0 & Self::ERROR != 0 => State::Leaving,
            (true, true) => State::Mapped {
                writable: self.is_writable(),
            },
            (false, true) => State::Stuck,
        }
    }

    /// The page frame; of use only when valid or stuck.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 & Self::PFN_MASK)
    }

    /// The order of the CPU's mapping.
    #[expect(clippy::cast_possible_truncation, reason = "masked to five bits")]
    pub const fn order(self) -> Order {
        // CAST: at most 31, by the mask.
        Order(((self.0 >> Self::ORDER_SHIFT) & Self::ORDER_MASK) as u32)
    }

    /// What the page table says now (`found`), with the DMA mapping that the entry has.
    ///
    /// A mapped entry keeps its write permission too. Two range faults may be valid
    /// for the same sequence, the one that found the page read-only being merged
    /// after the one that made it writable: permissions shrink by invalidation only,
    /// and an entry that has been writable for the device owes the page a dirty bit.
    ///
    /// # Errors
    ///
    /// [`Stuck`] when the mapping is for another page than the one found. That is
    /// so after a failed take-back only: otherwise the invalidation that moved the
    /// page has removed the mapping.
    pub const fn refreshed(self, found: Self) -> Result<Self, Stuck> {
        let found = found.0 & !Self::STICKY;
        if !self.is_dma_mapped() {
            return Ok(Self(found));
        }
        if self.is_valid() && Self(found).is_valid() && self.pfn().0 == Self(found).pfn().0 {
            return Ok(Self(found | (self.0 & (Self::STICKY | Self::WRITE))));
        }
        Err(Stuck)
    }

    /// The entry, mapped, while its translation is being taken back.
    #[must_use]
    pub const fn leaving(self) -> Self {
        Self(self.0 | Self::ERROR)
    }

    /// The entry, mapped, after the device would not give it back. The write flag
    /// stays: the device may still dirty the page. Whoever stores it must hold a
    /// reference on the page; [`release`](crate::release()) drops it.
    #[must_use]
    pub const fn stuck(self) -> Self {
        Self(self.0 & !(Self::VALID | Self::ERROR))
    }

    /// A stuck entry, made valid once more so that it can be unmapped.
    pub(crate) const fn unstuck(self) -> Self {
        Self(self.0 | Self::VALID)
    }
}

impl core::fmt::Debug for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Entry")
            .field("pfn", &self.pfn().0)
            .field("state", &self.state())
            .field("writable", &self.is_writable())
            .field("order", &self.order().0)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Entry = Entry::present(Pfn(0x1234), true, Order(9));

    fn mapped(entry: Entry) -> Entry {
        Entry::from_bits(entry.bits() | Entry::DMA_MAPPED)
    }

    #[test]
    fn fields_come_back() {
        assert!(PAGE.is_valid() && PAGE.is_writable() && !PAGE.is_dma_mapped());
        assert_eq!(PAGE.pfn(), Pfn(0x1234));
        assert_eq!(PAGE.order(), Order(9));
        assert!(!Entry::from_bits(Entry::WRITE).is_writable());
    }

    #[test]
    fn refresh_keeps_the_mapping_of_the_same_page() {
        let read_only = Entry::present(Pfn(0x1234), false, Order(0));
        let fresh = mapped(PAGE).refreshed(read_only).unwrap();
        assert!(fresh.is_dma_mapped() && fresh.is_writable());
        let fresh = mapped(read_only).refreshed(PAGE).unwrap();
        assert!(fresh.is_dma_mapped() && fresh.is_writable());
        assert_eq!(PAGE.refreshed(read_only), Ok(read_only));
        assert_eq!(Entry::EMPTY.refreshed(PAGE), Ok(PAGE));
    }

    #[test]
    fn a_state_for_every_entry() {
        assert_eq!(Entry::EMPTY.state(), State::Empty);
        assert_eq!(Entry::from_bits(Entry::ERROR).state(), State::Empty);
        assert_eq!(PAGE.state(), State::Present);
        let entry = mapped(PAGE);
        assert_eq!(entry.state(), State::Mapped { writable: true });
        assert_eq!(entry.leaving().state(), State::Leaving);
        assert_eq!(entry.leaving().stuck().state(), State::Stuck);
        assert_eq!(entry.leaving().stuck().pfn(), PAGE.pfn());
        assert_eq!(entry.leaving().stuck().unstuck(), entry);
    }

    #[test]
    fn refresh_takes_no_mapping_from_what_was_found() {
        assert_eq!(Entry::EMPTY.refreshed(mapped(PAGE)), Ok(PAGE));
    }

    #[test]
    fn refresh_refuses_another_page_under_a_mapping() {
        let other = Entry::present(Pfn(0x99), true, Order(0));
        assert_eq!(mapped(PAGE).refreshed(other), Err(Stuck));
        assert_eq!(mapped(PAGE).refreshed(Entry::EMPTY), Err(Stuck));
        assert_eq!(mapped(PAGE).stuck().refreshed(PAGE), Err(Stuck));
    }
}
