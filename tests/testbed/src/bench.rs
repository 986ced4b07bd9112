// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `cargo xtask bench`: the distribution's C driver beside ours, in identical guests.
//!
//! A line is a program of measured sections (`tests/conformance/odp_bench.c`), run on one
//! or more rigs; a figure is one number of a section, a row of the table.

mod figure;
mod guest;
mod lines;
mod profile;
mod result;
mod rig;
mod section;
mod table;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use clap::builder::PossibleValuesParser;
use serde_json::{json, Value};

use self::figure::Kind;
use self::guest::Measured;
use self::lines::{Line, LINES};
use self::result::Row;
use self::rig::Rig;
use self::section::Section;
use crate::modules::checkout;
use crate::progress::say;
use crate::testbed::Testbed;

/// The committed figures, in the checkout.
const FIGURES: &str = "tests/testbed/bench.json";

/// Where their table stands, between these marks.
const DOCUMENT: &str = "tests/testbed/BENCH.md";
const MARKS: [&str; 2] = ["<!-- generated: table -->\n", "<!-- end -->\n"];

/// What `cargo xtask bench` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these lines.
    #[arg(value_name = "LINE", value_parser = PossibleValuesParser::new(lines::names()))]
    only: Vec<String>,
    /// Only on these rigs.
    #[arg(long, value_name = "RIG", value_parser = PossibleValuesParser::new(Rig::ALL.map(Rig::name)))]
    on: Vec<String>,
    /// List the lines: what each measures, on what.
    #[arg(long)]
    lines: bool,
    /// Write every figure and every section to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the committed figures; fail on a ratio that is worse.
    #[arg(long, conflicts_with = "save")]
    check: bool,
    /// Make what was measured the committed figures.
    #[arg(long)]
    save: bool,
    /// Show the N symbols of each section in which the drivers differ most.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "25")]
    symbols: Option<usize>,
    /// How often each section is measured; figures are the median.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

/// Both drivers' sections on one rig.
struct Beside {
    rig: Rig,
    c: Vec<Section>,
    ours: Vec<Section>,
}

/// The bench.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.lines {
        let _ = write!(std::io::stdout(), "{}", list());
        return Ok(ExitCode::SUCCESS);
    }
    let start = Instant::now();
    // Before minutes are spent on figures that cannot be written or compared.
    let json = args
        .json
        .as_deref()
        .map(|path| {
            fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))
        })
        .transpose()?;
    let committed = read_figures(&checkout().join(FIGURES))?;
    if args.check && committed.is_empty() {
        bail!("there are no committed figures: {FIGURES}");
    }
    let testbed = Testbed::open()?;
    let wanted: Vec<_> = LINES
        .iter()
        .filter(|line| args.only.is_empty() || args.only.iter().any(|name| name == line.name))
        .collect();

    let rigs: Vec<_> = Rig::ALL
        .into_iter()
        .filter(|rig| args.on.is_empty() || args.on.iter().any(|name| name == rig.name()))
        .collect();

    let (sides, mut failures) = measure_all(&testbed, &rigs, &wanted, args.rounds);
    let mut rows = rows(&sides, &wanted);
    table::sort(&mut rows);
    // That the C driver takes for ever is its figure (P8).
    let missing = rows
        .iter()
        .filter(|row| row.ours.is_none() || row.c.is_none() && row.kind != Kind::Time);
    failures
        .extend(missing.map(|row| format!("{} ({}): {}: no figure", row.line, row.rig, row.what)));

    let mut out = std::io::stdout();
    if let Some(top) = args.symbols {
        for side in &sides {
            let _ = writeln!(
                out,
                "{}",
                table::symbols_beside(side.rig, &side.c, &side.ours, top)
            );
        }
    }
    let _ = writeln!(out, "\n{}", table::table(&rows));
    if let Some(mut json) = json {
        let value = everything(&testbed, &rows, &sides, &failures);
        writeln!(json, "{}", serde_json::to_string_pretty(&value)?)?;
    }
    if args.check {
        failures.extend(result::compare(&rows, &committed));
    }
    if args.save {
        if failures.is_empty() {
            save(&testbed, result::merge(&rows, committed))?;
        } else {
            failures.push("nothing was saved".to_owned());
        }
    }
    say(&format!("bench: {} s", start.elapsed().as_secs()));
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What `--lines` shows.
fn list() -> String {
    let mut text = String::new();
    for line in LINES {
        let rigs: Vec<_> = line.rigs.iter().map(|rig| rig.name()).collect();
        text += &format!(
            "{:<8} {}\n         on: {}\n",
            line.name,
            line.what,
            rigs.join("; ")
        );
    }
    text
}

