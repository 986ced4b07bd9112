// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Addresses, entries, windows and chunks of one mirror.

use core::ops::Range;

use crate::HmmPfn;

/// The most CPU pages that one range fault fills, unless one entry is larger: 2 MiB of 4 KiB
/// pages.
pub const WINDOW_PAGES: usize = 512;

/// The fewest entries of a chunk, unless the mirror has fewer: what a device rewrites together
/// ([`Device::GRANULE`](crate::Device::GRANULE)) must be of one chunk.
pub const CHUNK_ENTRIES: usize = 16;

/// A range of process addresses in bytes, the end exclusive.
pub type Span = Range<usize>;

/// The number of an entry in its mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Index(pub usize);

/// Consecutive entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indices {
    first: usize,
    end: usize,
}

impl Indices {
    /// The entries `range`.
    #[inline]
    pub const fn new(range: Range<usize>) -> Self {
        Self {
            first: range.start,
            end: if range.end < range.start {
                range.start
            } else {
                range.end
            },
        }
    }

    /// The first entry.
    #[inline]
    pub const fn first(self) -> Index {
        Index(self.first)
    }

    /// One past the last entry.
    #[inline]
    pub const fn end(self) -> Index {
        Index(self.end)
    }

    /// How many entries.
    #[inline]
    pub const fn len(self) -> usize {
        self.end - self.first
    }

    /// No entry at all.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.first == self.end
    }

    /// Every entry, in order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Index> {
        (self.first..self.end).map(Index)
    }
}

/// The number of a chunk in its mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkIndex(pub usize);

/// Consecutive entries of one chunk, counted from its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    first: u16,
    end: u16,
}

impl Slots {
    /// No slot.
    pub const NONE: Self = Self { first: 0, end: 0 };

    /// The slots `range`, or as many of them as a chunk can have.
    #[inline]
    pub fn new(range: Range<usize>) -> Self {
        let clip = |slot| u16::try_from(slot).unwrap_or(u16::MAX);
        let (first, end) = (clip(range.start), clip(range.end));
        Self {
            first,
            end: end.max(first),
        }
    }

    /// As a range, to index a chunk's entries with.
    #[inline]
    pub fn range(self) -> Range<usize> {
        usize::from(self.first)..usize::from(self.end)
    }

    /// The first slot.
    #[inline]
    pub fn first(self) -> usize {
        usize::from(self.first)
    }

    /// One past the last slot.
    #[inline]
    pub fn end(self) -> usize {
        usize::from(self.end)
    }

    /// How many.
    #[inline]
    pub fn len(self) -> usize {
        usize::from(self.end - self.first)
    }

    /// Whether `slot` is one of them.
    #[inline]
    pub fn holds(self, slot: usize) -> bool {
        self.range().contains(&slot)
    }

    /// No slot at all.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.first == self.end
    }
}

/// Why a range cannot be mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// The range wraps around the address space.
    Overflow,
    /// The range holds no entry.
    Empty,
}

/// The range of a mirror and the size of its entries.
///
/// # Invariants
///
/// `start` and `end` are multiples of the entry size, `start < end`, and
/// `page_shift <= entry_shift`. `chunk_shift` follows from these two.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    start: usize,
    end: usize,
    page_shift: u8,
    entry_shift: u8,
    /// Entries of a chunk, as a power of two.
    chunk_shift: u8,
}

/// A piece of a mirror for one range fault: whole entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The addresses.
    pub span: Span,
    /// The entries.
    pub indices: Indices,
}

impl Geometry {
    /// The smallest mirror that covers `length` bytes from `address`, with entries
    /// of `1 << entry_shift` bytes on a CPU with pages of `1 << page_shift` bytes.
    ///
    /// A length of 0 in the middle of an entry covers that entry.
    ///
    /// # Errors
    ///
    /// [`GeometryError::Overflow`] when the end or its rounding up wraps, or the end
    /// is address 0; [`GeometryError::Empty`] when no entry is covered.
    #[inline]
    pub fn cover(
        address: usize,
        length: usize,
        page_shift: u32,
        entry_shift: u32,
    ) -> Result<Self, GeometryError> {
        let mask = (1_usize << entry_shift) - 1;
        let end = address
            .checked_add(length)
            .and_then(|end| end.checked_add(mask))
            .ok_or(GeometryError::Overflow)?;
        let (start, end) = (address & !mask, end & !mask);
        if end == 0 {
            return Err(GeometryError::Overflow);
        }
        Self::of_span(start..end, page_shift, entry_shift).ok_or(GeometryError::Empty)
    }

