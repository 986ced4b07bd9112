// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The page-fault event queue of a device, and what its events are served with.
//!
//! ```text
//! interrupt -> drain -> an event each -> worker -> mlx5_odp::serve -> served -> resume
//!                \ no memory: drained again by a worker when there is some  \ who waits for it
//! ```
//!
//! Its lock is taken in interrupt context and held shortly; nothing is allocated under it but events,
//! from their pool, and none other is taken but those of workqueues.

use core::ptr::NonNull;

use firmware_cmds::{
    Eqe,
    Wire, //
};
use kernel::{
    container_of,
    error::{
        from_err_ptr,
        to_result, //
    },
    list::{
        List,
        ListArc, //
    },
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        Arc,
        SpinLockIrq,
        SpinLockIrqGuard, //
    },
    types::Opaque, //
};
use kernel_ext::{
    mempool::{
        Mempool,
        PoolBox, //
    },
    new_with_work,
    workqueue::{
        Flag,
        Job,
        OwnedQueue,
        WithWork, //
    }, //
};
use mlx5_odp::{
    EventQueue,
    Generation,
    Unserved, //
};

use crate::{
    bindings,
    event::{
        Answers,
        Event, //
    },
    implicit::Retirement, //
};

/// Entries of the EQ.
const ENTRIES: c_int = 0x1000;

/// Events that there is always memory for.
const RESERVED: usize = 64;

/// Faults served at a time. Each of them may wait for a process, so that there must be more than a
/// process is likely to stall.
const CONCURRENT: usize = 512;

/// What a device has for its page faults, from the first ODP MR on.
///
/// # Invariants
///
/// `interrupt` is attached to the EQ's interrupt if `enabled`.
#[pin_data(PinnedDrop)]
pub(crate) struct Faults {
    enabled: AtomicFlag,
    #[pin]
    interrupt: Opaque<bindings::notifier_block>,
    #[pin]
    queue: WithWork<FaultQueue>,
}

// SAFETY: The C objects may be used by any thread.
unsafe impl Send for Faults {}
// SAFETY: As above.
unsafe impl Sync for Faults {}

/// The EQ, who serves its events, and what those need.
///
/// # Invariants
///
/// `dev` is live for as long as the value.
#[pin_data(PinnedDrop)]
pub(crate) struct FaultQueue {
    dev: NonNull<bindings::mlx5_ib_dev>,
    #[pin]
    answers: Answers,
    // Dropped in this order: nothing comes from the EQ any more; whoever serves an event is done;
    // then what it was served with.
    eq: Eq,
    workers: OwnedQueue,
    /// Not the workers', whom prefetches might use up.
    prefetches: OwnedQueue,
    umrs: Umrs,
    events: Mempool<Event>,
    #[pin]
    state: SpinLockIrq<State>,
}

/// What the EQ's lock protects, besides its entries.
struct State {
    /// How many entries were consumed.
    consumed: u32,
    unserved: Unserved,
    /// To be enqueued when more events are served.
    waiting: List<Retirement>,
}

// SAFETY: The C objects may be used by any thread.
unsafe impl Send for FaultQueue {}
// SAFETY: As above; the EQ is behind its lock.
unsafe impl Sync for FaultQueue {}

/// The hardware's EQ.
///
/// # Invariants
///
/// `eq` is an EQ of `mdev`, which is live; its entries are looked at under one lock.
struct Eq {
    mdev: NonNull<bindings::mlx5_core_dev>,
    eq: NonNull<bindings::mlx5_eq>,
}

impl Eq {
    /// # Errors
    ///
    /// Those of `mlx5_eq_create_generic`.
    ///
    /// # Safety
    ///
    /// `mdev` is live for as long as the value.
    unsafe fn new(mdev: NonNull<bindings::mlx5_core_dev>) -> Result<Self> {
        let mut param = bindings::mlx5_eq_param {
            nent: ENTRIES,
            mask: [
                1 << bindings::mlx5_event_MLX5_EVENT_TYPE_PAGE_FAULT,
                0,
                0,
                0,
            ],
            ..Default::default()
        };
        // SAFETY: By the safety requirements.
        let eq = unsafe { bindings::mlx5_eq_create_generic(mdev.as_ptr(), &mut param) };
        let eq = NonNull::new(from_err_ptr(eq)?).ok_or(ENOMEM)?;
        // INVARIANT: Just created.
        Ok(Self { mdev, eq })
    }
}

impl Drop for Eq {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::mlx5_eq_destroy_generic(self.mdev.as_ptr(), self.eq.as_ptr()) };
    }
}

/// The UMRs of a device.
///
/// # Invariants
///
/// Live.
struct Umrs(NonNull<bindings::mlx5r_odp_umrs>);

impl Drop for Umrs {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; no MR is left that could use one.
        unsafe { bindings::mlx5r_odp_umrs_destroy(self.0.as_ptr()) };
    }
}

