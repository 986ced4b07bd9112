// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DMA of the pages that HMM finds: `struct hmm_dma_map`.
//!
//! A map has an entry for each page, or each run of pages of one size, of a range of a process's
//! memory. How entries are mapped depends on how the device reaches memory:
//!
//! | path | when | an entry's DMA address |
//! |---|---|---|
//! | [`Path::Iova`] | there is an IOMMU, driven by the kernel's generic DMA code | its offset in one IOVA range |
//! | [`Path::List`] | mappings have to be undone, and there is no IOVA range to be had | in a list |
//! | [`Path::Direct`] | the device uses physical addresses | follows from the page |
//! | [`Path::Virtual`] | there is no DMA: the device is software | none |
//!
//! C header: [`include/linux/hmm-dma.h`](srctree/include/linux/hmm-dma.h)

use core::{
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::__GFP_NOWARN,
    device::Device,
    dma::{
        DataDirection,
        DmaAddress, //
    },
    prelude::*,
    sync::aref::ARef, //
};

use crate::{
    bindings,
    dma_iova::{
        device_as_raw,
        Iova,
        IovaSpace,
        REQUIRE_COHERENT, //
    },
    hmm::Pfn, //
};

/// The process and the device use the pages at the same time: there is no moment to sync
/// caches, and no bounce buffer.
const ATTRS: c_ulong = REQUIRE_COHERENT;
const MMIO: c_ulong = bindings::DMA_ATTR_MMIO as c_ulong;
const DIRECTION: DataDirection = DataDirection::Bidirectional;

/// How a device reaches the pages of a map.
#[derive(Clone, Copy)]
pub enum Path<'a> {
    /// Linked to one range of IOVA space.
    Iova(&'a Device, Iova<'a>),
    /// Mapped one by one; the addresses are noted in a list of as many elements as entries.
    List(&'a Device, NonNull<DmaAddress>),
    /// By physical addresses, to which the device's address differs by a constant at most.
    Direct(&'a Device),
    /// By the CPU: nothing is to be mapped.
    Virtual,
}

/// What a map owns, path by path.
enum Space {
    Iova(IovaSpace),
    List(ARef<Device>, KVVec<DmaAddress>),
    Direct(ARef<Device>),
    Virtual,
}

/// What a `struct hmm_dma_map` refers to, freed on drop.
///
/// # Invariants
///
/// `map` refers to `pfns` and to what `space` owns, and has entries of `1 << shift` bytes.
pub struct Map {
    map: NonNull<bindings::hmm_dma_map>,
    pfns: KVVec<Pfn>,
    space: Space,
}

// SAFETY: The pointer is to what belongs to the map.
unsafe impl Send for Map {}
// SAFETY: By `&Map` the entries are reached by an unsafe method only.
unsafe impl Sync for Map {}

impl Map {
    /// Allocates `entries` entries of `1 << shift` bytes, all empty; for a device that does
    /// DMA, also what its path needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EOPNOTSUPP` for a device that would need bounce buffers or whose caches must
    /// be synced; `EINVAL` for no entries, `EOVERFLOW` for more bytes than there are addresses.
    ///
    /// # Safety
    ///
    /// `map` is valid and all zero, and stays where it is until the value is dropped; others
    /// write to its entries only, in the manner of [`Entries`]. None is mapped when the value is
    /// dropped.
    pub unsafe fn new(
        map: NonNull<bindings::hmm_dma_map>,
        device: Option<&Device>,
        entries: usize,
        shift: u32,
    ) -> Result<Self> {
        let entry = 1_usize.checked_shl(shift).ok_or(EOVERFLOW)?;
        let bytes = entries.checked_mul(entry).ok_or(EOVERFLOW)?;
        if bytes == 0 {
            return Err(EINVAL);
        }
        if let Some(device) = device {
            // SAFETY: The device is valid.
            if unsafe { bindings::hmm_dma_needs_bounce(device_as_raw(device)) } {
                return Err(EOPNOTSUPP);
            }
        }

        let flags = GFP_KERNEL | __GFP_NOWARN;
        let mut this = Self {
            map,
            pfns: KVVec::zeroed(entries, flags)?,
            space: Space::Virtual,
        };
        if let Some(device) = device {
            this.space = match IovaSpace::try_new(device, bytes) {
                Some(iova) => Space::Iova(iova),
                // SAFETY: The device is valid.
                None if unsafe { bindings::dma_need_unmap(device_as_raw(device)) } => {
                    Space::List(device.into(), KVVec::zeroed(entries, flags)?)
                }
                None => Space::Direct(device.into()),
            };
        }

        // INVARIANT: As allocated; a vector that is not pushed to does not move.
        // SAFETY: By the safety requirements.
        let map = unsafe { &mut *map.as_ptr() };
        map.pfn_list = this.pfns.as_mut_ptr().cast();
        map.dma_entry_size = entry;
        match &mut this.space {
            Space::Iova(iova) => map.state = iova.as_state(),
            Space::List(_, list) => map.dma_list = list.as_mut_ptr(),
            Space::Direct(_) | Space::Virtual => {}
        }
        Ok(this)
    }

    /// The entries.
    ///
    /// # Safety
    ///
    /// Only this thread uses them during the lifetime. Those that are valid name pages that are
    /// not freed meanwhile.
    #[inline]
    pub unsafe fn entries(&self) -> Entries<'_> {
        let device: Option<&Device> = match &self.space {
            Space::Iova(iova) => Some(iova.device()),
            Space::List(device, _) | Space::Direct(device) => Some(device),
            Space::Virtual => None,
        };
        // SAFETY: By the type invariants and the safety requirements.
        unsafe { Entries::from_raw(self.map, device, self.pfns.len()) }
    }
}

