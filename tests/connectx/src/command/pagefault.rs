// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! PAGE_FAULT_RESUME.

use firmware_cmds::{Opcode, PageFaultResume, Scheme};

use super::{CmdResult, CmdStatus, Command};
use crate::device::Device;

/// A token that names no stall is not an error: its QP may have been reset or destroyed
/// while the driver served the fault.
fn page_fault_resume(device: &mut Device, input: &[u8], _: &mut [u8]) -> CmdResult {
    let scheme = match device.fault_scheme() {
        Scheme::Memory => firmware_cmds::resume::Scheme::Memory,
        Scheme::Transport => firmware_cmds::resume::Scheme::Transport,
    };
    let resume = PageFaultResume::parse(input, scheme).map_err(|_| CmdStatus::BadParam)?;
    device.resume(resume);
    Ok(())
}

pub(super) const COMMANDS: &[Command] = &[Command {
    opcode: Opcode::PageFaultResume.get(),
    name: "PAGE_FAULT_RESUME",
    input: PageFaultResume::LEN,
    output: 8,
    run: page_fault_resume,
}];
