// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Heterogeneous Memory Management: the page tables of a process, looked up for a device.
//!
//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)

use core::{
    ops::Range,
    ptr, //
};

use kernel::{
    mm::MmWithUser,
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*,
    time::msecs_to_jiffies, //
};

use crate::{
    bindings,
    mmu_notifier::{
        IntervalNotifier,
        Sequence, //
    },
};

/// What is known of one page: its frame number, with the flags of `enum hmm_pfn_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(transparent)]
pub struct Pfn(c_ulong);

impl Pfn {
    /// Nothing.
    pub const EMPTY: Self = Self(0);

    /// At least readable.
    pub const VALID: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_VALID;
    /// Writable; together with [`Self::VALID`].
    pub const WRITE: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_WRITE;
    /// Access is impossible.
    pub const ERROR: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_ERROR;
    /// Mapped for DMA. Left alone by [`range_fault`], as are the next two.
    pub const DMA_MAPPED: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_DMA_MAPPED;
    /// Mapped for DMA, as peer-to-peer memory that is reached through the host bridge.
    pub const P2PDMA: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_P2PDMA;
    /// Mapped for DMA, as peer-to-peer memory that is reached by its bus address.
    pub const P2PDMA_BUS: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_P2PDMA_BUS;
    /// All flags, with the order.
    pub const FLAGS: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_FLAGS;
    /// Where the order is: five bits. The process maps `1 << order` pages as one.
    pub const ORDER_SHIFT: c_ulong = bindings::hmm_pfn_flags_HMM_PFN_ORDER_SHIFT;

    /// From the value of the C API.
    #[inline]
    pub const fn from_raw(raw: c_ulong) -> Self {
        Self(raw)
    }

    /// The value of the C API.
    #[inline]
    pub const fn into_raw(self) -> c_ulong {
        self.0
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn has(self, flags: c_ulong) -> bool {
        self.0 & flags == flags
    }

    /// The physical address of the page.
    #[inline]
    pub const fn phys(self) -> bindings::phys_addr_t {
        // CAST: A physical address is at least as wide as `unsigned long`.
        ((self.0 & !Self::FLAGS) as bindings::phys_addr_t) << PAGE_SHIFT
    }

    /// Whether the page is peer-to-peer memory of a PCI device.
    ///
    /// # Safety
    ///
    /// `self` names a page, which is not freed during the call.
    #[inline]
    pub unsafe fn is_p2pdma(self) -> bool {
        // SAFETY: By the safety requirements.
        unsafe { bindings::hmm_pfn_is_p2pdma(self.0) }
    }

    /// Marks the page dirty. It need not be locked: notifiers are called with and without the
    /// page lock.
    ///
    /// # Safety
    ///
    /// `self` names a page, which is not freed during the call: it is still mapped by the
    /// process, as it is until the notifier returns, or the caller has a reference on it.
    #[inline]
    pub unsafe fn set_dirty(self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::hmm_pfn_set_dirty(self.0) };
    }

    /// Takes a reference on the page.
    ///
    /// # Safety
    ///
    /// As for [`Self::set_dirty`].
    #[inline]
    pub unsafe fn get_page(self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::hmm_pfn_get(self.0) };
    }

    /// Drops a reference on the page.
    ///
    /// # Safety
    ///
    /// The caller owns one.
    #[inline]
    pub unsafe fn put_page(self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::hmm_pfn_put(self.0) };
    }
}

/// What [`range_fault`] is asked for, of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// What is there; nothing is faulted in.
    Snapshot,
    /// To be readable.
    Read,
    /// To be writable.
    Write,
}

