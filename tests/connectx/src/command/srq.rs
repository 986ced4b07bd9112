// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands on shared receive queues: RMPs, which carry basic SRQs at ISSI 1, and XRC SRQs
//! (`mlx5_ib/srq_cmd.c`).

use firmware_cmds::{Cqn, DmaAddr, MttAccess, Pdn, Srqn, Xrcdn};

use super::devx::{self, Place};
use super::{put_word, word, CmdError, CmdResult, CmdStatus, Command};
use crate::buffer::QueueBuffer;
use crate::device::Device;
use crate::ifc::{arm_xrc_srq_in, create_xrc_srq_in, modify_rmp_in, rmpc, xrc_srqc};
use crate::qp::RecvKind;
use crate::srq::{Srq, SrqKind};
use crate::uctx::Object;

const RMP_CONTEXT: usize = 0x20;
const RMP_CONTEXT_SIZE: usize = 0xf0;
const XRC_CONTEXT: usize = 0x10;
const XRC_CONTEXT_SIZE: usize = 0x40;
const PAS: usize = 0x110;
/// WQEs, as a power of two. libmlx5 makes the ring up to four times as large as
/// `log_max_srq_sz` says.
const MAX_LOG_SIZE: u32 = 17;
/// Bytes of a WQE, as a power of two: at least a next segment and one data segment.
const LOG_STRIDE: std::ops::RangeInclusive<u32> = 5..=11;
/// State of an RMP that works (`MLX5_RMPC_STATE_RDY`).
const RMP_READY: u64 = 1;

/// Bytes of a queue.
fn size(log_size: u32, log_stride: u32) -> Result<u64, CmdError> {
    if log_size > MAX_LOG_SIZE || !LOG_STRIDE.contains(&log_stride) {
        return Err(CmdStatus::BadParam.into());
    }
    Ok(1 << (log_size + log_stride))
}

fn insert(dev: &mut Device, srq: Srq, output: &mut [u8]) -> CmdResult {
    let allowed = dev.uctxs.allow(Object::Pd, srq.pd.get());
    if !allowed || !dev.domains.pds.contains(&srq.pd) {
        return Err(CmdStatus::BadParam.into());
    }
    let queues = &dev.srqs.queues;
    let number = dev
        .srqs
        .numbers
        .take(|n| queues.contains_key(&Srqn::truncate(n)))
        .ok_or(CmdStatus::NoRes)?;
    dev.srqs.queues.insert(Srqn::truncate(number), srq);
    put_word(output, 8, number);
    Ok(())
}

fn create_rmp(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let context = &input[RMP_CONTEXT..RMP_CONTEXT + RMP_CONTEXT_SIZE];
    let log_size = rmpc::LOG_WQ_SZ.get32(context);
    let log_stride = rmpc::LOG_WQ_STRIDE.get32(context);
    let len = size(log_size, log_stride)?;
    let slots = Place::new(
        rmpc::WQ_UMEM_VALID.is_set(context),
        rmpc::WQ_UMEM_ID.get32(context),
        rmpc::WQ_UMEM_OFFSET.get(context),
    );
    let record = Place::new(
        rmpc::DBR_UMEM_VALID.is_set(context),
        rmpc::DBR_UMEM_ID.get32(context),
        rmpc::DBR_ADDR.get(context),
    );
    let buffer = dev.queue(slots, len, MttAccess::READ, || {
        QueueBuffer::new(
            &input[PAS..],
            rmpc::LOG_WQ_PG_SZ.get(context),
            rmpc::PAGE_OFFSET.get(context),
            len,
        )
    })?;
    let dbr = dev.record(record)?;
    let mut srq = Srq::new(SrqKind::Rmp, log_size, log_stride, dbr, buffer);
    srq.umems = devx::umems(&[slots, record]);
    srq.pd = Pdn::truncate(rmpc::PD.get32(context));
    srq.limit = u16::try_from(rmpc::LWM.get(context)).unwrap_or(0);
    srq.context = context.to_vec();
    insert(dev, srq, output)
}

fn create_xrc_srq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let context = &input[XRC_CONTEXT..XRC_CONTEXT + XRC_CONTEXT_SIZE];
    let log_size = xrc_srqc::LOG_XRC_SRQ_SIZE.get32(context);
    // In units of 16 bytes.
    let log_stride = xrc_srqc::LOG_RQ_STRIDE.get32(context) + 4;
    // Where these would name their umem nothing public says.
    if create_xrc_srq_in::XRC_SRQ_UMEM_VALID.is_set(input)
        || xrc_srqc::DBR_UMEM_VALID.is_set(context)
    {
        dev.journal
            .note(format_args!("CREATE_XRC_SRQ in a umem is not served"));
        return Err(CmdStatus::BadParam.into());
    }
    let buffer = QueueBuffer::new(
        &input[PAS..],
        xrc_srqc::LOG_PAGE_SIZE.get(context),
        xrc_srqc::PAGE_OFFSET.get(context),
        size(log_size, log_stride)?,
    )?;
    let high = xrc_srqc::DB_RECORD_ADDR_H.get(context) << 32;
    let low = xrc_srqc::DB_RECORD_ADDR_L.get(context) << 2;
    let xrcd = Xrcdn::truncate(xrc_srqc::XRCD.get32(context));
    let cqn = Cqn::truncate(xrc_srqc::CQN.get32(context));
    let allowed =
        dev.uctxs.allow(Object::Xrcd, xrcd.get()) && dev.uctxs.allow(Object::Cq, cqn.get());
    let there = dev.domains.xrcds.contains(&xrcd) && dev.cqs.queues.contains_key(&cqn);
    if !allowed || !there {
        return Err(CmdStatus::BadParam.into());
    }
    let kind = SrqKind::Xrc {
        xrcd,
        cqn,
        user_index: xrc_srqc::USER_INDEX.get32(context),
    };
    let mut srq = Srq::new(kind, log_size, log_stride, DmaAddr::new(high | low), buffer);
    srq.pd = Pdn::truncate(xrc_srqc::PD.get32(context));
    srq.limit = u16::try_from(xrc_srqc::LWM.get(context)).unwrap_or(0);
    srq.context = context.to_vec();
    insert(dev, srq, output)
}

