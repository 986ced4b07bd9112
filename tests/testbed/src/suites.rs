// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `cargo xtask test`: the checks and tests of the host, then the suites of the guest.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::demo::{guest, Trouble, MACHINE};
use crate::modules::checkout;
use crate::progress::say;
use crate::report::Report;
use crate::testbed::{Options, Testbed};

/// How long ours is disturbed, in each direction and scheme.
const DISTURB_SECONDS: &str = "30";

/// A suite of the guest, in a machine of its own.
struct Suite {
    name: &'static str,
    options: Options,
    script: &'static str,
    args: &'static [&'static str],
    minutes: u64,
    /// The violation with which the device's strict mode must end the run; none for a
    /// suite that ends by itself.
    violation: Option<&'static str>,
}

impl Suite {
    /// Whether a run that ended with `trouble` is a success; what to say of it.
    fn judge(&self, trouble: Option<Trouble>) -> Result<String, String> {
        match (self.violation, trouble) {
            (None, None) => Ok(String::new()),
            (None, Some(trouble)) => Err(trouble.text),
            (Some(_), None) => Err("the device's strict mode did not end the run".to_owned()),
            (Some(due), Some(trouble)) => match trouble.violation {
                Some(seen) if seen.contains(due) => Ok(format!("the device ended the run: {seen}")),
                _ => Err(format!(
                    "{due:?} should have ended the run: {}",
                    trouble.text
                )),
            },
        }
    }
}

const SUITES: &[Suite] = &[
    Suite {
        name: "traffic",
        options: MACHINE,
        script: "demo.py",
        args: &[DISTURB_SECONDS],
        minutes: 25,
        violation: None,
    },
    Suite {
        name: "bad input",
        options: MACHINE,
        script: "suites.py",
        args: &["input"],
        minutes: 15,
        violation: None,
    },
    Suite {
        name: "mixed",
        options: MACHINE,
        script: "suites.py",
        args: &["mixed"],
        minutes: 15,
        violation: None,
    },
    Suite {
        name: "rxe",
        options: Options {
            device: false,
            iommu: false,
            ..MACHINE
        },
        script: "suites.py",
        args: &["rxe"],
        minutes: 10,
        violation: None,
    },
    Suite {
        name: "cycles",
        options: MACHINE,
        script: "suites.py",
        args: &["cycles"],
        minutes: 20,
        violation: None,
    },
    Suite {
        name: "zap clean",
        options: MACHINE,
        script: "suites.py",
        args: &["zap", "clean"],
        minutes: 5,
        violation: None,
    },
    Suite {
        name: "zap caught",
        options: Options {
            ours: false,
            skip_zap: true,
            ..MACHINE
        },
        script: "suites.py",
        args: &["zap", "caught"],
        minutes: 5,
        violation: Some("access through a translation that was taken back"),
    },
];

/// Runs everything. The last line on standard output is `N passed, N failed`.
pub(crate) fn run(only: &[String]) -> Result<ExitCode> {
    let start = Instant::now();
    let testbed = Testbed::open()?;
    let mut report = Report::default();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);

    let mut host_passed = 0;
    if wanted("host") {
        let include = testbed.kernel()?.source().join("include");
        host_passed = host(&include, &mut report)?;
    }
    for suite in SUITES.iter().filter(|s| wanted(s.name)) {
        say(&format!("suite: {}", suite.name));
        let script = format!("/project/tests/testbed/guest/{}", suite.script);
        let mut command = vec!["python3", &script];
        command.extend(suite.args);
        let limit = Duration::from_secs(60 * suite.minutes);
        // A suite that cannot even start says so; the others still run.
        let trouble = guest(&testbed, &suite.options, &command, limit, &mut report)
            .unwrap_or_else(|error| Some(format!("{error:#}").into()));
        if suite.name == "traffic" {
            // The demo's tests: the same table, the same demands.
            eprintln!("\n{}", report.table());
            if trouble.is_none() {
                for missing in report.missing() {
                    report.add("traffic", false, &missing);
                }
            }
        }
        let (ok, detail) = match suite.judge(trouble) {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        report.add(&format!("suite {}", suite.name), ok, &detail);
        if !detail.is_empty() {
            let verdict = if ok { "ok" } else { "FAILED" };
            say(&format!("suite {}: {verdict}: {detail}", suite.name));
        }
    }

    for failure in report.failures() {
        eprintln!("error: {failure}");
    }
    let (passed, failed) = report.count();
    say(&format!("test: {} s", start.elapsed().as_secs()));
    println!("{} passed, {failed} failed", passed + host_passed);
    Ok(if failed == 0 && passed + host_passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Formatting, lints and the workspace's tests. Failures go to `report`; returns how many
/// tests of Cargo's passed.
fn host(include: &Path, report: &mut Report) -> Result<usize> {
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(args)
            .current_dir(checkout())
            .env("MLX5_ODP_REQUIRE_HEADERS", "1")
            .env("MLX5_ODP_KERNEL_HEADERS", include)
            .stdin(Stdio::null());
        command
    };
    let mut check = |name: &str, args: &[&str]| -> Result<()> {
        say(name);
        let ok = cargo(args)
            .status()
            .context("cannot start cargo")?
            .success();
        report.add(name, ok, if ok { "" } else { "see above" });
        Ok(())
    };
    check("cargo fmt", &["fmt", "--all", "--check"])?;
    check(
        "cargo clippy",
        &[
            "clippy",
            "--locked",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )?;

    say("cargo test");
    let mut child = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (mut passed, mut failed) = (0, 0);
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line?;
            if let Some((p, f)) = test_result(&line) {
                passed += p;
                failed += f;
            }
            eprintln!("{line}");
        }
    }
    let ok = child.wait()?.success();
    if failed > 0 || !ok {
        report.add("cargo test", false, &format!("{failed} tests failed"));
    }
    Ok(passed)
}

/// The figures of a line `test result: ok. 3 passed; 0 failed; ...`.
fn test_result(line: &str) -> Option<(usize, usize)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| -> Option<usize> {
        let before = rest.split(word).next()?;
        before
            .split([' ', ';'])
            .rfind(|w| !w.is_empty())?
            .parse()
            .ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_due_violation_will_do() {
        let suite = SUITES.iter().find(|s| s.violation.is_some()).unwrap();
        let due = suite.violation.unwrap();
        let ended_by = |violation: Option<String>| {
            suite.judge(Some(Trouble {
                text: "strict violation".to_owned(),
                violation,
            }))
        };
        assert!(ended_by(Some(format!("connectx: {due}: QP 7"))).is_ok());
        assert!(ended_by(Some("connectx: CQ 3 overran".to_owned())).is_err());
        assert!(ended_by(None).is_err());
        assert!(suite.judge(None).is_err());
    }

    #[test]
    fn cargo_results_are_read() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(test_result(line), Some((12, 3)));
        assert_eq!(test_result("test a ... ok"), None);
    }
}
