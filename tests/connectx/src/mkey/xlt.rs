// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) of an MKey, and the memory it may occupy.

use firmware_cmds::Wire;

use crate::guest::to_u64;

/// Bytes of one octword, the unit in which the firmware counts an XLT.
pub const OCTWORD: usize = 16;

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

    /// Writes `bytes` from octword `offset` on and compares MTT by MTT.
    ///
    /// What falls beyond the end is dropped: the driver pads its lists to 64
    /// bytes (kernel `drivers/infiniband/hw/mlx5/umr.c:mlx5r_umr_get_xlt_octo`).
    /// Returns `None` if nothing at all falls inside the table.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Option<Changed> {
        if offset >= u64::from(self.octwords) {
            return None;
        }
        let at = usize::try_from(offset).ok()?.checked_mul(OCTWORD)?;
        let room = usize::try_from(self.octwords).ok()? * OCTWORD - at;
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
        Some(changed)
    }
}

#[cfg(test)]
mod tests {
    use firmware_cmds::{Ksm, Mtt};

    use super::*;

    #[test]
    fn padding_beyond_the_table_is_dropped() {
        let mut xlt = Xlt::new(1);
        let changed = xlt.write(0, &[1; 64]).unwrap();
        assert_eq!(changed, Changed { set: 2, cleared: 0 });
        assert!(xlt.entry::<Mtt>(1).unwrap().access().read);
        assert_eq!(xlt.entry::<Mtt>(2), None);
        assert_eq!(xlt.write(1, &[1; 16]), None);
    }

    #[test]
    fn unwritten_entries_are_zero_and_changes_are_counted_once() {
        let mut xlt = Xlt::new(8);
        assert_eq!(xlt.entry::<Ksm>(7), Some(Ksm::default()));
        xlt.write(4, &[7; 16]).unwrap();
        assert_eq!(xlt.entry::<Mtt>(0), Some(Mtt::NOT_PRESENT));
        assert_eq!(xlt.write(4, &[7; 16]), Some(Changed::default()));
        let mut half = [7; 16];
        half[8..].fill(0);
        let changed = xlt.write(4, &half).unwrap();
        assert_eq!(changed, Changed { set: 0, cleared: 1 });
    }
}
