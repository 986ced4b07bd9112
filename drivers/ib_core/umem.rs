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

use core::{
    mem::ManuallyDrop,
    ptr::{
        self,
        NonNull, //
    },
};

use hmm_abi::{
    whole::{
        self,
        Host,
        Proof, //
    },
    Geometry,
    HmmPfn,
    Index,
    Need,
    RangeError,
    Sequence,
    Span, //
};
use kernel::{
    device::Device,
    mm::{
        Mm,
        MmWithUser,
        MmWithUserAsync, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        lock::{
            mutex::MutexBackend,
            Guard,
            Lock, //
        },
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};
use kernel_ext::{
    bindings,
    hmm::{
        range_fault,
        Pfn,
        Request, //
    },
    hmm_dma::{
        Entries,
        Map, //
    },
    mmu_notifier::{
        self,
        IntervalNotifier,
        Subscription, //
    },
    pid::Pid,
};

/// The size of a CPU page, as a power of two.
// CAST: It is no more than 20.
pub(crate) const PAGE: u32 = PAGE_SHIFT as u32;

// Both are what HMM writes.
const _: () = {
    assert!(HmmPfn::VALID == Pfn::VALID);
    assert!(HmmPfn::WRITE == Pfn::WRITE);
    assert!(HmmPfn::ERROR == Pfn::ERROR);
    assert!(HmmPfn::DMA_MAPPED == Pfn::DMA_MAPPED);
    assert!(HmmPfn::P2PDMA == Pfn::P2PDMA);
    assert!(HmmPfn::P2PDMA_BUS == Pfn::P2PDMA_BUS);
    assert!(HmmPfn::ORDER_SHIFT as usize == Pfn::ORDER_SHIFT);
    assert!(size_of::<HmmPfn>() == size_of::<Pfn>());
    assert!(align_of::<HmmPfn>() == align_of::<Pfn>());
};

#[inline]
fn pfn(entry: HmmPfn) -> Pfn {
    Pfn::from_raw(entry.bits())
}

/// The memory that a [`UmemOdp`] stands for.
#[derive(Clone, Copy)]
pub(crate) struct Area {
    /// First address.
    pub(crate) address: usize,
    /// Bytes; not rounded to entries.
    pub(crate) length: usize,
    /// Bytes of an entry, as a power of two.
    pub(crate) entry_shift: u32,
}

/// What a [`UmemOdp`] belongs to.
pub(crate) struct Owner {
    device: NonNull<bindings::ib_device>,
    writable: bool,
    mm: ARef<Mm>,
    tgid: Option<ARef<Pid>>,
}

impl Owner {
    /// The current process.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a thread without memory, or if there is no device.
    ///
    /// # Safety
    ///
    /// `device` is valid for as long as the value, and what is made of it.
    pub(crate) unsafe fn current(device: *mut bindings::ib_device, writable: bool) -> Result<Self> {
        let current = kernel::current!();
        let mm: &Mm = current.mm().ok_or(EINVAL)?;
        Ok(Self {
            device: NonNull::new(device).ok_or(EINVAL)?,
            writable,
            mm: mm.into(),
            tgid: Pid::current_tgid(),
        })
    }

    /// The device that does DMA; `None` if it is software.
    fn dma_device(&self) -> Option<&Device> {
        let device = self.device.as_ptr();
        // SAFETY: The device is valid, and so is the one that does its DMA.
        unsafe {
            if bindings::ib_uses_virt_dma(device) {
                return None;
            }
            Some(Device::from_raw(bindings::ib_dma_device(device)))
        }
    }
}

/// The memory of a process, mirrored for a device; or, in an implicit root, all of it and no
/// page of it.
///
/// # Invariants
///
/// - `raw` is initialised as drivers expect it. Its `owning_mm` and `tgid` are those of `owner`.
/// - If there is a mirror, `raw.map` has an entry for each of its indices.
#[pin_data]
#[repr(C)]
pub(crate) struct Umem {
    // The first field: drivers have its address for that of the whole.
    #[pin]
    raw: Opaque<bindings::ib_umem_odp>,
    mirror: Option<(Geometry, Map)>,
    owner: Owner,
}

// SAFETY: Nothing in it belongs to a thread.
unsafe impl Send for Umem {}
// SAFETY: What changes is protected by `umem_mutex`.
unsafe impl Sync for Umem {}

/// A [`Umem`] that hears of invalidations.
///
/// # Invariants
///
/// `subscription` is that of `umem.raw.notifier`, to the addresses of the mirror; an implicit
/// root has none.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct UmemOdp {
    // All that callbacks may use. They may come while `subscription` is being made, so that they
    // have no reference to the whole.
    #[pin]
    umem: Umem,
    subscription: Option<Subscription>,
}

