// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Page faults and the commands that end them.

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::{
    Eqe, Error, EventType, FaultToken, Iova, MemoryFault, MemoryToken, Mkey, Opcode, PageFault,
    PageFaultError, PageFaultResume, Qpn, RdmaFault, Scheme, Srqn, TransportToken, Wire, WqNumber,
    WqeFault, WqeFaultKind,
};

use crate::{golden, hex};

/// An EQE of type 0x0c: `sub_type`, then the event.
fn eqe(sub_type: u8, event: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0x0c, 0, sub_type];
    bytes.extend([0; 28]);
    bytes.extend(hex(event));
    bytes.extend([0, 0, 0, 1]);
    assert_eq!(bytes.len(), 64);
    bytes
}

/// `fault` is the EQE `bytes`, in both directions.
fn golden_fault(fault: PageFault, bytes: &[u8]) {
    let eqe = fault.to_eqe(true);
    golden(&eqe, bytes);
    assert_eq!(PageFault::from_eqe(&eqe), Ok(fault));
}

/// `resume` is the command `bytes`, in both directions.
fn golden_resume(resume: PageFaultResume, scheme: Scheme, bytes: &[u8]) {
    assert_eq!(resume.to_bytes(), bytes);
    assert_eq!(PageFaultResume::parse(bytes, scheme), Ok(resume));
    for available in 0..bytes.len() {
        let truncated = Error::Truncated {
            needed: bytes.len(),
            available,
        };
        assert_eq!(
            PageFaultResume::parse(&bytes[..available], scheme),
            Err(truncated)
        );
    }
}

#[test]
fn wqe_fault() {
    let fault = WqeFault {
        kind: WqeFaultKind::ReadOrAtomic,
        wq_number: Qpn::truncate(0x12_3456).into(),
        wqe_index: 0xfedc,
        bytes_committed: 0x0102_0304,
        packet_length: 0x1000,
        token: TransportToken::truncate(0xab_cdef),
    };
    golden_fault(
        PageFault::Wqe(fault),
        &eqe(
            0,
            "01020304 0000 fedc 0000 1000 00abcdef 0000000000000000 03123456",
        ),
    );
    golden_resume(
        PageFault::Wqe(fault).resume(true),
        Scheme::Transport,
        &hex("0204 0000 0000 0000  83 123456 00 abcdef"),
    );
    assert!(fault.kind.is_send_queue() && fault.kind.is_write());
}

#[test]
fn wqe_fault_kinds() {
    for (kind, number, send_queue, write) in [
        (WqeFaultKind::SharedReceive, 0, false, true),
        (WqeFaultKind::SendOrWrite, 1, true, false),
        (WqeFaultKind::Receive, 2, false, true),
        (WqeFaultKind::ReadOrAtomic, 3, true, true),
    ] {
        let fault = WqeFault {
            kind,
            wq_number: Srqn::truncate(5).into(),
            wqe_index: 0,
            bytes_committed: 0,
            packet_length: 0,
            token: TransportToken::truncate(9),
        };
        let event =
            format!("00000000 00000000 00000000 00000009 0000000000000000 {number:02x}000005");
        golden_fault(PageFault::Wqe(fault), &eqe(0, &event));
        assert_eq!(
            (kind.is_send_queue(), kind.is_write()),
            (send_queue, write),
            "{kind:?}"
        );
    }
}

#[test]
fn rdma_fault() {
    let mut fault = RdmaFault {
        fault_type: FaultType::rdma(true),
        token: TransportToken::truncate(0x00_0102),
        r_key: Mkey::new(0x0000_a15c),
        rdma_va: Iova::new(0x7f00_1234_5678),
        rdma_op_len: 0x0001_0000,
        packet_length: 0x0400,
        bytes_committed: 0x800,
    };
    golden_fault(
        PageFault::Rdma(fault),
        &eqe(
            1,
            "00000800 0000a15c 0000 0400 00010000 00007f0012345678 06000102",
        ),
    );
    // The token stands in for the work queue.
    golden_resume(
        PageFault::Rdma(fault).resume(false),
        Scheme::Transport,
        &hex("0204 0000 0000 0000  06 000102 00 000102"),
    );
    assert!(fault.fault_type.is_write());
    fault.fault_type = FaultType::rdma(false);
    golden_fault(
        PageFault::Rdma(fault),
        &eqe(
            1,
            "00000800 0000a15c 0000 0400 00010000 00007f0012345678 04000102",
        ),
    );
    assert!(!fault.fault_type.is_write());
}

