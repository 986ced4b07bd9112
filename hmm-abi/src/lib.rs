// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A generic mirror of a process's memory on top of Linux HMM.

#![crate_name = "hmm_abi"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
