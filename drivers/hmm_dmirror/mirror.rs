// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The mirror of all of a process's memory: what belongs to an open device file.
//!
//! Lock order: [`Mirror::made`], then what subscribing a notifier takes; what the memory manager
//! holds when it invalidates, then a chunk's lock or [`Mirror::movers`].

use hmm_abi::{
    serve,
    ChunkIndex,
    Fault,
    FaultError,
    Geometry,
    HmmPfn,
    Indices,
    Need,
    Order,
    Pfn,
    RangeError,
    Sequence,
    Served,
    Slots,
    Snapshot,
    Stale,
    Store,
    ATTEMPTS,
    BUSY_ATTEMPTS,
    WINDOW_PAGES, //
};
use kernel::{
    mm::{
        Mm,
        MmWithUser,
        MmWithUserAsync, //
    },
    new_mutex, new_spinlock,
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex,
        SpinLock, //
    },
    xarray::{
        AllocKind,
        XArray, //
    },
};
use kernel_ext::mmu_notifier::{
    Event,
    Range, //
};

use crate::{
    bindings,
    chunk::{
        Chunk,
        Subscribed, //
    },
    exclusive::ExclusivePage,
    table::NoTranslation,
};

/// The size of a CPU page, as a power of two.
// CAST: It is no more than 20.
const PAGE: u32 = PAGE_SHIFT as u32;

/// The mirror of a process's memory.
#[pin_data]
pub(crate) struct Mirror {
    /// By [`ChunkIndex`]. A chunk stays until the end of the mirror; the first field, for
    /// callbacks use the others.
    #[pin]
    chunks: XArray<Arc<Subscribed>>,
    /// Whose pages of device memory it may use.
    device: *mut bindings::dmirror_device,
    mm: ARef<Mm>,
    geometry: Geometry,
    /// Which there are.
    #[pin]
    made: Mutex<KVec<ChunkIndex>>,
    /// Tasks that migrate pages to the device, through this mirror.
    #[pin]
    movers: SpinLock<KVec<i32>>,
}

// SAFETY: `device` is the address of a static.
unsafe impl Send for Mirror {}
// SAFETY: As above; what changes is behind locks.
unsafe impl Sync for Mirror {}

/// Who causes an invalidation.
pub(crate) enum Cause {
    /// Anybody else than the two below.
    Foreign,
    /// This task, which migrates pages to the device and takes back by itself what it moves.
    Migration,
    /// This mirror, by making a page exclusive to the device.
    Exclusive,
}

