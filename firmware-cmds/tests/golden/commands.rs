// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands.

use firmware_cmds::cmd::EmptyOut;
use firmware_cmds::mkc::{MaTranslationMode, Tph, TphHint};
use firmware_cmds::mkey::{CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, QueryMkeyIn, QueryMkeyOut};
use firmware_cmds::{
    Access, AccessMode, CmdStatus, Error, InHeader, Iova, LogPageSize, Mkc, MkeyIndex, MkeyVariant,
    Opcode, OutHeader, Pdn, Qpn, Wire,
};

use crate::{golden, hex, ignores};

const INDEX: MkeyIndex = MkeyIndex::truncate(0x0a_bcde);

const EVERY_ACCESS: Access = Access {
    atomic: true,
    remote_write: true,
    remote_read: true,
    local_write: true,
    local_read: true,
};

/// The context of an ODP MR of 64 MiB, as mr.c makes it.
fn mtt_mkc() -> Mkc {
    Mkc {
        access_mode: AccessMode::Mtt,
        umr_en: true,
        access: EVERY_ACCESS,
        qpn: Qpn::ANY,
        variant: MkeyVariant::new(0x5c),
        pd: Pdn::truncate(0x123),
        start_addr: Iova::new(0x7f12_3400_0000),
        len: 64 << 20,
        translations_octword_size: 0x2000,
        log_page_size: LogPageSize::ADAPTER_PAGE,
        ..Mkc::default()
    }
}

const MTT_MKC: &str = "
    0000fd00 ffffff5c 00000000 00000123
    00007f1234000000  0000000004000000
    00000000 00000000 00000000 00000000
    00000000 00002000 0000000c 00000000";

#[test]
fn mkc_of_an_mr() {
    golden(&mtt_mkc(), &hex(MTT_MKC));
}

#[test]
fn mkc_with_every_field_set() {
    let all = Mkc {
        free: true,
        access_mode: AccessMode::Crossing,
        relaxed_ordering_write: true,
        relaxed_ordering_read: true,
        small_fence_on_rdma_read_response: true,
        umr_en: true,
        access: EVERY_ACCESS,
        ma_translation_mode: MaTranslationMode::MAX,
        qpn: Qpn::MAX,
        variant: MkeyVariant::new(0xff),
        length64: true,
        bsf_en: true,
        sync_umr: true,
        expected_sigerr_count: true,
        en_rinval: true,
        pd: Pdn::MAX,
        start_addr: Iova::new(u64::MAX),
        len: u64::MAX,
        bsf_octword_size: u32::MAX,
        crossing_target_vhca_id: u16::MAX,
        translations_octword_size: u32::MAX,
        log_page_size: LogPageSize::MAX,
        tph: Tph {
            enabled: true,
            hint: TphHint::MAX,
            steering_tag_index: 0xff,
        },
    };
    golden(
        &all,
        &hex("
            4405fe30 ffffffff 00000000 e5ffffff
            ffffffffffffffff  ffffffffffffffff
            ffffffff 00000000 00000000 00000000
            ffff0000 ffffffff 0000007f 07ff0000"),
    );
    ignores(
        &all,
        &hex("
            e7fffeff ffffffff ffffffff ffffffff
            ffffffffffffffff  ffffffffffffffff
            ffffffff ffffffff ffffffff ffffffff
            ffffffff ffffffff ffffffff ffffffff"),
    );
}

#[test]
fn access_mode_that_is_none() {
    let mut bytes = hex(MTT_MKC);
    bytes[0] = 0x04;
    bytes[2] |= 0x03;
    assert_eq!(Mkc::parse(&bytes), Err(Error::AccessMode(7)));
}

#[test]
fn headers() {
    golden(
        &InHeader::new(Opcode::CreateMkey, 0x1234),
        &hex("0200 1234 0000 0000"),
    );
    golden(
        &InHeader {
            opcode: 0x50b,
            uid: 1,
            op_mod: 0xabcd,
        },
        &hex("050b 0001 0000 abcd"),
    );
    golden(&OutHeader::OK, &hex("00 000000 00000000"));
    let failed = OutHeader {
        status: CmdStatus::BadRes,
        syndrome: 0x0123_4567,
    };
    golden(&failed, &hex("05 000000 01234567"));
    ignores(&failed, &hex("05 ffffff 01234567"));
    golden(
        &EmptyOut { header: failed },
        &hex("05 000000 01234567 00000000 00000000"),
    );
    assert_eq!(
        OutHeader::parse(&hex("0b 000000 00000000")),
        Err(Error::Status(0x0b))
    );
}

#[test]
fn create_mkey() {
    let create = CreateMkeyIn {
        uid: 0,
        pg_access: true,
        mkey_umem_valid: false,
        data_direct: false,
        mkc: mtt_mkc(),
        translations_octword_actual_size: 4,
        mkey_umem_id: 0,
        mkey_umem_offset: 0,
    };
    let mut bytes = hex("0200 0000 0000 0000  00000000 80000000");
    bytes.extend(hex(MTT_MKC));
    bytes.extend([0; 16]);
    bytes.extend(hex("00000004"));
    bytes.extend([0; 172]);
    golden(&create, &bytes);
    assert_eq!(CreateMkeyIn::LEN, 0x110);

    bytes[12] = 0x60;
    bytes[100..112].copy_from_slice(&hex("00000abc 0123456789abc000"));
    let other = CreateMkeyIn {
        pg_access: false,
        mkey_umem_valid: true,
        data_direct: true,
        mkey_umem_id: 0xabc,
        mkey_umem_offset: 0x0123_4567_89ab_c000,
        ..create
    };
    golden(&other, &bytes);

    golden(
        &CreateMkeyOut {
            header: OutHeader::OK,
            mkey_index: INDEX,
        },
        &hex("00 000000 00000000  00 0abcde 00000000"),
    );
}

#[test]
fn query_mkey() {
    let query = QueryMkeyIn {
        uid: 7,
        mkey_index: INDEX,
        pg_access: true,
    };
    golden(&query, &hex("0201 0007 0000 0000  00 0abcde 80000000"));

    let mut bytes = hex("00 000000 00000000  00000000 00000000");
    bytes.extend(hex(MTT_MKC));
    bytes.extend([0; 192]);
    golden(
        &QueryMkeyOut {
            header: OutHeader::OK,
            mkc: mtt_mkc(),
        },
        &bytes,
    );
    assert_eq!(QueryMkeyOut::LEN, 0x110);
}

#[test]
fn destroy_mkey() {
    let destroy = DestroyMkeyIn {
        uid: 0,
        mkey_index: INDEX,
    };
    golden(&destroy, &hex("0202 0000 0000 0000  00 0abcde 00000000"));
    ignores(&destroy, &hex("0202 0000 ffff 0000  ff 0abcde ffffffff"));
}

#[test]
fn command_that_is_another() {
    let bytes = hex("0202 0000 0000 0000  00 0abcde 00000000");
    assert_eq!(
        QueryMkeyIn::parse(&bytes),
        Err(Error::Opcode {
            expected: Opcode::QueryMkey,
            found: 0x202
        })
    );
    let bytes = hex("0202 0000 0000 0001  00 0abcde 00000000");
    assert_eq!(DestroyMkeyIn::parse(&bytes), Err(Error::OpMod(1)));
}
