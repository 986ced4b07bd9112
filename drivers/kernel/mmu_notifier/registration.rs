// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Registrations: a notifier, and what its callbacks work on.

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops,
    ptr::NonNull, //
};

use kernel::{
    container_of,
    mm::MmWithUser,
    prelude::*,
    sync::atomic::{
        Acquire,
        AtomicFlag,
        Release, //
    },
    types::Opaque, //
};

use super::{
    IntervalNotifier,
    NewSequence,
    Range,
    Sequence,
    Subscription, //
};
use crate::bindings;

/// What to do about invalidations, in one pass.
pub trait Operations: Sync + 'static {
    /// Gives up what it has of `range`, having set the sequence. May sleep if the range
    /// [is blockable](Range::is_blockable); otherwise it is `false` where it would have to,
    /// and nothing has happened.
    fn invalidate(&self, range: &Range, sequence: NewSequence<'_>) -> bool;
}

/// What came of the first of two passes.
pub enum FirstPass<P> {
    /// The range is given up.
    Done,
    /// It will be when the second pass has dealt with this.
    Pending(P),
    /// It would have to sleep, and must not.
    WouldBlock,
}

/// What to do about invalidations, in two passes.
///
/// Of an invalidation that concerns several notifiers the first pass comes for all before
/// the second for any: what takes the device time is begun in the first and waited for in
/// the second. No lock of a kind that other notifiers take too may be held from one to the
/// other.
pub trait TwoPassOperations: Sync + 'static {
    /// What the first pass leaves for the second.
    type Pending: Send;

    /// Begins to give `range` up, having set the sequence. [`FirstPass::WouldBlock`] only if
    /// the range [is not blockable](Range::is_blockable), and then nothing has happened; such
    /// a range must not be left pending either, for the second pass sleeps.
    fn invalidate_start(
        &self,
        range: &Range,
        sequence: NewSequence<'_>,
    ) -> FirstPass<Self::Pending>;

    /// Finishes that. May be called from within the first pass's caller, when another
    /// invalidation is between its passes.
    fn invalidate_finish(&self, pending: Self::Pending);
}

/// [`Registration`] of [`Operations`].
pub struct OnePass;

/// [`Registration`] of [`TwoPassOperations`].
pub struct TwoPass;

mod private {
    /// Ties [`super::OnePass`] and [`super::TwoPass`] to the traits that go with them.
    pub trait Passes<T> {
        /// What a registration has besides the notifier and the data.
        type Second;

        const TABLE: super::bindings::mmu_interval_notifier_ops;

        fn second() -> impl super::PinInit<Self::Second>;
    }
}
use private::Passes;

impl<T: Operations> Passes<T> for OnePass {
    type Second = ();

    const TABLE: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate: Some(invalidate::<T>),
        ..pin_init::zeroed()
    };

    fn second() -> impl PinInit<()> {}
}

impl<T: TwoPassOperations> Passes<T> for TwoPass {
    type Second = Second<T::Pending>;

    const TABLE: bindings::mmu_interval_notifier_ops = bindings::mmu_interval_notifier_ops {
        invalidate_start: Some(invalidate_start::<T>),
        invalidate_finish: Some(invalidate_finish::<T>),
        ..pin_init::zeroed()
    };

    fn second() -> impl PinInit<Second<T::Pending>> {
        pin_init!(Second {
            finish <- Opaque::ffi_init(|finish: *mut bindings::mmu_interval_notifier_finish| {
                // SAFETY: Valid for writes. All bits zero are a list node and no notifier.
                unsafe { finish.write_bytes(0, 1) };
            }),
            taken: AtomicFlag::new(false),
            pending: UnsafeCell::new(None),
        })
    }
}

/// A wrapper for the kernel's `struct mmu_interval_notifier_finish`, with what is handed from
/// the first pass to the second.
///
/// # Invariants
///
/// `pending` belongs to the invalidation that has set `taken`.
#[pin_data]
pub struct Second<P> {
    #[pin]
    finish: Opaque<bindings::mmu_interval_notifier_finish>,
    taken: AtomicFlag,
    pending: UnsafeCell<Option<P>>,
}

