// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where the children of an implicit MR lie.

use core::ops::Range;

use firmware_cmds::Iova;
use hmm_abi::Geometry;

use crate::Placement;

/// The number of a child: its KSM's in the parent's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildIndex(pub usize);

/// How the address space of a process is cut into children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a child, as a power of two.
    child_shift: u8,
    /// Children, as a power of two.
    count_shift: u8,
    page_shift: u8,
}

impl Layout {
    /// For processes whose addresses end at `task_size` (`TASK_SIZE`), on a CPU with pages of
    /// `1 << page_shift` bytes: children of 1 GiB for addresses of up to 49 bits, of 16 GiB for up
    /// to 57, so that the parent's table has no more than 2^23 entries. `None` for longer ones
    /// (`odp.c:mlx5_ib_odp_init`).
    pub fn of(task_size: u64, page_shift: u32) -> Option<Self> {
        let child_shift = match task_size.checked_ilog2()? {
            0..=48 => 30,
            49..=56 => 34,
            _ => return None,
        };
        let bits = task_size.checked_next_power_of_two()?.trailing_zeros();
        Some(Self {
            child_shift,
            count_shift: u8::try_from(bits).ok()?.saturating_sub(child_shift),
            page_shift: u8::try_from(page_shift).ok()?,
        })
    }

    /// How many children there may be.
    pub const fn count(&self) -> usize {
        1 << self.count_shift
    }

    /// Bytes of a child, as a power of two.
    pub const fn child_shift(&self) -> u32 {
        // CAST: widens.
        self.child_shift as u32
    }

    /// MTTs of a child.
    pub const fn entries(&self) -> usize {
        1 << (self.child_shift - self.page_shift)
    }

    /// The first address behind all children.
    pub const fn end(&self) -> u64 {
        // CAST: widens.
        (self.count() as u64) << self.child_shift
    }

    /// The first address of a child.
    pub const fn start_of(&self, at: ChildIndex) -> u64 {
        // CAST: widens.
        (at.0 as u64) << self.child_shift
    }

    /// The child that an address is in. There may be no such child.
    pub fn child_of(&self, address: u64) -> ChildIndex {
        ChildIndex(usize::try_from(address >> self.child_shift).unwrap_or(usize::MAX))
    }

    /// The memory of a child, which the device sees by the process's addresses. `None` if there is
    /// no such child.
    pub fn placement(&self, at: ChildIndex, writable: bool) -> Option<Placement> {
        if at.0 >= self.count() {
            return None;
        }
        let start = self.start_of(at);
        let address = usize::try_from(start).ok()?;
        let page_shift = u32::from(self.page_shift);
        let geometry = Geometry::cover(address, 1 << self.child_shift, page_shift, page_shift);
        Some(Placement {
            iova: Iova::new(start),
            address,
            geometry: geometry.ok()?,
            writable,
        })
    }

    /// `bytes` at `at`, or `None` where they are none or any of them is behind all children.
    pub fn exactly(&self, at: Iova, bytes: u64) -> Option<Range<u64>> {
        let end = at.get().checked_add(bytes)?;
        (bytes > 0 && end <= self.end()).then_some(at.get()..end)
    }

    /// `bytes` at `at`, with `before` bytes ahead of them and `after` behind, cut to the children that
    /// `bytes` are in: what surrounds them is not worth another child. `None` if all is behind the
    /// last one.
    pub fn clamped(&self, at: Iova, before: u64, bytes: u64, after: u64) -> Option<Range<u64>> {
        let first = at.get();
        let end = first.saturating_add(bytes).min(self.end());
        if first >= end {
            return None;
        }
        let floor = first >> self.child_shift << self.child_shift;
        let ceiling = end.next_multiple_of(1 << self.child_shift);
        Some(first.saturating_sub(before).max(floor)..end.saturating_add(after).min(ceiling))
    }

