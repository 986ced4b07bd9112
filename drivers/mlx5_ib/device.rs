// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device, as the fault pipeline sees it.

use core::ptr::NonNull;

use firmware_cmds::{Mkey, PageFaultResume, WqeFault};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::global_lock;
use kernel::time::delay::fsleep;
use kernel::time::Delta;
use mlx5_odp::{Driver, NoRegion, PageIndex, PageRun, Pressure, Repeats, Report, Unsupported};

use crate::bindings;
use crate::queue::Qp;
use crate::region::HeldMr;

global_lock! {
    /// Faults that lead nowhere. One table serves all devices: MKeys that look the same share an
    /// entry, which costs one of them a little of its patience at worst.
    // SAFETY: `mlx5_ib_odp_init` initialises it, before any device exists.
    pub(crate) unsafe(uninit) static REPEATS: Mutex<Repeats> = Repeats::new();
}

/// Whether something is noted in it. A fault that gets on need not take the lock otherwise.
static REPEATING: Atomic<bool> = Atomic::new(false);

/// Faults of all devices that went back unserved.
static GIVEN_BACK: Atomic<u32> = Atomic::new(0);

/// A device.
///
/// # Invariants
///
/// `dev` is live for as long as the value.
pub(crate) struct Device {
    dev: NonNull<bindings::mlx5_ib_dev>,
}

impl Device {
    /// # Safety
    ///
    /// `dev` is live for as long as the value.
    pub(crate) unsafe fn new(dev: NonNull<bindings::mlx5_ib_dev>) -> Self {
        // INVARIANT: By the caller's promise.
        Self { dev }
    }

    fn warn(&self, what: &CStr, value: u32) {
        // SAFETY: The device is live, and `what` a string.
        unsafe { bindings::mlx5r_odp_warn(self.dev.as_ptr(), what.as_char_ptr(), value) };
    }
}

impl Driver for Device {
    type Region<'a> = HeldMr<'a>;
    type Queue<'a> = Qp<'a>;

    fn region(&self, mkey: Mkey) -> Result<HeldMr<'_>, NoRegion> {
        let mut mr = core::ptr::null_mut();
        // SAFETY: The device is live.
        let kind = unsafe { bindings::mlx5r_odp_get_mr(self.dev.as_ptr(), mkey.get(), &mut mr) };

        match kind {
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_MR => {
                let mr = NonNull::new(mr).ok_or(NoRegion::NotOdp)?;
                // SAFETY: The call found an explicit ODP MR and took a reference for us; the
                // value borrows the device.
                unsafe { HeldMr::adopt(mr) }.map_err(|_| NoRegion::NotOdp)
            }
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_STALE => Err(NoRegion::Stale),
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_INDIRECT => {
                Err(NoRegion::Unsupported(Unsupported::IndirectKey))
            }
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_OTHER => {
                Err(NoRegion::Unsupported(Unsupported::RegionKind))
            }
            _ => Err(NoRegion::NotOdp),
        }
    }

    fn queue(&self, fault: &WqeFault) -> Option<Qp<'_>> {
        // SAFETY: The device is live, and the value borrows it.
        unsafe { Qp::find(self.dev, fault.wq_number.into()) }
    }

    fn end_of_list(&self) -> Mkey {
        // SAFETY: The device is live.
        Mkey::new(unsafe { bindings::mlx5r_odp_terminate_key(self.dev.as_ptr()) })
    }

    fn resume(&self, command: &PageFaultResume) {
        let bytes = command.to_bytes();
        // CAST: 16.
        let len = PageFaultResume::LEN as i32;
        // SAFETY: The device is live, and `bytes` is as long as is said.
        let result = unsafe { bindings::mlx5r_odp_resume(self.dev.as_ptr(), bytes.as_ptr(), len) };
        if result != 0 {
            // CAST: an index for the log.
            self.warn(c"a page fault could not be resumed", result.unsigned_abs());
        }
    }

    fn back_off(&self, why: Pressure, attempt: u32) {
        // A race is over as soon as it is noticed; want of memory is not.
        if why == Pressure::Memory {
            fsleep(Delta::from_millis(4 << attempt.min(4)));
        }
    }

    fn gave_back(&self, why: Pressure) {
        let what = match why {
            Pressure::Race => c"page fault handed back to the device: invalidations, total",
            Pressure::Held => c"page fault handed back to the device: a held range, total",
            Pressure::Memory => c"page fault handed back to the device: no memory, total",
        };
        self.warn(what, GIVEN_BACK.fetch_add(1, Relaxed).wrapping_add(1));
    }

    fn repeats(&self, mkey: Mkey, page: PageIndex) -> bool {
        // SAFETY: Always.
        let now = unsafe { bindings::mlx5r_odp_now_ms() };
        let mut repeats = REPEATS.lock();
        let certain = repeats.note(mkey, page, now);
        REPEATING.store(!repeats.is_empty(), Relaxed);
        certain
    }

    fn progressed(&self, mkey: Mkey, pages: PageRun) {
        // What another fault notes at this moment, the next one that gets on forgets.
        if REPEATING.load(Relaxed) {
            let mut repeats = REPEATS.lock();
            repeats.forget(mkey, pages);
            REPEATING.store(!repeats.is_empty(), Relaxed);
        }
    }

    fn report(&self, report: Report) {
        match report {
            Report::Unsupported(what) => self.warn(
                match what {
                    Unsupported::SharedReceiveQueue => {
                        c"page faults of shared receive queues are not supported"
                    }
                    Unsupported::IndirectKey => c"page faults of indirect keys are not supported",
                    Unsupported::RegionKind => {
                        c"page faults of implicit and dma-buf regions are not supported"
                    }
                    Unsupported::Transport => {
                        c"page faults of this type of queue pair are not supported"
                    }
                    Unsupported::Signature => {
                        c"page faults of WQEs with signatures are not supported"
                    }
                },
                0,
            ),
            Report::Event(_) => self.warn(c"page-fault event that cannot be decoded", 0),
            Report::Wqe(_) => self.warn(c"WQE that cannot be decoded", 0),
            Report::Update(mkey) => self.warn(c"translations could not be updated", mkey.get()),
        }
    }
}
