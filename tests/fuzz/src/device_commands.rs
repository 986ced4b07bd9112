// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The model's command interface: the command queue and its mailboxes, every command, the contexts
//! in them, the registers. Whatever a kernel writes, the device neither panics nor hangs.

use std::time::Duration;

use connectx::{inspect, GuestMemory};
use firmware_cmds::DmaAddr;
use serde::{Deserialize, Serialize};

use crate::control_path::rig::{Post, Rig, MEMORY};
use crate::steps;

/// The most pieces of work in a row, of those that a step starts.
const WORK: usize = 200;

/// What a kernel does.
#[derive(Serialize, Deserialize)]
pub(crate) enum Step {
    /// Posts a well-formed entry of the command queue with these bytes as input and room for so
    /// many of output.
    Command { input: Vec<u8>, output: u16 },
    /// Writes memory: entries and mailboxes as they should not be, too.
    Store { at: u32, bytes: Vec<u8> },
    /// Writes to BAR 0.
    Write { at: u32, bytes: Vec<u8> },
    /// Reads a word of BAR 0.
    Read { at: u32 },
    /// Lets the device work after so many microseconds.
    Work { micros: u32 },
    /// Function-level reset.
    Reset,
    /// Somebody looks at everything the device has.
    Inspect,
}

fn work(rig: &mut Rig) {
    for _ in 0..WORK {
        match rig.device.step(rig.now) {
            Some(at) if at <= rig.now => {}
            _ => return,
        }
    }
}

/// Takes the steps on a device after power-on.
pub fn run(bytes: &[u8]) {
    let mut rig = Rig::new();
    for step in steps::decode(bytes) {
        match step {
            Step::Command { input, output } => {
                rig.post(Post::new(&input, usize::from(output)));
                work(&mut rig);
            }
            Step::Store { at, bytes } => {
                let at = DmaAddr::new(u64::from(at) % MEMORY);
                // Beyond the end there is nothing to be written to.
                let _ = rig.mem.write(at, &bytes);
            }
            Step::Write { at, bytes } => {
                rig.device.mmio_write(rig.now, u64::from(at), &bytes);
            }
            Step::Read { at } => {
                let mut word = [0; 4];
                rig.device.mmio_read(rig.now, u64::from(at), &mut word);
            }
            Step::Work { micros } => {
                rig.now += Duration::from_micros(u64::from(micros));
                work(&mut rig);
            }
            Step::Reset => rig.device.reset(),
            Step::Inspect => {
                inspect::inspect(&rig.device, "", None).expect("all of it can be shown");
            }
        }
    }
}
