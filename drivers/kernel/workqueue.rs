// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;

use kernel::{
    impl_flags,
    prelude::*,
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
    /// for their timers when the queue is destroyed.
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
