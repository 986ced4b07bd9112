// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! User memory for On-Demand Paging: `struct ib_umem_odp` as a mirror.
//!
//! C header: [`include/rdma/ib_umem_odp.h`](srctree/include/rdma/ib_umem_odp.h)
//!
//! Drivers use the C object: they take `umem_mutex`, read `map.pfn_list` under it, map
//! entries for DMA there and count them in `npages`. What is Rust's alone comes behind.
//!
//! Lock order: `mmap_lock` and the reverse map's locks, then `umem_mutex`. Reclaim may
//! come with any of the former, so nothing under `umem_mutex` allocates in a way that
//! reclaims.

use crate::{
    bindings,
    hmm::{self, DmaDevice, DmaMap},
    mmu_notifier::IntervalNotifier,
    pid::Pid,
};
use core::{marker::PhantomPinned, mem::ManuallyDrop, ptr};
use hmm_abi::{Entry, Geometry, Host, Index, Need, Proof, RangeError, Sequence, Shared, Span};
use kernel::{
    alloc::flags::GFP_KERNEL,
    mm::{Mm, MmWithUser, MmWithUserAsync},
    prelude::*,
    sync::aref::ARef,
    sync::lock::{mutex::MutexBackend, Guard, Lock},
    types::Opaque,
};

/// What a memory region may be used for: `enum ib_access_flags`.
#[derive(Clone, Copy)]
pub struct Access(c_int);

impl Access {
    /// From the flags of a verb. Any value will do.
    pub const fn new(flags: c_int) -> Self {
        Self(flags)
    }

    const fn has(self, flag: bindings::ib_access_flags) -> bool {
        // CAST: Of the bits as they are.
        self.0 as bindings::ib_access_flags & flag != 0
    }

    /// On-Demand Paging.
    pub const fn on_demand(self) -> bool {
        self.has(bindings::ib_access_flags_IB_ACCESS_ON_DEMAND)
    }

    /// The memory is of hugetlbfs.
    pub const fn hugetlb(self) -> bool {
        self.has(bindings::ib_access_flags_IB_ACCESS_HUGETLB)
    }

    /// Something in it writes.
    pub fn writable(self) -> bool {
        // SAFETY: A pure function.
        unsafe { bindings::ib_access_writable(self.0) }
    }

    /// Bytes of an entry, as a power of two.
    pub fn entry_shift(self) -> u32 {
        // SAFETY: A pure function.
        unsafe { bindings::ib_access_page_shift(self.0) }
    }
}

/// The memory that a [`UmemOdp`] stands for.
#[derive(Clone, Copy)]
pub struct Area {
    /// First address.
    pub address: usize,
    /// Bytes; not rounded to entries.
    pub length: usize,
    /// Bytes of an entry, as a power of two.
    pub entry_shift: u32,
}

/// A wrapper for the kernel's `struct ib_umem_odp`, and what else belongs to it.
///
/// # Invariants
///
/// - `raw` is initialised as drivers expect it, and does not move.
/// - If `geometry` is there, `raw.map` holds entries for exactly its indices and
///   `raw.notifier` is subscribed to its addresses; both until [`UmemOdp::release`].
/// - `raw.umem.owning_mm` is `mm`, `raw.tgid` is `tgid`.
#[repr(C)]
pub struct UmemOdp {
    /// The first field: drivers have its address for that of the whole.
    raw: Opaque<bindings::ib_umem_odp>,
    /// `None` in an implicit root, which covers no addresses.
    geometry: Option<Geometry>,
    mm: ARef<Mm>,
    tgid: Option<ARef<Pid>>,
    _pin: PhantomPinned,
}

// SAFETY: Nothing in it belongs to a thread.
unsafe impl Send for UmemOdp {}
// SAFETY: What changes is protected by `umem_mutex`.
unsafe impl Sync for UmemOdp {}

