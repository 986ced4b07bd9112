// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What [`survives`] checks, of bytes drawn at random.

mod survives;

use firmware_cmds::mkey::QueryMkeyOut;
use firmware_cmds::{AccessMode, EventType, LogPageSize, Mkc, OutHeader, StrideBlock, Wire};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes that look like a WQE often enough: any opcode, but mostly one that is known.
fn wqe_bytes() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        Just(0x08u8),
        Just(0x0a),
        Just(0x10),
        Just(0x11),
        Just(0x25),
        any::<u8>()
    ];
    (vec(any::<u8>(), 0..1100), opcode, any::<u8>()).prop_map(|(mut bytes, opcode, ds)| {
        if let Some(at) = bytes.get_mut(3) {
            *at = opcode;
        }
        if let Some(at) = bytes.get_mut(7) {
            *at = ds;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1024,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn small_formats_survive(bytes in vec(any::<u8>(), 0..80)) {
        survives::small_formats(&bytes);
    }

    /// With the opcode right and no status, the rest is any.
    #[test]
    fn commands_survive(mut bytes in vec(any::<u8>(), 0x110..0x120), command in 0..3u8) {
        bytes[..8].copy_from_slice(&[2, command, 0, 1, 0, 0, 0, 0]);
        survives::commands(&bytes);
        bytes[..8].fill(0);
        survives::commands(&bytes);
    }

    #[test]
    fn page_faults_survive(mut bytes in vec(any::<u8>(), 64), fault in any::<bool>(), sub_type in 0..4u8) {
        if fault {
            bytes[1] = EventType::PAGE_FAULT.0;
            bytes[3] = sub_type;
        }
        survives::events(&bytes);
    }

    #[test]
    fn resumes_survive(mut bytes in vec(any::<u8>(), 0..32), right in any::<bool>()) {
        if right && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&[2, 4, 0, 0, 0, 0, 0, 0]);
        }
        survives::resumes(&bytes);
    }

    #[test]
    fn send_wqes(bytes in wqe_bytes()) {
        survives::send_wqes(&bytes);
    }

    #[test]
    fn receive_wqes(bytes in vec(any::<u8>(), 0..300), key in any::<u32>()) {
        survives::receive_wqes(&bytes, key);
    }

    /// Of a key that refers to others and starts at 0; its list is any.
    #[test]
    fn indirect(
        list in vec(any::<u8>(), 0..100),
        ksm: bool,
        block: bool,
        log_page: u8,
        at: u16,
        len: u16,
    ) {
        let key = QueryMkeyOut {
            header: OutHeader::OK,
            mkc: Mkc {
                access_mode: if ksm { AccessMode::Ksm } else { AccessMode::Klms },
                length64: true,
                log_page_size: LogPageSize::truncate(log_page),
                ..Mkc::default()
            },
        };
        let mut bytes = vec![0; QueryMkeyOut::LEN];
        key.emit(&mut bytes).unwrap();
        bytes.extend(list);
        if let Some(op) = bytes.get_mut(0x114..0x118).filter(|_| block) {
            op.copy_from_slice(&StrideBlock::OP.to_be_bytes());
        }
        survives::indirect(&bytes, at.into(), len.into());
    }
}
