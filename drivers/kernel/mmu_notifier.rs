// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MMU interval notifiers.
//!
//! Whoever mirrors a range of a process's page tables is told before the kernel changes
//! them, and must not use what it has of the range when its callback returns. Filling a
//! mirror races with that, and is done in the manner of a seqcount: take a [`Sequence`],
//! look the pages up, and use what was found only if, under a lock that the callback
//! takes too, [`IntervalNotifier::read_retry`] says that nothing has come between.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)

use core::{
    ops,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    mm::{
        Mm,
        MmWithUser, //
    },
    prelude::*,
    sync::lock::{
        Backend,
        Guard, //
    },
    types::Opaque, //
};

use crate::bindings;

mod registration;
pub use registration::{
    FirstPass,
    OnePass,
    Operations,
    Registration,
    TwoPass,
    TwoPassOperations, //
};

/// A value of a notifier's sequence, which every invalidation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence(c_ulong);

impl Sequence {
    /// From what [`Self::into_raw`] returned.
    #[inline]
    pub const fn from_raw(raw: c_ulong) -> Self {
        Self(raw)
    }

    /// The value of the C API.
    #[inline]
    pub const fn into_raw(self) -> c_ulong {
        self.0
    }
}

/// Why an address range is invalidated: `enum mmu_notifier_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(bindings::mmu_notifier_event);

impl Event {
    /// `munmap`, or an `mremap` that moves.
    pub const UNMAP: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP);
    /// Page table entries are cleared, or replaced: reclaim, `madvise`, copy on write.
    pub const CLEAR: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR);
    /// The access permission of the whole range changes: `mprotect`.
    pub const PROTECTION_VMA: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA);
    /// The access permission of some pages changes.
    pub const PROTECTION_PAGE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE);
    /// Soft-dirty tracking; pages and permissions stay.
    pub const SOFT_DIRTY: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY);
    /// The process is gone.
    pub const RELEASE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE);
    /// Pages migrate to or from the memory of the device that is the [`Range::owner`].
    pub const MIGRATE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE);
    /// A page becomes exclusive to the device that is the [`Range::owner`].
    pub const EXCLUSIVE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE);
}

/// A wrapper for the kernel's `struct mmu_notifier_range`: what is invalidated, and why.
///
/// # Invariants
///
/// Does not change as long as there is a reference.
#[repr(transparent)]
pub struct Range(Opaque<bindings::mmu_notifier_range>);

impl Range {
    /// Obtains a reference from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` points to a `struct mmu_notifier_range` that is valid and does not change
    /// for `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *const bindings::mmu_notifier_range) -> &'a Self {
        // SAFETY: By the safety requirements; the layout is that of the C type.
        unsafe { &*ptr.cast() }
    }

    #[inline]
    fn inner(&self) -> &bindings::mmu_notifier_range {
        // SAFETY: By the type invariants it is initialised and does not change.
        unsafe { &*self.0.get() }
    }

    /// The addresses. They may reach beyond what the notifier is subscribed to.
    #[inline]
    pub fn span(&self) -> ops::Range<usize> {
        self.inner().start..self.inner().end
    }

    /// Why.
    #[inline]
    pub fn event(&self) -> Event {
        Event(self.inner().event)
    }

    /// Who causes it, for [`Event::MIGRATE`] and [`Event::EXCLUSIVE`]: what the driver of
    /// a device passed, to know its own invalidations by.
    #[inline]
    pub fn owner(&self) -> *mut c_void {
        self.inner().owner
    }

    /// Whether the callback may sleep.
    #[inline]
    pub fn is_blockable(&self) -> bool {
        self.inner().flags & bindings::MMU_NOTIFIER_RANGE_BLOCKABLE != 0
    }
}

/// A wrapper for the kernel's `struct mmu_interval_notifier`.
///
/// # Invariants
///
/// Is subscribed: inserted, and not removed as long as there is a reference.
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
    /// `ptr` points to a `struct mmu_interval_notifier` that is inserted, and that is not
    /// removed during `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *const bindings::mmu_interval_notifier) -> &'a Self {
        // SAFETY: By the safety requirements; the layout is that of the C type.
        unsafe { &*ptr.cast() }
    }

    /// The C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::mmu_interval_notifier {
        self.0.get()
    }

    /// The first and the last address that it is subscribed to.
    #[inline]
    pub fn span(&self) -> ops::RangeInclusive<usize> {
        // SAFETY: By the type invariants; these do not change while it is inserted.
        unsafe {
            let node = &raw const (*self.as_raw()).interval_tree;
            (*node).start..=(*node).last
        }
    }

    /// Whether it is subscribed in `mm`.
    #[inline]
    pub fn is_in(&self, mm: &Mm) -> bool {
        // SAFETY: By the type invariants; it does not change while it is inserted.
        unsafe { (*self.as_raw()).mm == mm.as_raw() }
    }

    /// Takes the sequence for what is looked up next, having waited for the
    /// invalidations that are under way. May sleep.
    #[inline]
    pub fn read_begin(&self) -> Sequence {
        // SAFETY: By the type invariants.
        Sequence(unsafe { bindings::mmu_interval_read_begin(self.as_raw()) })
    }

    /// Whether an invalidation has come since `sequence`. Means something only under the
    /// lock under which the callback calls [`NewSequence::set`].
    #[inline]
    #[must_use]
    pub fn read_retry(&self, sequence: Sequence) -> bool {
        // SAFETY: By the type invariants; the C function reads one word.
        unsafe { bindings::mmu_interval_read_retry(self.as_raw(), sequence.0) }
    }
}

