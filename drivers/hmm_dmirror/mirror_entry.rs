// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The kernel's HMM test device with its mirror on `hmm-abi`: what the C half, the kernel's own
//! `lib/test_hmm.c` with a patch, calls.
//!
//! The functions here convert, call and convert back.
//!
//! C header: `mirror.h`

mod bindings;
mod bounce;
mod chunk;
mod exclusive;
mod migration;
mod mirror;
mod table;

use hmm_abi::{
    Indices,
    Store, //
};
use kernel::{
    error::from_result,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use crate::{
    bindings::{
        dmirror_device,
        hmm_dmirror_cmd,
        hmm_dmirror_mirror,
        hmm_dmirror_move, //
    },
    bounce::{
        Access,
        Bounce, //
    },
    migration::Move,
    mirror::Mirror,
    table::NoTranslation,
};

const __LOG_PREFIX: &[u8] = b"hmm_dmirror_rust\0";

/// Checks that a function has the prototype that C expects.
macro_rules! check {
    ($($name:ident)*) => {
        $(const _: () = {
            let _ = [bindings::$name, $name];
        };)*
    };
}

check! {
    hmm_dmirror_mirror_open hmm_dmirror_mirror_release hmm_dmirror_mirror_read
    hmm_dmirror_mirror_write hmm_dmirror_mirror_snapshot hmm_dmirror_mirror_exclusive
    hmm_dmirror_mirror_check_exclusive hmm_dmirror_mirror_peek hmm_dmirror_move_begin
    hmm_dmirror_move_end hmm_dmirror_move_withdraw hmm_dmirror_move_moved
}

/// A mirror of all of the current process's memory.
///
/// # Safety
///
/// `device` outlives the result.
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_open(
    device: *mut dmirror_device,
) -> *mut hmm_dmirror_mirror {
    match Mirror::new(device) {
        // SAFETY: C does not move it.
        Ok(mirror) => KBox::into_raw(unsafe { Pin::into_inner_unchecked(mirror) }).cast(),
        Err(error) => error.to_ptr(),
    }
}

/// Ends a mirror and frees it.
///
/// # Safety
///
/// `mirror` came from [`hmm_dmirror_mirror_open`]; nobody uses it any more.
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_release(mirror: *mut hmm_dmirror_mirror) {
    // SAFETY: By the safety requirements; it never moved.
    let mirror = unsafe { Pin::new_unchecked(KBox::<Mirror>::from_raw(mirror.cast())) };
    mirror.end();
}

/// What C holds as a mirror.
///
/// # Safety
///
/// `mirror` came from [`hmm_dmirror_mirror_open`] and is not released during `'a`.
unsafe fn mirror_of<'a>(mirror: *mut hmm_dmirror_mirror) -> &'a Mirror {
    // SAFETY: By the safety requirements.
    unsafe { &*mirror.cast() }
}

/// Runs a command on the entries that it names.
///
/// # Safety
///
/// As [`mirror_of`]; `cmd` is valid, and nobody else's.
unsafe fn command(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
    run: impl FnOnce(&Mirror, Indices, &mut hmm_dmirror_cmd) -> Result,
) -> c_int {
    // SAFETY: By the safety requirements.
    let (mirror, cmd) = unsafe { (mirror_of(mirror), &mut *cmd) };
    from_result(|| {
        let indices = mirror.indices(cmd.addr, cmd.npages)?;
        run(mirror, indices, cmd)?;
        Ok(0)
    })
}

/// The device reads: what was read goes to the user.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_read(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    let run = |mirror: &Mirror, indices: Indices, cmd: &mut hmm_dmirror_cmd| {
        let mut bounce = Bounce::new(indices)?;
        cmd.faults = bounce.access_all(mirror, Access::Read)?;
        cmd.cpages = count(bounce.copied());
        bounce.copy_to_user(cmd.ptr)
    };
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, run) }
}

/// The device writes: what the user has for it.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_write(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    let run = |mirror: &Mirror, indices: Indices, cmd: &mut hmm_dmirror_cmd| {
        let mut bounce = Bounce::new(indices)?;
        bounce.copy_from_user(cmd.ptr)?;
        cmd.faults = bounce.access_all(mirror, Access::Write)?;
        cmd.cpages = count(bounce.copied());
        Ok(())
    };
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, run) }
}