    /// The mirror of exactly `span`, or `None` when `span` is empty or not of whole
    /// entries.
    #[inline]
    pub fn of_span(span: Span, page_shift: u32, entry_shift: u32) -> Option<Self> {
        let mask = (1_usize << entry_shift) - 1;
        let whole = span.start & mask == 0 && span.end & mask == 0;
        if !whole || span.start >= span.end || page_shift > entry_shift {
            return None;
        }
        let window = WINDOW_PAGES.trailing_zeros();
        let least = CHUNK_ENTRIES.trailing_zeros();
        let chunk_shift = window.saturating_sub(entry_shift - page_shift).max(least);
        // INVARIANT: just checked, and calculated.
        Some(Self {
            start: span.start,
            end: span.end,
            page_shift: u8::try_from(page_shift).ok()?,
            entry_shift: u8::try_from(entry_shift).ok()?,
            chunk_shift: u8::try_from(chunk_shift).ok()?,
        })
    }

    /// The addresses of the mirror.
    #[inline]
    pub const fn span(&self) -> Span {
        self.start..self.end
    }

    /// All entries of the mirror.
    #[inline]
    pub const fn indices(&self) -> Indices {
        Indices::new(0..(self.end - self.start) >> self.entry_shift)
    }

    /// Bytes of one entry, as a power of two.
    #[inline]
    pub const fn entry_shift(&self) -> u32 {
        // CAST: widens.
        self.entry_shift as u32
    }

    /// CPU pages of one entry.
    #[inline]
    pub const fn pages_per_entry(&self) -> usize {
        1 << (self.entry_shift - self.page_shift)
    }

    /// The order of a mapping that fills one entry.
    #[inline]
    pub(crate) const fn entry_order(&self) -> u32 {
        // CAST: widens.
        (self.entry_shift - self.page_shift) as u32
    }

    /// The entries that `span` touches, partly or wholly, clipped to the mirror.
    #[inline]
    pub fn touched(&self, span: &Span) -> Indices {
        let start = span.start.max(self.start);
        let end = span.end.min(self.end);
        if start >= end {
            return Indices::new(0..0);
        }
        let first = (start - self.start) >> self.entry_shift;
        let last = (end - 1 - self.start) >> self.entry_shift;
        Indices::new(first..last + 1)
    }

    /// The entries of `length` bytes from `address`, if all of them lie in the mirror.
    ///
    /// No byte in the middle of an entry is that entry, and at its start none.
    #[inline]
    pub fn within(&self, address: usize, length: usize) -> Option<Indices> {
        let end = address.checked_add(length)?;
        if address < self.start || end > self.end {
            return None;
        }
        let mask = (1_usize << self.entry_shift) - 1;
        let first = (address - self.start) >> self.entry_shift;
        let end = (end - self.start + mask) >> self.entry_shift;
        Some(Indices::new(first..end))
    }

    /// CPU pages of the largest window of `indices`: the scratch that a fault wants.
    #[inline]
    pub fn scratch_len(&self, indices: Indices) -> usize {
        indices.len().min(self.window_entries()) * self.pages_per_entry()
    }

    /// The one page that stands for the CPU pages of an entry, which is all that HMM reports,
    /// whatever the size of an entry; `None` if the memory is mapped in smaller pieces.
    #[inline]
    pub(crate) fn one_entry(&self, unit: &[HmmPfn]) -> Option<HmmPfn> {
        let head = unit.first().copied().filter(|head| head.is_valid());
        match head {
            None => Some(HmmPfn::EMPTY),
            Some(head) => (head.order().0 >= self.entry_order()).then_some(head),
        }
    }

    /// The most entries of one chunk.
    #[inline]
    const fn chunk_entries(&self) -> usize {
        1 << self.chunk_shift
    }

    /// The most entries of one window.
    #[inline]
    const fn window_entries(&self) -> usize {
        match WINDOW_PAGES >> self.entry_order() {
            0 => 1,
            entries => entries,
        }
    }

    /// How many chunks the mirror has at most.
    #[inline]
    pub const fn chunks(&self) -> usize {
        (self.indices().end + self.chunk_entries() - 1) >> self.chunk_shift
    }

