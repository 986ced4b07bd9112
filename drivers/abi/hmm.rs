// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Heterogeneous Memory Management: range faults, and pages mapped for DMA.
//!
//! C headers: [`include/linux/hmm.h`](srctree/include/linux/hmm.h),
//! [`include/linux/hmm-dma.h`](srctree/include/linux/hmm-dma.h)

use crate::{bindings, mmu_notifier::IntervalNotifier};
use core::{marker::PhantomData, ops::Range, ptr};
use hmm_abi::{Entry, Geometry, Index, Need, RangeError, Sequence};
use kernel::{
    alloc::flags::{__GFP_NOWARN, GFP_KERNEL},
    error::to_result,
    mm::MmWithUser,
    prelude::*,
    time::msecs_to_jiffies,
};

// `Entry` is an HMM PFN.
const _: () = {
    assert!(Entry::VALID == bindings::hmm_pfn_flags_HMM_PFN_VALID);
    assert!(Entry::WRITE == bindings::hmm_pfn_flags_HMM_PFN_WRITE);
    assert!(Entry::ERROR == bindings::hmm_pfn_flags_HMM_PFN_ERROR);
    assert!(Entry::DMA_MAPPED == bindings::hmm_pfn_flags_HMM_PFN_DMA_MAPPED);
    assert!(Entry::P2PDMA == bindings::hmm_pfn_flags_HMM_PFN_P2PDMA);
    assert!(Entry::P2PDMA_BUS == bindings::hmm_pfn_flags_HMM_PFN_P2PDMA_BUS);
    assert!(Entry::ORDER_SHIFT as usize == bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT);
    assert!(size_of::<Entry>() == size_of::<c_ulong>());
};

/// Looks up, and faults in as `need` says, the pages of `span`; `found` has one element
/// for each. A fatal signal of the current task ends it.
///
/// # Errors
///
/// [`RangeError::Busy`] when invalidations, or a writer on the memory map, took longer
/// than HMM's timeout; `EBUSY` as a failure if a signal is pending by then. `EFAULT` for
/// addresses without memory, `EPERM` for writes to memory that is read-only, `EINTR` on a
/// fatal signal, `ENOMEM`, `EINVAL`.
///
/// # Safety
///
/// The notifier is subscribed in `mm`, to a range that covers `span`.
pub unsafe fn range_fault(
    notifier: &IntervalNotifier,
    _mm: &MmWithUser,
    span: &Range<usize>,
    need: Need,
    found: &mut [Entry],
) -> Result<Sequence, RangeError<Error>> {
    let whole = (span.start | span.end) & !kernel::page::PAGE_MASK == 0;
    if !whole || found.len() != span.len() >> kernel::page::PAGE_SHIFT {
        return Err(RangeError::Failed(EINVAL));
    }
    let flags = match need {
        Need::Snapshot => 0,
        Need::Read => Entry::VALID,
        Need::Write => Entry::VALID | Entry::WRITE,
    };
    let mut range = bindings::hmm_range {
        notifier: notifier.as_raw(),
        start: span.start,
        end: span.end,
        hmm_pfns: found.as_mut_ptr().cast(),
        default_flags: flags,
        ..Default::default()
    };
    let timeout = msecs_to_jiffies(bindings::HMM_RANGE_DEFAULT_TIMEOUT);
    // SAFETY: `range` is initialised, with an element of `hmm_pfns` for each page; the notifier
    // is subscribed to it, by the safety requirements; the users of the mm are not 0, by the
    // invariants of `MmWithUser`.
    match unsafe { bindings::hmm_range_fault_unlocked_timeout(&mut range, timeout) } {
        0 => Ok(Sequence(range.notifier_seq)),
        errno => match Error::from_errno(errno) {
            // Who was sent a signal does not try again.
            EBUSY if !current!().signal_pending() => Err(RangeError::Busy),
            error => Err(RangeError::Failed(error)),
        },
    }
}

/// How a device reaches memory.
#[derive(Clone, Copy)]
pub enum DmaDevice {
    /// By DMA addresses of this device.
    Mapped(ptr::NonNull<bindings::device>),
    /// By the CPU: there is nothing to be mapped.
    Virtual,
}

