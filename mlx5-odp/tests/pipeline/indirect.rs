// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme through keys that refer to keys.

use firmware_cmds::mkey::QueryMkeyOut;
use firmware_cmds::{AccessMode, Error, Klm, Mkc, OutHeader, StrideBlock, Wire};
use mlx5_odp::{NoQuery, Report, Unsupported};

use super::*;

/// Another region, read-only.
const OTHER: Mkey = Mkey::new(0x1300);
const OTHER_FIRST: usize = 0x200;
const WINDOW: Mkey = Mkey::new(0x5500);

fn klm(bcount: u64, key: Mkey, va: u64) -> Klm {
    Klm {
        bcount: u32::try_from(bcount).unwrap(),
        key,
        va: Iova::new(va),
    }
}

/// What QUERY_MKEY says of a key that starts at 0.
fn query(list: &[Klm]) -> Vec<u8> {
    let key = QueryMkeyOut {
        header: OutHeader::OK,
        mkc: Mkc {
            access_mode: AccessMode::Klms,
            length64: true,
            ..Mkc::default()
        },
    };
    let mut bytes = vec![0; QueryMkeyOut::LEN + list.len() * Klm::LEN];
    key.emit(&mut bytes).unwrap();
    let entries = bytes[QueryMkeyOut::LEN..].chunks_exact_mut(Klm::LEN);
    for (entry, klm) in entries.zip(list) {
        klm.emit(entry).unwrap();
    }
    bytes
}

/// A model with both regions and these keys.
fn with_keys(keys: &[(Mkey, &[Klm])]) -> Model {
    let mut model = model();
    let pages = OTHER_FIRST..OTHER_FIRST + 4;
    model.world().memory.mmap(pages, Protection::Read);
    model.register(OTHER, 0, OTHER_FIRST * 4096, 4 * 4096, false);
    for (key, list) in keys {
        let said = Ok(query(list));
        model.indirect.insert(key.index().get(), said);
    }
    model
}

fn access(at: u64, bytes: u32, write: bool) -> PageFault {
    PageFault::Rdma(RdmaFault {
        r_key: WINDOW,
        ..rdma(at, bytes, write)
    })
}

fn other_table(model: &Model) -> Vec<MttAccess> {
    let world = model.world();
    (0..4)
        .map(|page| world.nic.mtt(OTHER, page).access())
        .collect()
}

/// Two regions, neither from the start of a page on; only what is accessed is brought in.
#[test]
fn a_window_leads_to_what_it_is_bound_to() {
    let list = [
        klm(PAGE, KEY, IOVA + 3 * PAGE + 100),
        klm(2 * PAGE, OTHER, PAGE + 4000),
    ];
    let model = with_keys(&[(WINDOW, &list)]);
    fault(&model, access(50, 4096, false));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 3, 2), [R, R]);
    assert_eq!(table(&model, 0, 3), [NONE; 3]);
    assert_eq!(other_table(&model), [NONE, R, NONE, NONE]);
    // Its variant is the user's to choose.
    let PageFault::Rdma(event) = access(PAGE + 200, 10, false) else {
        unreachable!()
    };
    let r_key = Mkey::new(WINDOW.get() | 0x77);
    fault(&model, PageFault::Rdma(RdmaFault { r_key, ..event }));
    assert_eq!(resumed(&model), [true; 2]);
    assert_eq!(other_table(&model), [NONE, R, R, NONE]);
    assert_eq!(
        model
            .mr(OTHER)
            .faults_handled
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

/// A list over a writable and a read-only region may be written to where it is writable.
#[test]
fn rights_are_those_of_what_is_accessed() {
    let list = [klm(PAGE, KEY, IOVA), klm(PAGE, OTHER, 0)];
    let model = with_keys(&[(WINDOW, &list)]);
    fault(&model, access(0, 4096, true));
    fault(&model, access(4090, 10, true));
    fault(&model, access(4090, 10, false));
    assert_eq!(resumed(&model), [true, false, true]);
    assert_eq!(table(&model, 0, 1), [RW]);
    assert_eq!(other_table(&model)[0], R);
}

#[test]
fn a_wqe_may_name_keys_of_every_kind() {
    let list = [klm(PAGE, KEY, IOVA + PAGE), klm(PAGE, KEY, IOVA + 9 * PAGE)];
    let segments = [
        (4096, KEY.get(), IOVA),
        (8192, WINDOW.get(), 0),
        (10, 0x9900, 0x1234),
    ];
    let queue = ModelQueue {
        send: send_wqe(0x0a, &[], &segments),
        ..Default::default()
    };
    let mut model = with_queue(with_keys(&[(WINDOW, &list)]), queue);
    let mut event = wqe(WqeFaultKind::SendOrWrite);
    // All of the first segment, and of the second one's first piece.
    event.bytes_committed = 4096 + 4096 + 8;
    fault(&model, PageFault::Wqe(event));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 0, 3), [NONE; 3]);
    assert_eq!(table(&model, 9, 1), [R]);

    model.queues.get_mut(&0x42).unwrap().receive = [
        data_segment(&(0, 0, 0)),
        data_segment(&(8192, WINDOW.get(), 0)),
    ]
    .concat();
    fault(&model, PageFault::Wqe(wqe(WqeFaultKind::SharedReceive)));
    assert_eq!(table(&model, 1, 1), [RW]);
}

