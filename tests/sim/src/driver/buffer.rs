// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The simulation has no exporter of dma-bufs.

use firmware_cmds::{Iova, Mkey};
use mlx5_odp::{Buffer, NotIn};

/// There is no such value.
pub(crate) enum NoBuffer {}

impl Buffer for NoBuffer {
    fn mkey(&self) -> Mkey {
        match *self {}
    }

    fn iova(&self) -> Iova {
        match *self {}
    }

    fn len(&self) -> u64 {
        match *self {}
    }

    fn is_writable(&self) -> bool {
        match *self {}
    }

    fn publish(&self) -> Result<u64, NotIn> {
        match *self {}
    }

    fn count_fault(&self, _: u64) {
        match *self {}
    }

    fn count_prefetch(&self, _: u64) {
        match *self {}
    }
}
