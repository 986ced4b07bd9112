// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One run of the guest: QEMU, the software ConnectX, and what connects them to us.

mod hardware;
mod model;
mod port;
mod qemu;
pub(crate) mod terminal;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};

pub(crate) use self::hardware::{Hardware, Iommu, Plugin};
use self::model::Model;
use self::port::{copy, Port};
use self::qemu::Parts;
use crate::cache::Ready;
use crate::chroot::quote_str;
use crate::console;
use crate::fail::Failure;
use crate::initramfs::Cpio;
use crate::proc::{describe, Group, Scratch};
use crate::progress::say;

/// From QEMU's start to the second stage, and from there to a loaded stack: 5 to 10 seconds
/// each, 30 on a machine that does other things as well.
const BOOT: Duration = Duration::from_secs(90);

/// The second stage reports every half second of the guest.
const SILENCE: Duration = Duration::from_secs(60);

/// From the command's end to QEMU's: a second or two.
const POWER_OFF: Duration = Duration::from_secs(30);

/// How long a kernel that has complained may go on, for the log to tell the rest.
const AFTERMATH: Duration = Duration::from_secs(30);

/// The device model ends when it loses QEMU, which may have a moment left itself.
const PARTING: Duration = Duration::from_secs(10);

/// How much slower a debug kernel may be, and a guest whose time is its instructions.
const SLOW_FACTOR: u32 = 6;

