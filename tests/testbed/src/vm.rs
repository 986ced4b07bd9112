// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One run of the guest: QEMU, the software ConnectX, and what connects them to us.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::cache::Ready;
use crate::chroot::quote_str;
use crate::console;
use crate::fail::Failure;
use crate::initramfs::Cpio;
use crate::proc::{self, describe, Group, Scratch};

/// The first stage has to mount a root and the second to say so: a few seconds,
/// more on a machine that does other things as well.
const BOOT: Duration = Duration::from_secs(180);

/// The second stage reports every 5 seconds.
const SILENCE: Duration = Duration::from_secs(120);

/// From the command's end to QEMU's.
const POWER_OFF: Duration = Duration::from_secs(60);

/// How much slower a debug kernel may be.
const DEBUG_FACTOR: u32 = 6;

/// Console lines to show when the guest fails.
const TAIL: usize = 25;

/// What the device model exits with after a strict violation.
const VIOLATION: i32 = 3;

/// A page-fault scheme of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scheme {
    /// MEMORY page-fault events.
    Memory,
    /// WQE and RDMA page-fault events.
    Transport,
}

impl Scheme {
    /// The word for it, as every program of ours takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Transport => "transport",
        }
    }
}

/// The machine to start.
#[derive(Debug)]
pub(crate) struct Machine {
    /// QEMU, with the root's libraries.
    pub(crate) qemu: Command,
    /// The kernel image.
    pub(crate) vmlinuz: PathBuf,
    /// The base initramfs.
    pub(crate) initramfs: PathBuf,
    /// The Debian root.
    pub(crate) tree: PathBuf,
    /// The checkout.
    pub(crate) project: PathBuf,
    /// Directories of modules, by the name they get below /modules.
    pub(crate) modules: Vec<(String, PathBuf)>,
    /// The device model's program; none for a machine without one.
    pub(crate) connectx: Option<PathBuf>,
    /// The scheme the device starts with.
    pub(crate) scheme: Scheme,
    /// Whether the device ends the run on a violation.
    pub(crate) strict: bool,
    /// Whether the device sits behind an IOMMU: it then learns of every DMA unmap.
    pub(crate) iommu: bool,
    /// Whether the kernel is the slow one.
    pub(crate) debug_kernel: bool,
    /// Where logs go.
    pub(crate) logs: PathBuf,
    /// Holds the steps that modules and initramfs come from until they are copied: then
    /// another run may make them anew.
    pub(crate) held: Vec<Ready>,
}

/// What to run in it.
#[derive(Debug)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Which RDMA stack to load first (`rdma-stack load ...`); none to load nothing.
    pub(crate) stack: Option<&'static str>,
    /// How long the command may take.
    pub(crate) timeout: Duration,
}

enum Event {
    Ready,
    Beat,
    Loaded,
    Exit(i32),
    Fail(String),
}

/// Runs `job`; its output goes to `stdout` and `stderr` as it comes. Returns the
/// command's exit status.
///
/// Whatever else goes wrong, a splat in the kernel's log included, is an error.
pub(crate) fn run(
    mut machine: Machine,
    job: &Job,
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
) -> Result<i32> {
    let logs = machine.logs.clone();
    fs::create_dir_all(&logs)?;
    // Socket paths must be short, which a cache's path may not be.
    let scratch = Scratch::new(&std::env::temp_dir(), "mlx5-odp.")?;
    let dir = scratch.path();

    let modules = dir.join("modules");
    fs::create_dir(&modules)?;
    for (name, from) in &machine.modules {
        copy_tree(from, &modules.join(name))?;
    }
    let initrd = dir.join("initrd");
    fs::copy(&machine.initramfs, &initrd)?;
    File::options()
        .append(true)
        .open(&initrd)?
        .write_all(&job_archive(job))?;
    machine.held.clear();

    let (sender, events) = mpsc::channel();
    let mut outputs = Vec::new();
    let mut ports = Vec::new();
    for (port, sink) in [("stdout", stdout), ("stderr", stderr)] {
        let path = dir.join(port);
        outputs.push(copy_port(UnixListener::bind(&path)?, sink));
        ports.push((format!("testbed.{port}"), path));
    }
    let control = dir.join("control");
    read_control(UnixListener::bind(&control)?, sender);
    ports.push(("testbed.control".to_owned(), control));

    let mut model = match &machine.connectx {
        Some(program) => {
            let model = Model::start(program, &machine, dir)?;
            ports.push(("connectx.control".to_owned(), model.control.clone()));
            Some(model)
        }
        None => None,
    };

    let mut run = Run {
        console: logs.join("console.log"),
        qemu_log: logs.join("qemu.log"),
        factor: if machine.debug_kernel {
            DEBUG_FACTOR
        } else {
            1
        },
    };
    let mut qemu = run.start(machine, &initrd, &modules, &ports, model.as_ref())?;
    let verdict = run.watch(&mut qemu, &mut model, &events, job);
    // Also kills it, if it is not gone by itself; the ports close with it.
    drop(qemu);
    for output in outputs {
        let _ = output.join();
    }
    let status = verdict?;
    if let Some(model) = model {
        model.finish()?;
    }
    let log = run.console_text();
    if let Some((line, text)) = console::splat(&log) {
        return Err(Failure::Splat {
            line,
            text: text.to_owned(),
            log: run.console,
        }
        .into());
    }
    Ok(status)
}

