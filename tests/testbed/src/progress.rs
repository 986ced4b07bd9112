// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Progress on the terminal, the full story in a log.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::fail::Failure;
use crate::proc::{describe, Group};

/// Without a terminal: how often to say that a step still runs.
const STILL: Duration = Duration::from_secs(60);

/// The spinner on the terminal, if there is one.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn show(bar: Option<ProgressBar>) {
    if let Ok(mut current) = BAR.lock() {
        *current = bar;
    }
}

/// A line for the user, beside the spinner if there is one.
pub(crate) fn say(line: &str) {
    let print = || {
        // Nobody is left to be told of an error here.
        let _ = writeln!(std::io::stderr(), "[xtask] {line}");
    };
    let bar = BAR.lock().ok().and_then(|bar| bar.clone());
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// The log of one step, with a spinner that shows its last line.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    title: String,
    bar: Option<ProgressBar>,
    /// Where the last command's output starts.
    start: u64,
}

impl Log {
    /// A new log `DIR/NAME.log`; the previous one is kept as `NAME.log.old`.
    pub(crate) fn create(dir: &Path, name: &str, title: &str) -> Result<Self> {
        let path = dir.join(format!("{name}.log"));
        if path.exists() {
            fs::rename(&path, dir.join(format!("{name}.log.old")))?;
        }
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(title.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        match &bar {
            Some(bar) => show(Some(bar.clone())),
            None => say(title),
        }
        Ok(Self {
            path,
            file,
            title: title.to_owned(),
            bar,
            start: 0,
        })
    }

    /// Takes the spinner away.
    pub(crate) fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            show(None);
        }
    }

    /// Where the log is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the last command has put into the log, whatever its encoding.
    pub(crate) fn last_output(&self) -> Result<String> {
        let mut log = File::open(&self.path)?;
        log.seek(SeekFrom::Start(self.start))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Runs `command` with both outputs into the log.
    pub(crate) fn run(&mut self, what: &str, command: &mut Command) -> Result<()> {
        command.stdout(self.file.try_clone()?);
        self.run_to(what, command)
    }

    /// Runs `command`; returns its standard output, and the log gets the rest.
    pub(crate) fn capture(&mut self, what: &str, command: &mut Command) -> Result<Vec<u8>> {
        let mut out = tempfile::tempfile()?;
        command.stdout(out.try_clone()?);
        self.run_to(what, command)?;
        let mut bytes = Vec::new();
        out.rewind()?;
        out.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn run_to(&mut self, what: &str, command: &mut Command) -> Result<()> {
        writeln!(self.file, "+ {what}: {command:?}")?;
        self.start = self.file.seek(SeekFrom::End(0))?;
        command.stdin(Stdio::null()).stderr(self.file.try_clone()?);
        let mut child = Group::spawn(command)?;
        let mut said = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if let Some(bar) = &self.bar {
                bar.set_message(last_line(&self.path));
            } else if said.elapsed() >= STILL {
                said = Instant::now();
                say(&format!("{}: {}", self.title, last_line(&self.path)));
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        if status.success() {
            return Ok(());
        }
        let said = self.last_output()?;
        self.done();
        Err(Failure::Command {
            what: what.to_owned(),
            status: describe(status),
            detail: telling_line(&said),
            log: self.path.clone(),
        }
        .into())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.done();
    }
}

/// The last whole line of a file that is being written.
fn last_line(path: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(end.saturating_sub(2048)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    tail()
        .unwrap_or_default()
        .lines()
        .rev()
        .map(str::trim)
        .find(|l| !l.is_empty())
        .unwrap_or_default()
        .to_owned()
}

/// The line of a failed command's output that says most: the first error of a
/// compiler or of apt, else the last line.
pub(crate) fn telling_line(text: &str) -> String {
    const MARKS: [&str; 6] = ["error:", "error[", "E: ", "Error ", "ERROR", "fatal:"];
    text.lines()
        .find(|l| MARKS.iter().any(|m| l.contains(m)))
        .or_else(|| text.lines().rev().find(|l| !l.trim().is_empty()))
        .unwrap_or("no output")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_in_any_encoding_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::create(dir.path(), "step", "a step").unwrap();
        log.run(
            "first",
            Command::new("sh").args(["-c", "echo error: of the first"]),
        )
        .unwrap();
        let script = r"printf 'error: caf\351\n'; exit 3";
        let failed = log.run("second", Command::new("sh").args(["-c", script]));
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("error: caf\u{fffd}"), "{text}");
        assert!(!log.last_output().unwrap().contains("first"));
        let out = log.capture(
            "third",
            Command::new("sh").args(["-c", "echo out; echo err >&2"]),
        );
        assert_eq!(out.unwrap(), b"out\n");
        assert_eq!(log.last_output().unwrap(), "err\n");
    }

    #[test]
    fn telling_line_prefers_the_first_error() {
        let text =
            "  CC a.o\na.c:1: error: no such thing\nmake: *** [a.o] Error 1\nmake: *** Error 2\n";
        assert_eq!(telling_line(text), "a.c:1: error: no such thing");
        assert_eq!(telling_line("one\ntwo\n\n"), "two");
        assert_eq!(telling_line(""), "no output");
    }
}
