// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Addresses, pages and ranges of a memory region.

use core::num::NonZeroU64;

use firmware_cmds::Iova;

/// A virtual address of the process that registered the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserVa(pub u64);

/// log2 of the size of an MR's page: 12, or 21 for `IB_ACCESS_HUGETLB` on x86-64.
///
/// # Invariants
///
/// At least [`PageShift::BASE`] and at most 30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShift(u8);

impl PageShift {
    /// The 4 KiB page in which statistics and the memory scheme count.
    pub const BASE: Self = Self(12);

    /// Returns `None` outside 12..=30.
    pub const fn new(shift: u8) -> Option<Self> {
        if shift < Self::BASE.0 || shift > 30 {
            return None;
        }
        Some(Self(shift))
    }

    /// The size of a page in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// How many 4 KiB pages make one page of this size.
    pub const fn base_pages(self) -> u64 {
        1 << (self.0 - Self::BASE.0)
    }
}

/// The number of a page within its MR, in the MR's own page size: also the index of its MTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageIndex(pub u64);

/// A run of pages of one MR; may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// The first page.
    pub first: PageIndex,
    /// How many.
    pub count: u64,
}

impl PageRun {
    /// The pages `first..end`; empty when `end` is not above `first`.
    pub const fn new(first: PageIndex, end: PageIndex) -> Self {
        Self {
            first,
            count: end.0.saturating_sub(first.0),
        }
    }

    /// The page after the last.
    pub const fn end(self) -> PageIndex {
        PageIndex(self.first.0 + self.count)
    }

    /// The pages in order.
    pub fn iter(self) -> impl Iterator<Item = PageIndex> {
        (self.first.0..self.end().0).map(PageIndex)
    }
}

/// A range of user memory that is not empty and does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaRange {
    start: UserVa,
    bytes: NonZeroU64,
}

impl VaRange {
    /// The range `start..end`, or `None` if that is empty.
    pub fn new(start: UserVa, end: UserVa) -> Option<Self> {
        let bytes = NonZeroU64::new(end.0.checked_sub(start.0)?)?;
        Some(Self { start, bytes })
    }

    /// The first byte.
    pub const fn start(self) -> UserVa {
        self.start
    }

    /// The byte after the last.
    pub const fn end(self) -> UserVa {
        // No overflow: `new` was given this value.
        UserVa(self.start.0 + self.bytes.get())
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes.get()
    }
}

/// Where an explicit MR lies: the user memory behind it and the IOVA the device sees.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// What the device calls the first byte of the MR (`ibv_reg_mr_iova`'s `iova`).
    pub iova: Iova,
    /// The first byte of the MR in the process; may lie inside a page.
    pub address: UserVa,
    /// The pages: `address` rounded down and the MR's end rounded up.
    pub pages: VaRange,
    /// The size of its pages.
    pub shift: PageShift,
    /// Whether the registration allows the device to write.
    pub writable: bool,
}

impl Placement {
    /// The user memory behind `bytes` at `at`, or `None` where any of it lies outside the MR's
    /// pages. As in the C (`pagefault_mr`), the bounds are those of the pages, not of the bytes:
    /// the device has checked the MKey's own before it asks for pages.
    pub fn exactly(&self, at: Iova, bytes: u64) -> Option<VaRange> {
        let offset = at.get().checked_sub(self.iova.get())?;
        let start = self.address.0.checked_add(offset)?;
        let range = VaRange::new(UserVa(start), UserVa(start.checked_add(bytes)?))?;

        (range.start >= self.pages.start && range.end() <= self.pages.end()).then_some(range)
    }

    /// The user memory behind `before` bytes ahead of `at`, and `bytes` from it, cut to the MR's
    /// pages: what the memory scheme asks for, which does not know where the MR ends. `None` if
    /// nothing is left.
    pub fn clamped(&self, at: Iova, before: u64, bytes: u64) -> Option<VaRange> {
        // Offsets from the MR's first byte. Saturation is clamping: the pages' own bounds follow.
        let from = at
            .get()
            .saturating_sub(before)
            .saturating_sub(self.iova.get());
        let to = at
            .get()
            .saturating_add(bytes)
            .checked_sub(self.iova.get())?;
        // A window that starts before the MR's first byte starts with its first page.
        let start = match at.get().saturating_sub(before) < self.iova.get() {
            true => self.pages.start.0,
            false => self.address.0.saturating_add(from),
        };
        let end = self.address.0.saturating_add(to);

        VaRange::new(
            UserVa(start.max(self.pages.start.0)),
            UserVa(end.min(self.pages.end().0)),
        )
    }

    /// The page that holds `va`. `va` must not lie before the MR.
    pub const fn page_of(&self, va: UserVa) -> PageIndex {
        PageIndex((va.0 - self.pages.start.0) / self.shift.bytes())
    }

    /// The pages that `range`, which must lie within the MR's pages, touches.
    pub const fn pages_of(&self, range: VaRange) -> PageRun {
        let last = UserVa(range.end().0 - 1);
        PageRun::new(
            self.page_of(range.start),
            PageIndex(self.page_of(last).0 + 1),
        )
    }

    /// The memory of `run`, which must lie within the MR; `None` if that is empty.
    pub fn va_of(&self, run: PageRun) -> Option<VaRange> {
        let start = self.pages.start.0 + run.first.0 * self.shift.bytes();
        VaRange::new(
            UserVa(start),
            UserVa(start + run.count * self.shift.bytes()),
        )
    }
}
