// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a memory region may be used for.

use kernel::prelude::*;
use kernel_ext::bindings;

/// The flags of a verb: `enum ib_access_flags`.
#[derive(Clone, Copy)]
pub(crate) struct Access(c_int);

impl Access {
    /// From the flags of a verb. Any value will do.
    pub(crate) const fn new(flags: c_int) -> Self {
        Self(flags)
    }

    const fn has(self, flag: bindings::ib_access_flags) -> bool {
        // CAST: Of the bits as they are.
        self.0 as bindings::ib_access_flags & flag != 0
    }

    /// On-Demand Paging.
    pub(crate) const fn on_demand(self) -> bool {
        self.has(bindings::ib_access_flags_IB_ACCESS_ON_DEMAND)
    }

    /// The memory is of hugetlbfs.
    pub(crate) const fn hugetlb(self) -> bool {
        self.has(bindings::ib_access_flags_IB_ACCESS_HUGETLB)
    }

    /// Something in it writes.
    pub(crate) fn writable(self) -> bool {
        // SAFETY: A pure function.
        unsafe { bindings::ib_access_writable(self.0) }
    }

    /// Bytes of an entry, as a power of two.
    pub(crate) fn entry_shift(self) -> u32 {
        // SAFETY: A pure function.
        unsafe { bindings::ib_access_page_shift(self.0) }
    }
}
