// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Serving a fault, invalidating, and what a driver does by itself, step by step on a chunk and a
//! device that follow a script.

mod around;
mod invalidation;
mod own;
mod scripted;
mod serving;
