// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The software ConnectX of one run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Result};

use super::qemu::Link;
use super::{Machine, Run};
use crate::fail::Failure;
use crate::proc::{self, describe, Group};

/// What the device model exits with after a strict violation.
const VIOLATION: i32 = 3;

/// The device model's process.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) process: Group,
    /// For QEMU to connect to.
    pub(super) socket: PathBuf,
    control: PathBuf,
    log: PathBuf,
    stderr: PathBuf,
}

impl Model {
    /// Starts it, and waits for its sockets.
    pub(super) fn start(program: &Path, machine: &Machine, dir: &Path) -> Result<Self> {
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
        if let Some(seed) = machine.seed {
            command.args(["--seed", &seed.to_string()]);
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

    /// The guest's way to the control port.
    pub(super) fn link(&self) -> Link {
        Link {
            name: "connectx.control".to_owned(),
            socket: self.control.clone(),
        }
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
    pub(super) fn end(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let end = self.process.try_wait()?;
            if end.is_some() || start.elapsed() >= patience {
                return Ok(end);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it died of.
    pub(super) fn verdict(&self, status: ExitStatus, run: &Run) -> anyhow::Error {
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
    pub(super) fn finish(mut self, run: &Run) -> Result<()> {
        match self.end(Duration::from_secs(20))? {
            None => bail!("the device model does not end with its guest"),
            Some(end) if !end.success() => Err(self.verdict(end, run)),
            Some(_) => Ok(()),
        }
    }
}
