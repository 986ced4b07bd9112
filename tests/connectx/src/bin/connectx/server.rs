// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The vfio-user server: QEMU on one side, the device on the other.
//!
//! Two threads share the device: the one that serves QEMU's messages and the engine, which
//! lets the device work. The engine works in bounded slices and lets a waiting message go
//! first, so that a register read never waits for the data path.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use connectx::control;
use connectx::device::BAR0_SIZE;
use connectx::pci::{Config, ConfigEffect, BAR2_SIZE, CONFIG_SIZE, VECTORS};
use connectx::{Device, Interrupts, Journal, Rule};
use firmware_cmds::{DmaAddr, Scheme};
use vfio_bindings::bindings::vfio::{
    vfio_region_info, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use crate::memory::{MappedMemory, Rights};

/// The eventfds behind the MSI-X vectors.
#[derive(Clone, Default)]
struct Vectors(Arc<Mutex<Vec<Option<File>>>>);

impl Vectors {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupts for Vectors {
    fn fire(&mut self, vector: u16) {
        if let Some(Some(eventfd)) = self.lock().get_mut(usize::from(vector)) {
            // Fails only when the counter is about to overflow: the interrupt is pending.
            let _ = eventfd.write(&1_u64.to_ne_bytes());
        }
    }
}

/// The device and what its threads need to share it.
pub(crate) struct Shared {
    device: Mutex<Device>,
    work: Condvar,
    /// Messages that wait for the device: the engine lets them go first.
    waiting: AtomicUsize,
    start: Instant,
    strict: bool,
}

impl Shared {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The device, ahead of the engine.
    fn lock(&self) -> MutexGuard<'_, Device> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        device
    }

    /// The first violation, if it is to end the run.
    fn fatal(&self, device: &Device) -> Option<String> {
        if !self.strict {
            return None;
        }
        device.journal.violations().first().cloned()
    }

    /// Lets the device work until a violation ends the run; returns the violation.
    fn work(&self) -> String {
        loop {
            while self.waiting.load(Ordering::SeqCst) > 0 {
                thread::yield_now();
            }
            let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.now();
            let next = device.step(now);
            if let Some(violation) = self.fatal(&device) {
                return violation;
            }
            match next {
                Some(at) if at <= now => {}
                Some(at) => {
                    drop(self.work.wait_timeout(device, at - now));
                }
                None => {
                    drop(self.work.wait(device));
                }
            }
        }
    }
}

struct Backend {
    shared: Arc<Shared>,
    memory: Arc<MappedMemory>,
    vectors: Vectors,
    config: Config,
}

impl Backend {
    fn reset_device(&mut self) {
        let mut device = self.shared.lock();
        device.journal.note(format_args!("reset"));
        device.reset();
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => self.config.read(offset, data),
            VFIO_PCI_BAR0_REGION_INDEX => {
                let now = self.shared.now();
                self.shared.lock().mmio_read(now, offset, data);
            }
            _ => data.fill(0),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_CONFIG_REGION_INDEX => {
                if self.config.write(offset, data) == ConfigEffect::Reset {
                    self.reset_device();
                }
            }
            VFIO_PCI_BAR0_REGION_INDEX => {
                let now = self.shared.now();
                self.shared.lock().mmio_write(now, offset, data);
                self.shared.work.notify_one();
            }
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let rights = Rights {
            read: flags.contains(DmaMapFlags::READ),
            write: flags.contains(DmaMapFlags::WRITE),
        };
        let mapped = self
            .memory
            .map(DmaAddr::new(address), size, fd, offset, rights);
        let mut device = self.shared.lock();
        device.counters.dma_maps += 1;
        match &mapped {
            Ok(()) => device
                .journal
                .trace(format_args!("map {address:#x} + {size:#x} {rights:?}")),
            Err(error) => device
                .journal
                .note(format_args!("cannot map {address:#x} + {size:#x}: {error}")),
        }
        mapped
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let size = if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            u64::MAX
        } else {
            size
        };
        let removed = self.memory.unmap(DmaAddr::new(address), size);
        let mut device = self.shared.lock();
        device.counters.dma_unmaps += 1;
        device.journal.trace(format_args!(
            "unmap {address:#x} + {size:#x}, {removed:#x} were mapped"
        ));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.config = Config::new(BAR0_SIZE);
        self.reset_device();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX {
            return Ok(());
        }
        if flags & VFIO_IRQ_SET_ACTION_TYPE_MASK != VFIO_IRQ_SET_ACTION_TRIGGER {
            // QEMU masks vectors itself.
            return Ok(());
        }
        let mut vectors = self.vectors.lock();
        if flags & VFIO_IRQ_SET_DATA_NONE != 0 && count == 0 {
            vectors.clear();
            return Ok(());
        }
        if flags & VFIO_IRQ_SET_DATA_EVENTFD == 0 {
            return Ok(());
        }
        let start = usize::try_from(start).map_err(io::Error::other)?;
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let end = start.saturating_add(count);
        if end > usize::from(VECTORS) || !(fds.is_empty() || fds.len() == count) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The set grows and shrinks at run time: Linux allocates vectors one by one.
        if vectors.len() < end {
            vectors.resize_with(end, || None);
        }
        let mut fds = fds.into_iter();
        for vector in &mut vectors[start..end] {
            *vector = fds.next();
        }
        Ok(())
    }
}

