// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! UMR: masks, lists, checks.

use firmware_cmds::mkey::CreateMkeyIn;
use firmware_cmds::umr::{MkeyMask, UmrFlags};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{AccessMode, LogPageSize, Mkc, Mkey, Mtt, MttAccess, PageFault, Scheme, Wire};

use crate::rig::{data, mtt, raddr, Rig};

const RW: MttAccess = MttAccess::READ_WRITE;
const VA: u64 = 0x7f00_0000_1000;

fn free_mkey(rig: &mut Rig, octwords: u32) -> Mkey {
    let mut mkc = rig.mkc(AccessMode::Mtt);
    mkc.translations_octword_size = octwords;
    rig.create_mkey(&mkc, &[])
}

fn mkc_of(rig: &Rig, key: Mkey) -> Mkc {
    rig.device.mkeys.get(key.index().get()).unwrap().mkc
}

#[test]
fn only_fields_in_the_mask_change() {
    let mut rig = Rig::new(Scheme::Memory);
    let key = free_mkey(&mut rig, 4);
    let before = mkc_of(&rig, key);
    let new = Mkc {
        free: false,
        len: 0x2000,
        length64: true,
        start_addr: firmware_cmds::Iova::new(0x5000),
        log_page_size: LogPageSize::new(0x35).unwrap(),
        ..Mkc::default()
    };
    let flags = UmrFlags::new();
    let set = |rig: &mut Rig, mask| {
        rig.umr_ok(key, flags, mask, &new, 0, &[]);
        mkc_of(rig, key)
    };
    let mut expected = before;
    assert_eq!(set(&mut rig, MkeyMask::new()), expected);
    expected.len = 0x2000;
    expected.length64 = true;
    assert_eq!(set(&mut rig, MkeyMask::new().with_len(true)), expected);
    // Bit 5 of the page size has a mask bit of its own: 12 becomes 0x15, then 0x35.
    expected.log_page_size = LogPageSize::new(0x15).unwrap();
    assert_eq!(
        set(&mut rig, MkeyMask::new().with_page_size(true)),
        expected
    );
    expected.log_page_size = LogPageSize::new(0x35).unwrap();
    assert_eq!(
        set(&mut rig, MkeyMask::new().with_page_size_5(true)),
        expected
    );
    expected.access.remote_write = false;
    assert_eq!(set(&mut rig, MkeyMask::new().with_rw(true)), expected);
    expected.free = false;
    assert_eq!(set(&mut rig, MkeyMask::new().with_free(true)), expected);
    assert!(rig.violations().is_empty());
}

#[test]
fn a_list_in_several_wqes_and_the_counts() {
    let mut rig = Rig::new(Scheme::Memory);
    let key = free_mkey(&mut rig, 16);
    let list: Vec<Mtt> = (1..=16).map(|n| mtt(n << 12, RW)).collect();
    rig.umr_ok(
        key,
        UmrFlags::new(),
        MkeyMask::new(),
        &Mkc::default(),
        0,
        &list,
    );
    rig.umr_ok(
        key,
        UmrFlags::new(),
        MkeyMask::new(),
        &Mkc::default(),
        16,
        &list,
    );
    let none = [Mtt::NOT_PRESENT; 8];
    rig.umr_ok(
        key,
        UmrFlags::new(),
        MkeyMask::new(),
        &Mkc::default(),
        8,
        &none,
    );
    // What is taken back already is not taken back again.
    rig.umr_ok(
        key,
        UmrFlags::new(),
        MkeyMask::new(),
        &Mkc::default(),
        8,
        &none,
    );
    let xlt = &rig.device.mkeys.get(key.index().get()).unwrap().xlt;
    for index in 0..32_u64 {
        let found: Mtt = xlt.entry(index).unwrap();
        let expected = match index {
            8..16 => Mtt::NOT_PRESENT,
            _ => mtt((index % 16 + 1) << 12, RW),
        };
        assert_eq!(found, expected, "{index}");
    }
    assert_eq!(xlt.entry::<Mtt>(32), None);
    let counters = rig.device.counters;
    assert_eq!((counters.mtts_set, counters.mtts_cleared), (32, 8));
    assert_eq!(counters.umr_xlt_updates, 4);
}

