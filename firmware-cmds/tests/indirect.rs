// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Accesses through keys that refer to keys, byte by byte.

use firmware_cmds::{
    AccessMode, Error, Iova, Klm, Ksm, LogPageSize, Mkc, Mkey, Piece, Pieces, Stride, StrideBlock,
    Wire,
};
use proptest::collection::vec;
use proptest::prelude::*;

const START: u64 = 0x1064;

/// A part of a translation list.
#[derive(Clone, Debug)]
enum Part {
    Klm(Klm),
    Block(u32, Vec<Stride>),
}

impl Part {
    fn emit(&self, list: &mut Vec<u8>) {
        match self {
            Self::Klm(klm) => emit(klm, list),
            Self::Block(repeat_count, strides) => {
                let block = StrideBlock {
                    bcount_per_cycle: strides.iter().map(|s| u32::from(s.bcount)).sum(),
                    repeat_count: *repeat_count,
                    num_entries: u16::try_from(strides.len()).unwrap(),
                };
                emit(&block, list);
                strides.iter().for_each(|stride| emit(stride, list));
            }
        }
    }

    /// Where each of its bytes is.
    fn bytes(&self) -> Vec<(Mkey, u64)> {
        match self {
            Self::Klm(klm) => bytes_of(klm.key, klm.va.get(), klm.bcount.into()).collect(),
            Self::Block(repeat_count, strides) => (0..u64::from(*repeat_count))
                .flat_map(|n| strides.iter().map(move |stride| (n, stride)))
                .flat_map(|(n, stride)| {
                    let at = stride.va.get() + n * u64::from(stride.stride);
                    bytes_of(stride.key, at, stride.bcount.into())
                })
                .collect(),
        }
    }
}

fn bytes_of(key: Mkey, at: u64, bytes: u64) -> impl Iterator<Item = (Mkey, u64)> {
    (at..at + bytes).map(move |at| (key, at))
}

fn emit(entry: &impl Wire, list: &mut Vec<u8>) {
    let at = list.len();
    list.resize(at + 16, 0);
    entry.emit(&mut list[at..]).unwrap();
}

fn list_of<T: Wire>(entries: &[T]) -> Vec<u8> {
    let mut list = Vec::new();
    entries.iter().for_each(|entry| emit(entry, &mut list));
    list
}

fn mkc(access_mode: AccessMode, len: u64) -> Mkc {
    Mkc {
        access_mode,
        start_addr: Iova::new(START),
        len,
        ..Mkc::default()
    }
}

/// All pieces of `bytes` from byte `at` of a key on.
fn pieces(mkc: &Mkc, list: &[u8], at: u64, bytes: u64) -> Result<Vec<Piece>, Error> {
    let mut pieces = Pieces::new(mkc, Iova::new(START + at), bytes).expect("inside");
    let mut all = Vec::new();
    while let Some(piece) = pieces.next(list)? {
        assert!(piece.bytes > 0);
        all.push(piece);
    }
    assert_eq!(pieces.next(list), Ok(None));
    Ok(all)
}

fn klm(bcount: u32, key: u32, va: u64) -> Klm {
    Klm {
        bcount,
        key: Mkey::new(key),
        va: Iova::new(va),
    }
}

fn stride(stride: u16, bcount: u16, key: u32, va: u64) -> Stride {
    Stride {
        stride,
        bcount,
        key: Mkey::new(key),
        va: Iova::new(va),
    }
}

fn piece(key: u32, at: u64, bytes: u64) -> Piece {
    Piece {
        key: Mkey::new(key),
        at: Iova::new(at),
        bytes,
    }
}

#[test]
fn a_list_is_cut_at_its_entries() {
    let list = list_of(&[klm(100, 0x1100, 0x5064), klm(0, 7, 7), klm(50, 0x1200, 9)]);
    let key = mkc(AccessMode::Klms, 150);
    for (at, bytes, expected) in [
        (0, 100, vec![piece(0x1100, 0x5064, 100)]),
        (99, 2, vec![piece(0x1100, 0x50c7, 1), piece(0x1200, 9, 1)]),
        (120, 30, vec![piece(0x1200, 29, 30)]),
        (150, 0, vec![]),
    ] {
        assert_eq!(pieces(&key, &list, at, bytes), Ok(expected), "{at} {bytes}");
    }
}

