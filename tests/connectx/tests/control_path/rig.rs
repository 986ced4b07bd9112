// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A driver that speaks through the command queue, in memory of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectx::ifc::{cqc, eqc, Field};
use connectx::{Device, GuestMemory, Interrupts, Journal, Ram};
use firmware_cmds::{DmaAddr, EventType, Scheme};

/// Memory of the guest.
pub(crate) const MEMORY: u64 = 4 << 20;
/// The command queue.
pub(crate) const QUEUE: u64 = 0x1000;
/// Mailboxes of inputs, 1 KiB apart.
pub(crate) const INPUT: u64 = 0x1_0000;
/// Mailboxes of outputs, 1 KiB apart.
pub(crate) const OUTPUT: u64 = 0x8_0000;
const MAILBOX_DATA: usize = 512;
const MAILBOX_STRIDE: u64 = 1024;
const TOKEN: u8 = 0x5a;

/// Remembers which vectors fired.
#[derive(Clone, Default)]
pub(crate) struct Vectors(Arc<Mutex<Vec<u16>>>);

impl Vectors {
    /// The vectors that fired since the last call.
    pub(crate) fn take(&self) -> Vec<u16> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Interrupts for Vectors {
    fn fire(&mut self, vector: u16) {
        self.0.lock().unwrap().push(vector);
    }
}

/// A device and its driver.
pub(crate) struct Rig {
    pub(crate) device: Device,
    pub(crate) mem: Arc<Ram>,
    pub(crate) vectors: Vectors,
    pub(crate) now: Duration,
    next_page: u64,
}

/// What a command was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Bits 7:1 of `status_own`.
    pub(crate) delivery: u8,
    /// The output.
    pub(crate) output: Vec<u8>,
}

impl Answer {
    /// Status of the command.
    pub(crate) fn status(&self) -> u8 {
        self.output[0]
    }

    /// A word of the output.
    pub(crate) fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.output[at..at + 4].try_into().unwrap())
    }
}

/// Where input or output lie, and how long they are said to be.
#[derive(Clone, Copy)]
pub(crate) struct Post<'a> {
    pub(crate) slot: u8,
    pub(crate) input: &'a [u8],
    pub(crate) input_len: u32,
    pub(crate) output_len: u32,
    pub(crate) input_chain: u64,
    pub(crate) output_chain: u64,
    pub(crate) mailbox_token: u8,
}

impl<'a> Post<'a> {
    /// A well-formed command.
    pub(crate) fn new(input: &'a [u8], output: usize) -> Self {
        Self {
            slot: 0,
            input,
            input_len: u32::try_from(input.len()).unwrap(),
            output_len: u32::try_from(output).unwrap(),
            input_chain: INPUT,
            output_chain: OUTPUT,
            mailbox_token: TOKEN,
        }
    }
}

impl Rig {
    /// A device between INIT_HCA and TEARDOWN_HCA.
    pub(crate) fn ready() -> Self {
        let mut rig = Self::new();
        rig.device.hca.enabled = true;
        rig.device.hca.initialized = true;
        rig
    }

    /// A device whose command queue has an address.
    pub(crate) fn new() -> Self {
        let mut rig = Self::without_queue();
        rig.set_queue();
        rig
    }

    /// A device after power-on.
    pub(crate) fn without_queue() -> Self {
        let mem = Arc::new(Ram::new(MEMORY));
        let vectors = Vectors::default();
        let device = Device::new(
            Box::new(Arc::clone(&mem)),
            Box::new(vectors.clone()),
            Journal::default(),
            Scheme::Memory,
        );
        Self {
            device,
            mem,
            vectors,
            now: Duration::ZERO,
            next_page: 0x10_0000,
        }
    }

    /// Tells the device where the command queue is.
    pub(crate) fn set_queue(&mut self) {
        self.write32(0x10, 0);
        self.write32(0x14, u32::try_from(QUEUE).unwrap());
    }

    /// A page-aligned piece of guest memory.
    pub(crate) fn pages(&mut self, len: u64) -> u64 {
        let at = self.next_page;
        self.next_page += len.next_multiple_of(4096);
        at
    }

    pub(crate) fn write32(&mut self, offset: u64, value: u32) {
        self.device
            .mmio_write(self.now, offset, &value.to_be_bytes());
    }

    pub(crate) fn write64(&mut self, offset: u64, high: u32, low: u32) {
        let value = u64::from(high) << 32 | u64::from(low);
        self.device
            .mmio_write(self.now, offset, &value.to_be_bytes());
    }

    pub(crate) fn read32(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.device.mmio_read(self.now, offset, &mut word);
        u32::from_be_bytes(word)
    }

    /// Lets the device work until it has nothing more to do at this time.
    pub(crate) fn settle(&mut self) -> Option<Duration> {
        loop {
            match self.device.step(self.now) {
                Some(at) if at <= self.now => {}
                next => return next,
            }
        }
    }

    fn chain(&self, at: u64, blocks: usize, token: u8) {
        for i in 0..u64::try_from(blocks).unwrap() {
            let block = at + i * MAILBOX_STRIDE;
            let last = i + 1 == u64::try_from(blocks).unwrap();
            let next = if last { 0 } else { block + MAILBOX_STRIDE };
            self.mem
                .write(DmaAddr::new(block + 560), &next.to_be_bytes())
                .unwrap();
            self.mem.write(DmaAddr::new(block + 573), &[token]).unwrap();
        }
    }

