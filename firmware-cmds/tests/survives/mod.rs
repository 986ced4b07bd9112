// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What holds of any bytes: no parser panics, and what one accepts survives being written and
//! read. The property tests draw the bytes at random, `tests/fuzz` has them evolve.

use std::fmt::Debug;

use firmware_cmds::cmd::EmptyOut;
use firmware_cmds::mkey::{CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, QueryMkeyIn, QueryMkeyOut};
use firmware_cmds::umr::{UmrCtrlSeg, UmrWqe, UmrXlt};
use firmware_cmds::wqe::{
    AtomicSeg, Av, BaseAv, CtrlSeg, DataSeg, RaddrSeg, RecvSges, SendTransport, SendWqe, Sge,
    SrqNextSeg, XrcSeg,
};
use firmware_cmds::{
    Eqe, EventType, InHeader, Iova, Klm, Ksm, Mkc, Mkey, Mtt, OutHeader, PageFault,
    PageFaultResume, Pieces, Scheme, Stride, StrideBlock, Wire,
};

/// Reads `bytes` as `T`; what is accepted must come back the same from the bytes it writes.
fn survives<T: Wire + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = T::parse(bytes) else {
        return;
    };
    let mut written = vec![0xa5; T::LEN];
    assert_eq!(value.emit(&mut written), Ok(()));
    let again = T::parse(&written);
    assert_eq!(again.as_ref(), Ok(&value));
    // Reserved bits aside nothing is lost: writing sets no bit that was not set.
    for (was, is) in bytes.iter().zip(&written) {
        assert_eq!(is & !was, 0);
    }
}

/// Whether `part` lies within `whole`.
fn is_within(part: &[u8], whole: &[u8]) -> bool {
    part.is_empty() || whole.as_ptr_range().contains(&part.as_ptr())
}

/// Segments, entries, contexts, heads of commands.
pub(crate) fn small_formats(bytes: &[u8]) {
    survives::<InHeader>(bytes);
    survives::<OutHeader>(bytes);
    survives::<EmptyOut>(bytes);
    survives::<CreateMkeyOut>(bytes);
    survives::<QueryMkeyIn>(bytes);
    survives::<DestroyMkeyIn>(bytes);
    survives::<Mkc>(bytes);
    survives::<Mtt>(bytes);
    survives::<Klm>(bytes);
    survives::<Ksm>(bytes);
    survives::<Stride>(bytes);
    // With its operation right.
    let mut block = bytes.to_vec();
    if let Some(op) = block.get_mut(4..8) {
        op.copy_from_slice(&StrideBlock::OP.to_be_bytes());
    }
    survives::<StrideBlock>(&block);
    survives::<Eqe>(bytes);
    survives::<CtrlSeg>(bytes);
    survives::<XrcSeg>(bytes);
    survives::<BaseAv>(bytes);
    survives::<Av>(bytes);
    survives::<RaddrSeg>(bytes);
    survives::<AtomicSeg>(bytes);
    survives::<DataSeg>(bytes);
    survives::<SrqNextSeg>(bytes);
    survives::<UmrCtrlSeg>(bytes);
}

/// Commands about MKeys, and their answers.
pub(crate) fn commands(bytes: &[u8]) {
    survives::<CreateMkeyIn>(bytes);
    survives::<QueryMkeyIn>(bytes);
    survives::<DestroyMkeyIn>(bytes);
    survives::<CreateMkeyOut>(bytes);
    survives::<QueryMkeyOut>(bytes);
}

/// Events, and page faults in them.
pub(crate) fn events(bytes: &[u8]) {
    let Ok(eqe) = Eqe::parse(bytes) else {
        assert!(bytes.len() < Eqe::LEN);
        return;
    };
    match PageFault::from_eqe(&eqe) {
        Ok(fault) => {
            assert_eq!(PageFault::from_eqe(&fault.to_eqe(eqe.owner)), Ok(fault));
            let scheme = match fault {
                PageFault::Wqe(_) | PageFault::Rdma(_) => Scheme::Transport,
                PageFault::Memory(_) => Scheme::Memory,
            };
            for error in [false, true] {
                let resume = fault.resume(error);
                let bytes = resume.to_bytes();
                assert_eq!(PageFaultResume::parse(&bytes, scheme), Ok(resume));
            }
        }
        Err(error) => {
            // Only the transport scheme's WQE event can be wrong and still name its queue.
            assert_eq!(
                error.fault_token().is_some(),
                eqe.event_type == EventType::PAGE_FAULT && eqe.sub_type == 0
            );
        }
    }
}

/// PAGE_FAULT_RESUME.
pub(crate) fn resumes(bytes: &[u8]) {
    for scheme in [Scheme::Transport, Scheme::Memory] {
        if let Ok(resume) = PageFaultResume::parse(bytes, scheme) {
            let again = PageFaultResume::parse(&resume.to_bytes(), scheme);
            assert_eq!(again, Ok(resume));
        }
    }
}

/// A send WQE, with any transport, UMRs among them.
pub(crate) fn send_wqes(bytes: &[u8]) {
    for transport in [
        SendTransport::Connected,
        SendTransport::XrcInitiator,
        SendTransport::Datagram,
    ] {
        let Ok(wqe) = SendWqe::parse(bytes, transport) else {
            continue;
        };
        assert!(is_within(wqe.rest, &bytes[..wqe.ctrl.ds.bytes()]));
        let mut sges = wqe.sges();
        let mut count = 0;
        let mut failed = false;
        for sge in sges.by_ref() {
            assert!(!failed, "goes on after an error");
            match sge {
                Ok(Sge::Inline(data)) => assert!(is_within(data, wqe.rest)),
                Ok(Sge::Data(_)) => {}
                Err(_) => failed = true,
            }
            count += 1;
        }
        assert!(sges.next().is_none());
        assert!(count <= wqe.rest.len().div_ceil(16));
        if let Ok(umr) = UmrWqe::parse(&wqe) {
            if let UmrXlt::Inline(list) = umr.xlt {
                assert!(is_within(list, wqe.rest));
                assert_eq!(list.len(), umr.umr.xlt_bytes());
            }
        }
    }
}

/// A receive WQE, on a device with this key for the end of the list.
pub(crate) fn receive_wqes(bytes: &[u8], end_of_list: u32) {
    let list = RecvSges::new(bytes, Mkey::new(end_of_list));
    assert!(list.count() <= bytes.len().div_ceil(16));
}

/// What QUERY_MKEY returns of a key, and an access to that key. It may come to more pieces than
/// anybody waits for, but to no more bytes than it has.
pub(crate) fn indirect(bytes: &[u8], at: u64, len: u64) {
    let Ok((key, list)) = QueryMkeyOut::parse_prefix(bytes) else {
        return;
    };
    let Some(mut pieces) = Pieces::new(&key.mkc, Iova::new(at), len) else {
        return;
    };
    let mut left = len;
    for _ in 0..1000 {
        match pieces.next(list) {
            Ok(Some(piece)) => {
                assert!((1..=left).contains(&piece.bytes));
                left -= piece.bytes;
            }
            Ok(None) => return assert_eq!(left, 0),
            Err(_) => return,
        }
    }
}
