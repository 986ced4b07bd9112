// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Accesses stalled on a page fault.

/// All stalls.
#[derive(Debug, Default)]
pub struct Faults {}

impl Faults {
    /// Number of stalls waiting for a resume.
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
