// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A region's umem under its lock.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use firmware_cmds::DmaAddr;
use hmm_abi::Entry;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;
use mlx5_odp::xlt::Table;
use mlx5_odp::{
    FaultError, Invalidate, LockedPages, NotZapped, PageIndex, PageRun, PageState, Placement,
    Pressure,
};

use crate::bindings;
use crate::region::placement_of;

/// The umem of a region, locked; the drop unlocks.
///
/// # Invariants
///
/// - `region` describes a live umem, whose lock this thread holds.
/// - `mr`, if any, is the MR that owns the umem; it is live. Its MKey is neither revoked nor
///   destroyed, unless `revoked` says so.
/// - With an MR, `region` holds its device.
pub(crate) struct Locked {
    region: bindings::mlx5r_odp_region,
    mr: Option<NonNull<bindings::mlx5_ib_mr>>,
    revoked: bool,
    placement: Placement,
    _not_send: NotThreadSafe,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: By the invariants this thread holds the lock of a live umem.
        unsafe { bindings::mlx5r_odp_unlock(self.region.umem) };
    }
}

impl Locked {
    /// Takes over the lock of a umem. `None`, and unlocked, if the umem's geometry is not one that
    /// can be served, which no registration allows.
    ///
    /// # Safety
    ///
    /// - `region` describes a live umem, whose lock this thread holds and leaves to the value.
    /// - The umem lives until the value is dropped.
    pub(crate) unsafe fn adopt(region: bindings::mlx5r_odp_region) -> Option<Self> {
        let Some(placement) = placement_of(&region) else {
            // SAFETY: By the caller's promise the lock is held, and it is not used any more.
            unsafe { bindings::mlx5r_odp_unlock(region.umem) };
            return None;
        };
        // SAFETY: The umem is live and locked.
        let owner = unsafe { bindings::mlx5r_odp_owner(region.umem) };

        // INVARIANT: The caller promised the first. `mr.c` clears the owner under this lock when
        // it has revoked or destroyed the MKey, and so does `revoke`.
        Some(Self {
            region,
            mr: NonNull::new(owner),
            revoked: false,
            placement,
            _not_send: NotThreadSafe,
        })
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

    /// The place of a page's entry; null if the region has no such page.
    fn slot(&self, page: PageIndex) -> *mut usize {
        match usize::try_from(page.0) {
            // CAST: `unsigned long` is `usize` in the kernel.
            Ok(index) if page < self.pages().end() => {
                self.region.pfns.cast::<usize>().wrapping_add(index)
            }
            _ => core::ptr::null_mut(),
        }
    }

    fn entry(&self, page: PageIndex) -> Entry {
        let slot = self.slot(page);
        if slot.is_null() {
            return Entry::EMPTY;
        }
        // SAFETY: `slot` is within the umem's list, which has one entry per page and which the
        // lock protects.
        Entry::from_bits(unsafe { slot.read() })
    }

    fn set_entry(&mut self, page: PageIndex, entry: Entry) {
        let slot = self.slot(page);
        if !slot.is_null() {
            // SAFETY: As in `entry`; `&mut self` excludes other accesses by this thread.
            unsafe { slot.write(entry.bits()) };
        }
    }

    /// Maps a page for DMA if it is not, and returns its bus address.
    fn dma_map(&self, page: PageIndex) -> Result<u64> {
        if self.slot(page).is_null() {
            return Err(EFAULT);
        }
        let index = usize::try_from(page.0)?;
        let mut addr = 0;
        // SAFETY: The umem is live and locked, and `index` within it.
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_dma_map(self.region.umem, index, &mut addr)
        })?;
        Ok(addr)
    }

    /// Writes the translations of `run` and makes the MKey usable, in one go.
    ///
    /// # Errors
    ///
    /// Those of `mlx5r_umr_update_xlt`.
    pub(crate) fn enable(&mut self, run: PageRun, pdn: u32) -> Result {
        let mr = self.mr.ok_or(EFAULT)?;
        let pages = i32::try_from(run.count)?;
        // CAST: at most 30.
        let shift = self.region.page_shift as i32;
        // SAFETY: By the invariants `mr` is live, and its umem is locked.
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_enable(mr.as_ptr(), pages, shift, pdn)
        })
    }

    /// Has the device's table rewritten over `run`, by `xlt::entry`.
    fn update(&mut self, run: PageRun) -> Result {
        let mr = self.mr.ok_or(EFAULT)?;
        let pages = i32::try_from(run.count)?;
        // CAST: at most 30.
        let shift = self.region.page_shift as i32;
        // SAFETY: By the invariants `mr` is live, and its umem is locked.
        kernel::error::to_result(unsafe {
            bindings::mlx5r_odp_update(mr.as_ptr(), run.first.0, pages, shift)
        })
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
        if self.mr.is_some() {
            // SAFETY: With an MR the description holds its device; `what` is a string.
            unsafe {
                bindings::mlx5r_odp_error(self.region.dev, what.as_char_ptr(), self.region.key)
            };
        }
    }
}

