// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport: to be filled in by its owner.