impl UmemOdp {
    /// An object with nothing in it but what every kind has.
    fn alloc(
        device: *mut bindings::ib_device,
        writable: bool,
        mm: ARef<Mm>,
        tgid: Option<ARef<Pid>>,
        entry_shift: u32,
    ) -> Result<KBox<Self>> {
        let umem = KBox::new(
            Self {
                raw: Opaque::zeroed(),
                geometry: None,
                mm,
                tgid,
                _pin: PhantomPinned,
            },
            GFP_KERNEL,
        )?;
        let raw = umem.raw.get();
        // SAFETY: Nobody else has the object yet.
        unsafe {
            (*raw).umem.ibdev = device;
            (*raw).umem.owning_mm = umem.mm.as_raw();
            (*raw).umem.set_writable(u32::from(writable));
            (*raw).umem.set_is_odp(1);
            (*raw).tgid = umem.tgid_ptr();
            (*raw).page_shift = entry_shift;
        }
        Ok(umem)
    }

    fn tgid_ptr(&self) -> *mut bindings::pid {
        match &self.tgid {
            Some(tgid) => ptr::from_ref::<Pid>(tgid).cast_mut().cast(),
            None => ptr::null_mut(),
        }
    }

    /// A mirror of `area` in the current process.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for an area that wraps, `EINVAL` for an empty one, `ENOMEM`,
    /// `EOPNOTSUPP` for a device that needs bounce buffers, `EINTR`.
    ///
    /// # Safety
    ///
    /// `device` and `ops` are valid until the object is released, and the callbacks of
    /// `ops` may be called with a `struct ib_umem_odp`.
    pub unsafe fn new(
        device: *mut bindings::ib_device,
        writable: bool,
        area: Area,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result<KBox<Self>> {
        let current = kernel::current!();
        let mm = current.mm().ok_or(EINVAL)?;
        let umem = Self::alloc(
            device,
            writable,
            grab(mm),
            Pid::current_tgid(),
            area.entry_shift,
        )?;
        // SAFETY: By the safety requirements.
        unsafe { umem.init_mirror(mm, area, ops) }
    }

    /// The root of an implicit region of the current process: all of its memory and no
    /// page of it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `device` is valid until the object is released.
    pub unsafe fn new_implicit(
        device: *mut bindings::ib_device,
        writable: bool,
    ) -> Result<KBox<Self>> {
        let current = kernel::current!();
        let mm = grab(current.mm().ok_or(EINVAL)?);
        let page_shift = PAGE_SHIFT;
        let umem = Self::alloc(device, writable, mm, Pid::current_tgid(), page_shift)?;
        let raw = umem.raw.get();
        // SAFETY: Nobody else has the object yet.
        unsafe {
            (*raw).is_implicit_odp = true;
            bindings::umem_odp_root_mutex_init(&raw mut (*raw).umem_mutex);
        }
        Ok(umem)
    }

    /// A mirror of `area` in the process of an implicit root.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `self` is no implicit root, `EFAULT` if its process is gone; else as
    /// for [`Self::new`].
    ///
    /// # Safety
    ///
    /// As for [`Self::new`].
    pub unsafe fn new_child(
        &self,
        area: Area,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result<KBox<Self>> {
        if self.geometry.is_some() {
            return Err(EINVAL);
        }
        let raw = self.raw.get();
        // SAFETY: By the type invariants; these do not change after initialisation.
        let (device, writable) = unsafe { ((*raw).umem.ibdev, (*raw).umem.writable() != 0) };
        let child = Self::alloc(
            device,
            writable,
            self.mm.clone(),
            self.tgid.clone(),
            area.entry_shift,
        )?;
        let mm = self.mm.mmget_not_zero().ok_or(EFAULT)?;
        // SAFETY: By the safety requirements.
        unsafe { child.init_mirror(&mm, area, ops) }
    }

    /// Allocates the entries and subscribes.
    ///
    /// # Safety
    ///
    /// As for [`Self::new`]; and nobody else has the object.
    unsafe fn init_mirror(
        mut self: KBox<Self>,
        mm: &MmWithUser,
        area: Area,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result<KBox<Self>> {
        let geometry = Geometry::cover(area.address, area.length, PAGE_SHIFT, area.entry_shift)
            .map_err(|error| match error {
                hmm_abi::GeometryError::Overflow => EOVERFLOW,
                hmm_abi::GeometryError::Empty => EINVAL,
            })?;
        let raw = self.raw.get();
        // SAFETY: Nobody else has the object. The lock's class is static.
        unsafe {
            (*raw).umem.address = area.address;
            (*raw).umem.length = area.length;
            (*raw).notifier.ops = ops;
            bindings::umem_odp_mutex_init(&raw mut (*raw).umem_mutex);
        }

        // SAFETY: Nobody else has the object; it has no entries yet.
        let mut map = unsafe { self.map() };
        // SAFETY: See above; `free` is called below, or in `release`.
        unsafe { map.alloc(&geometry)? };
        // SAFETY: The object is in a box that moves no more; `release` removes it.
        if let Err(error) = unsafe { self.notifier().insert(mm, &geometry.span(), ops) } {
            // SAFETY: Allocated above; nothing is mapped.
            unsafe { map.free() };
            return Err(error);
        }
        // INVARIANT: Allocated and subscribed.
        self.geometry = Some(geometry);
        Ok(self)
    }

    /// The C object, which from now on is for the driver to release.
    pub fn into_raw(self: KBox<Self>) -> *mut bindings::ib_umem_odp {
        KBox::into_raw(self).cast()
    }

    /// Obtains a reference from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`] and is not released during `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::ib_umem_odp) -> &'a Self {
        // SAFETY: By the safety requirements; it is the first field of `Self`.
        unsafe { &*ptr.cast() }
    }

    /// Unmaps everything and frees the object.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`], nobody uses it any more, and the hardware can
    /// reach none of its pages.
    pub unsafe fn release(ptr: *mut bindings::ib_umem_odp) {
        // SAFETY: By the safety requirements.
        let umem: KBox<Self> = unsafe { KBox::from_raw(ptr.cast()) };
        let Some(geometry) = &umem.geometry else {
            return;
        };
        // SAFETY: By the safety requirements, of all entries.
        let let_go = unsafe { LetGo::promise() };
        hmm_abi::release(&mut umem.lock(), geometry, &let_go);
        // SAFETY: Subscribed, by the type invariants. Its callbacks take `umem_mutex`,
        // which is not held.
        unsafe { umem.notifier().remove() };
        // SAFETY: Nobody else has the object; nothing is mapped any more.
        unsafe { umem.map().free() };
    }

    /// The addresses and entries; `None` in an implicit root.
    #[inline]
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// Keeps the process's memory map for a fault.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the process is gone.
    pub fn faulting(&self) -> Result<Faulting<'_>> {
        let task = self.tgid.as_ref().and_then(|tgid| tgid.task());
        let mm = task.and_then(|_| self.mm.mmget_not_zero()).ok_or(EINVAL)?;
        Ok(Faulting {
            umem: self,
            mm: MmWithUser::into_mmput_async(mm),
        })
    }

    fn notifier(&self) -> &IntervalNotifier {
        // SAFETY: `raw` is valid for as long as `self`.
        unsafe { IntervalNotifier::from_raw(&raw mut (*self.raw.get()).notifier) }
    }

    /// The entries.
    ///
    /// # Safety
    ///
    /// `umem_mutex` is held, or nobody else has the object.
    unsafe fn map(&self) -> DmaMap<'_> {
        let raw = self.raw.get();
        // SAFETY: `raw.umem.ibdev` is set once and valid until `release`.
        let device = unsafe {
            let device = (*raw).umem.ibdev;
            match ptr::NonNull::new(bindings::ib_dma_device(device)) {
                Some(dma) if !bindings::ib_uses_virt_dma(device) => DmaDevice::Mapped(dma),
                _ => DmaDevice::Virtual,
            }
        };
        // SAFETY: Nobody else uses the map, by the safety requirements.
        unsafe { DmaMap::from_raw(&raw mut (*raw).map, device) }
    }

