// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What HMM says of one CPU page.

/// A page frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pfn(pub usize);

/// How far the CPU's mapping of a page reaches: `1 << order` CPU pages that are physically
/// contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(pub u32);

/// A PFN with its flags, laid out as `enum hmm_pfn_flags` has it (`include/linux/hmm.h`): flags
/// in the top bits of a `long`, five bits of order below them, the PFN at the bottom.
///
/// It is what a range fault returns, and what the list of an `ib_umem_odp` holds
/// ([`whole`](crate::whole)). There, an entry that is valid and mapped for DMA may be in the
/// device's hands.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct HmmPfn(usize);

impl HmmPfn {
    /// Nothing is known of the page.
    pub const EMPTY: Self = Self(0);

    /// At least readable.
    pub const VALID: usize = 1 << (usize::BITS - 1);
    /// Writable; together with [`Self::VALID`].
    pub const WRITE: usize = 1 << (usize::BITS - 2);
    /// Access is impossible; without [`Self::VALID`].
    pub const ERROR: usize = 1 << (usize::BITS - 3);
    /// Mapped for DMA. HMM leaves it as it finds it.
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
    #[inline]
    pub const fn from_bits(bits: usize) -> Self {
        Self(bits)
    }

    /// The bits of the entry.
    #[inline]
    pub const fn bits(self) -> usize {
        self.0
    }

    /// What the page table of a process holds for a page.
    #[inline]
    pub const fn present(pfn: Pfn, writable: bool, order: Order) -> Self {
        let write = if writable { Self::WRITE } else { 0 };
        // CAST: at most 31, by the mask.
        let order = order.0 as usize & Self::ORDER_MASK;
        Self(Self::VALID | write | (order << Self::ORDER_SHIFT) | (pfn.0 & Self::PFN_MASK))
    }

    /// In the page table of the process.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Valid and writable.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.is_valid() && self.0 & Self::WRITE != 0
    }

    /// There is a DMA mapping.
    #[inline]
    pub const fn is_dma_mapped(self) -> bool {
        self.0 & Self::DMA_MAPPED != 0
    }

    /// The page frame; of use only when valid.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 & Self::PFN_MASK)
    }

    /// The order of the CPU's mapping.
    #[expect(clippy::cast_possible_truncation, reason = "masked to five bits")]
    #[inline]
    pub const fn order(self) -> Order {
        // CAST: at most 31, by the mask.
        Order(((self.0 >> Self::ORDER_SHIFT) & Self::ORDER_MASK) as u32)
    }

    /// What the page table says now (`found`), with the DMA mapping that the entry has; `None`
    /// if that mapping is for another page, which no invalidation leaves behind.
    ///
    /// A mapped entry keeps its write permission too. Two range faults may be valid for the same
    /// sequence, the one that found the page read-only being merged after the one that made it
    /// writable: permissions shrink by invalidation only, and an entry that has been writable
    /// for the device owes the page a dirty bit.
    #[inline]
    pub const fn refreshed(self, found: Self) -> Option<Self> {
        let found = found.0 & !Self::STICKY;
        if !self.is_dma_mapped() {
            return Some(Self(found));
        }
        if self.is_valid() && Self(found).is_valid() && self.pfn().0 == Self(found).pfn().0 {
            return Some(Self(found | (self.0 & (Self::STICKY | Self::WRITE))));
        }
        None
    }
}

impl core::fmt::Debug for HmmPfn {
    #[inline]
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HmmPfn")
            .field("pfn", &self.pfn().0)
            .field("valid", &self.is_valid())
            .field("writable", &self.is_writable())
            .field("dma_mapped", &self.is_dma_mapped())
            .field("order", &self.order().0)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: HmmPfn = HmmPfn::present(Pfn(0x1234), true, Order(9));

    fn mapped(entry: HmmPfn) -> HmmPfn {
        HmmPfn::from_bits(entry.bits() | HmmPfn::DMA_MAPPED)
    }

    #[test]
    fn fields_come_back() {
        assert!(PAGE.is_valid() && PAGE.is_writable() && !PAGE.is_dma_mapped());
        assert_eq!(PAGE.pfn(), Pfn(0x1234));
        assert_eq!(PAGE.order(), Order(9));
        assert!(!HmmPfn::from_bits(HmmPfn::WRITE).is_writable());
    }

    #[test]
    fn refresh_keeps_the_mapping_of_the_same_page() {
        let read_only = HmmPfn::present(Pfn(0x1234), false, Order(0));
        let fresh = mapped(PAGE).refreshed(read_only).unwrap();
        assert!(fresh.is_dma_mapped() && fresh.is_writable());
        let fresh = mapped(read_only).refreshed(PAGE).unwrap();
        assert!(fresh.is_dma_mapped() && fresh.is_writable());
        assert_eq!(PAGE.refreshed(read_only), Some(read_only));
        assert_eq!(HmmPfn::EMPTY.refreshed(PAGE), Some(PAGE));
    }

    #[test]
    fn refresh_takes_no_mapping_from_what_was_found() {
        assert_eq!(HmmPfn::EMPTY.refreshed(mapped(PAGE)), Some(PAGE));
    }

    #[test]
    fn refresh_refuses_another_page_under_a_mapping() {
        let other = HmmPfn::present(Pfn(0x99), true, Order(0));
        assert_eq!(mapped(PAGE).refreshed(other), None);
        assert_eq!(mapped(PAGE).refreshed(HmmPfn::EMPTY), None);
        assert_eq!(mapped(HmmPfn::EMPTY).refreshed(PAGE), None);
    }
}