struct Run {
    console: PathBuf,
    qemu_log: PathBuf,
    factor: u32,
}

impl Run {
    fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn start(
        &mut self,
        machine: Machine,
        initrd: &Path,
        modules: &Path,
        ports: &[(String, PathBuf)],
        model: Option<&Model>,
    ) -> Result<Group> {
        let mut qemu = machine.qemu;
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ]);
        qemu.args(["-machine", "q35,memory-backend=mem", "-accel", "tcg"]);
        qemu.args(["-cpu", "max,la57=off", "-smp", "2", "-m", "2G"]);
        qemu.args(["-object", "memory-backend-memfd,id=mem,size=2G,share=on"]);
        // no_timer_check: on a busy host the emulated timer may miss the kernel's test of it.
        let mut append = "console=ttyS0 loglevel=7 panic=-1 oops=panic mitigations=off \
             random.trust_cpu=on no_timer_check"
            .to_owned();
        if machine.iommu {
            qemu.args(["-device", "intel-iommu,caching-mode=on,intremap=off"]);
            append += " intel_iommu=on iommu.strict=1";
        }
        qemu.arg("-kernel").arg(&machine.vmlinuz);
        qemu.arg("-initrd").arg(initrd);
        qemu.arg("-append").arg(append);
        qemu.arg("-serial")
            .arg(format!("file:{}", self.console.display()));
        for (tag, path) in [
            ("root", machine.tree.as_path()),
            ("project", machine.project.as_path()),
            ("modules", modules),
        ] {
            // A comma in a path is doubled for QEMU.
            let path = path.to_string_lossy().replace(',', ",,");
            qemu.arg("-fsdev").arg(format!(
                "local,id={tag},path={path},security_model=none,readonly=on,multidevs=remap"
            ));
            qemu.arg("-device")
                .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
        }
        qemu.args(["-device", "virtio-serial-pci"]);
        for (index, (name, path)) in ports.iter().enumerate() {
            qemu.arg("-chardev")
                .arg(format!("socket,id=port{index},path={}", path.display()));
            qemu.arg("-device")
                .arg(format!("virtserialport,chardev=port{index},name={name}"));
        }
        if let Some(model) = model {
            let device = serde_json::json!({
                "driver": "vfio-user-pci",
                "socket": { "type": "unix", "path": model.socket },
            });
            qemu.arg("-device").arg(device.to_string());
        }
        let log = File::create(&self.qemu_log)?;
        qemu.stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Group::spawn(&mut qemu)
    }

    fn watch(
        &self,
        qemu: &mut Group,
        model: &mut Option<Model>,
        events: &Receiver<Event>,
        job: &Job,
    ) -> Result<i32> {
        let mut waiting_for = "the guest to boot";
        let mut limit = BOOT * self.factor;
        let mut since = Instant::now();
        let mut started = None;
        let mut beat = Instant::now();
        let mut status = None;
        loop {
            match events.recv_timeout(Duration::from_millis(200)) {
                Ok(Event::Beat) => beat = Instant::now(),
                Ok(Event::Ready) => {
                    beat = Instant::now();
                    since = beat;
                    waiting_for = "the RDMA stack to load";
                }
                Ok(Event::Loaded) => {
                    beat = Instant::now();
                    since = beat;
                    limit = job.timeout;
                    waiting_for = "the command";
                    started = Some(());
                }
                Ok(Event::Exit(code)) => {
                    status = Some(code);
                    since = Instant::now();
                    limit = POWER_OFF * self.factor;
                    waiting_for = "the guest to power off";
                }
                Ok(Event::Fail(why)) => bail!("{why} (console: {})", self.console.display()),
                Err(RecvTimeoutError::Timeout) => {}
                // The port closes when QEMU ends; look at QEMU below.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            if let Some(ended) = qemu.try_wait()? {
                // Reports that arrived with the end.
                while let Ok(event) = events.try_recv() {
                    if let Event::Exit(code) = event {
                        status = Some(code);
                    }
                }
                if let Some(status) = status {
                    return Ok(status);
                }
                if let Some(model) = model {
                    model.check(Duration::from_secs(2))?;
                }
                return Err(self.ended(ended));
            }
            if let Some(model) = model {
                if status.is_none() {
                    model.check(Duration::ZERO)?;
                }
            }
            if let Some(detail) = console::panic(&self.console_text()) {
                // Let the rest of the report reach the log.
                std::thread::sleep(Duration::from_secs(1));
                return Err(Failure::Panic {
                    detail: detail.to_owned(),
                    tail: console::tail(&self.console_text(), TAIL),
                    log: self.console.clone(),
                }
                .into());
            }
            if since.elapsed() > limit {
                return Err(self.hang(format!("waited {} s for {waiting_for}", limit.as_secs())));
            }
            if started.is_some() && status.is_none() && beat.elapsed() > SILENCE * self.factor {
                return Err(self.hang(format!(
                    "no sign of life for {} s",
                    beat.elapsed().as_secs()
                )));
            }
        }
    }

    fn hang(&self, detail: String) -> anyhow::Error {
        Failure::Hang {
            detail,
            tail: console::tail(&self.console_text(), TAIL),
            log: self.console.clone(),
        }
        .into()
    }

    fn ended(&self, status: std::process::ExitStatus) -> anyhow::Error {
        let said = fs::read_to_string(&self.qemu_log).unwrap_or_default();
        let detail = match said.lines().rfind(|l| !l.trim().is_empty()) {
            Some(line) => format!("QEMU: {}: {line}", describe(status)),
            None => format!("QEMU: {}", describe(status)),
        };
        Failure::GuestEnded {
            detail,
            tail: console::tail(&self.console_text(), TAIL),
            log: self.console.clone(),
        }
        .into()
    }
}