impl UmemOdp {
    /// A mirror of `area`.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for an area that wraps, `EINVAL` for an empty one, `ENOMEM`,
    /// `EOPNOTSUPP` for a device that needs bounce buffers, `EFAULT` if the process is gone,
    /// `EINTR`.
    ///
    /// # Safety
    ///
    /// `ops` is valid until the object is dropped, and its callbacks may be called with a
    /// `struct ib_umem_odp`.
    pub(crate) unsafe fn new(
        owner: Owner,
        area: Area,
        ops: *const bindings::mmu_interval_notifier_ops,
    ) -> Result<Pin<KBox<Self>>> {
        let geometry = Geometry::cover(area.address, area.length, PAGE, area.entry_shift).map_err(
            |error| match error {
                hmm_abi::GeometryError::Overflow => EOVERFLOW,
                hmm_abi::GeometryError::Empty => EINVAL,
            },
        )?;
        let mm: ARef<MmWithUser> = owner.mm.mmget_not_zero().ok_or(EFAULT)?;
        let span = geometry.span();

        let new = try_pin_init!(&this in Self {
            umem <- Umem::new(owner, Some((area, geometry))),
            subscription: {
                // SAFETY: `umem` is initialised, and `raw` in it.
                let notifier = unsafe {
                    let raw = Opaque::cast_into(&raw const (*this.as_ptr()).umem.raw);
                    NonNull::new_unchecked(&raw mut (*raw).notifier)
                };
                // SAFETY:
                // - The notifier is pinned; `drop` drops the subscription first.
                // - `ops` by the safety requirements. What the callbacks reach is initialised.
                Some(unsafe { Subscription::new(notifier, &mm, &span, ops)? })
            },
        }? Error);
        KBox::pin_init(new, GFP_KERNEL)
    }

    /// The root of an implicit region: all of the process's memory and no page of it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new_implicit(owner: Owner) -> Result<Pin<KBox<Self>>> {
        let new = try_pin_init!(Self {
            umem <- Umem::new(owner, None),
            subscription: None,
        }? Error);
        KBox::pin_init(new, GFP_KERNEL)
    }

    /// The C object, which from now on is for the driver to release.
    pub(crate) fn into_raw(self: Pin<KBox<Self>>) -> *mut bindings::ib_umem_odp {
        self.into_foreign().cast()
    }

    /// Takes the object back from the driver.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`], nobody uses it any more, and the hardware can
    /// reach none of its pages.
    pub(crate) unsafe fn from_raw(ptr: *mut bindings::ib_umem_odp) -> Pin<KBox<Self>> {
        // SAFETY: By the safety requirements.
        unsafe { <Pin<KBox<Self>>>::from_foreign(ptr.cast()) }
    }
}

#[pinned_drop]
impl PinnedDrop for UmemOdp {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        // SAFETY: Either no driver has ever had the object, or `from_raw` has promised it.
        let let_go = unsafe { LetGo::promise() };
        if let Some(mirror) = this.umem.mirror() {
            let mut locked = mirror.lock();
            if *locked.npages() != 0 {
                whole::unmap(&mut locked, mirror.geometry.indices(), &let_go);
            }
        }
        // Before the entries that the callbacks use are freed. They take `umem_mutex`, which is
        // not held.
        *this.subscription = None;
    }
}

