// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Serving a fault, and invalidating, step by step on a chunk and a device that follow a script.

mod invalidation;
mod scripted;
mod serving;
