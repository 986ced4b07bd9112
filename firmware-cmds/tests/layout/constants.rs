// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Numbers against the kernel's own headers.

use firmware_cmds::page_fault::{self, FaultType};
use firmware_cmds::umr::{MkeyMask, OCTOWORD, UMR_ALIGN};
use firmware_cmds::wqe::{CompletionMode, FenceMode, WqeOpcode, DS_LEN, WQEBB_LEN};
use firmware_cmds::{
    AccessMode, CmdStatus, EventType, LogPageSize, Mkey, Opcode, Qpn, WqeFaultKind,
};
use ifc_oracle::{require_or_skip, Error};

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
    ];
    for (name, ours) in numbers {
        assert_eq!(oracle.constant(name)?, ours, "{name}");
    }
    assert_eq!(oracle.layout("mlx5_klm")?.bits, 8 * OCTOWORD as u64);
    Ok(())
}

/// The constants of the header whose names start with `prefix` have exactly these values.
fn same_set(prefix: &str, ours: impl IntoIterator<Item = u64>) -> Result<(), Error> {
    let Some(oracle) = require_or_skip(&format!("constants {prefix}*")) else {
        return Ok(());
    };
    let mut theirs = oracle
        .constants_with_prefix(prefix)
        .map(|name| oracle.constant(name))
        .collect::<Result<Vec<_>, _>>()?;
    theirs.sort_unstable();
    let mut ours: Vec<_> = ours.into_iter().collect();
    ours.sort_unstable();
    assert_eq!(ours, theirs, "{prefix}*");
    Ok(())
}

#[test]
fn statuses_are_complete() -> Result<(), Error> {
    same_set(
        "MLX5_CMD_STAT_",
        CmdStatus::ALL.iter().map(|status| u64::from(status.get())),
    )
}

#[test]
fn access_modes_are_complete() -> Result<(), Error> {
    same_set(
        "MLX5_MKC_ACCESS_MODE_",
        AccessMode::ALL.iter().map(|mode| u64::from(mode.get())),
    )
}

#[test]
fn wqe_fault_kinds_are_complete() -> Result<(), Error> {
    same_set(
        "MLX5_WQE_PF_TYPE_",
        WqeFaultKind::ALL
            .iter()
            .map(|kind| u64::from(kind.fault_type().get())),
    )
}

#[test]
fn mkey_mask_is_complete() -> Result<(), Error> {
    let known = (0..64)
        .map(|bit| 1 << bit)
        .filter(|bit| MkeyMask::KNOWN & bit != 0);
    same_set("MLX5_MKEY_MASK_", known)
}

#[test]
fn named_wqe_fault_kinds() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("named_wqe_fault_kinds") else {
        return Ok(());
    };
    for (name, kind) in [
        ("MLX5_WQE_PF_TYPE_RMP", WqeFaultKind::SharedReceive),
        (
            "MLX5_WQE_PF_TYPE_REQ_SEND_OR_WRITE",
            WqeFaultKind::SendOrWrite,
        ),
        ("MLX5_WQE_PF_TYPE_RESP", WqeFaultKind::Receive),
        (
            "MLX5_WQE_PF_TYPE_REQ_READ_OR_ATOMIC",
            WqeFaultKind::ReadOrAtomic,
        ),
    ] {
        assert_eq!(
            oracle.constant(name)?,
            u64::from(kind.fault_type().get()),
            "{name}"
        );
    }
    let fault_type = FaultType::truncate;
    for (name, has) in [
        (
            "MLX5_PFAULT_REQUESTOR",
            FaultType::is_requester as fn(FaultType) -> bool,
        ),
        ("MLX5_PFAULT_WRITE", FaultType::is_write),
        ("MLX5_PFAULT_RDMA", FaultType::is_rdma),
    ] {
        let flag = oracle.constant(name)?;
        for bits in 0..8 {
            assert_eq!(
                has(fault_type(bits)),
                u64::from(bits) & flag != 0,
                "{name} in {bits}"
            );
        }
    }
    Ok(())
}

#[test]
fn named_statuses_and_modes() -> Result<(), Error> {
    let Some(oracle) = require_or_skip("named_statuses_and_modes") else {
        return Ok(());
    };
    for (name, status) in [
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
    ] {
        let number = oracle.constant(&format!("MLX5_CMD_STAT_{name}"))?;
        assert_eq!(number, u64::from(status.get()), "{name}");
        assert_eq!(CmdStatus::try_from(status.get()), Ok(status));
    }
    for (name, mode) in [
        ("PA", AccessMode::Pa),
        ("MTT", AccessMode::Mtt),
        ("KLMS", AccessMode::Klms),
        ("KSM", AccessMode::Ksm),
        ("SW_ICM", AccessMode::SwIcm),
        ("MEMIC", AccessMode::Memic),
        ("CROSSING", AccessMode::Crossing),
    ] {
        let number = oracle.constant(&format!("MLX5_MKC_ACCESS_MODE_{name}"))?;
        assert_eq!(number, u64::from(mode.get()), "{name}");
        assert_eq!(AccessMode::try_from(mode.get()), Ok(mode));
    }
    Ok(())
}
