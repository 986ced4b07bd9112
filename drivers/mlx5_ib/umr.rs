// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MKey and the UMRs that write its translations.
//!
//! Lock order: a chunk's lock, the pool's last UMR, [`Key::gate`].

use core::{
    mem::ManuallyDrop,
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
use mlx5_odp::xlt;

use crate::bindings;

/// What one UMR writes at most.
// CAST: widens.
const UMR_BYTES: usize = bindings::MLX5R_ODP_UMR_BYTES as usize;

/// How often a UMR that was flushed because of another one is posted again.
pub(crate) const RETRIES: u32 = 3;

/// Whether the device may use the MKey, and UMRs may name it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Yes.
    Open,
    /// A UMR that revokes it is under way, or the command that destroys it: what was posted before
    /// comes before it.
    Revoking,
    /// No.
    Gone,
}

/// The MKey of a mirror.
///
/// # Invariants
///
/// `mr` is null, or the MR of the mirror, which outlives it.
#[pin_data]
pub(crate) struct Key {
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
    pub(crate) fn new() -> impl PinInit<Self> {
        // INVARIANT: There is none.
        pin_init!(Self {
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
        *self.gate.lock() = Gate::Open;
    }

    /// The MKey is about to be destroyed: revokes it, and even if that fails no UMR names it until
    /// [`Key::closed`].
    pub(crate) fn close(&self) {
        // If it cannot be revoked, it may still be destroyed.
        let _ = self.revoke_or(Gate::Revoking);
    }

    /// The MKey was destroyed, or could not be.
    pub(crate) fn closed(&self, destroyed: bool) {
        let mut gate = self.gate.lock();
        *gate = match *gate {
            Gate::Revoking if !destroyed => Gate::Open,
            _ => Gate::Gone,
        };
        drop(gate);
        self.changed.notify_all();
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

    /// A UMR; `None` if there is no MR yet.
    fn umr(&self) -> Option<Umr> {
        // SAFETY: By the type invariants.
        Some(unsafe { Umr::get(self.mr()?) })
    }

    /// Posts the UMR that writes `table`. `false` if the MKey is gone; if it is being revoked,
    /// waits for that.
    ///
    /// # Errors
    ///
    /// Those of `mlx5r_umr_post`.
    fn post<L: LockedChunk>(&self, umr: &mut Umr, table: &Table<'_, L>) -> Result<bool> {
        let is_blank = table.is_blank();
        let mtts = match is_blank {
            true => xlt::len(table),
            false => xlt::fill(table, umr.mtts()).ok_or(EINVAL)?,
        };
        let mr = self.mr().ok_or(EINVAL)?;
        let mut gate = self.gate.lock();
        while *gate == Gate::Revoking {
            self.changed.wait(&mut gate);
        }
        if *gate == Gate::Gone {
            return Ok(false);
        }
        let (first, len) = (table.first().0 * xlt::MTT_LEN, mtts * xlt::MTT_LEN);
        // SAFETY: By the type invariants.
        unsafe { umr.post(mr, first, len, is_blank) }?;
        Ok(true)
    }

    /// Waits for a UMR that was posted.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it was flushed because of another one; `EFAULT` if it failed.
    fn wait(&self, umr: &Umr) -> Result {
        let mr = self.mr().ok_or(EINVAL)?;
        // SAFETY: By the type invariants.
        unsafe { umr.wait(mr) }
    }

    /// Revokes the MKey, once.
    ///
    /// # Errors
    ///
    /// Those of `mlx5r_umr_revoke_mr`; UMRs may name it again then.
    pub(crate) fn revoke(&self) -> Result {
        self.revoke_or(Gate::Open)
    }

    /// Revokes the MKey, once; `otherwise` is what the gate is if that fails.
    fn revoke_or(&self, otherwise: Gate) -> Result {
        let mut gate = self.gate.lock();
        while *gate == Gate::Revoking {
            self.changed.wait(&mut gate);
        }
        if *gate == Gate::Gone {
            return Ok(());
        }
        let mr = self.mr().ok_or(EINVAL)?;
        *gate = Gate::Revoking;
        drop(gate);
        // SAFETY: By the type invariants.
        let revoked =
            kernel::error::to_result(unsafe { bindings::mlx5r_umr_revoke_mr(mr.as_ptr()) });
        *self.gate.lock() = match revoked {
            Ok(()) => Gate::Gone,
            Err(_) => otherwise,
        };
        self.changed.notify_all();
        revoked
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
    ///
    /// # Safety
    ///
    /// `mr` is live, and an ODP MR; its device outlives the value.
    pub(crate) unsafe fn get(mr: NonNull<bindings::mlx5_ib_mr>) -> Self {
        // SAFETY: By the safety requirements. The second waits for whoever has it, and never fails.
        unsafe {
            let umrs = bindings::mlx5r_odp_umrs_of(mr.as_ptr());
            match NonNull::new(bindings::mlx5r_odp_umr_get(umrs)) {
                Some(umr) => Self {
                    umr,
                    is_last: false,
                },
                None => Self {
                    umr: NonNull::new_unchecked(bindings::mlx5r_odp_umr_get_last(umrs)),
                    is_last: true,
                },
            }
        }
    }

    /// What it writes.
    pub(crate) fn xlt(&mut self) -> &mut [u8] {
        // SAFETY: The UMR is ours, and has so many bytes.
        unsafe {
            let bytes = bindings::mlx5r_odp_umr_xlt(self.umr.as_ptr());
            slice::from_raw_parts_mut(bytes.cast(), UMR_BYTES)
        }
    }

    fn mtts(&mut self) -> &mut [[u8; xlt::MTT_LEN]] {
        let bytes = self.xlt();
        // SAFETY: Plain bytes, and as many.
        unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / xlt::MTT_LEN) }
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
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_umr_post(self.umr.as_ptr(), mr.as_ptr(), first, len, is_blank)
        })
    }