fn find<'a>(dev: &'a mut Device, number: u32, xrc: bool) -> Result<&'a mut Srq, CmdError> {
    dev.srqs
        .queues
        .get_mut(&Srqn::truncate(number))
        .filter(|srq| srq.is_xrc() == xrc)
        .ok_or(CmdError::new(CmdStatus::BadRes))
}

fn destroy(dev: &mut Device, input: &[u8], xrc: bool) -> CmdResult {
    let number = word(input, 8) & 0xff_ffff;
    find(dev, number, xrc)?;
    let shared = RecvKind::Shared(Srqn::truncate(number));
    if dev.qps.iter().any(|qp| qp.rq.kind == shared) {
        dev.journal
            .note(format_args!("SRQ {number:#x} still has QPs"));
        return Err(CmdStatus::ResBusy.into());
    }
    dev.report_all();
    dev.srqs.queues.remove(&Srqn::truncate(number));
    // An XRC SRQ belongs to no QP, but messages may be on their way into its WQEs.
    dev.shared_queue_gone(Srqn::truncate(number));
    Ok(())
}

fn destroy_rmp(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    destroy(dev, input, false)
}

fn destroy_xrc_srq(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    destroy(dev, input, true)
}

fn query_rmp(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let srq = find(dev, word(input, 8), false)?;
    let context = &mut output[RMP_CONTEXT..RMP_CONTEXT + RMP_CONTEXT_SIZE];
    context.copy_from_slice(&srq.context);
    rmpc::STATE.set(context, RMP_READY);
    rmpc::LWM.set(context, u64::from(srq.limit));
    Ok(())
}

fn query_xrc_srq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let srq = find(dev, word(input, 8), true)?;
    let context = &mut output[XRC_CONTEXT..XRC_CONTEXT + XRC_CONTEXT_SIZE];
    context.copy_from_slice(&srq.context);
    xrc_srqc::STATE.set(context, 0);
    xrc_srqc::LWM.set(context, u64::from(srq.limit));
    Ok(())
}

fn modify_rmp(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    // `rmp_bitmask`: only `lwm` can be modified, the last of its 64 bits.
    let (high, low) = (word(input, 0x10), word(input, 0x14) & !1);
    if high != 0 || low != 0 {
        dev.journal.note(format_args!(
            "MODIFY_RMP: unknown bits {high:#x}:{low:#x} in the mask"
        ));
        return Err(CmdStatus::BadParam.into());
    }
    let lwm = rmpc::LWM.get(&input[RMP_CONTEXT..]);
    let srq = find(dev, modify_rmp_in::RMPN.get32(input), false)?;
    if modify_rmp_in::BITMASK_LWM.is_set(input) {
        srq.limit = u16::try_from(lwm).unwrap_or(0);
    }
    Ok(())
}

fn arm_xrc_srq(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let limit = u16::try_from(arm_xrc_srq_in::LWM.get(input)).unwrap_or(0);
    find(dev, arm_xrc_srq_in::XRC_SRQN.get32(input), true)?.limit = limit;
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0x705, "CREATE_XRC_SRQ", PAS, 16, create_xrc_srq),
    Command::new(0x706, "DESTROY_XRC_SRQ", 16, 16, destroy_xrc_srq),
    Command::new(
        0x707,
        "QUERY_XRC_SRQ",
        16,
        XRC_CONTEXT + XRC_CONTEXT_SIZE,
        query_xrc_srq,
    ),
    Command::new(0x708, "ARM_XRC_SRQ", 16, 16, arm_xrc_srq),
    Command::new(0x90c, "CREATE_RMP", PAS, 16, create_rmp),
    Command::new(
        0x90d,
        "MODIFY_RMP",
        RMP_CONTEXT + RMP_CONTEXT_SIZE,
        16,
        modify_rmp,
    ),
    Command::new(0x90e, "DESTROY_RMP", 16, 16, destroy_rmp),
    Command::new(
        0x90f,
        "QUERY_RMP",
        16,
        RMP_CONTEXT + RMP_CONTEXT_SIZE,
        query_rmp,
    ),
];