/// Every wanted line on each of its rigs among `rigs`, the C driver and then ours; what went wrong.
fn measure_all(
    testbed: &Testbed,
    rigs: &[Rig],
    wanted: &[&Line],
    rounds: u32,
) -> (Vec<Beside>, Vec<String>) {
    let (mut sides, mut failures) = (Vec::new(), Vec::new());
    for &rig in rigs {
        let here: Vec<_> = wanted
            .iter()
            .copied()
            .filter(|line| line.rigs.contains(&rig))
            .collect();
        if here.is_empty() {
            continue;
        }
        let mut one = |ours| {
            let measured = guest::measure(testbed, rig, ours, &here, rounds);
            let Measured { sections, troubles } = measured.unwrap_or_else(|error| Measured {
                troubles: vec![format!("{error:#}")],
                ..Measured::default()
            });
            let driver = if ours { "ours" } else { "C" };
            let place = |text| format!("{driver}, {}: {text}", rig.name());
            failures.extend(troubles.into_iter().map(place));
            sections
        };
        let c = one(false);
        let ours = one(true);
        sides.push(Beside { rig, c, ours });
    }
    (sides, failures)
}

/// The rows of what was measured.
fn rows(sides: &[Beside], wanted: &[&Line]) -> Vec<Row> {
    let mut rows = Vec::new();
    for side in sides {
        for line in wanted.iter().filter(|line| line.rigs.contains(&side.rig)) {
            rows.extend(
                line.rows()
                    .map(|figure| Row::new(line, side.rig, figure, &side.c, &side.ours)),
            );
        }
    }
    rows
}

/// Rows and sections as JSON.
fn everything(testbed: &Testbed, rows: &[Row], sides: &[Beside], failures: &[String]) -> Value {
    let section = |rig: Rig, driver: &str, section: &Section| {
        let profile = section.profile.as_ref().map(|profile| {
            json!({
                "user": profile.user,
                "idle": profile.idle,
                "kernel": profile.kernel,
                "modules": profile.modules,
            })
        });
        json!({
            "rig": rig.name(),
            "driver": driver,
            "line": section.line,
            "section": section.name,
            "numbers": section.numbers,
            "instructions": profile,
        })
    };
    let sections: Vec<_> = sides
        .iter()
        .flat_map(|side| {
            let c = side.c.iter().map(move |s| section(side.rig, "c", s));
            c.chain(side.ours.iter().map(move |s| section(side.rig, "rust", s)))
        })
        .collect();
    json!({
        "kernel": testbed.release(),
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "sections": sections,
        "failures": failures,
    })
}

/// The committed rows; none if there is no such file.
fn read_figures(path: &Path) -> Result<Vec<Row>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let broken = || format!("{} is damaged", path.display());
    let value: Value = serde_json::from_str(&fs::read_to_string(path)?).with_context(broken)?;
    let rows = value["rows"].as_array().with_context(broken)?;
    let rows: Option<Vec<_>> = rows.iter().map(Row::parse).collect();
    rows.with_context(broken)
}

/// Writes the figures and their table into the checkout.
fn save(testbed: &Testbed, mut rows: Vec<Row>) -> Result<()> {
    table::sort(&mut rows);
    let value = json!({
        "kernel": testbed.release(),
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&value)? + "\n";
    fs::write(checkout().join(FIGURES), text)?;
    let document = checkout().join(DOCUMENT);
    let text = fs::read_to_string(&document).with_context(|| document.display().to_string())?;
    let text = with_table(&text, &table::table(&rows))
        .with_context(|| format!("{DOCUMENT} has no place for the table"))?;
    fs::write(document, text)?;
    say(&format!("saved: {FIGURES}, {DOCUMENT}"));
    Ok(())
}

/// `text` with the table between the marks.
fn with_table(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some([before, MARKS[0], table, MARKS[1], after].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_its_place() {
        let text = format!("a\n{}old\n{}b\n", MARKS[0], MARKS[1]);
        let new = with_table(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{}new\n{}b\n", MARKS[0], MARKS[1]));
        assert!(with_table("a\n", "new\n").is_none());
        let document = fs::read_to_string(checkout().join(DOCUMENT)).unwrap();
        assert!(with_table(&document, "").is_some());
    }

    #[test]
    fn committed_figures_are_rows_of_lines_that_exist() {
        for row in read_figures(&checkout().join(FIGURES)).unwrap() {
            let mut all = LINES.iter();
            let line = all.find(|line| line.name == row.line);
            let line = line.expect("a line that exists");
            assert!(line.rows().any(|figure| figure.what == row.what), "{row:?}");
            assert!(line.rigs.iter().any(|rig| rig.name() == row.rig), "{row:?}");
        }
    }

    #[test]
    fn damaged_figures_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench.json");
        assert!(read_figures(&path).unwrap().is_empty());
        for text in ["", "{}", "{\"rows\": [{\"line\": \"P1\"}]}"] {
            fs::write(&path, text).unwrap();
            assert!(read_figures(&path).is_err(), "{text}");
        }
    }
}
