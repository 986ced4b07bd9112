// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Process identifiers that outlive their processes.
//!
//! C header: [`include/linux/pid.h`](srctree/include/linux/pid.h)

use core::ptr::NonNull;

use kernel::{
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    task::Task,
    types::Opaque, //
};

use crate::bindings;

/// A wrapper for the kernel's `struct pid`.
///
/// # Invariants
///
/// Instances are refcounted by `get_pid` and `put_pid`.
///
/// # Examples
///
/// ```
/// use kernel::sync::aref::ARef;
/// use kernel_ext::pid::Pid;
///
/// /// Whether the process that `owner` was taken in is still there.
/// fn is_alive(owner: &ARef<Pid>) -> bool {
///     owner.task().is_some()
/// }
/// ```
#[repr(transparent)]
pub struct Pid(Opaque<bindings::pid>);

// SAFETY: `put_pid` may be called from any context.
unsafe impl Send for Pid {}
// SAFETY: All methods may be called in parallel.
unsafe impl Sync for Pid {}

// SAFETY: By the type invariants, instances are always refcounted.
unsafe impl AlwaysRefCounted for Pid {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: `self` is a valid reference.
        unsafe { bindings::get_pid(self.0.get()) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference.
        unsafe { bindings::put_pid(obj.as_ptr().cast()) };
    }
}

impl Pid {
    /// The C object.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::pid {
        self.0.get()
    }

    /// The thread group of the current task.
    pub fn current_tgid() -> Option<ARef<Self>> {
        // SAFETY: `current` is valid; the function takes a reference on what it returns.
        let ptr =
            unsafe { bindings::get_task_pid(Task::current_raw(), bindings::pid_type_PIDTYPE_TGID) };
        // SAFETY: If not null, `ptr` is valid and the reference is ours.
        NonNull::new(ptr.cast()).map(|ptr| unsafe { ARef::from_raw(ptr) })
    }

    /// The task whose thread identifier this is, if it is still there.
    pub fn task(&self) -> Option<ARef<Task>> {
        // SAFETY: `self` is a valid reference; the function takes a reference on the task.
        let ptr = unsafe { bindings::get_pid_task(self.0.get(), bindings::pid_type_PIDTYPE_PID) };
        // SAFETY: If not null, `ptr` is valid and the reference is ours.
        NonNull::new(ptr.cast()).map(|ptr| unsafe { ARef::from_raw(ptr) })
    }
}
