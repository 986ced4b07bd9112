// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! All of a range under one lock: what a fault does when it cannot win, and faults, invalidations
//! and device accesses interleaved at random.

mod bounds;
mod interleavings;
mod model;
