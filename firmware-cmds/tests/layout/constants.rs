// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Numbers against the kernel's own headers.

use std::collections::BTreeMap;

use firmware_cmds::page_fault::{self, FaultType};
use firmware_cmds::umr::{MkeyMask, OCTOWORD, UMR_ALIGN};
use firmware_cmds::wqe::{CompletionMode, FenceMode, WqeOpcode, DS_LEN, WQEBB_LEN};
use firmware_cmds::{
    AccessMode, CmdStatus, EventType, LogPageSize, Mkey, Opcode, Qpn, StrideBlock, WqeFaultKind,
};
use ifc_oracle::{require_or_skip, Error, Oracle};

#[test]
fn numbers_are_those_of_the_headers() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("numbers_are_those_of_the_headers") else {
        return Ok(());
    };
    let fence = |mode: FenceMode| u64::from(mode.get()) << 5;
    let completion = |mode: CompletionMode| u64::from(mode.get()) << 2;
    let numbers = [
        (
            "MLX5_CMD_OP_CREATE_MKEY",
            u64::from(Opcode::CreateMkey.get()),
        ),
        ("MLX5_CMD_OP_QUERY_MKEY", u64::from(Opcode::QueryMkey.get())),
        (
            "MLX5_CMD_OP_DESTROY_MKEY",
            u64::from(Opcode::DestroyMkey.get()),
        ),
        (
            "MLX5_CMD_OP_PAGE_FAULT_RESUME",
            u64::from(Opcode::PageFaultResume.get()),
        ),
        (
            "MLX5_EVENT_TYPE_PAGE_FAULT",
            u64::from(EventType::PAGE_FAULT.0),
        ),
        (
            "MLX5_PFAULT_SUBTYPE_WQE",
            u64::from(page_fault::SUBTYPE_WQE),
        ),
        (
            "MLX5_PFAULT_SUBTYPE_RDMA",
            u64::from(page_fault::SUBTYPE_RDMA),
        ),
        (
            "MLX5_PFAULT_SUBTYPE_MEMORY",
            u64::from(page_fault::SUBTYPE_MEMORY),
        ),
        (
            "MEMORY_SCHEME_PAGE_FAULT_GRANULARITY",
            u64::from(page_fault::MEMORY_FAULT_PAGE),
        ),
        ("MLX5_OPCODE_NOP", u64::from(WqeOpcode::NOP.0)),
        ("MLX5_OPCODE_SEND_INVAL", u64::from(WqeOpcode::SEND_INVAL.0)),
        ("MLX5_OPCODE_RDMA_WRITE", u64::from(WqeOpcode::RDMA_WRITE.0)),
        (
            "MLX5_OPCODE_RDMA_WRITE_IMM",
            u64::from(WqeOpcode::RDMA_WRITE_IMM.0),
        ),
        ("MLX5_OPCODE_SEND", u64::from(WqeOpcode::SEND.0)),
        ("MLX5_OPCODE_SEND_IMM", u64::from(WqeOpcode::SEND_IMM.0)),
        ("MLX5_OPCODE_RDMA_READ", u64::from(WqeOpcode::RDMA_READ.0)),
        ("MLX5_OPCODE_ATOMIC_CS", u64::from(WqeOpcode::ATOMIC_CS.0)),
        ("MLX5_OPCODE_ATOMIC_FA", u64::from(WqeOpcode::ATOMIC_FA.0)),
        ("MLX5_OPCODE_UMR", u64::from(WqeOpcode::UMR.0)),
        ("MLX5_FENCE_MODE_NONE", fence(FenceMode::NONE)),
        (
            "MLX5_FENCE_MODE_INITIATOR_SMALL",
            fence(FenceMode::INITIATOR_SMALL),
        ),
        ("MLX5_FENCE_MODE_FENCE", fence(FenceMode::FENCE)),
        (
            "MLX5_FENCE_MODE_STRONG_ORDERING",
            fence(FenceMode::STRONG_ORDERING),
        ),
        (
            "MLX5_FENCE_MODE_SMALL_AND_FENCE",
            fence(FenceMode::SMALL_AND_FENCE),
        ),
        (
            "MLX5_WQE_CTRL_CQ_UPDATE",
            completion(CompletionMode::Always),
        ),
        (
            "MLX5_WQE_CTRL_CQ_UPDATE_AND_EQE",
            completion(CompletionMode::AlwaysAndEvent),
        ),
        (
            "MLX5_TERMINATE_SCATTER_LIST_LKEY",
            u64::from(Mkey::TERMINATE_SCATTER_LIST.get()),
        ),
        ("MLX5_WQE_DS_UNITS", DS_LEN as u64),
        ("MLX5_SEND_WQE_BB", WQEBB_LEN as u64),
        ("MLX5_UMR_FLEX_ALIGNMENT", UMR_ALIGN as u64),
        (
            "MLX5_ADAPTER_PAGE_SHIFT",
            u64::from(LogPageSize::ADAPTER_PAGE.get()),
        ),
        ("MLX5_24BIT_MASK", u64::from(Qpn::ANY.get())),
        ("MLX5_STRIDE_BLOCK_OP", u64::from(StrideBlock::OP)),
    ];
    for (name, ours) in numbers {
        assert_eq!(oracle.constant(name)?, ours, "{name}");
    }
    assert_eq!(oracle.layout("mlx5_klm")?.bits, 8 * OCTOWORD as u64);
    Ok(())
}

