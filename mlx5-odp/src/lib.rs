// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! On-Demand Paging for mlx5: page faults, memory regions, invalidation.
//!
//! The logic, and nothing else: no kernel type, no `unsafe`, no allocation. The driver implements
//! [`Driver`], [`Region`] and [`implicit::Family`] on top of the kernel, a region being a mirror
//! ([`hmm_abi`]); the tests do on top of a model of memory and device, and run the same path from
//! event to resume.
//!
//! - [`drain`]: the event queue, from interrupt to workers; [`Unserved`]: what they have not done yet.
//! - [`serve`]: an event, from bytes to PAGE_FAULT_RESUME.
//! - [`bring_in()`]: a range of a region, faulted in, mapped and published.
//! - [`implicit`]: an MR over all of a process's memory, and its children.
//! - [`Buffer`]: an MR of a dma-buf.
//! - [`prefetch()`]: the same range because a user wishes it.
//! - [`xlt::fill`]: what entries look like in the device's table.
//!
//! # Glossary
//!
//! - Base page: 4 KiB, whatever the page size of the region; statistics count these.
//! - Publish: to write translations to the device.
//! - Region: a user memory region (MR) with its MKey and its user memory.
//! - Stall: an access of the device that waits for a page fault to be resumed.
//! - UMR: the WQE that writes translations. XLT: the table they are in. MTT: one of them, of a page;
//!   KSM: one of them, of a stretch of memory that another key translates.

#![crate_name = "mlx5_odp"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

mod bring_in;
mod buffer;
mod driver;
mod eq;
mod fault;
mod found;
pub mod implicit;
pub mod key;
mod placement;
mod prefetch;
mod region;
mod stall;
mod unserved;
pub mod xlt;

pub use bring_in::{bring_in, bring_in_present, Asked, BroughtIn, NotIn, LATE, TRIES};
pub use buffer::Buffer;
pub use driver::{Driver, FoundBy, Intent, NoQuery, NoRegion, NoWqe, Queue, Report, Unsupported};
pub use eq::{drain, moment, Event, EventQueue, SPARE};
pub use fault::serve;
pub use found::{Extent, Found};
pub use key::Key;
pub use placement::Placement;
pub use prefetch::{prefetch, Advice};
pub use region::{MemoryError, Pressure, Region};
pub use stall::Stall;
pub use unserved::{Generation, Unserved};
