// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory pools: objects of which some can be had when there is no memory.
//!
//! C header: [`include/linux/mempool.h`](srctree/include/linux/mempool.h)

use core::{
    marker::PhantomData,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    container_of,
    prelude::*,
    sync::Arc,
    workqueue::{
        HasWork,
        RawWorkItem,
        Work,
        WorkItem,
        WorkItemPointer, //
    }, //
};

use crate::bindings;

/// A pool of memory for values of type `T`.
///
/// It stays for as long as any of its values.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel_ext::mempool::Mempool;
///
/// # fn f() -> Result {
/// let pool = Mempool::<[u8; 64]>::new(4)?;
/// // In interrupt context; there is none only when four are in use already.
/// let event = pool.try_alloc().ok_or(ENOMEM)?.write([0; 64]);
/// assert_eq!(event[63], 0);
/// // Where it may sleep; there is always one, in the end.
/// let other = pool.alloc().write([1; 64]);
/// # drop((event, other));
/// # Ok(()) }
/// ```
pub struct Mempool<T> {
    pool: Arc<Pool>,
    _value: PhantomData<T>,
}

/// The pool itself.
///
/// # Invariants
///
/// `pool` is a mempool whose elements have the size of the [`Element`] for which it was made, and
/// an alignment that suffices for it.
struct Pool {
    pool: NonNull<bindings::mempool_t>,
}

// SAFETY: The C functions do their own locking; the pool holds no values.
unsafe impl Send for Pool {}
// SAFETY: As above.
unsafe impl Sync for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. Each element holds the pool until it is back.
        unsafe { bindings::mempool_destroy(self.pool.as_ptr()) };
    }
}

/// What the pool has memory for.
#[repr(C)]
struct Element<T> {
    pool: Arc<Pool>,
    value: T,
}

// SAFETY: It holds no values.
unsafe impl<T> Send for Mempool<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Mempool<T> {}

impl<T> Mempool<T> {
    /// A pool that keeps memory for `reserve` values.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EINVAL` for a reserve of none, or of more than there can be.
    pub fn new(reserve: usize) -> Result<Self> {
        const { assert!(align_of::<Element<T>>() <= bindings::ARCH_KMALLOC_MINALIGN) };

        let reserve = c_int::try_from(reserve).map_err(|_| EINVAL)?;
        if reserve == 0 {
            return Err(EINVAL);
        }
        // SAFETY: These functions go together; their data is a size.
        let pool = unsafe {
            bindings::mempool_create_node_noprof(
                reserve,
                Some(bindings::mempool_kmalloc),
                Some(bindings::mempool_kfree),
                ptr::without_provenance_mut(size_of::<Element<T>>()),
                bindings::GFP_KERNEL,
                bindings::NUMA_NO_NODE,
            )
        };
        // INVARIANT: By the size just given, and the assertion.
        let pool = Pool {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
        };
        Ok(Self {
            pool: Arc::new(pool, GFP_KERNEL)?,
            _value: PhantomData,
        })
    }

    fn alloc_by(&self, flags: bindings::gfp_t) -> Option<PoolBox<MaybeUninit<T>>> {
        // SAFETY: By the type invariants.
        let element = unsafe { bindings::mempool_alloc_noprof(self.pool.pool.as_ptr(), flags) };
        let element = NonNull::new(element.cast::<Element<MaybeUninit<T>>>())?;
        // SAFETY: Just allocated, with the size and alignment of an `Element<T>`.
        unsafe { (&raw mut (*element.as_ptr()).pool).write(self.pool.clone()) };
        // INVARIANT: As long as the value is not initialised, any will do.
        Some(PoolBox { element })
    }

    /// Memory for one value, from the reserve if there is no other. Does not sleep; `None` if
    /// the reserve is used up.
    #[inline]
    pub fn try_alloc(&self) -> Option<PoolBox<MaybeUninit<T>>> {
        self.alloc_by(bindings::GFP_ATOMIC)
    }

    /// Memory for one value. Sleeps until there is some: until another value is dropped, if it
    /// takes that. Whoever holds one must not wait for another.
    #[inline]
    pub fn alloc(&self) -> PoolBox<MaybeUninit<T>> {
        loop {
            // Always some, by flags that may sleep.
            if let Some(value) = self.alloc_by(bindings::GFP_KERNEL) {
                return value;
            }
        }
    }

    /// Waits until all of the reserve is there again.
    pub fn refill(&self) {
        // SAFETY: By the type invariants. Both change under a lock; an old value makes this come
        // back early, or once more.
        let is_short = || unsafe {
            let pool = self.pool.pool.as_ptr();
            (&raw const (*pool).curr_nr).read_volatile() < (*pool).min_nr
        };
        while is_short() {
            drop(self.alloc());
        }
    }
}

