// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! How the device reaches the pages of a mirror.
//!
//! | path | when | where the device finds entry `i` |
//! |---|---|---|
//! | [`Dma::Iova`] | there is an IOMMU, driven by the kernel's generic DMA code | in one range of IOVA space, at its offset in the mirror |
//! | [`Dma::List`] | mappings have to be undone, and there is no such range to be had | noted beside the entry |
//! | [`Dma::Direct`] | the device uses physical addresses | follows from the page |

use core::ops::Range;

use hmm_abi::{
    Entry,
    MapError,
    Slots, //
};
use kernel::{
    device::Device,
    dma::{
        DataDirection,
        DmaAddress, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::aref::ARef, //
};
use kernel_ext::{
    dma_iova::{
        IovaSpace,
        REQUIRE_COHERENT, //
    },
    dma_phys, //
};

use crate::chunk::page_of;

/// The process and the device use the pages at the same time.
const DIRECTION: DataDirection = DataDirection::Bidirectional;
/// There is no moment to sync caches, and no bounce buffer.
const ATTRS: usize = REQUIRE_COHERENT;

/// The DMA of one mirror.
pub(crate) struct Dma {
    path: Path,
    /// Bytes of an entry, as a power of two.
    entry_shift: u32,
    /// Entries of one link, on [`Path::Iova`]: any of them can be taken back by itself.
    longest_link: u32,
}

enum Path {
    Iova(IovaSpace),
    List(ARef<Device>),
    Direct(ARef<Device>),
}

/// Addresses of a chunk's entries, on [`Path::List`].
pub(crate) type Addresses = Option<KBox<KVec<DmaAddress>>>;

impl Dma {
    /// For a mirror of `bytes` bytes in entries of `1 << entry_shift`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a device that would need bounce buffers, or whose caches must be synced.
    pub(crate) fn new(device: &Device, bytes: usize, entry_shift: u32) -> Result<Self> {
        if dma_phys::needs_bounce(device) {
            return Err(EOPNOTSUPP);
        }
        let path = match IovaSpace::try_new(device, bytes) {
            Some(space) => Path::Iova(space),
            None if dma_phys::need_unmap(device) => Path::List(device.into()),
            None => Path::Direct(device.into()),
        };
        let longest_link = match &path {
            Path::Iova(space) => space.divisible(1 << entry_shift) >> entry_shift,
            Path::List(_) | Path::Direct(_) => 1,
        };
        Ok(Self {
            path,
            entry_shift,
            longest_link: u32::try_from(longest_link).unwrap_or(u32::MAX),
        })
    }

    fn entry_size(&self) -> usize {
        1 << self.entry_shift
    }

    /// What a chunk of so many entries needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn addresses(&self, entries: usize) -> Result<Addresses> {
        match self.path {
            Path::List(_) => {
                let list = KVec::from_elem(0, entries, GFP_KERNEL)?;
                Ok(Some(KBox::new(list, GFP_KERNEL)?))
            }
            Path::Iova(_) | Path::Direct(_) => Ok(None),
        }
    }

    /// Maps the pages of `entries`, the mirror's bytes `bytes`, which are the slots from `first` on.
    ///
    /// # Errors
    ///
    /// [`MapError`]; none of them is mapped then.
    ///
    /// # Safety
    ///
    /// The entries name pages that stay until they are unmapped, and are not mapped.
    pub(crate) unsafe fn map(
        &self,
        bytes: Range<usize>,
        first: usize,
        entries: &[Entry],
        addresses: &mut Addresses,
    ) -> Result<(), MapError> {
        // SAFETY: By the safety requirements the entries name pages.
        if (entries.iter()).any(|&entry| unsafe { page_of(entry).is_p2pdma() }) {
            return Err(MapError::Unreachable);
        }
        let mut mapped = 0;
        while mapped < entries.len() {
            let start = bytes.start + mapped * self.entry_size();
            // SAFETY: By the safety requirements.
            let result =
                unsafe { self.map_run(start, first + mapped, &entries[mapped..], addresses) };
            match result {
                Ok(run) => mapped += run,
                Err(error) => {
                    if mapped > 0 {
                        let slots = Slots::new(first..first + mapped);
                        // SAFETY: Just mapped, and nobody has been told.
                        unsafe { self.unmap(bytes.start..start, slots, addresses) };
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Maps the first of `entries`, and those behind it that go with it. Returns how many.
    ///
    /// # Errors
    ///
    /// As [`Self::map`].
    ///
    /// # Safety
    ///
    /// As [`Self::map`]; there is an entry, and none is of peer-to-peer memory.
    unsafe fn map_run(
        &self,
        start: usize,
        slot: usize,
        entries: &[Entry],
        addresses: &mut Addresses,
    ) -> Result<usize, MapError> {
        let phys = page_of(entries[0]).phys();
        match &self.path {
            Path::Iova(space) => {
                let run = self.contiguous(entries);
                let at = start..start + run * self.entry_size();
                // SAFETY: By the safety requirements.
                unsafe { space.iova().link(&at, phys, DIRECTION, ATTRS) }.map_err(map_error)?;
                Ok(run)
            }
            Path::List(device) => {
                // SAFETY: By the safety requirements.
                let address =
                    unsafe { dma_phys::map(device, phys, self.entry_size(), DIRECTION, ATTRS) };
                note(addresses, slot, address.map_err(map_error)?);
                Ok(1)
            }
            Path::Direct(_) => Ok(entries.len()),
        }
    }

    /// How many of `entries`, from the first, are one stretch of memory that one link may have.
    fn contiguous(&self, entries: &[Entry]) -> usize {
        let step = self.entry_size() >> PAGE_SHIFT;
        let mut next = entries[0].pfn().0;
        // CAST: widens.
        let most = self.longest_link as usize;
        let run = entries.iter().take(most).take_while(|entry| {
            let follows = entry.pfn().0 == next;
            next += step;
            follows
        });
        run.count()
    }

    /// Makes mappings visible to the device.
    ///
    /// # Errors
    ///
    /// [`MapError::Memory`].
    pub(crate) fn sync(&self, bytes: Range<usize>) -> Result<(), MapError> {
        match &self.path {
            Path::Iova(space) => space.iova().sync(&bytes).map_err(map_error),
            Path::List(_) | Path::Direct(_) => Ok(()),
        }
    }

    /// Where the device finds the entry of `slot`, `offset` bytes from the mirror's first.
    ///
    /// # Safety
    ///
    /// The entry is mapped.
    #[inline]
    pub(crate) unsafe fn address(
        &self,
        offset: usize,
        slot: usize,
        entries: &[Entry],
        addresses: &Addresses,
    ) -> DmaAddress {
        match &self.path {
            Path::Iova(space) => space.iova().address(offset),
            Path::List(_) => noted(addresses, slot),
            // Such a mapping is nothing but its address, and cannot fail again.
            // SAFETY: By the safety requirements.
            Path::Direct(device) => unsafe {
                let phys = page_of(entries[slot]).phys();
                dma_phys::map(device, phys, self.entry_size(), DIRECTION, ATTRS).unwrap_or(0)
            },
        }
    }

    /// Unmaps the slots `slots`, the mirror's bytes `bytes`.
    ///
    /// # Safety
    ///
    /// All of them are mapped, and the device does not use them.
    pub(crate) unsafe fn unmap(&self, bytes: Range<usize>, slots: Slots, addresses: &Addresses) {
        match &self.path {
            // SAFETY: By the safety requirements.
            Path::Iova(space) => unsafe { space.iova().unlink(&bytes, DIRECTION, ATTRS) },
            Path::List(device) => {
                let list = addresses.as_ref().and_then(|list| list.get(slots.range()));
                for &address in list.unwrap_or_default() {
                    // SAFETY: By the safety requirements.
                    unsafe {
                        dma_phys::unmap(device, address, self.entry_size(), DIRECTION, ATTRS);
                    }
                }
            }
            Path::Direct(_) => {}
        }
    }
}

fn note(addresses: &mut Addresses, slot: usize, address: DmaAddress) {
    if let Some(place) = addresses.as_mut().and_then(|list| list.get_mut(slot)) {
        *place = address;
    }
}

fn noted(addresses: &Addresses, slot: usize) -> DmaAddress {
    let list = addresses.as_ref().map(|list| list.as_slice());
    list.and_then(|list| list.get(slot)).copied().unwrap_or(0)
}

fn map_error(error: Error) -> MapError {
    match error {
        e if e == ENOMEM || e == EAGAIN => MapError::Memory,
        _ => MapError::Unreachable,
    }
}