/// Looks the pages of `span` up, faulting in what `request` asks for, and returns the sequence
/// that they were found for: to be checked by [`IntervalNotifier::read_retry`] under the lock
/// before they are used.
///
/// `found` has one element for each page, comes in empty, and means nothing after an error. The
/// memory map's lock must not be held. Sleeps for long; a fatal signal of the current task ends
/// it.
///
/// # Errors
///
/// - `EBUSY` if invalidations, or a writer on the memory map, have taken a second.
/// - `EFAULT` for addresses without memory, or memory that cannot be had, such as that of a
///   device; and where the process is being killed for want of memory.
/// - `EPERM` for [`Request::Write`] of memory that is read-only.
/// - `EINTR` on a fatal signal.
/// - `ENOMEM`.
/// - `EINVAL` if `span` is not of whole pages, reaches beyond what the notifier is subscribed to,
///   has another number of pages than `found`, or if `mm` is not the notifier's.
///
/// # Examples
///
/// ```
/// use kernel::{
///     mm::MmWithUser,
///     page::PAGE_SIZE,
///     prelude::*, //
/// };
/// use kernel_ext::{
///     hmm::{
///         range_fault,
///         Pfn,
///         Request, //
///     },
///     mmu_notifier::IntervalNotifier, //
/// };
///
/// fn is_writable(notifier: &IntervalNotifier, mm: &MmWithUser, page: usize) -> Result<bool> {
///     let mut found = [Pfn::EMPTY];
///     let span = page..page + PAGE_SIZE;
///     let _sequence = range_fault(notifier, mm, &span, Request::Snapshot, &mut found)?;
///     Ok(found[0].has(Pfn::VALID | Pfn::WRITE))
/// }
/// ```
#[inline]
pub fn range_fault(
    notifier: &IntervalNotifier,
    mm: &MmWithUser,
    span: &Range<usize>,
    request: Request,
    found: &mut [Pfn],
) -> Result<Sequence> {
    range_fault_for(notifier, mm, span, request, ptr::null_mut(), found)
}

/// [`range_fault`] for a device that has memory of its own: pages of it are found as they are if
/// `owner` is the one that their `dev_pagemap` names. Private memory of any other device is brought
/// back if `request` says so, and is not found otherwise.
///
/// # Errors
///
/// As [`range_fault`].
pub fn range_fault_for(
    notifier: &IntervalNotifier,
    mm: &MmWithUser,
    span: &Range<usize>,
    request: Request,
    owner: *mut c_void,
    found: &mut [Pfn],
) -> Result<Sequence> {
    let whole = (span.start | span.end) & !PAGE_MASK == 0;
    let subscribed = notifier.span();
    let within = subscribed.contains(&span.start) && span.end.wrapping_sub(1) <= *subscribed.end();
    if !whole || !within || span.len() >> PAGE_SHIFT != found.len() || !notifier.is_in(mm) {
        return Err(EINVAL);
    }

    let mut range = bindings::hmm_range {
        notifier: notifier.as_raw(),
        start: span.start,
        end: span.end,
        hmm_pfns: found.as_mut_ptr().cast(),
        default_flags: match request {
            Request::Snapshot => 0,
            Request::Read => bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT,
            Request::Write => {
                bindings::hmm_pfn_flags_HMM_PFN_REQ_FAULT
                    | bindings::hmm_pfn_flags_HMM_PFN_REQ_WRITE
            }
        },
        dev_private_owner: owner,
        ..Default::default()
    };
    let timeout = msecs_to_jiffies(bindings::HMM_RANGE_DEFAULT_TIMEOUT);
    // SAFETY: `range` is initialised, with an element of `hmm_pfns` for each page. The notifier
    // is subscribed to it, in `mm`, whose users are not 0 by the invariants of `MmWithUser`.
    kernel::error::to_result(unsafe {
        bindings::hmm_range_fault_unlocked_timeout(&mut range, timeout)
    })?;
    Ok(Sequence::from_raw(range.notifier_seq))
}

/// How far `span` may be faulted in although nobody has asked for it, from its start on: within one
/// mapping, unless somebody else fills it in (userfaultfd), it is a device's, or the process has said
/// that it reads in no order (`MADV_RANDOM`); for writing, only private memory without a file, whose
/// pages would be written back though nobody has written to them.
///
/// # Examples
///
/// ```
/// use core::ops::Range;
///
/// use kernel::mm::MmWithUser;
/// use kernel_ext::hmm::may_read_ahead;
///
/// fn whole(mm: &MmWithUser, span: &Range<usize>) -> bool {
///     may_read_ahead(mm, span, false) == *span
/// }
/// ```
pub fn may_read_ahead(mm: &MmWithUser, span: &Range<usize>, write: bool) -> Range<usize> {
    let start = span.start;
    let nothing = start..start;
    let Some(vma) = mm.lock_vma_under_rcu(start) else {
        return nothing;
    };
    // SAFETY: The VMA is locked for reading.
    match unsafe { bindings::vma_may_read_ahead(vma.as_ptr(), write) } {
        true => start..span.end.min(vma.end()),
        false => nothing,
    }
}