/// The device follows four.
#[test]
fn keys_may_refer_to_keys_that_refer_to_keys() {
    let key = |n: u32| Mkey::new(0x5500 + (n << 8));
    let lists = [1, 2, 3, 4].map(|n| [klm(PAGE, key(n), 64), klm(PAGE, key(n), 0)]);
    let last = [klm(PAGE, KEY, IOVA + 5 * PAGE)];
    for (levels, ok) in [(1, true), (4, true), (5, false)] {
        let mut keys: Vec<(Mkey, &[Klm])> = Vec::new();
        for (n, list) in (0..levels - 1).zip(&lists) {
            keys.push((key(n), list));
        }
        keys.push((key(levels - 1), &last));
        let model = with_keys(&keys);
        fault(&model, access(0, 8, true));
        assert_eq!(resumed(&model), [ok], "{levels}");
        assert_eq!(
            table(&model, 5, 1),
            [if ok { RW } else { NONE }],
            "{levels}"
        );
        // One QUERY_MKEY for each.
        assert_eq!(model.world().queries, levels.min(4));
    }
    // One that refers to itself.
    let itself = [klm(PAGE, WINDOW, 0)];
    let model = with_keys(&[(WINDOW, &itself)]);
    fault(&model, access(0, 8, true));
    assert_eq!(resumed(&model), [false]);
}

/// A pinned region below a window is there; what is gone the device finds out.
#[test]
fn what_is_not_on_demand_counts_as_present() {
    let list = [klm(PAGE, Mkey::new(0x9900), 0), klm(PAGE, KEY, IOVA)];
    let mut model = with_keys(&[(WINDOW, &list)]);
    fault(&model, access(0, 8192, true));
    assert_eq!(table(&model, 0, 1), [RW]);
    model
        .indirect
        .insert(WINDOW.index().get(), Err(NoQuery::Gone));
    fault(&model, access(0, 8192, true));
    assert_eq!(resumed(&model), [true; 2]);
}