fn region(index: u32, size: u64) -> ServerRegion {
    let flags = if size == 0 {
        0
    } else {
        VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
    };
    ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags,
            index,
            cap_offset: 0,
            size,
            offset: 0,
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    }
}

fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_BAR0_REGION_INDEX => BAR0_SIZE,
                VFIO_PCI_BAR2_REGION_INDEX => BAR2_SIZE,
                VFIO_PCI_CONFIG_REGION_INDEX => u64::try_from(CONFIG_SIZE).unwrap_or(0),
                _ => 0,
            };
            region(index, size)
        })
        .collect()
}

fn irqs() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| match index {
            VFIO_PCI_MSIX_IRQ_INDEX => IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE,
                count: u32::from(VECTORS),
            },
            _ => IrqInfo {
                index,
                flags: 0,
                count: 0,
            },
        })
        .collect()
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// QEMU closed the connection.
    Disconnected,
    /// Strict mode ended it with this violation.
    Violation(String),
}

/// A server that listens, and its device.
pub(crate) struct Connectx {
    shared: Arc<Shared>,
    backend: Backend,
    server: Server,
}

impl Connectx {
    /// Listens on `socket`, for a device with these rules.
    ///
    /// # Errors
    ///
    /// A message for the user, if `socket` exists or cannot be made.
    pub(crate) fn listen(
        socket: &Path,
        journal: Journal,
        scheme: Scheme,
        rules: Vec<Rule>,
        seed: Option<u64>,
        strict: bool,
    ) -> Result<Self, String> {
        if socket.exists() {
            return Err(format!(
                "{} exists: another connectx may be serving it; remove it if not",
                socket.display()
            ));
        }
        let server = Server::new(socket, true, irqs(), regions())
            .map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
        let memory = Arc::new(MappedMemory::new());
        let vectors = Vectors::default();
        let mut device = Device::new(
            Box::new(Arc::clone(&memory)),
            Box::new(vectors.clone()),
            journal,
            scheme,
        );
        for rule in rules {
            device.rules.insert(rule);
        }
        if let Some(seed) = seed {
            device.set_seed(seed);
        }
        let shared = Arc::new(Shared {
            device: Mutex::new(device),
            work: Condvar::new(),
            waiting: AtomicUsize::new(0),
            start: Instant::now(),
            strict,
        });
        let backend = Backend {
            shared: Arc::clone(&shared),
            memory,
            vectors,
            config: Config::new(BAR0_SIZE),
        };
        Ok(Self {
            shared,
            backend,
            server,
        })
    }

    /// Serves the control protocol on `path`, in threads of its own.
    ///
    /// # Errors
    ///
    /// A message for the user, if `path` exists or cannot be made.
    pub(crate) fn control(&self, path: &Path) -> Result<(), String> {
        let listener = UnixListener::bind(path)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve_client(&shared, client));
            }
        });
        Ok(())
    }

    /// Serves one connection of QEMU until it closes or strict mode ends the run, then
    /// hands the device to `last`.
    ///
    /// # Errors
    ///
    /// A message for the user, if the connection breaks.
    pub(crate) fn run(self, last: impl FnOnce(&mut Device)) -> Result<Outcome, String> {
        let Self {
            shared,
            mut backend,
            server,
        } = self;
        let (sender, receiver) = mpsc::channel();
        let engine = Arc::clone(&shared);
        report(&sender, "engine", move || {
            Ok(Outcome::Violation(engine.work()))
        });
        report(&sender, "server", move || match server.run(&mut backend) {
            Ok(()) => Ok(Outcome::Disconnected),
            Err(error) if is_disconnect(&error) => Ok(Outcome::Disconnected),
            Err(error) => Err(format!("connection to QEMU: {error}")),
        });
        let outcome = receiver
            .recv()
            .unwrap_or_else(|_| Err("the device's threads ended".to_owned()));
        let mut device = shared.lock();
        last(&mut device);
        // A violation that the engine has not come to yet counts too.
        match shared.fatal(&device) {
            Some(violation) => Ok(Outcome::Violation(violation)),
            None => outcome,
        }
    }
}

/// Runs `work` in a thread and sends how it ended, a panic included.
fn report(
    sender: &mpsc::Sender<Result<Outcome, String>>,
    name: &'static str,
    work: impl FnOnce() -> Result<Outcome, String> + Send + 'static,
) {
    let sender = sender.clone();
    thread::spawn(move || {
        let ended = thread::spawn(work)
            .join()
            .unwrap_or_else(|_| Err(format!("the {name} thread panicked")));
        // Nobody listens once the other thread ended.
        let _ = sender.send(ended);
    });
}

/// Whether QEMU went away in the middle of something: killed, not closed.
fn is_disconnect(error: &vfio_user::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let kind = match error {
        vfio_user::Error::StreamRead(error) | vfio_user::Error::StreamWrite(error) => error.kind(),
        vfio_user::Error::ReceiveWithFd(error) | vfio_user::Error::SendWithFd(error) => {
            io::Error::from_raw_os_error(error.errno()).kind()
        }
        _ => return false,
    };
    matches!(kind, BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn serve_client(shared: &Shared, stream: UnixStream) {
    let Ok(mut replies) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if line.trim().is_empty() {
            continue;
        }
        let mut reply = control::serve(&mut shared.lock(), &line);
        // A rule may have let work go.
        shared.work.notify_one();
        reply.push('\n');
        if replies.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}
