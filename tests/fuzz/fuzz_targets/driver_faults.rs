// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! See [`fuzz::driver_faults`].

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::driver_faults::run(bytes));