/// The entries of a map, under the lock of whoever owns it.
///
/// # Invariants
///
/// - `map` is valid and has `len` entries, which only this thread uses for `'a`.
/// - Entries that are valid name pages that are not freed meanwhile.
/// - `path` is that of the map's device.
///
/// # Examples
///
/// ```
/// use kernel::{
///     dma::DmaAddress,
///     prelude::*, //
/// };
/// use kernel_ext::hmm_dma::Entries;
///
/// /// Maps entries for the device, and tells it where they are.
/// fn publish(entries: &mut Entries<'_>, tell: impl Fn(usize, DmaAddress)) -> Result {
///     for index in 0..entries.len() {
///         match entries.map(index) {
///             Ok(address) => tell(index, address),
///             // No page is known there.
///             Err(e) if e == EAGAIN => {}
///             Err(e) => return Err(e),
///         }
///     }
///     Ok(())
/// }
/// ```
pub struct Entries<'a> {
    map: NonNull<bindings::hmm_dma_map>,
    path: Path<'a>,
    len: usize,
    _map: PhantomData<&'a mut bindings::hmm_dma_map>,
}

impl<'a> Entries<'a> {
    /// Wraps a C object, of a device that is `None` if it does no DMA.
    ///
    /// # Safety
    ///
    /// - `map` is valid for `'a`, and as `hmm_dma_map_alloc` or [`Map::new`] leaves it for
    ///   `device` and `len` entries.
    /// - Only this thread uses the entries during `'a`. Those that are valid name pages that are
    ///   not freed meanwhile, and those that are mapped were mapped by this type or by
    ///   `hmm_dma_map_pfn`.
    #[inline]
    pub unsafe fn from_raw(
        map: NonNull<bindings::hmm_dma_map>,
        device: Option<&'a Device>,
        len: usize,
    ) -> Self {
        let raw = map.as_ptr();
        // SAFETY: By the safety requirements. A range of IOVA space is not empty.
        let (has_iova, list) = unsafe { ((*raw).state.__size != 0, (*raw).dma_list) };
        let path = match (device, NonNull::new(list)) {
            (None, _) => Path::Virtual,
            (Some(device), _) if has_iova => {
                // SAFETY: By the safety requirements.
                Path::Iova(device, unsafe {
                    Iova::from_raw(device, &raw mut (*raw).state)
                })
            }
            (Some(device), Some(list)) => Path::List(device, list),
            (Some(device), None) => Path::Direct(device),
        };
        // INVARIANT: By the safety requirements.
        Self {
            map,
            path,
            len,
            _map: PhantomData,
        }
    }

