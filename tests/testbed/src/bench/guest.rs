// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One driver's lines on one rig: a guest, its report, its profiles.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use serde_json::Value;

use super::lines::Line;
use super::profile::{Profile, Symbols};
use super::rig::Rig;
use super::section::Section;
use crate::demo;
use crate::fail::Failure;
use crate::proc::Scratch;
use crate::progress::say;
use crate::testbed::Testbed;
use crate::vm::{Job, Plugin};

/// How often a guest that froze is started anew.
const TRIES: u32 = 3;

/// How long all lines of a rig may take: three times what they do on a busy host.
const LIMIT: Duration = Duration::from_secs(90 * 60);

/// What one guest brought.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Every round of every section.
    pub(crate) sections: Vec<Section>,
    /// What went wrong, a line each.
    pub(crate) troubles: Vec<String>,
}

/// What the guest reports, as it comes.
#[derive(Debug, Default)]
struct Report {
    measured: Measured,
    symbols: Symbols,
    /// The line that runs.
    open: Option<String>,
}

impl Report {
    fn take(&mut self, value: &Value) {
        let line = || value["line"].as_str().unwrap_or("a line").to_owned();
        match value["event"].as_str() {
            Some("start") => {
                say(&format!("  {}", line()));
                self.open = Some(line());
            }
            Some("end") => {
                self.open = None;
                if value["status"] != 0 {
                    self.drop_line(&line(), &format!("odp_bench: status {}", value["status"]));
                }
            }
            Some(_) => {
                let text = value["text"].as_str().unwrap_or_default();
                if !self.symbols.add(text) && !text.is_empty() {
                    say(text);
                }
            }
            None => match Section::parse(value) {
                Ok(section) => self.measured.sections.push(section),
                Err(error) => self.trouble(format!("{error:#}: {value}")),
            },
        }
    }

    fn trouble(&mut self, text: String) {
        self.measured.troubles.push(text);
    }

    /// A line that failed has no figures: its rounds are not all there.
    fn drop_line(&mut self, line: &str, why: &str) {
        self.trouble(format!("{line}: {why}"));
        // Their profiles are still to be counted.
        for section in &mut self.measured.sections {
            if section.line == line {
                section.name = String::new();
            }
        }
    }
}

/// Runs `lines` on `rig`, on ours or the C driver. A guest that freezes brings no figure:
/// all of it is measured again.
pub(crate) fn measure(
    testbed: &Testbed,
    rig: Rig,
    ours: bool,
    lines: &[&Line],
    rounds: u32,
) -> Result<Measured> {
    let driver = if ours { "ours" } else { "C" };
    for attempt in 1.. {
        say(&format!("bench: {driver}, {}", rig.name()));
        match once(testbed, rig, ours, lines, rounds) {
            Err(error) if attempt < TRIES && frozen(&error) => say(&format!(
                "bench: {driver}, {}: froze, measuring again: {error}",
                rig.name()
            )),
            other => return other,
        }
    }
    unreachable!("the loop ends by returning")
}

fn frozen(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Failure::Hang { .. }))
}

fn once(testbed: &Testbed, rig: Rig, ours: bool, lines: &[&Line], rounds: u32) -> Result<Measured> {
    let scratch = Scratch::new(&std::env::temp_dir(), "mlx5-odp.bench.")?;
    let prefix = scratch.path().join("profile");
    let mut options = rig.options(ours);
    let _held;
    if rig.counted() {
        let plugin = testbed.plugin()?;
        options.hardware.qemu_plugin = Some(Plugin {
            file: plugin.path().join(crate::testbed::PLUGIN),
            options: format!(",out={}", prefix.display()),
        });
        _held = plugin;
    }
    let mut command = vec![
        "sh".to_owned(),
        "/project/tests/testbed/guest/bench.sh".to_owned(),
        rounds.to_string(),
        u32::from(rig.counted()).to_string(),
    ];
    command.extend(lines.iter().map(|line| line.name.to_owned()));
    let job = Job {
        command,
        stack: Some(if ours { "rust" } else { "c" }),
        timeout: LIMIT,
        on_terminal: false,
        keep_going: false,
    };
    let mut report = Report::default();
    let ended = demo::stream(testbed.machine(&options)?, job, |line| report.take(&line));
    let status = match (ended, &report.open) {
        (Err(error), Some(line)) => return Err(error.context(format!("during {line}"))),
        (ended, _) => ended?,
    };
    if status != 0 {
        report.trouble(format!("bench.sh ended with status {status}"));
    }
    let Report {
        mut measured,
        mut symbols,
        ..
    } = report;
    if rig.counted() {
        symbols.sort()?;
        read_profiles(&prefix, &symbols, &mut measured.sections)?;
    }
    measured.sections.retain(|section| !section.name.is_empty());
    Ok(measured)
}

/// Gives each section its profile. The plugin and the guest number them alike, or no
/// number means anything.
fn read_profiles(prefix: &Path, symbols: &Symbols, sections: &mut [Section]) -> Result<()> {
    let path = |index: u64| prefix.with_extension(index.to_string());
    let mut next = 0;
    for section in sections.iter_mut().filter(|s| s.index.is_some()) {
        let index = section.index.unwrap_or_default();
        if index != next {
            bail!("profile {next} is due, the guest names {index}");
        }
        next += 1;
        let path = path(index);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        section.profile = Some(Profile::read(&text, symbols)?);
    }
    if path(next).exists() {
        bail!("there are more than the {next} profiles that the guest names");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn section(line: &str, profile: u64) -> Value {
        json!({ "test": line, "section": "s", "n": 1, "profile": profile })
    }

    fn symbols() -> Symbols {
        let mut symbols = Symbols::default();
        symbols.add("ffffffff81000000 T _text");
        symbols.sort().unwrap();
        symbols
    }

    #[test]
    fn a_line_that_fails_has_no_figures() {
        let mut report = Report::default();
        report.take(&json!({ "event": "start", "line": "P1" }));
        report.take(&section("P1", 0));
        report.take(&json!({ "event": "end", "line": "P1", "status": 2 }));
        report.take(&json!({ "event": "start", "line": "P4" }));
        report.take(&section("P4", 1));
        assert_eq!(report.open.as_deref(), Some("P4"));
        report.take(&json!({ "event": "end", "line": "P4", "status": 0 }));
        assert_eq!(report.open, None);
        assert_eq!(report.measured.troubles, ["P1: odp_bench: status 2"]);
        let named: Vec<_> = report.measured.sections.iter().map(|s| &*s.name).collect();
        assert_eq!(named, ["", "s"]);
    }

    #[test]
    fn profiles_and_sections_are_numbered_alike() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("profile");
        let read = |sections: &[Value]| {
            let mut sections: Vec<_> = sections
                .iter()
                .map(|value| Section::parse(value).unwrap())
                .collect();
            read_profiles(&prefix, &symbols(), &mut sections)?;
            anyhow::Ok(sections)
        };
        for index in 0..2 {
            fs::write(
                dir.path().join(format!("profile.{index}")),
                format!("ffffffff81000000 {index}5\n"),
            )
            .unwrap();
        }
        let sections = read(&[section("P1", 0), section("P1", 1)]).unwrap();
        assert_eq!(sections[1].profile.as_ref().unwrap().kernel, 15);
        assert!(read(&[section("P1", 0)]).is_err());
        assert!(read(&[section("P1", 1)]).is_err());
        assert!(read(&[section("P1", 0), section("P1", 1), section("P1", 2)]).is_err());
    }
}
