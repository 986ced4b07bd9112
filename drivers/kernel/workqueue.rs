// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    container_of, impl_flags,
    prelude::*,
    sync::LockClassKey,
    time::Jiffies,
    types::Opaque,
    workqueue::{
        Queue,
        RawWorkItem, //
    },
};

use crate::bindings;

impl_flags!(
    /// How a workqueue is served.
    #[derive(Clone, Copy, Default, PartialEq, Eq)]
    pub struct Flags(u32);

    /// One of them.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Flag {
        /// By workers that are bound to no CPU.
        Unbound = bindings::wq_flags_WQ_UNBOUND,
        /// Not while the system is suspended.
        Freezable = bindings::wq_flags_WQ_FREEZABLE,
        /// By a worker of its own when there is no memory for another; for work that memory
        /// reclaim waits for.
        MemReclaim = bindings::wq_flags_WQ_MEM_RECLAIM,
        /// Before others.
        HighPriority = bindings::wq_flags_WQ_HIGHPRI,
        /// By workers of the CPU that enqueues.
        PerCpu = bindings::wq_flags_WQ_PERCPU,
    }
);

/// A workqueue, destroyed on drop.
///
/// # Invariants
///
/// `queue` is a workqueue, and owned.
///
/// # Examples
///
/// ```
/// use kernel::{
///     prelude::*,
///     sync::Arc,
///     workqueue::{
///         impl_has_work,
///         new_work,
///         Work,
///         WorkItem, //
///     }, //
/// };
/// use kernel_ext::workqueue::{
///     Flag,
///     OwnedQueue, //
/// };
///
/// #[pin_data]
/// struct Fault {
///     address: usize,
///     #[pin]
///     work: Work<Fault>,
/// }
///
/// impl_has_work! {
///     impl HasWork<Self> for Fault { self.work }
/// }
///
/// impl WorkItem for Fault {
///     type Pointer = Arc<Fault>;
///
///     fn run(fault: Arc<Fault>) {
///         pr_info!("fault at {}\n", fault.address);
///     }
/// }
///
/// # fn f() -> Result {
/// let faults = OwnedQueue::new(c"faults", Flag::Unbound | Flag::HighPriority, 8)?;
/// let fault = Arc::pin_init(
///     pin_init!(Fault {
///         address: 0x1000,
///         work <- new_work!("Fault::work"),
///     }),
///     GFP_KERNEL,
/// )?;
/// let _ = faults.enqueue(fault);
/// // Waits for the fault to have been served.
/// drop(faults);
/// # Ok(()) }
/// ```
pub struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
}

// SAFETY: The C functions do their own locking.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// A workqueue that has at most `max_active` items in work at a time; 0 stands for the
    /// kernel's default.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EINVAL` for more than there can be.
    pub fn new(name: &CStr, flags: impl Into<Flags>, max_active: usize) -> Result<Self> {
        let max_active = c_int::try_from(max_active).map_err(|_| EINVAL)?;
        // SAFETY: The format takes one string, which the call copies.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                flags.into().into(),
                max_active,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Just made.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
        })
    }

    /// Enqueues a work item, as [`Queue::enqueue`]. Delayed ones cannot be: nothing would wait
    /// for their timers when the queue is destroyed. See [`WithWork::enqueue_in`].
    pub fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type invariants.
        let queue = unsafe { Queue::from_raw(self.queue.as_ptr()) };
        queue.enqueue(work)
    }

    /// Waits until nothing is enqueued any more. Meanwhile only work items of the queue may
    /// enqueue others.
    pub fn drain(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::drain_workqueue(self.queue.as_ptr()) };
    }
}

