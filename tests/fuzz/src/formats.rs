// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bytes to values and back: every parser of `firmware-cmds`, on the same bytes.

#[path = "../../../firmware-cmds/tests/survives/mod.rs"]
mod survives;

/// What holds of any bytes, as the property tests have it.
pub fn run(bytes: &[u8]) {
    survives::small_formats(bytes);
    survives::commands(bytes);
    survives::events(bytes);
    survives::resumes(bytes);
    survives::send_wqes(bytes);
    // A key that the bytes can contain; the one that the device names is among the seeds.
    let (key, list) = bytes.split_at(bytes.len().min(4));
    let key = key.try_into().map_or(0x100, u32::from_be_bytes);
    survives::receive_wqes(list, key);
    survives::indirect(bytes, key.into(), 1 << 20);
}
