// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bytes and values of the ConnectX firmware interface that On-Demand Paging speaks.

#![crate_name = "firmware_cmds"]
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
