// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A migration of pages to the device, as the mirror sees it.
//!
//! ```text
//! begin      no mmap lock: chunks are made, for that takes it
//! withdraw   before a page is copied, so that the device does not write to what is left behind
//! moved      in its place is the device's page: the device has to let go of what it was given
//!            meanwhile, such as the zero page
//! end        no mmap lock: HMM finds the device's own pages, and the device is given them
//! ```
//!
//! The invalidations that this causes take nothing back ([`hmm_abi::pass`]): what is not moved stays
//! with the device.

use hmm_abi::{
    Indices,
    Need,
    Store, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::mirror::Mirror;

/// A migration of the current task.
pub(crate) struct Move<'m> {
    mirror: &'m Mirror,
    indices: Indices,
    /// By page of `indices`.
    moved: KVec<bool>,
}

impl<'m> Move<'m> {
    /// Begins one within `indices`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR`; `EFAULT` if the process is gone.
    pub(crate) fn begin(mirror: &'m Mirror, indices: Indices) -> Result<Self> {
        for (at, _) in mirror.geometry().by_chunk(indices) {
            mirror.find_or_make(at)?;
        }
        let moved = KVec::from_elem(false, indices.len(), GFP_KERNEL)?;
        mirror.enter_mover()?;
        Ok(Self {
            mirror,
            indices,
            moved,
        })
    }

    /// The pages from `address`, as far as they are of this migration.
    pub(crate) fn pages(&self, address: usize, pages: usize) -> Indices {
        let end = address.saturating_add(pages.saturating_mul(PAGE_SIZE));
        let touched = self.mirror.geometry().touched(&(address..end));
        let first = touched.first().0.max(self.indices.first().0);
        Indices::new(first..touched.end().0.min(self.indices.end().0))
    }

    /// The device lets go of `indices`.
    pub(crate) fn withdraw(&self, indices: Indices) {
        for (at, slots) in self.mirror.geometry().by_chunk(indices) {
            if let Some(chunk) = self.mirror.find(at) {
                hmm_abi::withdraw(&chunk, slots);
            }
        }
    }

    /// The pages of `indices` are the device's now.
    pub(crate) fn moved(&mut self, indices: Indices) {
        self.withdraw(indices);
        let first = self.indices.first().0;
        for index in indices.iter() {
            let number = index.0.checked_sub(first);
            if let Some(moved) = number.and_then(|number| self.moved.get_mut(number)) {
                *moved = true;
            }
        }
    }

    /// Has the device use what was moved.
    ///
    /// # Errors
    ///
    /// As [`Mirror::fault`].
    pub(crate) fn end(self) -> Result {
        let mut rest = &self.moved[..];
        let mut next = self.indices.first().0;
        while let Some(&is_moved) = rest.first() {
            let len = rest.iter().take_while(|&&moved| moved == is_moved).count();
            if is_moved {
                let run = Indices::new(next..next + len);
                self.mirror.fault(run, Need::Snapshot)?;
            }
            next += len;
            rest = &rest[len..];
        }
        Ok(())
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.mirror.leave_mover();
    }
}
