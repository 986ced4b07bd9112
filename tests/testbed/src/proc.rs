// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Child processes that never outlive us.
//!
//! Every child leads a process group of its own. A signal to us kills all of
//! the groups; if we are killed without a chance to react, `setpriv --pdeathsig`
//! takes the child down, and a PID namespace (`unshare --kill-child`) whatever
//! it started.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::process::{geteuid, kill_process_group, Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::vm::terminal;

static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static LITTER: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Makes SIGINT, SIGTERM and SIGHUP kill all children and remove all litter; a second
/// signal does not wait for the latter.
pub(crate) fn handle_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        let mut first = true;
        for signal in signals.forever() {
            if !first {
                std::process::exit(128 + signal);
            }
            first = false;
            terminal::restore();
            eprintln!("\ninterrupted");
            std::thread::spawn(move || {
                // Held to the end: nothing is started from here on.
                let groups = GROUPS.lock();
                if let Ok(groups) = &groups {
                    groups.iter().for_each(|&group| kill_group(group));
                }
                if let Ok(litter) = LITTER.lock() {
                    for path in litter.iter() {
                        let _ = remove_tree(path);
                    }
                }
                std::process::exit(128 + signal);
            });
        }
    });
    Ok(())
}

fn kill_group(group: i32) {
    if let Some(pid) = Pid::from_raw(group) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// A command that the kernel kills when we die.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Where programs are: an ordinary user's path may lack what only root needs.
pub(crate) fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    path.push(":/usr/sbin:/sbin");
    path
}

/// `unshare` into mount and PID namespaces; as an ordinary user, with a user namespace
/// in which that user is root.
pub(crate) fn namespaces() -> Command {
    let mut command = command("unshare");
    command.env("PATH", path());
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user", "--map-auto"]);
    }
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--",
    ]);
    command
}

/// Removes a directory tree; its absence is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let result = match fs::remove_dir_all(path) {
        // What a namespace's other users own takes that namespace's root.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && !geteuid().is_root() => namespaces()
            .args(["rm", "-rf", "--"])
            .arg(path)
            .status()
            .and_then(|_| fs::remove_dir_all(path)),
        result => result,
    };
    match result {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A child and its process group; killed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    pid: i32,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` as the leader of a new process group.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        // Under the lock, so that a signal sees either none or the whole child.
        let mut groups = GROUPS.lock().expect("no thread panics with it");
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        groups.insert(pid);
        Ok(Self {
            child,
            pid,
            status: None,
        })
    }

    /// How the child ended, if it has.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        kill_group(self.pid);
        if self.status.is_none() {
            let _ = self.child.wait();
        }
        if let Ok(mut groups) = GROUPS.lock() {
            groups.remove(&self.pid);
        }
    }
}

/// A directory that goes when dropped, and on a signal.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new directory below `parent`.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?
            .keep();
        if let Ok(mut litter) = LITTER.lock() {
            litter.insert(path.clone());
        }
        let scratch = Self(path);
        // It may become the guest's root directory, which is everybody's.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        Ok(scratch)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Puts it in its final place.
    pub(crate) fn rename(self, to: &Path) -> Result<()> {
        fs::rename(&self.0, to).with_context(|| format!("cannot rename to {}", to.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove_tree(&self.0);
        if let Ok(mut litter) = LITTER.lock() {
            litter.remove(&self.0);
        }
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}