impl Faults {
    /// Creates the EQ of a device.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and those of the device.
    ///
    /// # Safety
    ///
    /// `dev` is live for as long as the value.
    pub(crate) unsafe fn new(dev: NonNull<bindings::mlx5_ib_dev>) -> Result<Pin<KBox<Self>>> {
        // SAFETY: The device is live.
        let mdev = NonNull::new(unsafe { bindings::mlx5r_odp_mdev(dev.as_ptr()) }).ok_or(EINVAL)?;
        // SAFETY: As above.
        let umrs = unsafe { bindings::mlx5r_odp_umrs_create(dev.as_ptr()) };
        // INVARIANT: Just created.
        let umrs = Umrs(NonNull::new(umrs).ok_or(ENOMEM)?);
        let flags = Flag::Unbound | Flag::HighPriority | Flag::MemReclaim;
        // INVARIANT: By the safety requirements.
        let queue = try_pin_init!(FaultQueue {
            dev,
            // SAFETY: The device outlives the value.
            answers <- unsafe { Answers::new(mdev) },
            // SAFETY: As above.
            eq: unsafe { Eq::new(mdev)? },
            workers: OwnedQueue::new(c"mlx5_ib_page_fault", flags, CONCURRENT)?,
            // No work of memory reclaim.
            prefetches: OwnedQueue::new(c"mlx5_ib_prefetch", Flag::Unbound, 0)?,
            umrs,
            events: Mempool::new(RESERVED)?,
            state <- new_spinlock_irq!(
                State {
                    consumed: 0,
                    unserved: Unserved::new(0),
                    waiting: List::new(),
                },
                "mlx5_ib_odp_eq"
            ),
        }? Error);
        let this = KBox::pin_init(
            // INVARIANT: Not enabled.
            try_pin_init!(Self {
                enabled: AtomicFlag::new(false),
                interrupt: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::interrupt),
                    ..Default::default()
                }),
                queue <- new_with_work!(queue, "mlx5_ib_odp_drain"),
            }? Error),
            GFP_KERNEL,
        )?;
        let eq = this.queue.eq.eq.as_ptr();
        // SAFETY: The notifier block is detached before it goes.
        to_result(unsafe { bindings::mlx5_eq_enable(mdev.as_ptr(), eq, this.interrupt.get()) })?;
        // INVARIANT: Just attached.
        this.enabled.store(true, Relaxed);
        Ok(this)
    }

    /// For the shim to keep.
    pub(crate) fn into_raw(self: Pin<KBox<Self>>) -> *mut bindings::mlx5r_odp_faults {
        // SAFETY: C does not move it.
        KBox::into_raw(unsafe { Pin::into_inner_unchecked(self) }).cast()
    }

    /// Obtains a reference from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// `faults` came from there and is not dropped during `'a`.
    pub(crate) unsafe fn from_raw<'a>(faults: *mut bindings::mlx5r_odp_faults) -> &'a Self {
        // SAFETY: By the safety requirements.
        unsafe { &*faults.cast() }
    }

    /// Drops what [`Self::into_raw`] returned.
    ///
    /// # Safety
    ///
    /// `faults` came from there and is not used any more; the device is without regions and queue
    /// pairs.
    pub(crate) unsafe fn drop_raw(faults: *mut bindings::mlx5r_odp_faults) {
        // SAFETY: By the safety requirements; it was pinned.
        drop(unsafe { Pin::new_unchecked(KBox::<Self>::from_raw(faults.cast())) });
    }

    /// What a device has.
    ///
    /// # Safety
    ///
    /// The page-fault EQ of `dev` was created, and the device is live during `'a`.
    pub(crate) unsafe fn of<'a>(dev: NonNull<bindings::mlx5_ib_dev>) -> &'a Self {
        // SAFETY: By the safety requirements: it goes with the device.
        unsafe { Self::from_raw(bindings::mlx5r_odp_faults_of(dev.as_ptr())) }
    }

    /// Called for each interrupt of the EQ.
    ///
    /// # Safety
    ///
    /// `block` is the `interrupt` of a value, attached.
    unsafe extern "C" fn interrupt(
        block: *mut bindings::notifier_block,
        _type: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The block is that of a value for as long as it is attached.
        let this = unsafe { &*container_of!(Opaque::cast_from(block), Self, interrupt) };
        match this.queue.state.try_lock() {
            Some(state) => mlx5_odp::drain(&mut this.queue.locked(state)),
            // Its holder may have looked for the last time.
            None => this.queue.enqueue(&this.queue.workers),
        }
        // CAST: A small number.
        bindings::irqreturn_IRQ_HANDLED as c_int
    }

    /// The number of the first event that is not in the EQ yet.
    pub(crate) fn moment(&self) -> u32 {
        mlx5_odp::moment(&self.queue.locked(self.queue.state.lock()))
    }

    /// The number of an event before which all are served.
    pub(crate) fn served(&self) -> u32 {
        self.queue.state.lock().unserved.served()
    }

    /// Has children retired when more events are served; `false`, and nothing is done, if all before
    /// number `since` are.
    pub(crate) fn retire_after(&self, retirement: &Arc<Retirement>, since: u32) -> bool {
        let mut state = self.queue.state.lock();
        let behind = since.wrapping_sub(state.unserved.served());
        if behind == 0 || behind > u32::MAX / 2 {
            return false;
        }
        // Unless it waits already.
        if let Ok(waiting) = ListArc::try_from_arc(retirement.clone()) {
            state.waiting.push_back(waiting);
        }
        true
    }

    /// Takes back [`Self::retire_after`].
    pub(crate) fn retire_no_more(&self, retirement: &Retirement) {
        // SAFETY: There is no other list of them but that of its device.
        drop(unsafe { self.queue.state.lock().waiting.remove(retirement) });
    }

    /// The device's UMRs.
    pub(crate) fn umrs(&self) -> *mut bindings::mlx5r_odp_umrs {
        self.queue.umrs.0.as_ptr()
    }

    /// Who serves the events, and frees what was left behind.
    pub(crate) fn workers(&self) -> &OwnedQueue {
        &self.queue.workers
    }

    /// Who prefetches.
    pub(crate) fn prefetches(&self) -> &OwnedQueue {
        &self.queue.prefetches
    }
}