/// The headers' constants that start with `prefix` are these, no fewer, no more.
fn are_exactly(
    oracle: &Oracle,
    prefix: &str,
    ours: impl IntoIterator<Item = (&'static str, u64)>,
) -> Result<(), Error> {
    let theirs = oracle
        .constants_with_prefix(prefix)
        .map(|name| Ok((name[prefix.len()..].to_owned(), oracle.constant(name)?)))
        .collect::<Result<BTreeMap<_, _>, Error>>()?;
    let ours: BTreeMap<_, _> = ours
        .into_iter()
        .map(|(name, number)| (name.to_owned(), number))
        .collect();
    assert_eq!(ours, theirs, "{prefix}*");
    Ok(())
}

#[test]
fn statuses() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("statuses") else {
        return Ok(());
    };
    let named = [
        ("OK", CmdStatus::Ok),
        ("INT_ERR", CmdStatus::InternalError),
        ("BAD_OP_ERR", CmdStatus::BadOp),
        ("BAD_PARAM_ERR", CmdStatus::BadParam),
        ("BAD_SYS_STATE_ERR", CmdStatus::BadSysState),
        ("BAD_RES_ERR", CmdStatus::BadRes),
        ("RES_BUSY", CmdStatus::ResBusy),
        ("NOT_READY", CmdStatus::NotReady),
        ("LIM_ERR", CmdStatus::Lim),
        ("BAD_RES_STATE_ERR", CmdStatus::BadResState),
        ("IX_ERR", CmdStatus::Ix),
        ("NO_RES_ERR", CmdStatus::NoRes),
        ("BAD_INP_LEN_ERR", CmdStatus::BadInpLen),
        ("BAD_OUTP_LEN_ERR", CmdStatus::BadOutpLen),
        ("BAD_QP_STATE_ERR", CmdStatus::BadQpState),
        ("BAD_PKT_ERR", CmdStatus::BadPkt),
        ("BAD_SIZE_OUTS_CQES_ERR", CmdStatus::BadSizeOutsCqes),
    ];
    for number in 0..=u8::MAX {
        let found = named.iter().find(|(_, status)| status.get() == number);
        let expected = found.map(|(_, status)| *status);
        assert_eq!(CmdStatus::try_from(number).ok(), expected, "{number:#x}");
    }
    let numbers = named.map(|(name, status)| (name, u64::from(status.get())));
    are_exactly(&oracle, "MLX5_CMD_STAT_", numbers)
}

#[test]
fn access_modes() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("access_modes") else {
        return Ok(());
    };
    let named = [
        ("PA", AccessMode::Pa),
        ("MTT", AccessMode::Mtt),
        ("KLMS", AccessMode::Klms),
        ("KSM", AccessMode::Ksm),
        ("SW_ICM", AccessMode::SwIcm),
        ("MEMIC", AccessMode::Memic),
        ("CROSSING", AccessMode::Crossing),
    ];
    for number in 0..=u8::MAX {
        let found = named.iter().find(|(_, mode)| mode.get() == number);
        let expected = found.map(|(_, mode)| *mode);
        assert_eq!(AccessMode::try_from(number).ok(), expected, "{number:#x}");
    }
    let numbers = named.map(|(name, mode)| (name, u64::from(mode.get())));
    are_exactly(&oracle, "MLX5_MKC_ACCESS_MODE_", numbers)
}

#[test]
fn wqe_fault_kinds() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("wqe_fault_kinds") else {
        return Ok(());
    };
    let named = [
        ("RMP", WqeFaultKind::SharedReceive),
        ("REQ_SEND_OR_WRITE", WqeFaultKind::SendOrWrite),
        ("RESP", WqeFaultKind::Receive),
        ("REQ_READ_OR_ATOMIC", WqeFaultKind::ReadOrAtomic),
    ];
    let [requester, write, rdma] =
        ["REQUESTOR", "WRITE", "RDMA"].map(|flag| oracle.constant(&format!("MLX5_PFAULT_{flag}")));
    let [requester, write, rdma] = [requester?, write?, rdma?];
    for bits in 0..8 {
        let fault_type = FaultType::truncate(bits);
        let bits = u64::from(bits);
        let kind = WqeFaultKind::from_fault_type(fault_type);
        assert_eq!(fault_type.is_write(), bits & write != 0, "{bits}");
        assert_eq!(kind.is_none(), bits & rdma != 0, "{bits}");
        if let Some(kind) = kind {
            assert_eq!(kind.fault_type(), fault_type, "{bits}");
            assert_eq!(kind.is_send_queue(), bits & requester != 0, "{bits}");
        }
    }
    for writes in [false, true] {
        let fault_type = FaultType::rdma(writes);
        assert_eq!(fault_type.is_write(), writes);
        assert_eq!(WqeFaultKind::from_fault_type(fault_type), None);
    }
    let numbers = named.map(|(name, kind)| (name, u64::from(kind.fault_type().get())));
    are_exactly(&oracle, "MLX5_WQE_PF_TYPE_", numbers)
}

/// Each known bit of the mask is a constant; `tables` says which.
#[test]
fn mkey_mask_is_complete() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("mkey_mask_is_complete") else {
        return Ok(());
    };
    let mut known = 0;
    for name in oracle.constants_with_prefix("MLX5_MKEY_MASK_") {
        let bit = oracle.constant(name)?;
        assert_eq!((bit.count_ones(), known & bit), (1, 0), "{name}");
        known |= bit;
    }
    assert_eq!(MkeyMask::KNOWN, known);
    Ok(())
}
