// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Pages that a device has to itself.

use core::ptr::NonNull;

use kernel::{
    error::from_err_ptr,
    mm::MmWithUser,
    prelude::*, //
};

use crate::bindings;

/// A page that the process cannot reach before the value is dropped. If it wants to then, the
/// notifier is called first.
///
/// # Invariants
///
/// `page` came from `hmm_dmirror_make_exclusive`: its folio is locked, and there is a reference on
/// it, both for this value to give back.
pub(crate) struct ExclusivePage {
    page: NonNull<bindings::page>,
    pfn: usize,
}

impl ExclusivePage {
    /// Makes the page at `address` exclusive to a device. The invalidation that this causes has
    /// `owner` for its owner.
    ///
    /// # Errors
    ///
    /// Those of `make_device_exclusive`: `EOPNOTSUPP` for memory that is not anonymous, `EFAULT`
    /// for an address that is not writable memory, `EINTR`.
    pub(crate) fn make(mm: &MmWithUser, address: usize, owner: *mut c_void) -> Result<Self> {
        let mut pfn = 0;
        // SAFETY: The users of `mm` are not 0. The owner is compared only.
        let page = from_err_ptr(unsafe {
            bindings::hmm_dmirror_make_exclusive(mm.as_raw(), address, owner, &mut pfn)
        })?;
        // INVARIANT: By its contract.
        Ok(Self {
            page: NonNull::new(page).ok_or(EFAULT)?,
            pfn,
        })
    }

    /// Its number.
    pub(crate) fn pfn(&self) -> usize {
        self.pfn
    }
}

impl Drop for ExclusivePage {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::hmm_dmirror_put_exclusive(self.page.as_ptr()) };
    }
}
