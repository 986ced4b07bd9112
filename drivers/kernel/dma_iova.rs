// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DMA by IOVA: a range of a device's DMA addresses, to which pages are linked one by one.
//!
//! Linking is cheap and takes effect with a sync, of which one will do for many links.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use core::{
    marker::PhantomData,
    ops::Range,
    ptr, //
};

use kernel::{
    device::Device,
    dma::{
        DataDirection,
        DmaAddress, //
    },
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

use crate::bindings;

/// An attribute: neither caches to sync nor bounce buffers (`DMA_ATTR_REQUIRE_COHERENT`).
pub const REQUIRE_COHERENT: c_ulong = bindings::DMA_ATTR_REQUIRE_COHERENT as c_ulong;

/// The C object of a device.
#[inline]
pub(crate) fn device_as_raw(device: &Device) -> *mut bindings::device {
    // A `Device` is a transparent wrapper of it.
    ptr::from_ref(device).cast_mut().cast()
}

/// A range of IOVA space, borrowed: `struct dma_iova_state`.
///
/// # Invariants
///
/// For `'a`, `state` is valid and describes a range that was allocated for `device`.
#[derive(Clone, Copy)]
pub struct Iova<'a> {
    device: &'a Device,
    state: *mut bindings::dma_iova_state,
    _state: PhantomData<&'a bindings::dma_iova_state>,
}

impl<'a> Iova<'a> {
    /// Wraps a C object.
    ///
    /// # Safety
    ///
    /// `state` is valid for `'a`, and `dma_iova_try_alloc` allocated it for `device`.
    #[inline]
    pub unsafe fn from_raw(device: &'a Device, state: *mut bindings::dma_iova_state) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            device,
            state,
            _state: PhantomData,
        }
    }

    /// The DMA address of the byte `offset`.
    #[inline]
    pub fn address(&self, offset: usize) -> DmaAddress {
        // SAFETY: By the type invariants; the address does not change.
        let base = unsafe { (*self.state).addr };
        // CAST: An offset lies within the range, whose addresses `DmaAddress` holds.
        base + offset as DmaAddress
    }

    /// Links the bytes `at`, by offset, to memory from `phys`; it is for
    /// [`Self::sync`] to make it so for the device.
    ///
    /// Does not sleep; the IOMMU's tables are allocated by `GFP_ATOMIC`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` for want of memory for those; `EOPNOTSUPP` if `attrs` ask for coherence, which
    /// the device has not; else those of the IOMMU driver.
    ///
    /// # Safety
    ///
    /// - `at` and `phys` are multiples of the IOMMU's granule; `at` lies within the range, and
    ///   nothing of it is linked.
    /// - The memory stays as long as it is linked, which ends before the range is freed.
    #[inline]
    pub unsafe fn link(
        &self,
        at: &Range<usize>,
        phys: bindings::phys_addr_t,
        direction: DataDirection,
        attrs: c_ulong,
    ) -> Result {
        // SAFETY: By the type invariants and safety requirements.
        to_result(unsafe {
            bindings::dma_iova_link(
                device_as_raw(self.device),
                self.state,
                phys,
                at.start,
                at.len(),
                direction.into(),
                attrs,
            )
        })
    }

    /// Makes the links of the bytes `at` so for the device.
    ///
    /// # Errors
    ///
    /// Those of the IOMMU driver.
    #[inline]
    pub fn sync(&self, at: &Range<usize>) -> Result {
        // SAFETY: By the type invariants. Where nothing is linked there is nothing to be done.
        to_result(unsafe {
            bindings::dma_iova_sync(device_as_raw(self.device), self.state, at.start, at.len())
        })
    }

    /// Unlinks the bytes `at`, with one flush of the IOTLB.
    ///
    /// # Safety
    ///
    /// - All of `at` is linked, with this direction and these `attrs`, by links that lie within
    ///   it or can be divided ([`IovaSpace::divisible`]).
    /// - The device does not use it any more.
    #[inline]
    pub unsafe fn unlink(&self, at: &Range<usize>, direction: DataDirection, attrs: c_ulong) {
        // SAFETY: By the type invariants and safety requirements.
        unsafe {
            bindings::dma_iova_unlink(
                device_as_raw(self.device),
                self.state,
                at.start,
                at.len(),
                direction.into(),
                attrs,
            );
        }
    }
}

/// A range of IOVA space, freed on drop.
///
/// # Invariants
///
/// `state` was allocated for `device`.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::Device,
///     dma::{
///         DataDirection,
///         DmaAddress, //
///     },
///     prelude::*, //
/// };
/// use kernel_ext::dma_iova::IovaSpace;
///
/// /// # Safety
/// ///
/// /// `phys` is memory that stays during the call, of a whole page.
/// unsafe fn with_page(
///     device: &Device,
///     phys: u64,
///     page: usize,
///     use_it: impl FnOnce(DmaAddress),
/// ) -> Result {
///     // There are devices, and machines, without it.
///     let space = IovaSpace::try_new(device, page).ok_or(EOPNOTSUPP)?;
///     let iova = space.iova();
///     let at = 0..page;
///     // SAFETY: Nothing is linked yet, and the page is unlinked below.
///     unsafe { iova.link(&at, phys, DataDirection::Bidirectional, 0)? };
///     let synced = iova.sync(&at);
///     if synced.is_ok() {
///         use_it(iova.address(0));
///     }
///     // SAFETY: Linked above.
///     unsafe { iova.unlink(&at, DataDirection::Bidirectional, 0) };
///     synced
/// }
/// ```
pub struct IovaSpace {
    device: ARef<Device>,
    state: bindings::dma_iova_state,
}

impl IovaSpace {
    /// Allocates `size` bytes, which are not 0, for `device`. `None` if it has no IOMMU that the
    /// kernel's generic DMA code drives, or no room in it: DMA goes the usual way then.
    pub fn try_new(device: &Device, size: usize) -> Option<Self> {
        let mut state = bindings::dma_iova_state::default();
        // SAFETY: The device is valid, and `state` is ours.
        let allocated =
            unsafe { bindings::dma_iova_try_alloc(device_as_raw(device), &mut state, 0, size) };
        // INVARIANT: Just allocated.
        allocated.then(|| Self {
            device: device.into(),
            state,
        })
    }

    /// The device.
    #[inline]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The range, borrowed.
    #[inline]
    pub fn iova(&self) -> Iova<'_> {
        // SAFETY: By the type invariants. Links of whole granules take no bounce buffers, and
        // others would write to it.
        unsafe { Iova::from_raw(&self.device, ptr::from_ref(&self.state).cast_mut()) }
    }

    /// The longest link of pages of `page` bytes that can be divided: any of them unlinked without
    /// the others. In a longer one the IOMMU may have put a larger page in the place of several.
    pub fn divisible(&self, page: usize) -> usize {
        // SAFETY: The device is valid.
        let sizes = unsafe { bindings::iommu_pgsize_bitmap(device_as_raw(&self.device)) };
        let larger = sizes & !(page | (page - 1));
        match larger.trailing_zeros() {
            usize::BITS => usize::MAX & !(page - 1),
            shift => (1 << shift) - page,
        }
    }

    /// A copy of the C object, for C code that links and does not free.
    pub fn as_state(&self) -> bindings::dma_iova_state {
        self.state
    }
}

impl Drop for IovaSpace {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. Who linked has promised to have unlinked.
        unsafe { bindings::dma_iova_free(device_as_raw(&self.device), &mut self.state) };
    }
}
