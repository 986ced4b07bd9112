// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The page-fault event queue.

use core::ptr::NonNull;

use firmware_cmds::{Eqe, Wire};
use mlx5_odp::{Event, EventQueue};

use crate::bindings;

/// The queue, locked; possibly in interrupt context.
///
/// # Invariants
///
/// `eq` is live and locked by this thread for as long as the value.
pub(crate) struct LockedEq {
    eq: NonNull<bindings::mlx5_ib_pf_eq>,
}

/// Memory for one event.
///
/// # Invariants
///
/// Allocated from the queue's pool, and not queued.
pub(crate) struct Slot(NonNull<bindings::mlx5r_odp_event>);

impl LockedEq {
    /// # Safety
    ///
    /// `eq` is live and locked by this thread for as long as the value.
    pub(crate) unsafe fn new(eq: NonNull<bindings::mlx5_ib_pf_eq>) -> Self {
        // INVARIANT: By the caller's promise.
        Self { eq }
    }
}

impl EventQueue for LockedEq {
    type Slot = Slot;

    fn peek(&self, ahead: u32) -> Option<Eqe> {
        // SAFETY: The queue is live and locked.
        let bytes = unsafe { bindings::mlx5r_odp_eq_peek(self.eq.as_ptr(), ahead) };
        let bytes = NonNull::new(bytes.cast_mut())?.cast::<[u8; Eqe::LEN]>();
        // SAFETY: The entry has this size (asserted below and in the shim), belongs to the driver
        // until it is consumed, and has no alignment to speak of.
        let bytes = unsafe { bytes.read() };
        Eqe::parse(&bytes).ok()
    }

    fn slot(&mut self) -> Option<Slot> {
        // SAFETY: The queue is live.
        let event = unsafe { bindings::mlx5r_odp_event_alloc(self.eq.as_ptr()) };
        // INVARIANT: Just allocated.
        NonNull::new(event).map(Slot)
    }

    fn dispatch(&mut self, slot: Slot, event: Event) {
        let mut bytes = [0; Eqe::LEN];
        // Cannot fail: the length is the right one.
        let _ = event.eqe.emit(&mut bytes);
        // SAFETY: By its invariants the slot is an event that is not queued, and `bytes` has the
        // length of an entry.
        unsafe {
            bindings::mlx5r_odp_event_queue(slot.0.as_ptr(), bytes.as_ptr(), event.number);
        }
    }

    fn consumed(&self) -> u32 {
        // SAFETY: The queue is live and locked.
        unsafe { bindings::mlx5r_odp_eq_consumed(self.eq.as_ptr()) }
    }

    fn drain_later(&mut self) {
        // SAFETY: The queue is live.
        unsafe { bindings::mlx5r_odp_eq_later(self.eq.as_ptr()) };
    }

    fn consume(&mut self, count: u32, arm: bool) {
        // SAFETY: The queue is live and locked.
        unsafe { bindings::mlx5r_odp_eq_consume(self.eq.as_ptr(), count, arm) };
    }
}

const _: () = assert!(Eqe::LEN == bindings::MLX5R_ODP_EQE_SIZE as usize);
