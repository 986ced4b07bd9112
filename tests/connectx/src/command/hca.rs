// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The function itself: bring-up, capabilities, identity (`mlx5_core/main.c`, `fw.c`).

use super::{op_mod, put_word, word, CmdResult, CmdStatus, Command};
use crate::caps::{is_void, CapType, CAP_SIZE};
use crate::device::Device;
use crate::ifc::{query_adapter_out, query_issi_out, query_special_contexts_out};
use crate::mkey::NULL_MKEY;

/// Interface steps, a bit each: step 1, which ConnectX firmware speaks.
const SUPPORTED_ISSI: u64 = 1 << 1;
/// Mellanox' OUI.
const IEEE_VENDOR_ID: u64 = 0x00_02c9;
/// Identifies board and firmware configuration; 16 characters.
const PSID: &[u8; 16] = b"SFT0000000001\0\0\0";
/// The lkey that ends a scatter list; libmlx5 has it built in (`MLX5_INVALID_LKEY`).
const TERMINATE_LKEY: u64 = 0x100;
const PSID_AT: usize = 0x100;
/// Where capabilities lie in QUERY_HCA_CAP's output and SET_HCA_CAP's input.
const CAPS_AT: usize = 0x10;

fn enable_hca(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    if word(input, 8) & 0xffff != 0 {
        // Another function: there is only this one.
        return Err(CmdStatus::BadParam.into());
    }
    if dev.hca.enabled {
        return Err(CmdStatus::BadSysState.into());
    }
    let left = dev.objects().iter().map(|(_, n)| n).sum::<usize>();
    if left != 0 {
        dev.violation(format_args!("ENABLE_HCA with {left} objects left"));
    }
    dev.reset_objects();
    dev.hca.enabled = true;
    Ok(())
}

fn disable_hca(dev: &mut Device, _: &[u8], _: &mut [u8]) -> CmdResult {
    if dev.hca.initialized {
        return Err(CmdStatus::BadSysState.into());
    }
    dev.hca.enabled = false;
    Ok(())
}

fn init_hca(dev: &mut Device, _: &[u8], _: &mut [u8]) -> CmdResult {
    if !dev.hca.enabled || dev.hca.initialized {
        return Err(CmdStatus::BadSysState.into());
    }
    dev.hca.initialized = true;
    Ok(())
}

fn teardown_hca(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    const GRACEFUL: u32 = 0;
    if word(input, 8) & 0xffff != GRACEFUL {
        // Forced and fast teardown are not among the capabilities.
        return Err(CmdStatus::BadParam.into());
    }
    if !dev.hca.initialized {
        return Err(CmdStatus::BadSysState.into());
    }
    let left: Vec<_> = dev.objects().into_iter().filter(|&(_, n)| n != 0).collect();
    if !left.is_empty() {
        dev.violation(format_args!("TEARDOWN_HCA with objects left: {left:?}"));
    }
    dev.hca.initialized = false;
    Ok(())
}

fn query_issi(dev: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
    query_issi_out::CURRENT_ISSI.set(output, u64::from(dev.hca.issi));
    query_issi_out::SUPPORTED_ISSI_DW0.set(output, SUPPORTED_ISSI);
    Ok(())
}

fn set_issi(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let [_, _, high, low] = word(input, 8).to_be_bytes();
    let issi = u16::from_be_bytes([high, low]);
    if issi > 63 || SUPPORTED_ISSI >> issi & 1 == 0 {
        return Err(CmdStatus::BadParam.into());
    }
    dev.hca.issi = issi;
    Ok(())
}

/// The device has its own memory: it never wants pages.
fn query_pages(_: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    match op_mod(input) {
        1..=3 => {
            put_word(output, 8, word(input, 8) & 0xffff);
            Ok(())
        }
        _ => Err(CmdStatus::BadOp.into()),
    }
}

