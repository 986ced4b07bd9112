// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which QPs receive what is sent to a multicast group (`mlx5_ib/main.c:mlx5_ib_mcg_attach`).

use firmware_cmds::Qpn;

use super::{word, CmdResult, CmdStatus, Command};
use crate::caps::LOG_MAX_QP_MCG;
use crate::device::Device;
use crate::qp::ServiceType;
use crate::subnet::Gid;

/// Number of the QP, in bits 23:0.
const QPN: usize = 0x08;
/// The group.
const MGID: usize = 0x10;
const LEN: usize = MGID + 16;

fn parse(input: &[u8]) -> Result<(Gid, Qpn), CmdStatus> {
    let mut mgid = [0; 16];
    mgid.copy_from_slice(&input[MGID..LEN]);
    if mgid[0] != 0xff {
        return Err(CmdStatus::BadParam);
    }
    Ok((mgid, Qpn::truncate(word(input, QPN))))
}

fn attach(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let (mgid, qpn) = parse(input)?;
    let qp = dev.qps.get(qpn).ok_or(CmdStatus::BadRes)?;
    if qp.st != ServiceType::Ud {
        return Err(CmdStatus::BadParam.into());
    }
    if dev.attachments.len(&mgid) >> LOG_MAX_QP_MCG != 0 {
        return Err(CmdStatus::NoRes.into());
    }
    dev.attachments.attach(mgid, qpn);
    Ok(())
}

fn detach(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let (mgid, qpn) = parse(input)?;
    if dev.attachments.detach(mgid, qpn) {
        Ok(())
    } else {
        Err(CmdStatus::BadRes.into())
    }
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0x806, "ATTACH_TO_MCG", LEN, 16, attach),
    Command::new(0x807, "DETACH_FROM_MCG", LEN, 16, detach),
];