    /// How many.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of an entry; `None` if there is no such entry.
    #[inline]
    fn slot(&self, index: usize) -> Option<NonNull<Pfn>> {
        if index >= self.len {
            return None;
        }
        // SAFETY: By the type invariants there is an entry `index`.
        NonNull::new(unsafe { (*self.map.as_ptr()).pfn_list.add(index).cast() })
    }

    /// Entry `index`; empty if there is no such entry.
    #[inline]
    pub fn get(&self, index: usize) -> Pfn {
        match self.slot(index) {
            // SAFETY: By the type invariants.
            Some(slot) => unsafe { slot.read() },
            None => Pfn::EMPTY,
        }
    }

    /// Makes `pfn` entry `index`, if there is such an entry.
    ///
    /// # Safety
    ///
    /// - An entry that is mapped stays mapped, and for the same page.
    /// - If `pfn` is valid it names a page that is not freed while it is in the map.
    #[inline]
    pub unsafe fn set(&mut self, index: usize, pfn: Pfn) {
        if let Some(slot) = self.slot(index) {
            // SAFETY: By the type invariants.
            unsafe { slot.write(pfn) };
        }
    }

    /// The bytes of entry `index` in IOVA space.
    #[inline]
    fn bytes(&self, index: usize) -> Range<usize> {
        let size = self.entry_size();
        // No overflow: the map has room for all entries.
        index * size..(index + 1) * size
    }

    #[inline]
    fn entry_size(&self) -> usize {
        // SAFETY: By the type invariants.
        unsafe { (*self.map.as_ptr()).dma_entry_size }
    }

    /// Maps entry `index` for DMA, if it is not, and returns where the device finds it.
    ///
    /// Does not sleep.
    ///
    /// # Errors
    ///
    /// - `EAGAIN` if the entry is not valid, or not there.
    /// - `ENOMEM` for want of memory, be it for the IOMMU's tables, which are allocated by
    ///   `GFP_ATOMIC`: to be tried again.
    /// - `EFAULT` for peer-to-peer memory that the device cannot reach.
    /// - `EIO` for memory whose address the device cannot put on the bus.
    /// - `EOPNOTSUPP` on [`Path::Virtual`], or if the device turns out not to be coherent.
    /// - Else those of the IOMMU driver.
    #[inline]
    pub fn map(&mut self, index: usize) -> Result<DmaAddress> {
        let pfn = self.get(index);
        if !pfn.has(Pfn::VALID) {
            return Err(EAGAIN);
        }
        if pfn.has(Pfn::DMA_MAPPED) {
            return self.mapped_address(index, pfn);
        }
        // SAFETY: By the type invariants: the entry is valid.
        if unsafe { pfn.is_p2pdma() } {
            return self.map_p2pdma(index);
        }
        let address = match self.path {
            Path::Iova(_, iova) => {
                let at = self.bytes(index);
                // SAFETY: The entry is not mapped; it will be unmapped before the page is freed,
                // for which `set` and `unmap` have their requirements.
                unsafe { iova.link(&at, pfn.phys(), DIRECTION, ATTRS)? };
                if let Err(error) = iova.sync(&at) {
                    // SAFETY: Just linked; nobody has been told.
                    unsafe { iova.unlink(&at, DIRECTION, ATTRS) };
                    return Err(error);
                }
                iova.address(at.start)
            }
            Path::List(device, list) => {
                let address = self.map_phys(device, pfn).ok_or(ENOMEM)?;
                // SAFETY: There is an element for every entry.
                unsafe { list.add(index).write(address) };
                address
            }
            Path::Direct(device) => self.map_phys(device, pfn).ok_or(EIO)?,
            Path::Virtual => return Err(EOPNOTSUPP),
        };
        // SAFETY: It becomes mapped; it is valid as before.
        unsafe { self.set(index, Pfn::from_raw(pfn.into_raw() | Pfn::DMA_MAPPED)) };
        Ok(address)
    }

