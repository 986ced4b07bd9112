// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A driver that knows nothing of the device but the kernel's headers.

use std::sync::Arc;
use std::time::Duration;

use connectx::{Device, GuestMemory, Interrupts, Journal, Ram};
use firmware_cmds::{DmaAddr, Scheme};
use ifc_oracle::{Field, Layout, Oracle};

const MEMORY: u64 = 4 << 20;
const QUEUE: u64 = 0x1000;
const INPUT: u64 = 0x1_0000;
const OUTPUT: u64 = 0x8_0000;
const FIRST_PAGE: u64 = 0x10_0000;
/// The driver's mailboxes are that far apart (`cmd.c`).
const MAILBOX_ALIGN: u64 = 1024;
const TOKEN: u64 = 0x5a;
/// Bytes of input or output in the entry itself.
const INLINE: usize = 16;

/// A struct of the headers over bytes.
pub(crate) struct Image {
    layout: Layout,
    pub(crate) bytes: Vec<u8>,
}

impl Image {
    pub(crate) fn zeroed(oracle: &Oracle, name: &str) -> Self {
        let layout = oracle.layout(name).unwrap_or_else(|e| panic!("{e}"));
        let bytes = vec![0; usize::try_from(layout.bits / 8).unwrap()];
        Self { layout, bytes }
    }

    pub(crate) fn of(oracle: &Oracle, name: &str, bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self {
            bytes,
            ..Self::zeroed(oracle, name)
        }
    }

    pub(crate) fn field(&self, path: &str) -> &Field {
        let field = self.layout.field(path);
        field.unwrap_or_else(|| panic!("no {path}"))
    }

    /// Byte at which a field starts.
    pub(crate) fn byte(&self, path: &str) -> usize {
        usize::try_from(self.field(path).offset / 8).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> u64 {
        self.field(path).get(&self.bytes)
    }

    pub(crate) fn set(&mut self, path: &str, value: u64) {
        self.field(path).clone().set(&mut self.bytes, value);
    }

    /// Names of the fields in which a bit is set.
    pub(crate) fn set_fields(&self) -> Vec<&str> {
        let is_set = |bit: u64| {
            let byte = self.bytes[usize::try_from(bit / 8).unwrap()];
            byte >> (7 - bit % 8) & 1 == 1
        };
        let leaves = self.layout.leaves();
        leaves
            .filter(|field| (field.offset..field.end()).any(is_set))
            .map(|field| field.path.as_str())
            .collect()
    }
}

/// The struct of a command's input (`in`) or output (`out`).
pub(crate) fn struct_of(command: &str, way: &str) -> String {
    // All that has to do with general objects begins like this; what follows is the object's.
    if command.ends_with("_GENERAL_OBJECT") {
        return format!("mlx5_ifc_general_obj_{way}_cmd_hdr_bits");
    }
    let name = match command {
        "2ERR_QP" => "qp_2err",
        "2RST_QP" => "qp_2rst",
        "SQD_RTS_QP" => "sqd2rts_qp",
        "ACCESS_REG" => "access_register",
        other => &other.to_lowercase(),
    };
    format!("mlx5_ifc_{name}_{way}_bits")
}

struct Deaf;

impl Interrupts for Deaf {
    fn fire(&mut self, _: u16) {}
}

/// What came back from the command queue.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) delivery: u64,
    pub(crate) output: Vec<u8>,
}

pub(crate) struct Driver {
    pub(crate) oracle: Oracle,
    pub(crate) device: Device,
    pub(crate) mem: Arc<Ram>,
    pub(crate) now: Duration,
    next_page: u64,
}