#[test]
fn what_cannot_be_asked_or_made_out_is_answered_once() {
    let whole = query(&[klm(100, KEY, IOVA)]);
    let mut mode = whole.clone();
    // No access mode has this number.
    mode[0x10] = 0x1c;
    let free = {
        let mut bytes = whole.clone();
        bytes[0x10] |= 0x40;
        bytes
    };
    let cases = [
        (Err(NoQuery::Memory), true, vec![]),
        (Err(NoQuery::Failed), false, vec![]),
        (Ok(whole[..0x40].to_vec()), false, vec!["truncated"]),
        (Ok(mode), false, vec!["mode"]),
        (Ok(free), false, vec![]),
        // The access is longer than the list.
        (Ok(whole), false, vec!["xlt"]),
    ];
    for (n, (said, ok, reports)) in cases.into_iter().enumerate() {
        let mut model = with_keys(&[]);
        model.indirect.insert(WINDOW.index().get(), said);
        fault(&model, access(0, 200, false));
        assert_eq!(resumed(&model), [ok], "{n}");
        assert_eq!(model.world().gave_back, u32::from(ok), "{n}");
        let world = model.world();
        let seen = world.reports.iter().map(|report| match report {
            Report::Key(Error::Truncated { .. }) => "truncated",
            Report::Key(Error::AccessMode(_)) => "mode",
            Report::Key(Error::Xlt) => "xlt",
            other => panic!("{other:?}"),
        });
        let seen: Vec<_> = seen.collect();
        assert_eq!(seen, reports, "{n}");
    }
}

/// A list may be as long as its user likes: one entry that is gone through again and again.
#[test]
fn an_access_in_countless_pieces_ends() {
    let mut bytes = query(&[Klm::default(); 2]);
    let block = StrideBlock {
        bcount_per_cycle: 1,
        repeat_count: u32::MAX,
        num_entries: 1,
    };
    block.emit(&mut bytes[QueryMkeyOut::LEN..]).unwrap();
    let stride = firmware_cmds::Stride {
        stride: 1,
        bcount: 1,
        key: Mkey::new(0x9900),
        va: Iova::new(0),
    };
    stride.emit(&mut bytes[QueryMkeyOut::LEN + 16..]).unwrap();
    let mut model = with_keys(&[]);
    model.indirect.insert(WINDOW.index().get(), Ok(bytes));
    fault(&model, access(0, 1 << 16, false));
    fault(&model, access(0, 1 << 30, false));
    assert_eq!(resumed(&model), [true, false]);
    assert_eq!(
        model.world().reports,
        [Report::Unsupported(Unsupported::Pieces)]
    );
}

/// A device without a length: the packet is demanded, what follows brought in of a region only.
#[test]
fn an_operation_without_a_length_brings_in_its_packet() {
    let list = [klm(4 * PAGE, KEY, IOVA)];
    let model = with_keys(&[(WINDOW, &list)]);
    fault(&model, access(4000, 0, true));
    assert_eq!(resumed(&model), [true]);
    assert_eq!(table(&model, 0, 3), [RW, RW, NONE]);
}

/// The memory scheme names the key whose entry is missing, which none of these has.
#[test]
fn a_memory_fault_of_such_a_key_fails() {
    let list = [klm(4 * PAGE, KEY, IOVA)];
    let model = with_keys(&[(WINDOW, &list)]);
    let event = MemoryFault {
        mkey: WINDOW,
        ..memory(0, 1)
    };
    fault(&model, PageFault::Memory(event));
    assert_eq!(resumed(&model), [false]);
    assert_eq!(model.world().queries, 0);
}

/// A READ that finds every page wants to write, whatever its event says; one that was missing
/// explains the fault.
#[test]
fn one_missing_piece_explains_a_fault() {
    let list = [klm(PAGE, KEY, IOVA), klm(PAGE, KEY, IOVA + 7 * PAGE)];
    let model = with_keys(&[(WINDOW, &list)]);
    let read = access(0, 8192, false);
    fault(&model, read);
    later(&model);
    for page in [0, 7, 0] {
        drop_pages(&model, page..page + 1);
        fault(&model, read);
        later(&model);
        assert_eq!([table(&model, 0, 1), table(&model, 7, 1)], [[R], [R]]);
    }
    fault(&model, read);
    fault(&model, read);
    assert_eq!([table(&model, 0, 1), table(&model, 7, 1)], [[RW], [RW]]);
    assert_eq!(resumed(&model), [true; 6]);
}