/// The umem of an MR that somebody else on this thread's stack has locked.
pub(crate) struct Borrowed(ManuallyDrop<Locked>);

impl Borrowed {
    /// # Errors
    ///
    /// `EINVAL` if the MR has no pages.
    ///
    /// # Safety
    ///
    /// `mr` is an ODP MR, and this thread holds its umem's lock for longer than the value lives.
    pub(crate) unsafe fn of(mr: NonNull<bindings::mlx5_ib_mr>) -> Result<Self> {
        let mut region = bindings::mlx5r_odp_region::default();
        // SAFETY: `mr` is live, by the caller's promise.
        unsafe { bindings::mlx5r_odp_region(mr.as_ptr(), &mut region) };
        let placement = placement_of(&region).ok_or(EINVAL)?;

        // INVARIANT: The lock is held, by the caller's promise, and not dropped with the value.
        Ok(Self(ManuallyDrop::new(Locked {
            region,
            mr: Some(mr),
            revoked: false,
            placement,
            _not_send: NotThreadSafe,
        })))
    }
}

impl Deref for Borrowed {
    type Target = Locked;

    fn deref(&self) -> &Locked {
        &self.0
    }
}

impl Table for Locked {
    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn dma_addr(&self, page: PageIndex) -> Option<DmaAddr> {
        // The page is mapped, so this only tells the address.
        self.dma_map(page).ok().map(DmaAddr::new)
    }
}

impl LockedPages for Locked {
    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn map(&mut self, page: PageIndex) -> Result<(), FaultError> {
        match self.dma_map(page) {
            Ok(_) => Ok(()),
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

impl Invalidate for Locked {
    fn has_mkey(&self) -> bool {
        Locked::has_mkey(self)
    }

    fn state(&self, page: PageIndex) -> PageState {
        self.entry(page).into()
    }

    fn leave(&mut self, page: PageIndex) {
        self.set_entry(page, self.entry(page).leaving());
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
        kernel::error::to_result(unsafe { bindings::mlx5r_odp_revoke(mr.as_ptr()) })
            .map_err(|_| NotZapped)?;
        // INVARIANT: The MKey is revoked. Without an owner the umem is not faulted in any more.
        self.revoked = true;
        // SAFETY: The umem is live and locked.
        unsafe { bindings::mlx5r_odp_disown(self.region.umem) };
        Ok(())
    }

    fn unmap(&mut self, run: PageRun) {
        if let Some(range) = self.placement.va_of(run) {
            // SAFETY: The umem is live and locked.
            unsafe {
                bindings::mlx5r_odp_unmap(self.region.umem, range.start().0, range.end().0);
            }
        }
    }

    fn keep(&mut self, page: PageIndex) {
        let entry = self.entry(page);
        // SAFETY: The entry is valid, so it names a page, and the invalidation that this is part
        // of has not returned, so the page is still in use.
        unsafe { bindings::mlx5r_odp_get_page(entry.bits()) };
        // `ib_umem_odp_release` unmaps it and drops the page, `ib_umem_odp_unmap_dma_pages`
        // leaves it alone.
        self.set_entry(page, entry.stuck());
    }
}
