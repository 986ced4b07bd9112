// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Translation: PA, MTT, KSM, KLM.

use connectx::mkey::{Access, Denied, Extent, MKey, Missing, Mkeys, Target, WalkError, NULL_MKEY};
use firmware_cmds::{
    Access as Rights, AccessMode, Klm, Ksm, LogPageSize, Mkc, Mkey, MkeyIndex, MkeyVariant, Mtt,
    MttAccess, Pdn, Qpn, Stride, StrideBlock, Wire,
};

use crate::rig::mtt;

const PD: u32 = 7;
const QPN: u32 = 0x41;

fn mkc(access_mode: AccessMode, start: u64, len: u64, log: u8, octwords: u32) -> Mkc {
    Mkc {
        access_mode,
        access: Rights {
            atomic: true,
            remote_write: true,
            remote_read: true,
            local_write: true,
            local_read: true,
        },
        pd: Pdn::new(PD).unwrap(),
        qpn: Qpn::ANY,
        start_addr: firmware_cmds::Iova::new(start),
        len,
        log_page_size: LogPageSize::new(log).unwrap(),
        translations_octword_size: octwords,
        variant: MkeyVariant::new(3),
        ..Mkc::default()
    }
}

fn add<T: Wire>(mkeys: &mut Mkeys, mkc: Mkc, list: &[T]) -> Mkey {
    let mut bytes = Vec::new();
    for entry in list {
        let at = bytes.len();
        bytes.resize(at + T::LEN, 0);
        entry.emit(&mut bytes[at..]).unwrap();
    }
    let mut mkey = MKey::new(mkc);
    mkey.xlt.write(0, &bytes);
    let index = mkeys.insert(mkey).unwrap();
    Mkey::from_parts(MkeyIndex::new(index).unwrap(), mkc.variant)
}

fn resolve_as(
    mkeys: &Mkeys,
    key: Mkey,
    va: u64,
    len: u64,
    access: Access,
) -> Result<Vec<(u64, u64)>, WalkError> {
    let target = Target {
        key,
        va,
        len,
        access,
        pd: Some(firmware_cmds::Pdn::truncate(PD)),
        qpn: Some(firmware_cmds::Qpn::truncate(QPN)),
    };
    let mut extents: Vec<Extent> = Vec::new();
    mkeys.resolve(&target, u64::MAX, &mut extents)?;
    Ok(extents.iter().map(|e| (e.iova.get(), e.len)).collect())
}

fn resolve(mkeys: &Mkeys, key: Mkey, va: u64, len: u64) -> Result<Vec<(u64, u64)>, WalkError> {
    resolve_as(mkeys, key, va, len, Access::LocalRead)
}

const RW: MttAccess = MttAccess::READ_WRITE;

#[test]
fn pa_is_the_identity() {
    let mut mkeys = Mkeys::default();
    let mut context = mkc(AccessMode::Pa, 0, 0, 0, 0);
    context.length64 = true;
    let key = add::<Mtt>(&mut mkeys, context, &[]);
    assert_eq!(resolve(&mkeys, key, 0x1234, 9), Ok(vec![(0x1234, 9)]));
    assert_eq!(
        resolve(&mkeys, key, u64::MAX, 2),
        Err(WalkError::Denied(Denied::Range))
    );
}

#[test]
fn mtt_with_a_start_inside_a_page() {
    let mut mkeys = Mkeys::default();
    // Pages 0x5000 and 0x9000 behind addresses from 0x1f00 on: the first page holds only
    // 0x100 bytes of the range.
    let list = [mtt(0x5000, RW), mtt(0x9000, RW), mtt(0xa000, RW)];
    let key = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0x1f00, 0x2000, 12, 2),
        &list,
    );
    assert_eq!(
        resolve(&mkeys, key, 0x1f80, 0x100),
        Ok(vec![(0x5f80, 0x80), (0x9000, 0x80)])
    );
    // Neighbours that are contiguous become one piece.
    assert_eq!(
        resolve(&mkeys, key, 0x2800, 0x1000),
        Ok(vec![(0x9800, 0x1000)])
    );
    assert_eq!(resolve(&mkeys, key, 0x3eff, 1), Ok(vec![(0xaeff, 1)]));
    for (va, len) in [(0x3eff, 2), (0x1eff, 1), (u64::MAX, 1), (0x1f00, u64::MAX)] {
        assert_eq!(
            resolve(&mkeys, key, va, len),
            Err(WalkError::Denied(Denied::Range)),
            "{va:#x}+{len:#x}"
        );
    }
}