/// The device model's process.
#[derive(Debug)]
struct Model {
    process: Group,
    socket: PathBuf,
    control: PathBuf,
    log: PathBuf,
    stderr: PathBuf,
}

impl Model {
    fn start(program: &Path, machine: &Machine, dir: &Path) -> Result<Self> {
        let (socket, control) = (dir.join("vfio-user"), dir.join("connectx"));
        let counters = machine.logs.join("counters.json");
        let log = machine.logs.join("connectx.log");
        let stderr = machine.logs.join("connectx.stderr");
        let mut command = proc::command(program);
        command.arg("--socket").arg(&socket);
        command.args(["--scheme", machine.scheme.name()]);
        if machine.strict {
            command.arg("--strict");
        }
        command.arg("--control").arg(&control);
        command.arg("--log").arg(&log);
        command.arg("--counters").arg(&counters);
        let err = File::create(&stderr)?;
        command
            .stdin(Stdio::null())
            .stdout(err.try_clone()?)
            .stderr(err);
        let mut model = Self {
            process: Group::spawn(&mut command)?,
            socket,
            control,
            log,
            stderr,
        };
        let start = Instant::now();
        while !(model.socket.exists() && model.control.exists()) {
            model.check(Duration::ZERO)?;
            if start.elapsed() > Duration::from_secs(20) {
                bail!("the device model opens no socket");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(model)
    }

    fn words(&self) -> String {
        fs::read_to_string(&self.stderr)
            .unwrap_or_default()
            .lines()
            .rfind(|l| !l.trim().is_empty())
            .unwrap_or("it said nothing")
            .to_owned()
    }

    /// Fails if the model is gone; waits for that up to `patience`.
    fn check(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Err(self.verdict(status));
            }
            if start.elapsed() >= patience {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn verdict(&self, status: std::process::ExitStatus) -> anyhow::Error {
        let (detail, log) = (self.words(), self.log.clone());
        if status.code() == Some(VIOLATION) {
            Failure::Violation { detail, log }.into()
        } else {
            Failure::Model {
                status: describe(status),
                detail,
                log,
            }
            .into()
        }
    }

    /// After QEMU's end: the model's own.
    fn finish(mut self) -> Result<()> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!("the device model does not end with its guest");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            return Err(self.verdict(status));
        }
        Ok(())
    }
}

/// The second archive: how to start, and what.
fn job_archive(job: &Job) -> Vec<u8> {
    let words: Vec<_> = job.command.iter().map(|word| quote_str(word)).collect();
    let (load, stack) = match job.stack {
        Some(stack) => (1, stack),
        None => (0, ""),
    };
    let mut cpio = Cpio::default();
    cpio.dir("job");
    cpio.file("job/env", format!("load={load} odp={stack}\n").as_bytes());
    cpio.file(
        "job/cmd.sh",
        format!("exec {}\n", words.join(" ")).as_bytes(),
    );
    // Archives start at multiples of 4, which the base archive's size is.
    cpio.finish()
}

/// Copies everything from the one connection to `listener` into `sink`.
fn copy_port(listener: UnixListener, mut sink: Box<dyn Write + Send>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut buffer = [0; 1 << 16];
        while let Ok(n) = stream.read(&mut buffer) {
            if n == 0
                || sink
                    .write_all(&buffer[..n])
                    .and_then(|()| sink.flush())
                    .is_err()
            {
                break;
            }
        }
    })
}

/// Turns the second stage's reports into events.
fn read_control(listener: UnixListener, sender: Sender<Event>) {
    let parse = |line: &str| match line.split_once(' ') {
        Some(("exit", code)) => Some(Event::Exit(code.parse().ok()?)),
        Some(("fail", why)) => Some(Event::Fail(why.to_owned())),
        None if line == "ready" => Some(Event::Ready),
        None if line == "beat" => Some(Event::Beat),
        None if line == "loaded" => Some(Event::Loaded),
        _ => None,
    };
    std::thread::spawn(move || {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let event =
                parse(&line).unwrap_or_else(|| Event::Fail(format!("unexpected report {line:?}")));
            if sender.send(event).is_err() {
                return;
            }
        }
    });
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
