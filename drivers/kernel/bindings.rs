// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bindings that the `kernel` crate lacks, generated from `bindings.h`.
//!
//! Types that the `kernel` crate does bind are its own.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub use kernel::bindings::*;
use pin_init::MaybeZeroable;

/// Whether the `kernel` crate binds it depends on the configuration.
#[repr(C)]
pub struct ib_device {
    _opaque: [u8; 0],
}

include!(concat!(env!("MLX5_ODP_BUILD"), "/kernel_bindings.rs"));
