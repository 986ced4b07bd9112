// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queues, for reading the WQE that stalled.

use core::marker::PhantomData;
use core::ptr::NonNull;

use firmware_cmds::{wqe::SendTransport, WqeFault, WqeFaultKind};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use mlx5_odp::{NoWqe, Queue};

use crate::bindings;
use crate::device::Device;

/// A queue that the fault path holds.
///
/// # Invariants
///
/// The value owns a reference on the queue, whose device lives for `'a`.
pub(crate) struct WorkQueue<'a> {
    queue: Held,
    _device: PhantomData<&'a Device>,
}

enum Held {
    Pair(NonNull<bindings::mlx5_ib_qp>),
    Shared(NonNull<bindings::mlx5_ib_srq>),
}

impl WorkQueue<'_> {
    /// The queue that a fault stalled.
    ///
    /// # Safety
    ///
    /// `dev` is live, and the value does not outlive it.
    pub(crate) unsafe fn find(
        dev: NonNull<bindings::mlx5_ib_dev>,
        fault: &WqeFault,
    ) -> Option<Self> {
        let (dev, number) = (dev.as_ptr(), fault.wq_number.get());
        // SAFETY: `dev` is live. The calls take a reference.
        let queue = unsafe {
            match fault.kind {
                WqeFaultKind::SharedReceive => {
                    NonNull::new(bindings::mlx5r_odp_get_srq(dev, number)).map(Held::Shared)
                }
                _ => NonNull::new(bindings::mlx5r_odp_get_qp(dev, number)).map(Held::Pair),
            }
        };
        // INVARIANT: As just said.
        Some(Self {
            queue: queue?,
            _device: PhantomData,
        })
    }

    /// A queue pair, which alone has a send queue.
    fn pair(&self) -> Option<*mut bindings::mlx5_ib_qp> {
        match self.queue {
            Held::Pair(qp) => Some(qp.as_ptr()),
            Held::Shared(_) => None,
        }
    }
}

impl Drop for WorkQueue<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns a reference.
        unsafe {
            match self.queue {
                Held::Pair(qp) => bindings::mlx5r_odp_put_qp(qp.as_ptr()),
                Held::Shared(srq) => bindings::mlx5r_odp_put_srq(srq.as_ptr()),
            }
        }
    }
}

/// A copy of a WQE.
pub(crate) struct Wqe(KVec<u8>);

impl Wqe {
    /// What `read` copies into a buffer of so many bytes; it returns 0 and how many it has copied.
    fn read(read: impl FnOnce(*mut c_void, usize, *mut usize) -> c_int) -> Result<Self, NoWqe> {
        // What a WQE can be long at most, and more than any is.
        let mut bytes = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL).map_err(|_| NoWqe::Memory)?;
        let mut copied = 0;
        let status = read(bytes.as_mut_ptr().cast(), PAGE_SIZE, &mut copied);
        kernel::error::to_result(status).map_err(|_| NoWqe::Unreadable)?;
        bytes.truncate(copied);
        Ok(Self(bytes))
    }

    /// Of a queue whose WQEs are so long.
    fn exactly(mut self, len: usize) -> Result<Self, NoWqe> {
        if self.0.len() < len {
            return Err(NoWqe::Unreadable);
        }
        self.0.truncate(len);
        Ok(self)
    }
}

impl AsRef<[u8]> for Wqe {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Queue for WorkQueue<'_> {
    type Wqe = Wqe;

    fn transport(&self) -> Option<SendTransport> {
        // SAFETY: The queue pair is live.
        match unsafe { bindings::mlx5r_odp_qp_transport(self.pair()?) } {
            bindings::mlx5r_odp_transport_MLX5R_ODP_CONNECTED => Some(SendTransport::Connected),
            bindings::mlx5r_odp_transport_MLX5R_ODP_XRC_INITIATOR => {
                Some(SendTransport::XrcInitiator)
            }
            bindings::mlx5r_odp_transport_MLX5R_ODP_DATAGRAM => Some(SendTransport::Datagram),
            _ => None,
        }
    }

    fn receive_signature(&self) -> bool {
        // SAFETY: The queue pair is live.
        self.pair()
            .is_some_and(|qp| unsafe { bindings::mlx5r_odp_qp_signature(qp) })
    }

    fn read_send(&self, index: u16) -> Result<Wqe, NoWqe> {
        let qp = self.pair().ok_or(NoWqe::Unreadable)?;
        // SAFETY: The queue pair is live, and the buffer as long as is said.
        Wqe::read(|buffer, len, copied| unsafe {
            bindings::mlx5r_odp_read_sq(qp, index, buffer, len, copied)
        })
    }

    fn read_receive(&self, index: u16) -> Result<Wqe, NoWqe> {
        // SAFETY: The queue is live, and the buffer as long as is said.
        let wqe = Wqe::read(|buffer, len, copied| unsafe {
            match self.queue {
                Held::Pair(qp) => {
                    bindings::mlx5r_odp_read_rq(qp.as_ptr(), index, buffer, len, copied)
                }
                Held::Shared(srq) => {
                    bindings::mlx5r_odp_read_srq(srq.as_ptr(), index, buffer, len, copied)
                }
            }
        })?;
        // SAFETY: The queue is live.
        wqe.exactly(unsafe {
            match self.queue {
                Held::Pair(qp) => bindings::mlx5r_odp_rq_wqe_size(qp.as_ptr()),
                Held::Shared(srq) => bindings::mlx5r_odp_srq_wqe_size(srq.as_ptr()),
            }
        })
    }
}
