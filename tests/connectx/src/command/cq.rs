// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands on completion queues.

use firmware_cmds::{Cqn, Eqn, MttAccess, Uar};

use super::devx::{self, Place};
use super::{op_mod, put_word, word, CmdError, CmdResult, CmdStatus, Command};
use crate::buffer::QueueBuffer;
use crate::completion::CompletionQueue;
use crate::device::Device;
use crate::ifc::{cqc, create_cq_in, unnamed};
use crate::uctx::Object;

const CONTEXT: usize = 0x10;
const CONTEXT_SIZE: usize = 0x40;
const PAS: usize = 0x110;
/// Entries, as a power of two (`log_max_cq_sz`).
const MAX_LOG_SIZE: u32 = 22;
const MODIFY: u16 = 0;
const RESIZE: u16 = 1;
/// Bits of `modify_field_select`: moderation, which the model keeps and does not apply.
const SELECT_PERIOD_AND_COUNT: u32 = 0x3;
/// Bits of `resize_field_select`: size, page offset and page size, all that a ring has.
const SELECT_RING: u32 = 0x7;

/// Bytes from one entry to the next: `cqe_sz` 0 is 64, 1 is 128, 2 is 64 padded to 128.
fn stride(context: &[u8]) -> Result<u64, CmdError> {
    match cqc::CQE_SZ.get(context) {
        0 => Ok(64),
        1 | 2 => Ok(128),
        _ => Err(CmdStatus::BadParam.into()),
    }
}

/// Size, stride and entries of the ring that a command describes: in `umem`, if it names one.
fn ring(
    dev: &Device,
    context: &[u8],
    pas: &[u8],
    umem: Place,
) -> Result<(u32, u64, QueueBuffer), CmdError> {
    let log_size = cqc::LOG_CQ_SIZE.get32(context);
    if log_size > MAX_LOG_SIZE {
        return Err(CmdStatus::BadParam.into());
    }
    let stride = stride(context)?;
    let len = stride << log_size;
    let buffer = dev.queue(umem, len, MttAccess::READ_WRITE, || {
        QueueBuffer::new(
            pas,
            cqc::LOG_PAGE_SIZE.get(context),
            cqc::PAGE_OFFSET.get(context),
            len,
        )
    })?;
    Ok((log_size, stride, buffer))
}

/// Where the ring is, as CREATE_CQ and MODIFY_CQ say it.
fn entries(input: &[u8]) -> Place {
    Place::new(
        create_cq_in::CQ_UMEM_VALID.is_set(input),
        unnamed::CQ_UMEM_ID.get32(input),
        unnamed::CQ_UMEM_OFFSET.get(input),
    )
}

fn create_cq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let context = &input[CONTEXT..CONTEXT + CONTEXT_SIZE];
    let entries = entries(input);
    let record = Place::new(
        cqc::DBR_UMEM_VALID.is_set(context),
        unnamed::CQC_DBR_UMEM_ID.get32(context),
        cqc::DBR_ADDR.get(context),
    );
    let (log_size, stride, buffer) = ring(dev, context, &input[PAS..], entries)?;
    let uar = Uar::truncate(cqc::UAR_PAGE.get32(context));
    let eqn = u8::try_from(cqc::C_EQN.get(context))
        .map(Eqn::new)
        .map_err(|_| CmdStatus::BadParam)?;
    let eq_there =
        dev.events.queues.contains_key(&eqn) && dev.uctxs.allow(Object::Eq, u32::from(eqn.get()));
    if !dev.uars.pages.contains(&uar) || !eq_there {
        return Err(CmdStatus::BadParam.into());
    }
    let mut cq = CompletionQueue::new(log_size, stride, buffer, dev.record(record)?);
    cq.umems = devx::umems(&[entries, record]);
    cq.overrun_ignore = cqc::OI.is_set(context);
    cq.eqn = eqn;
    cq.uar = uar;
    cq.context.copy_from_slice(context);
    let queues = &dev.cqs.queues;
    let cqn = dev
        .cqs
        .numbers
        .take(|n| queues.contains_key(&Cqn::truncate(n)))
        .ok_or(CmdStatus::NoRes)?;
    dev.cqs.queues.insert(Cqn::truncate(cqn), cq);
    put_word(output, 8, cqn);
    Ok(())
}

fn cqn(input: &[u8]) -> Cqn {
    Cqn::truncate(word(input, 8))
}

fn destroy_cq(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let cqn = cqn(input);
    if dev.cq_in_use(cqn) {
        dev.journal.note(format_args!("CQ {cqn} is still used"));
        return Err(CmdStatus::ResBusy.into());
    }
    match dev.cqs.queues.remove(&cqn) {
        Some(_) => Ok(()),
        None => Err(CmdStatus::BadRes.into()),
    }
}

fn query_cq(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let cq = dev.cqs.queues.get(&cqn(input)).ok_or(CmdStatus::BadRes)?;
    let context = &mut output[CONTEXT..CONTEXT + CONTEXT_SIZE];
    context.copy_from_slice(&cq.context);
    cqc::PRODUCER_COUNTER.set(context, u64::from(cq.producer));
    Ok(())
}

fn modify_cq(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let cqn = cqn(input);
    let context = &input[CONTEXT..CONTEXT + CONTEXT_SIZE];
    let cq = dev.cqs.queues.get_mut(&cqn).ok_or(CmdStatus::BadRes)?;
    match op_mod(input) {
        MODIFY => {
            if word(input, 0xc) & !SELECT_PERIOD_AND_COUNT != 0 {
                return Err(CmdStatus::BadParam.into());
            }
            for field in [cqc::CQ_PERIOD, cqc::CQ_MAX_COUNT] {
                field.set(&mut cq.context, field.get(context));
            }
            Ok(())
        }
        RESIZE => {
            if word(input, 0xc) != SELECT_RING {
                return Err(CmdStatus::BadParam.into());
            }
            let entries = entries(input);
            let (log_size, stride, buffer) = ring(dev, context, &input[PAS..], entries)?;
            dev.report_all();
            dev.resize_cq(cqn, log_size, stride, buffer)?;
            let cq = dev.cqs.queues.get_mut(&cqn).ok_or(CmdStatus::BadRes)?;
            // The old ring's umem stays in use: software still reads what is in it.
            cq.umems.extend(entries.umem);
            for field in [
                cqc::CQE_SZ,
                cqc::LOG_CQ_SIZE,
                cqc::LOG_PAGE_SIZE,
                cqc::PAGE_OFFSET,
            ] {
                field.set(&mut cq.context, field.get(context));
            }
            Ok(())
        }
        _ => Err(CmdStatus::BadOp.into()),
    }
}

impl Device {
    /// Whether a QP or SRQ still completes to this CQ.
    fn cq_in_use(&self, cqn: Cqn) -> bool {
        let by_srq = self.srqs.queues.values().any(|srq| srq.cqn() == Some(cqn));
        let by_qp = self
            .qps
            .iter()
            .any(|qp| qp.send_cq() == cqn || qp.recv_cq() == cqn);
        by_srq || by_qp
    }
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0x400, "CREATE_CQ", PAS, 16, create_cq),
    Command::new(0x401, "DESTROY_CQ", 16, 16, destroy_cq),
    Command::new(0x402, "QUERY_CQ", 16, PAS, query_cq),
    Command::new(0x403, "MODIFY_CQ", PAS, 16, modify_cq),
];
