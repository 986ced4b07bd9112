// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: an MKey and its mirror.

use core::ptr::NonNull;

use firmware_cmds::Mkey;
use hmm_abi::{
    ChunkIndex,
    Slots,
    Store, //
};
use kernel::prelude::*;
use mlx5_odp::{
    bring_in_present,
    implicit::{
        ChildIndex,
        Implicit,
        Layout,
        Parent as _, //
    },
    MemoryError,
    NotIn,
    Placement,
    Pressure,
    Region, //
};

use crate::{
    bindings,
    chunk::Chunk,
    implicit::Parent,
    mirror::{
        Mirror,
        Scratch, //
    },
};

/// An explicit MR, or a child of an implicit one.
///
/// # Invariants
///
/// `mr` is not destroyed as long as the value is there, and `mirror` is its.
pub(crate) struct Mr<'a> {
    mr: NonNull<bindings::mlx5_ib_mr>,
    mirror: &'a Mirror,
    hold: Hold<'a>,
}

/// What keeps an MR from being destroyed, and belongs to the value.
enum Hold<'a> {
    /// The caller sees to it.
    Not,
    /// A reference on its MKey.
    Key,
    /// It is a child, and was entered.
    Child(&'a Parent, ChildIndex),
}

impl<'a> Mr<'a> {
    /// # Safety
    ///
    /// `mr` is an explicit ODP MR or a child, which is not destroyed during `'a`.
    pub(crate) unsafe fn new(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // SAFETY: By the safety requirements; its umem is a mirror of ours, and goes with it.
        let mirror = unsafe { Mirror::from_raw(bindings::mlx5r_odp_umem(mr.as_ptr())) };
        // INVARIANT: By the safety requirements.
        Self {
            mr,
            mirror,
            hold: Hold::Not,
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
            hold: Hold::Key,
        }
    }

    /// A child that was entered.
    ///
    /// # Safety
    ///
    /// `mr` is child `at` of `parent`, and the caller leaves it to the value to leave it.
    pub(crate) unsafe fn enter(
        mr: NonNull<bindings::mlx5_ib_mr>,
        parent: &'a Parent,
        at: ChildIndex,
    ) -> Self {
        // SAFETY: By the safety requirements: it stays until it is left.
        let mut mr = unsafe { Self::new(mr) };
        mr.hold = Hold::Child(parent, at);
        mr
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
        self.enable_blank(pdn)?;
        let geometry = &self.mirror.placement().geometry;
        let occupied = self.mirror.occupancy()?;
        bring_in_present(self, geometry.indices(), occupied).map_err(|error| match error {
            NotIn::Device => EFAULT,
            NotIn::Invalid | NotIn::ReadOnly | NotIn::Empty => EINVAL,
            NotIn::Busy(_) => ENOMEM,
        })
    }

    /// Makes a new MR usable, with no translation.
    ///
    /// # Errors
    ///
    /// Those of the UMRs; `ENOMEM`.
    pub(crate) fn enable_blank(&self, pdn: u32) -> Result {
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
        Ok(())
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

    fn scratch(&self) -> Scratch {
        Scratch::new()
    }

    fn occupancy(&self) -> Result<impl FnMut(ChunkIndex, Slots) -> bool + '_, NotIn> {
        self.mirror.occupancy().map_err(|error| match error {
            e if e == ENOMEM => NotIn::Busy(Pressure::Memory),
            e if e == EINTR => NotIn::Busy(Pressure::Race),
            _ => NotIn::Invalid,
        })
    }

    fn tidy(&self, at: ChunkIndex) {
        self.mirror.tidy(at);
    }

    fn is_closing(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_odp_is_closing(self.mr.as_ptr()) }
    }

    fn count_fault(&self, base_pages: u64) {
        // SAFETY: By the type invariants.
        unsafe { count(self.mr, base_pages, bindings::mlx5r_odp_count_faults) };
    }

    fn count_prefetch(&self, base_pages: u64) {
        // SAFETY: By the type invariants.
        unsafe { count(self.mr, base_pages, bindings::mlx5r_odp_count_prefetch) };
    }
}

impl Drop for Mr<'_> {
    fn drop(&mut self) {
        match self.hold {
            Hold::Not => {}
            // SAFETY: The value owns the reference, and nothing borrowed from it is left.
            Hold::Key => unsafe { bindings::mlx5r_odp_put_mr(self.mr.as_ptr()) },
            Hold::Child(parent, at) => parent.leave(at),
        }
    }
}

/// An implicit MR of which the fault path, or a prefetch, holds a reference.
///
/// # Invariants
///
/// `mr` is an implicit MR, and `parent` its. The value owns a reference on the MKey.
pub(crate) struct ImplicitMr<'a> {
    mr: NonNull<bindings::mlx5_ib_mr>,
    parent: &'a Parent,
}

impl ImplicitMr<'_> {
    /// # Safety
    ///
    /// - `mr` is an implicit MR, and the caller leaves a reference on its MKey to the value.
    /// - The device, whose MR it is, lives for `'a`.
    pub(crate) unsafe fn adopt(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            mr,
            // SAFETY: The reference keeps the MR for as long as the value, which lends nothing for
            // longer.
            parent: unsafe { Parent::from_raw(bindings::mlx5r_odp_umem(mr.as_ptr())) },
        }
    }
}

impl Implicit for ImplicitMr<'_> {
    type Child<'i>
        = Mr<'i>
    where
        Self: 'i;

    fn mkey(&self) -> Mkey {
        // SAFETY: By the type invariants.
        Mkey::new(unsafe { bindings::mlx5r_odp_mkey(self.mr.as_ptr()) })
    }

    fn layout(&self) -> &Layout {
        self.parent.layout()
    }

    fn is_writable(&self) -> bool {
        self.parent.is_writable()
    }

    fn child(&self, at: ChildIndex) -> Result<Mr<'_>, NotIn> {
        self.parent.child(at)
    }

    fn count_fault(&self, base_pages: u64) {
        // SAFETY: By the type invariants.
        unsafe { count(self.mr, base_pages, bindings::mlx5r_odp_count_faults) };
    }

    fn count_prefetch(&self, base_pages: u64) {
        // SAFETY: By the type invariants.
        unsafe { count(self.mr, base_pages, bindings::mlx5r_odp_count_prefetch) };
    }
}

impl Drop for ImplicitMr<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns the reference, and nothing borrowed from it is left.
        unsafe { bindings::mlx5r_odp_put_mr(self.mr.as_ptr()) };
    }
}

/// Adds pages of 4 KiB to a counter of an MR.
///
/// # Safety
///
/// `mr` is live, and `add` takes any that is.
pub(crate) unsafe fn count(
    mr: NonNull<bindings::mlx5_ib_mr>,
    base_pages: u64,
    add: unsafe extern "C" fn(*mut bindings::mlx5_ib_mr, i64),
) {
    if let Ok(pages) = i64::try_from(base_pages) {
        // SAFETY: By the safety requirements.
        unsafe { add(mr.as_ptr(), pages) };
    }
}
