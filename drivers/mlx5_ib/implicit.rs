// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Implicit MRs: a parent, whose table of KSMs leads to its children.
//!
//! Lock order: the UMR pool's last UMR, [`Parent::table`], then what posting a UMR takes. Under the table
//! nothing is allocated and nobody waits who allocates: reclaim invalidates, and an invalidation may
//! wait for the last UMR, whose owner may wait for the table.

mod children;
mod retirement;

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    mm::Mm,
    new_condvar, new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        CondVar,
        Mutex, //
    },
    types::Opaque,
};
use mlx5_odp::{
    implicit::{
        self,
        Again,
        ChildIndex,
        Family,
        Layout,
        Parent as _, //
    },
    xlt,
    NotIn, //
};

use self::children::{
    not_in,
    Table,
    NO_CHILD, //
};
pub(crate) use self::retirement::Retirement;
use crate::{
    bindings,
    eq::Faults,
    mirror::{
        Umem,
        PAGE, //
    },
    region::Mr, //
};

/// How the address space of a process of this kind is cut into children; `None` if it is too long.
pub(crate) fn layout() -> Option<Layout> {
    // SAFETY: A pure function.
    let task_size = unsafe { bindings::mlx5r_odp_task_size() };
    Layout::of(task_size, PAGE)
}

/// What an implicit MR has for a mirror: all of a process's memory, and no page of it.
///
/// # Invariants
///
/// - `mr` is null, or the MR of the parent, which outlives it.
/// - `faults` outlives the value.
#[repr(C)]
#[pin_data]
pub(crate) struct Parent {
    /// The first field: `mr.c` has its address for that of the whole.
    #[pin]
    raw: Opaque<bindings::ib_umem_odp>,
    dev: NonNull<bindings::mlx5_ib_dev>,
    faults: NonNull<Faults>,
    retirement: Arc<Retirement>,
    mr: Atomic<*mut bindings::mlx5_ib_mr>,
    mm: ARef<Mm>,
    layout: Layout,
    is_writable: bool,
    memory_scheme: bool,
    #[pin]
    table: Mutex<Table>,
    /// A slot is not busy any more.
    #[pin]
    changed: CondVar,
}

// SAFETY: The C objects may be used by any thread.
unsafe impl Send for Parent {}
// SAFETY: What changes does its own locking; `raw` is for C.
unsafe impl Sync for Parent {}

