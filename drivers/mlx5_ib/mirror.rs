// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The mirror of an MR's memory: its chunks, its DMA and its MKey.
//!
//! Lock order: [`Mirror::making`], then what subscribing a notifier takes. Reclaim may come with a
//! chunk's lock and not with this one.

use core::{
    ops::Range,
    ptr::NonNull, //
};

use firmware_cmds::Iova;
use hmm_abi::{
    ChunkIndex,
    Geometry,
    GeometryError,
    HmmPfn,
    Slots,
    Store, //
};
use kernel::{
    device::Device,
    mm::{
        Mm,
        MmWithUser,
        MmWithUserAsync, //
    },
    new_mutex, new_spinlock,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex,
        SpinLock, //
    },
    types::Opaque,
    xarray::{
        AllocKind,
        XArray, //
    },
};
use kernel_ext::{
    hmm::{
        self,
        Pfn,
        Request, //
    },
    mmu_notifier::{
        self,
        NewSequence,
        OnePass,
        Operations,
        Registration, //
    },
    new_with_work,
    workqueue::{
        Job,
        WithWork, //
    },
};
use mlx5_odp::{
    implicit::ChildIndex,
    MemoryError,
    Placement, //
};

use crate::{
    bindings,
    chunk::{
        memory_error,
        Chunk,
        Indexed,
        NO_CHUNK, //
    },
    dma::Dma,
    eq::Faults,
    implicit::Parent,
    umr::Key,
};

/// The size of a CPU page, as a power of two.
// CAST: It is no more than 20.
pub(crate) const PAGE: u32 = PAGE_SHIFT as u32;

/// The mirror of an MR's memory.
///
/// # Invariants
///
/// The parent, if there is one, outlives the value.
#[repr(C)]
#[pin_data]
pub(crate) struct Mirror {
    /// The first field: `mr.c` has its address for that of the whole.
    #[pin]
    raw: Opaque<bindings::ib_umem_odp>,
    #[pin]
    reaper: WithWork<Reaper>,
    placement: Placement,
    mm: ARef<Mm>,
    dma: Dma,
    #[pin]
    key: Key,
    #[pin]
    chunks: XArray<Indexed>,
    /// Held while a chunk comes into the index or leaves it.
    #[pin]
    making: Mutex<()>,
    /// How many chunks there are; changed under `making`.
    count: Atomic<usize>,
    /// Of which implicit MR it is a child, and which.
    parent: Option<(NonNull<Parent>, ChildIndex)>,
    /// The first of the idle chunks.
    #[pin]
    idle: SpinLock<u32>,
}

// SAFETY: Nothing in it belongs to a thread.
unsafe impl Send for Mirror {}
// SAFETY: What changes does its own locking; `raw` is for C.
unsafe impl Sync for Mirror {}

/// Who frees chunks with nothing in them.
///
/// # Invariants
///
/// `mirror` is valid until the work is stopped.
struct Reaper {
    mirror: NonNull<Mirror>,
}

// SAFETY: A `Mirror` may be used by any thread.
unsafe impl Send for Reaper {}
// SAFETY: As above.
unsafe impl Sync for Reaper {}

impl Job for Reaper {
    fn run(this: &WithWork<Self>) {
        // SAFETY: By the type invariants.
        unsafe { this.mirror.as_ref() }.reap();
    }
}

/// What `mr.c` and others of the kernel look at in a umem.
pub(crate) struct Umem {
    pub(crate) dev: NonNull<bindings::mlx5_ib_dev>,
    pub(crate) mm: *mut bindings::mm_struct,
    pub(crate) address: usize,
    /// In bytes.
    pub(crate) length: usize,
    /// In whole entries.
    pub(crate) span: Range<usize>,
    pub(crate) entry_shift: u32,
    pub(crate) is_writable: bool,
    /// It stands for all of a process's memory, and for no page.
    pub(crate) is_implicit: bool,
}

