// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The umem of a region, and what may be done to it under its lock.

use core::ptr::NonNull;

use firmware_cmds::{DmaAddr, Iova};
use hmm_abi::Entry;
use kernel::container_of;
use kernel::device;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::lock::mutex::MutexBackend;
use kernel::sync::lock::{Guard, Lock};
use kernel::types::Opaque;
use kernel_ext::hmm::Pfn;
use kernel_ext::hmm_dma::Entries;
use kernel_ext::mmu_notifier::IntervalNotifier;
use mlx5_odp::xlt::Table;
use mlx5_odp::{
    FaultError, Invalidate, LockedPages, NotZapped, PageIndex, PageRun, PageShift, PageState,
    Placement, Pressure, UserVa, VaRange,
};

use crate::bindings;

/// A `struct ib_umem_odp` that is a mirror.
///
/// # Invariants
///
/// Made by `ib_umem_odp_get` for a device that does DMA, and not released as long as there is a
/// reference.
#[repr(transparent)]
pub(crate) struct Umem(Opaque<bindings::ib_umem_odp>);

impl Umem {
    /// # Safety
    ///
    /// `umem` was made by `ib_umem_odp_get` for an mlx5 device, and is not released during `'a`.
    pub(crate) unsafe fn from_raw<'a>(umem: *mut bindings::ib_umem_odp) -> &'a Self {
        // SAFETY: By the caller's promise; the layout is that of the C type.
        unsafe { &*umem.cast() }
    }

    /// The umem of a notifier.
    ///
    /// # Safety
    ///
    /// `notifier` is that of such a umem as [`Self::from_raw`] wants.
    pub(crate) unsafe fn of_notifier(notifier: &IntervalNotifier) -> &Self {
        // SAFETY: By the caller's promise; a umem removes its notifier before it is freed.
        unsafe {
            Self::from_raw(container_of!(
                notifier.as_raw(),
                bindings::ib_umem_odp,
                notifier
            ))
        }
    }

    fn as_raw(&self) -> *mut bindings::ib_umem_odp {
        self.0.get()
    }

    /// Its notifier.
    pub(crate) fn notifier(&self) -> &IntervalNotifier {
        // SAFETY: By the type invariants it is subscribed until the umem is released.
        unsafe { IntervalNotifier::from_raw(&raw const (*self.as_raw()).notifier) }
    }

    /// Its lock.
    pub(crate) fn mutex(&self) -> &Lock<(), MutexBackend> {
        // SAFETY: By the type invariants it is initialised, and lives as long.
        unsafe { Lock::from_raw(&raw mut (*self.as_raw()).umem_mutex) }
    }

    /// Where the pages lie, for a region at `iova`; `None` for a geometry that cannot be served,
    /// which no registration allows.
    pub(crate) fn placement(&self, iova: Iova) -> Option<Placement> {
        let raw = self.as_raw();
        // SAFETY: By the type invariants; these do not change.
        let (address, shift, writable) = unsafe {
            let umem = &raw const (*raw).umem;
            ((*umem).address, (*raw).page_shift, (*umem).writable() != 0)
        };
        let (start, last) = self.notifier().span().into_inner();
        // CAST: widens, all three.
        let (address, start, last) = (address as u64, start as u64, last as u64);
        Some(Placement {
            iova,
            address: UserVa(address),
            pages: VaRange::new(UserVa(start), UserVa(last.checked_add(1)?))?,
            shift: PageShift::new(u8::try_from(shift).ok()?)?,
            writable,
        })
    }

    /// The entries.
    ///
    /// # Safety
    ///
    /// This thread holds the lock during the lifetime.
    pub(crate) unsafe fn entries(&self) -> Entries<'_> {
        let raw = self.as_raw();
        // SAFETY: By the type invariants; the device lives longer than its umems.
        let (map, device, shift) = unsafe {
            (
                NonNull::new_unchecked(&raw mut (*raw).map),
                device::Device::from_raw(bindings::ib_dma_device((*raw).umem.ibdev)),
                (*raw).page_shift,
            )
        };
        let (start, last) = self.notifier().span().into_inner();
        let len = ((last - start) >> shift) + 1;
        // SAFETY: `ib_umem_odp_get` has allocated an entry for each page. The lock protects them,
        // and an invalidation that takes a page waits for it.
        unsafe { Entries::from_raw(map, Some(device), len) }
    }

    /// How many entries are mapped.
    pub(crate) fn npages<'a>(&self, _lock: &'a mut Guard<'_, (), MutexBackend>) -> &'a mut i32 {
        // SAFETY: The lock protects it.
        unsafe { &mut (*self.as_raw()).npages }
    }

    /// The MR whose umem it is, until its MKey is revoked or destroyed.
    fn owner(&self, _lock: &Guard<'_, (), MutexBackend>) -> Option<NonNull<bindings::mlx5_ib_mr>> {
        // SAFETY: The lock protects it.
        NonNull::new(unsafe { (*self.as_raw()).private }.cast())
    }

    /// There is no such MR any more.
    fn disown(&self, _lock: &mut Guard<'_, (), MutexBackend>) {
        // SAFETY: The lock protects it.
        unsafe { (*self.as_raw()).private = core::ptr::null_mut() };
    }

    /// Faults `range` in, or only looks it up, and locks: returns how many pages that are.
    ///
    /// # Errors
    ///
    /// Those of `ib_umem_odp_map_dma_and_lock`.
    pub(crate) fn fault_and_lock(
        &self,
        range: VaRange,
        write: bool,
        fault: bool,
    ) -> Result<(u64, Guard<'_, (), MutexBackend>)> {
        // CAST: widens.
        let access = if write { Pfn::WRITE as u64 } else { 0 };
        // SAFETY: By the type invariants the umem lives.
        let entries = unsafe {
            bindings::ib_umem_odp_map_dma_and_lock(
                self.as_raw(),
                range.start().0,
                range.bytes(),
                access,
                fault,
            )
        };
        to_result(entries)?;
        // SAFETY: The call has locked.
        let guard = unsafe { Guard::new(self.mutex(), ()) };
        Ok((u64::try_from(entries)?, guard))
    }
}

