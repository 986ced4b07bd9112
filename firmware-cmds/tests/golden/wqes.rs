// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Whole WQEs.

use firmware_cmds::umr::{UmrWqe, UmrXlt};
use firmware_cmds::wqe::{
    AddressVector, AtomicSeg, ByteCount, DataSeg, RaddrSeg, RecvSges, SendTransport, SendWqe, Sge,
    SrqNextSeg, WqeOpcode, XrcSeg,
};
use firmware_cmds::{Error, Iova, Mkey, Qpn, Srqn, Wire};

use crate::hex;

const DATA_1: &str = "00001000 0000a15c 00007f0000001000";
const DATA_2: &str = "00000000 0000a25c 00007f0000002000";
const RADDR: &str = "00007f0000003000 0000a35c 00000000";
const TERMINATE: &str = "00000000 00000100 0000000000000000";

fn data_1() -> DataSeg {
    DataSeg {
        byte_count: ByteCount::truncate(0x1000),
        lkey: Mkey::new(0xa15c),
        addr: Iova::new(0x7f00_0000_1000),
    }
}

fn data_2() -> DataSeg {
    DataSeg {
        byte_count: ByteCount::truncate(0),
        lkey: Mkey::new(0xa25c),
        addr: Iova::new(0x7f00_0000_2000),
    }
}

fn raddr() -> RaddrSeg {
    RaddrSeg {
        raddr: Iova::new(0x7f00_0000_3000),
        rkey: Mkey::new(0xa35c),
    }
}

fn truncated(needed: usize, available: usize) -> Error {
    Error::Truncated { needed, available }
}

/// A WQE: control segment of `opcode` and `ds`, then `segments`.
fn wqe(opcode: u8, ds: u8, segments: &[&str]) -> Vec<u8> {
    let mut bytes = hex(&format!(
        "000000{opcode:02x} 000048{ds:02x} 00 0000 08 00000000"
    ));
    for segment in segments {
        bytes.extend(hex(segment));
    }
    bytes
}

fn sges<'a>(wqe: &SendWqe<'a>) -> Vec<Result<Sge<'a>, Error>> {
    wqe.sges().collect()
}

#[test]
fn rdma_write() {
    let mut bytes = wqe(0x08, 4, &[RADDR, DATA_1, DATA_2]);
    // What follows in the queue is none of it.
    bytes.extend([0xff; 64]);
    let write = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(write.ctrl.opcode, WqeOpcode::RDMA_WRITE);
    assert_eq!((write.raddr, write.atomic), (Some(raddr()), None));
    assert_eq!((write.xrc, write.av), (None, None));
    assert_eq!(
        sges(&write),
        [Ok(Sge::Data(data_1())), Ok(Sge::Data(data_2()))]
    );
}

#[test]
fn every_opcode_has_its_segments() {
    let atomic = "0000000000000001 0000000000000002";
    for (opcode, has_raddr, has_atomic) in [
        (0x00, false, false),
        (0x01, false, false),
        (0x08, true, false),
        (0x09, true, false),
        (0x0a, false, false),
        (0x0b, false, false),
        (0x10, true, false),
        (0x11, true, true),
        (0x12, true, true),
    ] {
        let mut segments = Vec::new();
        if has_raddr {
            segments.push(RADDR);
        }
        if has_atomic {
            segments.push(atomic);
        }
        segments.push(DATA_1);
        let ds = 1 + u8::try_from(segments.len()).expect("a few");
        let bytes = wqe(opcode, ds, &segments);
        let parsed = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
        assert_eq!(parsed.raddr, has_raddr.then(raddr), "{opcode:#x}");
        let operands = AtomicSeg {
            swap_add: 1,
            compare: 2,
        };
        assert_eq!(parsed.atomic, has_atomic.then_some(operands), "{opcode:#x}");
        assert_eq!(sges(&parsed), [Ok(Sge::Data(data_1()))], "{opcode:#x}");
    }
    for opcode in [0x14, 0x15, 0x0e, 0x1f, 0xff] {
        let bytes = wqe(opcode, 4, &[RADDR, atomic, DATA_1]);
        assert_eq!(
            SendWqe::parse(&bytes, SendTransport::Connected),
            Err(Error::WqeOpcode(opcode))
        );
    }
}

