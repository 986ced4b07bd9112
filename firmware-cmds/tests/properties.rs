// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Whatever the bytes: no parser panics, and what one accepts survives being written and read.

use std::fmt::Debug;

use firmware_cmds::cmd::EmptyOut;
use firmware_cmds::mkey::{CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, QueryMkeyIn, QueryMkeyOut};
use firmware_cmds::umr::{UmrCtrlSeg, UmrWqe, UmrXlt};
use firmware_cmds::wqe::{
    AtomicSeg, Av, BaseAv, CtrlSeg, DataSeg, RaddrSeg, RecvSges, SendTransport, SendWqe, Sge,
    SrqNextSeg, XrcSeg,
};
use firmware_cmds::{
    Eqe, EventType, InHeader, Klm, Ksm, Mkc, Mkey, Mtt, OutHeader, PageFault, PageFaultResume,
    Scheme, Stride, StrideBlock, Wire,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Reads `bytes` as `T`; what is accepted must come back the same from the bytes it writes.
fn survives<T: Wire + PartialEq + Debug>(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(value) = T::parse(bytes) else {
        return Ok(());
    };
    let mut written = vec![0xa5; T::LEN];
    prop_assert_eq!(value.emit(&mut written), Ok(()));
    let again = T::parse(&written);
    prop_assert_eq!(again.as_ref(), Ok(&value));
    // Reserved bits aside nothing is lost: writing sets no bit that was not set.
    for (was, is) in bytes.iter().zip(&written) {
        prop_assert_eq!(is & !was, 0);
    }
    Ok(())
}

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

/// Whether `part` lies within `whole`.
fn is_within(part: &[u8], whole: &[u8]) -> bool {
    part.is_empty() || whole.as_ptr_range().contains(&part.as_ptr())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1024,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn small_formats_survive(bytes in vec(any::<u8>(), 0..80)) {
        survives::<InHeader>(&bytes)?;
        survives::<OutHeader>(&bytes)?;
        survives::<EmptyOut>(&bytes)?;
        survives::<CreateMkeyOut>(&bytes)?;
        survives::<QueryMkeyIn>(&bytes)?;
        survives::<DestroyMkeyIn>(&bytes)?;
        survives::<Mkc>(&bytes)?;
        survives::<Mtt>(&bytes)?;
        survives::<Klm>(&bytes)?;
        survives::<Ksm>(&bytes)?;
        survives::<Stride>(&bytes)?;
        let mut block = bytes.clone();
        if let Some(op) = block.get_mut(4..8) {
            op.copy_from_slice(&StrideBlock::OP.to_be_bytes());
        }
        survives::<StrideBlock>(&block)?;
        survives::<Eqe>(&bytes)?;
        survives::<CtrlSeg>(&bytes)?;
        survives::<XrcSeg>(&bytes)?;
        survives::<BaseAv>(&bytes)?;
        survives::<Av>(&bytes)?;
        survives::<RaddrSeg>(&bytes)?;
        survives::<AtomicSeg>(&bytes)?;
        survives::<DataSeg>(&bytes)?;
        survives::<SrqNextSeg>(&bytes)?;
        survives::<UmrCtrlSeg>(&bytes)?;
    }

    /// With the opcode right and no status, the rest is any.
    #[test]
    fn commands_survive(mut bytes in vec(any::<u8>(), 0x110..0x120), command in 0..3u8) {
        bytes[..8].copy_from_slice(&[2, command, 0, 1, 0, 0, 0, 0]);
        survives::<CreateMkeyIn>(&bytes)?;
        survives::<QueryMkeyIn>(&bytes)?;
        survives::<DestroyMkeyIn>(&bytes)?;
        bytes[..8].fill(0);
        survives::<CreateMkeyOut>(&bytes)?;
        survives::<QueryMkeyOut>(&bytes)?;
    }

    #[test]
    fn page_faults_survive(mut bytes in vec(any::<u8>(), 64), fault in any::<bool>(), sub_type in 0..4u8) {
        if fault {
            bytes[1] = EventType::PAGE_FAULT.0;
            bytes[3] = sub_type;
        }
        let eqe = Eqe::parse(&bytes).map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        match PageFault::from_eqe(&eqe) {
            Ok(fault) => {
                prop_assert_eq!(PageFault::from_eqe(&fault.to_eqe(eqe.owner)), Ok(fault));
                let scheme = match fault {
                    PageFault::Wqe(_) | PageFault::Rdma(_) => Scheme::Transport,
                    PageFault::Memory(_) => Scheme::Memory,
                };
                for error in [false, true] {
                    let resume = fault.resume(error);
                    prop_assert_eq!(PageFaultResume::parse(&resume.to_bytes(), scheme), Ok(resume));
                }
            }
            Err(error) => {
                // Only the transport scheme's WQE event can be wrong and still name its queue.
                prop_assert_eq!(
                    error.fault_token().is_some(),
                    eqe.event_type == EventType::PAGE_FAULT && eqe.sub_type == 0
                );
            }
        }
    }

    #[test]
    fn resumes_survive(mut bytes in vec(any::<u8>(), 0..32), right in any::<bool>()) {
        if right && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&[2, 4, 0, 0, 0, 0, 0, 0]);
        }
        for scheme in [Scheme::Transport, Scheme::Memory] {
            if let Ok(resume) = PageFaultResume::parse(&bytes, scheme) {
                prop_assert_eq!(PageFaultResume::parse(&resume.to_bytes(), scheme), Ok(resume));
            }
        }
    }

    #[test]
    fn send_wqes(bytes in wqe_bytes()) {
        for transport in [
            SendTransport::Connected,
            SendTransport::XrcInitiator,
            SendTransport::Datagram,
        ] {
            let Ok(wqe) = SendWqe::parse(&bytes, transport) else {
                continue;
            };
            prop_assert!(is_within(wqe.rest, &bytes[..wqe.ctrl.ds.bytes()]));
            let mut sges = wqe.sges();
            let mut count = 0;
            let mut failed = false;
            for sge in sges.by_ref() {
                prop_assert!(!failed, "goes on after an error");
                match sge {
                    Ok(Sge::Inline(data)) => prop_assert!(is_within(data, wqe.rest)),
                    Ok(Sge::Data(_)) => {}
                    Err(_) => failed = true,
                }
                count += 1;
            }
            prop_assert!(sges.next().is_none());
            prop_assert!(count <= wqe.rest.len().div_ceil(16));
            if let Ok(umr) = UmrWqe::parse(&wqe) {
                if let UmrXlt::Inline(list) = umr.xlt {
                    prop_assert!(is_within(list, wqe.rest));
                    prop_assert_eq!(list.len(), umr.umr.xlt_bytes());
                }
            }
        }
    }

    #[test]
    fn receive_wqes(bytes in vec(any::<u8>(), 0..300), key in any::<u32>()) {
        let list = RecvSges::new(&bytes, Mkey::new(key));
        prop_assert!(list.count() <= bytes.len().div_ceil(16));
    }
}
