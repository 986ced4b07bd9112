// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Abstractions over kernel C APIs that the `kernel` crate does not have.
//!
//! Each module is written as if it were one of `rust/kernel/`: [`hmm`],
//! [`mmu_notifier`], [`pid`], [`umem_odp`]. Nobody else uses `bindings`.

#![crate_name = "abi"]

#[doc(hidden)]
pub mod bindings;

pub mod hmm;
pub mod mmu_notifier;
pub mod pid;
pub mod umem_odp;
