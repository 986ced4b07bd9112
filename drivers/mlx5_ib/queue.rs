// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queue pairs, for reading the WQE that stalled.

use core::marker::PhantomData;
use core::ptr::NonNull;

use firmware_cmds::wqe::SendTransport;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use mlx5_odp::{NoWqe, Queue};

use crate::bindings;
use crate::device::Device;

/// A queue pair.
///
/// # Invariants
///
/// `qp` is live, and the value owns a reference on it. The device, whose it is, lives for `'a`.
pub(crate) struct Qp<'a> {
    qp: NonNull<bindings::mlx5_ib_qp>,
    _device: PhantomData<&'a Device>,
}

impl Qp<'_> {
    /// The queue pair of a number.
    ///
    /// # Safety
    ///
    /// `dev` is live, and the value does not outlive it.
    pub(crate) unsafe fn find(
        dev: NonNull<bindings::mlx5_ib_dev>,
        number: firmware_cmds::Qpn,
    ) -> Option<Self> {
        // SAFETY: `dev` is live. The call takes a reference.
        let qp = unsafe { bindings::mlx5r_odp_get_qp(dev.as_ptr(), number.get()) };
        // INVARIANT: As just said.
        Some(Self {
            qp: NonNull::new(qp)?,
            _device: PhantomData,
        })
    }

    fn read(&self, sq: bool, index: u16) -> Result<Wqe, NoWqe> {
        // What a WQE can be long at most, and more than any is.
        let mut bytes = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL).map_err(|_| NoWqe::Memory)?;
        let mut copied = 0;
        // SAFETY: The queue pair is live, and `bytes` is as long as is said.
        let result = unsafe {
            let buffer = bytes.as_mut_ptr().cast();
            if sq {
                bindings::mlx5r_odp_read_sq(self.qp.as_ptr(), index, buffer, PAGE_SIZE, &mut copied)
            } else {
                bindings::mlx5r_odp_read_rq(self.qp.as_ptr(), index, buffer, PAGE_SIZE, &mut copied)
            }
        };
        kernel::error::to_result(result).map_err(|_| NoWqe::Unreadable)?;
        bytes.truncate(copied);
        Ok(Wqe(bytes))
    }
}

impl Drop for Qp<'_> {
    fn drop(&mut self) {
        // SAFETY: The value owns a reference.
        unsafe { bindings::mlx5r_odp_put_qp(self.qp.as_ptr()) };
    }
}

/// A copy of a WQE.
pub(crate) struct Wqe(KVec<u8>);

impl AsRef<[u8]> for Wqe {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Queue for Qp<'_> {
    type Wqe = Wqe;

    fn transport(&self) -> Option<SendTransport> {
        // SAFETY: The queue pair is live.
        match unsafe { bindings::mlx5r_odp_qp_transport(self.qp.as_ptr()) } {
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
        unsafe { bindings::mlx5r_odp_qp_signature(self.qp.as_ptr()) }
    }

    fn read_send(&self, index: u16) -> Result<Wqe, NoWqe> {
        self.read(true, index)
    }

    fn read_receive(&self, index: u16) -> Result<Wqe, NoWqe> {
        let mut wqe = self.read(false, index)?;
        // SAFETY: The queue pair is live.
        let len = unsafe { bindings::mlx5r_odp_recv_wqe_size(self.qp.as_ptr()) };
        if wqe.0.len() < len {
            return Err(NoWqe::Unreadable);
        }
        wqe.0.truncate(len);
        Ok(wqe)
    }
}
