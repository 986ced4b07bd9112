// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A generic mirror of a process's memory on top of Linux HMM.
//!
//! A device that translates process addresses by itself (an RDMA NIC, a GPU)
//! keeps a mirror of the page tables of a range of the process. Two things happen
//! to a mirror, and they race:
//!
//! ```text
//! fault:       found, sequence = range_fault()       no lock held
//!              lock; if read_retry(sequence) { unlock; again }
//!              merge into the shared state, map for DMA, tell the device; unlock
//! invalidate:  lock; set_seq; take the translations back from the device;
//!              unmap; unlock; only then return
//! ```
//!
//! This crate is what of that protocol is not the device's, and the rules that it needs:
//!
//! 1. What a range fault finds is worth nothing until it is validated: a
//!    [`Snapshot`] can be merged only as a [`Valid`], which exists only under the
//!    lock ([`fault()`]).
//! 2. HMM never writes into the shared state. It fills a private scratch of one
//!    window at most.
//! 3. An [`Entry`] keeps its DMA mapping until it is unmapped, which takes the device's
//!    letting go ([`Shared::LetGo`]); a mapping that the device would not give back
//!    keeps its page too ([`State::Stuck`]).
//! 4. Memory is counted in entries of one size per mirror, which need not be the
//!    CPU's page size ([`Geometry`]).
//!
//! It knows nothing of any device and, at run time, nothing of the kernel: what it
//! needs from both it takes by the traits [`Host`] and [`Shared`].
//!
//! | term | meaning |
//! |---|---|
//! | PFN | page frame number: physical address in CPU pages |
//! | entry | one unit of the mirror; entry `i` covers `start + (i << entry_shift)` |
//! | sequence | the interval notifier's; it changes with every invalidation |

#![crate_name = "hmm_abi"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

mod entry;
mod fault;
mod geometry;
mod host;
mod unmap;

pub use entry::{Entry, Order, Pfn, State, Stuck};
pub use fault::{fault, FaultError, Snapshot, Stale, Valid, ATTEMPTS, BUSY_ATTEMPTS, PASSES};
pub use geometry::{Geometry, GeometryError, Index, Indices, Span, Window, WINDOW_PAGES};
pub use host::{Host, Need, Proof, RangeError, Sequence, Shared};
pub use unmap::{release, unmap};