#[test]
fn inline_data() {
    // 5 bytes and their head fill one DS, 13 need a second.
    let bytes = wqe(
        0x0a,
        5,
        &[
            "80000005 0102030405 00000000000000",
            DATA_1,
            "8000000d 101112131415161718191a1b 1c 000000 000000000000000000000000",
        ],
    );
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    let long = hex("101112131415161718191a1b1c");
    assert_eq!(
        sges(&send),
        [
            Ok(Sge::Inline(&[1, 2, 3, 4, 5])),
            Ok(Sge::Data(data_1())),
            Ok(Sge::Inline(&long)),
        ]
    );
    // Bits above the length do not count, a length of 0 is one DS.
    let bytes = wqe(0x0a, 3, &["fffffc00 ffffffff ffffffffffffffff", DATA_1]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(sges(&send), [Ok(Sge::Inline(&[])), Ok(Sge::Data(data_1()))]);
    // One byte more than the WQE has.
    let bytes = wqe(0x0a, 2, &["8000000d 0102030405060708090a0b0c", DATA_1]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(sges(&send), [Err(truncated(13, 12))]);
}

#[test]
fn xrc_initiator() {
    let bytes = wqe(0x0a, 3, &["00000123 00000000 00000000 00000000", DATA_1]);
    let send = SendWqe::parse(&bytes, SendTransport::XrcInitiator).expect("a WQE");
    let srqn = Srqn::truncate(0x123);
    assert_eq!(send.xrc, Some(XrcSeg { srqn }));
    assert_eq!(sges(&send), [Ok(Sge::Data(data_1()))]);
}

#[test]
fn datagram() {
    let short = "11223344 00000000 00000103 7c 85 beef";
    let bytes = wqe(0x0a, 3, &[short, DATA_1]);
    let send = SendWqe::parse(&bytes, SendTransport::Datagram).expect("a WQE");
    assert!(matches!(send.av, Some(AddressVector::Base(av)) if av.dqp_dct == Qpn::truncate(0x103)));
    assert_eq!(sges(&send), [Ok(Sge::Data(data_1()))]);

    let long = "11223344 00000000 80000103 7c 85 beef
        00000000 010203040506 11 40 4a154321 fe80000000000000 0102030405060708";
    let bytes = wqe(0x0a, 5, &[long, DATA_1]);
    let send = SendWqe::parse(&bytes, SendTransport::Datagram).expect("a WQE");
    assert!(matches!(send.av, Some(AddressVector::Extended(av)) if av.grh.hop_limit == 0x40));
    assert_eq!(sges(&send), [Ok(Sge::Data(data_1()))]);
    // The long one does not fit.
    let bytes = wqe(0x0a, 3, &[long, DATA_1]);
    assert_eq!(
        SendWqe::parse(&bytes, SendTransport::Datagram),
        Err(truncated(48, 32))
    );
}

#[test]
fn wqe_of_wrong_length() {
    let connected = SendTransport::Connected;
    assert_eq!(SendWqe::parse(&[0; 15], connected), Err(truncated(16, 15)));
    assert_eq!(
        SendWqe::parse(&wqe(0x0a, 0, &[DATA_1]), connected),
        Err(Error::EmptyWqe)
    );
    assert_eq!(
        SendWqe::parse(&wqe(0x0a, 3, &[DATA_1]), connected),
        Err(truncated(48, 32))
    );
    assert_eq!(
        SendWqe::parse(&wqe(0x08, 1, &[RADDR]), connected),
        Err(truncated(16, 0))
    );
    assert_eq!(
        SendWqe::parse(&wqe(0x11, 2, &[RADDR]), connected),
        Err(truncated(16, 0))
    );
    let nothing = wqe(0x0a, 1, &[]);
    assert_eq!(
        sges(&SendWqe::parse(&nothing, connected).expect("a WQE")),
        []
    );
}

fn receive(bytes: &[u8]) -> Vec<Result<DataSeg, Error>> {
    RecvSges::new(bytes, Mkey::TERMINATE_SCATTER_LIST).collect()
}

#[test]
fn receive_wqe() {
    let full = [hex(DATA_1), hex(DATA_2)].concat();
    assert_eq!(receive(&full), [Ok(data_1()), Ok(data_2())]);
    assert_eq!(
        receive(&[hex(DATA_1), hex(TERMINATE), hex(DATA_2)].concat()),
        [Ok(data_1())]
    );
    assert_eq!(receive(&hex(TERMINATE)), []);
    assert_eq!(receive(&[]), []);
    // It ends the list only with length and address 0, and under the device's own key.
    let not_quite = hex("00000000 00000100 0000000000000001");
    assert_eq!(receive(&not_quite).len(), 1);
    let other: Vec<_> = RecvSges::new(&hex(TERMINATE), Mkey::new(0x200)).collect();
    assert_eq!(other.len(), 1);

    assert_eq!(receive(&full[..24]), [Ok(data_1()), Err(truncated(16, 8))]);
    let inline = [hex("80000004 01020304 0000000000000000"), hex(DATA_1)].concat();
    assert_eq!(receive(&inline), [Err(Error::Inline)]);
}

#[test]
fn shared_receive_wqe() {
    let bytes = [
        hex("0000 0007 00 000000 00000000 00000000"),
        hex(DATA_1),
        hex(TERMINATE),
    ]
    .concat();
    let (next, list) = SrqNextSeg::parse_prefix(&bytes).expect("a link");
    assert_eq!(next.next_wqe_index, 7);
    assert_eq!(receive(list), [Ok(data_1())]);
}

/// MKey segment of umr.c:mlx5r_umr_set_update_xlt_mkey_seg for an MR with local and remote access.
const MKEY_SEG: &str = "
    00003c00 ffffff5c 00000000 00000123
    00007f1234000000  0000000004000000
    00000000 00000000 00000000 00000000
    00000000 00000000 0000000c 00000000";

#[test]
fn umr_with_inline_list() {
    let umr_seg = "90 000000 0004 0000 0000000000000000 00000000
        00000000 00000000 00000000 00000000 00000000 00000000 00000000";
    let list = [DATA_1; 4].concat();
    let bytes = wqe(0x25, 12, &[umr_seg, MKEY_SEG, &list]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(
        UmrWqe::parse(&send).map(|umr| umr.xlt),
        Ok(UmrXlt::Inline(&hex(&list)))
    );
    // The list is longer than the WQE.
    let bytes = wqe(0x25, 11, &[umr_seg, MKEY_SEG, &list]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(UmrWqe::parse(&send), Err(truncated(64, 48)));
    // A pointer is promised, inline data is there.
    let umr_seg = umr_seg.replacen("90", "10", 1);
    let inline = "80000004 01020304 0000000000000000";
    let bytes = wqe(0x25, 9, &[&umr_seg, MKEY_SEG, inline]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(UmrWqe::parse(&send), Err(Error::Inline));
}

#[test]
fn umr_that_is_none() {
    let bytes = wqe(0x0a, 9, &[&[DATA_1; 8].concat()]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(UmrWqe::parse(&send), Err(Error::WqeOpcode(0x0a)));
    let bytes = wqe(0x25, 7, &[&[DATA_1; 6].concat()]);
    let send = SendWqe::parse(&bytes, SendTransport::Connected).expect("a WQE");
    assert_eq!(UmrWqe::parse(&send), Err(truncated(64, 48)));
}
