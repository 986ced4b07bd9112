// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bindings to the C half, and to the prototypes of the entry points.

#![allow(
    clippy::all,
    clippy::ptr_as_ptr,
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

pub use kernel_ext::bindings::*;
use pin_init::MaybeZeroable;

/// Declares structs of which only the address is used.
macro_rules! opaque {
    ($($name:ident)*) => {
        $(#[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        })*
    };
}

opaque! { dmirror_device hmm_dmirror_mirror hmm_dmirror_move }

include!(concat!(env!("MLX5_ODP_BUILD"), "/hmm_dmirror_bindings.rs"));