fn manage_pages(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    const TAKE: u16 = 2;
    if op_mod(input) == TAKE {
        return Ok(());
    }
    dev.violation(format_args!(
        "MANAGE_PAGES with modifier {}: the device asked for no pages",
        op_mod(input)
    ));
    Err(CmdStatus::BadParam.into())
}

fn cap_type(dev: &mut Device, name: &str, number: u16) -> Result<CapType, super::CmdError> {
    CapType::from_number(number).ok_or_else(|| {
        dev.misuse(format_args!("{name}: no capabilities of type {number}"));
        CmdStatus::BadParam.into()
    })
}

/// The driver asks only for types that the general capabilities announce, a user for what it would
/// like: it is told that there is nothing.
fn query_hca_cap(dev: &mut Device, input: &[u8], output: &mut [u8]) -> CmdResult {
    let op_mod = op_mod(input);
    if dev.uctxs.acting().is_user() && is_void(op_mod >> 1) {
        return Ok(());
    }
    let cap_type = cap_type(dev, "QUERY_HCA_CAP", op_mod >> 1)?;
    let caps = if op_mod & 1 == 0 {
        dev.hca.max()
    } else {
        dev.hca.current()
    };
    output[CAPS_AT..CAPS_AT + CAP_SIZE].copy_from_slice(caps.get(cap_type));
    Ok(())
}

fn set_hca_cap(dev: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let op_mod = op_mod(input);
    if op_mod & 1 == 1 {
        return Err(CmdStatus::BadOp.into());
    }
    if !dev.hca.enabled || dev.hca.initialized {
        return Err(CmdStatus::BadSysState.into());
    }
    let cap_type = cap_type(dev, "SET_HCA_CAP", op_mod >> 1)?;
    let mut caps = [0; CAP_SIZE];
    caps.copy_from_slice(&input[CAPS_AT..CAPS_AT + CAP_SIZE]);
    dev.hca.choose(cap_type, &caps).map_err(|bit| {
        dev.violation(format_args!(
            "SET_HCA_CAP {cap_type:?}: bit {bit:#x} is not offered"
        ));
        CmdStatus::BadParam.into()
    })
}

fn query_adapter(_: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
    query_adapter_out::IEEE_VENDOR_ID.set(output, IEEE_VENDOR_ID);
    output[PSID_AT..PSID_AT + PSID.len()].copy_from_slice(PSID);
    Ok(())
}

fn query_special_contexts(_: &mut Device, _: &[u8], output: &mut [u8]) -> CmdResult {
    query_special_contexts_out::NULL_MKEY.set(output, u64::from(NULL_MKEY.get()));
    // Not offered as a capability, but libmlx5 takes this value for granted.
    query_special_contexts_out::TERMINATE_SCATTER_LIST_MKEY.set(output, TERMINATE_LKEY);
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        0x100,
        "QUERY_HCA_CAP",
        16,
        CAPS_AT + CAP_SIZE,
        query_hca_cap,
    ),
    Command::new(0x101, "QUERY_ADAPTER", 16, 0x110, query_adapter),
    Command::new(0x102, "INIT_HCA", 16, 16, init_hca),
    Command::new(0x103, "TEARDOWN_HCA", 16, 16, teardown_hca),
    Command::new(0x104, "ENABLE_HCA", 16, 12, enable_hca),
    Command::new(0x105, "DISABLE_HCA", 16, 12, disable_hca),
    Command::new(0x107, "QUERY_PAGES", 16, 16, query_pages),
    Command::new(0x108, "MANAGE_PAGES", 16, 16, manage_pages),
    Command::new(0x109, "SET_HCA_CAP", CAPS_AT + CAP_SIZE, 16, set_hca_cap),
    Command::new(0x10a, "QUERY_ISSI", 16, 0x70, query_issi),
    Command::new(0x10b, "SET_ISSI", 16, 16, set_issi),
    Command::new(
        0x203,
        "QUERY_SPECIAL_CONTEXTS",
        16,
        0x20,
        query_special_contexts,
    ),
];