impl Driver {
    /// A device whose command queue has an address; `None` without headers.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let oracle = ifc_oracle::require_or_skip(test)?;
        let mem = Arc::new(Ram::new(MEMORY));
        let device = Device::new(
            Box::new(Arc::clone(&mem)),
            Box::new(Deaf),
            Journal::default(),
            Scheme::Memory,
        );
        let mut driver = Self {
            oracle,
            device,
            mem,
            now: Duration::ZERO,
            next_page: FIRST_PAGE,
        };
        driver.write_register("cmdq_addr_h", 0);
        driver.write_register("cmdq_addr_l_sz", u32::try_from(QUEUE).unwrap());
        Some(driver)
    }

    pub(crate) fn constant(&self, name: &str) -> u64 {
        self.oracle.constant(name).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn image(&self, name: &str) -> Image {
        Image::zeroed(&self.oracle, name)
    }

    fn register(&self, name: &str) -> u64 {
        let segment = self.image("mlx5_init_seg");
        assert_eq!(segment.field(name).bits, 32, "{name}");
        u64::try_from(segment.byte(name)).unwrap()
    }

    pub(crate) fn write_register(&mut self, name: &str, value: u32) {
        let at = self.register(name);
        self.device.mmio_write(self.now, at, &value.to_be_bytes());
    }

    pub(crate) fn read_register(&mut self, name: &str) -> u32 {
        let at = self.register(name);
        let mut word = [0; 4];
        self.device.mmio_read(self.now, at, &mut word);
        u32::from_be_bytes(word)
    }

    /// A page-aligned piece of memory.
    pub(crate) fn page(&mut self) -> u64 {
        self.next_page += 4096;
        self.next_page - 4096
    }

    /// A struct in memory.
    pub(crate) fn read(&self, name: &str, at: u64) -> Image {
        let mut image = self.image(name);
        self.mem.read(DmaAddr::new(at), &mut image.bytes).unwrap();
        image
    }

    /// Input of the command `name`, with nothing but its opcode.
    pub(crate) fn command(&self, name: &str) -> Image {
        let mut input = self.image(&struct_of(name, "in"));
        input.set("opcode", self.constant(&format!("MLX5_CMD_OP_{name}")));
        input
    }

    /// Puts `data` into mailboxes from `at` on.
    fn mailboxes(&self, at: u64, data: &[u8]) {
        let mut block = self.image("mlx5_cmd_prot_block");
        let len = usize::try_from(block.field("data").bits / 8).unwrap();
        let mut here = at;
        for (number, chunk) in (0..).zip(data.chunks(len)) {
            let last = (number + 1) * len >= data.len();
            let next = here + MAILBOX_ALIGN;
            block.bytes[..chunk.len()].copy_from_slice(chunk);
            block.set("next", if last { 0 } else { next });
            block.set("block_num", u64::try_from(number).unwrap());
            block.set("token", TOKEN);
            self.mem.write(DmaAddr::new(here), &block.bytes).unwrap();
            here = next;
        }
    }

    /// Sends a command of which `change` may still change the queue entry.
    pub(crate) fn send_changed(
        &mut self,
        input: &[u8],
        output_len: usize,
        change: impl FnOnce(&mut Image),
    ) -> Answer {
        let mut entry = self.image("mlx5_cmd_layout");
        let (start, rest) = input.split_at(input.len().min(INLINE));
        entry.set("type", self.constant("MLX5_PCI_CMD_XPORT"));
        entry.set("inlen", u64::try_from(input.len()).unwrap());
        entry.set("outlen", u64::try_from(output_len).unwrap());
        entry.set("token", TOKEN);
        entry.set("status_own", self.constant("CMD_OWNER_HW"));
        let at = entry.byte("in");
        entry.bytes[at..at + start.len()].copy_from_slice(start);
        if !rest.is_empty() {
            entry.set("in_ptr", INPUT);
            self.mailboxes(INPUT, rest);
        }
        let beyond = output_len.saturating_sub(INLINE);
        if beyond > 0 {
            entry.set("out_ptr", OUTPUT);
            self.mailboxes(OUTPUT, &vec![0; beyond]);
        }
        change(&mut entry);
        self.mem.write(DmaAddr::new(QUEUE), &entry.bytes).unwrap();
        self.write_register("cmd_dbell", 1);
        self.device.step(self.now);

        let entry = self.read("mlx5_cmd_layout", QUEUE);
        let status = entry.get("status_own");
        assert_eq!(status & self.constant("CMD_OWNER_HW"), 0, "not done");
        let mut output = entry.bytes[entry.byte("out")..][..output_len.min(INLINE)].to_vec();
        let mut here = OUTPUT;
        while output.len() < output_len {
            let block = self.read("mlx5_cmd_prot_block", here);
            let len = usize::try_from(block.field("data").bits / 8).unwrap();
            let missing = output_len - output.len();
            output.extend_from_slice(&block.bytes[..missing.min(len)]);
            here = block.get("next");
        }
        Answer {
            delivery: status >> 1,
            output,
        }
    }

    /// Sends a command and returns its output's first byte, the status.
    pub(crate) fn status(&mut self, input: &[u8], output_len: usize) -> u64 {
        let answer = self.send_changed(input, output_len, |_| {});
        assert_eq!(answer.delivery, 0);
        answer.output[0].into()
    }

    /// Sends a command that must succeed, and returns its output.
    pub(crate) fn send(&mut self, name: &str, input: &Image) -> Image {
        let output = struct_of(name, "out");
        let len = self.image(&output).bytes.len();
        let answer = self.send_changed(&input.bytes, len, |_| {});
        let output = Image::of(&self.oracle, &output, &answer.output);
        assert_eq!((answer.delivery, output.get("status")), (0, 0), "{name}");
        output
    }

    /// Brings the function up: there are no objects before.
    pub(crate) fn bring_up(&mut self) {
        for name in ["ENABLE_HCA", "INIT_HCA"] {
            let input = self.command(name);
            self.send(name, &input);
        }
    }

    pub(crate) fn alloc_uar(&mut self) -> u64 {
        let input = self.command("ALLOC_UAR");
        self.send("ALLOC_UAR", &input).get("uar")
    }

    /// Input of CREATE_EQ for an EQ in one page, which takes these types.
    pub(crate) fn eq(&self, uar: u64, ring: u64, types: &[u64]) -> Image {
        let mut input = self.command("CREATE_EQ");
        input.set("eq_context_entry.log_eq_size", 6);
        input.set("eq_context_entry.uar_page", uar);
        let mask = input.field("event_bitmask").clone();
        for event_type in types {
            // An array of words of 64 bits (`eq.c:create_map_eq`).
            let bit = Field {
                offset: mask.offset + event_type / 64 * 64 + 63 - event_type % 64,
                bits: 1,
                ..mask.clone()
            };
            bit.set(&mut input.bytes, 1);
        }
        input.bytes.extend_from_slice(&ring.to_be_bytes());
        input
    }

    /// Creates an EQ that takes these types; its number and its ring.
    pub(crate) fn create_eq(&mut self, uar: u64, types: &[u64]) -> (u64, u64) {
        let ring = self.page();
        let input = self.eq(uar, ring, types);
        (self.send("CREATE_EQ", &input).get("eq_number"), ring)
    }

    /// Creates a CQ of `1 << log_size` entries; its number and its ring.
    pub(crate) fn create_cq(&mut self, uar: u64, eqn: u64, log_size: u64) -> (u64, u64) {
        let (ring, dbr) = (self.page(), self.page());
        let mut input = self.command("CREATE_CQ");
        input.set("cq_context.log_cq_size", log_size);
        input.set("cq_context.uar_page", uar);
        input.set("cq_context.c_eqn_or_apu_element", eqn);
        input.set("cq_context.dbr_addr", dbr);
        input.bytes.extend_from_slice(&ring.to_be_bytes());
        (self.send("CREATE_CQ", &input).get("cqn"), ring)
    }
}
