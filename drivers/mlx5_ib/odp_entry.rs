// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The C ABI of mlx5 On-Demand Paging: what `mlx5_ib.h` declares of `odp.c`.
//!
//! The functions here convert, call [`mlx5_odp`] and convert back.
//!
//! C header: `drivers/infiniband/hw/mlx5/mlx5_ib.h`

mod advise;
mod bindings;
mod buffer;
mod chunk;
mod device;
mod dma;
mod eq;
mod event;
mod implicit;
mod indirect;
mod mirror;
mod queue;
mod region;
mod umr;

use core::ptr::NonNull;
use core::slice;

use firmware_cmds::Iova;
use kernel::error::{from_result, to_result};
use kernel::ffi::{c_int, c_void};
use kernel::prelude::*;
use mlx5_odp::implicit::ChildIndex;
use mlx5_odp::key;
use mlx5_odp::xlt::KSM_LEN;

use crate::eq::Faults;
use crate::implicit::Parent;
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
    mlx5_ib_advise_mr_prefetch mlx5r_odp_create_eq mlx5r_odp_faults_new mlx5r_odp_faults_drop
    mlx5r_odp_mirror_get mlx5r_odp_mirror_put mlx5r_odp_revoke mlx5r_odp_close mlx5r_odp_closed
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
            writable: unsafe { bindings::ib_access_writable(access) },
            // SAFETY: As above.
            page_shift: unsafe { bindings::ib_access_page_shift(access) },
        };
        // SAFETY: By the caller's promise.
        unsafe { Mirror::new(dev, &area) }
    };
    match mirror() {
        Ok(mirror) => Mirror::into_raw(mirror),
        Err(error) => error.to_ptr(),
    }
}

/// Unmaps and frees a mirror, when its MKey is gone or was never made. Destroys the children of an
/// implicit MR.
///
/// # Safety
///
/// `odp` is the umem of an ODP MR, or came from [`mlx5r_odp_mirror_get`], and nobody uses it any more.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_mirror_put(odp: *mut bindings::ib_umem_odp) {
    // SAFETY: By the caller's promise.
    unsafe {
        match (*odp).is_implicit_odp {
            true => Parent::put(odp),
            false => Mirror::put(odp),
        }
    }
}

/// Revokes the MKey of an MR, after every UMR that its mirror has posted. Of an implicit MR nobody posts
/// any by then.
///
/// # Safety
///
/// `mr` is an ODP MR, of which nobody holds a reference any more.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_revoke(mr: *mut bindings::mlx5_ib_mr) -> c_int {
    from_result(|| {
        let mr = NonNull::new(mr).ok_or(EINVAL)?;
        // SAFETY: By the caller's promise.
        unsafe {
            match bindings::mlx5r_odp_is_implicit(mr.as_ptr()) {
                true => to_result(bindings::mlx5r_umr_revoke_mr(mr.as_ptr()))?,
                false => key::revoke(Mr::new(mr).mirror().key())?,
            }
        }
        Ok(0)
    })
}

/// The MKey of an MR is about to be destroyed: no UMR names it from now on.
///
/// # Safety
///
/// As [`mlx5r_odp_revoke`].
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_close(mr: *mut bindings::mlx5_ib_mr) {
    // SAFETY: By the caller's promise.
    if let Some(mr) = unsafe { explicit(mr) } {
        key::close(mr.mirror().key());
    }
}

/// The MKey of an MR was destroyed, or it could not be.
///
/// # Safety
///
/// `mr` is an ODP MR, for which [`mlx5r_odp_close`] was called.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_closed(mr: *mut bindings::mlx5_ib_mr, destroyed: bool) {
    // SAFETY: By the caller's promise.
    if let Some(mr) = unsafe { explicit(mr) } {
        key::closed(mr.mirror().key(), destroyed);
    }
}

/// An MR with a mirror of its own, which an implicit one has not.
///
/// # Safety
///
/// `mr` is an ODP MR, and not destroyed during `'a`.
unsafe fn explicit<'a>(mr: *mut bindings::mlx5_ib_mr) -> Option<Mr<'a>> {
    let mr = NonNull::new(mr)?;
    // SAFETY: By the safety requirements.
    unsafe { (!bindings::mlx5r_odp_is_implicit(mr.as_ptr())).then(|| Mr::new(mr)) }
}

/// Fills the table that `mlx5r_umr_update_xlt` is about to post. It does so when an MR is enabled,
/// and then no page is in it: the table comes zeroed, and stays so. Of an implicit MR it holds keys,
/// and all of them are the null key.
///
/// # Safety
///
/// With `MLX5_IB_UPD_XLT_INDIRECT`, `mr` is an implicit MR, and `xlt` has `nentries` KSMs.
#[no_mangle]
pub unsafe extern "C" fn mlx5_odp_populate_xlt(
    xlt: *mut c_void,
    idx: usize,
    nentries: usize,
    mr: *mut bindings::mlx5_ib_mr,
    flags: c_int,
) -> c_int {
    // CAST: a single low bit.
    const INDIRECT: c_int = bindings::mlx5r_odp_xlt_flag_MLX5R_ODP_XLT_INDIRECT as c_int;
    if flags & INDIRECT != 0 {
        // SAFETY: By the caller's promise.
        unsafe {
            let out = slice::from_raw_parts_mut(xlt.cast(), nentries * KSM_LEN);
            Parent::from_raw(bindings::mlx5r_odp_umem(mr)).fill_blank(ChildIndex(idx), out);
        }
    }
    0
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
    let ksm_shift = implicit::layout().map_or(0, |layout| layout.child_shift());
    let ksm_shift = u8::try_from(ksm_shift).unwrap_or(0);
    // SAFETY: By the caller's promise.
    unsafe { bindings::mlx5r_odp_init_caps(dev, ksm_shift) };
    0
}