impl Mirror {
    /// A mirror of all of the current process's memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a kernel thread, `ENOMEM`.
    pub(crate) fn new(device: *mut bindings::dmirror_device) -> Result<Pin<KBox<Self>>> {
        let current = kernel::current!();
        let mm: &Mm = current.mm().ok_or(EINVAL)?;
        let geometry = Geometry::of_span(0..PAGE_MASK, PAGE, PAGE).ok_or(EINVAL)?;
        KBox::pin_init(
            pin_init!(Self {
                chunks <- XArray::new(AllocKind::Alloc),
                device,
                mm: ARef::from(mm),
                geometry,
                made <- new_mutex!(KVec::new(), "hmm_dmirror_made"),
                movers <- new_spinlock!(KVec::new(), "hmm_dmirror_movers"),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes everything back, before the notifiers go: pages are the process's until then.
    pub(crate) fn end(&self) {
        for &at in self.made.lock().iter() {
            if let Some(chunk) = self.find(at) {
                let all = self.geometry.chunk(at).len();
                hmm_abi::withdraw(&chunk, Slots::new(0..all));
            }
        }
    }

    /// Where it lies.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The entries of `pages` pages from `address`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if they are not of the mirror.
    pub(crate) fn indices(&self, address: u64, pages: u64) -> Result<Indices> {
        let address = usize::try_from(address).map_err(|_| EINVAL)?;
        let pages = usize::try_from(pages).map_err(|_| EINVAL)?;
        let length = pages.checked_mul(1 << PAGE).ok_or(EINVAL)?;
        self.geometry.within(address, length).ok_or(EINVAL)
    }

    /// The owner of the pages that HMM reports as they are.
    pub(crate) fn owner(&self) -> *mut c_void {
        self.device.cast()
    }

    /// What pages are made exclusive in the name of.
    fn identity(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }

    /// The process's memory.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the process is gone.
    pub(crate) fn mm(&self) -> Result<ARef<MmWithUserAsync>> {
        let mm = self.mm.mmget_not_zero().ok_or(EFAULT)?;
        Ok(MmWithUser::into_mmput_async(mm))
    }

    /// Who causes an invalidation, seen from its callback.
    ///
    /// A migration's owner is the device. Another mirror of that device has nobody to take back
    /// what is moved, nor has this one when a CPU fault moves it: the task decides.
    pub(crate) fn cause(&self, range: &Range) -> Cause {
        match range.event() {
            Event::EXCLUSIVE if range.owner() == self.identity() => Cause::Exclusive,
            Event::MIGRATE if range.owner() == self.owner() && self.is_mover() => Cause::Migration,
            _ => Cause::Foreign,
        }
    }

    fn is_mover(&self) -> bool {
        self.movers.lock().contains(&kernel::current!().pid())
    }

    /// Calls `each` for every page of `indices`, with its chunk and its slot there.
    ///
    /// # Errors
    ///
    /// The first one's; a chunk that does not exist has no translation.
    pub(crate) fn for_each_page(
        &self,
        indices: Indices,
        mut each: impl FnMut(&Chunk, usize) -> Result<(), NoTranslation>,
    ) -> Result<(), NoTranslation> {
        for (at, slots) in self.geometry.by_chunk(indices) {
            let chunk = self.find(at).ok_or(NoTranslation)?;
            for slot in slots.range() {
                each(&chunk, slot)?;
            }
        }
        Ok(())
    }

    /// Faults `indices` in and has the device use them; a snapshot takes what is there.
    ///
    /// # Errors
    ///
    /// Those of `hmm_range_fault`; `EBUSY` if invalidations won every time.
    pub(crate) fn fault(&self, indices: Indices, need: Need) -> Result {
        let mut scratch = self.scratch(indices)?;
        for (at, slots) in self.geometry.by_chunk(indices) {
            let chunk = self.find_or_make(at)?;
            let fault = Fault::exactly(slots, need);
            serve(&chunk, &self.geometry, &fault, &mut scratch[..]).map_err(error_of)?;
        }
        Ok(())
    }

    fn scratch(&self, indices: Indices) -> Result<KVec<HmmPfn>> {
        let pages = self.geometry.scratch_len(indices);
        Ok(KVec::from_elem(HmmPfn::EMPTY, pages, GFP_KERNEL)?)
    }

    /// Hands what HMM says of `indices` to `each`, a window at a time, without faulting anything in
    /// or giving it to the device. What it is handed stays so during the call.
    ///
    /// # Errors
    ///
    /// As [`Mirror::fault`], and those of `each`.
    pub(crate) fn snapshot(
        &self,
        indices: Indices,
        mut each: impl FnMut(&[u8]) -> Result,
    ) -> Result {
        let mut scratch = self.scratch(indices)?;
        let mut said = KVec::with_capacity(WINDOW_PAGES, GFP_KERNEL)?;
        for (at, slots) in self.geometry.by_chunk(indices) {
            let chunk = self.find_or_make(at)?;
            self.look(&chunk, slots, &mut scratch, &mut said)?;
            each(&said)?;
        }
        Ok(())
    }

    /// Notes what HMM says of `slots` in `said`, which has room for it.
    fn look(
        &self,
        chunk: &Chunk,
        slots: Slots,
        scratch: &mut [HmmPfn],
        said: &mut KVec<u8>,
    ) -> Result {
        let mut busy = 0;
        for _ in 0..ATTEMPTS {
            let taken = Snapshot::take(chunk, &self.geometry, slots, Need::Snapshot, scratch);
            let valid = match taken.map(Snapshot::validate) {
                Ok(Ok(valid)) => valid,
                Ok(Err(Stale)) => continue,
                Err(RangeError::Busy) if busy < BUSY_ATTEMPTS => {
                    busy += 1;
                    continue;
                }
                Err(RangeError::Busy) => break,
                Err(RangeError::Failed(error)) => return Err(error),
            };
            said.clear();
            for found in valid.found() {
                // SAFETY: The process has the page as long as the snapshot is valid.
                let protection =
                    unsafe { bindings::hmm_dmirror_protection(self.device, found.bits()) };
                said.push(protection, GFP_ATOMIC)?;
            }
            return Ok(());
        }
        Err(EBUSY)
    }

    /// Makes the pages of `indices` exclusive to the device.
    ///
    /// # Errors
    ///
    /// Those of `make_device_exclusive`; as [`Mirror::fault`].
    pub(crate) fn make_exclusive(&self, indices: Indices) -> Result {
        let mm = self.mm()?;
        for (at, slots) in self.geometry.by_chunk(indices) {
            let chunk = self.find_or_make(at)?.exclusively();
            for slot in slots.range() {
                self.make_slot_exclusive(&mm, &chunk, at, Slots::new(slot..slot + 1))?;
            }
        }
        Ok(())
    }

    fn make_slot_exclusive(
        &self,
        mm: &MmWithUser,
        chunk: &Chunk,
        at: ChunkIndex,
        slot: Slots,
    ) -> Result {
        let address = self.geometry.span_of_slots(at, slot).start;
        let mut scratch = [HmmPfn::EMPTY];
        for _ in 0..ATTEMPTS {
            // Whatever has to be done for the process to write to it invalidates, and so does the
            // end of an exclusive access: not after the sequence has been taken.
            let fault = Fault::exactly(slot, Need::Write);
            serve(chunk, &self.geometry, &fault, &mut scratch[..]).map_err(error_of)?;
            let sequence = chunk.read_begin();
            let page = ExclusivePage::make(mm, address, self.identity())?;
            hmm_abi::withdraw(chunk, slot);
            let known = [HmmPfn::present(Pfn(page.pfn()), false, Order(0))];
            if self.give(chunk, slot, sequence, &known)? {
                return Ok(());
            }
        }
        Err(EBUSY)
    }

    /// Gives the device a page that the driver knows of. Returns whether that is as it was, and the
    /// device has got it just now.
    fn give(
        &self,
        chunk: &Chunk,
        slot: Slots,
        sequence: Sequence,
        known: &[HmmPfn],
    ) -> Result<bool> {
        let known = Snapshot::known(chunk, &self.geometry, slot, sequence, known);
        let Ok(valid) = known.validate() else {
            return Ok(false);
        };
        let ready = match valid.map() {
            Ok(ready) => ready,
            Err(FaultError::Race) => return Ok(false),
            Err(error) => return Err(error_of(error)),
        };
        match ready.publish() {
            Ok(Served::New) => Ok(true),
            // A fault that was under way has published it for everybody.
            Ok(Served::Nothing { .. }) => Ok(false),
            Err(error) => Err(error_of(FaultError::Publish(error))),
        }
    }

    /// The current task is about to migrate pages to the device.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn enter_mover(&self) -> Result {
        let pid = kernel::current!().pid();
        Ok(self.movers.lock().push(pid, GFP_ATOMIC)?)
    }

    /// It has done so.
    pub(crate) fn leave_mover(&self) {
        let pid = kernel::current!().pid();
        self.movers.lock().retain(|&mut mover| mover != pid);
    }
}

/// The errno of a fault that failed.
fn error_of(error: FaultError<Error>) -> Error {
    match error {
        FaultError::Host(error) => error,
        FaultError::Race | FaultError::Busy => EBUSY,
        FaultError::Memory => ENOMEM,
        FaultError::Empty => EINVAL,
        FaultError::Fragmented
        | FaultError::Stuck
        | FaultError::Map(_)
        | FaultError::Publish(_) => EFAULT,
    }
}

impl Store for Mirror {
    type Chunk = Chunk;

    fn find(&self, at: ChunkIndex) -> Option<Chunk> {
        let chunks = self.chunks.lock();
        chunks.get(at.0).map(|chunk| Chunk::from_arc(chunk.into()))
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Chunk> {
        if let Some(chunk) = self.find(at) {
            return Ok(chunk);
        }
        let mut made = self.made.lock();
        if let Some(chunk) = self.find(at) {
            return Ok(chunk);
        }
        made.reserve(1, GFP_KERNEL)?;
        // SAFETY: The chunks are the mirror's own, and nobody keeps one for longer than a call.
        let chunk = unsafe { Chunk::new(self, at)? };
        let arc = chunk.clone().into_arc();
        self.chunks.lock().store(at.0, arc, GFP_KERNEL)?;
        made.push(at, GFP_KERNEL)?;
        Ok(chunk)
    }
}