#[test]
fn mtt_of_huge_pages() {
    let mut mkeys = Mkeys::default();
    let list = [mtt(0x4000_0000, RW), mtt(0x8000_0000, RW)];
    let key = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0x20_1000, 0x20_0000, 21, 1),
        &list,
    );
    assert_eq!(
        resolve(&mkeys, key, 0x3f_ffff, 2),
        Ok(vec![(0x401f_ffff, 1), (0x8000_0000, 1)])
    );
}

#[test]
fn missing_run_is_reported_up_to_what_is_needed() {
    let mut mkeys = Mkeys::default();
    let none = Mtt::NOT_PRESENT;
    let list = [mtt(0x5000, RW), none, none, mtt(0x9000, RW), none];
    let key = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0x1000, 0x5000, 12, 3),
        &list,
    );
    let missing = |va, len, done| Err(WalkError::Missing(Missing { key, va, len, done }));
    assert_eq!(
        resolve(&mkeys, key, 0x1800, 0x4000),
        missing(0x2000, 0x2000, 0x800)
    );
    assert_eq!(resolve(&mkeys, key, 0x2800, 0x10), missing(0x2800, 0x10, 0));
    assert_eq!(
        resolve(&mkeys, key, 0x5800, 0x800),
        missing(0x5800, 0x800, 0)
    );
}

#[test]
fn a_read_only_entry_faults_on_writes_only() {
    let mut mkeys = Mkeys::default();
    let key = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0, 0x1000, 12, 1),
        &[mtt(0x5000, MttAccess::READ)],
    );
    for access in [Access::LocalRead, Access::RemoteRead] {
        assert_eq!(resolve_as(&mkeys, key, 0, 8, access), Ok(vec![(0x5000, 8)]));
    }
    for access in [Access::LocalWrite, Access::RemoteWrite, Access::Atomic] {
        assert!(matches!(
            resolve_as(&mkeys, key, 0, 8, access),
            Err(WalkError::Missing(_))
        ));
    }
}

#[test]
fn implicit_mr_reports_the_leaf() {
    let mut mkeys = Mkeys::default();
    // A child of 1 GiB at its place in the address space, and a null MKey of one entry
    // that spans 2^61 bytes, as the driver makes them.
    let mut child = mkc(AccessMode::Mtt, 1 << 30, 1 << 30, 12, 1 << 17);
    child.variant = MkeyVariant::new(9);
    let child = add(&mut mkeys, child, &[mtt(0x5000, RW)]);
    let mut null = mkc(AccessMode::Mtt, 0, 0, 61, 4);
    null.length64 = true;
    let null = add::<Mtt>(&mut mkeys, null, &[]);
    let mut parent = mkc(AccessMode::Ksm, 0, 0, 30, 1 << 17);
    parent.length64 = true;
    let entry = |key, index: u64| Ksm {
        key,
        va: firmware_cmds::Iova::new(index << 30),
    };
    let list = [entry(null, 0), entry(child, 1), entry(null, 2)];
    let parent = add(&mut mkeys, parent, &list);
    let at = 1_u64 << 30;
    assert_eq!(resolve(&mkeys, parent, at + 16, 8), Ok(vec![(0x5010, 8)]));
    let missing = |key, va, len| {
        Err(WalkError::Missing(Missing {
            key,
            va,
            len,
            done: 0,
        }))
    };
    assert_eq!(
        resolve(&mkeys, parent, at + 0x1ff0, 0x20),
        missing(child, at + 0x1ff0, 0x20)
    );
    assert_eq!(resolve(&mkeys, parent, 0x1234, 8), missing(null, 0x1234, 8));
    // An access that ends in the next child needs both.
    assert_eq!(
        resolve(&mkeys, parent, 2 * at - 8, 16),
        missing(child, 2 * at - 8, 8)
    );
    // Beyond the parent's table.
    assert_eq!(
        resolve(&mkeys, parent, 1 << 47, 8),
        Err(WalkError::Denied(Denied::Table))
    );
}

#[test]
fn the_devices_null_mkey_always_faults() {
    let mkeys = Mkeys::default();
    assert_eq!(
        resolve(&mkeys, NULL_MKEY, 0x1234, 8),
        Err(WalkError::Missing(Missing {
            key: NULL_MKEY,
            va: 0x1234,
            len: 8,
            done: 0
        }))
    );
}

