// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MKey and the UMRs that write its translations.
//!
//! Lock order: a chunk's lock, the pool's last UMR, [`Key::gate`].

use core::{
    ptr::{
        self,
        NonNull, //
    },
    slice,
};

use hmm_abi::{
    Device,
    LockedChunk,
    NotZapped,
    PublishError,
    Table,
    Zap, //
};
use kernel::{
    error::to_result,
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        CondVar,
        Mutex, //
    },
};
use mlx5_odp::{
    key::{
        self,
        Gate,
        UmrError, //
    },
    xlt, //
};

use crate::{
    bindings,
    eq::Faults, //
};

/// What one UMR writes at most.
// CAST: widens.
const UMR_BYTES: usize = bindings::MLX5R_ODP_UMR_BYTES as usize;

/// The MKey of a mirror.
///
/// # Invariants
///
/// - `mr` is null, or the MR of the mirror, which outlives it.
/// - `faults` outlives the value.
#[pin_data]
pub(crate) struct Key {
    faults: NonNull<Faults>,
    mr: Atomic<*mut bindings::mlx5_ib_mr>,
    #[pin]
    gate: Mutex<Gate>,
    #[pin]
    changed: CondVar,
}

// SAFETY: The C objects may be used by any thread.
unsafe impl Send for Key {}
// SAFETY: As above; what changes does its own locking.
unsafe impl Sync for Key {}

impl Key {
    /// The key of a mirror whose MR is not there yet.
    ///
    /// # Safety
    ///
    /// `faults` outlives the value.
    pub(crate) unsafe fn new(faults: &Faults) -> impl PinInit<Self> {
        let faults = NonNull::from(faults);
        // INVARIANT: There is none; the rest by the safety requirements.
        pin_init!(Self {
            faults,
            mr: Atomic::new(ptr::null_mut()),
            gate <- new_mutex!(Gate::Gone, "mlx5_ib_odp_gate"),
            changed <- new_condvar!(),
        })
    }

    /// The MR is there: UMRs may name its MKey.
    ///
    /// # Safety
    ///
    /// `mr` is the mirror's MR, and outlives it.
    pub(crate) unsafe fn open(&self, mr: NonNull<bindings::mlx5_ib_mr>) {
        // INVARIANT: By the safety requirements.
        self.mr.store(mr.as_ptr(), Release);
        key::open(self);
    }

    /// What its device has for page faults.
    pub(crate) fn faults(&self) -> &Faults {
        // SAFETY: By the type invariants.
        unsafe { self.faults.as_ref() }
    }

    fn mr(&self) -> Option<NonNull<bindings::mlx5_ib_mr>> {
        NonNull::new(self.mr.load(Acquire))
    }

    /// Counts pages of 4 KiB whose translation was taken back.
    pub(crate) fn count_invalidated(&self, base_pages: u64) {
        if let (Some(mr), Ok(pages @ 1..)) = (self.mr(), i64::try_from(base_pages)) {
            // SAFETY: By the type invariants.
            unsafe { bindings::mlx5r_odp_count_invalidations(mr.as_ptr(), pages) };
        }
    }

    /// Tells the administrator what must not be lost.
    pub(crate) fn error(&self, what: &CStr) {
        if let Some(mr) = self.mr() {
            // SAFETY: By the type invariants; `what` is a string.
            unsafe { bindings::mlx5r_odp_error(mr.as_ptr(), what.as_char_ptr()) };
        }
    }
}

impl mlx5_odp::Key for Key {
    type Umr = Umr;
    type Error = Error;

    fn umr(&self) -> Option<Umr> {
        self.mr()?;
        Some(Umr::get(self.faults()))
    }

    fn put(&self, umr: Umr) {
        drop(umr);
    }

    fn gate<R>(&self, mut f: impl FnMut(&mut Gate) -> Option<R>) -> R {
        let mut gate = self.gate.lock();
        loop {
            let before = *gate;
            let result = f(&mut gate);
            if *gate != before {
                self.changed.notify_all();
            }
            match result {
                Some(result) => return result,
                None => self.changed.wait(&mut gate),
            }
        }
    }

    fn post(&self, umr: &mut Umr, first: usize, mtts: usize, blank: bool) -> Result {
        let mr = self.mr().ok_or(EINVAL)?;
        let (first, len) = (first * xlt::MTT_LEN, mtts * xlt::MTT_LEN);
        // SAFETY: By the type invariants.
        unsafe { umr.post(mr, first, len, blank) }
    }

    fn wait(&self, umr: &Umr) -> Result<(), UmrError> {
        let mr = self.mr().ok_or(UmrError::Failed)?;
        // SAFETY: By the type invariants.
        unsafe { umr.wait(mr) }
    }