#[test]
fn what_a_driver_must_not_do() {
    let free = UmrFlags::new().with_check_free(true);
    let not_free = UmrFlags::new().with_check_not_free(true);
    let none = MkeyMask::new();
    let unknown = MkeyMask::from_bits((1_u64 << 2).into());
    let odd_flag = UmrFlags::from_bits(1 << 2);
    let check_qpn = UmrFlags::new().with_check_qpn(true);
    let present = [mtt(0x1000, RW); 8];
    type Case<'a> = (
        &'a str,
        UmrFlags,
        MkeyMask,
        u64,
        &'a [Mtt],
        fn(Mkey) -> Mkey,
    );
    let same: fn(Mkey) -> Mkey = |key| key;
    let not_offered = [
        none.with_en_sigerr(true),
        none.with_bsf_en(true),
        none.with_relaxed_ordering_write(true),
        none.with_relaxed_ordering_read(true),
    ];
    let not_offered: Vec<Case<'_>> = not_offered
        .into_iter()
        .map(|mask| -> Case<'_> { ("unknown mask bits", not_free, mask, 0, &[], same) })
        .collect();
    let cases: [Case<'_>; 9] = [
        ("the MKey is free", free, none, 0, &[], same),
        ("unknown mask bits", not_free, unknown, 0, &[], same),
        ("unknown flags 0x4", odd_flag, none, 0, &[], same),
        ("another QP", check_qpn, none, 0, &[], same),
        (
            "beyond the translation table",
            not_free,
            none,
            8,
            &present,
            same,
        ),
        (
            "beyond the translation table",
            not_free,
            none,
            32,
            &present,
            same,
        ),
        ("unaligned", not_free, none, 2, &present, same),
        ("unknown MKey", not_free, none, 0, &[], |key| {
            Mkey::new(key.get() + 0x100)
        }),
        ("variant mismatch", not_free, none, 0, &[], |key| {
            Mkey::new(key.get() ^ 1)
        }),
    ];
    for (why, flags, mask, first, list, which) in cases.into_iter().chain(not_offered) {
        let mut rig = Rig::new(Scheme::Memory);
        let key = free_mkey(&mut rig, 4);
        let mkey = rig.device.mkeys.get_mut(key.index().get()).unwrap();
        mkey.mkc.qpn = firmware_cmds::Qpn::new(0x40_0000).unwrap();
        rig.post_umr(which(key), flags, mask, &Mkc::default(), first, list);
        let done = rig.run();
        let key_is_gone = ["the MKey is free", "unknown MKey", "variant mismatch"];
        let syndrome = if key_is_gone.contains(&why) { 6 } else { 2 };
        assert_eq!(done[0].opcode, 0xd, "{why}");
        assert_eq!(done[0].syndrome, syndrome, "{why}");
        let violations = rig.violations();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(violations[0].contains(why), "{why}: {violations:?}");
    }
}

/// (opcode, syndrome) of what completes.
fn ends(rig: &mut Rig) -> Vec<(u8, u8)> {
    let done = rig.run();
    done.iter().map(|c| (c.opcode, c.syndrome)).collect()
}