impl Umem {
    /// The C object. Its notifier is never subscribed, nor its mutex used.
    pub(crate) fn init(self) -> impl PinInit<Opaque<bindings::ib_umem_odp>> {
        Opaque::ffi_init(move |raw: *mut bindings::ib_umem_odp| {
            // SAFETY: Valid for writes; all bits zero are a value of each of its fields. The device
            // is live.
            unsafe {
                raw.write_bytes(0, 1);
                let raw = &mut *raw;
                raw.umem.ibdev = bindings::mlx5r_odp_ibdev(self.dev.as_ptr());
                raw.umem.owning_mm = self.mm;
                raw.umem.address = self.address;
                raw.umem.length = self.length;
                raw.umem.set_writable(u32::from(self.is_writable));
                raw.umem.set_is_odp(1);
                raw.page_shift = self.entry_shift;
                raw.is_implicit_odp = self.is_implicit;
                // `ib_umem_odp_num_pages` looks here.
                raw.notifier.interval_tree.start = self.span.start;
                raw.notifier.interval_tree.last = self.span.end.wrapping_sub(1);
            }
        })
    }
}

/// What is asked of a mirror: the arguments of a registration.
pub(crate) struct Area {
    pub(crate) address: usize,
    pub(crate) length: usize,
    pub(crate) iova: Iova,
    pub(crate) writable: bool,
    /// The size of the memory's pages, as a power of two: more than a CPU page's if it is of
    /// hugetlbfs.
    pub(crate) page_shift: u32,
}

/// What a mirror is of.
pub(crate) struct MirrorOf {
    pub(crate) mm: ARef<Mm>,
    pub(crate) placement: Placement,
    /// In bytes.
    pub(crate) length: usize,
    /// The implicit MR of which it is a child, and which.
    pub(crate) parent: Option<(NonNull<Parent>, ChildIndex)>,
}

impl Area {
    /// Entries are as large as pages; huge if the memory's are, unless the device's addresses are not
    /// aligned as the process's are: an MTT translates the low bits to themselves.
    fn entry_shift(&self) -> u32 {
        // CAST: widens.
        let apart = self.iova.get() ^ self.address as u64;
        match apart.trailing_zeros() >= self.page_shift {
            true => self.page_shift,
            false => PAGE,
        }
    }
}

impl Mirror {
    /// A mirror of memory of the current process.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for an area that wraps, `EINVAL` for an empty one, and those of [`Self::of`].
    ///
    /// # Safety
    ///
    /// As [`Self::of`].
    pub(crate) unsafe fn new(
        dev: NonNull<bindings::mlx5_ib_dev>,
        area: &Area,
    ) -> Result<Pin<KBox<Self>>> {
        let current = kernel::current!();
        let mm: &Mm = current.mm().ok_or(EINVAL)?;
        let shift = area.entry_shift();
        let geometry = Geometry::cover(area.address, area.length, PAGE, shift).map_err(
            |error| match error {
                GeometryError::Overflow => EOVERFLOW,
                GeometryError::Empty => EINVAL,
            },
        )?;
        let of = MirrorOf {
            mm: ARef::from(mm),
            placement: Placement {
                iova: area.iova,
                address: area.address,
                geometry,
                writable: area.writable,
            },
            length: area.length,
            parent: None,
        };
        // SAFETY: By the safety requirements.
        unsafe { Self::of(dev, of) }
    }