/// The sequence of an invalidation, for its callback to set.
///
/// There is one for each call, and it cannot be kept: the sequence is set from a callback,
/// and under a lock.
#[must_use = "without it, what is looked up meanwhile passes as valid"]
pub struct NewSequence<'a> {
    notifier: &'a IntervalNotifier,
    sequence: Sequence,
}

impl NewSequence<'_> {
    /// Makes everything stale that was looked up before. The lock is the one under which
    /// [`IntervalNotifier::read_retry`] is called.
    ///
    /// Must be called whatever the callback finds to do; unless that is to refuse, or to let
    /// an invalidation pass that its own device is the [`Range::owner`] of.
    #[inline]
    pub fn set<T: ?Sized, B: Backend>(self, _lock: &Guard<'_, T, B>) {
        // SAFETY: By the type invariants of the notifier; the C function writes one word.
        unsafe { bindings::mmu_interval_set_seq(self.notifier.as_raw(), self.sequence.0) };
    }
}

/// Callbacks of notifiers that C objects embed.
pub trait RawOperations {
    /// As [`Operations::invalidate`]; `notifier` tells the object.
    fn invalidate(notifier: &IntervalNotifier, range: &Range, sequence: NewSequence<'_>) -> bool;

    /// The table for the C object's `mmu_interval_notifier_insert`.
    const TABLE: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: Some(raw_invalidate::<Self>),
        ..pin_init::zeroed()
    };
}

/// # Safety
///
/// As `mmu_interval_notifier_ops.invalidate`.
unsafe extern "C" fn raw_invalidate<T: RawOperations + ?Sized>(
    notifier: *mut bindings::mmu_interval_notifier,
    range: *const bindings::mmu_notifier_range,
    sequence: c_ulong,
) -> bool {
    // SAFETY: A notifier is not removed while its callback runs, and the range is the
    // caller's until it returns.
    let (notifier, range) =
        unsafe { (IntervalNotifier::from_raw(notifier), Range::from_raw(range)) };
    let sequence = NewSequence {
        notifier,
        sequence: Sequence(sequence),
    };
    T::invalidate(notifier, range, sequence)
}

/// The subscription of a notifier that lies in a larger object.
///
/// # Invariants
///
/// `notifier` is inserted.
pub struct Subscription {
    notifier: NonNull<bindings::mmu_interval_notifier>,
}

// SAFETY: A notifier may be removed by any thread.
unsafe impl Send for Subscription {}
// SAFETY: `IntervalNotifier` is `Sync`.
unsafe impl Sync for Subscription {}

impl Subscription {
    /// Subscribes `notifier` to invalidations of `span` in `mm`.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for a range that is empty; `ENOMEM` and `EINTR` for the first notifier
    /// of a process.
    ///
    /// # Safety
    ///
    /// - `notifier` is valid and not inserted, and stays where it is until the value is
    ///   dropped.
    /// - `ops` is valid until then. From now until then its callbacks are called with this
    ///   notifier, from any thread.
    pub unsafe fn new(
        notifier: NonNull<bindings::mmu_interval_notifier>,
        mm: &MmWithUser,
        span: &ops::Range<usize>,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result<Self> {
        // SAFETY: By the safety requirements; the users of `mm` are not 0 by its invariants.
        to_result(unsafe {
            bindings::mmu_interval_notifier_insert(
                notifier.as_ptr(),
                mm.as_raw(),
                span.start,
                span.len(),
                ops,
            )
        })?;
        // INVARIANT: Just inserted.
        Ok(Self { notifier })
    }
}

impl ops::Deref for Subscription {
    type Target = IntervalNotifier;

    #[inline]
    fn deref(&self) -> &IntervalNotifier {
        // SAFETY: By the type invariants, as long as `self` is there.
        unsafe { IntervalNotifier::from_raw(self.notifier.as_ptr()) }
    }
}

impl Drop for Subscription {
    /// Waits for callbacks that run; none is called any more when this returns. A lock that
    /// a callback takes must not be held.
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mmu_interval_notifier_remove(self.notifier.as_ptr()) };
    }
}
