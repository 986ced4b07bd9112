// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The translation table (XLT) as a UMR carries it.
//!
//! A UMR writes MTTs in blocks of [`UMR_BLOCK`], so every update and every zap covers neighbours
//! that nobody asked for. They keep what the driver last told the device: an MTT is made of its
//! entry's state and of nothing else ([`hmm_abi::Table`]).

use firmware_cmds::umr::UMR_ALIGN;
use firmware_cmds::{DmaAddr, Iova, Ksm, Mkey, Mtt, MttAccess, Wire};
use hmm_abi::{LockedChunk, Table, Translation};

use crate::implicit::{ChildIndex, Layout};

/// MTTs in the unit in which a UMR writes: 64 bytes (`MLX5_UMR_MTT_NUM_ENTRIES_ALIGNMENT`).
pub const UMR_BLOCK: usize = 8;

/// Bytes of an MTT.
pub const MTT_LEN: usize = Mtt::LEN;

/// KSMs in that unit.
pub const KSM_BLOCK: usize = UMR_ALIGN / KSM_LEN;

/// Bytes of a KSM.
pub const KSM_LEN: usize = Ksm::LEN;

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

/// Where accesses to children that do not exist fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullKey {
    /// Through a key of the MR's own, in the memory scheme: the event names it, and the address in
    /// it, which is therefore the process's.
    Own(Mkey),
    /// Through the device's, in the transport scheme.
    Device(Mkey),
}

/// Fills `out` with the KSMs of an implicit MR from child `first` on, each leading to the child's key,
/// if `key_of` has one (`odp.c:populate_ksm`).
pub fn fill_ksms(
    out: &mut [u8],
    layout: &Layout,
    first: ChildIndex,
    null: NullKey,
    key_of: impl Fn(ChildIndex) -> Option<Mkey>,
) {
    for (at, bytes) in (first.0..)
        .map(ChildIndex)
        .zip(out.chunks_exact_mut(KSM_LEN))
    {
        let start = Iova::new(layout.start_of(at));
        let (key, va) = match (key_of(at), null) {
            (Some(key), _) | (None, NullKey::Own(key)) => (key, start),
            (None, NullKey::Device(key)) => (key, Iova::new(0)),
        };
        // Cannot fail: the length is the right one.
        let _ = Ksm { key, va }.emit(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ksms_lead_to_children_or_to_the_null_key() {
        let layout = Layout::of((1 << 47) - 4096, 12).unwrap();
        let child = Mkey::new(0x1111);
        for (null, va) in [
            (NullKey::Own(Mkey::new(0x2222)), 8 << 30),
            (NullKey::Device(Mkey::new(0x2222)), 0),
        ] {
            let mut out = [0xff; KSM_BLOCK * KSM_LEN + 3];
            let key_of = |at| (at == ChildIndex(9)).then_some(child);
            fill_ksms(&mut out, &layout, ChildIndex(8), null, key_of);
            let ksm = |at: usize| Ksm::parse(&out[at * KSM_LEN..][..KSM_LEN]).unwrap();
            assert_eq!((ksm(0).key.get(), ksm(0).va.get()), (0x2222, va));
            assert_eq!((ksm(1).key, ksm(1).va.get()), (child, 9 << 30));
            assert_eq!(ksm(2).key.get(), 0x2222);
            assert_eq!(out[KSM_BLOCK * KSM_LEN..], [0xff; 3], "no whole KSM");
        }
    }
}
