// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where a memory region lies: from the device's addresses to entries of its mirror.

use firmware_cmds::Iova;
use hmm_abi::{Geometry, Indices};

/// log2 of the pages of 4 KiB that statistics and the memory scheme count.
const BASE_SHIFT: u32 = 12;

/// Where an explicit MR lies: the user memory behind it and the IOVA that the device sees.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// What the device calls the first byte of the MR (`ibv_reg_mr_iova`'s `iova`).
    pub iova: Iova,
    /// The first byte of the MR in the process; may lie inside a page.
    pub address: usize,
    /// The mirror: entry `i` is MTT `i`.
    pub geometry: Geometry,
    /// Whether the registration allows the device to write.
    pub writable: bool,
}

impl Placement {
    /// The entries behind `bytes` at `at`, or `None` where any of them lies outside the MR's
    /// pages. As in the C (`pagefault_mr`), the bounds are those of the pages, not of the bytes:
    /// the device has checked the MKey's own before it asks for pages.
    #[inline]
    pub fn exactly(&self, at: Iova, bytes: u64) -> Option<Indices> {
        let offset = at.get().checked_sub(self.iova.get())?;
        let start = self.address.checked_add(usize::try_from(offset).ok()?)?;
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes != 0)?;
        self.geometry.within(start, bytes)
    }

    /// Whether an entry begins at `at`.
    pub fn begins_entry(&self, at: Iova) -> bool {
        let offset = at.get().wrapping_sub(self.iova.get());
        // CAST: widens.
        let address = (self.address as u64).wrapping_add(offset);
        address.trailing_zeros() >= self.geometry.entry_shift()
    }

    /// The entries behind `before` bytes ahead of `at`, and `bytes` from it, cut to the MR's
    /// pages: what the memory scheme asks for, which does not know where the MR ends. `None` if
    /// nothing is left.
    #[inline]
    pub fn clamped(&self, at: Iova, before: u64, bytes: u64) -> Option<Indices> {
        let pages = self.geometry.span();
        // Offsets from the MR's first byte. Saturation is clamping: the pages' own bounds follow.
        let clip = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let to = at
            .get()
            .saturating_add(bytes)
            .checked_sub(self.iova.get())?;
        let end = self.address.saturating_add(clip(to));
        // A window that starts before the MR's first byte starts with its first page.
        let from = at.get().saturating_sub(before).checked_sub(self.iova.get());
        let start = from.map_or(pages.start, |from| self.address.saturating_add(clip(from)));

        let indices = self.geometry.touched(&(start..end));
        (!indices.is_empty()).then_some(indices)
    }

    /// How many pages of 4 KiB `entries` entries have.
    #[inline]
    pub const fn base_pages(&self, entries: usize) -> u64 {
        // CAST: widens.
        (entries as u64) << (self.geometry.entry_shift() - BASE_SHIFT)
    }
}
