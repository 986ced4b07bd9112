// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: an MKey and its umem.

use core::marker::PhantomData;
use core::ptr::NonNull;

use firmware_cmds::{Iova, Mkey};
use kernel::prelude::*;
use mlx5_odp::{Access, FaultError, PageState, Placement, Pressure, Region, VaRange};

use crate::bindings;
use crate::device::Device;
use crate::umem::{Locked, Umem};

/// The umem of an MR, and what the device calls its first byte.
///
/// # Safety
///
/// `mr` is an explicit ODP MR, which is not destroyed during `'a`.
pub(crate) unsafe fn umem_of<'a>(mr: NonNull<bindings::mlx5_ib_mr>) -> (&'a Umem, Iova, Mkey) {
    let mut raw = bindings::mlx5r_odp_region::default();
    // SAFETY: `mr` is live, by the caller's promise.
    unsafe { bindings::mlx5r_odp_region(mr.as_ptr(), &mut raw) };
    // SAFETY: An ODP MR that is explicit has such a umem, for as long as it lives.
    let umem = unsafe { Umem::from_raw(raw.umem) };
    (umem, Iova::new(raw.iova), Mkey::new(raw.key))
}

/// An explicit MR.
///
/// # Invariants
///
/// `mr` is not destroyed during `'a`; `umem`, `mkey` and `placement` are its.
pub(crate) struct Mr<'a> {
    mr: NonNull<bindings::mlx5_ib_mr>,
    umem: &'a Umem,
    mkey: Mkey,
    placement: Placement,
}

impl<'a> Mr<'a> {
    /// # Errors
    ///
    /// `EINVAL` for an MR without pages.
    ///
    /// # Safety
    ///
    /// As for [`umem_of`].
    pub(crate) unsafe fn new(mr: NonNull<bindings::mlx5_ib_mr>) -> Result<Self> {
        // SAFETY: By the caller's promise.
        let (umem, iova, mkey) = unsafe { umem_of(mr) };
        let placement = umem.placement(iova).ok_or(EINVAL)?;

        // INVARIANT: By the caller's promise, and just read.
        Ok(Self {
            mr,
            umem,
            mkey,
            placement,
        })
    }

    /// Brings `range` in and locks.
    ///
    /// # Errors
    ///
    /// Those of `ib_umem_odp_map_dma_and_lock`, `EAGAIN` if that brought in less than all of
    /// `range`, and `EFAULT` if the MKey is gone.
    fn lock(&self, range: VaRange, write: bool, fault: bool) -> Result<Locked<'_>> {
        let (pages, guard) = self.umem.fault_and_lock(range, write, fault)?;
        let locked = Locked::new(self.umem, self.placement, guard);
        if !locked.has_mkey() {
            return Err(EFAULT);
        }
        if pages < self.placement.pages_of(range).count {
            return Err(EAGAIN);
        }
        Ok(locked)
    }

    /// Makes a new MR usable: what is in memory already is published with it.
    ///
    /// # Errors
    ///
    /// Those of [`Mr::lock`], of mapping and of the update.
    pub(crate) fn enable(&self, pdn: u32) -> Result {
        let placement = &self.placement;
        let mut locked = self.lock(placement.pages, placement.writable, false)?;
        let pages = locked.pages();
        for page in pages.iter() {
            if mlx5_odp::LockedPages::state(&locked, page) == PageState::Present {
                locked.dma_map(page)?;
            }
        }
        locked.enable(pages, pdn)
    }
}

/// What stands in the way, if it is to be tried again.
fn pressure_of(error: Error) -> Option<Pressure> {
    match error {
        e if e == EAGAIN || e == EINTR => Some(Pressure::Race),
        e if e == EBUSY => Some(Pressure::Held),
        e if e == ENOMEM => Some(Pressure::Memory),
        _ => None,
    }
}

/// An explicit MR of which the fault path holds a reference.
///
/// # Invariants
///
/// The value owns a reference on the MKey of `mr`, which keeps the MR. The device, whose MR it
/// is, lives for `'a`.
pub(crate) struct HeldMr<'a> {
    mr: Mr<'a>,
    _device: PhantomData<&'a Device>,
}

impl HeldMr<'_> {
    /// # Errors
    ///
    /// As [`Mr::new`]; the reference is dropped then.
    ///
    /// # Safety
    ///
    /// - `mr` is an explicit ODP MR, and the caller leaves a reference on its MKey to the value.
    /// - The value does not outlive the device.
    pub(crate) unsafe fn adopt(mr: NonNull<bindings::mlx5_ib_mr>) -> Result<Self> {
        // SAFETY: The reference keeps the MR, by the caller's promise, for as long as the value:
        // nothing that is borrowed of it is longer-lived.
        match unsafe { Mr::new(mr) } {
            // INVARIANT: By the caller's promise.
            Ok(mr) => Ok(Self {
                mr,
                _device: PhantomData,
            }),
            Err(error) => {
                // SAFETY: The caller left a reference, which nothing uses.
                unsafe { bindings::mlx5r_odp_put_mr(mr.as_ptr()) };
                Err(error)
            }
        }
    }
}

impl Drop for HeldMr<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns the reference, and nothing borrowed from it is left.
        unsafe { bindings::mlx5r_odp_put_mr(self.mr.mr.as_ptr()) };
    }
}

impl Region for HeldMr<'_> {
    type Pages<'a>
        = Locked<'a>
    where
        Self: 'a;

    fn mkey(&self) -> Mkey {
        self.mr.mkey
    }

    fn placement(&self) -> Placement {
        self.mr.placement
    }

    fn fault_and_lock(&self, range: VaRange, access: Access) -> Result<Locked<'_>, FaultError> {
        let write = access == Access::Write;
        self.mr
            .lock(range, write, true)
            .map_err(|e| match pressure_of(e) {
                Some(why) => FaultError::Again(why),
                None if write && e == EPERM => FaultError::WriteRefused,
                None => FaultError::Invalid,
            })
    }

    fn count_fault(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the invariants the MR lives.
            unsafe { bindings::mlx5r_odp_count_faults(self.mr.mr.as_ptr(), pages) };
        }
    }

    fn count_prefetch(&self, base_pages: u64) {
        if let Ok(pages) = i64::try_from(base_pages) {
            // SAFETY: By the invariants the MR lives.
            unsafe { bindings::mlx5r_odp_count_prefetch(self.mr.mr.as_ptr(), pages) };
        }
    }
}
