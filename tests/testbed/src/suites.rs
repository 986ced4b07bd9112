// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `cargo xtask test`: the checks and tests of the host, then the suites of the guest.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::demo::{self, guest, Trouble};
use crate::modules::checkout;
use crate::progress::say;
use crate::report::Report;
use crate::testbed::{Options, Testbed};
use crate::vm::{Hardware, Iommu};

/// How long ours is disturbed, in each direction: 60 s in each scheme.
const DISTURB_SECONDS: &str = "30";

/// The device's order in that suite. The others have what came first done first, so that what
/// fails in one run fails in the next.
const DISTURB_SEED: u64 = 17;

/// The crates that Cargo does not know; their modules come with them.
const DRIVERS: [&str; 5] = [
    "drivers/kernel/lib.rs",
    "drivers/kernel/selftest/selftest.rs",
    "drivers/ib_core/umem_entry.rs",
    "drivers/mlx5_ib/odp_entry.rs",
    "drivers/hmm_dmirror/mirror_entry.rs",
];

/// The checks of the host, which take no machine.
const HOST: &str = "host";

/// A suite of the guest, in a machine of its own.
struct Suite {
    name: &'static str,
    options: Options,
    script: &'static str,
    args: &'static [&'static str],
    /// About three times what it takes.
    limit: Duration,
    /// Stacks on which all must be shown that the demo shows.
    whole: &'static [&'static str],
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

/// A suite of suites.py that ends by itself.
fn suite(name: &'static str, args: &'static [&'static str], minutes: u64) -> Suite {
    Suite {
        name,
        options: Options::default(),
        script: "suites.py",
        args,
        limit: Duration::from_secs(60 * minutes),
        whole: &[],
        violation: None,
    }
}

/// The suites of `cargo xtask test`.
fn suites() -> Vec<Suite> {
    vec![
        Suite {
            script: "demo.py",
            limit: demo::LIMIT,
            whole: &["c", "rust"],
            ..suite("traffic", &[], 0)
        },
        Suite {
            options: Options {
                seed: Some(DISTURB_SEED),
                ..Options::default()
            },
            ..suite("disturb", &["disturb", DISTURB_SECONDS], 30)
        },
        suite("cases", &["cases"], 40),
        Suite {
            whole: &["mixed"],
            ..suite("mixed", &["mixed"], 20)
        },
        Suite {
            options: Options {
                device: false,
                hardware: Hardware {
                    iommu: Iommu::None,
                    ..Hardware::default()
                },
                ..Options::default()
            },
            ..suite("rxe", &["rxe"], 15)
        },
        suite("cycles", &["cycles"], 20),
        Suite {
            options: Options {
                ours: false,
                ..Options::default()
            },
            ..suite("device", &["device"], 15)
        },
        suite("large", &["large"], 15),
        suite(
            "kernel",
            &["kernel", "virtual", "iova", "list", "stretch"],
            3,
        ),
        Suite {
            options: Options {
                hardware: Hardware {
                    iommu: Iommu::None,
                    ..Hardware::default()
                },
                ..Options::default()
            },
            ..suite("kernel-direct", &["kernel", "virtual", "direct"], 3)
        },
        Suite {
            options: Options {
                hmm_tests: true,
                device: false,
                hardware: Hardware {
                    iommu: Iommu::None,
                    ..Hardware::default()
                },
                ..Options::default()
            },
            ..suite("hmm", &["hmm"], 15)
        },
        on_iommu("iommu-lazy", Iommu::IntelLazy),
        on_iommu("iommu-passthrough", Iommu::Passthrough),
        on_iommu("iommu-none", Iommu::None),
        Suite {
            options: Options {
                hardware: Hardware {
                    iommu: Iommu::None,
                    append: vec!["swiotlb=force".to_owned()],
                    ..Hardware::default()
                },
                ..Options::default()
            },
            ..suite("swiotlb", &["swiotlb"], 3)
        },
        suite("zap-clean", &["zap", "clean"], 2),
        Suite {
            violation: Some("access through a translation that was taken back"),
            ..suite("zap-caught", &["zap", "caught"], 2)
        },
    ]
}

/// The suite of one kind of IOMMU; the other suites have [`Iommu::IntelStrict`]. AMD's is not among
/// them: QEMU aborts (`amdvi_notify_iommu`) when the guest unmaps at once what it has mapped page by
/// page, and with that frees a page table.
fn on_iommu(name: &'static str, iommu: Iommu) -> Suite {
    Suite {
        options: Options {
            hardware: Hardware {
                iommu,
                ..Hardware::default()
            },
            ..Options::default()
        },
        ..suite(name, &["iommu"], 12)
    }
}

/// Not among the others: it takes a kernel of its own, and a long time.
fn debug_suite() -> Suite {
    Suite {
        options: Options {
            debug_kernel: true,
            ..Options::default()
        },
        whole: &["rust"],
        ..suite("debug", &["debug"], 120)
    }
}

/// The names of all suites.
pub(crate) fn names() -> Vec<&'static str> {
    let guests = suites().into_iter().map(|suite| suite.name);
    std::iter::once(HOST).chain(guests).collect()
}