    /// Writes a command into its slot and rings the doorbell.
    pub(crate) fn post(&mut self, post: Post<'_>) {
        let mut entry = [0; 64];
        entry[0] = 7;
        entry[4..8].copy_from_slice(&post.input_len.to_be_bytes());
        let inline = post.input.len().min(16);
        entry[16..16 + inline].copy_from_slice(&post.input[..inline]);
        let rest = &post.input[inline..];
        if !rest.is_empty() || post.input_len > 16 {
            entry[8..16].copy_from_slice(&post.input_chain.to_be_bytes());
            if post.input_chain == INPUT {
                let blocks = rest.len().div_ceil(MAILBOX_DATA).max(1);
                self.chain(INPUT, blocks, post.mailbox_token);
                for (i, data) in rest.chunks(MAILBOX_DATA).enumerate() {
                    let block = INPUT + u64::try_from(i).unwrap() * MAILBOX_STRIDE;
                    self.mem.write(DmaAddr::new(block), data).unwrap();
                }
            }
        }
        if post.output_len > 16 {
            entry[48..56].copy_from_slice(&post.output_chain.to_be_bytes());
            if post.output_chain == OUTPUT {
                let len = usize::try_from(post.output_len).unwrap() - 16;
                let blocks = len.div_ceil(MAILBOX_DATA).min(256);
                self.chain(OUTPUT, blocks, post.mailbox_token);
            }
        }
        entry[56..60].copy_from_slice(&post.output_len.to_be_bytes());
        entry[60] = TOKEN;
        entry[63] = 1;
        let at = QUEUE + 64 * u64::from(post.slot);
        self.mem.write(DmaAddr::new(at), &entry).unwrap();
        self.write32(0x18, 1 << post.slot);
    }

    /// The answer in a slot, or `None` while the device owns it.
    pub(crate) fn answer(&self, slot: u8, output_len: usize) -> Option<Answer> {
        let mut entry = [0; 64];
        self.mem
            .read(DmaAddr::new(QUEUE + 64 * u64::from(slot)), &mut entry)
            .unwrap();
        if entry[63] & 1 == 1 {
            return None;
        }
        let mut output = vec![0; output_len];
        let inline = output_len.min(16);
        output[..inline].copy_from_slice(&entry[32..32 + inline]);
        for (i, data) in output[inline..].chunks_mut(MAILBOX_DATA).enumerate() {
            let block = OUTPUT + u64::try_from(i).unwrap() * MAILBOX_STRIDE;
            self.mem.read(DmaAddr::new(block), data).unwrap();
        }
        Some(Answer {
            delivery: entry[63] >> 1,
            output,
        })
    }

    /// Executes a well-formed command.
    pub(crate) fn command(&mut self, input: &[u8], output: usize) -> Answer {
        self.post(Post::new(input, output));
        self.settle();
        self.answer(0, output).expect("the command completes")
    }

    /// Executes a command that must succeed and returns word 8 of its output.
    pub(crate) fn number(&mut self, input: &[u8]) -> u32 {
        let answer = self.command(input, 16);
        assert_eq!(answer.status(), 0, "{answer:?}");
        answer.word(8)
    }

    pub(crate) fn alloc_uar(&mut self) -> u32 {
        self.number(&command(0x802, 0, 16))
    }

    /// Creates an EQ and returns its number and its entries.
    pub(crate) fn create_eq(
        &mut self,
        uar: u32,
        types: &[EventType],
        log_size: u32,
        vector: u64,
    ) -> (u32, u64) {
        let ring = self.pages(64 << log_size);
        let mut input = with_pas(0x301, ring, 64 << log_size);
        let context = &mut input[0x10..0x50];
        eqc::LOG_EQ_SIZE.set(context, log_size.into());
        eqc::UAR_PAGE.set(context, uar.into());
        eqc::INTR.set(context, vector);
        for &EventType(event_type) in types {
            let word = 0x58 + 8 * usize::from(event_type / 64);
            Field::new(63 - usize::from(event_type % 64), 1).set(&mut input[word..word + 8], 1);
        }
        for entry in 0..1 << log_size {
            self.mem
                .write(DmaAddr::new(ring + entry * 64 + 63), &[1])
                .unwrap();
        }
        (self.number(&input), ring)
    }

    /// Creates a CQ and returns its number, its entries and its doorbell record.
    pub(crate) fn create_cq(&mut self, uar: u32, eqn: u32, log_size: u32) -> (u32, u64, u64) {
        let ring = self.pages(64 << log_size);
        let dbr = self.pages(8);
        let mut input = with_pas(0x400, ring, 64 << log_size);
        let context = &mut input[0x10..0x50];
        cqc::LOG_CQ_SIZE.set(context, log_size.into());
        cqc::UAR_PAGE.set(context, uar.into());
        cqc::C_EQN.set(context, eqn.into());
        cqc::DBR_ADDR.set(context, dbr);
        for entry in 0..1 << log_size {
            self.mem
                .write(DmaAddr::new(ring + entry * 64 + 63), &[0xf1])
                .unwrap();
        }
        (self.number(&input), ring, dbr)
    }

    pub(crate) fn entry(&self, ring: u64, index: u64) -> [u8; 64] {
        let mut entry = [0; 64];
        self.mem
            .read(DmaAddr::new(ring + index * 64), &mut entry)
            .unwrap();
        entry
    }
}

/// A command of `len` bytes with nothing but its header.
pub(crate) fn command(opcode: u16, op_mod: u16, len: usize) -> Vec<u8> {
    let mut input = vec![0; len];
    input[..2].copy_from_slice(&opcode.to_be_bytes());
    input[6..8].copy_from_slice(&op_mod.to_be_bytes());
    input
}

/// A command with the page list of contiguous memory at 0x110.
pub(crate) fn with_pas(opcode: u16, start: u64, len: u64) -> Vec<u8> {
    let mut input = command(opcode, 0, 0x110);
    for page in (start..start + len).step_by(4096) {
        input.extend_from_slice(&page.to_be_bytes());
    }
    input
}
