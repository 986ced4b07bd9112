// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The port, as a function with virtualized InfiniBand sees it (`mlx5_core/vport.c`).

use super::{put_word, CmdError, CmdResult, CmdStatus, Command};
use crate::caps::{GID, LID, PORT_GUID};
use crate::device::Device;
use crate::ifc::{
    hca_vport_context as vport, query_hca_vport_context_in, query_hca_vport_gid_in,
    query_hca_vport_gid_out, query_hca_vport_pkey_in, query_hca_vport_pkey_out,
};
use crate::subnet::{PKEY, SM_LID};

const CONTEXT: usize = 0x10;
const CONTEXT_SIZE: usize = 0x200;

/// EUI-64s, distinct from each other and from the port's.
const SYSTEM_IMAGE_GUID: u64 = 0x0200_5e00_0300_0001;
const NODE_GUID: u64 = 0x0200_5e00_0300_0002;
/// Entries of the GID table with capability `gid_table_size` 0.
const GIDS: u64 = 8;
/// Entries of the P_Key table with capability `pkey_table_size` 0.
const PKEYS: u64 = 128;
const ACTIVE: u64 = 4;
const LINK_UP: u64 = 5;
const SUBNET_TIMEOUT: u64 = 18;
/// PortInfo.CapabilityMask: CommunicationManagementSupported.
const CM_SUPPORTED: u64 = 1 << 16;

fn own_port(dev: &mut Device, input: &[u8]) -> Result<(), CmdError> {
    if query_hca_vport_context_in::OTHER_VPORT.is_set(input) {
        dev.journal
            .note(format_args!("a vport other than the function's own"));
        return Err(CmdStatus::BadParam.into());
    }
    Ok(())
}

fn query_context(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    own_port(dev, input)?;
    let context = &mut output[CONTEXT..];
    for (field, value) in [
        (vport::PORT_PHYSICAL_STATE, LINK_UP),
        (vport::PORT_STATE, ACTIVE),
        (vport::VPORT_STATE, ACTIVE),
        (vport::SYSTEM_IMAGE_GUID, SYSTEM_IMAGE_GUID),
        (vport::PORT_GUID, PORT_GUID),
        (vport::NODE_GUID, NODE_GUID),
        (vport::CAP_MASK1, dev.hca.port_cap_mask | CM_SUPPORTED),
        (vport::CAP_MASK1_FIELD_SELECT, 0xffff_ffff),
        (vport::LID, u64::from(LID)),
        (vport::SUBNET_TIMEOUT, SUBNET_TIMEOUT),
        (vport::SM_LID, u64::from(SM_LID)),
    ] {
        field.set(context, value);
    }
    Ok(())
}

fn modify_context(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    own_port(dev, input)?;
    let context = &input[CONTEXT..];
    let select = vport::FIELD_SELECT.get(context);
    // GUIDs and the state policy are not the guest's to choose; `cap_mask1` has a mask of
    // its own.
    if select != 0 {
        dev.violation(format_args!(
            "MODIFY_HCA_VPORT_CONTEXT: field_select {select:#x}"
        ));
        return Err(CmdStatus::BadParam.into());
    }
    let mask = vport::CAP_MASK1_FIELD_SELECT.get(context);
    let value = vport::CAP_MASK1.get(context);
    dev.hca.port_cap_mask = dev.hca.port_cap_mask & !mask | value & mask;
    Ok(())
}

fn query_gid(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    own_port(dev, input)?;
    let index = query_hca_vport_gid_in::GID_INDEX.get(input);
    if index >= GIDS {
        return Err(CmdStatus::Ix.into());
    }
    query_hca_vport_gid_out::GIDS_NUM.set(output, 1);
    if index == 0 {
        output
            .get_mut(0x10..0x20)
            .ok_or(CmdStatus::BadOutpLen)?
            .copy_from_slice(&GID);
    }
    Ok(())
}

fn query_pkey(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    /// Asks for the whole table.
    const ALL: u64 = 0xffff;
    own_port(dev, input)?;
    let index = query_hca_vport_pkey_in::PKEY_INDEX.get(input);
    if index >= PKEYS && index != ALL {
        return Err(CmdStatus::Ix.into());
    }
    if output.len() < 0x14 {
        return Err(CmdStatus::BadOutpLen.into());
    }
    if index == 0 || index == ALL {
        query_hca_vport_pkey_out::PKEY.set(output, u64::from(PKEY));
    }
    Ok(())
}

/// Packet and byte counters of the port. The model counts messages, not packets, and
/// reports neither here.
fn query_counter(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    own_port(dev, input)?;
    put_word(output, 8, 0);
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        0x762,
        "QUERY_HCA_VPORT_CONTEXT",
        16,
        CONTEXT + CONTEXT_SIZE,
        query_context,
    ),
    Command::new(
        0x763,
        "MODIFY_HCA_VPORT_CONTEXT",
        CONTEXT + CONTEXT_SIZE,
        16,
        modify_context,
    ),
    Command::new(0x764, "QUERY_HCA_VPORT_GID", 16, 16, query_gid),
    Command::new(0x765, "QUERY_HCA_VPORT_PKEY", 16, 16, query_pkey),
    Command::new(0x770, "QUERY_VPORT_COUNTER", 16, 0x210, query_counter),
];
