// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MMU interval notifiers.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use crate::bindings;
use core::ops::Range;
use hmm_abi::Sequence;
use kernel::{error::to_result, mm::MmWithUser, prelude::*, types::Opaque};

/// A wrapper for the kernel's `struct mmu_interval_notifier`.
#[repr(transparent)]
pub struct IntervalNotifier(Opaque<bindings::mmu_interval_notifier>);

// SAFETY: The C functions used here may be called from any thread.
unsafe impl Send for IntervalNotifier {}
// SAFETY: The C functions used here do their own locking.
unsafe impl Sync for IntervalNotifier {}

impl IntervalNotifier {
    /// Obtains a reference from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` points to a `struct mmu_interval_notifier` that is valid for `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::mmu_interval_notifier) -> &'a Self {
        // SAFETY: By the safety requirements; the layout is that of the C type.
        unsafe { &*ptr.cast() }
    }

    /// The C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.0.get()
    }

    /// Subscribes to invalidations of `span` in `mm`.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for a range that wraps, `ENOMEM`, `EINTR`.
    ///
    /// # Safety
    ///
    /// - The notifier is not subscribed, and stays where it is until [`Self::remove`].
    /// - `ops` is valid until then, and its callbacks may be called with this notifier.
    pub unsafe fn insert(
        &self,
        mm: &MmWithUser,
        span: &Range<usize>,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result {
        // SAFETY: By the safety requirements; the users of `mm` are not 0 by its invariants.
        to_result(unsafe {
            bindings::mmu_interval_notifier_insert(
                self.as_raw(),
                mm.as_raw(),
                span.start,
                span.len(),
                ops,
            )
        })
    }

    /// Ends the subscription. No callback runs any more when this returns.
    ///
    /// # Safety
    ///
    /// The notifier is subscribed, and no lock is held that a callback takes.
    pub unsafe fn remove(&self) {
        // SAFETY: By the safety requirements.
        unsafe { bindings::mmu_interval_notifier_remove(self.as_raw()) };
    }

    /// Whether an invalidation has come since `sequence`. Of use only under the lock that
    /// the callback holds around `mmu_interval_set_seq`.
    #[inline]
    #[must_use]
    pub fn read_retry(&self, sequence: Sequence) -> bool {
        // SAFETY: `self` is valid; the C function reads one word.
        unsafe { bindings::mmu_interval_read_retry(self.as_raw(), sequence.0) }
    }
}
