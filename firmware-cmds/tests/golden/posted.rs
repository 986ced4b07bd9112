// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the unmodified mlx5_ib of Linux 7.3 posted to a device, and what it is. Written anew from
//! the values read, every byte comes out the same.

use firmware_cmds::mkey::{CreateMkeyIn, DestroyMkeyIn};
use firmware_cmds::page_fault::FaultType;
use firmware_cmds::umr::{MkeyMask, UmrWqe, UmrXlt};
use firmware_cmds::wqe::{DataSeg, SendTransport, SendWqe};
use firmware_cmds::{
    AccessMode, FaultToken, Iova, MemoryToken, Mkey, MkeyIndex, PageFaultResume, Pdn, Qpn, Scheme,
    TransportToken, Wire, WqNumber,
};

use crate::hex;

/// A UMR WQE in full, and that it is written as it was read.
fn umr(bytes: &[u8], check: impl Fn(&UmrWqe<'_>)) {
    let send = SendWqe::parse(bytes, SendTransport::Connected).expect("a WQE");
    // The transport has no part in a UMR.
    for other in [SendTransport::XrcInitiator, SendTransport::Datagram] {
        assert_eq!(SendWqe::parse(bytes, other), Ok(send));
    }
    let umr = UmrWqe::parse(&send).expect("a UMR");
    assert_eq!(umr.mkc.qpn, Qpn::ANY);
    assert_eq!(umr.umr.mkey_mask.unknown(), 0);
    check(&umr);
    let mut written = vec![0xa5; bytes.len()];
    assert_eq!(umr.ctrl.emit(&mut written), Ok(()));
    assert_eq!(umr.umr.emit(&mut written[16..]), Ok(()));
    assert_eq!(umr.mkc.emit(&mut written[64..]), Ok(()));
    if let UmrXlt::Data(data) = umr.xlt {
        assert_eq!(data.emit(&mut written[128..]), Ok(()));
    }
    assert_eq!(written, bytes);
}

/// The list in memory that `umr` points to: its address, and that the lengths agree.
fn list(umr: &UmrWqe<'_>) -> u64 {
    let UmrXlt::Data(DataSeg {
        byte_count,
        lkey,
        addr,
    }) = umr.xlt
    else {
        panic!("no list in memory: {umr:?}");
    };
    assert_eq!(usize::try_from(byte_count.bytes()), Ok(umr.umr.xlt_bytes()));
    assert_eq!(lkey, Mkey::new(0x1203));
    addr.get()
}

/// What enables an MR in the memory scheme of a device that has atomics.
fn enable_mask() -> MkeyMask {
    MkeyMask::new()
        .with_free(true)
        .with_key(true)
        .with_len(true)
        .with_page_size(true)
        .with_start_addr(true)
        .with_pd(true)
        .with_lr(true)
        .with_lw(true)
        .with_rr(true)
        .with_rw(true)
        .with_a(true)
}

/// umr.c:mlx5r_umr_update_xlt with MLX5_IB_UPD_XLT_ENABLE: an ODP MR of one page is registered.
#[test]
fn enable() {
    let bytes = hex("
        00000025 00004209 00000028 00001304
        30000000 00040000 00000000 203e20c3
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00007c00 ffffff04 00000000 00000004
        00007f32 2ffcd000 00000000 00000400
        00000000 00000000 00000000 00000000
        00000000 00000000 0000000c 00000000
        00000040 00001203 00000000 04062000");
    umr(&bytes, |umr| {
        assert_eq!(umr.ctrl.mkey(), Mkey::new(0x1304));
        assert_eq!(umr.umr.mkey_mask, enable_mask());
        assert!(umr.umr.flags.check_not_free() && !umr.umr.flags.check_free());
        assert_eq!(umr.umr.xlt_offset().bytes(), 0);
        assert_eq!(umr.mkc.start_addr, Iova::new(0x7f32_2ffc_d000));
        assert_eq!((umr.mkc.len, umr.mkc.pd), (0x400, Pdn::truncate(4)));
        assert_eq!(umr.mkc.log_page_size.bytes(), 4096);
        let access = umr.mkc.access;
        assert!(access.local_read && access.local_write && access.remote_read);
        assert!(access.remote_write && access.atomic && !umr.mkc.free);
        assert_eq!(list(umr), 0x0406_2000);
    });
}

/// umr.c:mlx5r_umr_update_xlt: a page of that MR is published, or taken back.
#[test]
fn update_mtts() {
    let bytes = hex("
        00000625 00004209 00000028 00001304
        50000000 00040000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00007c00 ffffff04 00000000 00000000
        00007f32 2ffcd000 00000000 00000400
        00000000 00000000 00000000 00000000
        00000000 00000000 0000000c 00000000
        00000040 00001203 00000000 03733000");
    umr(&bytes, |umr| {
        assert_eq!(
            (umr.ctrl.mkey(), umr.ctrl.wqe_index),
            (Mkey::new(0x1304), 6)
        );
        assert!(umr.umr.mkey_mask.is_empty());
        assert!(umr.umr.flags.check_free() && umr.umr.flags.translation_offset_en());
        assert_eq!(umr.umr.xlt_bytes(), 64);
        assert_eq!(list(umr), 0x0373_3000);
    });
}

/// The same in the middle of an MR of 1 GiB: an implicit MR's child.
#[test]
fn update_mtts_at_an_offset() {
    let bytes = hex("
        001bf125 00004209 00000028 00001908
        50000000 00049060 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00007c00 ffffff08 00000000 00000000
        00007f3a 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 0000000c 00000000
        00000040 00001203 00000000 03733000");
    umr(&bytes, |umr| {
        assert_eq!(umr.ctrl.mkey(), Mkey::new(0x1908));
        assert_eq!(umr.umr.xlt_offset().bytes(), 0x9060 * 16);
        assert_eq!(umr.mkc.start_addr, Iova::new(0x7f3a_0000_0000));
    });
}

/// umr.c:mlx5r_umr_update_xlt with MLX5_IB_UPD_XLT_INDIRECT: first and last part of the KSMs of an
/// implicit MR. Only the last has a mask.
#[test]
fn enable_implicit() {
    let first = hex("
        000e2e25 00004209 00000028 00001506
        30000000 fffc0000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00007c00 ffffff06 00000000 0000000a
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 0000001e 00000000
        000fffc0 00001203 00000000 04700000");
    umr(&first, |umr| {
        assert!(umr.umr.mkey_mask.is_empty());
        assert_eq!(umr.mkc.log_page_size.bytes(), 1 << 30);
        assert_eq!(umr.umr.xlt_bytes(), 0xf_ffc0);
        assert_eq!(list(umr), 0x0470_0000);
    });
    let last = hex("
        000e3425 00004209 00000028 00001506
        30000000 0008fff8 00000000 203e20c3
        00000001 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00007c00 ffffff06 00000000 8000000a
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 0000001e 00000000
        00000080 00001203 00000000 04700000");
    umr(&last, |umr| {
        assert_eq!(umr.umr.mkey_mask, enable_mask());
        assert_eq!(umr.umr.xlt_offset().bytes(), 0x1_fff8 * 16);
        assert!(umr.mkc.length64);
        assert_eq!(umr.umr.xlt_bytes(), 0x80);
    });
}

/// umr.c:mlx5r_umr_revoke_mr.
#[test]
fn revoke() {
    let bytes = hex("
        0004b625 00004208 00000028 00001405
        80000000 00000000 00000000 20000080
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        40000000 ffffff05 00000000 00000003
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000");
    umr(&bytes, |umr| {
        assert_eq!(umr.xlt, UmrXlt::None);
        let mask = MkeyMask::new().with_free(true).with_pd(true);
        assert_eq!(umr.umr.mkey_mask, mask);
        assert!(umr.umr.flags.inline() && umr.mkc.free);
        assert_eq!(umr.mkc.pd, Pdn::truncate(3));
    });
}

/// CREATE_MKEY up to where the rest is zeros, and that it is written as it was read.
fn create(start: &str, len: usize) -> (CreateMkeyIn, Vec<u8>) {
    let mut bytes = hex(start);
    bytes.resize(len, 0);
    let (create, list) = CreateMkeyIn::parse_prefix(&bytes).expect("CREATE_MKEY");
    let mut written = vec![0xa5; CreateMkeyIn::LEN];
    assert_eq!(create.emit(&mut written), Ok(()));
    assert_eq!(written, bytes[..CreateMkeyIn::LEN]);
    (create, list.to_vec())
}

#[test]
fn create_mkeys() {
    // The PA MKey of a protection domain.
    let (pa, list) = create(
        "
        02000000 00000000 00000000 00000000
        00000c00 ffffff01 00000000 80000001",
        272,
    );
    assert_eq!(
        (pa.mkc.access_mode, pa.mkc.pd),
        (AccessMode::Pa, Pdn::truncate(1))
    );
    assert!(pa.mkc.length64 && !pa.mkc.umr_en && !pa.mkc.free && list.is_empty());

    // mr.c: of the pool, for MTTs and for KSMs.
    let (pooled, _) = create(
        "
        02000000 00000000 00000000 00000000
        40008500 ffffff04 00000000 00000003
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000001 0000000c 00000000",
        272,
    );
    assert_eq!(pooled.mkc.access_mode, AccessMode::Mtt);
    assert!(pooled.mkc.free && pooled.mkc.umr_en && !pooled.pg_access);
    assert_eq!(pooled.mkc.translations_octword_size, 1);
    let (pooled, _) = create(
        "
        02000000 00000000 00000000 00000000
        40008700 ffffff06 00000000 00000003
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00020000 0000000c 00000000",
        272,
    );
    assert_eq!(pooled.mkc.access_mode, AccessMode::Ksm);
    assert_eq!(pooled.mkc.translations_octword_size, 1 << 17);

    // odp.c:alloc_implicit_mr_null_mkey: one entry for the whole address space, not present.
    let (null, list) = create(
        "
        02000000 00000000 00000000 80000000
        00007d00 ffffff00 00000000 8000000a
        00000000 00000000 00000000 00000000
        00000000 00000000 00000000 00000000
        00000000 00000004 0000003d 00000000
        00000000 00000000 00000000 00000000
        00000004 00000000 00000000 00000000",
        336,
    );
    assert!(null.pg_access && null.mkc.length64);
    assert_eq!(null.mkc.log_page_size.get(), 61);
    assert_eq!(null.translations_octword_actual_size, 4);
    assert_eq!(list, [0; 64]);
}

#[test]
fn destroy_mkey() {
    let bytes = hex("02020000 00000000 00000014 00000000");
    let destroy = DestroyMkeyIn::parse(&bytes).expect("DESTROY_MKEY");
    assert_eq!(destroy.mkey_index, MkeyIndex::truncate(0x14));
    let mut written = [0xa5; 16];
    assert_eq!(destroy.emit(&mut written), Ok(()));
    assert_eq!(written, bytes[..]);
}

/// odp.c:mlx5_ib_page_fault_resume.
#[test]
fn resume() {
    let check = |text: &str, scheme, fault, error| {
        let bytes = hex(text);
        let resume = PageFaultResume::parse(&bytes, scheme).expect("PAGE_FAULT_RESUME");
        assert_eq!(resume, PageFaultResume { fault, error });
        assert_eq!(resume.to_bytes(), bytes[..]);
    };
    for (text, error, token) in [
        ("02040000 00000000 00000000 00000001", false, 1),
        ("02040000 00000000 80000000 000002f3", true, 0x2f3),
    ] {
        let fault = FaultToken::Memory(MemoryToken::truncate(token));
        check(text, Scheme::Memory, fault, error);
    }
    // SEND, its receive, RDMA READ at the responder, and at the requester.
    for (text, fault_type, wq_number, token) in [
        ("02040000 00000000 01000043 00000001", 1, 0x43, 1),
        ("02040000 00000000 02000044 00000002", 2, 0x44, 2),
        ("02040000 00000000 040000c9 000000c9", 4, 0xc9, 0xc9),
        ("02040000 00000000 03000045 000000ca", 3, 0x45, 0xca),
    ] {
        let fault = FaultToken::Transport {
            fault_type: FaultType::truncate(fault_type),
            wq_number: WqNumber::truncate(wq_number),
            token: TransportToken::truncate(token),
        };
        check(text, Scheme::Transport, fault, false);
    }
}