#[test]
fn a_key_that_is_gone_is_a_bind_error_and_flushes_what_was_posted_behind() {
    // Destroyed, and revoked as `mlx5r_umr_revoke_mr` does.
    for destroyed in [true, false] {
        let mut rig = Rig::new(Scheme::Memory);
        let (gone, other) = (rig.mr(VA, 8, RW), rig.mr(2 * VA, 8, RW));
        let check = UmrFlags::new().with_check_free(true);
        let none = Mkc::default();
        if destroyed {
            let mut input = vec![0; 16];
            input[..2].copy_from_slice(&0x202_u16.to_be_bytes());
            input[8..12].copy_from_slice(&gone.key.index().get().to_be_bytes());
            rig.command(&input, 16);
        } else {
            let free = Mkc { free: true, ..none };
            let mask = MkeyMask::new().with_free(true);
            rig.umr_ok(gone.key, UmrFlags::new(), mask, &free, 0, &[]);
        }
        let zap = [Mtt::NOT_PRESENT; 8];
        for key in [gone.key, other.key, other.key] {
            rig.post_umr(key, check, MkeyMask::new(), &none, 0, &zap);
        }
        assert_eq!(ends(&mut rig), [(0xd, 6), (0xd, 5), (0xd, 5)]);
        assert_eq!(rig.device.counters.umr_bind_errors, 1);
        let xlt = &rig.device.mkeys.get(other.key.index().get()).unwrap().xlt;
        assert_eq!(xlt.entry(0), Some(mtt(other.iova, RW)));
        // The barrier of `mlx5r_umr_recover`, then 2RST and back to RTS.
        rig.post_umr(other.key, check, MkeyMask::new(), &none, 0, &zap);
        assert_eq!(ends(&mut rig), [(0xd, 5)]);
        rig.recover_umr();
        rig.set_mtts(other.key, 0, &zap);
        let xlt = &rig.device.mkeys.get(other.key.index().get()).unwrap().xlt;
        assert_eq!(xlt.entry(0), Some(Mtt::NOT_PRESENT));
    }
}

#[test]
fn late_flush_completions_are_lost_at_2rst() {
    for barrier in [true, false] {
        let mut rig = Rig::new(Scheme::Memory);
        let mr = rig.mr(VA, 8, RW);
        rig.rule("completion syndrome=FLUSH do=delay ms=50");
        let check = UmrFlags::new().with_check_not_free(true);
        let post = |rig: &mut Rig| {
            rig.post_umr(mr.key, check, MkeyMask::new(), &Mkc::default(), 0, &[]);
        };
        // The first fails, another caller waits for the second.
        post(&mut rig);
        post(&mut rig);
        assert_eq!(ends(&mut rig), [(0xd, 2)]);
        if barrier {
            // The last WQE of the queue: when it is flushed, all are.
            post(&mut rig);
            assert_eq!(ends(&mut rig), []);
            rig.now += std::time::Duration::from_millis(50);
            assert_eq!(ends(&mut rig), [(0xd, 5), (0xd, 5)]);
        }
        rig.recover_umr();
        rig.now += std::time::Duration::from_millis(100);
        // Without the barrier the other caller waits for ever (CVE-2025-21892).
        assert_eq!(ends(&mut rig), []);
        rig.set_mtts(mr.key, 0, &[mtt(mr.iova, RW); 8]);
    }
}

/// The largest memory on demand: a TiB in pages of 4 KiB, of which two are brought in.
#[test]
fn a_terabyte_is_registered_and_worked_on_at_both_ends() {
    const MTTS: u64 = 1 << 28;
    const START: u64 = 1 << 44;
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _) = rig.rc_pair();
    let src = rig.mr(VA, 1, RW);
    let key = free_mkey(&mut rig, 1 << 27);
    let mut mkc = rig.mkc(AccessMode::Mtt);
    mkc.free = false;
    mkc.start_addr = firmware_cmds::Iova::new(START);
    mkc.len = MTTS << 12;
    let mask = MkeyMask::new()
        .with_free(true)
        .with_len(true)
        .with_start_addr(true);
    let absent = [Mtt::NOT_PRESENT; 512];
    rig.umr_ok(key, UmrFlags::new(), mask, &mkc, MTTS - 512, &absent);
    for page in [0, MTTS - 1] {
        let va = START + (page << 12);
        let bytes = rig.fill(src.iova, 64, 7 + u8::try_from(page & 1).unwrap());
        let mut body = raddr(key, va);
        body.extend(data(src.key, VA, 64));
        rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
        assert!(rig.run().is_empty());
        let fault = rig.fault();
        let PageFault::Memory(memory) = fault else {
            panic!("{fault:?}");
        };
        assert_eq!((memory.mkey, memory.va.get()), (key, va));
        let iova = rig.pages(1);
        let mut list = [Mtt::NOT_PRESENT; 8];
        list[usize::try_from(page % 8).unwrap()] = mtt(iova, RW);
        rig.set_mtts(key, page & !7, &list);
        assert_eq!(rig.resume(&fault, false)[0].syndrome, 0);
        assert_eq!(rig.peek(iova, 64), bytes);
    }
    let mkey = rig.device.mkeys.get(key.index().get()).unwrap();
    assert_eq!(mkey.xlt.chunks(), 2);
    assert!(rig.violations().is_empty());
}

