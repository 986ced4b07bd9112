// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The connectx program.

fn main() {}