/// The umem of a region, locked; the drop unlocks.
///
/// # Invariants
///
/// - `entries` are those of `umem`, whose lock `guard` is.
/// - `mr`, if any, is the MR that owns the umem; it is live. Its MKey is neither revoked nor
///   destroyed, unless `revoked` says so.
pub(crate) struct Locked<'a> {
    umem: &'a Umem,
    entries: Entries<'a>,
    mr: Option<NonNull<bindings::mlx5_ib_mr>>,
    revoked: bool,
    placement: Placement,
    guard: Guard<'a, (), MutexBackend>,
}

impl<'a> Locked<'a> {
    /// What lies at `placement` in `umem`, of which `guard` is the lock.
    pub(crate) fn new(
        umem: &'a Umem,
        placement: Placement,
        guard: Guard<'a, (), MutexBackend>,
    ) -> Self {
        debug_assert!(core::ptr::eq(guard.lock_ref(), umem.mutex()));
        // INVARIANT: `mr.c` clears the owner under this lock when it has revoked or destroyed the
        // MKey, and so does `revoke`.
        Self {
            mr: umem.owner(&guard),
            // SAFETY: The guard is kept with them.
            entries: unsafe { umem.entries() },
            umem,
            revoked: false,
            placement,
            guard,
        }
    }

    /// Where the region lies.
    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Whether the MKey is in use.
    pub(crate) fn has_mkey(&self) -> bool {
        self.mr.is_some() && !self.revoked
    }

    /// All pages of the region.
    pub(crate) fn pages(&self) -> PageRun {
        self.placement.pages_of(self.placement.pages)
    }

    #[inline]
    fn entry(&self, page: PageIndex) -> Entry {
        entry(&self.entries, page)
    }

    /// Changes what an entry says of its page; the page stays, and whether it is mapped.
    fn mark(&mut self, page: PageIndex, entry: Entry) {
        if let Ok(index) = usize::try_from(page.0) {
            // SAFETY: Only the marks that say "leaving" and "stuck" differ: a valid entry was
            // valid before.
            unsafe { self.entries.set(index, Pfn::from_raw(entry.bits())) };
        }
    }

    /// Maps a page for DMA if it is not.
    ///
    /// # Errors
    ///
    /// Those of [`Entries::map`].
    pub(crate) fn dma_map(&mut self, page: PageIndex) -> Result {
        let index = usize::try_from(page.0)?;
        let mapped = self.entries.get(index).has(Pfn::DMA_MAPPED);
        self.entries.map(index)?;
        if !mapped {
            // `ib_umem_odp_unmap_dma_pages` takes one off for each.
            *self.umem.npages(&mut self.guard) += 1;
        }
        Ok(())
    }

    /// Writes the translations of `run` and makes the MKey usable, in one go.
    ///
    /// # Errors
    ///
    /// Those of `mlx5r_umr_update_xlt`.
    pub(crate) fn enable(&mut self, run: PageRun, pdn: u32) -> Result {
        let mr = self.mr.ok_or(EFAULT)?;
        let (pages, shift) = self.update_args(run)?;
        // SAFETY: By the invariants `mr` is live, and its umem is locked.
        to_result(unsafe { bindings::mlx5r_odp_enable(mr.as_ptr(), pages, shift, pdn) })
    }

    /// Has the device's table rewritten over `run`, by `xlt::entry`.
    fn update(&mut self, run: PageRun) -> Result {
        let mr = self.mr.ok_or(EFAULT)?;
        let (pages, shift) = self.update_args(run)?;
        // SAFETY: By the invariants `mr` is live, and its umem is locked.
        to_result(unsafe { bindings::mlx5r_odp_update(mr.as_ptr(), run.first.0, pages, shift) })
    }