    /// The entries of a chunk; the last one of a mirror may be shorter, and beyond it they are
    /// none. Chunks are counted from the first entry, so that entries whose translations the
    /// device rewrites together are of one chunk, wherever the mirror starts.
    #[inline]
    pub fn chunk(&self, at: ChunkIndex) -> Indices {
        let all = self.indices();
        let first = (at.0.min(self.chunks()) << self.chunk_shift).min(all.end);
        Indices::new(first..(first + self.chunk_entries()).min(all.end))
    }

    /// The addresses of entries of the mirror.
    #[inline]
    pub const fn span_of(&self, indices: Indices) -> Span {
        self.start + (indices.first << self.entry_shift)
            ..self.start + (indices.end << self.entry_shift)
    }

    /// Where a chunk of the mirror is, in bytes from the mirror's first.
    #[inline]
    pub const fn offset_of(&self, at: ChunkIndex) -> usize {
        at.0 << self.chunk_shift << self.entry_shift
    }

    /// The addresses of slots of a chunk of the mirror.
    #[inline]
    pub fn span_of_slots(&self, at: ChunkIndex, slots: Slots) -> Span {
        let start = self.start + self.offset_of(at);
        start + (slots.first() << self.entry_shift)..start + (slots.end() << self.entry_shift)
    }

