// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From mapped entries to none, when the device has let go.

use crate::{Entry, Geometry, Indices, Proof, Shared, State};

/// Unmaps entries that the device has let go, marks the pages dirty that it could
/// write to, and forgets all of `indices` but what is stuck. Returns how many were
/// mapped.
pub fn unmap<S: Shared>(shared: &mut S, indices: Indices, let_go: &S::LetGo) -> usize {
    let proof = Proof::new();
    let mut unmapped = 0;
    for index in indices.iter() {
        let entry = shared.entry(index);
        match entry.state() {
            State::Empty | State::Stuck => continue,
            State::Present => {}
            State::Mapped { .. } | State::Leaving => {
                shared.dma_unmap(index, let_go);
                if entry.is_writable() {
                    shared.set_dirty(index, let_go);
                }
                unmapped += 1;
            }
        }
        shared.store(index, Entry::EMPTY, &proof);
    }
    unmapped
}

/// Unmaps everything, stuck entries too. For when the device cannot reach the mirror
/// any more: its key is destroyed or it was reset. Returns how many were mapped and
/// not stuck.
pub fn release<S: Shared>(shared: &mut S, geometry: &Geometry, let_go: &S::LetGo) -> usize {
    let unmapped = unmap(shared, geometry.indices(), let_go);
    let proof = Proof::new();
    for index in geometry.indices().iter() {
        let entry = shared.entry(index);
        if entry.state() != State::Stuck {
            continue;
        }
        let entry = entry.unstuck();
        shared.store(index, entry, &proof);
        shared.dma_unmap(index, let_go);
        if entry.is_writable() {
            shared.set_dirty(index, let_go);
        }
        shared.unhold(index, let_go);
        shared.store(index, Entry::EMPTY, &proof);
    }
    unmapped
}