/// A wrapper for the kernel's `struct hmm_dma_map`, which somebody else holds.
///
/// # Invariants
///
/// `map` is valid for `'a`, and nobody else uses it as long as `self` is there.
pub struct DmaMap<'a> {
    map: *mut bindings::hmm_dma_map,
    device: DmaDevice,
    _map: PhantomData<&'a mut bindings::hmm_dma_map>,
}

impl DmaMap<'_> {
    /// Wraps a C object.
    ///
    /// # Safety
    ///
    /// `map` is valid, for `device`, and not used by anybody else during the lifetime.
    pub unsafe fn from_raw(map: *mut bindings::hmm_dma_map, device: DmaDevice) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            map,
            device,
            _map: PhantomData,
        }
    }

    /// Allocates the entries of `geometry`, and IOVA space when the device has an IOMMU.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EOPNOTSUPP` for a device that needs bounce buffers.
    ///
    /// # Safety
    ///
    /// Nothing is allocated. On success, [`Self::free`] is called once nothing is mapped.
    pub unsafe fn alloc(&mut self, geometry: &Geometry) -> Result {
        match self.device {
            DmaDevice::Mapped(device) => {
                let pages = geometry.indices().len() * geometry.pages_per_entry();
                // SAFETY: By the type invariants and safety requirements.
                to_result(unsafe {
                    bindings::hmm_dma_map_alloc(
                        device.as_ptr(),
                        self.map,
                        pages,
                        1 << geometry.entry_shift(),
                    )
                })
            }
            DmaDevice::Virtual => {
                let entries = KVVec::from_elem(
                    Entry::EMPTY,
                    geometry.indices().len(),
                    GFP_KERNEL | __GFP_NOWARN,
                )?;
                // SAFETY: By the type invariants. The allocation is `kvfree`d in `free`.
                unsafe { (*self.map).pfn_list = entries.into_raw_parts().0.cast() };
                Ok(())
            }
        }
    }

    /// Frees what [`Self::alloc`] allocated.
    ///
    /// # Safety
    ///
    /// The entries are allocated and none is mapped.
    pub unsafe fn free(&mut self) {
        match self.device {
            // SAFETY: By the type invariants and safety requirements.
            DmaDevice::Mapped(device) => unsafe {
                bindings::hmm_dma_map_free(device.as_ptr(), self.map);
            },
            // SAFETY: By the type invariants; `alloc` made it.
            DmaDevice::Virtual => unsafe { bindings::kvfree((*self.map).pfn_list.cast()) },
        }
    }

    /// Entry `index`.
    ///
    /// # Safety
    ///
    /// The entries are allocated and `index` is one of them.
    #[inline]
    pub unsafe fn entry(&self, index: Index) -> Entry {
        // SAFETY: By the safety requirements.
        Entry::from_bits(unsafe { (*self.map).pfn_list.add(index.0).read() })
    }

    /// Makes `entry` entry `index`.
    ///
    /// # Safety
    ///
    /// As for [`Self::entry`]; and an entry that is mapped for DMA stays so.
    #[inline]
    pub unsafe fn store(&mut self, index: Index, entry: Entry) {
        // SAFETY: By the safety requirements.
        unsafe { (*self.map).pfn_list.add(index.0).write(entry.bits()) };
    }

    /// Unmaps entry `index`, if it is valid and mapped. Returns whether it was.
    ///
    /// # Safety
    ///
    /// As for [`Self::entry`]; and the hardware does not use the mapping.
    pub unsafe fn unmap(&mut self, index: Index) -> bool {
        match self.device {
            // SAFETY: By the safety requirements.
            DmaDevice::Mapped(device) => unsafe {
                bindings::hmm_dma_unmap_pfn(device.as_ptr(), self.map, index.0)
            },
            DmaDevice::Virtual => false,
        }
    }
}

/// Marks the page of `entry` dirty.
///
/// # Safety
///
/// The entry's PFN is that of a page that cannot be freed now: it is mapped by the
/// process until the running notifier returns, or somebody has a reference on it.
pub unsafe fn set_dirty(entry: Entry) {
    // SAFETY: By the safety requirements.
    unsafe { bindings::hmm_pfn_set_dirty(entry.bits()) };
}

/// Drops a reference on the page of `entry`.
///
/// # Safety
///
/// The caller owns it.
pub unsafe fn put_page(entry: Entry) {
    // SAFETY: By the safety requirements.
    unsafe { bindings::hmm_pfn_put(entry.bits()) };
}
