// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the guest says, by virtio ports that end in sockets of ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Result;

use super::qemu::Link;

/// A virtio port of the guest: a socket that QEMU connects to, and the thread that reads it.
///
/// QEMU has to be gone when this is dropped, or the thread reads on.
#[derive(Debug)]
pub(super) struct Port {
    name: String,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Opens the port `name`; `read` gets QEMU's connection, or one that ends at once.
    pub(super) fn open(
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

    /// How the guest reaches it.
    pub(super) fn link(&self) -> Link {
        Link {
            name: self.name.clone(),
            socket: self.path.clone(),
        }
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

/// Copies everything that comes into `log` and `sink`. When `sink` takes no more, the rest
/// is read all the same: who writes to a port that nobody reads waits for ever.
pub(super) fn copy(mut stream: UnixStream, mut log: File, sink: Box<dyn Write + Send>) {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

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
        let port = Port::open(dir.path(), "port", move |mut stream| {
            let _ = sender.send(stream.read(&mut [0; 8]).unwrap());
        })
        .unwrap();
        drop(port);
        assert_eq!(receiver.recv(), Ok(0));
    }
}
