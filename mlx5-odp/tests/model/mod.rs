// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A model of a process's memory and of a device, small enough to be obviously right, and a driver
//! between the two whose regions are mirrors of hmm-abi.
//!
//! - [`memory`]: the process's page table and its frames. A frame is never used twice.
//! - [`device`]: the translation tables, and the event queue.
//! - [`chunk`]: a chunk of a mirror; its notifier.
//! - [`implicit`]: implicit MRs, whose children are there for good.
//! - [`buffer`]: MRs of a dma-buf.
//! - [`driver`]: regions, queues, and what the fault path asks of the driver.
//!
//! For tests that follow a script, in one thread; what happens at the same time is for `tests/sim`.

#![allow(dead_code)] // Each test binary uses a part.

pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod device;
pub(crate) mod driver;
pub(crate) mod eq;
pub(crate) mod implicit;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod world;

pub(crate) use driver::Model;
pub(crate) use memory::Protection;
