// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a key leads to: a region, an implicit MR, whose children are regions, or a dma-buf.

use core::ops::Range;

use firmware_cmds::{Iova, Mkey};
use hmm_abi::Indices;

use crate::bring_in::{bring_in, bring_in_present, patiently, Asked, BroughtIn, NotIn};
use crate::buffer::{self, Buffer};
use crate::driver::{Driver, Intent};
use crate::implicit::{ChildIndex, Implicit};
use crate::region::Region;

/// What a key leads to, kept alive by the value.
#[derive(Debug)]
pub enum Found<R, I, B> {
    /// A region with entries of its own.
    Region(R),
    /// All of a process's memory.
    Implicit(I),
    /// A dma-buf.
    Buffer(B),
}

/// What is to be brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Entries of a region.
    Entries(Indices),
    /// Addresses of an implicit MR.
    Addresses(Range<u64>),
    /// All of a dma-buf.
    Whole,
}

impl<R: Region, I: Implicit, B: Buffer> Found<R, I, B> {
    /// The key that the user knows.
    pub fn mkey(&self) -> Mkey {
        match self {
            Self::Region(region) => region.mkey(),
            Self::Implicit(implicit) => implicit.mkey(),
            Self::Buffer(buffer) => buffer.mkey(),
        }
    }

    /// Whether the registration allows the device to write.
    pub fn is_writable(&self) -> bool {
        match self {
            Self::Region(region) => region.placement().writable,
            Self::Implicit(implicit) => implicit.is_writable(),
            Self::Buffer(buffer) => buffer.is_writable(),
        }
    }

    /// `bytes` at `at`, or `None` where they are none or any of them lies outside.
    pub fn exactly(&self, at: Iova, bytes: u64) -> Option<Extent> {
        match self {
            Self::Region(region) => {
                let indices = region.placement().exactly(at, bytes);
                indices.map(Extent::Entries)
            }
            Self::Implicit(implicit) => {
                let addresses = implicit.layout().exactly(at, bytes);
                addresses.map(Extent::Addresses)
            }
            Self::Buffer(buffer) => buffer::holds(buffer, at, bytes).then_some(Extent::Whole),
        }
    }

    /// `bytes` at `at`, `before` bytes ahead of them and `after` behind, cut to what is inside: for
    /// the memory scheme, which does not know where an MR ends. `None` if nothing is left.
    pub fn clamped(&self, at: Iova, before: u64, bytes: u64, after: u64) -> Option<Extent> {
        match self {
            Self::Region(region) => {
                let indices = region.placement().clamped(at, before, bytes + after);
                indices.map(Extent::Entries)
            }
            Self::Implicit(implicit) => {
                let addresses = implicit.layout().clamped(at, before, bytes, after);
                addresses.map(Extent::Addresses)
            }
            Self::Buffer(buffer) => {
                let is_inside = buffer::touches(buffer, at, before, bytes + after);
                is_inside.then_some(Extent::Whole)
            }
        }
    }

    /// Brings `extent` in.
    ///
    /// # Errors
    ///
    /// [`NotIn`]. What comes before what failed stays published.
    pub fn bring_in(
        &self,
        extent: &Extent,
        asked: Asked,
        driver: &impl Driver,
    ) -> Result<BroughtIn, NotIn> {
        match (self, extent) {
            (Self::Region(region), Extent::Entries(indices)) => {
                bring_in(region, *indices, asked, driver)
            }
            (Self::Implicit(implicit), Extent::Addresses(addresses)) => {
                let mut all = BroughtIn::NOTHING;
                for (at, addresses) in implicit.layout().pieces(addresses.clone()) {
                    let child = child(implicit, at, driver)?;
                    let indices = indices_of(&child, addresses).ok_or(NotIn::Invalid)?;
                    all = all.and(bring_in(&child, indices, asked, driver)?);
                }
                Ok(all)
            }
            (Self::Buffer(buffer), Extent::Whole) => buffer::bring_in(buffer, asked, driver),
            // An extent is of what made it.
            _ => Err(NotIn::Invalid),
        }
    }

    /// Publishes what is in memory of `extent` already ([`bring_in_present`]). Returns how many pages
    /// of 4 KiB were looked at.
    ///
    /// # Errors
    ///
    /// Those of [`bring_in_present`], and [`NotIn::Invalid`] if the process is gone.
    pub(crate) fn bring_in_present(
        &self,
        extent: &Extent,
        driver: &impl Driver,
    ) -> Result<u64, NotIn> {
        match (self, extent) {
            (Self::Region(region), Extent::Entries(indices)) => present_in(region, *indices),
            (Self::Implicit(implicit), Extent::Addresses(addresses)) => {
                let mut pages = 0;
                for (at, addresses) in implicit.layout().pieces(addresses.clone()) {
                    let child = child(implicit, at, driver)?;
                    let indices = indices_of(&child, addresses).ok_or(NotIn::Invalid)?;
                    pages += present_in(&child, indices)?;
                }
                Ok(pages)
            }
            // There is no other way to learn what is there.
            (Self::Buffer(buffer), Extent::Whole) => {
                let asked = Asked::by_nobody(Intent::Read);
                Ok(buffer::bring_in(buffer, asked, driver)?.base_pages)
            }
            _ => Err(NotIn::Invalid),
        }
    }

    /// As [`Region::count_fault`].
    pub(crate) fn count_fault(&self, base_pages: u64) {
        match self {
            Self::Region(region) => region.count_fault(base_pages),
            Self::Implicit(implicit) => implicit.count_fault(base_pages),
            Self::Buffer(buffer) => buffer.count_fault(base_pages),
        }
    }

    /// As [`Region::count_prefetch`].
    pub(crate) fn count_prefetch(&self, base_pages: u64) {
        match self {
            Self::Region(region) => region.count_prefetch(base_pages),
            Self::Implicit(implicit) => implicit.count_prefetch(base_pages),
            Self::Buffer(buffer) => buffer.count_prefetch(base_pages),
        }
    }
}

/// A child, tried for as often as pages are while there is no memory for it.
fn child<'i, I: Implicit>(
    implicit: &'i I,
    at: ChildIndex,
    driver: &impl Driver,
) -> Result<I::Child<'i>, NotIn> {
    patiently(driver, || implicit.child(at))
}

fn indices_of(child: &impl Region, addresses: Range<u64>) -> Option<Indices> {
    let bytes = addresses.end - addresses.start;
    child.placement().exactly(Iova::new(addresses.start), bytes)
}

fn present_in<R: Region>(region: &R, indices: Indices) -> Result<u64, NotIn> {
    let occupied = region.occupancy()?;
    bring_in_present(region, indices, occupied)?;
    Ok(region.placement().base_pages(indices.len()))
}
