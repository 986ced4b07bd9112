// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the device reads and writes, on its way from and to the user.

use hmm_abi::{
    Indices,
    Need, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use crate::{
    mirror::Mirror,
    table::NoTranslation, //
};

/// The contents of consecutive pages, and how many of them the device has copied.
pub(crate) struct Bounce {
    bytes: VVec<u8>,
    indices: Indices,
    copied: usize,
}

impl Bounce {
    /// For the pages of `indices`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(indices: Indices) -> Result<Self> {
        Ok(Self {
            bytes: VVec::zeroed(indices.len() * PAGE_SIZE, GFP_KERNEL)?,
            indices,
            copied: 0,
        })
    }

    /// How many pages the device has copied.
    pub(crate) fn copied(&self) -> usize {
        self.copied
    }

    fn user(&self, address: u64) -> Result<UserSlice> {
        let address = usize::try_from(address).map_err(|_| EFAULT)?;
        Ok(UserSlice::new(
            UserPtr::from_addr(address),
            self.bytes.len(),
        ))
    }

    /// What the device is to write, from the user.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn copy_from_user(&mut self, address: u64) -> Result {
        self.user(address)?.reader().read_slice(&mut self.bytes)
    }

    /// What the device has read, to the user.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn copy_to_user(&self, address: u64) -> Result {
        self.user(address)?.writer().write_slice(&self.bytes)
    }

    /// The pages that the device has not copied yet.
    fn rest(&self) -> Indices {
        Indices::new(self.indices.first().0 + self.copied..self.indices.end().0)
    }

    /// The device copies what it has translations for, up to the first page for which it has none.
    pub(crate) fn access(&mut self, mirror: &Mirror, access: Access) -> Result<(), NoTranslation> {
        let rest = self.rest();
        let mut pages = self.bytes.chunks_exact_mut(PAGE_SIZE).skip(self.copied);
        let copied = &mut self.copied;
        mirror.for_each_page(rest, |chunk, slot| {
            let page = pages.next().and_then(|page| page.try_into().ok());
            let page: &mut [u8; PAGE_SIZE] = page.ok_or(NoTranslation)?;
            match access {
                Access::Read => chunk.table().read(slot, page)?,
                Access::Write => chunk.table().write(slot, page)?,
            }
            *copied += 1;
            Ok(())
        })
    }

    /// The device copies all of it; what it has no translation for it faults on. Returns how often
    /// it did.
    ///
    /// # Errors
    ///
    /// As [`Mirror::fault`].
    pub(crate) fn access_all(&mut self, mirror: &Mirror, access: Access) -> Result<u64> {
        let need = match access {
            Access::Read => Need::Read,
            Access::Write => Need::Write,
        };
        let mut faults = 0;
        while let Err(NoTranslation) = self.access(mirror, access) {
            mirror.fault(self.rest(), need)?;
            faults += 1;
        }
        Ok(faults)
    }
}

/// What the device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
}