#[test]
fn klm_list() {
    let mut mkeys = Mkeys::default();
    let a = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0, 0x1000, 12, 1),
        &[mtt(0x5000, RW)],
    );
    let klm = |bcount, va| Klm {
        bcount,
        key: a,
        va: firmware_cmds::Iova::new(va),
    };
    let list = [klm(0x10, 0x100), klm(0x20, 0x800)];
    let key = add(&mut mkeys, mkc(AccessMode::Klms, 0x40, 0x30, 0, 2), &list);
    assert_eq!(
        resolve(&mkeys, key, 0x48, 0x18),
        Ok(vec![(0x5108, 8), (0x5800, 0x10)])
    );
}

#[test]
fn strided_blocks() {
    let mut mkeys = Mkeys::default();
    let a = add(
        &mut mkeys,
        mkc(AccessMode::Mtt, 0, 0x1000, 12, 1),
        &[mtt(0x5000, RW)],
    );
    // 4 KLM-sized entries: a KLM of 8 bytes, a block of 3 times (4 + 2) bytes.
    let block = |per_cycle| {
        let mut bytes = vec![0; 64];
        let klm = Klm {
            bcount: 8,
            key: a,
            va: firmware_cmds::Iova::new(0x800),
        };
        let head = StrideBlock {
            bcount_per_cycle: per_cycle,
            repeat_count: 3,
            num_entries: 2,
        };
        let entry = |bcount, stride, va| Stride {
            stride,
            bcount,
            key: a,
            va: firmware_cmds::Iova::new(va),
        };
        klm.emit(&mut bytes[..16]).unwrap();
        head.emit(&mut bytes[16..32]).unwrap();
        entry(4, 0x10, 0x100).emit(&mut bytes[32..48]).unwrap();
        entry(2, 0x20, 0x400).emit(&mut bytes[48..]).unwrap();
        bytes
    };
    let mut of = |per_cycle| {
        let mut mkey = MKey::new(mkc(AccessMode::Klms, 0, 26, 0, 4));
        mkey.xlt.write(0, &block(per_cycle));
        let index = mkeys.insert(mkey).unwrap();
        Mkey::from_parts(MkeyIndex::new(index).unwrap(), MkeyVariant::new(3))
    };
    let (key, short) = (of(6), of(7));
    assert_eq!(
        resolve(&mkeys, key, 4, 22),
        Ok(vec![
            (0x5804, 4),
            (0x5100, 4),
            (0x5400, 2),
            (0x5110, 4),
            (0x5420, 2),
            (0x5120, 4),
            (0x5440, 2),
        ])
    );
    // From the middle of the second repetition on.
    assert_eq!(
        resolve(&mkeys, key, 8 + 6 + 3, 4),
        Ok(vec![(0x5113, 1), (0x5420, 2), (0x5120, 1)])
    );
    // Entries that hold less than a repetition is said to have.
    assert_eq!(
        resolve(&mkeys, short, 8 + 6, 1),
        Err(WalkError::Denied(Denied::Table))
    );
}

#[test]
fn below_an_indirect_key_the_local_rights_count() {
    let mut mkeys = Mkeys::default();
    let mut context = mkc(AccessMode::Mtt, 0, 0x1000, 12, 1);
    context.access = Rights {
        local_read: true,
        ..Rights::default()
    };
    let a = add(&mut mkeys, context, &[mtt(0x5000, RW)]);
    let klm = Klm {
        bcount: 0x1000,
        key: a,
        va: firmware_cmds::Iova::new(0),
    };
    let mut parent = mkc(AccessMode::Klms, 0, 0x1000, 0, 1);
    parent.access.local_read = false;
    let key = add(&mut mkeys, parent, &[klm]);
    let denied = Err(WalkError::Denied(Denied::Permission));
    assert!(resolve_as(&mkeys, key, 0, 8, Access::RemoteRead).is_ok());
    assert_eq!(resolve_as(&mkeys, key, 0, 8, Access::RemoteWrite), denied);
    assert_eq!(resolve_as(&mkeys, key, 0, 8, Access::Atomic), denied);
    assert_eq!(resolve_as(&mkeys, key, 0, 8, Access::LocalRead), denied);
    assert_eq!(resolve_as(&mkeys, a, 0, 8, Access::RemoteRead), denied);
}

