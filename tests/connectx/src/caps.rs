// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Capabilities: what the function can do and what of it the driver chose.

use crate::knobs::Scheme;

/// State of the function between ENABLE_HCA and DISABLE_HCA.
#[derive(Clone, Debug)]
pub struct Hca {
    /// How page faults are reported until the next ENABLE_HCA.
    pub scheme: Scheme,
}

impl Hca {
    /// A function after reset.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme }
    }
}
