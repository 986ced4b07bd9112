// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! On-Demand Paging for mlx5: page faults, memory regions, invalidation.

#![crate_name = "mlx5_odp"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
