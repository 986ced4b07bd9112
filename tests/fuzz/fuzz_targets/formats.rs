// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! See [`fuzz::formats`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::formats::run(bytes));