/// Callbacks for invalidations of a range of a process's memory.
///
/// # Invariants
///
/// `subscription` is `notifier`'s, with the table of `P`; `second` and `data` are initialised
/// before it and dropped after it.
///
/// # Examples
///
/// ```
/// use core::ops;
/// use kernel::{
///     mm::MmWithUser,
///     new_mutex,
///     prelude::*,
///     sync::Mutex, //
/// };
/// use kernel_ext::mmu_notifier::{
///     NewSequence,
///     Operations,
///     Range,
///     Registration, //
/// };
///
/// #[pin_data]
/// struct Mirror {
///     #[pin]
///     pages: Mutex<KVec<usize>>,
/// }
///
/// impl Operations for Mirror {
///     fn invalidate(&self, range: &Range, sequence: NewSequence<'_>) -> bool {
///         if !range.is_blockable() {
///             return false;
///         }
///         let mut pages = self.pages.lock();
///         sequence.set(&pages);
///         pages.clear();
///         true
///     }
/// }
///
/// fn mirror(
///     mm: &MmWithUser,
///     span: ops::Range<usize>,
/// ) -> Result<Pin<KBox<Registration<Mirror>>>> {
///     let mirror = pin_init!(Mirror {
///         pages <- new_mutex!(KVec::new()),
///     });
///     KBox::pin_init(Registration::new(mm, span, mirror), GFP_KERNEL)
/// }
///
/// fn fill(mirror: &Registration<Mirror>, look_up: impl Fn() -> KVec<usize>) {
///     loop {
///         let sequence = mirror.notifier().read_begin();
///         let found = look_up();
///         let mut pages = mirror.data().pages.lock();
///         if !mirror.notifier().read_retry(sequence) {
///             *pages = found;
///             return;
///         }
///     }
/// }
/// ```
#[pin_data]
pub struct Registration<T: 'static, P: Passes<T> = OnePass> {
    // The first field: no callback is called any more when the others are dropped.
    subscription: Subscription,
    #[pin]
    notifier: Opaque<bindings::mmu_interval_notifier>,
    #[pin]
    second: P::Second,
    #[pin]
    data: T,
    _passes: PhantomData<P>,
}

// SAFETY: What belongs to C is reached by functions that any thread may call, and a pending
// pass may be finished by another thread than began it.
unsafe impl<T: Send, P: Passes<T>> Send for Registration<T, P> {}
// SAFETY: As for `Send`; `Second` does its own locking.
unsafe impl<T: Sync, P: Passes<T>> Sync for Registration<T, P> {}

impl<T: 'static, P: Passes<T> + 'static> Registration<T, P> {
    /// Subscribes to invalidations of `span` in `mm`, until the value is dropped.
    ///
    /// A callback may be called before this returns. What was looked up without
    /// [`IntervalNotifier::read_begin`] is not covered.
    ///
    /// # Errors
    ///
    /// Those of `data`; `EOVERFLOW` for a range that is empty; `ENOMEM` and `EINTR` for the
    /// first notifier of a process.
    pub fn new<'a, E>(
        mm: &'a MmWithUser,
        span: ops::Range<usize>,
        data: impl PinInit<T, E> + 'a,
    ) -> impl PinInit<Self, Error> + 'a
    where
        Error: From<E>,
        E: 'a,
    {
        try_pin_init!(&this in Self {
            notifier: Opaque::zeroed(),
            second <- P::second(),
            data <- data,
            _passes: PhantomData,
            subscription: {
                // SAFETY: `this` is where the value will stay.
                let notifier = unsafe { &raw mut (*this.as_ptr()).notifier };
                // SAFETY: A field is not at null.
                let notifier = unsafe { NonNull::new_unchecked(Opaque::cast_into(notifier)) };
                // SAFETY:
                // - `notifier` is pinned, and dropped after the subscription.
                // - The callbacks use `second` and `data`, which are initialised and dropped
                //   after the subscription too. The traits promise that any thread may.
                unsafe { Subscription::new(notifier, mm, &span, &P::TABLE)? }
            },
        }? Error)
    }

    /// The notifier.
    #[inline]
    pub fn notifier(&self) -> &IntervalNotifier {
        &self.subscription
    }

    /// What was registered.
    #[inline]
    pub fn data(&self) -> &T {
        &self.data
    }
}