    fn mutex(&self) -> &Lock<(), MutexBackend> {
        // SAFETY: Initialised by every constructor, and valid for as long as `self`.
        unsafe { Lock::from_raw(&raw mut (*self.raw.get()).umem_mutex) }
    }

    /// Takes `umem_mutex`.
    pub fn lock(&self) -> Locked<'_> {
        let guard = self.mutex().lock();
        // SAFETY: The mutex is held.
        let map = unsafe { self.map() };
        Locked {
            umem: self,
            map,
            guard,
        }
    }

    /// The state under a `umem_mutex` that the caller holds, and keeps.
    ///
    /// # Safety
    ///
    /// The current task holds `umem_mutex`, and does not unlock it during the lifetime.
    pub unsafe fn assume_locked(&self) -> ManuallyDrop<Locked<'_>> {
        ManuallyDrop::new(Locked {
            umem: self,
            // SAFETY: The mutex is held.
            map: unsafe { self.map() },
            // SAFETY: By the safety requirements.
            guard: unsafe { Guard::new(self.mutex(), ()) },
        })
    }
}

/// The size of a CPU page, as a power of two.
// CAST: It is no more than 20.
pub const PAGE_SHIFT: u32 = kernel::page::PAGE_SHIFT as u32;

fn grab(mm: &MmWithUser) -> ARef<Mm> {
    let mm: &Mm = mm;
    mm.into()
}

