// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory pools: objects of which some can be had when there is no memory.
//!
//! C header: [`include/linux/mempool.h`](srctree/include/linux/mempool.h)

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

use kernel::prelude::*;

use crate::bindings;

/// A pool of memory for values of type `T`.
///
/// # Invariants
///
/// `pool` is a mempool whose elements have the size of `T`, and an alignment that suffices for it.
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
    pool: NonNull<bindings::mempool_t>,
    _value: PhantomData<T>,
}

// SAFETY: The C functions do their own locking; the pool holds no values.
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
        const { assert!(size_of::<T>() != 0) };
        const { assert!(align_of::<T>() <= bindings::ARCH_KMALLOC_MINALIGN) };

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
                core::ptr::without_provenance_mut(size_of::<T>()),
                bindings::GFP_KERNEL,
                bindings::NUMA_NO_NODE,
            )
        };
        // INVARIANT: By the size just given, and the assertion.
        Ok(Self {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
            _value: PhantomData,
        })
    }

    fn alloc_by(&self, flags: bindings::gfp_t) -> Option<PoolBox<'_, MaybeUninit<T>>> {
        // SAFETY: By the type invariants.
        let value = unsafe { bindings::mempool_alloc_noprof(self.pool.as_ptr(), flags) };
        // INVARIANT: Just allocated; as long as it is not initialised, any value will do.
        Some(PoolBox {
            value: NonNull::new(value.cast())?,
            pool: self.pool,
            _pool: PhantomData,
        })
    }

    /// Memory for one value, from the reserve if there is no other. Does not sleep; `None` if
    /// the reserve is used up.
    #[inline]
    pub fn try_alloc(&self) -> Option<PoolBox<'_, MaybeUninit<T>>> {
        self.alloc_by(bindings::GFP_ATOMIC)
    }

    /// Memory for one value. Sleeps until there is some: until another value is dropped, if it
    /// takes that. Whoever holds one must not wait for another.
    #[inline]
    pub fn alloc(&self) -> PoolBox<'_, MaybeUninit<T>> {
        loop {
            // Always some, by flags that may sleep.
            if let Some(value) = self.alloc_by(bindings::GFP_KERNEL) {
                return value;
            }
        }
    }
}

impl<T> Drop for Mempool<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants. All that was allocated has borrowed the pool.
        unsafe { bindings::mempool_destroy(self.pool.as_ptr()) };
    }
}

/// A value in memory of a [`Mempool`], to which it goes back on drop.
///
/// # Invariants
///
/// `value` is valid, of `pool`, and owned.
pub struct PoolBox<'a, T> {
    value: NonNull<T>,
    pool: NonNull<bindings::mempool_t>,
    _pool: PhantomData<(&'a (), T)>,
}

// SAFETY: The value is owned; the pool does its own locking.
unsafe impl<T: Send> Send for PoolBox<'_, T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for PoolBox<'_, T> {}

impl<'a, T> PoolBox<'a, MaybeUninit<T>> {
    /// Puts a value there.
    #[inline]
    pub fn write(mut self, value: T) -> PoolBox<'a, T> {
        (*self).write(value);
        let this = core::mem::ManuallyDrop::new(self);
        // INVARIANT: Written just now, and not dropped by `this`.
        PoolBox {
            value: this.value.cast(),
            pool: this.pool,
            _pool: PhantomData,
        }
    }
}

impl<T> Deref for PoolBox<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariants.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for PoolBox<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariants.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for PoolBox<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; nobody uses the value any more.
        unsafe {
            self.value.drop_in_place();
            bindings::mempool_free(self.value.as_ptr().cast(), self.pool.as_ptr());
        }
    }
}
