// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From published entries to none: mapping, taking back, unmapping.

use crate::{
    DmaAddress, DmaMap, Entry, Geometry, Host, Index, Indices, Proof, Sequence, Shared, Span,
};

/// A device that holds translations.
pub trait Device {
    /// Why the device did not let go.
    type Error;

    /// Takes the translations of consecutive entries back. Returns only when the
    /// device will not use them any more.
    ///
    /// # Errors
    ///
    /// The device may still use any of them.
    fn take_back(&mut self, run: Indices) -> Result<(), Self::Error>;
}

/// What an invalidation did, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidated {
    /// Taken back from the device and unmapped.
    pub unmapped: usize,
    /// Kept by the device. Their pages and DMA mappings stay until [`release`].
    pub stuck: usize,
}

/// Invalidates `span`: on return, the device uses no translation in it and none of
/// its pages, but those that are stuck.
///
/// `sequence` is what the interval notifier's callback was given.
pub fn invalidate<H: Host, D: Device>(
    host: &H,
    geometry: &Geometry,
    span: &Span,
    sequence: Sequence,
    device: &mut D,
) -> Invalidated {
    let mut shared = host.lock();
    shared.set_sequence(sequence);
    let mut done = Invalidated::default();
    let indices = geometry.touched(span);
    let mut next = indices.first().0;
    while let Some(run) = mapped_run(&shared, Indices::new(next..indices.end().0)) {
        if device.take_back(run).is_err() {
            done.stuck += keep(&mut shared, run);
        }
        next = run.end().0;
    }
    done.unmapped = unmap(&mut shared, indices);
    done
}

/// The first run of entries in `indices` that are valid and mapped.
fn mapped_run<S: Shared>(shared: &S, indices: Indices) -> Option<Indices> {
    let live = |index: &Index| {
        let entry = shared.entry(*index);
        entry.is_valid() && entry.is_dma_mapped()
    };
    let first = indices.iter().find(live)?;
    let len = Indices::new(first.0..indices.end().0)
        .iter()
        .take_while(live)
        .count();
    Some(Indices::new(first.0..first.0 + len))
}

/// Marks a run that the device did not give back, and holds on to its pages.
fn keep<S: Shared>(shared: &mut S, run: Indices) -> usize {
    let proof = Proof::new();
    for index in run.iter() {
        let entry = shared.entry(index);
        shared.hold(entry);
        shared.store(index, entry.stuck(), &proof);
    }
    run.len()
}

/// Unmaps entries that the device has let go, marks the pages dirty that it could
/// write to, and forgets all of `indices` but what is stuck. Returns how many were
/// mapped.
pub fn unmap<S: Shared>(shared: &mut S, indices: Indices) -> usize {
    let proof = Proof::new();
    let mut unmapped = 0;
    for index in indices.iter() {
        let entry = shared.entry(index);
        if entry == Entry::EMPTY || entry.is_stuck() {
            continue;
        }
        if entry.is_dma_mapped() {
            shared.dma_unmap(index, &proof);
            if entry.is_writable() {
                shared.set_dirty(entry);
            }
            unmapped += 1;
        }
        shared.store(index, Entry::EMPTY, &proof);
    }
    unmapped
}

/// Unmaps everything, stuck entries too. For when the device cannot reach the mirror
/// any more: its key is destroyed or it was reset. Returns how many were mapped and
/// not stuck.
pub fn release<S: Shared>(shared: &mut S, geometry: &Geometry) -> usize {
    let unmapped = unmap(shared, geometry.indices());
    let proof = Proof::new();
    for index in geometry.indices().iter() {
        let entry = shared.entry(index);
        if !entry.is_stuck() {
            continue;
        }
        let entry = entry.unstuck();
        shared.store(index, entry, &proof);
        shared.dma_unmap(index, &proof);
        if entry.is_writable() {
            shared.set_dirty(entry);
        }
        shared.unhold(entry);
        shared.store(index, Entry::EMPTY, &proof);
    }
    unmapped
}

/// Maps the valid entries of `indices` for DMA and calls `emit` for each with its
/// address. Returns how many were not mapped before: every page counts once.
///
/// # Errors
///
/// The count so far and the error; later entries are as they were.
pub fn map<S: DmaMap>(
    shared: &mut S,
    indices: Indices,
    mut emit: impl FnMut(Index, Entry, DmaAddress),
) -> Result<usize, (usize, S::Error)> {
    let mut mapped = 0;
    for index in indices.iter() {
        let entry = shared.entry(index);
        if !entry.is_valid() {
            continue;
        }
        match shared.dma_map(index) {
            Ok(address) => emit(index, entry, address),
            Err(error) => return Err((mapped, error)),
        }
        if !entry.is_dma_mapped() {
            mapped += 1;
        }
    }
    Ok(mapped)
}