    /// Addresses, cut where children meet.
    pub fn pieces(&self, addresses: Range<u64>) -> impl Iterator<Item = (ChildIndex, Range<u64>)> {
        let layout = *self;
        let mut rest = addresses;
        core::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let at = layout.child_of(rest.start);
            let next = layout.start_of(ChildIndex(at.0 + 1)).min(rest.end);
            let piece = rest.start..next;
            rest.start = next;
            Some((at, piece))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR_LEVELS: u64 = (1 << 47) - 4096;
    const FIVE_LEVELS: u64 = (1 << 56) - 4096;
    const GIB: u64 = 1 << 30;

    fn layout() -> Layout {
        Layout::of(FOUR_LEVELS, 12).unwrap()
    }

    /// `odp.c:mlx5_ib_odp_init`: 2^17 KSMs of 1 GiB, 2^22 of 16 GiB.
    #[test]
    fn address_spaces() {
        assert_eq!((layout().child_shift(), layout().count()), (30, 1 << 17));
        assert_eq!((layout().entries(), layout().end()), (1 << 18, 1 << 47));
        let five = Layout::of(FIVE_LEVELS, 12).unwrap();
        assert_eq!((five.child_shift(), five.count()), (34, 1 << 22));
        assert_eq!((five.entries(), five.end()), (1 << 22, 1 << 56));
        // arm64 with 48 bits, and with 52.
        assert_eq!(Layout::of(1 << 48, 12).unwrap().child_shift(), 30);
        assert_eq!(Layout::of(1 << 52, 12).unwrap().child_shift(), 34);
        assert_eq!(Layout::of(1 << 57, 12), None);
        assert_eq!(Layout::of(0, 12), None);
        assert_eq!(Layout::of(u64::MAX, 12), None);
    }

    #[test]
    fn a_child_is_where_its_addresses_are() {
        for at in [0, 1, layout().count() - 1] {
            let at = ChildIndex(at);
            let placement = layout().placement(at, true).unwrap();
            let start = layout().start_of(at);
            assert_eq!(placement.iova.get(), start);
            assert_eq!(placement.address as u64, start);
            assert_eq!(placement.geometry.indices().len(), layout().entries());
            assert_eq!(layout().child_of(start + GIB - 1), at);
        }
        let beyond = ChildIndex(layout().count());
        assert!(layout().placement(beyond, true).is_none());
        assert_eq!(layout().child_of(layout().end()), beyond);
    }

    #[test]
    fn bounds() {
        let exactly = |at, bytes| layout().exactly(Iova::new(at), bytes);
        assert_eq!(exactly(0, 1), Some(0..1));
        assert_eq!(exactly((1 << 47) - 1, 1), Some((1 << 47) - 1..1 << 47));
        assert_eq!(exactly((1 << 47) - 1, 2), None);
        assert_eq!(exactly(1 << 47, 1), None);
        assert_eq!(exactly(u64::MAX, 1), None);
        assert_eq!(exactly(5, 0), None);
    }

    #[test]
    fn hints_touch_no_other_child() {
        let clamped =
            |at, before, bytes, after| layout().clamped(Iova::new(at), before, bytes, after);
        assert_eq!(clamped(4096, 8192, 4096, 4096), Some(0..12288));
        assert_eq!(clamped(GIB, 4096, 4096, 0), Some(GIB..GIB + 4096));
        assert_eq!(clamped(GIB - 4096, 0, 4096, 4096), Some(GIB - 4096..GIB));
        // What is demanded may.
        assert_eq!(
            clamped(GIB - 4096, 0, 8192, 4096),
            Some(GIB - 4096..GIB + 8192)
        );
        let end = 1 << 47;
        assert_eq!(clamped(end - 4096, 0, 8192, 4096), Some(end - 4096..end));
        assert_eq!(clamped(end, 4096, 4096, 0), None);
        assert_eq!(clamped(u64::MAX, 0, 1, 1), None);
        assert_eq!(clamped(4096, 4096, 0, 4096), None);
    }

    #[test]
    fn pieces_end_where_children_do() {
        let mut pieces = layout().pieces(GIB - 1..2 * GIB + 1);
        assert_eq!(pieces.next(), Some((ChildIndex(0), GIB - 1..GIB)));
        assert_eq!(pieces.next(), Some((ChildIndex(1), GIB..2 * GIB)));
        assert_eq!(pieces.next(), Some((ChildIndex(2), 2 * GIB..2 * GIB + 1)));
        assert_eq!(pieces.next(), None);
        assert_eq!(layout().pieces(7..7).count(), 0);
    }
}
