// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! MRs of a dma-buf: memory of an exporter, which says where it is, and moves it.
//!
//! It says so of all of a dma-buf at once, and takes all of it back at once. So a fault anywhere
//! publishes everything, and there is neither a mirror nor a chunk.

use firmware_cmds::{Iova, Mkey};

use crate::bring_in::{patiently, Asked, BroughtIn, NotIn};
use crate::driver::{Driver, Intent};

/// The MR of a dma-buf, kept alive by the value.
pub trait Buffer {
    /// Its key.
    fn mkey(&self) -> Mkey;

    /// Where it begins for the device.
    fn iova(&self) -> Iova;

    /// In bytes.
    fn len(&self) -> u64;

    /// No byte at all; no MR is so.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the registration allows the device to write.
    fn is_writable(&self) -> bool;

    /// Has the exporter say where the memory is, waits until it is there, and publishes all of it.
    /// Returns how many pages that are, of 4 KiB.
    ///
    /// # Errors
    ///
    /// - [`NotIn::Invalid`] if the exporter gives it to nobody any more, or in pieces that the device
    ///   cannot translate;
    /// - [`NotIn::Busy`] if it cannot now;
    /// - [`NotIn::Device`] if the device did not take the translations.
    fn publish(&self) -> Result<u64, NotIn>;

    /// As [`Region::count_fault`](crate::Region::count_fault).
    fn count_fault(&self, base_pages: u64);

    /// As [`Region::count_prefetch`](crate::Region::count_prefetch).
    fn count_prefetch(&self, base_pages: u64);
}

/// Whether all of `bytes` at `at`, which are not none, lie in it.
pub(crate) fn holds(buffer: &impl Buffer, at: Iova, bytes: u64) -> bool {
    let offset = at.get().checked_sub(buffer.iova().get());
    let end = offset.and_then(|offset| offset.checked_add(bytes));
    bytes > 0 && end.is_some_and(|end| end <= buffer.len())
}

/// Whether any byte of the `before` ahead of `at` and the `after` from there on lies in it.
pub(crate) fn touches(buffer: &impl Buffer, at: Iova, before: u64, after: u64) -> bool {
    let (at, start) = (at.get(), buffer.iova().get());
    let first = at.saturating_sub(before).max(start);
    let end = at
        .saturating_add(after)
        .min(start.saturating_add(buffer.len()));
    first < end
}

/// Brings it in.
///
/// # Errors
///
/// [`NotIn`].
pub(crate) fn bring_in(
    buffer: &impl Buffer,
    asked: Asked,
    driver: &impl Driver,
) -> Result<BroughtIn, NotIn> {
    if asked.intent == Intent::Write && !buffer.is_writable() {
        return Err(NotIn::ReadOnly);
    }
    let base_pages = patiently(driver, || buffer.publish())?;
    Ok(BroughtIn {
        base_pages,
        others: 0,
        // What it may be accessed for is the MKey's to say, and no fault changes that.
        asked_again: false,
    })
}
