// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The user's terminal, lent to the guest: a virtio port there, a socket here.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::Mutex;

use anyhow::Result;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios, Winsize};
use signal_hook::consts::SIGWINCH;

/// A terminal that was made raw, and its settings before.
static COOKED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Whether there is a terminal to lend.
pub(crate) fn present() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Gives the terminal its settings back, if it was made raw.
pub(crate) fn restore() {
    if let Ok(mut cooked) = COOKED.lock() {
        if let Some((terminal, settings)) = cooked.take() {
            let _ = tcsetattr(&terminal, OptionalActions::Now, &settings);
        }
    }
}

/// Every key goes to the guest from now on, Ctrl-C and Ctrl-Z as well; what is no terminal
/// stays as it is.
fn make_raw(terminal: impl AsFd) -> Result<()> {
    let terminal = terminal.as_fd();
    let Ok(settings) = tcgetattr(terminal) else {
        return Ok(());
    };
    let mut raw = settings.clone();
    raw.make_raw();
    let mut cooked = COOKED.lock().expect("no thread panics with it");
    // Before the terminal changes: a signal in between finds what to restore.
    *cooked = Some((terminal.try_clone_to_owned()?, settings));
    tcsetattr(terminal, OptionalActions::Now, &raw)?;
    Ok(())
}

/// Lends our standard input and output to `guest` until that closes;
/// sends the window's size to `sizes`, now and each time it changes.
pub(super) fn lend(guest: UnixStream, sizes: &Sender<Winsize>) {
    let tell = || {
        if let Ok(size) = tcgetwinsize(io::stdout()) {
            let _ = sizes.send(size);
        }
    };
    // Whoever cannot be told of changes gets a window of one size.
    let changes = UnixStream::pair().and_then(|(reader, writer)| {
        reader.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGWINCH, writer)?;
        Ok(reader)
    });
    tell();
    let _ = relay(io::stdin(), io::stdout(), guest, changes.ok(), tell);
    restore();
}

/// Copies between `input`, `output` and `guest` until `guest` closes; `changed` is called
/// for what comes from `changes`.
///
/// `input` is left alone until the guest has printed something, and is raw from then on:
/// before that, Ctrl-C is for us.
fn relay(
    input: impl AsFd,
    mut output: impl Write,
    mut guest: UnixStream,
    mut changes: Option<UnixStream>,
    changed: impl Fn(),
) -> Result<()> {
    guest.set_nonblocking(true)?;
    let mut buffer = [0; 1 << 14];
    // What was typed and not yet taken: nothing more is read before it is.
    let mut typed: Vec<u8> = Vec::new();
    let (mut awake, mut at_end) = (false, false);
    loop {
        let mut wanted = PollFlags::IN;
        wanted.set(PollFlags::OUT, !typed.is_empty());
        let mut fds = vec![PollFd::new(&guest, wanted)];
        let of_changes = changes.as_ref().map(|changes| {
            fds.push(PollFd::new(changes, PollFlags::IN));
            fds.len() - 1
        });
        let of_input = (awake && !at_end && typed.is_empty()).then(|| {
            fds.push(PollFd::new(&input, PollFlags::IN));
            fds.len() - 1
        });
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        let ready = |index: Option<usize>| index.is_some_and(|i| !fds[i].revents().is_empty());
        let (change, key) = (ready(of_changes), ready(of_input));
        drop(fds);

        match guest.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                if !awake {
                    awake = true;
                    make_raw(&input)?;
                }
                // Who reads no more of it does not keep the guest from going on.
                let _ = output.write_all(&buffer[..n]).and_then(|()| output.flush());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if change {
            // All of them are one.
            if let Some(Ok(0)) = changes.as_mut().map(|c| c.read(&mut buffer)) {
                changes = None;
            }
            changed();
        }
        if key {
            let n = rustix::io::read(&input, &mut buffer)?;
            at_end = n == 0;
            typed.extend_from_slice(&buffer[..n]);
        }
        if !typed.is_empty() {
            match guest.write(&typed) {
                Ok(n) => drop(typed.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{open, Mode, OFlags};
    use rustix::pty::{openpt, ptsname, unlockpt, OpenptFlags};
    use rustix::termios::LocalModes;

    use super::*;

    /// Sends what is written to it.
    struct Sink(Sender<Vec<u8>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_is_raw_while_the_guest_has_it() {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let modes =
            || tcgetattr(&terminal).unwrap().local_modes & (LocalModes::ISIG | LocalModes::ICANON);
        assert_eq!(modes(), LocalModes::ISIG | LocalModes::ICANON);

        std::thread::scope(|scope| {
            // Here, so that a failure closes them, and the thread ends.
            let (mut guest, ours) = UnixStream::pair().unwrap();
            let (mut window, changes) = UnixStream::pair().unwrap();
            let (printed, prints) = mpsc::channel();
            let (resized, resizes) = mpsc::channel();
            let input = &terminal;
            let relay = scope.spawn(move || {
                relay(input, Sink(printed), ours, Some(changes), || {
                    resized.send(()).unwrap();
                })
            });
            // Not a key before the guest speaks, nor is the terminal raw.
            window.write_all(&[0]).unwrap();
            resizes.recv().unwrap();
            assert_eq!(modes(), LocalModes::ISIG | LocalModes::ICANON);

            guest.write_all(b"# ").unwrap();
            assert_eq!(prints.recv().unwrap(), b"# ");
            assert_eq!(modes(), LocalModes::empty());
            // Ctrl-C and Ctrl-D are bytes like others.
            rustix::io::write(&user, b"a\x03\x04").unwrap();
            let mut typed = [0; 3];
            guest.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"a\x03\x04");

            guest.shutdown(Shutdown::Both).unwrap();
            relay.join().unwrap().unwrap();
        });
        restore();
        assert_eq!(modes(), LocalModes::ISIG | LocalModes::ICANON);
    }

    #[test]
    fn much_that_is_typed_waits_for_the_guest() {
        const MUCH: usize = 1 << 20;
        let (mut guest, ours) = UnixStream::pair().unwrap();
        // A failure then, and no hang.
        guest
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let (mut user, input) = UnixStream::pair().unwrap();
        let (printed, prints) = mpsc::channel();
        let relay =
            std::thread::spawn(move || relay(input, Sink(printed), ours, None, || unreachable!()));
        guest.write_all(b"# ").unwrap();
        prints.recv().unwrap();
        let typing = std::thread::spawn(move || user.write_all(&[b'x'; MUCH]).unwrap());
        // The guest prints on while it takes no key.
        guest.write_all(b"still here").unwrap();
        assert_eq!(prints.recv().unwrap(), b"still here");
        let mut typed = vec![0; MUCH];
        guest.read_exact(&mut typed).unwrap();
        assert!(typed.iter().all(|&byte| byte == b'x'));
        typing.join().unwrap();
        drop(guest);
        relay.join().unwrap().unwrap();
    }
}
