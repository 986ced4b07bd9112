// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The command queue: slots, mailboxes, delivery and completion (`mlx5_core/cmd.c`).

use firmware_cmds::{DmaAddr, Eqe, EventType};
use serde::Serialize;

use super::{opcode, put_word, word, CmdStatus};
use crate::agenda::Work;
use crate::device::Device;
use crate::guest::offset;
use crate::guest::DmaError;
use crate::inspect::show;
use crate::rules::points::{self as rules, CommandAct, SeenCommand};
use crate::rules::words::Delay;

/// The queue has `2^LOG_SLOTS` slots.
pub const LOG_SLOTS: u8 = 5;
/// A slot has `2^LOG_STRIDE` bytes.
pub const LOG_STRIDE: u8 = 6;

/// Longest input or output in bytes: page lists of the largest queues fit.
const MAX_LEN: usize = 4 << 20;

/// State of the command queue.
#[derive(Debug, Default, Serialize)]
pub struct Queue {
    /// Doorbells rung, a bit per slot.
    #[serde(serialize_with = "show::hex")]
    rung: u32,
    /// Slots whose command is still to be executed.
    #[serde(serialize_with = "show::hex")]
    under_way: u32,
}

const ENTRY: usize = 1 << LOG_STRIDE;
/// Shortest input or output in bytes: opcode and modifier, status and syndrome.
const HEADER: usize = 8;
/// Bytes of input or output in the entry itself.
const INLINE: usize = 16;
const TYPE_PCI: u8 = 7;
const MAILBOX_DATA: usize = 512;
const MAILBOX_NEXT: u64 = 560;
const MAILBOX_TOKEN: u64 = 573;
const MAILBOX_ALIGN: u64 = 1024;
const STATUS_OWN: u64 = 63;
/// The bit of `status_own` that is set while the slot is the device's.
const OWN: u8 = 1;

/// Delivery status, bits 7:1 of `status_own` (`MLX5_CMD_DELIVERY_STAT_*`).
mod delivery {
    pub(super) const OK: u8 = 0x0;
    pub(super) const TOKEN_ERR: u8 = 0x2;
    pub(super) const OUT_PTR_ALIGN: u8 = 0x4;
    pub(super) const IN_PTR_ALIGN: u8 = 0x5;
    pub(super) const IN_LENGTH: u8 = 0x7;
    pub(super) const OUT_LENGTH: u8 = 0x8;
    pub(super) const BAD_TYPE: u8 = 0x10;
}

/// Why a command could not even be delivered.
enum Undelivered {
    /// The slot is not the device's.
    NotOwned,
    /// The driver made a mistake that it is told about.
    Status(u8),
    /// Guest memory that should hold the command is not there.
    Dma(DmaError),
}

impl From<DmaError> for Undelivered {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

/// The fields of a queue entry (`struct mlx5_cmd_layout`).
struct Entry {
    input_len: usize,
    input_chain: DmaAddr,
    input: [u8; INLINE],
    output_chain: DmaAddr,
    output_len: usize,
    token: u8,
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from(word(bytes, 0)) << 32 | u64::from(word(bytes, 4))
}

fn length(bytes: &[u8], at: usize) -> usize {
    usize::try_from(word(bytes, at)).unwrap_or(usize::MAX)
}

impl Device {
    pub(crate) fn command_doorbell(&mut self, slots: u32) {
        if !self.doorbell_is_lost() {
            self.commands.rung |= slots;
        }
    }

    /// Puts what the driver rang for on the agenda.
    pub(crate) fn take_commands(&mut self) {
        while self.commands.rung != 0 {
            let bit = self.commands.rung.trailing_zeros();
            self.commands.rung &= !(1 << bit);
            let slot = u8::try_from(bit).unwrap_or(0);
            if self.commands.under_way >> bit & 1 == 1 {
                self.journal.note(format_args!(
                    "doorbell of command slot {slot}, whose command is already under way"
                ));
                continue;
            }
            match self.rule_for_slot(slot) {
                // The slot stays the device's.
                Some((_, CommandAct::Drop {})) => continue,
                Some((_, CommandAct::Delay(Delay(delay)))) => {
                    self.after(delay, Work::Command(slot, None));
                }
                Some((rule, CommandAct::Hold(hold))) => {
                    self.hold(rule, hold, Work::Command(slot, None));
                }
                act => self
                    .agenda
                    .add(Work::Command(slot, act.map(|(_, act)| act))),
            }
            self.commands.under_way |= 1 << bit;
        }
    }

    /// What a rule does to the command in a slot, if there is one that can be read.
    fn rule_for_slot(&mut self, slot: u8) -> Option<(u64, CommandAct)> {
        if !self.rules.any::<rules::Command>() {
            return None;
        }
        let entry = self.read_entry(self.slot_address(slot)?).ok()?;
        self.rule::<rules::Command>(&SeenCommand {
            op: opcode(&entry.input),
            object: word(&entry.input, 8) & 0xff_ffff,
        })
    }

    fn slot_address(&self, slot: u8) -> Option<DmaAddr> {
        let queue = self.init.queue?;
        Some(offset(queue, u64::from(slot) << LOG_STRIDE))
    }

    fn read_entry(&self, at: DmaAddr) -> Result<Entry, Undelivered> {
        let mut bytes = [0; ENTRY];
        self.mem.read(at, &mut bytes)?;
        if bytes[63] & OWN == 0 {
            return Err(Undelivered::NotOwned);
        }
        if bytes[0] != TYPE_PCI {
            return Err(Undelivered::Status(delivery::BAD_TYPE));
        }
        let mut input = [0; INLINE];
        input.copy_from_slice(&bytes[16..32]);
        Ok(Entry {
            input_len: length(&bytes, 4),
            input_chain: DmaAddr::new(be64(&bytes[8..])),
            input,
            output_chain: DmaAddr::new(be64(&bytes[48..])),
            output_len: length(&bytes, 56),
            token: bytes[60],
        })
    }