/// # Safety
///
/// `dev` is a device that is being torn down, and without regions or queue pairs.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_odp_cleanup_one(dev: *mut bindings::mlx5_ib_dev) {
    // SAFETY: By the caller's promise.
    unsafe { bindings::mlx5r_odp_faults_destroy(dev) };
}

/// # Safety
///
/// `dev` is a live device.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_create_eq(
    dev: *mut bindings::mlx5_ib_dev,
    _eq: *mut bindings::mlx5_ib_pf_eq,
) -> c_int {
    // SAFETY: By the caller's promise.
    unsafe {
        if !bindings::mlx5r_odp_supported(dev) {
            return EOPNOTSUPP.to_errno();
        }
        bindings::mlx5r_odp_faults_create(dev)
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

/// # Safety
///
/// `mr` is a new MR of a dma-buf, and `pd` is live.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_init_dmabuf_mr(
    mr: *mut bindings::mlx5_ib_mr,
    pd: *mut bindings::ib_pd,
) -> c_int {
    from_result(|| {
        let mr = NonNull::new(mr).ok_or(EINVAL)?;
        // SAFETY: By the caller's promise.
        unsafe { buffer::enable(mr, pd) }?;
        Ok(0)
    })
}

/// # Safety
///
/// `pd` is live, and its device's page-fault EQ was created.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_alloc_implicit_mr(
    pd: *mut bindings::mlx5_ib_pd,
    access_flags: c_int,
) -> *mut bindings::mlx5_ib_mr {
    // SAFETY: By the caller's promise.
    let registered = unsafe {
        let pd = bindings::mlx5r_odp_ibpd(pd);
        let dev = NonNull::new(bindings::mlx5r_odp_pd_dev(pd)).ok_or(EINVAL);
        dev.and_then(|dev| Parent::register(dev, pd, access_flags))
    };
    match registered {
        Ok(mr) => mr.as_ptr(),
        Err(error) => error.to_ptr(),
    }
}

/// What an implicit MR has besides its children, which are gone by now, as is any mirror.
///
/// # Safety
///
/// `mr` is an ODP MR, and its MKey is gone.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_free_odp_mr(mr: *mut bindings::mlx5_ib_mr) {
    // SAFETY: By the caller's promise.
    unsafe { bindings::mlx5r_odp_destroy_null_key(mr) };
}

/// # Safety
///
/// `pd` is live, and `sg_list` has `num_sge` elements.
#[no_mangle]
pub unsafe extern "C" fn mlx5_ib_advise_mr_prefetch(
    pd: *mut bindings::ib_pd,
    advice: bindings::ib_uverbs_advise_mr_advice,
    flags: u32,
    sg_list: *mut bindings::ib_sge,
    num_sge: u32,
) -> c_int {
    const FLUSH: u32 = bindings::ib_uverbs_advise_mr_flag_IB_UVERBS_ADVISE_MR_FLAG_FLUSH;
    from_result(|| {
        let advice = advise::advice(advice).ok_or(EOPNOTSUPP)?;
        // SAFETY: By the caller's promise.
        unsafe {
            let dev = NonNull::new(bindings::mlx5r_odp_pd_dev(pd)).ok_or(EINVAL)?;
            let sges = advise::elements(sg_list, num_sge);
            match flags & FLUSH {
                0 => advise::later(dev, pd, advice, sges)?,
                _ => advise::now(dev, pd, advice, sges)?,
            }
        }
        Ok(0)
    })
}

/// The shim's: creates what a device has for its page faults.
///
/// # Safety
///
/// `dev` is live until [`mlx5r_odp_faults_drop`].
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_faults_new(
    dev: *mut bindings::mlx5_ib_dev,
) -> *mut bindings::mlx5r_odp_faults {
    let Some(dev) = NonNull::new(dev) else {
        return EINVAL.to_ptr();
    };
    // SAFETY: By the caller's promise.
    match unsafe { Faults::new(dev) } {
        Ok(faults) => faults.into_raw(),
        Err(error) => error.to_ptr(),
    }
}

/// The shim's: the end of what a device has for its page faults.
///
/// # Safety
///
/// `faults` came from [`mlx5r_odp_faults_new`], and the device is without regions and queue pairs.
#[no_mangle]
pub unsafe extern "C" fn mlx5r_odp_faults_drop(faults: *mut bindings::mlx5r_odp_faults) {
    // SAFETY: By the caller's promise.
    unsafe { Faults::drop_raw(faults) };
}