#[test]
fn enabling_an_mkey_that_is_not_free() {
    let mut rig = Rig::new(Scheme::Memory);
    let mr = rig.mr(VA, 4, RW);
    let flags = UmrFlags::new().with_check_not_free(true);
    rig.post_umr(mr.key, flags, MkeyMask::new(), &Mkc::default(), 0, &[]);
    assert_eq!(rig.run()[0].opcode, 0xd);
    assert!(rig.violations()[0].contains("not free"));
}

#[test]
fn a_range_longer_than_the_table() {
    let mut rig = Rig::new(Scheme::Memory);
    let key = free_mkey(&mut rig, 1);
    let mut mkc = rig.mkc(AccessMode::Mtt);
    mkc.free = false;
    mkc.len = 0x2001;
    let mask = MkeyMask::new().with_free(true).with_len(true);
    let before = mkc_of(&rig, key);
    rig.post_umr(key, UmrFlags::new(), mask, &mkc, 0, &[mtt(0x1000, RW); 2]);
    assert_eq!(rig.run()[0].opcode, 0xd);
    assert!(rig.violations()[0].contains("beyond the translation table"));
    // Nothing of it was done.
    assert_eq!(mkc_of(&rig, key), before);
    let xlt = &rig.device.mkeys.get(key.index().get()).unwrap().xlt;
    assert_eq!(xlt.entry(0), Some(Mtt::NOT_PRESENT));
    assert_eq!(rig.device.counters.mtts_set, 0);
}

#[test]
fn a_list_that_overhangs_its_table_is_refused_and_its_padding_is_not() {
    let mut rig = Rig::new(Scheme::Memory);
    let key = free_mkey(&mut rig, 5);
    let none = Mkc::default();
    let (flags, mask) = (UmrFlags::new(), MkeyMask::new());
    let list = [mtt(0x1000, RW); 16];
    rig.umr_ok(key, flags, mask, &none, 0, &list);
    assert_eq!(rig.device.counters.mtts_set, 10);
    rig.post_umr(key, flags, mask, &none, 8, &list);
    assert_eq!(rig.run()[0].opcode, 0xd);
    assert!(rig.violations()[0].contains("beyond the translation table"));
    assert_eq!(rig.device.counters.mtts_set, 10);
}

#[test]
fn create_mkey_with_more_than_its_table_is_refused() {
    let mut rig = Rig::new(Scheme::Memory);
    let mut create = CreateMkeyIn {
        mkc: rig.mkc(AccessMode::Mtt),
        translations_octword_actual_size: 4,
        ..CreateMkeyIn::default()
    };
    for (octwords, status) in [(1, 0), (0, 3)] {
        create.mkc.translations_octword_size = octwords;
        let mut input = vec![0; CreateMkeyIn::LEN];
        create.emit(&mut input).unwrap();
        input.extend([0; 64]);
        assert_eq!(rig.status(&input), status, "{octwords}");
    }
    assert_eq!(rig.violations().len(), 1);
}