#[test]
fn memory_fault() {
    let fault = MemoryFault {
        last: true,
        token: MemoryToken::truncate(0x8765_0102_0304),
        mkey: Mkey::new(0x0000_a15c),
        va: Iova::new(0x7f00_1234_5000),
        demand_pages: DemandPages::truncate(0x12345),
        pre_demand_pages: 2,
        post_demand_pages: 0x0103,
    };
    golden_fault(
        PageFault::Memory(fault),
        &eqe(
            2,
            "80 00 0103 0002 8765 01020304 12345000 0000a15c 00007f0012345000",
        ),
    );
    golden_resume(
        PageFault::Memory(fault).resume(true),
        Scheme::Memory,
        &hex("0204 0000 0000 0000  8000 8765 01020304"),
    );
    assert_eq!(fault.demand_bytes(), 0x1234_5000);
    assert_eq!(fault.pre_demand_bytes(), 0x2000);
    assert_eq!(fault.post_demand_bytes(), 0x10_3000);
    golden_fault(
        PageFault::Memory(MemoryFault {
            last: false,
            ..fault
        }),
        &eqe(
            2,
            "00 00 0103 0002 8765 01020304 12345000 0000a15c 00007f0012345000",
        ),
    );
}

#[test]
fn reserved_bits_do_not_count() {
    let parse = |sub_type, event: &str| {
        let mut bytes = eqe(sub_type, event);
        // Bytes around the event.
        for at in [0, 2, 4, 31, 60, 61] {
            bytes[at] = 0xff;
        }
        bytes[63] = 0xff;
        Eqe::parse(&bytes).map(|eqe| PageFault::from_eqe(&eqe))
    };
    for (sub_type, clean, dirty) in [
        (
            0,
            "01020304 0000 fedc 0000 1000 00abcdef 0000000000000000 03123456",
            "01020304 ffff fedc ffff 1000 ffabcdef ffffffffffffffff fb123456",
        ),
        (
            1,
            "00000800 0000a15c 0000 0400 00010000 00007f0012345678 06000102",
            "00000800 0000a15c ffff 0400 00010000 00007f0012345678 fe000102",
        ),
        (
            2,
            "80 00 0103 0002 8765 01020304 12345000 0000a15c 00007f0012345000",
            "ff ff 0103 0002 8765 01020304 12345fff 0000a15c 00007f0012345000",
        ),
    ] {
        assert!(matches!(parse(sub_type, clean), Ok(Ok(_))));
        assert_eq!(parse(sub_type, clean), parse(sub_type, dirty));
    }
}

#[test]
fn malformed() {
    let fault = |bytes: &[u8]| PageFault::from_eqe(&Eqe::parse(bytes).expect("an EQE"));

    let error = fault(&eqe(
        0,
        "00000000 00000000 00000000 00abcdef 0000000000000000 04123456",
    ))
    .expect_err("no WQE has type 4");
    // The token is there: the stalled queue can be failed.
    let token = FaultToken::Transport {
        fault_type: FaultType::truncate(4),
        wq_number: WqNumber::truncate(0x12_3456),
        token: TransportToken::truncate(0xab_cdef),
    };
    assert_eq!(error.fault_token(), Some(token));
    golden_resume(
        PageFaultResume {
            fault: token,
            error: true,
        },
        Scheme::Transport,
        &hex("0204 0000 0000 0000  84 123456 00 abcdef"),
    );

    let mut bytes = eqe(
        3,
        "00000000 00000000 00000000 00abcdef 0000000000000000 03123456",
    );
    assert_eq!(fault(&bytes), Err(PageFaultError::SubType(3)));
    assert_eq!(PageFaultError::SubType(3).fault_token(), None);
    bytes[1] = 0x0a;
    let other = PageFaultError::EventType(EventType(0x0a));
    assert_eq!(fault(&bytes), Err(other));
    assert_eq!(other.fault_token(), None);
}

#[test]
fn eqe_of_any_type() {
    let command = Eqe::new(EventType(0x0a), 0, &[0, 0, 0, 1], false).expect("four bytes fit");
    let mut bytes = vec![0; 64];
    bytes[1] = 0x0a;
    bytes[0x23] = 1;
    golden(&command, &bytes);
    assert_eq!(
        Eqe::new(EventType(0x0a), 0, &[0; 29], false),
        Err(Error::Truncated {
            needed: 29,
            available: 28
        })
    );
}

#[test]
fn resume_that_is_another_command() {
    let bytes = hex("0203 0000 0000 0000  83 123456 00 abcdef");
    for scheme in [Scheme::Transport, Scheme::Memory] {
        assert_eq!(
            PageFaultResume::parse(&bytes, scheme),
            Err(Error::Opcode {
                expected: Opcode::PageFaultResume,
                found: 0x203
            })
        );
    }
}
