// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The C ABI of On-Demand Paging memory: `include/rdma/ib_umem_odp.h`.
//!
//! Convert, call, convert back. `exports.c` exports what is defined here.

mod access;
mod umem;

use hmm_abi::whole::{self, FaultError};
use hmm_abi::{HmmPfn, Need};
use kernel::{
    do_once_lite,
    prelude::*,
    warn_on, //
};
use kernel_ext::bindings::{
    ib_device,
    ib_umem_odp,
    mmu_interval_notifier_ops, //
};

use crate::{
    access::Access,
    umem::{
        Area,
        LetGo,
        Mirror,
        Owner,
        Umem,
        UmemOdp,
        PAGE, //
    },
};

const __LOG_PREFIX: &[u8] = b"ib_core\0";

/// Pages that a fault looks up without allocating.
const SMALL: usize = 16;

fn into_ptr(umem: Result<Pin<KBox<UmemOdp>>>) -> *mut ib_umem_odp {
    match umem {
        Ok(umem) => UmemOdp::into_raw(umem),
        Err(error) => error.to_ptr(),
    }
}

/// A mirror of `size` bytes from `addr` in the current process.
///
/// # Safety
///
/// `device` and `ops` are valid until the result is released.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_get(
    device: *mut ib_device,
    addr: c_ulong,
    size: usize,
    access: c_int,
    ops: *const mmu_interval_notifier_ops,
) -> *mut ib_umem_odp {
    let access = Access::new(access);
    if !access.on_demand() {
        do_once_lite! { let _ = warn_on!(true); }
        return EINVAL.to_ptr();
    }
    let area = Area {
        address: addr,
        length: size,
        entry_shift: access.entry_shift(),
    };
    // SAFETY: By the safety requirements.
    let owner = unsafe { Owner::current(device, access.writable()) };
    // SAFETY: By the safety requirements.
    into_ptr(owner.and_then(|owner| unsafe { UmemOdp::new(owner, area, ops) }))
}

/// The root of an implicit region.
///
/// # Safety
///
/// `device` is valid until the result is released.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_alloc_implicit(
    device: *mut ib_device,
    access: c_int,
) -> *mut ib_umem_odp {
    let access = Access::new(access);
    if access.hugetlb() {
        return EINVAL.to_ptr();
    }
    // SAFETY: By the safety requirements.
    let owner = unsafe { Owner::current(device, access.writable()) };
    into_ptr(owner.and_then(UmemOdp::new_implicit))
}

/// A mirror of `size` bytes from `addr` in the process of an implicit root.
///
/// # Safety
///
/// `root` is not released during the call; `ops` is valid until the result is.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_alloc_child(
    root: *mut ib_umem_odp,
    addr: c_ulong,
    size: usize,
    ops: *const mmu_interval_notifier_ops,
) -> *mut ib_umem_odp {
    // SAFETY: By the safety requirements.
    let root = unsafe { Umem::from_raw(root) };
    if warn_on!(root.mirror().is_some()) {
        return EINVAL.to_ptr();
    }
    let area = Area {
        address: addr,
        length: size,
        entry_shift: PAGE,
    };
    // SAFETY: By the safety requirements.
    into_ptr(unsafe { UmemOdp::new(root.child_owner(), area, ops) })
}

/// Ends the mirror and frees it.
///
/// # Safety
///
/// Nobody uses `umem_odp` any more, and the hardware reaches none of its pages.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_release(umem_odp: *mut ib_umem_odp) {
    // SAFETY: By the safety requirements.
    drop(unsafe { UmemOdp::from_raw(umem_odp) });
}

/// Faults `bcnt` bytes from `user_virt` in, or only looks them up, and returns how many
/// entries that are, all of them, with `umem_mutex` held. What is not faulted may have
/// holes.
///
/// On error, returns a negative errno without the mutex: `EFAULT` outside of the mirror or
/// of the process's memory, `EPERM` to write what is read-only, `EINVAL` if the process is
/// gone or a page is smaller than an entry, `EIO` if the device kept an old translation,
/// `EBUSY` if invalidations never stopped, `EINTR`, `ENOMEM`.
///
/// # Safety
///
/// `umem_odp` is not released during the call.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_map_dma_and_lock(
    umem_odp: *mut ib_umem_odp,
    user_virt: u64,
    bcnt: u64,
    access_mask: u64,
    fault: bool,
) -> c_int {
    // SAFETY: By the safety requirements.
    let umem = unsafe { Umem::from_raw(umem_odp) };
    // CAST: Widens.
    let write = access_mask & (HmmPfn::WRITE as u64) != 0;
    let need = match (fault, write) {
        (false, _) => Need::Snapshot,
        (true, false) => Need::Read,
        (true, true) => Need::Write,
    };
    let mirror = umem.mirror().ok_or(EFAULT);
    match mirror.and_then(|mirror| map_and_lock(mirror, user_virt, bcnt, need)) {
        Ok(entries) => entries,
        Err(error) => error.to_errno(),
    }
}

fn map_and_lock(mirror: Mirror<'_>, address: u64, length: u64, need: Need) -> Result<c_int> {
    let geometry = mirror.geometry();
    let address = usize::try_from(address).map_err(|_| EFAULT)?;
    let length = usize::try_from(length).map_err(|_| EFAULT)?;
    let indices = geometry.within(address, length).ok_or(EFAULT)?;
    // The C prototype has room for no more.
    let entries = c_int::try_from(indices.len()).map_err(|_| EINVAL)?;

    let faulting = mirror.faulting()?;
    let mut small = [HmmPfn::EMPTY; SMALL];
    let mut large = KVec::new();
    let pages = geometry.scratch_len(indices);
    let scratch = if pages <= SMALL {
        &mut small[..]
    } else {
        large.resize(pages, HmmPfn::EMPTY, GFP_KERNEL)?;
        &mut large[..]
    };
    let locked =
        whole::fault(&faulting, geometry, indices, need, scratch).map_err(|error| match error {
            FaultError::Empty | FaultError::Fragmented => EINVAL,
            FaultError::Stuck => EIO,
            FaultError::Busy => EBUSY,
            FaultError::Host(error) => error,
        })?;
    locked.stay_locked();
    Ok(entries)
}

/// Unmaps what lies between `virt` and `bound`. The caller holds `umem_mutex`, and the
/// hardware has let go.
///
/// # Safety
///
/// As said; and `umem_odp` is not released during the call.
#[no_mangle]
pub unsafe extern "C" fn ib_umem_odp_unmap_dma_pages(
    umem_odp: *mut ib_umem_odp,
    virt: u64,
    bound: u64,
) {
    // SAFETY: By the safety requirements.
    let Some(mirror) = (unsafe { Umem::from_raw(umem_odp) }).mirror() else {
        return;
    };
    // What lies beyond the address space lies beyond the mirror.
    let clip = |address| usize::try_from(address).unwrap_or(usize::MAX);
    let indices = mirror.geometry().touched(&(clip(virt)..clip(bound)));
    // SAFETY: By the safety requirements.
    let (mut locked, let_go) = unsafe { (mirror.assume_locked(), LetGo::promise()) };
    whole::unmap(&mut *locked, indices, &let_go);
}