impl Umem {
    /// All but the subscription: of a mirror of an area, or of an implicit root.
    fn new(owner: Owner, mirror: Option<(Area, Geometry)>) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            raw <- Opaque::ffi_init(|raw: *mut bindings::ib_umem_odp| {
                // SAFETY: Valid for writes; all bits zero are a value of each of its fields.
                unsafe {
                    raw.write_bytes(0, 1);
                    (*raw).umem.ibdev = owner.device.as_ptr();
                    (*raw).umem.owning_mm = owner.mm.as_raw();
                    (*raw).umem.set_writable(u32::from(owner.writable));
                    (*raw).umem.set_is_odp(1);
                    (*raw).tgid = match &owner.tgid {
                        Some(tgid) => tgid.as_raw(),
                        None => ptr::null_mut(),
                    };
                    if let Some((area, _)) = &mirror {
                        (*raw).umem.address = area.address;
                        (*raw).umem.length = area.length;
                        (*raw).page_shift = area.entry_shift;
                        bindings::umem_odp_mutex_init(&raw mut (*raw).umem_mutex);
                    } else {
                        (*raw).page_shift = PAGE;
                        (*raw).is_implicit_odp = true;
                        bindings::umem_odp_root_mutex_init(&raw mut (*raw).umem_mutex);
                    }
                }
            }),
            mirror: match mirror {
                Some((_, geometry)) => {
                    // SAFETY: `raw` is initialised; a field is not at null.
                    let map = unsafe {
                        let raw = Opaque::cast_into(&raw const (*this.as_ptr()).raw);
                        NonNull::new_unchecked(&raw mut (*raw).map)
                    };
                    let entries = geometry.indices().len();
                    let shift = geometry.entry_shift();
                    // SAFETY: The map is pinned, and zero. `UmemOdp` unmaps before it drops.
                    let map = unsafe { Map::new(map, owner.dma_device(), entries, shift)? };
                    Some((geometry, map))
                }
                None => None,
            },
            owner,
        }? Error)
    }

    /// Obtains a reference from what [`UmemOdp::into_raw`] returned, or from what a callback
    /// has been called for.
    ///
    /// # Safety
    ///
    /// `ptr` came from there, and is not released during `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::ib_umem_odp) -> &'a Self {
        // SAFETY: By the safety requirements; it is the first field of `Self`, which is the first
        // of `UmemOdp`.
        unsafe { &*ptr.cast() }
    }

    /// The owner of a mirror within this implicit root.
    pub(crate) fn child_owner(&self) -> Owner {
        Owner {
            device: self.owner.device,
            writable: self.owner.writable,
            mm: self.owner.mm.clone(),
            tgid: self.owner.tgid.clone(),
        }
    }

    /// The mirror; an implicit root has none.
    #[inline]
    pub(crate) fn mirror(&self) -> Option<Mirror<'_>> {
        let (geometry, map) = self.mirror.as_ref()?;
        Some(Mirror {
            umem: self,
            geometry,
            map,
        })
    }
}

/// A mirror.
#[derive(Clone, Copy)]
pub(crate) struct Mirror<'a> {
    umem: &'a Umem,
    geometry: &'a Geometry,
    map: &'a Map,
}

impl<'a> Mirror<'a> {
    /// The addresses and entries.
    #[inline]
    pub(crate) fn geometry(&self) -> &'a Geometry {
        self.geometry
    }

    /// Keeps the process's memory map for a fault.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the process is gone.
    pub(crate) fn faulting(self) -> Result<Faulting<'a>> {
        let owner = &self.umem.owner;
        let task = owner.tgid.as_ref().and_then(|tgid| tgid.task());
        let mm = task.and_then(|_| owner.mm.mmget_not_zero()).ok_or(EINVAL)?;
        Ok(Faulting {
            mirror: self,
            mm: MmWithUser::into_mmput_async(mm),
        })
    }

    fn mutex(&self) -> &'a Lock<(), MutexBackend> {
        // SAFETY: By the type invariants of `Umem`, for as long as that.
        unsafe { Lock::from_raw(&raw mut (*self.umem.raw.get()).umem_mutex) }
    }

    fn notifier(&self) -> &'a IntervalNotifier {
        // SAFETY: Whoever has a reference to the mirror of a `UmemOdp` is its user, or a callback
        // of its subscription.
        unsafe { IntervalNotifier::from_raw(&raw const (*self.umem.raw.get()).notifier) }
    }

    /// Takes `umem_mutex`.
    #[inline]
    pub(crate) fn lock(self) -> Locked<'a> {
        self.with_guard(self.mutex().lock())
    }

    /// The state under a `umem_mutex` that the caller holds, and keeps.
    ///
    /// # Safety
    ///
    /// The current task holds `umem_mutex`, and does not unlock it during the lifetime.
    #[inline]
    pub(crate) unsafe fn assume_locked(self) -> ManuallyDrop<Locked<'a>> {
        // SAFETY: By the safety requirements.
        let guard = unsafe { Guard::new(self.mutex(), ()) };
        ManuallyDrop::new(self.with_guard(guard))
    }

    #[inline]
    fn with_guard(self, guard: Guard<'a, (), MutexBackend>) -> Locked<'a> {
        Locked {
            mirror: self,
            // SAFETY: The mutex is held. What is valid has been validated under it, and the page
            // stays until the invalidation that takes it has had the mutex too.
            entries: unsafe { self.map.entries() },
            guard,
        }
    }
}

