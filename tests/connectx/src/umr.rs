// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! To be filled in by its owner.