#[test]
fn a_ksm_covers_a_page_of_its_key() {
    let ksm = |key, va| Ksm {
        key: Mkey::new(key),
        va: Iova::new(va),
    };
    let list = list_of(&[ksm(0x1100, 0), ksm(0x1200, 0x4000)]);
    let key = Mkc {
        log_page_size: LogPageSize::ADAPTER_PAGE,
        ..mkc(AccessMode::Ksm, 0x2000)
    };
    assert_eq!(
        pieces(&key, &list, 0xfff, 2),
        Ok(vec![piece(0x1100, 0xfff, 1), piece(0x1200, 0x4000, 1)])
    );
    // All of the address space.
    let all = Mkc {
        length64: true,
        ..key
    };
    assert_eq!(pieces(&all, &list, 0x2000, 1), Err(Error::Xlt));
}

#[test]
fn what_is_not_inside_is_no_access() {
    let key = mkc(AccessMode::Klms, 100);
    let new = |mkc, at, bytes| Pieces::new(&mkc, Iova::new(at), bytes).is_some();
    assert!(new(key, START + 99, 1));
    assert!(!new(key, START + 99, 2));
    assert!(!new(key, START - 1, 1));
    assert!(!new(key, START + 1, u64::MAX));
    assert!(!new(Mkc { free: true, ..key }, START, 1));
    assert!(!new(mkc(AccessMode::Mtt, 100), START, 1));
    assert!(!new(mkc(AccessMode::Pa, 100), START, 1));
}

/// Nothing of it may hold a driver up.
#[test]
fn lists_that_contradict_themselves_end_in_an_error() {
    let key = mkc(AccessMode::Klms, 1 << 40);
    let block = |bcount_per_cycle, num_entries| {
        let block = StrideBlock {
            bcount_per_cycle,
            repeat_count: 10,
            num_entries,
        };
        list_of(&[block])
    };
    let one = list_of(&[stride(8, 4, 0x1100, 0)]);
    let none = list_of(&[stride(8, 0, 0x1100, 0)]);
    for (list, what) in [
        (vec![], "no list"),
        (list_of(&[klm(0, 1, 1), klm(0, 1, 1)]), "nothing in it"),
        (list_of(&[klm(100, 1, 1)])[..15].to_vec(), "half an entry"),
        (list_of(&[klm(100, 1, u64::MAX - 3)]), "beyond the end"),
        ([block(4, 2), one.clone()].concat(), "an entry too few"),
        ([block(8, 1), one.clone()].concat(), "less than a cycle"),
        ([block(2, 1), one.clone()].concat(), "more than a cycle"),
        (block(4, 0), "no entry"),
        ([block(4, 2), none, one].concat(), "an empty one"),
    ] {
        assert_eq!(pieces(&key, &list, 5, 30), Err(Error::Xlt), "{what}");
    }
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let klms = (0..40u32, 1..4u32, any::<u32>())
        .prop_map(|(bcount, key, va)| Part::Klm(klm(bcount, key << 8, va.into())));
    let strides = vec((any::<u16>(), 1..9u16, 1..4u32, any::<u32>()), 1..4);
    let blocks = (1..5u32, strides).prop_map(|(repeat_count, strides)| {
        let strides = strides.into_iter();
        let strides = strides.map(|(step, bcount, key, va)| {
            // What stands for a block is no key.
            stride(step, bcount, (key << 8) + 1, va.into())
        });
        Part::Block(repeat_count, strides.collect())
    });
    vec(prop_oneof![klms, blocks], 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_byte_is_where_the_list_says(parts in parts(), at: u16, bytes: u16) {
        let mut list = Vec::new();
        parts.iter().for_each(|part| part.emit(&mut list));
        let whole: Vec<_> = parts.iter().flat_map(Part::bytes).collect();
        let at = usize::from(at) % (whole.len() + 1);
        let bytes = usize::from(bytes) % (whole.len() - at + 1);

        let len = u64::try_from(whole.len()).unwrap();
        let key = mkc(AccessMode::Klms, len);
        let found = pieces(&key, &list, at.try_into().unwrap(), bytes.try_into().unwrap());
        let found = found.unwrap().into_iter();
        let found: Vec<_> = found.flat_map(|p| bytes_of(p.key, p.at.get(), p.bytes)).collect();
        prop_assert_eq!(&found[..], &whole[at..at + bytes]);
    }
}