/// The hardware has let go of entries: it neither has nor uses translations of them.
pub(crate) struct LetGo(());

impl LetGo {
    /// Promises it.
    ///
    /// # Safety
    ///
    /// It must be so for all entries that the value is shown for.
    pub(crate) const unsafe fn promise() -> Self {
        Self(())
    }
}

/// `umem_mutex`, held.
pub(crate) struct Locked<'a> {
    mirror: Mirror<'a>,
    entries: Entries<'a>,
    #[expect(dead_code, reason = "unlocks on drop")]
    guard: Guard<'a, (), MutexBackend>,
}

impl Locked<'_> {
    /// Returns with the mutex held, for the caller to unlock.
    pub(crate) fn stay_locked(self) {
        core::mem::forget(self);
    }

    /// How many entries are mapped, as drivers count.
    fn npages(&mut self) -> &mut c_int {
        // SAFETY: `umem_mutex`, which protects it, is held.
        unsafe { &mut (*self.mirror.umem.raw.get()).npages }
    }
}

impl whole::Locked for Locked<'_> {
    type LetGo = LetGo;

    fn read_retry(&self, sequence: Sequence) -> bool {
        let sequence = mmu_notifier::Sequence::from_raw(sequence.0);
        self.mirror.notifier().read_retry(sequence)
    }

    #[inline]
    fn entry(&self, index: Index) -> HmmPfn {
        HmmPfn::from_bits(self.entries.get(index.0).into_raw())
    }

    #[inline]
    fn store(&mut self, index: Index, entry: HmmPfn, _: &Proof) {
        // SAFETY: What the proof stands for.
        unsafe { self.entries.set(index.0, pfn(entry)) };
    }

    fn dma_unmap(&mut self, index: Index, _: &LetGo) {
        // SAFETY: The device has let go of it, which `LetGo` stands for.
        if unsafe { self.entries.unmap(index.0) } {
            *self.npages() -= 1;
        }
    }

    fn set_dirty(&mut self, index: Index, _: &LetGo) {
        let entry = self.entry(index);
        if entry.is_valid() {
            // SAFETY: It was mapped for DMA until now: the invalidation that is under way,
            // or the one that has not come, is still to free the page.
            unsafe { pfn(entry).set_dirty() };
        }
    }
}

/// A mirror whose process cannot go away.
pub(crate) struct Faulting<'a> {
    mirror: Mirror<'a>,
    // Its reference may be dropped with `umem_mutex` held, and the last one tears the
    // memory map down, which invalidates: not here, therefore, but in a worker.
    mm: ARef<MmWithUserAsync>,
}

impl<'a> Host for Faulting<'a> {
    type Error = Error;
    type Locked<'h>
        = Locked<'a>
    where
        Self: 'h;

    fn lock(&self) -> Locked<'a> {
        self.mirror.lock()
    }

    fn range_fault(
        &self,
        span: &Span,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<Error>> {
        let request = match need {
            Need::Snapshot => Request::Snapshot,
            Need::Read => Request::Read,
            Need::Write => Request::Write,
        };
        // SAFETY: Of the same layout, as asserted above, and every value of one is one of the
        // other.
        let found = unsafe { &mut *(ptr::from_mut(found) as *mut [Pfn]) };
        match range_fault(self.mirror.notifier(), &self.mm, span, request, found) {
            Ok(sequence) => Ok(Sequence(sequence.into_raw())),
            // Who was sent a signal does not try again.
            Err(error) if error == EBUSY && !kernel::current!().signal_pending() => {
                Err(RangeError::Busy)
            }
            Err(error) => Err(RangeError::Failed(error)),
        }
    }
}