#[pinned_drop]
impl PinnedDrop for Faults {
    /// No region is left and no queue pair, so what is still queued finds nothing and ends soon; a
    /// fault that waits for a process held a region, and its destruction has waited for that.
    fn drop(self: Pin<&mut Self>) {
        if self.enabled.load(Relaxed) {
            let Eq { mdev, eq } = &self.queue.eq;
            // SAFETY: By the type invariants.
            unsafe {
                bindings::mlx5_eq_disable(mdev.as_ptr(), eq.as_ptr(), self.interrupt.get());
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for FaultQueue {
    fn drop(self: Pin<&mut Self>) {
        // Before the commands that answer them are waited for.
        self.workers.drain();
    }
}

impl FaultQueue {
    /// The device.
    pub(crate) fn dev(&self) -> NonNull<bindings::mlx5_ib_dev> {
        self.dev
    }

    /// The commands under way that answer events.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// An event is served: its key will not be looked for any more.
    pub(crate) fn served(&self, generation: Generation) {
        let mut state = self.state.lock();
        if state.unserved.serve(generation) {
            // Its parent has another reference: nothing is freed here.
            while let Some(retirement) = state.waiting.pop_front() {
                retirement.now(&self.workers);
            }
        }
    }
}

impl Job for FaultQueue {
    /// Waits until the reserve is back, which is what ran out, and drains.
    fn run(this: &WithWork<Self>) {
        this.events.refill();
        mlx5_odp::drain(&mut this.locked(this.state.lock()));
    }
}

/// Of a [`WithWork<FaultQueue>`].
trait Lock {
    fn locked<'a>(&'a self, state: SpinLockIrqGuard<'a, State>) -> LockedEq<'a>;
}

impl Lock for WithWork<FaultQueue> {
    fn locked<'a>(&'a self, state: SpinLockIrqGuard<'a, State>) -> LockedEq<'a> {
        LockedEq { queue: self, state }
    }
}

/// The queue, locked; possibly in interrupt context.
struct LockedEq<'a> {
    queue: &'a WithWork<FaultQueue>,
    state: SpinLockIrqGuard<'a, State>,
}

impl EventQueue for LockedEq<'_> {
    type Slot = PoolBox<core::mem::MaybeUninit<Event>>;

    fn peek(&self, ahead: u32) -> Option<Eqe> {
        // SAFETY: The queue is live and locked.
        let entry = unsafe { bindings::mlx5_eq_get_eqe(self.queue.eq.eq.as_ptr(), ahead) };
        let entry = NonNull::new(entry)?.cast::<[u8; Eqe::LEN]>();
        // SAFETY: The entry has this size (asserted by the shim), belongs to the driver until it is
        // consumed, and has no alignment to speak of.
        Eqe::parse(unsafe { &entry.read() }).ok()
    }

    fn slot(&mut self) -> Option<Self::Slot> {
        self.queue.events.try_alloc()
    }

    fn dispatch(&mut self, slot: Self::Slot, event: mlx5_odp::Event) {
        let queue: &FaultQueue = self.queue;
        let generation = self.state.unserved.dispatch(event.number);
        // SAFETY: The queue drains its workers before it goes.
        let event = unsafe { Event::new(NonNull::from(queue), event, generation) };
        let Ok(event) = slot.pin_init(event);
        queue.workers.enqueue(event);
    }

    fn consumed(&self) -> u32 {
        self.state.consumed
    }

    fn drain_later(&mut self) {
        self.queue.enqueue(&self.queue.workers);
    }

    fn consume(&mut self, count: u32, arm: bool) {
        self.state.consumed = self.state.consumed.wrapping_add(count);
        // SAFETY: The queue is live and locked.
        unsafe { bindings::mlx5_eq_update_ci(self.queue.eq.eq.as_ptr(), count, arm) };
    }
}
