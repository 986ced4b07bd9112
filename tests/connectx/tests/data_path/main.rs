// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The data path against guest memory in this process: no QEMU, no kernel. The driver's
//! part is played by [`rig::Rig`], which builds its bytes with firmware-cmds.

mod devx;
mod dynamic;
mod fault_shapes;
mod faults;
mod inspect;
mod malformed;
mod messages;
mod order;
mod pair;
mod rig;
mod rules;
mod shared_receive;
mod stress;
mod subnet;
mod umr;
mod walk;
mod windows;
mod world;
