// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bytes of WQEs.

use firmware_cmds::wqe::{
    AtomicSeg, BaseAv, ByteCount, CompletionMode, CtrlSeg, DataSeg, Ds, FenceMode, RaddrSeg,
    ServiceLevel, StatRate, WqeOpcode, XrcSeg,
};
use firmware_cmds::{DmaAddr, Mkey, Mtt, MttAccess, Qpn, Srqn, Wire};

use super::TestQp;

/// The bytes of a value, `len` with zeros after them.
pub(crate) fn emit(value: &impl Wire, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    value.emit(&mut bytes).unwrap();
    bytes
}

/// A translation.
pub(crate) fn mtt(at: u64, access: MttAccess) -> Mtt {
    Mtt::new(DmaAddr::new(at), access).unwrap()
}

/// Bytes of a data segment.
pub(crate) fn data(key: Mkey, va: u64, len: usize) -> Vec<u8> {
    let segment = DataSeg {
        byte_count: ByteCount::truncate(u32::try_from(len).unwrap()),
        lkey: key,
        addr: firmware_cmds::Iova::new(va),
    };
    emit(&segment, DataSeg::LEN)
}

/// A data segment that ends the scatter list of a receive.
pub(crate) fn terminator() -> Vec<u8> {
    let terminator = DataSeg {
        lkey: Mkey::TERMINATE_SCATTER_LIST,
        ..DataSeg::default()
    };
    emit(&terminator, DataSeg::LEN)
}

/// Bytes of a remote-address segment.
pub(crate) fn raddr(key: Mkey, va: u64) -> Vec<u8> {
    let segment = RaddrSeg {
        raddr: firmware_cmds::Iova::new(va),
        rkey: key,
    };
    emit(&segment, RaddrSeg::LEN)
}

/// An atomic segment.
pub(crate) fn atomic(swap_add: u64, compare: u64) -> Vec<u8> {
    let mut bytes = vec![0; AtomicSeg::LEN];
    AtomicSeg { swap_add, compare }.emit(&mut bytes).unwrap();
    bytes
}

/// Bytes of inline data, padded.
pub(crate) fn inline(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    let mut segment = (1 << 31 | len).to_be_bytes().to_vec();
    segment.extend_from_slice(bytes);
    segment.resize(segment.len().next_multiple_of(16), 0);
    segment
}

/// A control segment for a body of `len` bytes.
pub(crate) fn ctrl(qp: &TestQp, opcode: WqeOpcode, imm: u32, len: usize) -> CtrlSeg {
    CtrlSeg {
        opmod: 0,
        wqe_index: qp.sq_pi,
        opcode,
        qpn: Qpn::truncate(qp.qpn),
        ds: Ds::truncate(u8::try_from((16 + len).div_ceil(16)).unwrap()),
        signature: 0,
        fence: FenceMode::NONE,
        completion: CompletionMode::Always,
        solicited: false,
        imm,
    }
}

/// An XRC segment.
pub(crate) fn xrc(srqn: u32) -> Vec<u8> {
    let srqn = Srqn::new(srqn).unwrap();
    emit(&XrcSeg { srqn }, XrcSeg::LEN)
}

/// An address vector to a QP of this port with Q_Key 0: the long one, without a GRH.
pub(crate) fn address(qpn: u32) -> Vec<u8> {
    let base = BaseAv {
        key: 0,
        extended: true,
        dqp_dct: Qpn::new(qpn).unwrap(),
        stat_rate: StatRate::truncate(0),
        sl: ServiceLevel::truncate(0),
        fl_mlid: 0,
        rlid: 1,
    };
    emit(&base, 48)
}
