// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! QPs: creation, transitions, query, destruction.

use firmware_cmds::{Cqn, MttAccess, Qpn, Uar};

use super::devx::{self, Place};
use super::{put_word, word, CmdResult, CmdStatus, Command};
use crate::buffer::QueueBuffer;
use crate::caps::LOG_MAX_DCI_STREAM_CHANNELS;
use crate::device::Device;
use crate::ifc::{create_qp_in, unnamed};
use crate::qp::context::{self as qpc, QpContext, QPC_LEN};
use crate::qp::transition::{optpar, Refused, Transition};
use crate::qp::{buffer_layout, Qp, RecvKind, ServiceType};
use crate::uctx::Object;

/// Number of the QP, in bits 23:0.
const QPN: usize = 0x08;
/// Optional-parameter mask.
const OPT_MASK: usize = 0x10;
/// Context.
const QPC: usize = 0x18;
/// Page list, where there is one.
const PAS: usize = 0x110;

fn create_qp(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let context = QpContext::parse(&input[QPC..]).ok_or(CmdStatus::BadInpLen)?;
    let (len, _) = buffer_layout(&context).ok_or(CmdStatus::BadParam)?;
    let queues = Place::new(
        create_qp_in::WQ_UMEM_VALID.is_set(input),
        create_qp_in::WQ_UMEM_ID.get32(input),
        create_qp_in::WQ_UMEM_OFFSET.get(input),
    );
    let record = Place::new(
        context.flag(qpc::DBR_UMEM_VALID),
        context.get(unnamed::QPC_DBR_UMEM_ID),
        context.dbr_addr(),
    );
    let buffer = device.queue(queues, len, MttAccess::READ, || {
        QueueBuffer::new(
            &input[PAS..],
            context.get(qpc::LOG_PAGE_SIZE).into(),
            context.get(qpc::PAGE_OFFSET).into(),
            len,
        )
    })?;
    let in_umem = record.umem.map(|_| device.record(record)).transpose()?;
    let qpn = device.qps.number().ok_or(CmdStatus::NoRes)?;
    let mut qp = Qp::new(qpn, context, buffer).ok_or(CmdStatus::BadParam)?;
    qp.record = in_umem;
    qp.umems = devx::umems(&[queues, record]);
    let streams = u64::from(qp.context.get(qpc::LOG_DCI_STREAMS));
    if streams > LOG_MAX_DCI_STREAM_CHANNELS || qp.context.get(qpc::LOG_DCI_ERRORED) != 0 {
        return Err(CmdStatus::BadParam.into());
    }
    if device.uctxs.acting().is_user() && is_drivers(qp.st) {
        return Err(CmdStatus::BadParam.into());
    }
    if let Some(missing) = missing_reference(device, &qp) {
        device.journal.note(format_args!(
            "CREATE_QP with {missing}, which does not exist"
        ));
        return Err(CmdStatus::BadRes.into());
    }
    device.qps.insert(qp);
    put_word(output, QPN, qpn.get());
    Ok(())
}

/// Whether only the driver may have QPs of this type: keys and packets of all are open to them.
fn is_drivers(st: ServiceType) -> bool {
    matches!(
        st,
        ServiceType::Qp0 | ServiceType::Qp1 | ServiceType::RegUmr
    )
}

/// What a new QP refers to and is not there, or not for the sender of the command. A number that the QP has no use for is not
/// looked at: the driver leaves it 0, or gives that of an object of its own.
fn missing_reference(device: &Device, qp: &Qp) -> Option<String> {
    let cq = |cqn: Cqn| {
        let there = device.cqs.queues.contains_key(&cqn);
        let found = there && device.uctxs.allow(Object::Cq, cqn.get());
        (!found).then(|| format!("CQ {cqn}"))
    };
    let domain = qp.pd().and_then(|pd| {
        let there = device.domains.pds.contains(&pd);
        let found = there && device.uctxs.allow(Object::Pd, pd.get());
        (!found).then(|| format!("PD {pd}"))
    });
    let xrc_domain = qp.xrcd().and_then(|xrcd| {
        let there = device.domains.xrcds.contains(&xrcd);
        let found = there && device.uctxs.allow(Object::Xrcd, xrcd.get());
        (!found).then(|| format!("XRCD {xrcd}"))
    });
    let send = qp.sq.log_size.and_then(|_| {
        let uar = Uar::truncate(qp.context.get(qpc::UAR_PAGE));
        let missing = !device.uars.pages.contains(&uar);
        missing
            .then(|| format!("UAR {uar}"))
            .or_else(|| cq(qp.send_cq()))
    });
    let receive = match qp.rq.kind {
        RecvKind::None => None,
        RecvKind::Shared(srqn)
            if !device.srqs.queues.contains_key(&srqn)
                || !device.uctxs.allow(Object::Srq, srqn.get()) =>
        {
            Some(format!("SRQ {srqn}"))
        }
        RecvKind::Shared(_) | RecvKind::Own => cq(qp.recv_cq()),
    };
    domain.or(xrc_domain).or(send).or(receive)
}

