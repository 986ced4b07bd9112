// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands of this kind: to be filled in by its owner.

use super::Command;

pub(super) const COMMANDS: &[Command] = &[];
