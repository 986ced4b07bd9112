// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The C ABI of `ib_umem_odp`.
