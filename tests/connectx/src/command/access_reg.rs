// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! ACCESS_REG: the registers that the driver reads (`mlx5_core/port.c`).
//!
//! Any other register is refused with BAD_PARAM, which `mlx5_core` takes for "not there": it
//! tries registers that a card may lack, such as MNVDA for the permanent parameters of
//! devlink (`lib/nv_param.c:mlx5_nv_param_read`).

use super::{op_mod, CmdError, CmdResult, CmdStatus, Command};
use crate::device::Device;
use crate::ifc::{access_register_in, pmtu_reg, ptys_reg, pvlc_reg};

const DATA: usize = 0x10;
const WRITE: u16 = 0;
const READ: u16 = 1;

/// Register numbers (`include/linux/mlx5/driver.h`).
const PMTU: u64 = 0x5003;
const PTYS: u64 = 0x5004;
const PVLC: u64 = 0x500f;
const NODE_DESC: u64 = 0x6001;
const HOST_ENDIANNESS: u64 = 0x7004;

/// `enum mlx5_ib_ptys_width`: 4X.
const WIDTH_4X: u64 = 1 << 2;
/// `enum mlx5_ptys_rate`: NDR.
const RATE_NDR: u64 = 1 << 7;
const MTU: u64 = 4096;
/// Virtual lanes 0 to 3.
const VL_0_3: u64 = 4;
const DESCRIPTION: &[u8] = b"software ConnectX";

fn access_reg(_: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let id = access_register_in::REGISTER_ID.get(input);
    let data = &mut output[DATA..];
    let fields: &[_] = match (id, op_mod(input)) {
        // The device speaks big-endian to any host.
        (HOST_ENDIANNESS, WRITE) => &[],
        (NODE_DESC, READ) => {
            data.get_mut(..DESCRIPTION.len())
                .ok_or(CmdStatus::BadOutpLen)?
                .copy_from_slice(DESCRIPTION);
            &[]
        }
        (PTYS, READ) => &[
            (ptys_reg::IB_LINK_WIDTH_CAPABILITY, WIDTH_4X),
            (ptys_reg::IB_PROTO_CAPABILITY, RATE_NDR),
            (ptys_reg::IB_LINK_WIDTH_ADMIN, WIDTH_4X),
            (ptys_reg::IB_PROTO_ADMIN, RATE_NDR),
            (ptys_reg::IB_LINK_WIDTH_OPER, WIDTH_4X),
            (ptys_reg::IB_PROTO_OPER, RATE_NDR),
        ],
        (PMTU, READ) => &[
            (pmtu_reg::MAX_MTU, MTU),
            (pmtu_reg::ADMIN_MTU, MTU),
            (pmtu_reg::OPER_MTU, MTU),
        ],
        (PVLC, READ) => &[
            (pvlc_reg::VL_HW_CAP, VL_0_3),
            (pvlc_reg::VL_ADMIN, VL_0_3),
            (pvlc_reg::VL_OPERATIONAL, VL_0_3),
        ],
        // The syndrome says which: the driver prints it, and the journal.
        _ => {
            return Err(CmdError {
                status: CmdStatus::BadParam,
                syndrome: access_register_in::REGISTER_ID.get32(input),
            })
        }
    };
    for &(field, value) in fields {
        if (field.bit + field.width).div_ceil(8) > data.len() {
            return Err(CmdStatus::BadOutpLen.into());
        }
        field.set(data, value);
    }
    Ok(())
}

pub(super) const COMMANDS: &[Command] =
    &[Command::new(0x805, "ACCESS_REG", DATA, DATA, access_reg)];
