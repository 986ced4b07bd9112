// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bindings to the shim, and to the prototypes of the entry points.
//!
//! The structs of `mlx5_ib` stay opaque: the shim reads them.

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

opaque! {
    ib_pd
    mlx5_core_dev mlx5_eq mlx5_eqe mlx5_ib_dev mlx5_ib_mkey mlx5_ib_mr mlx5_ib_pd mlx5_ib_pf_eq
    mlx5_ib_qp mlx5_ib_srq mlx5_irq
}

include!(concat!(env!("MLX5_ODP_BUILD"), "/mlx5_ib_bindings.rs"));