fn destroy_qp(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    find(device, input)?;
    if device.attachments.is_attached(qpn(input)) {
        device.journal.note(format_args!(
            "QP {} is still attached to a multicast group",
            qpn(input)
        ));
        return Err(CmdStatus::ResBusy.into());
    }
    device.destroy_qp(qpn(input));
    Ok(())
}

fn query_qp(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let qp = find(device, input)?;
    let mut context = qp.context.clone();
    context.set(qpc::HW_SQ_COUNTER, qp.sq.ci.into());
    context.set(qpc::SW_SQ_COUNTER, qp.sq.pi.into());
    context.set(qpc::HW_RQ_COUNTER, qp.rq.ci.into());
    output[QPC..QPC + QPC_LEN].copy_from_slice(context.bytes());
    Ok(())
}

fn modify(device: &mut Device, input: &[u8], transition: Transition) -> CmdResult {
    let qpn = qpn(input);
    let new = QpContext::parse(&input[QPC..]).ok_or(CmdStatus::BadInpLen)?;
    let cqn = new.get(qpc::CQN_RCV);
    if word(input, OPT_MASK) & optpar::CQN_RCV != 0 && !device.uctxs.allow(Object::Cq, cqn) {
        return Err(CmdStatus::BadRes.into());
    }
    find(device, input)?;
    let qp = device.qps.get_mut(qpn).ok_or(CmdStatus::BadRes)?;
    match transition.apply(&mut qp.context, qp.state, word(input, OPT_MASK), &new) {
        Ok(target) => qp.state = target,
        Err(Refused::BadState) => return Err(CmdStatus::BadQpState.into()),
        Err(Refused::UnknownBits(bits)) => {
            device.journal.note(format_args!(
                "QP {qpn}: {transition:?} with unknown optional parameters {bits:#x}"
            ));
            return Err(CmdStatus::BadParam.into());
        }
    }
    // What was posted before may now be executed.
    device.qps.wake(qpn);
    Ok(())
}

fn to_error(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let qpn = find(device, input)?.qpn;
    device.qp_to_error(qpn);
    Ok(())
}

/// When this returns no completion of the QP will be written any more: the driver then
/// cleans its CQs (kernel `drivers/infiniband/hw/mlx5/qp.c:__mlx5_ib_modify_qp`).
fn to_reset(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let qpn = find(device, input)?.qpn;
    device.reset_qp(qpn);
    Ok(())
}

/// The QP that a command names; a DC target is none.
fn find<'a>(device: &'a Device, input: &[u8]) -> Result<&'a Qp, CmdStatus> {
    let qp = device.qps.get(qpn(input)).filter(|qp| qp.dct.is_none());
    qp.ok_or(CmdStatus::BadRes)
}

fn qpn(input: &[u8]) -> Qpn {
    Qpn::truncate(word(input, QPN))
}

macro_rules! transitions {
    ($($opcode:literal $name:literal $function:ident $transition:ident;)*) => {
        $(fn $function(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
            modify(device, input, Transition::$transition)
        })*

        pub(super) const COMMANDS: &[Command] = &[
            Command { opcode: 0x500, name: "CREATE_QP", input: PAS, output: 16, run: create_qp },
            simple(0x501, "DESTROY_QP", destroy_qp),
            simple(0x507, "2ERR_QP", to_error),
            simple(0x50a, "2RST_QP", to_reset),
            Command {
                opcode: 0x50b,
                name: "QUERY_QP",
                input: 16,
                output: QPC + QPC_LEN,
                run: query_qp,
            },
            $(Command {
                opcode: $opcode,
                name: $name,
                input: QPC + QPC_LEN,
                output: 16,
                run: $function,
            },)*
        ];
    };
}

transitions! {
    0x502 "RST2INIT_QP" rst_to_init RstToInit;
    0x503 "INIT2RTR_QP" init_to_rtr InitToRtr;
    0x504 "RTR2RTS_QP" rtr_to_rts RtrToRts;
    0x505 "RTS2RTS_QP" rts_to_rts RtsToRts;
    0x506 "SQERR2RTS_QP" sq_error_to_rts SqErrToRts;
    0x50c "SQD_RTS_QP" sqd_to_rts SqdToRts;
    0x50e "INIT2INIT_QP" init_to_init InitToInit;
}

const fn simple(opcode: u16, name: &'static str, run: super::Handler) -> Command {
    Command {
        opcode,
        name,
        input: 16,
        output: 16,
        run,
    }
}
