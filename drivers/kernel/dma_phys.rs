// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DMA of physical memory, one contiguous piece at a time.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use kernel::{
    device::Device,
    dma::{
        DataDirection,
        DmaAddress, //
    },
    prelude::*, //
};

use crate::{
    bindings,
    dma_iova::device_as_raw, //
};

/// Whether a mapping has to be undone; otherwise it is nothing but an address.
#[inline]
pub fn need_unmap(device: &Device) -> bool {
    // SAFETY: The device is valid.
    unsafe { bindings::dma_need_unmap(device_as_raw(device)) }
}

/// Whether memory may have to be copied, or caches be synced, for the device to use it: it cannot
/// use memory at the same time as the CPU then.
#[inline]
pub fn needs_bounce(device: &Device) -> bool {
    // SAFETY: The device is valid.
    unsafe { bindings::hmm_dma_needs_bounce(device_as_raw(device)) }
}

/// Maps `size` bytes from `phys`.
///
/// # Errors
///
/// `ENOMEM`: the C function has no errors to tell apart.
///
/// # Safety
///
/// The memory stays until it is unmapped.
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
/// use kernel_ext::dma_phys;
///
/// /// # Safety
/// ///
/// /// `phys` is memory of `size` bytes that stays during the call.
/// unsafe fn read_by(
///     device: &Device,
///     phys: u64,
///     size: usize,
///     use_it: impl FnOnce(DmaAddress),
/// ) -> Result {
///     let direction = DataDirection::ToDevice;
///     // SAFETY: It is unmapped below.
///     let address = unsafe { dma_phys::map(device, phys, size, direction, 0)? };
///     use_it(address);
///     // SAFETY: Mapped above, and not used any more.
///     unsafe { dma_phys::unmap(device, address, size, direction, 0) };
///     Ok(())
/// }
/// ```
#[inline]
pub unsafe fn map(
    device: &Device,
    phys: bindings::phys_addr_t,
    size: usize,
    direction: DataDirection,
    attrs: c_ulong,
) -> Result<DmaAddress> {
    let device = device_as_raw(device);
    // SAFETY: The device is valid, and the memory stays, by the safety requirements.
    unsafe {
        let address = bindings::dma_map_phys(device, phys, size, direction.into(), attrs);
        match bindings::dma_mapping_error(device, address) {
            0 => Ok(address),
            _ => Err(ENOMEM),
        }
    }
}

/// Unmaps what [`map`] has mapped.
///
/// # Safety
///
/// `address` came from [`map`] with the same arguments, and the device does not use it.
#[inline]
pub unsafe fn unmap(
    device: &Device,
    address: DmaAddress,
    size: usize,
    direction: DataDirection,
    attrs: c_ulong,
) {
    // SAFETY: The device is valid; the rest by the safety requirements.
    unsafe {
        bindings::dma_unmap_phys(
            device_as_raw(device),
            address,
            size,
            direction.into(),
            attrs,
        );
    }
}
