// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DC targets (`mlx5_ib/qpc.c:mlx5_core_create_dct`). They share their numbers with QPs: a DCI
//! names either kind in the same place.

use firmware_cmds::{Cqn, Eqe, Qpn, Srqn};

use super::{put_word, word, CmdResult, CmdStatus, Command};
use crate::device::Device;
use crate::ifc::dctc;
use crate::qp::context::{self as qpc, QpContext};
use crate::qp::{Dct, Qp, QpState};
use crate::uctx::Object;

/// Number of the DCT, in bits 23:0.
const DCTN: usize = 0x08;
/// Context.
const DCTC: usize = 0x10;
const DCTC_LEN: usize = 0x40;
const LEN: usize = DCTC + DCTC_LEN;

/// Where the context of a DCT says what that of a QP says elsewhere.
const AS_IN_QPC: &[(crate::ifc::Field, qpc::Field)] = &[
    (dctc::USER_INDEX, qpc::USER_INDEX),
    (dctc::CQN, qpc::CQN_RCV),
    (dctc::SRQN, qpc::SRQN),
    (dctc::PD, qpc::PD),
    (dctc::RRE, qpc::RRE),
    (dctc::RWE, qpc::RWE),
    (dctc::RAE, qpc::RAE),
    (dctc::ATOMIC_MODE, qpc::ATOMIC_MODE),
    (dctc::MIN_RNR_NAK, qpc::MIN_RNR_NAK),
    (dctc::MTU, qpc::MTU),
    (dctc::PORT, qpc::PORT),
    (dctc::PKEY_INDEX, qpc::PKEY_INDEX),
];

fn create(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let image = &input[DCTC..LEN];
    let pd = firmware_cmds::Pdn::truncate(dctc::PD.get32(image));
    let cqn = Cqn::truncate(dctc::CQN.get32(image));
    let srqn = Srqn::truncate(dctc::SRQN.get32(image));
    let there = device.domains.pds.contains(&pd)
        && device.cqs.queues.contains_key(&cqn)
        && device.srqs.queues.contains_key(&srqn);
    let allowed = device.uctxs.allow(Object::Pd, pd.get())
        && device.uctxs.allow(Object::Cq, cqn.get())
        && device.uctxs.allow(Object::Srq, srqn.get());
    if !there || !allowed {
        device.journal.note(format_args!(
            "CREATE_DCT with PD {pd}, CQ {cqn}, SRQ {srqn}, of which one does not exist"
        ));
        return Err(CmdStatus::BadRes.into());
    }
    let mut context = QpContext::zeroed();
    for &(theirs, ours) in AS_IN_QPC {
        context.set(ours, theirs.get32(image));
    }
    let qpn = device.qps.number().ok_or(CmdStatus::NoRes)?;
    let dct = Dct {
        key: dctc::DC_ACCESS_KEY.get(image),
        violations: 0,
        context: image.to_vec(),
    };
    device.qps.insert(Qp::target(qpn, context, dct));
    put_word(output, DCTN, qpn.get());
    Ok(())
}

/// Nothing new is taken. What is under way is given up, its receive WQE flushed: this device
/// drains at once.
fn drain(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let dctn = dctn(input);
    let dct = target(device, dctn)?;
    if dct.state != QpState::Rtr {
        return Err(CmdStatus::BadResState.into());
    }
    device.drain_target(dctn);
    device.raise(Eqe::dct_drained(dctn));
    Ok(())
}

fn destroy(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let dctn = dctn(input);
    if target(device, dctn)?.state == QpState::Rtr {
        // Not drained.
        return Err(CmdStatus::BadResState.into());
    }
    device.destroy_qp(dctn);
    Ok(())
}

fn query(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    /// `enum` of the field: active, draining, drained.
    const DRAINED: u64 = 2;
    let qp = target(device, dctn(input))?;
    let context = &mut output[DCTC..LEN];
    if let Some(dct) = &qp.dct {
        context.copy_from_slice(&dct.context);
        dctc::VIOLATIONS.set(context, u64::from(dct.violations));
    }
    if qp.state != QpState::Rtr {
        dctc::STATE.set(context, DRAINED);
    }
    Ok(())
}

fn target(device: &Device, dctn: Qpn) -> Result<&Qp, CmdStatus> {
    let qp = device.qps.get(dctn).filter(|qp| qp.dct.is_some());
    qp.ok_or(CmdStatus::BadRes)
}

fn dctn(input: &[u8]) -> Qpn {
    Qpn::truncate(word(input, DCTN))
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0x710, "CREATE_DCT", LEN, 16, create),
    Command::new(0x711, "DESTROY_DCT", 16, 16, destroy),
    Command::new(0x712, "DRAIN_DCT", 16, 16, drain),
    Command::new(0x713, "QUERY_DCT", 16, LEN, query),
];
