// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) of an MKey, and the memory it may occupy.

use std::collections::BTreeMap;
use std::ops::Range;

use firmware_cmds::{Mtt, Wire};
use serde::{Serialize, Serializer};

use crate::guest::to_u64;

/// Bytes of one octword, the unit in which the firmware counts an XLT.
pub const OCTWORD: usize = 16;

/// Octwords to a multiple of which the driver pads its lists.
const PAD: u64 = 4;

/// Bytes of a chunk, the unit of storage: 512 MTTs. No entry lies in two.
const CHUNK: usize = 4096;

/// The translation entries of one MKey, as the bytes that were written.
///
/// Storage is sparse: chunks that are all zero are not kept. An MKey with room for the
/// 2^28 MTTs of a TiB costs nothing until entries become valid, although the driver
/// writes every one of them, as not present, when it registers the memory.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Xlt {
    octwords: u32,
    #[serde(rename = "entries", serialize_with = "entries")]
    chunks: BTreeMap<u64, Box<[u8; CHUNK]>>,
}

/// What is not zero, in units of an MTT.
fn entries<S: Serializer>(
    chunks: &BTreeMap<u64, Box<[u8; CHUNK]>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(chunks.iter().flat_map(|(chunk, bytes)| {
        let first = chunk * to_u64(CHUNK / Mtt::LEN);
        let words = bytes.chunks_exact(Mtt::LEN).map(|word| {
            let word = word.try_into().unwrap_or_default();
            u64::from_be_bytes(word)
        });
        let numbered = (first..).zip(words).filter(|&(_, word)| word != 0);
        numbered.map(|(index, word)| (format!("{index:#x}"), format!("{word:#x}")))
    }))
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
            chunks: BTreeMap::new(),
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
        let (chunk, within) = place(index * to_u64(T::LEN));
        // No entry is longer than an octword.
        let zeros = [0; OCTWORD];
        let chunk = self.chunks.get(&chunk);
        let bytes = chunk.map_or(&zeros[..], |chunk| &chunk[within..within + T::LEN]);
        T::parse(bytes).ok()
    }

    /// Copies the first entries into `output`, as many as both have.
    pub fn read_into(&self, output: &mut [u8]) {
        let room = usize::try_from(self.bytes()).unwrap_or(usize::MAX);
        let len = output.len().min(room);
        for (chunk, at, piece) in pieces(0, len) {
            let to = &mut output[piece];
            match self.chunks.get(&chunk) {
                Some(chunk) => to.copy_from_slice(&chunk[at..at + to.len()]),
                None => to.fill(0),
            }
        }
    }

    /// Bytes of the table.
    fn bytes(&self) -> u64 {
        u64::from(self.octwords) * to_u64(OCTWORD)
    }

    /// Chunks that are kept.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
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

    /// First byte and length of the part of `len` bytes from octword `offset` on that lies in
    /// the table.
    fn within(&self, offset: u64, len: usize) -> (u64, usize) {
        let table = self.bytes();
        let at = table.min(offset.saturating_mul(to_u64(OCTWORD)));
        let room = usize::try_from(table - at).unwrap_or(usize::MAX);
        (at, len.min(room))
    }

    /// Writes `bytes` from octword `offset` on and compares MTT by MTT. What falls beyond
    /// the end is dropped: see [`Xlt::takes`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Changed {
        let (at, len) = self.within(offset, bytes.len());
        let bytes = &bytes[..len];
        let mut changed = Changed::default();
        for (index, at, piece) in pieces(at, bytes.len()) {
            let new = &bytes[piece];
            let zero = is_zero(new);
            if zero && !self.chunks.contains_key(&index) {
                continue;
            }
            let chunk = self
                .chunks
                .entry(index)
                .or_insert_with(|| Box::new([0; CHUNK]));
            let old = &mut chunk[at..at + new.len()];
            for (old, new) in old.chunks(8).zip(new.chunks(8)) {
                if is_zero(new) {
                    changed.cleared += u64::from(old != new);
                } else {
                    changed.set += u64::from(old != new);
                }
            }
            old.copy_from_slice(new);
            if zero && is_zero(&chunk[..]) {
                self.chunks.remove(&index);
            }
        }
        changed
    }

    /// Whether any of the `len` bytes from octword `offset` on is not zero.
    pub fn holds(&self, offset: u64, len: usize) -> bool {
        let (at, len) = self.within(offset, len);
        pieces(at, len).any(|(index, at, piece)| {
            let chunk = self.chunks.get(&index);
            chunk.is_some_and(|chunk| !is_zero(&chunk[at..at + piece.len()]))
        })
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Without an early end, which would keep it from working on many bytes at once.
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// The chunk that holds byte `at` of a table, and where in it.
fn place(at: u64) -> (u64, usize) {
    let within = usize::try_from(at % to_u64(CHUNK)).unwrap_or(0);
    (at / to_u64(CHUNK), within)
}

/// Cuts `len` bytes of a table from byte `at` on at the ends of chunks: for each piece the
/// chunk, where in it, and which of the bytes.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (chunk, within) = place(at + to_u64(done));
        let piece = done..len.min(done + CHUNK - within);
        done = piece.end;
        (!piece.is_empty()).then_some((chunk, within, piece))
    })
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
    fn a_table_for_a_terabyte_holds_what_is_valid() {
        const MTTS: u64 = 1 << 28;
        let zeros = [0; 8192];
        let mut xlt = Xlt::new(1 << 27);
        assert_eq!(xlt.capacity(Mtt::LEN), MTTS);
        for offset in (0..MTTS / 2).step_by(1 << 20) {
            assert!(xlt.takes(offset, zeros.len()));
            assert_eq!(xlt.write(offset, &zeros), Changed::default());
        }
        assert_eq!(xlt.chunks(), 0);
        // Across the end of a chunk, and at the end of the table.
        assert_eq!(xlt.write(255, &[1; 32]).set, 4);
        assert_eq!(xlt.write(MTTS / 2 - 1, &[1; 16]).set, 2);
        assert_eq!(xlt.chunks(), 3);
        for (index, set) in [
            (509, false),
            (510, true),
            (513, true),
            (514, false),
            (MTTS - 1, true),
        ] {
            assert_eq!(
                xlt.entry::<Mtt>(index).unwrap().access().read,
                set,
                "{index}"
            );
        }
        assert_eq!(xlt.entry::<Mtt>(MTTS), None);
        let mut head = [7; 8192];
        xlt.read_into(&mut head);
        let valid = 255 * OCTWORD..257 * OCTWORD;
        assert!(head[valid.clone()].iter().all(|&byte| byte == 1));
        assert!(is_zero(&head[..valid.start]) && is_zero(&head[valid.end..]));
        // What was taken back is not kept.
        assert_eq!(xlt.write(255, &[0; 32]).cleared, 4);
        assert_eq!(xlt.chunks(), 1);
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
