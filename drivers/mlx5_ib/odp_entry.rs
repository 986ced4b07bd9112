// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The C ABI of mlx5 On-Demand Paging: what `mlx5_ib.h` declares of `odp.c`.
//!
//! The functions here convert, call [`mlx5_odp`] and convert back.
//!
//! C header: `drivers/infiniband/hw/mlx5/mlx5_ib.h`

mod bindings;
mod chunk;
mod device;
mod dma;
mod eq;
mod mirror;
mod queue;
mod region;
mod umr;

use core::ptr::NonNull;

use firmware_cmds::{Eqe, Iova, PageFault, Wire};
use kernel::error::from_result;
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;

use crate::device::Device;
use crate::eq::LockedEq;
use crate::mirror::{Area, Mirror};
use crate::region::Mr;

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
    mlx5r_odp_count mlx5r_odp_reap mlx5r_odp_mirror_get mlx5r_odp_mirror_put mlx5r_odp_revoke
    mlx5r_odp_close mlx5r_odp_closed
}

/// A mirror of memory of the current process, for an MR that is about to be made.
///
/// # Safety
///
/// `dev` is live and outlives the mirror; its page-fault EQ was created.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_mirror_get(
    dev: *mut bindings::mlx5_ib_dev,
    start: u64,
    length: u64,
    iova: u64,
    access: c_int,
) -> *mut bindings::ib_umem_odp {
    let mirror = || {
        let dev = NonNull::new(dev).ok_or(EINVAL)?;
        let area = Area {
            address: usize::try_from(start).map_err(|_| EOVERFLOW)?,
            length: usize::try_from(length).map_err(|_| EOVERFLOW)?,
            iova: Iova::new(iova),
            // SAFETY: Pure functions.
            writable: unsafe { bindings::mlx5r_odp_access_writable(access) },
            // SAFETY: As above.
            hugetlb: unsafe { bindings::mlx5r_odp_access_hugetlb(access) },
        };
        // SAFETY: By the caller's promise.
        unsafe { Mirror::new(dev, &area) }
    };
    match mirror() {
        Ok(mirror) => Mirror::into_raw(mirror),
        Err(error) => error.to_ptr(),
    }
}

/// Unmaps and frees a mirror, when its MKey is gone or was never made.
///
/// # Safety
///
/// `odp` came from [`mlx5r_odp_mirror_get`], and nobody uses it any more.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_mirror_put(odp: *mut bindings::ib_umem_odp) {
    // SAFETY: By the caller's promise.
    unsafe { Mirror::put(odp) };
}

/// The shim's: frees chunks of a mirror that have nothing in them, in a worker.
///
/// # Safety
///
/// `odp` came from [`mlx5r_odp_mirror_get`], and is not put during the call.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_reap(odp: *mut bindings::ib_umem_odp) {
    // SAFETY: By the caller's promise.
    unsafe { Mirror::from_raw(odp) }.reap();
}

/// Revokes the MKey of an MR, after every UMR that its mirror has posted.
///
/// # Safety
///
/// `mr` is an explicit ODP MR.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_revoke(mr: *mut bindings::mlx5_ib_mr) -> c_int {
    from_result(|| {
        let mr = NonNull::new(mr).ok_or(EINVAL)?;
        // SAFETY: By the caller's promise.
        unsafe { Mr::new(mr) }.mirror().key().revoke()?;
        Ok(0)
    })
}

/// The MKey of an MR is about to be destroyed: no UMR names it from now on.
///
/// # Safety
///
/// `mr` is an explicit ODP MR.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_close(mr: *mut bindings::mlx5_ib_mr) {
    if let Some(mr) = NonNull::new(mr) {
        // SAFETY: By the caller's promise.
        unsafe { Mr::new(mr) }.mirror().key().close();
    }
}

/// The MKey of an MR was destroyed, or it could not be.
///
/// # Safety
///
/// `mr` is an explicit ODP MR, for which [`mlx5r_odp_close`] was called.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_closed(mr: *mut bindings::mlx5_ib_mr, destroyed: bool) {
    if let Some(mr) = NonNull::new(mr) {
        // SAFETY: By the caller's promise.
        unsafe { Mr::new(mr) }.mirror().key().closed(destroyed);
    }
}

/// Fills the table that `mlx5r_umr_update_xlt` is about to post. It does so when an MR is enabled,
/// and then no page is in it: the table comes zeroed, and stays so.
///
/// # Safety
///
/// None: the arguments are not used.
#[no_mangle]
pub unsafe extern "C" fn mlx5_odp_populate_xlt(
    _xlt: *mut c_void,
    _idx: usize,
    _nentries: usize,
    _mr: *mut bindings::mlx5_ib_mr,
    flags: c_int,
) -> c_int {
    // CAST: a single low bit.
    const INDIRECT: c_int = bindings::mlx5r_odp_xlt_flag_MLX5R_ODP_XLT_INDIRECT as c_int;
    // Tables of keys belong to implicit MRs.
    match flags & INDIRECT {
        0 => 0,
        _ => EOPNOTSUPP.to_errno(),
    }
}

/// Called once, when the module is loaded: there is nothing that is not a device's.
///
/// # Safety
///
/// None.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_odp_init() -> c_int {
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
        unsafe { Mr::new(mr) }.enable(pdn)?;
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

/// An explicit MR has nothing but its mirror, which is gone by now.
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

/// The shim's: the number of the first event that is not in the EQ yet.
///
/// # Safety
///
/// `eq` is live and locked by this thread.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_count(eq: *mut bindings::mlx5_ib_pf_eq) -> u32 {
    match NonNull::new(eq) {
        // SAFETY: By the caller's promise.
        Some(eq) => mlx5_odp::moment(&unsafe { LockedEq::new(eq) }),
        None => 0,
    }
}

/// The shim's: serves one event, in a worker of its own. Returns whether the event belongs to the
/// command that answers it.
///
/// # Safety
///
/// `dev` is live, and `event` is one of its events, not answered; `eqe` points to the EQE.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_serve(
    dev: *mut bindings::mlx5_ib_dev,
    event: *mut bindings::mlx5r_odp_event,
    eqe: *const u8,
    number: u32,
) -> bool {
    // SAFETY: By the caller's promise.
    let bytes = unsafe { eqe.cast::<[u8; Eqe::LEN]>().read() };
    let (Some(dev), Some(event), Ok(eqe)) =
        (NonNull::new(dev), NonNull::new(event), Eqe::parse(&bytes))
    else {
        return false;
    };
    // SAFETY: By the caller's promise.
    let device = unsafe { Device::new(dev, event) };
    mlx5_odp::serve(&device, PageFault::from_eqe(&eqe), number);
    device.is_answering()
}