#[test]
fn a_ksm_that_is_not_aligned_is_refused() {
    let mut mkeys = Mkeys::default();
    let context = mkc(AccessMode::Mtt, 0, 0x4000, 12, 2);
    let list: Vec<_> = (5..9).map(|n| mtt(n << 12, RW)).collect();
    let a = add(&mut mkeys, context, &list);
    let mut try_at = |start, va| {
        let entry = Ksm {
            key: a,
            va: firmware_cmds::Iova::new(va),
        };
        let parent = mkc(AccessMode::Ksm, start, 0x2000, 13, 1);
        let key = add(&mut mkeys, parent, &[entry]);
        resolve(&mkeys, key, start + 0x1008, 8)
    };
    let denied = Err(WalkError::Denied(Denied::Unaligned));
    assert_eq!(try_at(0x8000, 0x2000), Ok(vec![(0x8008, 8)]));
    // Of the parent, of what it refers to: as pages of 4 KiB they would be aligned.
    assert_eq!(try_at(0x9000, 0x2000), denied);
    assert_eq!(try_at(0x8000, 0x1000), denied);
}

#[test]
fn as_many_indirect_keys_as_the_capabilities_say() {
    let mut mkeys = Mkeys::default();
    let context = mkc(AccessMode::Mtt, 0, 0x1000, 12, 1);
    let mut key = add(&mut mkeys, context, &[mtt(0x5000, RW)]);
    for depth in 1..=5 {
        let klm = Klm {
            bcount: 0x1000,
            key,
            va: firmware_cmds::Iova::new(0),
        };
        key = add(&mut mkeys, mkc(AccessMode::Klms, 0, 0x1000, 0, 1), &[klm]);
        let expected = if depth <= connectx::caps::MAX_INDIRECTION {
            Ok(vec![(0x5010, 8)])
        } else {
            Err(WalkError::Denied(Denied::Depth))
        };
        assert_eq!(resolve(&mkeys, key, 0x10, 8), expected, "{depth}");
    }
}

#[test]
fn an_mkey_that_refers_to_itself_ends() {
    let mut mkeys = Mkeys::default();
    let mut context = mkc(AccessMode::Ksm, 0, 0, 30, 1);
    context.length64 = true;
    let key = add::<Ksm>(&mut mkeys, context, &[]);
    let index = key.index().get();
    let own = Ksm {
        key,
        va: firmware_cmds::Iova::new(0),
    };
    let mut bytes = [0; 16];
    own.emit(&mut bytes).unwrap();
    mkeys.get_mut(index).unwrap().xlt.write(0, &bytes);
    assert_eq!(
        resolve(&mkeys, key, 0, 8),
        Err(WalkError::Denied(Denied::Depth))
    );
}

#[test]
fn protection() {
    let mut mkeys = Mkeys::default();
    let context = mkc(AccessMode::Mtt, 0, 0x1000, 12, 1);
    let key = add(&mut mkeys, context, &[mtt(0x5000, RW)]);
    let denied = |mkeys: &Mkeys, key, why| {
        assert_eq!(resolve(mkeys, key, 0, 8), Err(WalkError::Denied(why)));
    };
    denied(&mkeys, Mkey::new(key.get() ^ 1), Denied::Variant);
    denied(&mkeys, Mkey::new(key.get() + 0x100), Denied::Unknown);
    let index = key.index().get();
    mkeys.get_mut(index).unwrap().mkc.free = true;
    denied(&mkeys, key, Denied::Free);
    mkeys.get_mut(index).unwrap().mkc.free = false;
    mkeys.get_mut(index).unwrap().mkc.pd = Pdn::new(PD + 1).unwrap();
    denied(&mkeys, key, Denied::Pd);
    mkeys.get_mut(index).unwrap().mkc.pd = Pdn::new(PD).unwrap();
    mkeys.get_mut(index).unwrap().mkc.qpn = Qpn::new(QPN + 1).unwrap();
    denied(&mkeys, key, Denied::Qpn);
    mkeys.get_mut(index).unwrap().mkc.qpn = Qpn::new(QPN).unwrap();
    assert_eq!(resolve(&mkeys, key, 0, 8), Ok(vec![(0x5000, 8)]));
    mkeys.get_mut(index).unwrap().mkc.access.local_read = false;
    denied(&mkeys, key, Denied::Permission);
    assert!(resolve_as(&mkeys, key, 0, 8, Access::LocalWrite).is_ok());
    // Nothing is accessed: nothing is checked.
    assert_eq!(resolve(&mkeys, key, 0, 0), Ok(vec![]));
}
