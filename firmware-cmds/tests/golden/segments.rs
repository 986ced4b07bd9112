// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Single segments and translation entries.

use firmware_cmds::umr::{MkeyMask, UmrCtrlSeg, UmrFlags, XltOffset};
use firmware_cmds::wqe::{
    AtomicSeg, Av, BaseAv, ByteCount, CompletionMode, CtrlSeg, DataSeg, Ds, FenceMode, FlowLabel,
    Grh, RaddrSeg, ServiceLevel, SrqNextSeg, StatRate, WqeOpcode, XrcSeg,
};
use firmware_cmds::{
    DmaAddr, Error, Iova, Klm, Ksm, LogPageSize, Mkey, MkeyIndex, MkeyVariant, Mtt, MttAccess, Qpn,
    Srqn, Stride, StrideBlock, Wire, WqNumber,
};

use crate::{golden, hex, ignores};

#[test]
fn mtt() {
    let page = |access| Mtt::new(DmaAddr::new(0x0012_3456_789a_b000), access).expect("aligned");
    golden(&page(MttAccess::READ_WRITE), &hex("0012 3456 789a b003"));
    golden(&page(MttAccess::READ), &hex("0012 3456 789a b001"));
    golden(&page(MttAccess::NONE), &hex("0012 3456 789a b000"));
    let write = MttAccess {
        read: false,
        write: true,
    };
    golden(&page(write), &hex("0012 3456 789a b002"));
    golden(&Mtt::NOT_PRESENT, &[0; 8]);
    ignores(&page(MttAccess::READ), &hex("0012 3456 789a b0fd"));

    assert!(page(write).is_present() && !page(MttAccess::NONE).is_present());
    let smallest = DmaAddr::new(0xffff_ffff_ffff_ff00);
    golden(
        &Mtt::new(smallest, MttAccess::READ).expect("aligned"),
        &hex("ffff ffff ffff ff01"),
    );
    for address in [1, 0x80, 0x1001] {
        let access = MttAccess::READ;
        assert_eq!(
            Mtt::new(DmaAddr::new(address), access),
            Err(Error::Misaligned(address))
        );
    }
}

#[test]
fn klm_and_ksm() {
    let (key, va) = (Mkey::new(0x00ab_cd5c), Iova::new(0x0000_7f12_3456_7890));
    let klm = Klm {
        bcount: 0x8000_0001,
        key,
        va,
    };
    golden(&klm, &hex("80000001 00abcd5c 00007f1234567890"));
    golden(&Ksm { key, va }, &hex("00000000 00abcd5c 00007f1234567890"));
    ignores(&Ksm { key, va }, &hex("ffffffff 00abcd5c 00007f1234567890"));
}

#[test]
fn strided_block() {
    let block = StrideBlock {
        bcount_per_cycle: 0x10,
        repeat_count: 3,
        num_entries: 2,
    };
    golden(&block, &hex("00000010 00000400 00000003 0000 0002"));
    ignores(&block, &hex("00000010 00000400 00000003 ffff 0002"));
    assert_eq!(block.bytes(), 0x30);
    assert_eq!(
        StrideBlock::parse(&hex("00000010 00abcd5c 00000003 0000 0002")),
        Err(Error::StrideBlock(0x00ab_cd5c))
    );
    let stride = Stride {
        stride: 10,
        bcount: 8,
        key: Mkey::new(0x00ab_cd5c),
        va: Iova::new(0x0000_7f12_3456_7890),
    };
    golden(&stride, &hex("000a 0008 00abcd5c 00007f1234567890"));
}

#[test]
fn mkey_has_two_parts() {
    let key = Mkey::from_parts(MkeyIndex::truncate(0xff_edcb), MkeyVariant::new(0x5c));
    assert_eq!(key, Mkey::new(0xffed_cb5c));
    assert_eq!(key.index(), MkeyIndex::truncate(0xff_edcb));
    assert_eq!(key.variant(), MkeyVariant::new(0x5c));
    assert_eq!(MkeyIndex::new(1 << 24), None);
    assert_eq!(MkeyIndex::new((1 << 24) - 1), Some(MkeyIndex::MAX));
    assert_eq!(MkeyIndex::truncate(1 << 24 | 5), MkeyIndex::truncate(5));
}

#[test]
fn numbers() {
    assert_eq!(
        format!("{:?}", MkeyIndex::truncate(0x1f)),
        "MkeyIndex(0x1f)"
    );
    assert_eq!(format!("{:?}", Iova::new(0x1f)), "Iova(0x1f)");
    assert_eq!(format!("{:#x}", Qpn::truncate(0x1f)), "0x1f");
    assert_eq!(Mkey::new(0xa15c).to_string(), "0xa15c");
    assert_eq!(u32::from(Srqn::truncate(0x1f)), 0x1f);
    assert_eq!(
        Qpn::from(WqNumber::from(Qpn::truncate(0x1f))),
        Qpn::truncate(0x1f)
    );

    let last = Iova::new(u64::MAX);
    assert_eq!(Iova::new(u64::MAX - 5).checked_add(5), Some(last));
    assert_eq!(last.checked_add(1), None);
    assert_eq!(LogPageSize::ADAPTER_PAGE.bytes(), 4096);
    assert_eq!(LogPageSize::MAX.bytes(), 1 << 63);
}

