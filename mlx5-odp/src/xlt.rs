// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) as a UMR carries it.
//!
//! A UMR writes MTTs in blocks of [`UMR_BLOCK`], so every update and every zap covers neighbours
//! that nobody asked for. They keep what the driver last told the device: an MTT is made of its
//! entry's state and of nothing else ([`hmm_abi::Table`]).

use firmware_cmds::{DmaAddr, Mtt, MttAccess, Wire};
use hmm_abi::{LockedChunk, Table, Translation};

/// MTTs in the unit in which a UMR writes: 64 bytes (`MLX5_UMR_MTT_NUM_ENTRIES_ALIGNMENT`).
pub const UMR_BLOCK: usize = 8;

/// Bytes of an MTT.
pub const MTT_LEN: usize = Mtt::LEN;

/// How many MTTs a UMR writes for `table`: whole blocks.
pub fn len<L: LockedChunk>(table: &Table<'_, L>) -> usize {
    table.len().next_multiple_of(UMR_BLOCK)
}

/// Fills `out` with the MTTs of `table`, from the start, and with MTTs that are not present behind
/// them up to a whole block. Returns how many ([`len`]), or `None` if `out` is too short.
///
/// The C leaves entries of absent pages alone, and since `umr.c` reuses its buffer for tables of
/// more than 512 MiB, absent pages there inherit the translations of other pages.
pub fn fill<L: LockedChunk>(table: &Table<'_, L>, out: &mut [[u8; MTT_LEN]]) -> Option<usize> {
    let len = len(table);
    let (used, padding) = out.get_mut(..len)?.split_at_mut(table.len());
    for (bytes, translation) in used.iter_mut().zip(table.translations()) {
        // Cannot fail: the length is the right one.
        let _ = mtt(translation).emit(bytes);
    }
    padding.fill([0; MTT_LEN]);
    Some(len)
}

/// The MTT of a translation.
fn mtt(translation: Option<Translation>) -> Mtt {
    let Some(Translation { address, write }) = translation else {
        return Mtt::NOT_PRESENT;
    };
    let access = match write {
        true => MttAccess::READ_WRITE,
        false => MttAccess::READ,
    };
    Mtt::new(DmaAddr::new(address), access).unwrap_or(Mtt::NOT_PRESENT)
}
