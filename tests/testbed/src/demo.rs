// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `cargo xtask demo`: the distribution's driver and ours, in both schemes, in one boot.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::fail::Failure;
use crate::progress::say;
use crate::report::{Lines, Report};
use crate::testbed::{Options, Testbed};
use crate::vm::{self, Job, Machine};

/// How long the demo's tests may take in the guest: many times what they take on two idle cores. A
/// guest that gives no sign of life is noticed by itself.
pub(crate) const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What went wrong with a run as such.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// In one or more lines.
    pub(crate) text: String,
    /// The violation, if the device's strict mode ended the run.
    pub(crate) violation: Option<String>,
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self {
            text,
            violation: None,
        }
    }
}

/// Runs `job`; each line of its output goes to `take` as it comes, as JSON. Returns the
/// exit status.
pub(crate) fn stream(machine: Machine, job: Job, mut take: impl FnMut(Value)) -> Result<i32> {
    let (sender, lines) = mpsc::channel();
    let run = std::thread::spawn(move || {
        vm::run(
            machine,
            &job,
            Box::new(Lines::new(sender)),
            Box::new(std::io::stderr()),
        )
    });
    lines.into_iter().for_each(&mut take);
    run.join().expect("the run does not panic")
}

/// Runs `command` in a new machine; its report is added to `report`.
pub(crate) fn guest(
    testbed: &Testbed,
    options: &Options,
    command: &[&str],
    timeout: Duration,
    report: &mut Report,
) -> Result<Option<Trouble>> {
    let machine = testbed.machine(options)?;
    let job = Job {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        on_terminal: false,
        keep_going: false,
        stack: None,
        timeout,
    };
    let ended = stream(machine, job, |line| {
        if let Some(text) = report.take(line) {
            say(&text);
        }
    });
    let during = report.open.take();
    Ok(match ended {
        Ok(0) => None,
        Ok(status) => Some(Trouble::from(format!(
            "{} ended with status {status}{}",
            command[0],
            during.map_or_else(String::new, |test| format!(" during {test}")),
        ))),
        Err(error) => Some(Trouble {
            violation: match error.downcast_ref() {
                Some(Failure::Violation { detail, .. }) => Some(detail.clone()),
                _ => None,
            },
            text: match during {
                Some(test) => format!("during {test}: {error:#}"),
                None => format!("{error:#}"),
            },
        }),
    })
}

/// The demo; `json` is where its figures go, besides the table.
pub(crate) fn run(json: Option<&Path>) -> Result<ExitCode> {
    let start = Instant::now();
    // Before minutes are spent on figures that cannot be written.
    let create = |path: &Path| {
        File::create(path).with_context(|| format!("cannot write {}", path.display()))
    };
    let json = json.map(create).transpose()?;
    let testbed = Testbed::open()?;
    let mut report = Report::default();
    let trouble = guest(
        &testbed,
        &Options::default(),
        &["python3", "/project/tests/testbed/guest/demo.py"],
        LIMIT,
        &mut report,
    )?;

    // Who reads no more of it gets the rest of the verdict all the same.
    let _ = writeln!(
        std::io::stdout(),
        "\n{}\n{}",
        report.tests(),
        report.table()
    );
    let mut failures = report.failures();
    failures.extend(trouble.map(|trouble| trouble.text));
    // After a failure a lot more is missing; that would hide it.
    if failures.is_empty() {
        failures = report.missing(&["c", "rust"]);
    }
    if let Some(mut json) = json {
        let mut value = report.json();
        value["kernel"] = testbed.release().into();
        value["failures"] = failures.clone().into();
        writeln!(json, "{}", serde_json::to_string_pretty(&value)?)?;
    }
    say(&format!("demo: {} s", start.elapsed().as_secs()));
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
