// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the device and the driver read that somebody else has written, as functions of any bytes.
//! A target panics where something is wrong: the code under it does, or what has to hold does not.
//!
//! The programs in `fuzz_targets` give libFuzzer these functions, the test `corpus` runs them on
//! what is committed.

#![forbid(unsafe_code)]

pub mod device_commands;
pub mod device_queues;
pub mod driver_faults;
pub mod formats;
pub mod seeds;
mod steps;

/// The tests' driver that speaks through the command queue.
#[path = "../../connectx/tests/control_path"]
mod control_path {
    #[allow(dead_code, reason = "a part of it is used")]
    pub(crate) mod rig;
}

/// The tests' driver that has queues and memory regions.
#[path = "../../connectx/tests/data_path"]
mod data_path {
    #[allow(dead_code, unused_imports, reason = "a part of it is used")]
    pub(crate) mod rig;
}

/// The tests' double of a process, a device and the driver around `mlx5-odp`.
#[path = "../../../mlx5-odp/tests/model/mod.rs"]
mod model;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its program and its corpus.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
    /// Where evolution starts.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "device_commands",
        run: device_commands::run,
        seeds: seeds::device_commands,
    },
    Target {
        name: "device_queues",
        run: device_queues::run,
        seeds: seeds::device_queues,
    },
    Target {
        name: "driver_faults",
        run: driver_faults::run,
        seeds: seeds::driver_faults,
    },
    Target {
        name: "formats",
        run: formats::run,
        seeds: seeds::formats,
    },
];
