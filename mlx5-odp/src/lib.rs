// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! On-Demand Paging for mlx5: page faults, memory regions, invalidation.
//!
//! The logic, and nothing else: no kernel type, no `unsafe`, no allocation. The driver implements
//! [`Driver`], [`Region`], [`LockedPages`] and [`Invalidate`] on top of the kernel; the tests do on
//! top of a model of memory and device, and run the same path from event to resume.
//!
//! - [`serve`]: an event, from bytes to PAGE_FAULT_RESUME.
//! - [`bring_in()`]: a range of a region, faulted in, mapped and published.
//! - [`invalidate()`]: the way back, before the kernel takes pages.
//! - [`xlt::entry`]: what a page's translation looks like, for both.
//!
//! # Glossary
//!
//! - Base page: 4 KiB, whatever the page size of the region; statistics count these.
//! - Leaving: of a page, that its translation is being taken back.
//! - Publish: to write translations to the device. Zap: to take them back.
//! - Region: a user memory region (MR) with its MKey and its user memory.
//! - Stall: an access of the device that waits for a page fault to be resumed.
//! - UMR: the WQE that writes translations. XLT: the table they are in. MTT: one of them.

#![crate_name = "mlx5_odp"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

mod bring_in;
mod driver;
mod eq;
mod fault;
mod invalidate;
mod range;
mod region;
mod repeats;
mod stall;
pub mod xlt;

pub use bring_in::{bring_in, NotIn, TRIES, WINDOW};
pub use driver::{Driver, Intent, NoRegion, NoWqe, Queue, Report, Unsupported};
pub use eq::{drain, EventQueue, SPARE};
pub use fault::serve;
pub use invalidate::{invalidate, Invalidate, Invalidated, NotZapped};
pub use range::{PageIndex, PageRun, PageShift, Placement, UserVa, VaRange};
pub use region::{Access, FaultError, LockedPages, PageState, Pressure, Region};
pub use repeats::Repeats;
pub use stall::Stall;