    /// Waits for it.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it was flushed because of another one; `EFAULT` if it failed.
    ///
    /// # Safety
    ///
    /// It was posted, about `mr`.
    pub(crate) unsafe fn wait(&self, mr: NonNull<bindings::mlx5_ib_mr>) -> Result {
        // SAFETY: The UMR is ours; the rest by the safety requirements.
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_umr_wait(self.umr.as_ptr(), mr.as_ptr())
        })
    }
}

impl Drop for Umr {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5r_odp_umr_put(self.umr.as_ptr()) };
    }
}

/// A zap under way; nothing if it is done. It has to be settled: a drop would lose the UMR.
pub(crate) struct Ticket(Option<ManuallyDrop<Umr>>);

// SAFETY: A UMR may be waited for by any thread.
unsafe impl Send for Ticket {}

impl Device for Key {
    const GRANULE: usize = xlt::UMR_BLOCK;
    const LATE: u32 = mlx5_odp::LATE;
    type Ticket = Ticket;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        let mut umr = self.umr().ok_or(PublishError::Gone)?;
        for _ in 0..=RETRIES {
            match self.post(&mut umr, table) {
                Ok(true) => {}
                Ok(false) => return Err(PublishError::Gone),
                Err(_) => return Err(PublishError::Failed),
            }
            match self.wait(&umr) {
                Ok(()) => return Ok(()),
                Err(e) if e == EAGAIN => {}
                Err(_) => return Err(PublishError::Failed),
            }
        }
        Err(PublishError::Again)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Ticket>, NotZapped> {
        let Some(mut umr) = self.umr() else {
            return Ok(Zap::Gone);
        };
        match self.post(&mut umr, table) {
            Ok(true) => {}
            Ok(false) => return Ok(Zap::Gone),
            Err(_) => return Err(NotZapped),
        }
        if umr.is_last {
            // Others wait for it, and whoever waits for this zap may wait for them.
            self.wait(&umr).map_err(|_| NotZapped)?;
            return Ok(Zap::Posted(Ticket(None)));
        }
        Ok(Zap::Posted(Ticket(Some(ManuallyDrop::new(umr)))))
    }

    fn settle(&self, ticket: Ticket) -> Result<(), NotZapped> {
        match ticket.0 {
            Some(umr) => self
                .wait(&ManuallyDrop::into_inner(umr))
                .map_err(|_| NotZapped),
            None => Ok(()),
        }
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.revoke().map_err(|_| NotZapped)
    }

    fn now(&self) -> u32 {
        // SAFETY: It reads a counter.
        unsafe { bindings::mlx5r_odp_now() }
    }

    fn moment(&self) -> u32 {
        match self.mr() {
            // SAFETY: By the type invariants.
            Some(mr) => unsafe { bindings::mlx5r_odp_moment(mr.as_ptr()) },
            None => 0,
        }
    }
}