impl Drop for OwnedQueue {
    /// Waits for what is enqueued. Not to be dropped by one of its own work items.
    fn drop(&mut self) {
        // SAFETY: By the type invariants; whoever could enqueue has borrowed the queue.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}

/// What the work item of a [`WithWork`] does.
pub trait Job: Sized + Send + Sync {
    /// Does it. Runs once at a time.
    fn run(this: &WithWork<Self>);
}

/// A value with a work item that works on it, for as long as the value is there: the drop waits for
/// it, and it does not run any more.
///
/// # Invariants
///
/// `work` is initialised, and runs [`Job::run`].
///
/// # Examples
///
/// ```
/// use core::sync::atomic::{
///     AtomicU32,
///     Ordering, //
/// };
/// use kernel::prelude::*;
/// use kernel_ext::{
///     new_with_work,
///     workqueue::{
///         Job,
///         OwnedQueue,
///         WithWork, //
///     }, //
/// };
///
/// struct Interrupts(AtomicU32);
///
/// impl Job for Interrupts {
///     fn run(this: &WithWork<Self>) {
///         pr_info!("{} interrupts\n", this.0.swap(0, Ordering::Relaxed));
///     }
/// }
///
/// # fn f(queue: &OwnedQueue) -> Result {
/// let interrupts = Ok::<_, Error>(Interrupts(AtomicU32::new(0)));
/// let interrupts = KBox::pin_init(new_with_work!(interrupts, "interrupts"), GFP_KERNEL)?;
/// interrupts.0.fetch_add(1, Ordering::Relaxed);
/// interrupts.enqueue(queue);
/// # Ok(()) }
/// ```
#[pin_data(PinnedDrop)]
pub struct WithWork<T> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    #[pin]
    value: T,
}

// SAFETY: The C functions do their own locking.
unsafe impl<T: Send> Send for WithWork<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for WithWork<T> {}

/// Creates a [`WithWork`] initialiser with the given name and newly-created lock classes.
#[macro_export]
macro_rules! new_with_work {
    ($value:expr, $name:literal) => {
        $crate::workqueue::WithWork::new(
            $value,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
            ::kernel::static_lock_class!(),
        )
    };
}

impl<T: Job> WithWork<T> {
    /// Makes it; see [`new_with_work!`].
    pub fn new(
        value: impl PinInit<T, Error>,
        name: &'static CStr,
        work_key: Pin<&'static LockClassKey>,
        timer_key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: By what the initialiser of `work` is given.
        try_pin_init!(Self {
            work <- Opaque::ffi_init(|work: *mut bindings::delayed_work| {
                // SAFETY: `work` is valid for writes; the name and the keys are for ever. Its timer
                // is the workqueue's, which wants this function and flag.
                unsafe {
                    bindings::init_work_with_key(
                        &raw mut (*work).work,
                        Some(Self::run),
                        false,
                        name.as_char_ptr(),
                        work_key.as_ptr(),
                    );
                    bindings::timer_init_key(
                        &raw mut (*work).timer,
                        Some(bindings::delayed_work_timer_fn),
                        bindings::TIMER_IRQSAFE,
                        name.as_char_ptr(),
                        timer_key.as_ptr(),
                    );
                }
            }),
            value <- value,
        }? Error)
    }

    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: The work item is that of a value which is not dropped before this returns.
        let this = unsafe {
            let work = container_of!(work, bindings::delayed_work, work);
            &*container_of!(Opaque::cast_from(work), Self, work)
        };
        T::run(this);
    }

    /// Has it work on the value now, once more if it is doing so already. May be called in interrupt
    /// context.
    pub fn enqueue(&self, queue: &OwnedQueue) {
        // SAFETY: By the type invariants of both. If it was enqueued before, it is so still.
        unsafe { bindings::mod_delayed_work_on(ANY_CPU, queue.queue.as_ptr(), self.work.get(), 0) };
    }

    /// Has it work on the value in so many jiffies, unless it will anyway.
    ///
    /// # Safety
    ///
    /// Until the queue is dropped the value is, or stopped: nothing else waits for the timer.
    pub unsafe fn enqueue_in(&self, queue: &OwnedQueue, delay: Jiffies) {
        // SAFETY: By the type invariants of both, and the safety requirements.
        unsafe {
            bindings::queue_delayed_work_on(ANY_CPU, queue.queue.as_ptr(), self.work.get(), delay);
        }
    }
}

impl<T> WithWork<T> {
    /// Waits for it. It does not work on the value any more, even when it is enqueued. Not to be
    /// called by the work item itself.
    pub fn stop(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }
}

/// No CPU in particular.
// CAST: It is a small number.
const ANY_CPU: c_int = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

impl<T> Deref for WithWork<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[pinned_drop]
impl<T> PinnedDrop for WithWork<T> {
    fn drop(self: Pin<&mut Self>) {
        // The value is dropped after this.
        self.stop();
    }
}