    /// Executes the command in a slot and completes it, as a rule says if one acts on it.
    pub(crate) fn run_command(&mut self, slot: u8, act: Option<CommandAct>) {
        self.commands.under_way &= !(1 << slot);
        let Some(at) = self.slot_address(slot) else {
            self.violation(format_args!(
                "doorbell of command slot {slot} before the queue has an address"
            ));
            return;
        };
        // The command that makes the EQ is still polled for, and an event for a command
        // that was polled for crashes the driver.
        let by_event = self.events.queue_for(EventType::CMD).is_some();
        let status = match self.deliver(at, act) {
            Ok(()) => delivery::OK,
            Err(Undelivered::NotOwned) => {
                self.journal.note(format_args!(
                    "doorbell of command slot {slot}, which software owns"
                ));
                return;
            }
            Err(Undelivered::Status(status)) => {
                self.violation(format_args!(
                    "command slot {slot}: malformed, delivery status {status:#x}"
                ));
                status
            }
            Err(Undelivered::Dma(error)) => {
                self.violation(format_args!("command slot {slot}: {error}"));
                return;
            }
        };
        // Clearing bit 0 gives the slot back.
        if let Err(error) = self.mem.write_release(offset(at, STATUS_OWN), status << 1) {
            self.violation(format_args!("command slot {slot}: {error}"));
            return;
        }
        if by_event && self.events.queue_for(EventType::CMD).is_some() {
            self.raise(Eqe::commands(1 << slot));
        }
    }

    /// Reads, executes and answers one command.
    fn deliver(&mut self, at: DmaAddr, act: Option<CommandAct>) -> Result<(), Undelivered> {
        let entry = self.read_entry(at)?;
        let input = self.read_input(&entry)?;
        if entry.output_len < HEADER || entry.output_len > MAX_LEN {
            return Err(Undelivered::Status(delivery::OUT_LENGTH));
        }
        let mut output = vec![0; entry.output_len];
        match act {
            Some(CommandAct::Complete {}) => {}
            Some(CommandAct::Fail { status, syndrome }) => {
                let status = status.and_then(|status| u8::try_from(status.get()).ok());
                output[0] = status.unwrap_or(CmdStatus::InternalError.get());
                put_word(&mut output, 4, syndrome.unwrap_or(0));
            }
            Some(CommandAct::Corrupt(corrupt)) => {
                self.execute(&input, &mut output);
                if !corrupt.fits(output.len()) {
                    self.journal.note(format_args!(
                        "the output has {} bytes, nothing of it is corrupted",
                        output.len()
                    ));
                }
                corrupt.apply(&mut output);
            }
            None | Some(CommandAct::Delay(_) | CommandAct::Hold(_) | CommandAct::Drop {}) => {
                self.execute(&input, &mut output);
            }
        }
        self.write_output(at, &entry, &output)
    }

    /// Collects the input of a command from its entry and mailboxes.
    fn read_input(&self, entry: &Entry) -> Result<Vec<u8>, Undelivered> {
        if entry.input_len < HEADER || entry.input_len > MAX_LEN {
            return Err(Undelivered::Status(delivery::IN_LENGTH));
        }
        let mut input = vec![0; entry.input_len];
        let inline = entry.input_len.min(INLINE);
        input[..inline].copy_from_slice(&entry.input[..inline]);
        let mut next = entry.input_chain;
        for chunk in input[inline..].chunks_mut(MAILBOX_DATA) {
            if next.get() == 0 {
                return Err(Undelivered::Status(delivery::IN_LENGTH));
            }
            if next.get() % MAILBOX_ALIGN != 0 {
                return Err(Undelivered::Status(delivery::IN_PTR_ALIGN));
            }
            next = self.check_mailbox(next, entry.token, |at| self.mem.read(at, chunk))?;
        }
        Ok(input)
    }

    /// Spreads the output of a command over its entry and mailboxes.
    fn write_output(&self, at: DmaAddr, entry: &Entry, output: &[u8]) -> Result<(), Undelivered> {
        let mut next = entry.output_chain;
        let (inline, rest) = output.split_at(output.len().min(INLINE));
        for chunk in rest.chunks(MAILBOX_DATA) {
            if next.get() == 0 {
                return Err(Undelivered::Status(delivery::OUT_LENGTH));
            }
            if next.get() % MAILBOX_ALIGN != 0 {
                return Err(Undelivered::Status(delivery::OUT_PTR_ALIGN));
            }
            next = self.check_mailbox(next, entry.token, |at| self.mem.write(at, chunk))?;
        }
        self.mem.write(offset(at, 32), inline)?;
        Ok(())
    }

    /// Uses the data of one mailbox block and returns the address of the next.
    fn check_mailbox(
        &self,
        block: DmaAddr,
        token: u8,
        transfer: impl FnOnce(DmaAddr) -> Result<(), DmaError>,
    ) -> Result<DmaAddr, Undelivered> {
        let mut next = [0; 8];
        self.mem.read(offset(block, MAILBOX_NEXT), &mut next)?;
        let mut found = [0; 1];
        self.mem.read(offset(block, MAILBOX_TOKEN), &mut found)?;
        if found != [token] {
            return Err(Undelivered::Status(delivery::TOKEN_ERR));
        }
        transfer(block)?;
        Ok(DmaAddr::new(u64::from_be_bytes(next)))
    }
}