/// Console lines to show when the guest fails.
const TAIL: usize = 25;

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
    /// What decides the order of all that hardware leaves open; first in, first out without.
    pub(crate) seed: Option<u64>,
    /// Memory, processors, IOMMU.
    pub(crate) hardware: Hardware,
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
    /// Whether it has our terminal; else its input is empty.
    pub(crate) on_terminal: bool,
    /// Whether it goes on after a splat in the kernel's log.
    pub(crate) keep_going: bool,
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
        .write_all(&job_archive(job, &machine.hardware))?;
    machine.held.clear();

    let (sender, events) = mpsc::channel();
    let mut ports = Vec::new();
    for (name, sink) in [("stdout", stdout), ("stderr", stderr)] {
        let log = File::create(logs.join(format!("{name}.log")))?;
        ports.push(Port::open(dir, &format!("testbed.{name}"), |stream| {
            copy(stream, log, sink);
        })?);
    }
    ports.push(Port::open(dir, "testbed.control", |stream| {
        read_control(stream, &sender);
        // Not before the last report was sent.
        drop(sender);
    })?);
    if job.on_terminal {
        let (sizes, changes) = mpsc::channel();
        // The first of them ends the second, when the ports close.
        ports.push(Port::open(dir, "testbed.terminal", move |stream| {
            terminal::lend(stream, &sizes);
        })?);
        ports.push(Port::open(dir, "testbed.window", move |mut stream| {
            for size in changes {
                let _ = writeln!(stream, "{} {}", size.ws_row, size.ws_col);
            }
        })?);
    }
    let mut links: Vec<_> = ports.iter().map(Port::link).collect();

    let mut model = match &machine.connectx {
        Some(program) => Some(Model::start(program, &machine, dir)?),
        None => None,
    };
    links.extend(model.as_ref().map(Model::link));

    say("starting the guest");
    let run = Run {
        console: logs.join("console.log"),
        qemu_log: logs.join("qemu.log"),
        factor: if machine.debug_kernel || machine.hardware.icount.is_some() {
            SLOW_FACTOR
        } else {
            1
        },
    };
    let parts = Parts {
        initrd: &initrd,
        modules: &modules,
        console: &run.console,
        links: &links,
        device: model.as_ref().map(|model| model.socket.as_path()),
    };
    let mut qemu = run.start(qemu::command(machine, job, &parts))?;
    let verdict = run.watch(&mut qemu, &mut model, &events, job);
    // Also kills it, if it is not gone by itself; the ports close with it.
    drop(qemu);
    drop(ports);
    let status = verdict?;
    if let Some(model) = model {
        model.finish(&run)?;
    }
    let complaint = if job.keep_going {
        run.complaint(status)
    } else {
        run.splat()
    };
    complaint.map_or(Ok(status), |complaint| Err(complaint.into()))
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

    fn splat(&self) -> Option<Failure> {
        let text = self.console_text();
        let (line, text) = console::splat(&text)?;
        Some(Failure::Splat {
            line,
            text: text.to_owned(),
            log: self.console.clone(),
        })
    }

    /// The splat, if the run went on to the end with `status` all the same.
    fn complaint(&self, status: i32) -> Option<Failure> {
        let text = self.console_text();
        let (line, _) = console::splat(&text)?;
        Some(Failure::Complaint {
            status,
            line,
            report: console::report(&text, line),
            log: self.console.clone(),
        })
    }

    fn tail(&self) -> String {
        console::tail(&self.console_text(), TAIL)
    }

    fn start(&self, mut qemu: Command) -> Result<Group> {
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
        let mut model_gone = None;
        let mut complained = None;
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
                Ok(Event::Fail(why)) => return Err(self.fail(&why)),
                Err(RecvTimeoutError::Timeout) => {}
                // The port closes when QEMU ends; look at QEMU below.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            if let Some(ended) = qemu.try_wait()? {
                // Reports that arrived with the end: the port is closed when all were read.
                while let Ok(event) = events.recv_timeout(Duration::from_secs(1)) {
                    match event {
                        Event::Exit(code) => status = Some(code),
                        Event::Fail(why) => return Err(self.fail(&why)),
                        _ => {}
                    }
                }
                return match status {
                    Some(status) => Ok(status),
                    None => Err(self.ended(ended, model)?),
                };
            }
            if let (Some(model), None) = (model.as_mut(), status) {
                if let Some(end) = model.process.try_wait()? {
                    let gone = *model_gone.get_or_insert_with(Instant::now);
                    if !end.success() || gone.elapsed() > PARTING {
                        return Err(model.verdict(end, self));
                    }
                }
            }
            if let Some(panic) = self.panic() {
                // Let the rest of the report reach the log.
                std::thread::sleep(Duration::from_secs(1));
                return Err(self.panic().unwrap_or(panic).into());
            }
            if let Some(splat) = self.splat().filter(|_| !job.keep_going) {
                let seen = *complained.get_or_insert_with(Instant::now);
                if seen.elapsed() > AFTERMATH * self.factor {
                    return Err(splat.into());
                }
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

    fn fail(&self, why: &str) -> anyhow::Error {
        anyhow!("{why} (console: {})", self.console.display())
    }

    fn hang(&self, detail: String) -> anyhow::Error {
        Failure::Hang {
            detail,
            tail: self.tail(),
            log: self.console.clone(),
        }
        .into()
    }

    fn panic(&self) -> Option<Failure> {
        let text = self.console_text();
        Some(Failure::Panic {
            detail: console::panic(&text)?.to_owned(),
            tail: console::tail(&text, TAIL),
            log: self.console.clone(),
        })
    }

    /// Why QEMU ended with nothing said by the guest: because the device model died,
    /// because the kernel panicked, which reboots it, or for a reason of its own.
    fn ended(&self, status: ExitStatus, model: &mut Option<Model>) -> Result<anyhow::Error> {
        if let Some(model) = model {
            if let Some(end) = model.end(Duration::from_secs(2))? {
                if !end.success() {
                    return Ok(model.verdict(end, self));
                }
            }
        }
        if let Some(panic) = self.panic() {
            return Ok(panic.into());
        }
        let said = fs::read_to_string(&self.qemu_log).unwrap_or_default();
        let detail = match said
            .lines()
            .rfind(|l| !l.trim().is_empty() && !l.contains("warning:"))
        {
            Some(line) => format!("QEMU: {}: {line}", describe(status)),
            None if status.success() => "it powered off or restarted by itself".to_owned(),
            None => format!("QEMU: {}", describe(status)),
        };
        Ok(Failure::GuestEnded {
            detail,
            tail: self.tail(),
            log: self.console.clone(),
        }
        .into())
    }
}

