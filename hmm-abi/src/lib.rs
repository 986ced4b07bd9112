// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A generic mirror of a process's memory on top of Linux HMM.
//!
//! A device that translates process addresses by itself (an RDMA NIC, a GPU) keeps a mirror of
//! the page tables of a range of the process. Two things happen to a mirror, and they race:
//!
//! ```text
//! fault:       found, sequence = range_fault()       no lock held
//!              lock; if read_retry(sequence) { unlock; again }
//!              merge, map for the device, publish; unlock
//! invalidate   lock; set_seq; leave; post the zap; unlock
//!  start:
//!  finish:     wait for the zap; lock; unmap, dirty, forget; unlock; only then return
//! ```
//!
//! This crate is that protocol. A mirror is a number of chunks of 2 MiB, made when they are first
//! touched and freed when they are empty; each has its own interval notifier, lock and entries, so
//! that faults in one have nothing to do with faults or invalidations in another. Whoever mirrors
//! memory supplies the rest:
//!
//! - [`Store`]: where the chunks are, and how one is made;
//! - [`Chunk`], [`FaultChunk`] and [`LockedChunk`]: the memory, the lock, the entries' place, the
//!   mapping for the device;
//! - [`Device`]: the table of translations.
//!
//! A fault takes more than is demanded, where that is cheap: neighbours that are in memory, and
//! what a stream will want next ([`Around`]).
//!
//! What they cannot get wrong:
//!
//! 1. What a range fault finds is worth nothing until it is validated. A [`Snapshot`] becomes a
//!    [`Valid`] under the lock alone, that a [`Ready`] by being merged and mapped, and only that
//!    can be published.
//! 2. HMM never writes into shared state. It fills a private scratch of one window at most.
//! 3. An entry stays mapped until the device has let go of it ([`LetGo`]); what it does not let go
//!    keeps its page too ([`State::Stuck`]).
//! 4. Memory is counted in entries of one size per mirror, which need not be the CPU's page size
//!    ([`Geometry`]).
//!
//! It knows nothing of any device and, at run time, nothing of the kernel. [`whole`] is another
//! contract, for drivers in C: all of a range under one lock.
//!
//! | term | meaning |
//! |---|---|
//! | PFN | page frame number: physical address in CPU pages |
//! | entry | one unit of the mirror; entry `i` covers `start + (i << entry_shift)` |
//! | slot | an entry's place in its chunk |
//! | demanded, faulted | what a fault is about; what it has the host bring in, streams included |
//! | looked at | these, and neighbours that are taken if they are there |
//! | sequence | the interval notifier's; it changes with every invalidation |
//! | publish, zap | to give the device a translation, to take it back |
//!
//! Lock order: one chunk's lock at a time, and nothing is taken under it but what the
//! implementations of these traits take.

#![crate_name = "hmm_abi"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]

mod around;
mod book;
mod chunk;
mod entry;
mod fault;
mod geometry;
mod host;
mod invalidate;
mod merge;
mod pfn;
pub mod whole;

pub use around::{carried, Ahead, Around, MAX_STREAM};
pub use book::{Book, Given};
pub use chunk::{LetGo, Proof, Table, Translation};
pub use entry::{Entry, State};
pub use fault::{
    serve, Fault, FaultError, Outcome, Ready, Scratch, Served, Snapshot, Stale, Valid, ATTEMPTS,
    BUSY_ATTEMPTS,
};
pub use geometry::{
    ChunkIndex, Geometry, GeometryError, Index, Indices, Slots, Span, Window, CHUNK_ENTRIES,
    WINDOW_PAGES,
};
pub use host::{
    Chunk, Device, FaultChunk, LockedChunk, MapError, Need, NotZapped, PublishError, RangeError,
    Sequence, Store, Zap,
};
pub use invalidate::{finish, pass, release, start, withdraw, Started};
pub use pfn::{HmmPfn, Order, Pfn};