    /// A mirror.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, also for more than `i32::MAX` entries, `EOPNOTSUPP` for a device that needs bounce
    /// buffers.
    ///
    /// # Safety
    ///
    /// `dev` outlives the value, and its page-fault EQ was created. The parent, if there is one,
    /// outlives it too.
    pub(crate) unsafe fn of(
        dev: NonNull<bindings::mlx5_ib_dev>,
        of: MirrorOf,
    ) -> Result<Pin<KBox<Self>>> {
        let MirrorOf {
            mm,
            placement,
            length,
            parent,
        } = of;
        let geometry = &placement.geometry;
        // `mlx5r_umr_update_xlt` counts no further; nor has any process so much.
        i32::try_from(geometry.indices().len()).map_err(|_| ENOMEM)?;
        let (span, shift) = (geometry.span(), geometry.entry_shift());
        // SAFETY: The device is valid, and so is the one that does its DMA.
        let device = unsafe { Device::from_raw(bindings::mlx5r_odp_dma_device(dev.as_ptr())) };
        let dma = Dma::new(device, span.len(), shift)?;
        // SAFETY: By the safety requirements.
        let faults = unsafe { Faults::of(dev) };
        let umem = Umem {
            dev,
            mm: mm.as_raw(),
            address: placement.address,
            length,
            span,
            entry_shift: shift,
            is_writable: placement.writable,
            is_implicit: false,
        };

        KBox::pin_init(
            try_pin_init!(&this in Self {
                raw <- umem.init(),
                // INVARIANT: `put` stops it.
                reaper <- new_with_work!(Ok::<_, Error>(Reaper { mirror: this }), "mlx5_ib_odp_reap"),
                placement,
                mm,
                dma,
                // SAFETY: The device outlives the value.
                key <- unsafe { Key::new(faults) },
                chunks <- XArray::new(AllocKind::Alloc),
                making <- new_mutex!((), "mlx5_ib_odp_making"),
                count: Atomic::new(0),
                parent,
                idle <- new_spinlock!(NO_CHUNK, "mlx5_ib_odp_idle"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The C object, which from now on is for `mr.c` to put.
    pub(crate) fn into_raw(this: Pin<KBox<Self>>) -> *mut bindings::ib_umem_odp {
        // SAFETY: C does not move it.
        KBox::into_raw(unsafe { Pin::into_inner_unchecked(this) }).cast()
    }

    /// Obtains a reference from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`] and is not put during `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::ib_umem_odp) -> &'a Self {
        // SAFETY: By the safety requirements; it is the first field of `Self`.
        unsafe { &*ptr.cast() }
    }

    /// Unmaps everything and frees the mirror.
    ///
    /// # Safety
    ///
    /// `ptr` came from [`Self::into_raw`]; nobody uses it any more but its chunks.
    pub(crate) unsafe fn put(ptr: *mut bindings::ib_umem_odp) {
        // SAFETY: By the safety requirements.
        let mirror = unsafe { Pin::new_unchecked(KBox::<Self>::from_raw(ptr.cast())) };
        // Chunks that become idle from now on are not reaped.
        mirror.reaper.stop();

        let mut cut_off = true;
        for at in 0..mirror.placement.geometry.chunks() {
            let removed = mirror.chunks.lock().remove(at);
            let Some(chunk) = removed.map(Chunk::from_arc) else {
                continue;
            };
            cut_off &= hmm_abi::release(&chunk).is_ok();
            if !cut_off {
                // Its pages are held and mapped for good.
                core::mem::forget(chunk);
            }
        }
        if !cut_off {
            mirror
                .key
                .error(c"the MKey cannot be taken from the device, its memory is kept");
            core::mem::forget(mirror);
        }
    }

    /// Where it lies.
    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// How the device reaches it.
    pub(crate) fn dma(&self) -> &Dma {
        &self.dma
    }

    /// Its MKey.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// The process's memory, while that is used by anybody.
    pub(crate) fn mm(&self) -> Option<ARef<MmWithUserAsync>> {
        self.mm.mmget_not_zero().map(MmWithUser::into_mmput_async)
    }

    /// Puts a chunk at the head of the list of idle ones; returns the one that was there.
    pub(crate) fn push_idle(&self, at: u32) -> u32 {
        core::mem::replace(&mut *self.idle.lock(), at)
    }

    /// Has [`Mirror::reap`] called.
    pub(crate) fn reap_later(&self) {
        self.reaper.enqueue(self.key.faults().workers());
    }

    /// Whether it has no chunk.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// A fault through a chunk failed: it can go if it has nothing in it.
    pub(crate) fn tidy(&self, at: ChunkIndex) {
        if let Some(chunk) = self.find(at) {
            chunk.tidy();
        }
    }

    /// Frees chunks with nothing in them.
    pub(crate) fn reap(&self) {
        self.reap_idle();
        if let Some((parent, at)) = self.parent.filter(|_| self.is_empty()) {
            // SAFETY: By the type invariants.
            unsafe { parent.as_ref() }.emptied(at);
        }
    }

    fn reap_idle(&self) {
        let mut at = core::mem::replace(&mut *self.idle.lock(), NO_CHUNK);
        while at != NO_CHUNK {
            let making = self.making.lock();
            // CAST: widens.
            let index = ChunkIndex(at as usize);
            // Only this function, and the end of the mirror, take chunks from the index.
            let Some(chunk) = self.find(index) else {
                return;
            };
            let (is_retired, next) = chunk.retire();
            let removed = match is_retired {
                true => self.chunks.lock().remove(index.0),
                false => None,
            };
            if removed.is_some() {
                self.count.store(self.count.load(Relaxed) - 1, Relaxed);
            }
            drop(making);
            // Here the notifier may go, which waits for invalidations.
            drop((removed, chunk));
            at = next;
        }
    }

    /// Says of slots of a chunk whether the process has memory there now: a guess, for a chunk that
    /// does not exist to be worth making.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the process is gone, `ENOMEM`, `EINTR`.
    pub(crate) fn occupancy(&self) -> Result<impl FnMut(ChunkIndex, Slots) -> bool + '_> {
        let mm = self.mm().ok_or(EINVAL)?;
        let geometry = &self.placement.geometry;
        let watch = KBox::pin_init(
            Registration::<Watch, OnePass>::new(
                &mm,
                geometry.span(),
                pin_init!(Watch {
                    lock <- new_mutex!((), "mlx5_ib_odp_watch"),
                }),
            ),
            GFP_KERNEL,
        )?;
        let pages = geometry.scratch_len(geometry.indices());
        let mut found = KVec::from_elem(Pfn::EMPTY, pages, GFP_KERNEL)?;

        Ok(move |at: ChunkIndex, slots: Slots| {
            let span = geometry.span_of_slots(at, slots);
            let Some(found) = found.get_mut(..span.len() >> PAGE) else {
                return true;
            };
            found.fill(Pfn::EMPTY);
            let snapshot = hmm::range_fault(watch.notifier(), &mm, &span, Request::Snapshot, found);
            // What is changing is there.
            snapshot.is_err() || found.iter().any(|pfn| pfn.has(Pfn::VALID))
        })
    }
}

/// For a look that nobody relies on: HMM does not look without a notifier.
#[pin_data]
struct Watch {
    #[pin]
    lock: Mutex<()>,
}

impl Operations for Watch {
    fn invalidate(&self, range: &mmu_notifier::Range, sequence: NewSequence<'_>) -> bool {
        if !range.is_blockable() {
            return false;
        }
        sequence.set(&self.lock.lock());
        true
    }
}

impl Store for Mirror {
    type Chunk = Chunk;

    fn find(&self, at: ChunkIndex) -> Option<Chunk> {
        let chunks = self.chunks.lock();
        chunks.get(at.0).map(|chunk| Chunk::from_arc(chunk.into()))
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Chunk, MemoryError> {
        if let Some(chunk) = self.find(at) {
            return Ok(chunk);
        }
        let _making = self.making.lock();
        if let Some(chunk) = self.find(at) {
            return Ok(chunk);
        }
        // SAFETY: `put` removes all chunks before the mirror goes; those that a fault holds besides
        // are gone by then, for the MR waits for faults.
        let chunk = unsafe { Chunk::new(self, at)? };
        self.chunks
            .lock()
            .store(at.0, chunk.clone().into_arc(), GFP_KERNEL)
            .map_err(|error| memory_error(error.error))?;
        self.count.store(self.count.load(Relaxed) + 1, Relaxed);
        Ok(chunk)
    }
}

/// What a range fault finds, on the stack if it is little.
pub(crate) struct Scratch {
    few: [HmmPfn; Scratch::FEW],
    many: KVec<HmmPfn>,
}

impl Scratch {
    /// As many as a fault on one page looks at, twice over.
    const FEW: usize = 32;

    /// No memory is allocated before it is needed.
    #[inline]
    pub(crate) const fn new() -> Self {
        Self {
            few: [HmmPfn::EMPTY; Self::FEW],
            many: KVec::new(),
        }
    }
}

impl hmm_abi::Scratch for Scratch {
    fn pages(&mut self, pages: usize) -> Option<&mut [HmmPfn]> {
        if let Some(few) = self.few.get_mut(..pages) {
            return Some(few);
        }
        if self.many.len() < pages {
            self.many.resize(pages, HmmPfn::EMPTY, GFP_KERNEL).ok()?;
        }
        self.many.get_mut(..pages)
    }
}
