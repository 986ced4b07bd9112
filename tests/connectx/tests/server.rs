// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The program, end to end: vfio-user with a client in QEMU's place, the control socket,
//! the command line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use connectx::ifc::{cqc, eqc};
use connectx::qp::context as qpc;
use connectx::qp::context::QpContext;
use firmware_cmds::mkey::CreateMkeyIn;
use firmware_cmds::{Access, AccessMode, LogPageSize, Mkc, Pdn, Wire};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;

const MEMORY: u64 = 1 << 20;
/// Where the guest's memory lies in the device's address space: anywhere.
const IOVA: u64 = 0x7000_0000;
const QUEUE: u64 = 0x1000;
const RING: u64 = 0x4000;
const MAILBOX: u64 = 0x8000;
const ENABLE_HCA: u16 = 0x104;
const INIT_HCA: u16 = 0x102;
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("connectx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How the program ended: its exit status and what it said.
type Ended = (Option<i32>, String);

const CLOSED: Option<i32> = Some(0);
const VIOLATION: Option<i32> = Some(3);

/// The program under way; it ends with the test.
struct Program(Child);

impl Program {
    /// Starts it with its messages in `scratch`.
    fn start(scratch: &Scratch, socket: &str, args: &[&str]) -> Self {
        let said = File::create(scratch.path("stderr")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_connectx"))
            .args(["--socket".as_ref(), scratch.path(socket).as_os_str()])
            .args(["--control".as_ref(), scratch.path("control").as_os_str()])
            .args(["--log".as_ref(), scratch.path("log").as_os_str()])
            .args(args)
            .stdin(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn wait(&mut self, scratch: &Scratch) -> Ended {
        let status = patiently("the run ends", || self.0.try_wait().unwrap());
        (status.code(), scratch.read("stderr"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail if it ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries until `f` has an answer.
fn patiently<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A client with memory, and the program it talks to.
struct Guest {
    client: Client,
    memory: File,
    program: Program,
    scratch: Scratch,
}

impl Guest {
    fn start(name: &str, args: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let mut program = Program::start(&scratch, "vfio", args);
        let socket = scratch.path("vfio");
        let mut client = patiently("the program listens", || {
            let ended = program.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", scratch.read("stderr"));
            Client::new(&socket).ok()
        });
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(MEMORY).unwrap();
        client.dma_map(0, IOVA, MEMORY, memory.as_raw_fd()).unwrap();
        let mut guest = Self {
            client,
            memory,
            program,
            scratch,
        };
        guest.write32(0x10, 0);
        guest.write32(0x14, u32::try_from(IOVA + QUEUE).unwrap());
        for (opcode, len) in [(ENABLE_HCA, 16), (INIT_HCA, 32)] {
            guest.command(&command(opcode, len));
        }
        guest
    }

    fn write32(&mut self, offset: u64, value: u32) {
        self.client
            .region_write(VFIO_PCI_BAR0_REGION_INDEX, offset, &value.to_be_bytes())
            .unwrap();
    }

    /// A doorbell that ends a strict run: the program may be gone before it replies.
    fn last_doorbell(&mut self, offset: u64, doorbell: &[u8]) {
        let _ = self
            .client
            .region_write(VFIO_PCI_BAR0_REGION_INDEX, offset, doorbell);
    }

    fn read32(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.client
            .region_read(VFIO_PCI_BAR0_REGION_INDEX, offset, &mut word)
            .unwrap();
        u32::from_be_bytes(word)
    }

    /// Rings for a command of up to 16 bytes, plus one mailbox.
    fn post(&mut self, input: &[u8]) {
        let inline = input.len().min(16);
        let mut entry = [0; 64];
        entry[0] = 7;
        entry[4..8].copy_from_slice(&u32::try_from(input.len()).unwrap().to_be_bytes());
        entry[8..16].copy_from_slice(&(IOVA + MAILBOX).to_be_bytes());
        entry[16..16 + inline].copy_from_slice(&input[..inline]);
        entry[56..60].copy_from_slice(&16_u32.to_be_bytes());
        entry[63] = 1;
        self.memory.write_all_at(&input[inline..], MAILBOX).unwrap();
        self.memory.write_all_at(&entry, QUEUE).unwrap();
        self.write32(0x18, 1);
    }

    /// Executes a command and returns word 8 of its output.
    fn command(&mut self, input: &[u8]) -> u32 {
        self.post(input);
        let mut entry = [0; 64];
        patiently("the command completes", || {
            self.memory.read_exact_at(&mut entry, QUEUE).unwrap();
            (entry[63] & 1 == 0).then_some(())
        });
        assert_eq!((entry[63], entry[32]), (0, 0));
        u32::from_be_bytes(entry[40..44].try_into().unwrap())
    }

    /// Creates an EQ that takes completions of commands.
    fn create_eq(&mut self, uar: u32, vector: u64) -> u32 {
        let mut input = command(0x301, 0x118);
        let context = &mut input[0x10..0x50];
        eqc::LOG_EQ_SIZE.set(context, 6);
        eqc::UAR_PAGE.set(context, uar.into());
        eqc::INTR.set(context, vector);
        input[0x58..0x60].copy_from_slice(&(1_u64 << 0xa).to_be_bytes());
        input[0x110..0x118].copy_from_slice(&(IOVA + RING).to_be_bytes());
        self.command(&input)
    }

    /// Listens to one MSI-X vector.
    fn listen(&mut self, vector: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        self.client
            .set_irqs(
                VFIO_PCI_MSIX_IRQ_INDEX,
                VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                vector,
                1,
                &[theirs.as_raw_fd()],
            )
            .unwrap();
        ours
    }

    /// How the program ends by itself.
    fn ended(&mut self) -> Ended {
        self.program.wait(&self.scratch)
    }

    fn end(mut self) {
        self.client.shutdown().unwrap();
        assert_eq!(self.ended(), (CLOSED, String::new()));
    }
}

fn violation(line: &str) -> Ended {
    let said = format!("connectx: protocol violation: {line}\n");
    (VIOLATION, said)
}

fn command(opcode: u16, len: usize) -> Vec<u8> {
    let mut input = vec![0; len];
    input[..2].copy_from_slice(&opcode.to_be_bytes());
    input
}

fn fired(listener: &mut UnixStream) -> bool {
    let mut count = [0; 8];
    listener.read_exact(&mut count).is_ok()
}

#[test]
fn commands_events_and_vectors_that_come_one_by_one() {
    let mut guest = Guest::start("events", &["--strict"]);
    let msix = guest.client.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).unwrap();
    assert_eq!(msix.flags & VFIO_IRQ_INFO_NORESIZE, 0);
    assert_eq!(guest.read32(4) >> 16, 5);

    let mut first = guest.listen(0);
    let uar = guest.command(&command(0x802, 16));
    let eqn = guest.create_eq(uar, 7);
    // A vector far beyond those set so far.
    let mut seventh = guest.listen(7);
    guest.write32(u64::from(uar) * 4096 + 0x40, eqn << 24);
    guest.command(&command(0x800, 16));
    assert!(fired(&mut seventh));
    let mut entry = [0; 64];
    guest.memory.read_exact_at(&mut entry, RING).unwrap();
    assert_eq!((entry[1], entry[0x3f]), (0xa, 0));
    first
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    assert!(!fired(&mut first));
    guest.end();
}

#[test]
fn access_after_unmap_ends_a_strict_run() {
    let mut guest = Guest::start("unmap", &["--strict"]);
    guest.command(&command(0x800, 16));
    guest.client.dma_unmap(IOVA, MEMORY).unwrap();
    guest.last_doorbell(0x18, &1_u32.to_be_bytes());
    assert_eq!(
        guest.ended(),
        violation("command slot 0: IOVA 0x70001000 is not mapped")
    );
}

/// A driver that unmaps a page and leaves the MKey that translates to it: the outcome that
/// strict mode is there for.
#[test]
fn access_through_a_stale_translation_ends_a_strict_run() {
    const CQ: u64 = 0x1_0000;
    const RECORDS: u64 = 0x1_1000;
    const SQ: u64 = 0x1_2000;
    const TARGET: u64 = 0x1_3000;
    let mut guest = Guest::start("stale", &["--strict"]);
    let pd = guest.command(&command(0x800, 16));
    let uar = guest.command(&command(0x802, 16));
    let eqn = guest.create_eq(uar, 0);
    let mut input = command(0x400, 0x110);
    let context = &mut input[0x10..0x50];
    cqc::LOG_CQ_SIZE.set(context, 4);
    cqc::UAR_PAGE.set(context, uar.into());
    cqc::C_EQN.set(context, eqn.into());
    cqc::DBR_ADDR.set(context, IOVA + RECORDS + 64);
    input.extend((IOVA + CQ).to_be_bytes());
    let cqn = guest.command(&input);

    let create = CreateMkeyIn {
        mkc: Mkc {
            access_mode: AccessMode::Mtt,
            access: Access {
                remote_write: true,
                ..Access::default()
            },
            qpn: firmware_cmds::Qpn::ANY,
            pd: Pdn::new(pd).unwrap(),
            len: 4096,
            log_page_size: LogPageSize::ADAPTER_PAGE,
            translations_octword_size: 1,
            ..Mkc::default()
        },
        translations_octword_actual_size: 1,
        ..CreateMkeyIn::default()
    };
    let mut input = vec![0; CreateMkeyIn::LEN];
    create.emit(&mut input).unwrap();
    let mtt = (IOVA + TARGET) | 3;
    input.extend([mtt.to_be_bytes(), [0; 8]].concat());
    let rkey = guest.command(&input) << 8;

    // A QP that is its own peer.
    let mut context = QpContext::zeroed();
    for (field, value) in [
        (qpc::PD, pd),
        (qpc::RQ_TYPE, 3),
        (qpc::UAR_PAGE, uar),
        (qpc::CQN_SND, cqn),
        (qpc::RWE, 1),
        (qpc::DBR_ADDR, u32::try_from(IOVA + RECORDS).unwrap()),
    ] {
        context.set(field, value);
    }
    let mut input = command(0x500, 0x110);
    input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
    input.extend((IOVA + SQ).to_be_bytes());
    let qpn = guest.command(&input);
    context.set(qpc::REMOTE_QPN, qpn);
    for opcode in [0x502, 0x503, 0x504] {
        let mut input = command(opcode, 0x110);
        input[8..12].copy_from_slice(&qpn.to_be_bytes());
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        guest.command(&input);
    }

    guest.client.dma_unmap(IOVA + TARGET, 4096).unwrap();
    // RDMA WRITE of 8 bytes of inline data.
    let words = [8, qpn << 8 | 3, 0, 0, 0, 0, rkey, 0, 1 << 31 | 8, 1, 2, 0];
    let wqe: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
    guest.memory.write_all_at(&wqe, SQ).unwrap();
    let record = 1_u32.to_be_bytes();
    guest.memory.write_all_at(&record, RECORDS + 4).unwrap();
    let doorbell = u64::from(qpn << 8).to_be_bytes();
    let at = u64::from(uar) * 4096 + 0x800;
    guest.last_doorbell(at, &doorbell);
    let line = format!(
        "access through a translation that was taken back: QP {qpn:#x} MKey {rkey:#x} \
         va 0x0 iova 0x70013000 (IOVA 0x70013000 is not mapped)"
    );
    assert_eq!(guest.ended(), violation(&line));
    assert!(guest.scratch.read("log").contains(&line));
}

#[test]
fn memory_in_pages_of_one_file() {
    let mut guest = Guest::start("pages", &["--strict"]);
    guest.client.dma_unmap(IOVA, MEMORY).unwrap();
    // As an IOMMU does it: scattered pages, in another order than in memory.
    for (page, iova) in [
        (QUEUE, 0x9000_0000_u64),
        (MAILBOX, 0x1000),
        (RING, 0x9000_1000),
    ] {
        guest
            .client
            .dma_map(page, iova, 4096, guest.memory.as_raw_fd())
            .unwrap();
    }
    guest.write32(0x14, 0x9000_0000);
    assert_ne!(guest.command(&command(0x800, 16)), 0);
    guest.end();
}

#[test]
fn function_level_reset_drops_everything() {
    let mut guest = Guest::start("flr", &[]);
    guest.command(&command(0x800, 16));
    let control = guest.control(r#"{"cmd":"objects"}"#);
    assert!(control.contains(r#""pd":1"#), "{control}");
    guest
        .client
        .region_write(
            VFIO_PCI_CONFIG_REGION_INDEX,
            0x48,
            &0x8000_u16.to_le_bytes(),
        )
        .unwrap();
    let control = guest.control(r#"{"cmd":"objects"}"#);
    assert!(control.contains(r#""pd":0"#), "{control}");
    // And the other way to reset.
    guest.client.reset().unwrap();
    guest.end();
}

impl Guest {
    fn control(&self, line: &str) -> String {
        ask(&self.scratch.path("control"), line)
    }
}

fn ask(path: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    reply
}

#[test]
fn a_seed_is_written_down_where_a_run_is_repeated_from() {
    let scratch = Scratch::new("counters");
    let counters = scratch.path("counters");
    let counters = counters.to_str().unwrap();
    let guest = Guest::start("seed", &["--seed", "7", "--counters", counters]);
    let log = guest.scratch.path("log");
    let first = std::fs::read_to_string(log).unwrap();
    assert!(
        first.lines().next().unwrap().ends_with(" seed 7"),
        "{first}"
    );
    guest.end();
    let counters = scratch.read("counters");
    assert!(counters.contains(r#""seed":7"#), "{counters}");
    assert!(counters.contains(r#""commands":2"#), "{counters}");
}

/// What the command line says of a device that runs.
fn inspect(guest: &Guest, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_connectx"))
        .args(["inspect", "--control"])
        .arg(guest.scratch.path("control"))
        .args(args)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn the_command_line_shows_the_state_of_a_device_that_runs() {
    let mut guest = Guest::start("inspect", &["--seed", "9", "--scheme", "transport"]);
    let pd = guest.command(&command(0x800, 16));
    let (_, top) = inspect(&guest, &[]);
    let top: serde_json::Value = serde_json::from_str(&top).unwrap();
    assert_eq!(top["pd"], "1 entry");
    let (_, pds) = inspect(&guest, &["pd"]);
    assert_eq!(pds, format!("[\n  \"{pd:#x}\"\n]\n"));
    let nine = (true, "9\n".to_owned());
    assert_eq!(inspect(&guest, &["--depth", "0", "order/seed"]), nine);
    let (found, said) = inspect(&guest, &["qp/17"]);
    assert!(!found);
    assert!(said.contains("no \"17\" in \"qp\""), "{said}");
    guest.end();
}

#[test]
fn a_socket_that_exists_is_refused() {
    let scratch = Scratch::new("exists");
    File::create(scratch.path("vfio")).unwrap();
    let (status, said) = Program::start(&scratch, "vfio", &[]).wait(&scratch);
    assert_eq!(status, Some(1));
    assert!(said.contains("exists"), "{said}");
    let nowhere = Program::start(&scratch, "no/such/directory", &[]).wait(&scratch);
    assert_eq!(nowhere.0, Some(1));
    assert!(nowhere.1.contains("cannot listen"), "{nowhere:?}");
}

#[test]
fn rules_of_the_command_line() {
    let rules = ["--rule", "umr do=drop", "--rule", "event every=2 do=drop"];
    let guest = Guest::start("rules", &rules);
    let reply = ask(&guest.scratch.path("control"), r#"{"cmd":"rules"}"#);
    for rule in [r#""id":1,"#, r#""rule":"event every=2 do=drop""#] {
        assert!(reply.contains(rule), "{reply}");
    }
    let scratch = Scratch::new("bad-rule");
    let mut program = Program::start(&scratch, "vfio", &["--rule", "umr do=explode"]);
    let (status, said) = program.wait(&scratch);
    assert_eq!(status, Some(2));
    assert!(said.contains("umr: unknown variant `explode`"), "{said}");
}