/// Runs everything. The last line on standard output is `N passed, N failed`.
pub(crate) fn run(only: &[String]) -> Result<ExitCode> {
    let start = Instant::now();
    let testbed = Testbed::open()?;
    let mut report = Report::default();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);

    let mut passed = 0;
    if wanted(HOST) {
        passed = host(&testbed, &mut report)?;
    }
    for suite in suites().iter().filter(|s| wanted(s.name)) {
        in_guest(&testbed, suite, &mut report);
        if suite.whole.len() > 1 {
            let _ = writeln!(std::io::stderr(), "\n{}", report.table());
        }
    }
    Ok(verdict(&report, passed, start))
}

/// Runs the demo's traffic on ours, under the debug kernel.
pub(crate) fn debug() -> Result<ExitCode> {
    let start = Instant::now();
    let testbed = Testbed::open()?;
    let mut report = Report::default();
    in_guest(&testbed, &debug_suite(), &mut report);
    Ok(verdict(&report, 0, start))
}

/// Runs one suite in a machine of its own.
fn in_guest(testbed: &Testbed, suite: &Suite, report: &mut Report) {
    say(&format!("suite: {}", suite.name));
    let script = format!("/project/tests/testbed/guest/{}", suite.script);
    let mut command = vec!["python3", &script];
    command.extend(suite.args);
    // A suite that cannot even start says so; the others still run.
    let trouble = guest(testbed, &suite.options, &command, suite.limit, report)
        .unwrap_or_else(|error| Some(format!("{error:#}").into()));
    // After a failure a lot more is missing; that would hide it.
    if trouble.is_none() {
        for missing in report.missing(suite.whole) {
            report.add(suite.name, false, &missing);
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

/// Says what failed and how much passed, `passed` of it outside of the report.
fn verdict(report: &Report, passed: usize, start: Instant) -> ExitCode {
    for failure in report.failures() {
        eprintln!("error: {failure}");
    }
    let (reported, failed) = report.count();
    let passed = passed + reported;
    say(&format!("test: {} s", start.elapsed().as_secs()));
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Formatting, lints, the workspace's tests and those of the scripts. Failures go to
/// `report`; returns how many tests of Cargo's passed.
fn host(testbed: &Testbed, report: &mut Report) -> Result<usize> {
    let include = testbed.kernel()?.source().join("include");
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(args)
            .current_dir(checkout())
            .env("MLX5_ODP_REQUIRE_HEADERS", "1")
            .env("MLX5_ODP_KERNEL_HEADERS", &include)
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
    let mut clippy = vec!["clippy", "--locked", "--workspace", "--all-targets"];
    // A newer compiler knows more lints: a reason for us to act, not for a user's failure.
    if env::var_os("CI").is_some() {
        clippy.extend(["--", "-D", "warnings"]);
    }
    check("cargo clippy", &clippy)?;
    let formatted = Command::new("rustfmt")
        .args(["--check", "--edition", "2021"])
        .args(DRIVERS)
        .current_dir(checkout())
        .status()
        .context("cannot start rustfmt")?
        .success();
    report.add(
        "rustfmt drivers",
        formatted,
        if formatted { "" } else { "see above" },
    );
    let warnings = testbed.module_warnings()?;
    report.add("modules without a warning", warnings.is_empty(), &warnings);
    if let Err(error) = testbed.script_tests() {
        report.add("scripts", false, &format!("{error:#}"));
    } else {
        report.add("scripts", true, "");
    }

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
        let suite = suites()
            .into_iter()
            .find(|s| s.violation.is_some())
            .unwrap();
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
    fn names_are_words() {
        let names = names();
        assert!(names.iter().all(|name| !name.contains(' ')));
        assert!(names.contains(&"host") && names.contains(&"zap-caught"));
    }

    #[test]
    fn cargo_results_are_read() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(test_result(line), Some((12, 3)));
        assert_eq!(test_result("test a ... ok"), None);
    }
}
