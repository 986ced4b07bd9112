// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DMA of pages that HMM found, path by path.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    device::Device,
    dma::DataDirection,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    types::Opaque, //
};
use kernel_ext::{
    bindings,
    dma_iova::{
        IovaSpace,
        REQUIRE_COHERENT, //
    },
    hmm::{
        range_fault,
        Pfn,
        Request, //
    },
    hmm_dma::{
        Entries,
        Map, //
    },
};

use crate::{
    check,
    memory::Mapping,
    notifier::{
        recorder,
        Recorder, //
    },
};

/// A PCI device of Mellanox, of which a reference is held.
pub(crate) struct PciDevice(NonNull<bindings::pci_dev>);

impl PciDevice {
    const VENDOR: c_uint = 0x15b3;

    pub(crate) fn first() -> Option<Self> {
        // SAFETY: Takes a reference on what it returns. The second argument is PCI_ANY_ID.
        NonNull::new(unsafe {
            bindings::pci_get_device(Self::VENDOR, c_uint::MAX, ptr::null_mut())
        })
        .map(Self)
    }

    fn device(&self) -> &Device {
        // SAFETY: A reference is held for as long as `self`.
        unsafe { Device::from_raw(&raw mut (*self.0.as_ptr()).dev) }
    }

    fn domain(&self) -> *mut bindings::iommu_domain {
        // SAFETY: The device is valid.
        unsafe { bindings::iommu_get_domain_for_dev(&raw mut (*self.0.as_ptr()).dev) }
    }

    /// Whether there is an IOMMU that translates for it.
    pub(crate) fn has_iommu(&self) -> bool {
        let domain = self.domain();
        // SAFETY: If not null, it is that of the device, which is held.
        !domain.is_null() && unsafe { (*domain).type_ } != bindings::IOMMU_DOMAIN_IDENTITY
    }

    pub(crate) fn path_name(&self) -> &'static str {
        match self.has_iommu() {
            true => "dma, iova",
            false => "dma, direct",
        }
    }

    /// Where the device gets to by an address; 0 for nowhere.
    fn phys(&self, address: u64) -> u64 {
        match self.has_iommu() {
            // SAFETY: The domain is that of the device, which is held.
            true => unsafe { bindings::iommu_iova_to_phys(self.domain(), address) },
            false => address,
        }
    }
}

impl Drop for PciDevice {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::pci_dev_put(self.0.as_ptr()) };
    }
}

type Registration = Pin<KBox<kernel_ext::mmu_notifier::Registration<Recorder>>>;

/// A map, and as many pages of the current process, which stay for as long.
struct Pages {
    // Dropped first: its entries are unmapped.
    map: Map,
    raw: Pin<KBox<Opaque<bindings::hmm_dma_map>>>,
    _registration: Registration,
    pfns: KVec<Pfn>,
    _memory: Mapping,
}

impl Pages {
    fn new(device: Option<&Device>, entries: usize, shift: u32, pages: usize) -> Result<Self> {
        let memory = Mapping::new(pages, true)?;
        let registration = recorder(memory.span())?;
        let current = kernel::current!();
        let mm = current.mm().ok_or(EINVAL)?;
        let mut pfns = KVec::from_elem(Pfn::EMPTY, pages, GFP_KERNEL)?;
        range_fault(
            registration.notifier(),
            mm,
            &memory.span(),
            Request::Write,
            &mut pfns,
        )?;
        let raw = KBox::pin(Opaque::zeroed(), GFP_KERNEL)?;
        let at = NonNull::new(raw.get()).ok_or(EINVAL)?;
        Ok(Self {
            // SAFETY: Zero, pinned, and dropped after the map; every test unmaps what it maps.
            map: unsafe { Map::new(at, device, entries, shift)? },
            raw,
            _registration: registration,
            pfns,
            _memory: memory,
        })
    }

    /// The entries, the first of which are those pages.
    fn entries(&self) -> Entries<'_> {
        // SAFETY: Nobody else uses them, and nothing takes the pages while the test runs.
        let mut entries = unsafe { self.map.entries() };
        for (index, pfn) in self.pfns.iter().enumerate() {
            // SAFETY: Nothing is mapped yet, and the pages stay.
            unsafe { entries.set(index, *pfn) };
        }
        entries
    }
}

