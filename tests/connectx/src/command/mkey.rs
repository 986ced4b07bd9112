// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! CREATE_MKEY, QUERY_MKEY, DESTROY_MKEY.

use firmware_cmds::mkey::{
    CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, DestroyMkeyOut, QueryMkeyIn, QueryMkeyOut,
};
use firmware_cmds::{AccessMode, LogPageSize, MkeyIndex, Mtt, MttAccess, Opcode, OutHeader, Wire};

use super::{CmdError, CmdResult, CmdStatus, Command};
use crate::device::Device;
use crate::mkey::xlt::OCTWORD;
use crate::mkey::{entries_needed, MKey};
use crate::uctx::Object;

fn create_mkey(device: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let (create, list) = CreateMkeyIn::parse_prefix(input).map_err(|_| CmdStatus::BadParam)?;
    let supported = matches!(
        create.mkc.access_mode,
        AccessMode::Pa | AccessMode::Mtt | AccessMode::Klms | AccessMode::Ksm
    );
    if !supported || create.mkc.bsf_en {
        return Err(CmdStatus::BadParam.into());
    }
    if !device.uctxs.allow(Object::Pd, create.mkc.pd.get()) {
        return Err(CmdStatus::BadRes.into());
    }
    let mkey = if create.mkey_umem_valid {
        over_umem(device, &create)?
    } else {
        over_list(device, &create, list)?
    };
    let index = device.mkeys.insert(mkey).ok_or(CmdStatus::NoRes)?;
    let out = CreateMkeyOut {
        header: OutHeader::OK,
        mkey_index: MkeyIndex::truncate(index),
    };
    out.emit(output).map_err(|_| CmdStatus::BadOutpLen)?;
    Ok(())
}

/// A key with the entries of the command. A user names other keys, never bus addresses.
fn over_list(device: &mut Device, create: &CreateMkeyIn, list: &[u8]) -> Result<MKey, CmdError> {
    let indirect = matches!(create.mkc.access_mode, AccessMode::Klms | AccessMode::Ksm);
    if device.uctxs.acting().is_user() && !indirect {
        return Err(CmdStatus::BadParam.into());
    }
    let len = usize::try_from(create.translations_octword_actual_size)
        .ok()
        .and_then(|octwords| octwords.checked_mul(OCTWORD))
        .ok_or(CmdStatus::BadParam)?;
    let list = list.get(..len).ok_or(CmdStatus::BadInpLen)?;
    let mut mkey = MKey::new(create.mkc);
    if !mkey.xlt.takes(0, list.len()) || mkey.too_short_for(&create.mkc) {
        device.misuse(format_args!(
            "CREATE_MKEY of {:#x} bytes with {} octwords, {} of them given",
            create.mkc.len,
            create.mkc.translations_octword_size,
            create.translations_octword_actual_size
        ));
        return Err(CmdStatus::BadParam.into());
    }
    mkey.xlt.write(0, list);
    Ok(mkey)
}

/// A key over the pages of a umem, whose page size it has: what the command says of pages and
/// entries does not count (UCX leaves it 0).
fn over_umem(device: &Device, create: &CreateMkeyIn) -> Result<MKey, CmdError> {
    let mut mkc = create.mkc;
    let umem = device.umem(create.mkey_umem_id)?;
    if mkc.access_mode != AccessMode::Mtt || mkc.length64 {
        return Err(CmdStatus::BadParam.into());
    }
    let log = u8::try_from(umem.log_page()).map_err(|_| CmdStatus::BadParam)?;
    mkc.log_page_size = LogPageSize::truncate(log);
    let (pages, within) = umem
        .pages(create.mkey_umem_offset, mkc.len, MttAccess::NONE)
        .ok_or(CmdStatus::BadParam)?;
    // An address lies in its page where its byte of the umem does.
    if mkc.start_addr.get() & (mkc.log_page_size.bytes() - 1) != within {
        return Err(CmdStatus::BadParam.into());
    }
    let octwords = entries_needed(&mkc).div_ceil(2);
    mkc.translations_octword_size = u32::try_from(octwords).map_err(|_| CmdStatus::BadParam)?;
    let mut list = vec![0; pages.len() * Mtt::LEN];
    for (entry, page) in list.chunks_exact_mut(Mtt::LEN).zip(pages) {
        page.emit(entry).map_err(|_| CmdStatus::InternalError)?;
    }
    let mut mkey = MKey::new(mkc);
    mkey.xlt.write(0, &list);
    mkey.umem = Some(create.mkey_umem_id);
    Ok(mkey)
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
    // Linux asks for the entries of a window without it (`odp.c:pagefault_single_data_segment`).
    let indirect = matches!(mkey.mkc.access_mode, AccessMode::Klms | AccessMode::Ksm);
    if query.pg_access || indirect {
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
