// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a chunk keeps beside its entries.

use crate::Slots;

/// An invalidation between its two passes.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    pub(crate) slots: Slots,
    pub(crate) ticket: T,
}

/// The count, the stamp and the invalidation under way of one chunk.
#[derive(Debug)]
pub struct Book<T> {
    pub(crate) pending: Option<Pending<T>>,
    pub(crate) mapped: u16,
    /// 0 is none.
    stamp: u32,
}

impl<T> Default for Book<T> {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Book<T> {
    /// Of a chunk whose entries are empty.
    #[inline]
    pub const fn new() -> Self {
        Self {
            pending: None,
            mapped: 0,
            stamp: 0,
        }
    }

    /// How many entries are mapped, stuck ones included.
    #[inline]
    pub fn mapped(&self) -> usize {
        usize::from(self.mapped)
    }

    /// Nothing is mapped and no invalidation is between its passes: the chunk may be freed.
    #[inline]
    pub const fn is_idle(&self) -> bool {
        self.mapped == 0 && self.pending.is_none()
    }

    /// The device's moment when translations were last published
    /// ([`Device::moment`](crate::Device::moment)); `None` as long as none were.
    #[inline]
    pub fn stamp(&self) -> Option<u32> {
        (self.stamp != 0).then_some(self.stamp)
    }

    /// Sets the stamp. Moment 0 is taken for the one after it: that only makes what came at 0
    /// look earlier.
    #[inline]
    pub(crate) fn set_stamp(&mut self, moment: u32) {
        self.stamp = moment.max(1);
    }
}
