// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A deterministic simulation of on-demand paging: `hmm-abi` and `mlx5-odp`, as they ship, between
//! a software ConnectX (`tests/connectx`) and a model of Linux' memory management, in one process
//! without a thread or a clock. A seed decides what is done, and in which order, down to every
//! lock and every call of a notifier.

#![forbid(unsafe_code)]

mod adapter;
mod choice;
mod coverage;
mod driver;
mod lock;
mod memory;
mod mm;
mod mutant;
mod notifier;
mod oracle;
mod plan;
mod run;
mod seeds;
mod shrink;
mod sim;
mod task;
mod traffic;

pub use coverage::Coverage;
pub use mutant::Mutant;
pub use seeds::{explore, Explored, Failure};
pub use sim::Finding;
