// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A model of a process's memory and of a device, small enough to be obviously right.
//!
//! The process has pages that are read-only, writable or not mapped; a touched page gets a frame,
//! an invalidation frees it. The device has a translation table per key, and complains when it
//! reaches a frame that was freed. Everything is behind one lock, and every operation is a point
//! at which another thread of the simulation may run ([`schedule`]).

#![allow(dead_code)] // Each test binary uses a part.

pub(crate) mod driver;
pub(crate) mod schedule;
pub(crate) mod world;

pub(crate) use driver::Model;
pub(crate) use world::Protection;
