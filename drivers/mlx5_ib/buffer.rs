// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MRs of a dma-buf.
//!
//! `mr.c` makes them, and takes their translations back when the exporter moves the memory
//! (`mlx5_ib_dmabuf_invalidate_cb`). What is here gives them to the device.
//!
//! Lock order: the dma-buf's reservation, then the UMRs'.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use firmware_cmds::{
    Iova,
    Mkey, //
};
use kernel::{
    error::to_result,
    prelude::*, //
};
use mlx5_odp::{
    Buffer,
    NotIn,
    Pressure, //
};

use crate::{
    bindings,
    region::count, //
};

/// An MR of a dma-buf of which the fault path, or a prefetch, holds a reference.
///
/// # Invariants
///
/// `mr` is an MR of a dma-buf. The value owns a reference on the MKey.
pub(crate) struct BufferMr<'a> {
    mr: NonNull<bindings::mlx5_ib_mr>,
    _device: PhantomData<&'a ()>,
}

impl BufferMr<'_> {
    /// # Safety
    ///
    /// - `mr` is an MR of a dma-buf, and the caller leaves a reference on its MKey to the value.
    /// - The device, whose MR it is, lives for `'a`.
    pub(crate) unsafe fn adopt(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            mr,
            _device: PhantomData,
        }
    }
}

impl Drop for BufferMr<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns the reference.
        unsafe { bindings::mlx5r_odp_put_mr(self.mr.as_ptr()) };
    }
}

impl Buffer for BufferMr<'_> {
    fn mkey(&self) -> Mkey {
        // SAFETY: By the type invariants.
        Mkey::new(unsafe { bindings::mlx5r_odp_mkey(self.mr.as_ptr()) })
    }

    fn iova(&self) -> Iova {
        // SAFETY: By the type invariants.
        Iova::new(unsafe { bindings::mlx5r_odp_iova(self.mr.as_ptr()) })
    }

    fn len(&self) -> u64 {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_odp_length(self.mr.as_ptr()) }
    }

    fn is_writable(&self) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_odp_is_writable(self.mr.as_ptr()) }
    }

    fn publish(&self) -> Result<u64, NotIn> {
        // SAFETY: By the type invariants.
        unsafe { Locked::new(self.mr) }.publish(None)?;
        // SAFETY: By the type invariants.
        Ok(unsafe { bindings::mlx5r_dmabuf_pages(self.mr.as_ptr()) })
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

/// Makes a new MR usable, with all of its translations.
///
/// # Errors
///
/// The exporter's and the device's; `EINVAL` for memory in pieces that the device cannot translate.
///
/// # Safety
///
/// `mr` is a new MR of a dma-buf, and `pd` is live.
pub(crate) unsafe fn enable(mr: NonNull<bindings::mlx5_ib_mr>, pd: *mut bindings::ib_pd) -> Result {
    // SAFETY: By the safety requirements.
    let (locked, pdn) = unsafe {
        let pdn = bindings::mlx5r_dmabuf_pdn(mr.as_ptr(), pd);
        (Locked::new(mr), pdn)
    };
    locked.publish(Some(pdn)).map_err(|error| match error {
        Unpublished::Exporter(error) | Unpublished::Device(error) => error,
        Unpublished::Pieces => EINVAL,
    })
}

/// Why it was not published.
enum Unpublished {
    /// The exporter did not say where the memory is.
    Exporter(Error),
    /// No page size of the device fits to how it lies.
    Pieces,
    /// The device was not told.
    Device(Error),
}

impl From<Unpublished> for NotIn {
    fn from(why: Unpublished) -> Self {
        match why {
            Unpublished::Exporter(e) | Unpublished::Device(e) if e == ENOMEM => {
                Self::Busy(Pressure::Memory)
            }
            Unpublished::Exporter(e) if e == EAGAIN || e == EBUSY || e == EINTR => {
                Self::Busy(Pressure::Race)
            }
            Unpublished::Exporter(_) | Unpublished::Pieces => Self::Invalid,
            Unpublished::Device(_) => Self::Device,
        }
    }
}

/// A dma-buf whose reservation is locked: its exporter does not move it.
///
/// # Invariants
///
/// An MR of it exists for as long as the value, which owns the lock.
struct Locked(NonNull<bindings::mlx5_ib_mr>);

impl Locked {
    /// # Safety
    ///
    /// `mr` is an MR of a dma-buf, and not destroyed before the value.
    unsafe fn new(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // SAFETY: By the safety requirements.
        unsafe { bindings::mlx5r_dmabuf_lock(mr.as_ptr()) };
        // INVARIANT: Just locked.
        Self(mr)
    }

    /// Publishes all of it; of a new MR with a PD, which enables it.
    fn publish(&self, pdn: Option<u32>) -> Result<(), Unpublished> {
        let mr = self.0.as_ptr();
        // SAFETY: By the type invariants.
        to_result(unsafe { bindings::mlx5r_dmabuf_map(mr) }).map_err(Unpublished::Exporter)?;
        // SAFETY: By the type invariants; it is mapped.
        let page_shift = unsafe { bindings::mlx5r_dmabuf_page_shift(mr) };
        if page_shift == 0 {
            // SAFETY: By the type invariants; the device has not been told of this mapping, whose
            // page size is none of its.
            unsafe { bindings::mlx5r_dmabuf_unmap(mr) };
            return Err(Unpublished::Pieces);
        }
        // SAFETY: By the type invariants; it is mapped.
        to_result(unsafe {
            bindings::mlx5r_dmabuf_write(mr, page_shift, pdn.is_some(), pdn.unwrap_or(0))
        })
        .map_err(Unpublished::Device)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_dmabuf_unlock(self.0.as_ptr()) };
    }
}