    /// `indices` cut at the borders of chunks, and into windows.
    #[inline]
    pub fn by_chunk(&self, indices: Indices) -> impl Iterator<Item = (ChunkIndex, Slots)> + '_ {
        let mut next = indices.first;
        core::iter::from_fn(move || {
            if next >= indices.end {
                return None;
            }
            let at = next >> self.chunk_shift;
            let first = next & (self.chunk_entries() - 1);
            let most = (self.chunk_entries() - first).min(self.window_entries());
            let end = first + most.min(indices.end - next);
            next += end - first;
            Some((ChunkIndex(at), Slots::new(first..end)))
        })
    }

    /// `indices` cut into windows. What fits into one is one, wherever it lies: only
    /// that can be found for one sequence whatever happens around it.
    #[inline]
    pub fn windows(&self, indices: Indices) -> impl Iterator<Item = Window> + '_ {
        let mut next = indices.first;
        core::iter::from_fn(move || {
            if next >= indices.end {
                return None;
            }
            let end = next + (indices.end - next).min(self.window_entries());
            let indices = Indices::new(next..end);
            let window = Window {
                span: self.span_of(indices),
                indices,
            };
            next = end;
            Some(window)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 12;
    const HUGE: u32 = 21;

    #[test]
    fn a_range_that_ends_before_it_begins_is_empty() {
        let indices = Indices::new(Range { start: 5, end: 3 });
        assert_eq!((indices.first(), indices.len()), (Index(5), 0));
        assert!(indices.is_empty());
    }

    #[test]
    fn a_span_is_of_whole_entries_of_whole_pages() {
        let of = |start, end, page_shift| Geometry::of_span(start..end, page_shift, 13);
        assert!(of(0x2000, 0x6000, 12).is_some());
        assert!(of(0x2000, 0x6000, 13).is_some());
        for (start, end) in [
            (0x3000, 0x6000),
            (0x2000, 0x5000),
            (0x2000, 0x2000),
            (0x6000, 0x2000),
        ] {
            assert!(of(start, end, 12).is_none(), "{start:#x}..{end:#x}");
        }
        assert!(of(0x2000, 0x6000, 14).is_none());
    }

    #[test]
    fn cover_rounds_outwards() {
        let g = Geometry::cover(0x1800, 0x1000, PAGE, PAGE).unwrap();
        assert_eq!(g.span(), 0x1000..0x3000);
        assert_eq!(g.indices().len(), 2);
        let g = Geometry::cover(0x30_0000, 1, PAGE, HUGE).unwrap();
        assert_eq!(g.span(), 0x20_0000..0x40_0000);
        assert_eq!(g.indices().len(), 1);
    }

    #[test]
    fn cover_fails_as_the_kernel_does() {
        let cover = |address, length| Geometry::cover(address, length, PAGE, PAGE).map(|_| ());
        assert_eq!(cover(0x1000, 0), Err(GeometryError::Empty));
        assert_eq!(cover(0x1001, 0), Ok(()));
        assert_eq!(cover(0, 0), Err(GeometryError::Overflow));
        assert_eq!(cover(0x1000, usize::MAX), Err(GeometryError::Overflow));
        assert_eq!(cover(usize::MAX - 1, 1), Err(GeometryError::Overflow));
    }

    #[test]
    fn touched_clips_and_counts_partial_entries() {
        let g = Geometry::cover(0x40_0000, 0x80_0000, PAGE, HUGE).unwrap();
        assert_eq!(g.touched(&(0x50_0000..0x70_0000)), Indices::new(0..2));
        assert_eq!(g.touched(&(0..usize::MAX)), Indices::new(0..4));
        assert!(g.touched(&(0..0x40_0000)).is_empty());
        assert!(g.touched(&(0x50_0000..0x50_0000)).is_empty());
    }

    #[test]
    fn windows_are_cut_from_the_first_entry() {
        let g = Geometry::cover(0x1f_f000, 0x20_2000, PAGE, PAGE).unwrap();
        let mut windows = g.windows(Indices::new(1..514));
        for (first, len) in [(1, 512), (513, 1)] {
            let window = windows.next().unwrap();
            assert_eq!(window.indices, Indices::new(first..first + len));
            let start = 0x1f_f000 + (first << PAGE);
            assert_eq!(window.span, start..start + (len << PAGE));
        }
        assert_eq!(windows.next(), None);
        assert_eq!(g.scratch_len(g.indices()), 512);
        assert_eq!(g.scratch_len(Indices::new(0..3)), 3);
    }

    #[test]
    fn what_fits_into_one_window_is_one() {
        // It crosses a boundary of 2 MiB.
        let g = Geometry::cover(0x1f_f000, 0x20_2000, PAGE, PAGE).unwrap();
        assert_eq!(g.windows(Indices::new(0..512)).count(), 1);
        assert_eq!(g.windows(Indices::new(7..7)).count(), 0);
    }

    #[test]
    fn a_window_holds_at_least_one_entry() {
        // arm64 with 64 KiB pages: a huge page is 512 MiB, 8192 CPU pages.
        let g = Geometry::cover(0, 2 << 29, 16, 29).unwrap();
        assert_eq!(g.windows(g.indices()).count(), 2);
        assert_eq!(g.scratch_len(g.indices()), 8192);
    }

    #[test]
    fn chunks_are_cut_from_the_first_entry_too() {
        let g = Geometry::cover(0x1f_f000, 0x40_1000, PAGE, PAGE).unwrap();
        assert_eq!(g.chunks(), 3);
        assert_eq!(g.chunk(ChunkIndex(1)), Indices::new(512..1024));
        assert_eq!(g.chunk(ChunkIndex(2)), Indices::new(1024..1025));
        assert!(g.chunk(ChunkIndex(3)).is_empty());
        assert!(g.chunk(ChunkIndex(usize::MAX)).is_empty());
        let mut pieces = g.by_chunk(Indices::new(510..1025));
        assert_eq!(pieces.next(), Some((ChunkIndex(0), Slots::new(510..512))));
        assert_eq!(pieces.next(), Some((ChunkIndex(1), Slots::new(0..512))));
        assert_eq!(pieces.next(), Some((ChunkIndex(2), Slots::new(0..1))));
        assert_eq!(pieces.next(), None);
        let huge = Geometry::cover(0, 17 << HUGE, PAGE, HUGE).unwrap();
        assert_eq!((huge.chunks(), huge.chunk(ChunkIndex(1)).len()), (2, 1));
        // A window of its own for each.
        let mut pieces = huge.by_chunk(Indices::new(15..17));
        assert_eq!(pieces.next(), Some((ChunkIndex(0), Slots::new(15..16))));
        assert_eq!(pieces.next(), Some((ChunkIndex(1), Slots::new(0..1))));
        assert_eq!(pieces.next(), None);
    }

    #[test]
    fn within_rejects_what_leaves_the_mirror() {
        let g = Geometry::cover(0x1000, 0x2000, PAGE, PAGE).unwrap();
        assert_eq!(g.within(0x1000, 0x2000), Some(Indices::new(0..2)));
        assert_eq!(g.within(0x1fff, 2), Some(Indices::new(0..2)));
        assert_eq!(g.within(0x1fff, 0), Some(Indices::new(0..1)));
        assert_eq!(g.within(0x2000, 0), Some(Indices::new(1..1)));
        assert_eq!(g.within(0x1000, 0x2001), None);
        assert_eq!(g.within(0xfff, 1), None);
        assert_eq!(g.within(0x2000, usize::MAX), None);
    }
}
