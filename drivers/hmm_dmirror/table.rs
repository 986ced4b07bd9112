// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device: a page table, and accesses through it.
//!
//! It reaches memory by the CPU, one page at a time, and under the lock of its table: when a
//! translation is taken back, no access through it is under way.

use hmm_abi::{
    Device,
    Index,
    LockedChunk,
    NotZapped,
    PublishError,
    Slots,
    Table,
    Zap, //
};
use kernel::{
    new_mutex,
    page::{
        PAGE_MASK,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Mutex, //
};

use crate::bindings;

/// One entry of the device's page table.
///
/// Layout: the page's physical address in the bits that such an address has, [`Pte::VALID`],
/// [`Pte::WRITE`] and [`Pte::EXCLUSIVE`] below.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pte(u64);

impl Pte {
    const EMPTY: Self = Self(0);
    const VALID: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    /// The device has the page to itself. Part of the address that the mirror gives it.
    const EXCLUSIVE: u64 = 1 << 2;

    /// The address by which the device is given a page.
    pub(crate) fn address(pfn: usize, exclusive: bool) -> u64 {
        let exclusive = if exclusive { Self::EXCLUSIVE } else { 0 };
        // CAST: widens.
        ((pfn as u64) << PAGE_SHIFT) | exclusive
    }

    fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    fn pfn(self) -> usize {
        // CAST: it came from a `usize`.
        ((self.0 & PAGE_MASK as u64) >> PAGE_SHIFT) as usize
    }
}

/// The device has no translation for an access.
pub(crate) struct NoTranslation;

/// The device's page table for one chunk.
#[pin_data]
pub(crate) struct PageTable {
    first: Index,
    #[pin]
    ptes: Mutex<KVec<Pte>>,
}

impl PageTable {
    /// The table of `entries` entries, of which the first one is the mirror's `first`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(first: Index, entries: usize) -> Result<impl PinInit<Self>> {
        let ptes = KVec::from_elem(Pte::EMPTY, entries, GFP_KERNEL)?;
        Ok(pin_init!(Self {
            first,
            ptes <- new_mutex!(ptes, "hmm_dmirror_ptes"),
        }))
    }

    /// The device reads the page of `slot`.
    pub(crate) fn read(&self, slot: usize, to: &mut [u8; PAGE_SIZE]) -> Result<(), NoTranslation> {
        self.access(slot, Pte::VALID, |pfn| {
            // SAFETY: The page is not freed: its translation is not taken back while the table is
            // locked. `to` has room for it.
            unsafe { bindings::hmm_dmirror_copy_from_page(to.as_mut_ptr().cast(), pfn) };
        })
    }

    /// The device writes the page of `slot`.
    pub(crate) fn write(&self, slot: usize, from: &[u8; PAGE_SIZE]) -> Result<(), NoTranslation> {
        self.access(slot, Pte::VALID | Pte::WRITE, |pfn| {
            // SAFETY: As for reading; the process may write to it.
            unsafe { bindings::hmm_dmirror_copy_to_page(pfn, from.as_ptr().cast()) };
        })
    }

    fn access(
        &self,
        slot: usize,
        flags: u64,
        copy: impl FnOnce(usize),
    ) -> Result<(), NoTranslation> {
        let ptes = self.ptes.lock();
        match ptes.get(slot) {
            Some(pte) if pte.has(flags) => {
                copy(pte.pfn());
                Ok(())
            }
            _ => Err(NoTranslation),
        }
    }

    /// Whether the device has one of the pages of `slots` to itself.
    pub(crate) fn has_exclusive(&self, slots: Slots) -> bool {
        let ptes = self.ptes.lock();
        let ptes = ptes.get(slots.range()).unwrap_or_default();
        ptes.iter().any(|pte| pte.has(Pte::VALID | Pte::EXCLUSIVE))
    }

    /// Makes the table show what it has to.
    fn show<L: LockedChunk>(&self, table: &Table<'_, L>) {
        let first = table.first().0 - self.first.0;
        let mut ptes = self.ptes.lock();
        let ptes = ptes.get_mut(first..).unwrap_or_default();
        for (pte, translation) in ptes.iter_mut().zip(table.translations()) {
            *pte = translation.map_or(Pte::EMPTY, |translation| {
                let write = if translation.write { Pte::WRITE } else { 0 };
                Pte(translation.address | Pte::VALID | write)
            });
        }
    }
}

impl Device for PageTable {
    const GRANULE: usize = 1;

    type Ticket = ();

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        self.show(table);
        Ok(())
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<()>, NotZapped> {
        self.show(table);
        Ok(Zap::Posted(()))
    }

    fn settle(&self, (): ()) -> Result<(), NotZapped> {
        // An access is made under the table's lock: the zap has waited for it.
        Ok(())
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.ptes
            .lock()
            .iter_mut()
            .for_each(|pte| *pte = Pte::EMPTY);
        Ok(())
    }
}