/// The hardware has let go of entries: it neither has nor uses translations of them.
pub struct LetGo(());

impl LetGo {
    /// Promises it.
    ///
    /// # Safety
    ///
    /// It must be so for all entries that the value is shown for.
    pub const unsafe fn promise() -> Self {
        Self(())
    }
}

/// `umem_mutex`, held.
pub struct Locked<'a> {
    umem: &'a UmemOdp,
    map: DmaMap<'a>,
    #[expect(dead_code, reason = "unlocks on drop")]
    guard: Guard<'a, (), MutexBackend>,
}

impl Locked<'_> {
    /// Returns with the mutex held, for the caller to unlock.
    pub fn stay_locked(self) {
        core::mem::forget(self);
    }

    /// Whether there is an entry `index`.
    fn has(&self, index: Index) -> bool {
        let geometry = self.umem.geometry();
        geometry.is_some_and(|geometry| index < geometry.indices().end())
    }
}

impl Shared for Locked<'_> {
    type LetGo = LetGo;

    fn read_retry(&self, sequence: Sequence) -> bool {
        self.umem.notifier().read_retry(sequence)
    }

    fn entry(&self, index: Index) -> Entry {
        if !self.has(index) {
            return Entry::EMPTY;
        }
        // SAFETY: There is an entry of this index, by the type invariants of `UmemOdp`.
        unsafe { self.map.entry(index) }
    }

    fn store(&mut self, index: Index, entry: Entry, _: &Proof<'_>) {
        if self.has(index) {
            // SAFETY: As above; the proof stands for the rest.
            unsafe { self.map.store(index, entry) };
        }
    }

    fn dma_unmap(&mut self, index: Index, _: &LetGo) {
        // SAFETY: As above; the device has let go of it, which `LetGo` stands for.
        if self.has(index) && unsafe { self.map.unmap(index) } {
            // SAFETY: `umem_mutex`, which protects it, is held.
            unsafe { (*self.umem.raw.get()).npages -= 1 };
        }
    }

    fn set_dirty(&mut self, index: Index, _: &LetGo) {
        let entry = self.entry(index);
        if entry.is_valid() {
            // SAFETY: It was mapped for DMA until now: the invalidation that is under way,
            // or the one that has not come, is still to free the page.
            unsafe { hmm::set_dirty(entry) };
        }
    }

    fn unhold(&mut self, index: Index, _: &LetGo) {
        let entry = self.entry(index);
        if entry.is_valid() {
            // SAFETY: The entry was stuck: who made it so has left a reference.
            unsafe { hmm::put_page(entry) };
        }
    }
}

/// A [`UmemOdp`] whose process cannot go away.
pub struct Faulting<'a> {
    umem: &'a UmemOdp,
    // Its reference may be dropped with `umem_mutex` held, and the last one tears the
    // memory map down, which invalidates: not here, therefore, but in a worker.
    mm: ARef<MmWithUserAsync>,
}

impl Host for Faulting<'_> {
    type Error = Error;
    type Shared<'h>
        = Locked<'h>
    where
        Self: 'h;

    fn lock(&self) -> Locked<'_> {
        self.umem.lock()
    }

    fn range_fault(
        &self,
        span: &Span,
        need: Need,
        found: &mut [Entry],
    ) -> Result<Sequence, RangeError<Error>> {
        let mirrored = self.umem.geometry().map(Geometry::span).unwrap_or(0..0);
        if span.start < mirrored.start || span.end > mirrored.end {
            return Err(RangeError::Failed(EFAULT));
        }
        // SAFETY: With a geometry the notifier is subscribed to it, in this process, by the
        // type invariants of `UmemOdp`.
        unsafe { hmm::range_fault(self.umem.notifier(), &self.mm, span, need, found) }
    }
}
