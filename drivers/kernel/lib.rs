// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the `kernel` crate does not have yet.
//!
//! Each module is written as if it were one of `rust/kernel/`, and imports nothing of
//! this project: [`mmu_notifier`] and [`hmm`] to mirror the memory of a process,
//! [`dma_iova`], [`dma_phys`] and [`hmm_dma`] to map it for a device, [`pid`], [`mempool`] and
//! [`workqueue`]. Nobody else uses [`bindings`], but for C structs of which the address is
//! passed on.

#![crate_name = "kernel_ext"]

#[doc(hidden)]
pub mod bindings;

pub mod dma_iova;
pub mod dma_phys;
pub mod hmm;
pub mod hmm_dma;
pub mod mempool;
pub mod mmu_notifier;
pub mod pid;
pub mod workqueue;
