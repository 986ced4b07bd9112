// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! CREATE_MKEY, QUERY_MKEY, DESTROY_MKEY.

use firmware_cmds::mkey::{
    CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, DestroyMkeyOut, QueryMkeyIn, QueryMkeyOut,
};
use firmware_cmds::{AccessMode, MkeyIndex, Opcode, OutHeader, Wire};

use super::{CmdResult, CmdStatus, Command};
use crate::device::Device;
use crate::mkey::xlt::OCTWORD;
use crate::mkey::MKey;

fn create_mkey(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let (create, list) = CreateMkeyIn::parse_prefix(input).map_err(|_| CmdStatus::BadParam)?;
    let supported = matches!(
        create.mkc.access_mode,
        AccessMode::Pa | AccessMode::Mtt | AccessMode::Klms | AccessMode::Ksm
    );
    if !supported || create.mkey_umem_valid || create.mkc.bsf_en {
        return Err(CmdStatus::BadParam.into());
    }
    let len = usize::try_from(create.translations_octword_actual_size)
        .ok()
        .and_then(|octwords| octwords.checked_mul(OCTWORD))
        .ok_or(CmdStatus::BadParam)?;
    let list = list.get(..len).ok_or(CmdStatus::BadInpLen)?;
    let mut mkey = MKey::new(create.mkc);
    if !mkey.xlt.takes(0, list.len()) || mkey.too_short_for(&create.mkc) {
        device.violation(format_args!(
            "CREATE_MKEY of {:#x} bytes with {} octwords, {} of them given",
            create.mkc.len,
            create.mkc.translations_octword_size,
            create.translations_octword_actual_size
        ));
        return Err(CmdStatus::BadParam.into());
    }
    mkey.xlt.write(0, list);
    let index = device.mkeys.insert(mkey).ok_or(CmdStatus::NoRes)?;
    let out = CreateMkeyOut {
        header: OutHeader::OK,
        mkey_index: MkeyIndex::truncate(index),
    };
    out.emit(output).map_err(|_| CmdStatus::BadOutpLen)?;
    Ok(())
}

fn query_mkey(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let query = QueryMkeyIn::parse(input).map_err(|_| CmdStatus::BadParam)?;
    let mkey = device
        .mkeys
        .get(query.mkey_index.get())
        .ok_or(CmdStatus::BadRes)?;
    let out = QueryMkeyOut {
        header: OutHeader::OK,
        mkc: mkey.mkc,
    };
    out.emit(output).map_err(|_| CmdStatus::BadOutpLen)?;
    if query.pg_access {
        mkey.xlt.read_into(&mut output[QueryMkeyOut::LEN..]);
    }
    Ok(())
}

/// Every access happens within one step of the device, and this is another: nothing can
/// be under way that uses the MKey.
fn destroy_mkey(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let destroy = DestroyMkeyIn::parse(input).map_err(|_| CmdStatus::BadParam)?;
    device
        .mkeys
        .remove(destroy.mkey_index.get())
        .ok_or(CmdStatus::BadRes)?;
    let out = DestroyMkeyOut {
        header: OutHeader::OK,
    };
    out.emit(output).map_err(|_| CmdStatus::BadOutpLen)?;
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[
    Command {
        opcode: Opcode::CreateMkey.get(),
        name: "CREATE_MKEY",
        input: CreateMkeyIn::LEN,
        output: CreateMkeyOut::LEN,
        run: create_mkey,
    },
    Command {
        opcode: Opcode::QueryMkey.get(),
        name: "QUERY_MKEY",
        input: QueryMkeyIn::LEN,
        output: QueryMkeyOut::LEN,
        run: query_mkey,
    },
    Command {
        opcode: Opcode::DestroyMkey.get(),
        name: "DESTROY_MKEY",
        input: DestroyMkeyIn::LEN,
        output: DestroyMkeyOut::LEN,
        run: destroy_mkey,
    },
];
