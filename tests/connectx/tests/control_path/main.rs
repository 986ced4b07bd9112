// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device without its data path: commands as the driver posts them, event queues,
//! completion queues, capabilities, the control protocol.

mod bring_up;
mod commands;
mod completions;
mod control;
mod events;
mod rig;
mod rules;
