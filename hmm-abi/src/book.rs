// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a chunk keeps beside its entries.

use crate::around::Stream;
use crate::{Device, Slots};

/// An invalidation between its two passes.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    pub(crate) slots: Slots,
    pub(crate) ticket: T,
}

/// When the device was last given translations of a chunk, or access that it did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// It never was.
    Never,
    /// So many of the device's ticks ago ([`Device::now`]): it may still report that they were
    /// missing ([`Device::LATE`]).
    Lately {
        /// The ticks.
        ago: u32,
    },
    /// So long before this moment ([`Device::moment`]) that what it reports from then on it has
    /// found missing although it was given them.
    Before {
        /// The moment.
        moment: u32,
    },
}

/// The count, the stamp and the invalidation under way of one chunk.
#[derive(Debug)]
pub struct Book<T> {
    pub(crate) pending: Option<Pending<T>>,
    pub(crate) mapped: u16,
    pub(crate) stream: Stream,
    stamp: Stamp,
}

/// What is kept of [`Given`].
#[derive(Clone, Copy, Debug)]
enum Stamp {
    Never,
    At(u32),
    Before(u32),
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
            stream: Stream::NONE,
            stamp: Stamp::Never,
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

    /// The device has been given something just now.
    #[inline]
    pub(crate) fn give<D: Device>(&mut self, device: &D) {
        self.stamp = Stamp::At(device.now());
    }

    /// When that was. The first look after the device's reports have settled takes the moment.
    pub(crate) fn given<D: Device>(&mut self, device: &D) -> Given {
        match self.stamp {
            Stamp::Never => Given::Never,
            Stamp::Before(moment) => Given::Before { moment },
            Stamp::At(at) => {
                let ago = device.now().wrapping_sub(at);
                if ago < D::LATE {
                    return Given::Lately { ago };
                }
                let moment = device.moment();
                self.stamp = Stamp::Before(moment);
                Given::Before { moment }
            }
        }
    }
}
