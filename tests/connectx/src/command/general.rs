// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! General objects, of which there is one kind: QP numbers that are nobody's QP. A user who
//! connects QPs that the driver does not know, such as DC's, tells the CM such a number
//! (libmlx5 `verbs.c:reserved_qpn_blk_alloc`).

use firmware_cmds::Qpn;

use super::{put_word, word, CmdError, CmdResult, CmdStatus, Command};
use crate::caps::OBJECT_TYPE_RESERVED_QPN;
use crate::device::Device;
use crate::ifc::general_obj_in_cmd_hdr as header;

/// Number of the object.
const OBJECT: usize = 0x08;

/// Fails for another kind of object, and says so.
fn check_type(device: &mut Device, input: &[u8]) -> Result<(), CmdError> {
    let object_type = header::OBJ_TYPE.get(input);
    if object_type == OBJECT_TYPE_RESERVED_QPN {
        return Ok(());
    }
    device.misuse(format_args!(
        "general object of type {object_type:#x}, which is not offered"
    ));
    Err(CmdStatus::BadParam.into())
}

/// One number each: the capability that would say how many is of those that are not there
/// (`log_reserved_qpn_granularity`).
fn create(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    check_type(device, input)?;
    if header::LOG_OBJ_RANGE.is_set(input) {
        return Err(CmdStatus::BadParam.into());
    }
    let qpn = device.qps.reserve().ok_or(CmdStatus::NoRes)?;
    put_word(output, OBJECT, qpn.get());
    Ok(())
}

fn destroy(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    check_type(device, input)?;
    if device.qps.release(Qpn::truncate(word(input, OBJECT))) {
        Ok(())
    } else {
        Err(CmdStatus::BadRes.into())
    }
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(0xa00, "CREATE_GENERAL_OBJECT", 16, 16, create),
    Command::new(0xa03, "DESTROY_GENERAL_OBJECT", 16, 16, destroy),
];