/// Maps, and unmaps, what the device can then reach, and cannot.
fn round_trip(device: &PciDevice, pages: &Pages) -> Result {
    let mut entries = pages.entries();
    for (index, pfn) in pages.pfns.iter().enumerate() {
        check!(entries.address(index).is_none());
        let address = entries.map(index)?;
        check!(device.phys(address) == pfn.phys());
        check!(entries
            .get(index)
            .has(Pfn::VALID | Pfn::WRITE | Pfn::DMA_MAPPED));
        // Once more, which is to change nothing.
        check!(entries.map(index) == Ok(address) && entries.address(index) == Some(address));
    }
    check!(entries.map(pages.pfns.len()) == Err(EAGAIN));
    check!(entries.map(usize::MAX) == Err(EAGAIN) && entries.get(usize::MAX) == Pfn::EMPTY);

    for (index, pfn) in pages.pfns.iter().enumerate() {
        let address = entries.address(index).ok_or(EINVAL)?;
        // SAFETY: The device has not been told.
        check!(unsafe { entries.unmap(index) });
        check!(!device.has_iommu() || device.phys(address) == 0);
        check!(entries.get(index) == *pfn && entries.address(index).is_none());
        // SAFETY: As above.
        check!(!unsafe { entries.unmap(index) });
    }
    Ok(())
}

/// The path that the machine has for the device.
pub(crate) fn native_path(device: &PciDevice) -> Result {
    let pages = Pages::new(Some(device.device()), 4, PAGE_SHIFT as u32, 3)?;
    // SAFETY: Nobody writes to it now.
    let raw = unsafe { &*pages.raw.get() };
    check!(raw.dma_list.is_null() && (raw.state.__size != 0) == device.has_iommu());
    check!(raw.dma_entry_size == PAGE_SIZE && !raw.pfn_list.is_null());
    round_trip(device, &pages)
}

/// A stretch that was linked at once, and of which a page is unlinked.
pub(crate) fn stretch(device: &PciDevice) -> Result {
    /// What an IOMMU may have a page of.
    const LARGE: usize = 2 << 20;
    const ALL: usize = 4 * LARGE;

    let pages = Pages::new(Some(device.device()), 1, PAGE_SHIFT as u32, 1)?;
    let space = IovaSpace::try_new(device.device(), ALL).ok_or(EOPNOTSUPP)?;
    let len = space.divisible(PAGE_SIZE).min(2 * LARGE);
    check!(len >= PAGE_SIZE && len % PAGE_SIZE == 0);

    // Both at a multiple of a large page. What lies there does not matter: no device is told.
    let iova = space.iova();
    let phys = pages.pfns[0].phys() & !(LARGE as u64 - 1);
    let start = (LARGE - iova.address(0) as usize % LARGE) % LARGE;
    let all = start..start + len;
    let hole = start + len / 2 / PAGE_SIZE * PAGE_SIZE;
    let hole = hole..hole + PAGE_SIZE;

    // SAFETY: Nothing is linked; all of it is unlinked below.
    unsafe { iova.link(&all, phys, DataDirection::Bidirectional, REQUIRE_COHERENT)? };
    let synced = iova.sync(&all);
    // SAFETY: Linked above, by a stretch that can be divided; nobody uses it.
    unsafe { iova.unlink(&hole, DataDirection::Bidirectional, REQUIRE_COHERENT) };
    let at = |offset: usize| device.phys(iova.address(offset));
    let due = |offset: usize| match hole.contains(&offset) {
        true => 0,
        false => phys + (offset - start) as u64,
    };
    let as_due = all
        .clone()
        .step_by(PAGE_SIZE)
        .all(|offset| at(offset) == due(offset));
    for rest in [all.start..hole.start, hole.end..all.end] {
        if !rest.is_empty() {
            // SAFETY: As above.
            unsafe { iova.unlink(&rest, DataDirection::Bidirectional, REQUIRE_COHERENT) };
        }
    }
    synced?;
    check!(as_due);
    check!(all.step_by(PAGE_SIZE).all(|offset| at(offset) == 0));
    Ok(())
}

/// The path where there is no IOVA range to be had: entries of 8 PiB, 4 EiB in all, are too many
/// for any IOMMU.
pub(crate) fn list_path(device: &PciDevice) -> Result {
    let pages = Pages::new(Some(device.device()), 512, 53, 3)?;
    // SAFETY: Nobody else uses it. What is mapped is as long as an entry.
    let raw = unsafe { &mut *pages.raw.get() };
    check!(!raw.dma_list.is_null() && raw.state.__size == 0);
    raw.dma_entry_size = PAGE_SIZE;
    round_trip(device, &pages)
}

/// No DMA: there are entries, and nothing to map.
pub(crate) fn virtual_path() -> Result {
    let pages = Pages::new(None, 4, PAGE_SHIFT as u32, 2)?;
    let mut entries = pages.entries();
    check!(entries.len() == 4 && entries.get(1) == pages.pfns[1]);
    check!(entries.map(0) == Err(EOPNOTSUPP) && entries.address(0).is_none());
    check!(entries.map(2) == Err(EAGAIN));
    // SAFETY: There is no device to use it.
    check!(!unsafe { entries.unmap(0) });
    check!(entries.get(0) == pages.pfns[0]);
    Ok(())
}