/// The second archive: how to start, and what.
fn job_archive(job: &Job, hardware: &Hardware) -> Vec<u8> {
    let words: Vec<_> = job.command.iter().map(|word| quote_str(word)).collect();
    let (load, stack) = match job.stack {
        Some(stack) => (1, stack),
        None => (0, ""),
    };
    let lazy = u8::from(hardware.iommu == Iommu::IntelLazy);
    // Which kind of terminal: the guest takes it where it knows that kind.
    let kind = env::var("TERM").unwrap_or_default();
    let terminal = if job.on_terminal { &kind } else { "" };
    let mut cpio = Cpio::default();
    cpio.dir("job");
    cpio.file(
        "job/env",
        format!(
            "load={load} odp={stack} lazy={lazy} on_terminal={} terminal={}\n",
            u8::from(job.on_terminal),
            quote_str(terminal),
        )
        .as_bytes(),
    );
    cpio.file(
        "job/cmd.sh",
        format!("exec {}\n", words.join(" ")).as_bytes(),
    );
    // Archives start at multiples of 4, which the base archive's size is.
    cpio.finish()
}

/// Turns the second stage's reports into events.
fn read_control(stream: UnixStream, sender: &Sender<Event>) {
    let parse = |line: &str| match line.split_once(' ') {
        Some(("exit", code)) => Some(Event::Exit(code.parse().ok()?)),
        Some(("fail", why)) => Some(Event::Fail(why.to_owned())),
        None if line == "ready" => Some(Event::Ready),
        None if line == "beat" => Some(Event::Beat),
        None if line == "loaded" => Some(Event::Loaded),
        _ => None,
    };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let event =
            parse(&line).unwrap_or_else(|| Event::Fail(format!("unexpected report {line:?}")));
        if sender.send(event).is_err() {
            return;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of nothing, in `dir`; QEMU is `false`.
    pub(super) fn machine(dir: &Path) -> Machine {
        let initramfs = dir.join("initramfs");
        fs::write(&initramfs, "").unwrap();
        Machine {
            qemu: crate::proc::command("false"),
            vmlinuz: initramfs.clone(),
            initramfs,
            tree: dir.to_owned(),
            project: dir.to_owned(),
            modules: Vec::new(),
            connectx: None,
            scheme: Scheme::Memory,
            strict: true,
            seed: None,
            hardware: Hardware::default(),
            debug_kernel: false,
            logs: dir.join("logs"),
            held: Vec::new(),
        }
    }

    /// A job that ends by itself.
    pub(super) fn job() -> Job {
        Job {
            command: vec!["true".to_owned()],
            on_terminal: false,
            keep_going: false,
            stack: None,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_does_not_start_is_named() {
        for (connectx, expected) in [
            (Some("/bin/false"), "the device model does not start"),
            (None, "the guest ended early: QEMU: exit status 1"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let machine = Machine {
                connectx: connectx.map(PathBuf::from),
                ..machine(dir.path())
            };
            // The terminal's threads end as well.
            let job = Job {
                on_terminal: true,
                ..job()
            };
            let (sender, lines) = mpsc::channel();
            let out = Box::new(crate::report::Lines::new(sender));
            let error = run(machine, &job, out, Box::new(std::io::sink())).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(expected), "{text}");
            // Whoever waits for the job's output is not kept waiting.
            assert!(lines.recv().is_err());
        }
    }

    #[test]
    fn the_guest_learns_what_its_iommu_is_to_do() {
        for (iommu, lazy) in [
            (Iommu::IntelStrict, "lazy=0 "),
            (Iommu::IntelLazy, "lazy=1 "),
        ] {
            let hardware = Hardware {
                iommu,
                ..Hardware::default()
            };
            let archive = String::from_utf8(job_archive(&job(), &hardware)).unwrap();
            assert!(archive.contains(lazy), "{archive}");
        }
    }
}
