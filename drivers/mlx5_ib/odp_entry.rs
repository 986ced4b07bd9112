// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The C ABI of mlx5 On-Demand Paging: what `mlx5_ib.h` declares of `odp.c`.
//!
//! The functions here convert, call [`mlx5_odp`] and convert back.
//!
//! C header: `drivers/infiniband/hw/mlx5/mlx5_ib.h`

mod bindings;
mod device;
mod eq;
mod queue;
mod region;
mod umem;

use core::ptr::NonNull;

use firmware_cmds::{Eqe, Iova, Mtt, PageFault, Wire};
use kernel::error::from_result;
use kernel::prelude::*;
use kernel_ext::mmu_notifier::{IntervalNotifier, NewSequence, Range, RawOperations};
use mlx5_odp::{xlt, PageIndex, UserVa, VaRange};

use crate::device::Device;
use crate::eq::LockedEq;
use crate::region::{umem_of, Mr};
use crate::umem::{Locked, Translations, Umem};

const __LOG_PREFIX: &[u8] = b"mlx5_ib\0";

/// Checks that a function has the prototype that C expects.
macro_rules! check {
    ($($name:ident)*) => {
        $(const _: () = {
            let _ = [bindings::$name, $name];
        };)*
    };
}

check! {
    mlx5_odp_populate_xlt mlx5_ib_odp_init mlx5_ib_odp_init_one mlx5_ib_odp_cleanup_one
    mlx5_ib_init_odp_mr mlx5_ib_init_dmabuf_mr mlx5_ib_alloc_implicit_mr mlx5_ib_free_odp_mr
    mlx5_ib_advise_mr_prefetch mlx5r_odp_create_eq mlx5r_odp_drain mlx5r_odp_serve
}

/// `mmu_interval_notifier_ops` of every umem that `mr.c` makes.
#[no_mangle]
pub static mlx5_mn_ops: bindings::mmu_interval_notifier_ops = UmemOperations::TABLE;

/// What to do about invalidations of a umem.
struct UmemOperations;

impl RawOperations for UmemOperations {
    /// Takes back what the device has of a range before the kernel changes it.
    fn invalidate(notifier: &IntervalNotifier, range: &Range, sequence: NewSequence<'_>) -> bool {
        if !range.is_blockable() {
            return false;
        }
        // SAFETY: `mr.c` passes the table to `ib_umem_odp_get`, and to nothing else.
        let umem = unsafe { Umem::of_notifier(notifier) };
        let mut guard = umem.mutex().lock();
        sequence.set(&guard);

        // Entries that are known and not mapped are looked up anew when used.
        if *umem.npages(&mut guard) == 0 {
            return true;
        }
        // The IOVA is for the device to name pages by, which an invalidation does not do.
        let Some(placement) = umem.placement(Iova::new(0)) else {
            return true;
        };
        // CAST: widens, both.
        let (start, end) = (range.span().start as u64, range.span().end as u64);
        let mirrored = placement.pages;
        let Some(range) = VaRange::new(
            UserVa(start).max(mirrored.start()),
            UserVa(end).min(mirrored.end()),
        ) else {
            return true;
        };
        let pages = placement.pages_of(range);
        let mut umem = Locked::new(umem, placement, guard);
        let done = mlx5_odp::invalidate(&mut umem, pages);

        umem.count_invalidation(done.pages * umem.placement().shift.base_pages());
        if done.kept != 0 {
            umem.error(c"translations not taken back, pages are kept until the MKey is destroyed");
        } else if done.failed {
            umem.error(c"translations not taken back, the MKey is revoked");
        }
        true
    }
}

// CAST: a single low bit.
const XLT_INDIRECT: c_int = bindings::mlx5r_odp_xlt_flag_MLX5R_ODP_XLT_INDIRECT as c_int;

/// Fills the table that `mlx5r_umr_update_xlt` is about to post, from page `idx` on.
///
/// # Safety
///
/// - `xlt` is valid for writes of `nentries` MTTs.
/// - `mr` is an ODP MR, whose umem this thread has locked.
#[no_mangle]
pub unsafe extern "C" fn mlx5_odp_populate_xlt(
    xlt: *mut c_void,
    idx: usize,
    nentries: usize,
    mr: *mut bindings::mlx5_ib_mr,
    flags: c_int,
) -> c_int {
    // Tables of keys belong to implicit MRs.
    if flags & XLT_INDIRECT != 0 {
        return EOPNOTSUPP.to_errno();
    }
    let Some(mr) = NonNull::new(mr) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The caller promises `nentries` MTTs, which are plain bytes.
    let entries =
        unsafe { core::slice::from_raw_parts_mut(xlt.cast::<[u8; Mtt::LEN]>(), nentries) };
    // SAFETY: `mr` is an ODP MR and its umem locked, by the caller's promise.
    let table = unsafe { Translations::of(umem_of(mr).0) };

    // CAST: widens.
    for (entry, index) in entries.iter_mut().zip(idx as u64..) {
        let mtt = xlt::entry(&table, PageIndex(index));
        // Cannot fail: the length is the right one.
        let _ = mtt.emit(entry);
    }
    0
}

