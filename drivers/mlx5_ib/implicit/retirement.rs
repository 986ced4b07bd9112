// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! When children are retired: at once, in some time, or when events are served.

use core::ptr::NonNull;

use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    sync::Arc,
    time::msecs_to_jiffies, //
};
use kernel_ext::{
    new_with_work,
    workqueue::{
        Job,
        OwnedQueue,
        WithWork, //
    }, //
};

use super::Parent;
use crate::eq::Faults;

/// Has a worker retire children of an implicit MR ([`Parent::retire`]).
///
/// The parent has a reference until it has stopped it. The EQ has another one while it waits for events
/// to be served, so that nothing is freed in interrupt context.
#[pin_data]
pub(crate) struct Retirement {
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
    #[pin]
    work: WithWork<Retire>,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Retirement { tracked_by tracker: AtomicTracker; }
}

impl_list_item! {
    impl ListItem<0> for Retirement { using ListLinks { self.links }; }
}

/// The work.
///
/// # Invariants
///
/// `parent` is valid until the work is stopped.
struct Retire {
    parent: NonNull<Parent>,
}

// SAFETY: A `Parent` may be used by any thread.
unsafe impl Send for Retire {}
// SAFETY: As above.
unsafe impl Sync for Retire {}

impl Job for Retire {
    fn run(this: &WithWork<Self>) {
        // SAFETY: By the type invariants.
        unsafe { this.parent.as_ref() }.retire();
    }
}

impl Retirement {
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `parent` is valid when anything is called of the value, and until [`Self::stop`].
    pub(super) unsafe fn new(parent: NonNull<Parent>) -> Result<Arc<Self>> {
        // INVARIANT: By the safety requirements.
        let retire = Ok::<_, Error>(Retire { parent });
        let init = try_pin_init!(Self {
            links <- ListLinks::new(),
            tracker <- AtomicTracker::new(),
            work <- new_with_work!(retire, "mlx5_ib_odp_retire"),
        }? Error);
        Arc::pin_init(init, GFP_KERNEL)
    }

    /// At once.
    pub(crate) fn now(&self, workers: &OwnedQueue) {
        self.work.enqueue(workers);
    }

    /// In so many milliseconds, or a little later, unless it is done anyway.
    pub(super) fn soon(&self, faults: &Faults, milliseconds: u32) {
        let delay = msecs_to_jiffies(milliseconds) + 1;
        // SAFETY: The parent stops it before the device goes.
        unsafe { self.work.enqueue_in(faults.workers(), delay) };
    }

    /// Waits for the worker; there will be none any more.
    pub(super) fn stop(&self, faults: &Faults) {
        self.work.stop();
        faults.retire_no_more(self);
    }
}
