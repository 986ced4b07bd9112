// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) of an MKey, and the memory it may occupy.

use firmware_cmds::Wire;

use crate::guest::to_u64;

/// Bytes of one octword, the unit in which the firmware counts an XLT.
pub const OCTWORD: usize = 16;

/// Octwords to a multiple of which the driver pads its lists.
const PAD: u64 = 4;

/// The translation entries of one MKey, as the bytes that were written.
///
/// Storage grows with what is written; entries never written read as zero, so an
/// MKey with room for 2^18 MTTs costs nothing until it is used.
#[derive(Clone, Debug, Default)]
pub struct Xlt {
    octwords: u32,
    bytes: Vec<u8>,
}

/// What a write did to the MTTs it covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Entries that are not zero now and were different before.
    pub set: u64,
    /// Entries that are zero now and were not before.
    pub cleared: u64,
}

impl Xlt {
    /// An empty table with room for `octwords` octwords.
    pub fn new(octwords: u32) -> Self {
        Self {
            octwords,
            bytes: Vec::new(),
        }
    }

    /// Room, in octwords (`translations_octword_size`).
    pub fn octwords(&self) -> u32 {
        self.octwords
    }

    /// Number of entries of `size` bytes that fit.
    pub fn capacity(&self, size: usize) -> u64 {
        u64::from(self.octwords) * to_u64(OCTWORD / size)
    }

    /// Entry `index` of a table of `T`, `None` beyond the end of the table.
    pub fn entry<T: Wire>(&self, index: u64) -> Option<T> {
        if index >= self.capacity(T::LEN) {
            return None;
        }
        let at = usize::try_from(index).ok()?.checked_mul(T::LEN)?;
        // No entry is longer than an octword.
        let zeros = [0; OCTWORD];
        let bytes = self.bytes.get(at..at + T::LEN).unwrap_or(&zeros);
        T::parse(bytes).ok()
    }

    /// Copies the first entries into `output`, as many as both have.
    pub fn read_into(&self, output: &mut [u8]) {
        let len = output.len().min(self.bytes.len());
        output[..len].copy_from_slice(&self.bytes[..len]);
    }

    /// Whether a list of `len` bytes may be written from octword `offset` on.
    ///
    /// It may overhang the table as far as the driver pads its lists, to 64 bytes (kernel
    /// `drivers/infiniband/hw/mlx5/umr.c:mlx5r_umr_get_xlt_octo`).
    pub fn takes(&self, offset: u64, len: usize) -> bool {
        let room = u64::from(self.octwords).next_multiple_of(PAD);
        let end = offset.checked_add(to_u64(len.div_ceil(OCTWORD)));
        end.is_some_and(|end| end <= room)
    }

    /// Writes `bytes` from octword `offset` on and compares MTT by MTT. What falls beyond
    /// the end is dropped: see [`Xlt::takes`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Changed {
        let table = to_u64(OCTWORD) * u64::from(self.octwords);
        let at = table.min(offset.saturating_mul(to_u64(OCTWORD)));
        let room = usize::try_from(table - at).unwrap_or(usize::MAX);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        let old = &mut self.bytes[at..at + bytes.len()];
        let mut changed = Changed::default();
        for (old, new) in old.chunks(8).zip(bytes.chunks(8)) {
            if new.iter().any(|&byte| byte != 0) {
                changed.set += u64::from(old != new);
            } else {
                changed.cleared += u64::from(old != new);
            }
        }
        old.copy_from_slice(bytes);
        changed
    }
}

#[cfg(test)]
mod tests {
    use firmware_cmds::{Ksm, Mtt};

    use super::*;

    #[test]
    fn padding_beyond_the_table_is_dropped() {
        let mut xlt = Xlt::new(1);
        assert!(xlt.takes(0, 64));
        let changed = xlt.write(0, &[1; 64]);
        assert_eq!(changed, Changed { set: 2, cleared: 0 });
        assert!(xlt.entry::<Mtt>(1).unwrap().access().read);
        assert_eq!(xlt.entry::<Mtt>(2), None);
        assert_eq!(xlt.write(1, &[1; 16]), Changed::default());
    }

    #[test]
    fn a_list_overhangs_by_no_more_than_its_padding() {
        for (octwords, room) in [(0, 0), (1, 4), (4, 4), (5, 8)] {
            let xlt = Xlt::new(octwords);
            for offset in 0..=room {
                let len = usize::try_from(room - offset).unwrap() * OCTWORD;
                assert!(xlt.takes(offset, len), "{octwords} {offset} {len}");
                assert!(!xlt.takes(offset, len + 1), "{octwords} {offset} {len}");
            }
            assert!(!xlt.takes(u64::MAX, 16));
        }
    }

    #[test]
    fn unwritten_entries_are_zero_and_changes_are_counted_once() {
        let mut xlt = Xlt::new(8);
        assert_eq!(xlt.entry::<Ksm>(7), Some(Ksm::default()));
        xlt.write(4, &[7; 16]);
        assert_eq!(xlt.entry::<Mtt>(0), Some(Mtt::NOT_PRESENT));
        assert_eq!(xlt.write(4, &[7; 16]), Changed::default());
        let mut half = [7; 16];
        half[8..].fill(0);
        let changed = xlt.write(4, &half);
        assert_eq!(changed, Changed { set: 0, cleared: 1 });
    }
}