/// A value in memory of a [`Mempool`], to which it goes back on drop. Pinned, it may be a work
/// item.
///
/// # Invariants
///
/// `element` is valid, of the pool that it holds, and owned.
pub struct PoolBox<T> {
    element: NonNull<Element<T>>,
}

// SAFETY: The value is owned; the pool does its own locking.
unsafe impl<T: Send> Send for PoolBox<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for PoolBox<T> {}

impl<T> PoolBox<MaybeUninit<T>> {
    /// The value is there.
    ///
    /// # Safety
    ///
    /// It is initialised.
    unsafe fn assume_init(self) -> PoolBox<T> {
        // INVARIANT: By the safety requirements; both have the same layout.
        PoolBox {
            element: ManuallyDrop::new(self).element.cast(),
        }
    }

    /// Puts a value there.
    #[inline]
    pub fn write(mut self, value: T) -> PoolBox<T> {
        (*self).write(value);
        // SAFETY: Just written.
        unsafe { self.assume_init() }
    }

    /// Makes a value there.
    ///
    /// # Errors
    ///
    /// The initialiser's.
    #[inline]
    pub fn pin_init<E>(mut self, init: impl PinInit<T, E>) -> Result<Pin<PoolBox<T>>, E> {
        // SAFETY: The memory is valid and ours, and nobody moves what comes into it.
        unsafe {
            pin_init::raw_try_init((*self).as_mut_ptr(), init)?;
            Ok(Pin::new_unchecked(self.assume_init()))
        }
    }
}

impl<T> PoolBox<T> {
    /// The value, to be brought back by [`PoolBox::from_raw`].
    #[inline]
    pub fn into_raw(this: Pin<Self>) -> *mut T {
        // SAFETY: The value stays where it is.
        let this = ManuallyDrop::new(unsafe { Pin::into_inner_unchecked(this) });
        // SAFETY: By the type invariants.
        unsafe { &raw mut (*this.element.as_ptr()).value }
    }

    /// Back from [`PoolBox::into_raw`].
    ///
    /// # Safety
    ///
    /// `value` came from there, and is used no more.
    #[inline]
    pub unsafe fn from_raw(value: *mut T) -> Pin<Self> {
        // SAFETY: By the safety requirements it is within an element, and not null.
        let element = unsafe { NonNull::new_unchecked(container_of!(value, Element<T>, value)) };
        // INVARIANT: By the safety requirements.
        // SAFETY: It was pinned.
        unsafe { Pin::new_unchecked(Self { element }) }
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariants.
        unsafe { &self.element.as_ref().value }
    }
}

impl<T> DerefMut for PoolBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariants.
        unsafe { &mut self.element.as_mut().value }
    }
}

impl<T> Drop for PoolBox<T> {
    #[inline]
    fn drop(&mut self) {
        let element = self.element.as_ptr();
        // SAFETY: By the type invariants; nobody uses the value any more. The pool outlives its
        // memory.
        unsafe {
            (&raw mut (*element).value).drop_in_place();
            let pool = (&raw const (*element).pool).read();
            bindings::mempool_free(element.cast(), pool.pool.as_ptr());
        }
    }
}

// SAFETY: `__enqueue` uses the `work_struct` of a `Work`, which has been given this `run`.
unsafe impl<T, const ID: u64> WorkItemPointer<ID> for Pin<PoolBox<T>>
where
    T: WorkItem<ID, Pointer = Self> + HasWork<T, ID>,
{
    unsafe extern "C" fn run(work: *mut kernel::bindings::work_struct) {
        // SAFETY: The work is that of a value which `__enqueue` has given up.
        let this = unsafe { PoolBox::from_raw(T::work_container_of(work.cast::<Work<T, ID>>())) };
        T::run(this);
    }
}

// SAFETY: The work is that of the value, which is given up to whoever runs it.
unsafe impl<T, const ID: u64> RawWorkItem<ID> for Pin<PoolBox<T>>
where
    T: WorkItem<ID, Pointer = Self> + HasWork<T, ID>,
{
    type EnqueueOutput = ();

    unsafe fn __enqueue<F>(self, queue_work_on: F)
    where
        F: FnOnce(*mut kernel::bindings::work_struct) -> bool,
    {
        let value = PoolBox::into_raw(self);
        // SAFETY: The value is valid.
        let is_queued = queue_work_on(unsafe { Work::raw_get(T::raw_get_work(value)) });
        // Whoever has the box has it from nobody who has queued it.
        debug_assert!(is_queued);
    }
}