impl Parent {
    /// For the current process, an MR with these access flags.
    ///
    /// # Errors
    ///
    /// `EINVAL` for huge pages, `EOPNOTSUPP` if there can be no implicit MRs, `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `dev` outlives the value, and its page-fault EQ was created.
    unsafe fn new(dev: NonNull<bindings::mlx5_ib_dev>, access: c_int) -> Result<Pin<KBox<Self>>> {
        let current = kernel::current!();
        let mm: &Mm = current.mm().ok_or(EINVAL)?;
        let layout = layout().ok_or(EOPNOTSUPP)?;
        // SAFETY: The device is valid, the others are pure functions.
        let (can_load, memory_scheme, is_hugetlb, is_writable) = unsafe {
            let child = layout.entries() << PAGE_SHIFT;
            (
                bindings::mlx5r_odp_can_load(dev.as_ptr(), child),
                bindings::mlx5r_odp_memory_scheme(dev.as_ptr()),
                bindings::ib_access_page_shift(access) != PAGE,
                bindings::ib_access_writable(access),
            )
        };
        if !can_load {
            return Err(EOPNOTSUPP);
        }
        if is_hugetlb {
            return Err(EINVAL);
        }
        let mm = ARef::from(mm);
        let umem = Umem {
            dev,
            mm: mm.as_raw(),
            address: 0,
            length: 0,
            span: 0..0,
            entry_shift: PAGE,
            is_writable,
            is_implicit: true,
        };

        // SAFETY: By the safety requirements.
        let faults = NonNull::from(unsafe { Faults::of(dev) });
        // INVARIANT: There is no MR; what the device has for faults goes with the device.
        KBox::pin_init(
            try_pin_init!(&this in Self {
                raw <- umem.init(),
                dev,
                faults,
                // SAFETY: `put` stops it, and nobody calls for it before all is there.
                retirement: unsafe { Retirement::new(this) }?,
                mr: Atomic::new(ptr::null_mut()),
                mm,
                layout,
                is_writable,
                memory_scheme,
                table <- new_mutex!(Table::new(), "mlx5_ib_odp_children"),
                changed <- new_condvar!(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The C object, which from now on is for `mr.c` to put.
    fn into_raw(this: Pin<KBox<Self>>) -> *mut bindings::ib_umem_odp {
        // SAFETY: C does not move it.
        KBox::into_raw(unsafe { Pin::into_inner_unchecked(this) }).cast()
    }

    /// Obtains a reference from the umem of an implicit MR.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`] and is not put during `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::ib_umem_odp) -> &'a Self {
        // SAFETY: By the safety requirements; it is the first field of `Self`.
        unsafe { &*ptr.cast() }
    }

    /// Registers an implicit MR for the current process.
    ///
    /// # Errors
    ///
    /// Those of [`Self::new`], of commands and of UMRs.
    ///
    /// # Safety
    ///
    /// `pd` is live, of the device `dev`, whose page-fault EQ was created.
    pub(crate) unsafe fn register(
        dev: NonNull<bindings::mlx5_ib_dev>,
        pd: *mut bindings::ib_pd,
        access: c_int,
    ) -> Result<NonNull<bindings::mlx5_ib_mr>> {
        // SAFETY: By the safety requirements.
        let parent = unsafe { Self::new(dev, access) }?;
        let entries = c_int::try_from(parent.layout.count())?;
        let raw = Self::into_raw(parent);
        // SAFETY: The PD is live.
        let mr = unsafe { bindings::mlx5r_odp_alloc_parent(pd, access, raw, entries) };
        let mr = match kernel::error::from_err_ptr(mr).map(NonNull::new) {
            Ok(Some(mr)) => mr,
            other => {
                // SAFETY: Nobody knows it.
                unsafe { Self::put(raw) };
                return Err(other.err().unwrap_or(ENOMEM));
            }
        };
        // SAFETY: Just made; from now on the MR puts it.
        let parent = unsafe { Self::from_raw(raw) };
        // INVARIANT: As just said.
        parent.mr.store(mr.as_ptr(), Release);
        match parent.enable(mr) {
            Ok(()) => Ok(mr),
            Err(error) => {
                // SAFETY: Nobody else knows the MR.
                let _ = unsafe { bindings::mlx5r_odp_dereg(mr.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Makes a new MR usable, with no child.
    fn enable(&self, mr: NonNull<bindings::mlx5_ib_mr>) -> Result {
        if self.memory_scheme {
            // SAFETY: The MR is live.
            kernel::error::to_result(unsafe { bindings::mlx5r_odp_make_null_key(mr.as_ptr()) })?;
        }
        let entries = c_int::try_from(self.layout.count())?;
        let shift = c_int::try_from(self.layout.child_shift())?;
        // SAFETY: The MR is live, and new.
        unsafe {
            kernel::error::to_result(bindings::mlx5r_odp_enable_parent(
                mr.as_ptr(),
                entries,
                shift,
            ))?;
            kernel::error::to_result(bindings::mlx5r_odp_make_known(mr.as_ptr()))
        }
    }

    /// Destroys the children, and frees the parent.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`]; nobody uses it any more but its children.
    pub(crate) unsafe fn put(ptr: *mut bindings::ib_umem_odp) {
        // SAFETY: By the safety requirements.
        let parent = unsafe { Pin::new_unchecked(KBox::<Self>::from_raw(ptr.cast())) };
        // Children that become empty from now on are not retired.
        parent.retirement.stop(parent.faults());

        let next = || {
            let table = parent.table.lock();
            let at = table.children.keys().next().copied();
            at.map(ChildIndex)
        };
        while let Some(at) = next() {
            parent.destroy(at);
            let node = parent.table.lock().children.remove_node(&at.0);
            drop(node);
        }
        let has_lost_one = parent.table.lock().has_lost_one;
        if has_lost_one {
            // What is left of it refers to the parent.
            core::mem::forget(parent);
        }
    }

    /// Whether the registration allows the device to write.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// What the device has for page faults.
    fn faults(&self) -> &Faults {
        // SAFETY: By the type invariants.
        unsafe { self.faults.as_ref() }
    }

    fn mr(&self) -> *mut bindings::mlx5_ib_mr {
        self.mr.load(Acquire)
    }

    /// Enters a child.
    ///
    /// # Errors
    ///
    /// [`NotIn`].
    pub(crate) fn child(&self, at: ChildIndex) -> Result<Mr<'_>, NotIn> {
        implicit::enter(self, at).map_err(not_in)?;
        let mr = self.table.lock().mr_of(at).ok_or(NotIn::Device)?;
        // SAFETY: It stays until it is left, which the value does.
        Ok(unsafe { Mr::enter(mr, self, at) })
    }

    /// Leaves a child.
    pub(crate) fn leave(&self, at: ChildIndex) {
        implicit::leave(self, at);
    }

    /// A child has nothing in its mirror.
    pub(crate) fn emptied(&self, at: ChildIndex) {
        self.retire_later(at);
    }

    /// Retires children: what a worker does.
    pub(crate) fn retire(&self) {
        let mr = self.mr();
        // SAFETY: By the type invariants; whoever puts the parent waits for the worker.
        if mr.is_null() || !unsafe { bindings::mlx5r_odp_hold_mr(mr) } {
            return;
        }
        let mut first = core::mem::replace(&mut self.table.lock().idle, NO_CHILD);
        let mut again = Again::default();
        while first != NO_CHILD {
            let at = ChildIndex(first);
            first = match self.table.lock().children.get_mut(&at.0) {
                Some(child) => child.next_idle.take().unwrap_or(NO_CHILD),
                None => NO_CHILD,
            };
            if again.add(implicit::retire(self, at)) {
                self.push_idle(at);
            }
        }
        if let Some(time) = again.time {
            self.retirement.soon(self.faults(), time);
        }
        if (again.event).is_some_and(|since| !self.faults().retire_after(&self.retirement, since)) {
            self.retire_soon();
        }
        // SAFETY: Held above.
        unsafe { bindings::mlx5r_odp_put_mr(mr) };
    }

    /// Has [`Parent::retire`] called.
    fn retire_soon(&self) {
        self.retirement.now(self.faults().workers());
    }

    /// Adds a child to those to be retired, unless it is one of them, or gone.
    fn push_idle(&self, at: ChildIndex) {
        let mut table = self.table.lock();
        let table = &mut *table;
        if let Some(child) = table.children.get_mut(&at.0) {
            if child.next_idle.is_none() {
                child.next_idle = Some(core::mem::replace(&mut table.idle, at.0));
            }
        }
    }

    /// Fills a table in which no child is, from child `first` on.
    pub(crate) fn fill_blank(&self, first: ChildIndex, out: &mut [u8]) {
        xlt::fill_ksms(out, &self.layout, first, self.null_key(), |_| None);
    }
}
