// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! See [`fuzz::device_commands`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::device_commands::run(bytes));