    fn revoke_mkey(&self) -> Result {
        let mr = self.mr().ok_or(EINVAL)?;
        // SAFETY: By the type invariants.
        to_result(unsafe { bindings::mlx5r_umr_revoke_mr(mr.as_ptr()) })
    }
}

/// A UMR of the pool, which goes back on drop.
///
/// # Invariants
///
/// `umr` is ours, and not under way but for as long as its [`Ticket`], or the function that posted
/// it, waits for it.
pub(crate) struct Umr {
    umr: NonNull<bindings::mlx5r_odp_umr>,
    is_last: bool,
}

impl Umr {
    /// Any if there is one, else the last. Both may be held under a chunk's lock.
    pub(crate) fn get(faults: &Faults) -> Self {
        let umrs = faults.umrs();
        // SAFETY: They are there for as long as the device has MRs, and who posts one has an MR.
        let umr = unsafe { bindings::mlx5r_odp_umr_get(umrs) };
        let is_last = umr.is_null();
        let umr = match is_last {
            // SAFETY: As above. It waits for whoever has it, and never fails.
            true => unsafe { bindings::mlx5r_odp_umr_get_last(umrs) },
            false => umr,
        };
        // INVARIANT: Just got.
        Self {
            // SAFETY: Not null, as just said.
            umr: unsafe { NonNull::new_unchecked(umr) },
            is_last,
        }
    }

    /// Posts it: it writes its first `len` bytes into the table of `mr`, from byte `first` on; or
    /// MTTs that are not present.
    ///
    /// # Errors
    ///
    /// Those of `mlx5r_umr_post`.
    ///
    /// # Safety
    ///
    /// It is not under way, and the MKey of `mr` is there until [`Umr::wait`] has returned, which has
    /// to follow.
    pub(crate) unsafe fn post(
        &mut self,
        mr: NonNull<bindings::mlx5_ib_mr>,
        first: usize,
        len: usize,
        is_blank: bool,
    ) -> Result {
        let first = u64::try_from(first)?;
        let len = u32::try_from(len)?;
        // SAFETY: The UMR is ours; the rest by the safety requirements.
        to_result(unsafe {
            bindings::mlx5r_odp_umr_post(self.umr.as_ptr(), mr.as_ptr(), first, len, is_blank)
        })
    }

    /// Waits for it.
    ///
    /// # Errors
    ///
    /// See [`UmrError`].
    ///
    /// # Safety
    ///
    /// It was posted, about `mr`.
    pub(crate) unsafe fn wait(&self, mr: NonNull<bindings::mlx5_ib_mr>) -> Result<(), UmrError> {
        // SAFETY: The UMR is ours; the rest by the safety requirements.
        let waited = unsafe { bindings::mlx5r_odp_umr_wait(self.umr.as_ptr(), mr.as_ptr()) };
        to_result(waited).map_err(|error| match error {
            e if e == EAGAIN => UmrError::Flushed,
            _ => UmrError::Failed,
        })
    }
}

impl Drop for Umr {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_odp_umr_put(self.umr.as_ptr()) };
    }
}

impl AsMut<[u8]> for Umr {
    /// What it writes.
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: The UMR is ours, and has so many bytes.
        unsafe {
            let bytes = bindings::mlx5r_odp_umr_xlt(self.umr.as_ptr());
            slice::from_raw_parts_mut(bytes.cast(), UMR_BYTES)
        }
    }
}

impl key::Umr for Umr {
    fn mtts(&mut self) -> &mut [[u8; xlt::MTT_LEN]] {
        let bytes = self.as_mut();
        // SAFETY: Plain bytes, and as many.
        unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / xlt::MTT_LEN) }
    }

    fn is_last(&self) -> bool {
        self.is_last
    }
}

/// A zap under way.
pub(crate) type Ticket = key::Ticket<Umr>;

// SAFETY: A UMR may be posted and waited for by any thread.
unsafe impl Send for Umr {}

impl Device for Key {
    const GRANULE: usize = xlt::UMR_BLOCK;
    const LATE: u32 = mlx5_odp::LATE;
    type Ticket = Ticket;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        key::publish(self, table)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Ticket>, NotZapped> {
        key::zap(self, table)
    }

    fn settle(&self, ticket: Ticket) -> Result<(), NotZapped> {
        key::settle(self, ticket)
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        key::revoke(self).map_err(|_| NotZapped)
    }

    fn now(&self) -> u32 {
        // SAFETY: It reads a counter.
        unsafe { bindings::mlx5r_odp_now() }
    }

    fn moment(&self) -> u32 {
        self.faults().moment()
    }
}