/// Called once, when the module is loaded.
///
/// # Safety
///
/// The module is being loaded.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_odp_init() -> c_int {
    // SAFETY: Called once, by `mlx5_ib_init`, before a device is probed.
    unsafe { device::REPEATS.init() };
    0
}

/// # Safety
///
/// `dev` is a device that is being set up.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_odp_init_one(dev: *mut bindings::mlx5_ib_dev) -> c_int {
    // `advise_mr` stays unset: prefetch on request is not there yet.
    // SAFETY: By the caller's promise.
    unsafe { bindings::mlx5r_odp_init_caps(dev) };
    0
}

/// # Safety
///
/// `dev` is a device that is being torn down, and without regions or queue pairs.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_odp_cleanup_one(dev: *mut bindings::mlx5_ib_dev) {
    // SAFETY: By the caller's promise.
    unsafe { bindings::mlx5r_odp_eq_destroy(dev) };
}

/// # Safety
///
/// `dev` is a live device and `eq` its page-fault EQ.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_create_eq(
    dev: *mut bindings::mlx5_ib_dev,
    eq: *mut bindings::mlx5_ib_pf_eq,
) -> c_int {
    // SAFETY: By the caller's promise.
    unsafe {
        if !bindings::mlx5r_odp_supported(dev) {
            return EOPNOTSUPP.to_errno();
        }
        bindings::mlx5r_odp_eq_create(dev, eq)
    }
}

/// # Safety
///
/// `mr` is a new ODP MR that owns its umem, and `pd` is live.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_init_odp_mr(
    mr: *mut bindings::mlx5_ib_mr,
    pd: *mut bindings::ib_pd,
) -> c_int {
    from_result(|| {
        let mr = NonNull::new(mr).ok_or(EINVAL)?;
        // SAFETY: By the caller's promise.
        let pdn = unsafe { bindings::mlx5r_odp_pdn(pd) };
        // SAFETY: By the caller's promise.
        unsafe { Mr::new(mr) }?.enable(pdn)?;
        Ok(0)
    })
}

/// dma-buf MRs are not there yet.
///
/// # Safety
///
/// None: the arguments are not used.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_init_dmabuf_mr(
    _mr: *mut bindings::mlx5_ib_mr,
    _pd: *mut bindings::ib_pd,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

/// Implicit MRs are not there yet.
///
/// # Safety
///
/// None: the arguments are not used.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_alloc_implicit_mr(
    _pd: *mut bindings::mlx5_ib_pd,
    _access_flags: c_int,
) -> *mut bindings::mlx5_ib_mr {
    EOPNOTSUPP.to_ptr()
}

/// An explicit MR has nothing but its umem, which is gone by now.
///
/// # Safety
///
/// None: the arguments are not used.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_free_odp_mr(_mr: *mut bindings::mlx5_ib_mr) {}

/// Prefetch on request is not there yet.
///
/// # Safety
///
/// None: the arguments are not used.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_advise_mr_prefetch(
    _pd: *mut bindings::ib_pd,
    _advice: bindings::ib_uverbs_advise_mr_advice,
    _flags: u32,
    _sg_list: *mut bindings::ib_sge,
    _num_sge: u32,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

/// The shim's: hands out what is in the EQ.
///
/// # Safety
///
/// `eq` is live and locked by this thread.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_drain(eq: *mut bindings::mlx5_ib_pf_eq) {
    if let Some(eq) = NonNull::new(eq) {
        // SAFETY: By the caller's promise.
        mlx5_odp::drain(&mut unsafe { LockedEq::new(eq) });
    }
}

/// The shim's: serves one event, in a worker of its own.
///
/// # Safety
///
/// `dev` is live, and `eqe` points to an EQE.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_serve(dev: *mut bindings::mlx5_ib_dev, eqe: *const u8) {
    // SAFETY: By the caller's promise.
    let bytes = unsafe { eqe.cast::<[u8; Eqe::LEN]>().read() };
    let (Some(dev), Ok(eqe)) = (NonNull::new(dev), Eqe::parse(&bytes)) else {
        return;
    };
    // SAFETY: By the caller's promise.
    let device = unsafe { Device::new(dev) };
    mlx5_odp::serve(&device, PageFault::from_eqe(&eqe));
}

/// Which zap the test build leaves out, to see it caught.
#[cfg(mlx5_odp_test_skip_zap)]
mod skip_zap {
    use kernel::sync::atomic::{Atomic, Relaxed};

    static ZAPS: Atomic<i32> = Atomic::new(0);

    /// True for the third zap since the module was loaded.
    pub(crate) fn this_one() -> bool {
        ZAPS.fetch_add(1, Relaxed) == 2
    }
}
