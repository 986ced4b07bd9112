// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Queue pairs.

use std::time::Duration;

use crate::device::Device;
use crate::ids::{Qpn, Uar};

/// All queue pairs.
#[derive(Debug, Default)]
pub struct Qps {}

impl Qps {
    /// Number of live QPs.
    #[must_use]
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }
}

impl Device {
    /// A send queue doorbell in a UAR page. Only notes it: the work is done in
    /// [`Device::step`].
    pub(crate) fn ring_sq(&mut self, _uar: Uar, _qpn: Qpn) {}

    /// Lets QPs work for a bounded while; returns when to be called again, `Some(now)`
    /// for at once.
    pub(crate) fn step_qps(&mut self) -> Option<Duration> {
        None
    }
}