fn ctrl(opcode: WqeOpcode, ds: u8) -> CtrlSeg {
    CtrlSeg {
        opmod: 0,
        wqe_index: 0,
        opcode,
        qpn: Qpn::truncate(0x48),
        ds: Ds::truncate(ds),
        signature: 0,
        fence: FenceMode::NONE,
        completion: CompletionMode::Always,
        solicited: false,
        imm: 0,
    }
}

#[test]
fn control_segment() {
    let segment = CtrlSeg {
        opmod: 0x12,
        wqe_index: 0x3456,
        opcode: WqeOpcode::ATOMIC_FA,
        qpn: Qpn::truncate(0x9a_bcde),
        ds: Ds::truncate(0x2d),
        signature: 0x77,
        fence: FenceMode::SMALL_AND_FENCE,
        completion: CompletionMode::AlwaysAndEvent,
        solicited: true,
        imm: 0x0a0b_0c0d,
    };
    golden(&segment, &hex("12345612 9abcde2d 77 0000 8e 0a0b0c0d"));
    ignores(&segment, &hex("12345612 9abcdeed 77 ffff 9f 0a0b0c0d"));
    assert_eq!(segment.ds.bytes(), 0x2d0);
    assert_eq!(segment.mkey(), Mkey::new(0x0a0b_0c0d));
    golden(
        &ctrl(WqeOpcode::SEND, 2),
        &hex("0000000a 00004802 00 0000 08 00000000"),
    );
}

#[test]
fn address_segments() {
    let srqn = Srqn::truncate(0x12_3456);
    golden(
        &XrcSeg { srqn },
        &hex("00123456 00000000 00000000 00000000"),
    );

    let base = BaseAv {
        key: 0x1122_3344_0000_0000,
        extended: true,
        dqp_dct: Qpn::truncate(0x00_0103),
        stat_rate: StatRate::truncate(7),
        sl: ServiceLevel::truncate(0xc),
        fl_mlid: 0x85,
        rlid: 0xbeef,
    };
    let base_bytes = "11223344 00000000 80000103 7c 85 beef";
    golden(&base, &hex(base_bytes));
    let av = Av {
        base,
        rmac: [1, 2, 3, 4, 5, 6],
        grh: Grh {
            present: true,
            sgid_index: 0xa1,
            flow_label: FlowLabel::truncate(0x5_4321),
            tclass: 0x11,
            hop_limit: 0x40,
            rgid: [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        },
    };
    let rest = "00000000 010203040506 11 40 4a154321 fe80000000000000 0102030405060708";
    golden(&av, &hex(&format!("{base_bytes} {rest}")));

    let raddr = RaddrSeg {
        raddr: Iova::new(0x7f00_0000_1000),
        rkey: Mkey::new(0xa15c),
    };
    golden(&raddr, &hex("00007f0000001000 0000a15c 00000000"));
    let atomic = AtomicSeg {
        swap_add: 0x0102_0304_0506_0708,
        compare: 0x1112_1314_1516_1718,
    };
    golden(&atomic, &hex("0102030405060708 1112131415161718"));
}

#[test]
fn data_segment() {
    let mut data = DataSeg {
        byte_count: ByteCount::truncate(0x1_0000),
        lkey: Mkey::new(0xa15c),
        addr: Iova::new(0x7f00_0000_1001),
    };
    golden(&data, &hex("00010000 0000a15c 00007f0000001001"));
    assert_eq!(data.byte_count.bytes(), 0x1_0000);
    data.byte_count = ByteCount::truncate(0);
    golden(&data, &hex("00000000 0000a15c 00007f0000001001"));
    assert_eq!(data.byte_count.bytes(), 1 << 31);
    let inline = hex("80000004 0000a15c 00007f0000001001");
    assert_eq!(DataSeg::parse(&inline), Err(Error::Inline));
}

#[test]
fn shared_receive_link() {
    let next = SrqNextSeg {
        next_wqe_index: 0x1234,
        signature: 0x56,
    };
    golden(&next, &hex("0000 1234 56 000000 00000000 00000000"));
    ignores(&next, &hex("ffff 1234 56 ffffff ffffffff ffffffff"));
}

#[test]
fn umr_control_segment() {
    let umr = UmrCtrlSeg {
        flags: UmrFlags::new()
            .with_translation_offset_en(true)
            .with_check_free(true),
        xlt_octowords: 0x0204,
        offset: XltOffset::truncate(0x1234_5678_9abc),
        mkey_mask: MkeyMask::new()
            .with_free(true)
            .with_relaxed_ordering_read(true)
            .with_len(true),
    };
    let mut bytes = hex("50 000000 0204 9abc 0000800020000001 12345678");
    bytes.extend([0; 28]);
    golden(&umr, &bytes);
    assert_eq!(umr.xlt_bytes(), 0x2040);
    assert_eq!(umr.xlt_offset().bytes(), 0x1_2345_6789_abc0);

    // Without the flag the offset does not count.
    let umr = UmrCtrlSeg {
        flags: UmrFlags::new()
            .with_inline(true)
            .with_check_not_free(true)
            .with_check_qpn(true),
        ..umr
    };
    bytes[0] = 0xa8;
    golden(&umr, &bytes);
    assert_eq!(umr.xlt_offset(), XltOffset::truncate(0));
}

#[test]
fn mask_bits_without_meaning() {
    let mask = |bits: u64| MkeyMask::from_bits(bits.into());
    assert_eq!(mask(0x8400_22be_73c3).unknown(), 0);
    assert_eq!(mask(1 << 63 | 1 << 2 | 1).unknown(), 1 << 63 | 1 << 2);
    assert!(mask(0).is_empty() && !mask(1).is_empty());
}
