// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: an MKey and its mirror.

use core::ptr::NonNull;

use firmware_cmds::Mkey;
use hmm_abi::{
    ChunkIndex,
    Store, //
};
use kernel::prelude::*;
use mlx5_odp::{
    bring_in_present,
    MemoryError,
    NotIn,
    Placement,
    Pressure,
    Region, //
};

use crate::{
    bindings,
    chunk::Chunk,
    mirror::{
        Mirror,
        Scratch, //
    },
};

/// An explicit MR.
///
/// # Invariants
///
/// - `mr` is not destroyed as long as the value is there, and `mirror` is its.
/// - If `is_held`, the value owns a reference on the MKey of `mr`.
pub(crate) struct Mr<'a> {
    mr: NonNull<bindings::mlx5_ib_mr>,
    mirror: &'a Mirror,
    is_held: bool,
}

impl<'a> Mr<'a> {
    /// # Safety
    ///
    /// `mr` is an explicit ODP MR, which is not destroyed during `'a`.
    pub(crate) unsafe fn new(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // SAFETY: By the safety requirements; its umem is a mirror of ours, and goes with it.
        let mirror = unsafe { Mirror::from_raw(bindings::mlx5r_odp_umem(mr.as_ptr())) };
        // INVARIANT: By the safety requirements.
        Self {
            mr,
            mirror,
            is_held: false,
        }
    }

    /// An MR of which the fault path holds a reference.
    ///
    /// # Safety
    ///
    /// - `mr` is an explicit ODP MR, and the caller leaves a reference on its MKey to the value.
    /// - The device, whose MR it is, lives for `'a`.
    pub(crate) unsafe fn adopt(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            mr,
            // SAFETY: The reference keeps the MR for as long as the value, which lends nothing for
            // longer.
            mirror: unsafe { Mirror::from_raw(bindings::mlx5r_odp_umem(mr.as_ptr())) },
            is_held: true,
        }
    }

    /// Its mirror.
    pub(crate) fn mirror(&self) -> &Mirror {
        self.mirror
    }

    /// Makes a new MR usable: with no translation at first, then with those of what is in memory
    /// already.
    ///
    /// # Errors
    ///
    /// Those of the UMRs; `ENOMEM`; `EINVAL` if the process is gone. That memory is being dropped
    /// at the same time is none: the device asks for it when it wants it.
    pub(crate) fn enable(&self, pdn: u32) -> Result {
        let geometry = &self.mirror.placement().geometry;
        let entries = i32::try_from(geometry.indices().len())?;
        // CAST: at most 30.
        let shift = geometry.entry_shift() as i32;
        // SAFETY: By the type invariants.
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_enable(self.mr.as_ptr(), entries, shift, pdn)
        })?;
        // SAFETY: By the type invariants; the MR puts the mirror before it goes.
        unsafe { self.mirror.key().open(self.mr) };

        let occupied = self.mirror.occupancy()?;
        bring_in_present(self, geometry.indices(), occupied).map_err(|error| match error {
            NotIn::Device => EFAULT,
            NotIn::Invalid => EINVAL,
            NotIn::Busy(_) => ENOMEM,
        })
    }
}

impl Store for Mr<'_> {
    type Chunk = Chunk;

    fn find(&self, at: ChunkIndex) -> Option<Chunk> {
        self.mirror.find(at)
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Chunk, MemoryError> {
        self.mirror.find_or_make(at)
    }
}

impl Region for Mr<'_> {
    type Scratch = Scratch;

    fn mkey(&self) -> Mkey {
        // SAFETY: By the type invariants.
        Mkey::new(unsafe { bindings::mlx5r_odp_mkey(self.mr.as_ptr()) })
    }

    fn placement(&self) -> &Placement {
        self.mirror.placement()
    }

    fn scratch(&self, pages: usize) -> Result<Scratch, Pressure> {
        Scratch::new(pages).map_err(|_| Pressure::Memory)
    }

    fn count_fault(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the type invariants.
            unsafe { bindings::mlx5r_odp_count_faults(self.mr.as_ptr(), pages) };
        }
    }

    fn count_prefetch(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the type invariants.
            unsafe { bindings::mlx5r_odp_count_prefetch(self.mr.as_ptr(), pages) };
        }
    }
}

impl Drop for Mr<'_> {
    fn drop(&mut self) {
        if self.is_held {
            // SAFETY: The value owns the reference, and nothing borrowed from it is left.
            unsafe { bindings::mlx5r_odp_put_mr(self.mr.as_ptr()) };
        }
    }
}