    /// Where the device finds entry `index`; `None` if that is not valid and mapped.
    #[inline]
    pub fn address(&self, index: usize) -> Option<DmaAddress> {
        let pfn = self.get(index);
        if !pfn.has(Pfn::VALID | Pfn::DMA_MAPPED) {
            return None;
        }
        self.mapped_address(index, pfn).ok()
    }

    #[inline]
    fn mapped_address(&self, index: usize, pfn: Pfn) -> Result<DmaAddress> {
        if pfn.has(Pfn::P2PDMA_BUS) {
            return self.map_p2pdma(index);
        }
        match self.path {
            Path::Iova(_, iova) => Ok(iova.address(self.bytes(index).start)),
            // SAFETY: There is an element for every entry, and this one was written.
            Path::List(_, list) => Ok(unsafe { list.add(index).read() }),
            // Such a mapping is nothing but its address.
            Path::Direct(device) => self.map_phys(device, pfn).ok_or(EIO),
            Path::Virtual => Err(EOPNOTSUPP),
        }
    }

    /// Maps by the function that all kinds of devices share. It has no errors to tell apart.
    fn map_phys(&self, device: &Device, pfn: Pfn) -> Option<DmaAddress> {
        let device = device_as_raw(device);
        let mmio = if pfn.has(Pfn::P2PDMA) { MMIO } else { 0 };
        // SAFETY: The device is valid, and the page stays, by the type invariants.
        unsafe {
            let address = bindings::dma_map_phys(
                device,
                pfn.phys(),
                self.entry_size(),
                DIRECTION.into(),
                ATTRS | mmio,
            );
            (bindings::dma_mapping_error(device, address) == 0).then_some(address)
        }
    }

    /// Maps peer-to-peer memory. What kind it is of only C can tell.
    #[cold]
    fn map_p2pdma(&self, index: usize) -> Result<DmaAddress> {
        let device = match self.path {
            Path::Iova(device, _) | Path::List(device, _) | Path::Direct(device) => device,
            Path::Virtual => return Err(EOPNOTSUPP),
        };
        let device = device_as_raw(device);
        let mut state = bindings::pci_p2pdma_map_state::default();
        // SAFETY: The device and the map are valid, and there is a valid entry `index`.
        let address =
            unsafe { bindings::hmm_dma_map_pfn(device, self.map.as_ptr(), index, &mut state) };
        // SAFETY: A pure function.
        if unsafe { bindings::dma_mapping_error(device, address) } == 0 {
            return Ok(address);
        }
        Err(match state.map {
            // It can be reached, and was not mapped all the same.
            bindings::pci_p2pdma_map_type_PCI_P2PDMA_MAP_THRU_HOST_BRIDGE => ENOMEM,
            _ => EFAULT,
        })
    }

    /// Unmaps entry `index`, if it is valid and mapped. Returns whether it was.
    ///
    /// # Safety
    ///
    /// The device does not use it any more.
    #[inline]
    pub unsafe fn unmap(&mut self, index: usize) -> bool {
        let pfn = self.get(index);
        if !pfn.has(Pfn::VALID | Pfn::DMA_MAPPED) {
            return false;
        }
        let attrs = ATTRS | if pfn.has(Pfn::P2PDMA) { MMIO } else { 0 };
        match self.path {
            _ if pfn.has(Pfn::P2PDMA_BUS) => {}
            Path::Iova(_, iova) => {
                // SAFETY: It was linked so, by one link; the rest by the safety requirements.
                unsafe { iova.unlink(&self.bytes(index), DIRECTION, attrs) };
            }
            // SAFETY: It was mapped so, and its address noted; the rest by the safety
            // requirements.
            Path::List(device, list) => unsafe {
                bindings::dma_unmap_phys(
                    device_as_raw(device),
                    list.add(index).read(),
                    self.entry_size(),
                    DIRECTION.into(),
                    attrs,
                );
            },
            Path::Direct(_) | Path::Virtual => {}
        }
        let flags = Pfn::DMA_MAPPED | Pfn::P2PDMA | Pfn::P2PDMA_BUS;
        // SAFETY: It is not mapped any more; it is valid as before.
        unsafe { self.set(index, Pfn::from_raw(pfn.into_raw() & !flags)) };
        true
    }
}
