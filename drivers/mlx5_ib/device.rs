// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device, as the fault pipeline sees it.

use core::{cell::Cell, ptr::NonNull};

use firmware_cmds::{Mkey, PageFault, PageFaultResume, WqeFault};
use kernel::prelude::*;
use kernel::time::delay::fsleep;
use kernel::time::Delta;
use kernel_ext::mempool::PoolBox;
use mlx5_odp::{Driver, Found, FoundBy, NoQuery, NoRegion, NotIn, Pressure, Report, Unsupported};

use crate::bindings;
use crate::buffer::BufferMr;
use crate::event::Event;
use crate::indirect::{IndirectKey, Query};
use crate::queue::WorkQueue;
use crate::region::{ImplicitMr, Mr};

/// A device, and the event of it that is being served.
///
/// # Invariants
///
/// `dev` is live for as long as the value.
pub(crate) struct Device {
    dev: NonNull<bindings::mlx5_ib_dev>,
    /// `None` if there is none, or the command that answers it has it.
    event: Cell<Option<Pin<PoolBox<Event>>>>,
}

impl Device {
    /// The device of an event.
    pub(crate) fn new(event: Pin<PoolBox<Event>>) -> Self {
        // INVARIANT: Nobody serves an event of a device that is gone.
        Self {
            dev: event.dev(),
            event: Cell::new(Some(event)),
        }
    }

    /// Outside of any event.
    ///
    /// # Safety
    ///
    /// `dev` is live for as long as the value.
    pub(crate) unsafe fn without_event(dev: NonNull<bindings::mlx5_ib_dev>) -> Self {
        // INVARIANT: By the caller's promise.
        Self {
            dev,
            event: Cell::new(None),
        }
    }

    /// The event, if it was not answered.
    pub(crate) fn into_event(self) -> Option<Pin<PoolBox<Event>>> {
        self.event.into_inner()
    }

    fn warn(&self, what: &CStr, value: u32) {
        // SAFETY: The device is live, and `what` a string.
        unsafe { bindings::mlx5r_odp_warn(self.dev.as_ptr(), what.as_char_ptr(), value) };
    }
}

impl Driver for Device {
    type Region<'a> = Mr<'a>;
    type Implicit<'a> = ImplicitMr<'a>;
    type Buffer<'a> = BufferMr<'a>;
    type Queue<'a> = WorkQueue<'a>;
    type Query = Query;

    fn region(&self, mkey: Mkey) -> Result<FoundBy<'_, Self>, NoRegion> {
        let mut mr = core::ptr::null_mut();
        // SAFETY: The device is live.
        let kind = unsafe { bindings::mlx5r_odp_get_mr(self.dev.as_ptr(), mkey.get(), &mut mr) };

        match kind {
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_MR => {
                let mr = NonNull::new(mr).ok_or(NoRegion::NotOdp)?;
                // SAFETY: The call found an explicit ODP MR and took a reference for us; the
                // value borrows the device.
                Ok(Found::Region(unsafe { Mr::adopt(mr) }))
            }
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_IMPLICIT => {
                let mr = NonNull::new(mr).ok_or(NoRegion::NotOdp)?;
                // SAFETY: As above, with an implicit one.
                Ok(Found::Implicit(unsafe { ImplicitMr::adopt(mr) }))
            }
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_DMABUF => {
                let mr = NonNull::new(mr).ok_or(NoRegion::NotOdp)?;
                // SAFETY: As above, with one of a dma-buf.
                Ok(Found::Buffer(unsafe { BufferMr::adopt(mr) }))
            }
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_STALE => Err(NoRegion::Stale),
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_INDIRECT => Err(NoRegion::Indirect),
            bindings::mlx5r_odp_key_MLX5R_ODP_KEY_OTHER => {
                Err(NoRegion::Unsupported(Unsupported::RegionKind))
            }
            _ => Err(NoRegion::NotOdp),
        }
    }

    fn query(&self, mkey: Mkey) -> Result<Query, NoQuery> {
        // SAFETY: The device is live for as long as the value.
        let key = unsafe { IndirectKey::find(self.dev, mkey) };
        key.ok_or(NoQuery::Gone)?.query()
    }

    fn max_indirection(&self) -> u8 {
        // SAFETY: The device is live.
        unsafe { bindings::mlx5r_odp_max_indirection(self.dev.as_ptr()) }
    }

    fn queue(&self, fault: &WqeFault) -> Option<WorkQueue<'_>> {
        // SAFETY: The device is live, and a fault is served while it is.
        unsafe { WorkQueue::find(self.dev, fault) }
    }

    fn end_of_list(&self) -> Mkey {
        // SAFETY: The device is live.
        Mkey::new(unsafe { bindings::mlx5r_odp_terminate_key(self.dev.as_ptr()) })
    }

    fn resume(&self, command: &PageFaultResume) {
        if let Some(event) = self.event.take() {
            Event::resume(event, command);
        }
    }

    fn sleep(&self, milliseconds: u32) {
        fsleep(Delta::from_millis(milliseconds.into()));
    }

    fn gave_back(&self, why: Pressure) {
        let what = match why {
            Pressure::Race => c"page fault handed back to the device: invalidations",
            Pressure::Held => c"page fault handed back to the device: a held range",
            Pressure::Memory => c"page fault handed back to the device: no memory",
        };
        self.warn(what, 0);
    }

    fn refused(&self, fault: &PageFault, why: NotIn) {
        let (what, number, at) = match fault {
            PageFault::Memory(fault) => (c"MKey", fault.mkey.get(), fault.va.get()),
            PageFault::Rdma(fault) => (c"MKey", fault.r_key.get(), fault.rdma_va.get()),
            PageFault::Wqe(fault) => {
                let number = fault.wq_number.get();
                (c"a WQE of queue", number, fault.wqe_index.into())
            }
        };
        let why = match why {
            NotIn::Invalid => c"there is no memory for this access",
            NotIn::ReadOnly => c"it is read-only",
            NotIn::Empty => c"it is empty",
            NotIn::Device => c"the device did not take the translations",
            NotIn::Busy(_) => c"it is busy",
        };
        // SAFETY: The device is live, and the others are strings.
        unsafe {
            bindings::mlx5r_odp_refused(
                self.dev.as_ptr(),
                what.as_char_ptr(),
                number,
                at,
                why.as_char_ptr(),
            );
        }
    }

    fn report(&self, report: Report) {
        match report {
            Report::Unsupported(what) => self.warn(
                match what {
                    Unsupported::RegionKind => {
                        c"page faults of this kind of region are not supported"
                    }
                    Unsupported::Pieces => {
                        c"page faults of accesses in so many pieces are not supported"
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
            Report::Key(_) => self.warn(c"key whose entries cannot be made out", 0),
        }
    }
}