/// What HMM says of each page goes to the user, a byte each.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_snapshot(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    let run = |mirror: &Mirror, indices: Indices, cmd: &mut hmm_dmirror_cmd| {
        let address = usize::try_from(cmd.ptr).map_err(|_| EFAULT)?;
        let user = UserSlice::new(UserPtr::from_addr(address), indices.len());
        let mut user = user.writer();
        mirror.snapshot(indices, |said| {
            user.write_slice(said)?;
            cmd.cpages += count(said.len());
            Ok(())
        })
    };
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, run) }
}

/// Pages become exclusive to the device, which reads them: what was read goes to the user.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_exclusive(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    let run = |mirror: &Mirror, indices: Indices, cmd: &mut hmm_dmirror_cmd| {
        mirror.make_exclusive(indices)?;
        peek(mirror, indices, cmd)
    };
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, run) }
}

/// `EPERM` if a page is exclusive to the device.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_check_exclusive(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    let run = |mirror: &Mirror, indices: Indices, _: &mut hmm_dmirror_cmd| {
        for (at, slots) in mirror.geometry().by_chunk(indices) {
            let chunk = mirror.find(at);
            if chunk.is_some_and(|chunk| chunk.table().has_exclusive(slots)) {
                return Err(EPERM);
            }
        }
        Ok(())
    };
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, run) }
}

/// The device reads what it has: `ENOENT` if it does not have all of it.
///
/// # Safety
///
/// As for [`command`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_mirror_peek(
    mirror: *mut hmm_dmirror_mirror,
    cmd: *mut hmm_dmirror_cmd,
) -> c_int {
    // SAFETY: By the safety requirements.
    unsafe { command(mirror, cmd, peek) }
}

fn peek(mirror: &Mirror, indices: Indices, cmd: &mut hmm_dmirror_cmd) -> Result {
    let mut bounce = Bounce::new(indices)?;
    let all = bounce.access(mirror, Access::Read);
    cmd.cpages = count(bounce.copied());
    all.map_err(|NoTranslation| ENOENT)?;
    bounce.copy_to_user(cmd.ptr)
}

/// For the user.
fn count(pages: usize) -> u64 {
    // CAST: widens.
    pages as u64
}

/// The current task begins to migrate pages between `start` and `end` to the device.
///
/// # Safety
///
/// `mirror` came from [`hmm_dmirror_mirror_open`] and outlives the result.
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_move_begin(
    mirror: *mut hmm_dmirror_mirror,
    start: usize,
    end: usize,
) -> *mut hmm_dmirror_move {
    // SAFETY: By the safety requirements.
    let mirror = unsafe { mirror_of(mirror) };
    let begin = || {
        let indices = mirror.geometry().touched(&(start..end));
        let new = Move::begin(mirror, indices)?;
        Ok(KBox::new(new, GFP_KERNEL)?)
    };
    match begin() {
        Ok(new) => KBox::into_raw(new).cast(),
        Err(error) => Error::to_ptr(error),
    }
}

/// It has done so: the device is to use what was moved.
///
/// # Safety
///
/// `of` came from [`hmm_dmirror_move_begin`], and is not used any more.
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_move_end(of: *mut hmm_dmirror_move) -> c_int {
    // SAFETY: By the safety requirements.
    let of = unsafe { KBox::<Move<'_>>::from_raw(of.cast()) };
    from_result(|| KBox::into_inner(of).end().map(|()| 0))
}

/// Pages are about to be copied.
///
/// # Safety
///
/// `of` came from [`hmm_dmirror_move_begin`] and has not ended.
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_move_withdraw(
    of: *mut hmm_dmirror_move,
    addr: usize,
    npages: usize,
) {
    // SAFETY: By the safety requirements.
    let of = unsafe { &*of.cast::<Move<'_>>() };
    of.withdraw(of.pages(addr, npages));
}

/// Pages are in the device's memory now.
///
/// # Safety
///
/// As for [`hmm_dmirror_move_withdraw`].
#[no_mangle]
pub unsafe extern "C" fn hmm_dmirror_move_moved(
    of: *mut hmm_dmirror_move,
    addr: usize,
    npages: usize,
) {
    // SAFETY: By the safety requirements.
    let of = unsafe { &mut *of.cast::<Move<'_>>() };
    of.moved(of.pages(addr, npages));
}
