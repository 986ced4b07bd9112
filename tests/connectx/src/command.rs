// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands: what every one of them has in common, and which there are.
//!
//! - `queue`: how they come and how they are answered.
//! - `scope`: who may send which, and on what.

mod access_reg;
mod cq;
mod dct;
mod devx;
pub mod domain;
mod eq;
mod general;
mod hca;
mod mcg;
mod mkey;
mod pagefault;
mod qp;
mod queue;
mod scope;
mod srq;
mod vport;

use std::fmt;

use crate::device::Device;
use crate::uctx::Uid;
pub use firmware_cmds::CmdStatus;
pub use queue::{Queue, LOG_SLOTS, LOG_STRIDE};

/// How a command failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CmdError {
    /// Its status.
    pub status: CmdStatus,
    /// Vendor's detail, which drivers print.
    pub syndrome: u32,
}

impl CmdError {
    /// A failure without detail.
    #[must_use]
    pub const fn new(status: CmdStatus) -> Self {
        Self {
            status,
            syndrome: 0,
        }
    }
}

impl fmt::Display for CmdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, syndrome {:#x}", self.status, self.syndrome)
    }
}

impl std::error::Error for CmdError {}

impl From<CmdStatus> for CmdError {
    fn from(status: CmdStatus) -> Self {
        Self::new(status)
    }
}

/// What a command returns.
pub type CmdResult = Result<(), CmdError>;

/// Executes a command. Input and output have at least the lengths of its [`Command`];
/// the output is zero before.
pub type Handler = fn(&mut Device, &[u8], &mut [u8]) -> CmdResult;

/// One entry of the table of commands.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its opcode.
    pub opcode: u16,
    /// Its name in `mlx5_ifc.h`, without `MLX5_CMD_OP_`.
    pub name: &'static str,
    /// Bytes of input it needs at least.
    pub input: usize,
    /// Bytes of output it needs at least.
    pub output: usize,
    /// What it does.
    pub run: Handler,
}

impl Command {
    /// An entry of the table.
    #[must_use]
    pub const fn new(
        opcode: u16,
        name: &'static str,
        input: usize,
        output: usize,
        run: Handler,
    ) -> Self {
        Self {
            opcode,
            name,
            input,
            output,
            run,
        }
    }
}

/// Commands about the function itself.
const FUNCTION: &[&[Command]] = &[access_reg::COMMANDS, hca::COMMANDS, vport::COMMANDS];

/// Commands about objects, which exist between INIT_HCA and TEARDOWN_HCA.
const OBJECTS: &[&[Command]] = &[
    cq::COMMANDS,
    dct::COMMANDS,
    devx::COMMANDS,
    domain::COMMANDS,
    eq::COMMANDS,
    general::COMMANDS,
    mcg::COMMANDS,
    mkey::COMMANDS,
    pagefault::COMMANDS,
    qp::COMMANDS,
    srq::COMMANDS,
];

fn find_in(tables: &[&'static [Command]], opcode: u16) -> Option<&'static Command> {
    let mut commands = tables.iter().flat_map(|table| table.iter());
    commands.find(|command| command.opcode == opcode)
}

/// Every command.
pub fn all() -> impl Iterator<Item = &'static Command> {
    FUNCTION
        .iter()
        .chain(OBJECTS)
        .flat_map(|table| table.iter())
}

/// The command with this opcode.
#[must_use]
pub fn find(opcode: u16) -> Option<&'static Command> {
    all().find(|command| command.opcode == opcode)
}

/// A big-endian word of a command. What lies beyond the end reads as 0.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    if let Some(found) = bytes.get(at..at + 4) {
        word.copy_from_slice(found);
    }
    u32::from_be_bytes(word)
}

/// The opcode of a command, in its header.
#[must_use]
pub fn opcode(input: &[u8]) -> u16 {
    let [high, low, ..] = word(input, 0).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The operation modifier of a command, in its header.
#[must_use]
pub fn op_mod(input: &[u8]) -> u16 {
    let [_, _, high, low] = word(input, 4).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// Stores a big-endian word of a command's output.
///
/// # Panics
///
/// If it lies beyond the end: the table of commands states what a command needs.
pub fn put_word(output: &mut [u8], at: usize, value: u32) {
    output[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

impl Device {
    /// What is wrong with a command breaks the protocol if the driver wrote it. One of a user may
    /// say anything: the driver hands it on as it is.
    pub(crate) fn misuse(&mut self, line: fmt::Arguments<'_>) {
        if self.uctxs.acting().is_user() {
            self.journal.note(line);
        } else {
            self.violation(line);
        }
    }

    /// Executes a command given as bytes and fills in its whole output.
    ///
    /// # Panics
    ///
    /// If `output` is shorter than a header, 8 bytes.
    pub fn execute(&mut self, input: &[u8], output: &mut [u8]) {
        output.fill(0);
        let opcode = opcode(input);
        self.counters.commands += 1;
        let uid = Uid::of(input);
        let (name, result) = match find(opcode) {
            None => {
                self.counters.unknown_commands += 1;
                self.uctxs.act_for(uid);
                self.misuse(format_args!(
                    "command {opcode:#05x} (modifier {}) is not known",
                    op_mod(input)
                ));
                ("unknown", Err(CmdStatus::BadOp.into()))
            }
            Some(command) if input.len() < command.input => {
                (command.name, Err(CmdStatus::BadInpLen.into()))
            }
            Some(command) if output.len() < command.output => {
                (command.name, Err(CmdStatus::BadOutpLen.into()))
            }
            Some(command) if !self.hca.initialized && find_in(OBJECTS, opcode).is_some() => {
                (command.name, Err(CmdStatus::BadSysState.into()))
            }
            Some(command) => match self.admit(command.name, uid, input) {
                Err(status) => (command.name, Err(status.into())),
                Ok(()) => {
                    self.uctxs.act_for(uid);
                    let result = (command.run)(self, input, output);
                    if result.is_ok() {
                        self.account(command.name, uid, input, output);
                    }
                    (command.name, result)
                }
            },
        };
        self.uctxs.act_for(Uid::DRIVER);
        if let Err(error) = result {
            self.counters.failed_commands += 1;
            output.fill(0);
            output[0] = error.status.get();
            put_word(output, 4, error.syndrome);
            self.journal.note(format_args!(
                "command {name} ({opcode:#05x}) failed: {error}"
            ));
        }
        self.journal.trace(format_args!(
            "command {name} ({opcode:#05x}) in={} {:02x?} out={} {:02x?}",
            input.len(),
            &input[..input.len().min(32)],
            output.len(),
            &output[..output.len().min(16)]
        ));
    }
}
