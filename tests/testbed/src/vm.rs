// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One run of the guest: QEMU, the software ConnectX, and what connects them to us.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};

use crate::cache::Ready;
use crate::chroot::quote_str;
use crate::console;
use crate::fail::Failure;
use crate::initramfs::Cpio;
use crate::proc::{self, describe, Group, Scratch};
use crate::progress::say;

/// From QEMU's start to the second stage, and from there to a loaded stack: 5 to 10 seconds
/// each, 30 on a machine that does other things as well.
const BOOT: Duration = Duration::from_secs(90);

/// The second stage reports every 5 seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// From the command's end to QEMU's: a second or two.
const POWER_OFF: Duration = Duration::from_secs(30);

/// How long a kernel that has complained may go on, for the log to tell the rest.
const AFTERMATH: Duration = Duration::from_secs(30);

/// The device model ends when it loses QEMU, which may have a moment left itself.
const PARTING: Duration = Duration::from_secs(10);

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
    let mut chardevs: Vec<_> = ports
        .iter()
        .map(|port| (port.name.as_str(), port.path.as_path()))
        .collect();

    let mut model = match &machine.connectx {
        Some(program) => Some(Model::start(program, &machine, dir)?),
        None => None,
    };
    let control = model.as_ref().map(|model| model.control.clone());
    chardevs.extend(
        control
            .iter()
            .map(|path| ("connectx.control", path.as_path())),
    );

    say("starting the guest");
    let run = Run {
        console: logs.join("console.log"),
        qemu_log: logs.join("qemu.log"),
        factor: if machine.debug_kernel {
            DEBUG_FACTOR
        } else {
            1
        },
    };
    let mut qemu = run.start(machine, &initrd, &modules, &chardevs, model.as_ref())?;
    let verdict = run.watch(&mut qemu, &mut model, &events, job);
    // Also kills it, if it is not gone by itself; the ports close with it.
    drop(qemu);
    drop(ports);
    let status = verdict?;
    if let Some(model) = model {
        model.finish(&run)?;
    }
    match run.splat() {
        Some(splat) => Err(splat.into()),
        None => Ok(status),
    }
}

/// A virtio port of the guest: a socket that QEMU connects to, and the thread that reads it.
///
/// QEMU has to be gone when this is dropped, or the thread reads on.
#[derive(Debug)]
struct Port {
    name: String,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Opens the port `name`; `read` gets the connection, unless none comes.
    fn open(
        dir: &Path,
        name: &str,
        read: impl FnOnce(UnixStream) + Send + 'static,
    ) -> Result<Self> {
        let path = dir.join(name);
        let listener = UnixListener::bind(&path)?;
        let thread = std::thread::spawn(move || {
            let accepted = listener.accept();
            drop(listener);
            if let Ok((stream, _)) = accepted {
                read(stream);
            }
        });
        Ok(Self {
            name: name.to_owned(),
            path,
            thread: Some(thread),
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Whoever still waits for QEMU gets a connection that ends at once.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
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

    fn tail(&self) -> String {
        console::tail(&self.console_text(), TAIL)
    }

    fn start(
        &self,
        machine: Machine,
        initrd: &Path,
        modules: &Path,
        ports: &[(&str, &Path)],
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
            if let Some(splat) = self.splat() {
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
            if let Some(end) = model.end(Duration::ZERO)? {
                bail!(
                    "the device model does not start ({}): {}",
                    describe(end),
                    model.words()
                );
            }
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

    /// How the model ended; waits for that up to `patience`.
    fn end(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let end = self.process.try_wait()?;
            if end.is_some() || start.elapsed() >= patience {
                return Ok(end);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn verdict(&self, status: ExitStatus, run: &Run) -> anyhow::Error {
        let (detail, log) = (self.words(), self.log.clone());
        if status.code() == Some(VIOLATION) {
            Failure::Violation { detail, log }.into()
        } else {
            Failure::Model {
                status: describe(status),
                detail,
                log,
                tail: run.tail(),
                console: run.console.clone(),
            }
            .into()
        }
    }

    /// After QEMU's end: the model's own.
    fn finish(mut self, run: &Run) -> Result<()> {
        match self.end(Duration::from_secs(20))? {
            None => bail!("the device model does not end with its guest"),
            Some(end) if !end.success() => Err(self.verdict(end, run)),
            Some(_) => Ok(()),
        }
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

/// Copies everything that comes into `log` and `sink`. When `sink` takes no more, the rest
/// is read all the same: who writes to a port that nobody reads waits for ever.
fn copy(mut stream: UnixStream, mut log: File, sink: Box<dyn Write + Send>) {
    let mut sink = Some(sink);
    let mut buffer = [0; 1 << 16];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let bytes = &buffer[..n];
        let _ = log.write_all(bytes);
        if let Some(to) = &mut sink {
            if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                sink = None;
            }
        }
    }
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

    /// Takes `n` bytes, then no more.
    struct Narrow(usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_start_is_named() {
        for (connectx, expected) in [
            (Some("/bin/false"), "the device model does not start"),
            (None, "the guest ended early: QEMU: exit status 1"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let initramfs = dir.path().join("initramfs");
            fs::write(&initramfs, "").unwrap();
            let machine = Machine {
                qemu: proc::command("false"),
                vmlinuz: initramfs.clone(),
                initramfs,
                tree: dir.path().to_owned(),
                project: dir.path().to_owned(),
                modules: Vec::new(),
                connectx: connectx.map(PathBuf::from),
                scheme: Scheme::Memory,
                strict: true,
                iommu: false,
                debug_kernel: false,
                logs: dir.path().join("logs"),
                held: Vec::new(),
            };
            let job = Job {
                command: vec!["true".to_owned()],
                stack: None,
                timeout: Duration::from_secs(1),
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
    fn a_port_is_read_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = File::create(&path).unwrap();
        let port = Port::open(dir.path(), "port", |stream| {
            copy(stream, log, Box::new(Narrow(10)));
        })
        .unwrap();
        let mut guest = UnixStream::connect(&port.path).unwrap();
        // More than a socket holds.
        guest.write_all(&[b'x'; 1 << 20]).unwrap();
        drop(guest);
        drop(port);
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_port_that_nobody_connects_to_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = mpsc::channel();
        let port = Port::open(dir.path(), "port", move |stream| {
            read_control(stream, &sender);
        })
        .unwrap();
        drop(port);
        assert!(receiver.recv().is_err());
    }
}
