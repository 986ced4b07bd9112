// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Abstractions over kernel C APIs that the `kernel` crate does not have yet.

#![crate_name = "abi"]

mod bindings;