    fn update_args(&self, run: PageRun) -> Result<(i32, i32)> {
        let shift = self.placement.shift.bytes().trailing_zeros();
        Ok((i32::try_from(run.count)?, i32::try_from(shift)?))
    }

    /// Counts pages whose translation was taken back.
    pub(crate) fn count_invalidation(&self, base_pages: u64) {
        if let (Some(mr), Ok(pages)) = (self.mr, i64::try_from(base_pages)) {
            // SAFETY: By the invariants `mr` is live.
            unsafe { bindings::mlx5r_odp_count_invalidations(mr.as_ptr(), pages) };
        }
    }

    /// Tells the administrator what must not be lost.
    pub(crate) fn error(&self, what: &CStr) {
        if let Some(mr) = self.mr {
            // SAFETY: By the invariants `mr` is live; `what` is a string.
            unsafe { bindings::mlx5r_odp_error(mr.as_ptr(), what.as_char_ptr()) };
        }
    }
}

#[inline]
fn entry(entries: &Entries<'_>, page: PageIndex) -> Entry {
    match usize::try_from(page.0) {
        Ok(index) => Entry::from_bits(entries.get(index).into_raw()),
        Err(_) => Entry::EMPTY,
    }
}

/// What the device is to have of a umem that somebody else on this thread's stack has locked.
pub(crate) struct Translations<'a>(Entries<'a>);

impl<'a> Translations<'a> {
    /// # Safety
    ///
    /// This thread holds the umem's lock during `'a`.
    pub(crate) unsafe fn of(umem: &'a Umem) -> Self {
        // SAFETY: By the caller's promise.
        Self(unsafe { umem.entries() })
    }
}

impl Table for Translations<'_> {
    #[inline]
    fn state(&self, page: PageIndex) -> PageState {
        entry(&self.0, page).into()
    }

    #[inline]
    fn dma_addr(&self, page: PageIndex) -> Option<DmaAddr> {
        self.0
            .address(usize::try_from(page.0).ok()?)
            .map(DmaAddr::new)
    }
}

impl LockedPages for Locked<'_> {
    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn map(&mut self, page: PageIndex) -> Result<(), FaultError> {
        match self.dma_map(page) {
            Ok(()) => Ok(()),
            Err(e) if e == ENOMEM => Err(FaultError::Again(Pressure::Memory)),
            Err(e) if e == EAGAIN => Err(FaultError::Again(Pressure::Race)),
            Err(_) => Err(FaultError::Invalid),
        }
    }

    fn publish(&mut self, run: PageRun) -> Result<(), FaultError> {
        match self.update(run) {
            Ok(()) => Ok(()),
            Err(e) if e == ENOMEM => Err(FaultError::Again(Pressure::Memory)),
            Err(e) if e == EAGAIN => Err(FaultError::Again(Pressure::Race)),
            Err(_) => Err(FaultError::Device),
        }
    }
}

impl Invalidate for Locked<'_> {
    fn has_mkey(&self) -> bool {
        Locked::has_mkey(self)
    }

    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn leave(&mut self, page: PageIndex) {
        self.mark(page, self.entry(page).leaving());
    }

    fn zap(&mut self, run: PageRun) -> Result<(), NotZapped> {
        #[cfg(mlx5_odp_test_skip_zap)]
        if crate::skip_zap::this_one() {
            self.error(c"TEST BUILD: this zap is skipped");
            return Ok(());
        }
        self.update(run).map_err(|_| NotZapped)
    }

    fn revoke(&mut self) -> Result<(), NotZapped> {
        let mr = self.mr.ok_or(NotZapped)?;
        // SAFETY: By the invariants `mr` is live.
        to_result(unsafe { bindings::mlx5r_odp_revoke(mr.as_ptr()) }).map_err(|_| NotZapped)?;
        // INVARIANT: The MKey is revoked. Without an owner the umem is not faulted in any more.
        self.revoked = true;
        self.umem.disown(&mut self.guard);
        Ok(())
    }

    fn unmap(&mut self, run: PageRun) {
        if let Some(range) = self.placement.va_of(run) {
            // SAFETY: The umem is live and locked. The device has let go of it, which is the
            // order in which `mlx5_odp::invalidate` calls.
            unsafe {
                bindings::ib_umem_odp_unmap_dma_pages(
                    self.umem.as_raw(),
                    range.start().0,
                    range.end().0,
                );
            }
        }
    }

    fn keep(&mut self, page: PageIndex) {
        let entry = self.entry(page);
        // SAFETY: The entry is leaving, so it names a page, and the invalidation that this is part
        // of has not returned, so the page is still in use.
        unsafe { Pfn::from_raw(entry.bits()).get_page() };
        // `ib_umem_odp_release` unmaps it and drops the page, `ib_umem_odp_unmap_dma_pages`
        // leaves it alone.
        self.mark(page, entry.stuck());
    }
}