/// The fields of the registration of `notifier` that callbacks may use; a subscription that is
/// just being made is not among them.
///
/// # Safety
///
/// `notifier` is that of a `Registration<T, P>`, and a callback runs for it during `'a`.
unsafe fn callback_fields<'a, T: 'static, P: Passes<T>>(
    notifier: *mut bindings::mmu_interval_notifier,
) -> (&'a IntervalNotifier, &'a P::Second, &'a T) {
    let field = Opaque::cast_from(notifier).cast_mut();
    // SAFETY: By the safety requirements.
    let this = unsafe { container_of!(field, Registration<T, P>, notifier) };
    // SAFETY: Initialised before the first callback is called, and not dropped before the last
    // has returned; a notifier is not removed while a callback runs for it.
    unsafe {
        (
            IntervalNotifier::from_raw(notifier),
            &(*this).second,
            &(*this).data,
        )
    }
}

/// # Safety
///
/// As `mmu_interval_notifier_ops.invalidate`, for the notifier of a `Registration<T, OnePass>`.
unsafe extern "C" fn invalidate<T: Operations>(
    notifier: *mut bindings::mmu_interval_notifier,
    range: *const bindings::mmu_notifier_range,
    sequence: c_ulong,
) -> bool {
    // SAFETY: By the safety requirements.
    let (notifier, (), data) = unsafe { callback_fields::<T, OnePass>(notifier) };
    let sequence = NewSequence {
        notifier,
        sequence: Sequence(sequence),
    };
    // SAFETY: The range is the caller's until this returns.
    data.invalidate(unsafe { Range::from_raw(range) }, sequence)
}

/// # Safety
///
/// As `mmu_interval_notifier_ops.invalidate_start`, for the notifier of a
/// `Registration<T, TwoPass>`.
unsafe extern "C" fn invalidate_start<T: TwoPassOperations>(
    notifier: *mut bindings::mmu_interval_notifier,
    range: *const bindings::mmu_notifier_range,
    sequence: c_ulong,
    finish: *mut *mut bindings::mmu_interval_notifier_finish,
) -> bool {
    // SAFETY: By the safety requirements.
    let (notifier, second, data) = unsafe { callback_fields::<T, TwoPass>(notifier) };
    let sequence = NewSequence {
        notifier,
        sequence: Sequence(sequence),
    };
    // SAFETY: The range is the caller's until this returns.
    match data.invalidate_start(unsafe { Range::from_raw(range) }, sequence) {
        FirstPass::Done => {}
        FirstPass::WouldBlock => return false,
        // Invalidations may run in parallel: each needs a `finish` of its own, and one that
        // has none is finished at once.
        FirstPass::Pending(pending) if second.taken.xchg(true, Acquire) => {
            data.invalidate_finish(pending);
        }
        FirstPass::Pending(pending) => {
            // SAFETY: By the type invariants, `taken` having been set just now. `finish` is for
            // this function to write.
            unsafe {
                *second.pending.get() = Some(pending);
                *finish = second.finish.get();
            }
        }
    }
    true
}

/// # Safety
///
/// As `mmu_interval_notifier_ops.invalidate_finish`, for what `invalidate_start` has handed out.
unsafe extern "C" fn invalidate_finish<T: TwoPassOperations>(
    finish: *mut bindings::mmu_interval_notifier_finish,
) {
    // SAFETY: By the safety requirements; the caller has filled the notifier in.
    let (_, second, data) = unsafe { callback_fields::<T, TwoPass>((*finish).notifier) };
    // SAFETY: By the type invariants: `taken` was set for this invalidation.
    let pending = unsafe { (*second.pending.get()).take() };
    // Neither the caller nor this function uses `finish` any more.
    second.taken.store(false, Release);
    if let Some(pending) = pending {
        data.invalidate_finish(pending);
    }
}
