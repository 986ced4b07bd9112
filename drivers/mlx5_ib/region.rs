// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: an MKey and its umem.

use core::ptr::NonNull;

use firmware_cmds::{Iova, Mkey};
use kernel::prelude::*;
use mlx5_odp::{Access, FaultError, PageShift, Placement, Pressure, Region, UserVa, VaRange};

use crate::bindings;
use crate::umem::Locked;

/// Where a region lies; `None` for one without pages, which cannot be registered.
pub(crate) fn placement_of(region: &bindings::mlx5r_odp_region) -> Option<Placement> {
    Some(Placement {
        iova: Iova::new(region.iova),
        address: UserVa(region.address),
        pages: VaRange::new(UserVa(region.start), UserVa(region.end))?,
        shift: PageShift::new(u8::try_from(region.page_shift).ok()?)?,
        writable: region.writable,
    })
}

/// An explicit MR.
///
/// # Invariants
///
/// - `mr` is live, and is not destroyed while the value exists.
/// - `raw` and `placement` describe it.
pub(crate) struct Mr {
    mr: NonNull<bindings::mlx5_ib_mr>,
    raw: bindings::mlx5r_odp_region,
    placement: Placement,
}

impl Mr {
    /// # Errors
    ///
    /// `EINVAL` for an MR without pages.
    ///
    /// # Safety
    ///
    /// `mr` is an explicit ODP MR that lives for as long as the value.
    pub(crate) unsafe fn new(mr: NonNull<bindings::mlx5_ib_mr>) -> Result<Self> {
        let mut raw = bindings::mlx5r_odp_region::default();
        // SAFETY: `mr` is live, by the caller's promise.
        unsafe { bindings::mlx5r_odp_region(mr.as_ptr(), &mut raw) };
        let placement = placement_of(&raw).ok_or(EINVAL)?;

        // INVARIANT: By the caller's promise, and just read.
        Ok(Self { mr, raw, placement })
    }

    /// Brings `range` in and locks.
    ///
    /// # Errors
    ///
    /// Those of `ib_umem_odp_map_dma_and_lock`, `EAGAIN` if that brought in less than all of
    /// `range`, and `EFAULT` if the MKey is gone.
    fn lock(&self, range: VaRange, write: bool, fault: bool) -> Result<Locked> {
        // SAFETY: The umem lives as long as the MR.
        let entries = unsafe {
            bindings::mlx5r_odp_fault_and_lock(
                self.raw.umem,
                range.start().0,
                range.bytes(),
                write,
                fault,
            )
        };
        kernel::error::to_result(entries)?;

        // SAFETY: The call locked the umem, which lives as long as the MR.
        let locked = unsafe { Locked::adopt(self.raw) }.ok_or(EINVAL)?;
        if !locked.has_mkey() {
            return Err(EFAULT);
        }
        match u64::try_from(entries) {
            Ok(entries) if entries >= self.placement.pages_of(range).count => Ok(locked),
            _ => Err(EAGAIN),
        }
    }

    /// Makes a new MR usable: what is in memory already is published with it.
    ///
    /// # Errors
    ///
    /// Those of [`Mr::lock`], of mapping and of the update.
    pub(crate) fn enable(&self, pdn: u32) -> Result {
        use mlx5_odp::{LockedPages, PageState};

        let placement = &self.placement;
        let mut locked = self.lock(placement.pages, placement.writable, false)?;
        let pages = locked.pages();
        for page in pages.iter() {
            if LockedPages::state(&locked, page) == PageState::Present {
                locked.map(page).map_err(|_| EFAULT)?;
            }
        }
        locked.enable(pages, pdn)
    }
}

/// What is wrong if nothing is but the moment.
fn pressure_of(error: Error) -> Option<Pressure> {
    match error {
        e if e == EAGAIN || e == EINTR => Some(Pressure::Race),
        e if e == EBUSY => Some(Pressure::Held),
        e if e == ENOMEM => Some(Pressure::Memory),
        _ => None,
    }
}

/// An explicit MR of which the fault path holds a reference.
pub(crate) struct HeldMr(Mr);

impl HeldMr {
    /// # Errors
    ///
    /// As [`Mr::new`]; the reference is dropped then.
    ///
    /// # Safety
    ///
    /// `mr` is an explicit ODP MR, and the caller leaves a reference on its MKey to the value.
    pub(crate) unsafe fn adopt(mr: NonNull<bindings::mlx5_ib_mr>) -> Result<Self> {
        // SAFETY: The reference keeps the MR, by the caller's promise.
        match unsafe { Mr::new(mr) } {
            Ok(mr) => Ok(Self(mr)),
            Err(error) => {
                // SAFETY: The caller left a reference, which nothing uses.
                unsafe { bindings::mlx5r_odp_put_mr(mr.as_ptr()) };
                Err(error)
            }
        }
    }
}

impl Drop for HeldMr {
    fn drop(&mut self) {
        // SAFETY: The value owns the reference, and nothing borrowed from it is left.
        unsafe { bindings::mlx5r_odp_put_mr(self.0.mr.as_ptr()) };
    }
}

impl Region for HeldMr {
    type Pages<'a>
        = Locked
    where
        Self: 'a;

    fn mkey(&self) -> Mkey {
        Mkey::new(self.0.raw.key)
    }

    fn placement(&self) -> Placement {
        self.0.placement
    }

    fn fault_and_lock(&self, range: VaRange, access: Access) -> Result<Locked, FaultError> {
        let write = access == Access::Write;
        self.0
            .lock(range, write, true)
            .map_err(|e| match pressure_of(e) {
                Some(why) => FaultError::Again(why),
                None if write && e == EPERM => FaultError::WriteRefused,
                None => FaultError::Invalid,
            })
    }

    fn count_fault(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the invariants `mr` is live.
            unsafe { bindings::mlx5r_odp_count_faults(self.0.mr.as_ptr(), pages) };
        }
    }

    fn count_prefetch(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the invariants `mr` is live.
            unsafe { bindings::mlx5r_odp_count_prefetch(self.0.mr.as_ptr(), pages) };
        }
    }
}
