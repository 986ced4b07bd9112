// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `cargo xtask coverage`: which branches of `hmm-abi` and `mlx5-odp` no test takes.
//!
//! `cargo llvm-cov` instruments, runs and exports. What is counted is of the source, not of the
//! code: a branch of a generic function is taken if any of its instances takes it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;

use crate::modules::checkout;
use crate::progress::say;

/// The crates that are measured.
const MEASURED: [&str; 2] = ["hmm-abi", "mlx5-odp"];

/// What runs them besides their own tests: ten thousand seeds.
const SIMULATION: &str = "sim";

/// The share of branches, and of regions, that has to be taken, in percent.
const LEAST: usize = 95;

/// Branches that are not taken, and why, in the checkout.
const REASONS: &str = "tests/testbed/untaken.json";

/// Where something stands in a file, from and to: line and column, both from 1 on.
type Place = [usize; 4];

/// What `llvm-cov export` says.
#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    functions: Vec<Function>,
}

/// An instance of a function.
#[derive(Deserialize)]
struct Function {
    filenames: Vec<String>,
    /// Place, count, number of the file, two more.
    regions: Vec<[u64; 8]>,
    /// Place, count if it holds and if not, number of the file, two more.
    branches: Vec<[u64; 9]>,
}

/// The kind of a region that is code.
const CODE: u64 = 0;

/// A branch that is not taken, as [`REASONS`] has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Branch {
    /// Below the checkout.
    file: String,
    /// The condition, as it is written.
    condition: String,
    /// What it never is.
    never: bool,
}

/// Why one is not.
#[derive(Debug, Deserialize)]
struct Reason {
    #[serde(flatten)]
    branch: Branch,
    why: String,
}

/// What was taken of a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct File {
    /// How often each condition held, and how often it did not.
    branches: BTreeMap<Place, [u64; 2]>,
    /// How often each region was run.
    regions: BTreeMap<Place, u64>,
}

impl File {
    /// Branches that were taken, and all.
    fn branches_taken(&self) -> Share {
        Share::of(self.branches.values().flatten())
    }

    /// Regions that were run, and all.
    fn regions_run(&self) -> Share {
        Share::of(self.regions.values())
    }
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    taken: usize,
    all: usize,
}

impl Share {
    /// Of counts, those that are not 0.
    fn of<'a>(counts: impl Iterator<Item = &'a u64>) -> Self {
        let mut share = Self::default();
        for &count in counts {
            share.taken += usize::from(count > 0);
            share.all += 1;
        }
        share
    }

    fn add(&mut self, other: Self) {
        self.taken += other.taken;
        self.all += other.all;
    }

    fn is_enough(self) -> bool {
        self.taken * 100 >= self.all * LEAST
    }

    /// In tenths of a percent, rounded down.
    fn text(self) -> String {
        let tenths = self.taken * 1000 / self.all.max(1);
        let (whole, part) = (tenths / 10, tenths % 10);
        format!("{} of {} ({whole}.{part} %)", self.taken, self.all)
    }
}

/// The files of the measured crates, by their paths below `checkout`; what is tests in them is left
/// out.
fn files(export: &Export, checkout: &Path) -> Result<BTreeMap<String, File>> {
    let mut files = BTreeMap::<String, File>::new();
    for function in export.data.iter().flat_map(|data| &data.functions) {
        let name_of = |number: u64| -> Result<Option<String>> {
            let name = function.filenames.get(usize::try_from(number)?);
            let name = name.context("llvm-cov: a function without its file")?;
            Ok(measured(Path::new(name), checkout))
        };
        for &[a, b, c, d, count, number, _, kind] in &function.regions {
            if let (CODE, Some(name)) = (kind, name_of(number)?) {
                let regions = &mut files.entry(name).or_default().regions;
                *regions.entry(place([a, b, c, d])?).or_default() += count;
            }
        }
        for &[a, b, c, d, holds, fails, number, _, _] in &function.branches {
            if let Some(name) = name_of(number)? {
                let branches = &mut files.entry(name).or_default().branches;
                let counts = branches.entry(place([a, b, c, d])?).or_default();
                counts[0] += holds;
                counts[1] += fails;
            }
        }
    }
    for (name, file) in &mut files {
        let text = fs::read_to_string(checkout.join(name))?;
        let end = end_of_code(&text);
        file.branches.retain(|place, _| place[0] < end);
        file.regions.retain(|place, _| place[0] < end);
    }
    Ok(files)
}

/// The path below `checkout` of a file of the measured crates.
fn measured(path: &Path, checkout: &Path) -> Option<String> {
    let path = path.strip_prefix(checkout).ok()?;
    let is_measured = MEASURED
        .iter()
        .any(|m| path.starts_with(format!("{m}/src")));
    is_measured.then(|| path.to_string_lossy().into_owned())
}

fn place(from: [u64; 4]) -> Result<Place> {
    let mut place = Place::default();
    for (to, from) in place.iter_mut().zip(from) {
        *to = usize::try_from(from)?;
    }
    Ok(place)
}

/// The line of a file's tests, which stand at its end.
fn end_of_code(text: &str) -> usize {
    let line = text.lines().position(|line| line == "#[cfg(test)]");
    line.map_or(usize::MAX, |line| line + 1)
}

/// What stands at a place of a text, on one line.
fn text_at(text: &str, [first, from, last, to]: Place) -> String {
    let mut words = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if (first..=last).contains(&number) {
            let start = if number == first { from - 1 } else { 0 };
            let end = if number == last { to - 1 } else { line.len() };
            words.extend(line.get(start..end).unwrap_or(line).split_whitespace());
        }
    }
    words.join(" ")
}

/// The branches that were not taken, and where they stand.
fn untaken(files: &BTreeMap<String, File>, checkout: &Path) -> Result<Vec<(Branch, usize)>> {
    let mut untaken = Vec::new();
    for (name, file) in files {
        let text = fs::read_to_string(checkout.join(name))?;
        for (&place, counts) in &file.branches {
            for (count, never) in counts.iter().zip([true, false]) {
                if *count == 0 {
                    let branch = Branch {
                        file: name.clone(),
                        condition: text_at(&text, place),
                        never,
                    };
                    untaken.push((branch, place[0]));
                }
            }
        }
    }
    Ok(untaken)
}

/// Runs the tests, and what they have taken comes back.
fn measure(checkout: &Path) -> Result<Export> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("export.json");
    let mut command = Command::new(cargo);
    command
        .current_dir(checkout)
        .args(["llvm-cov", "test", "--branch", "--json", "--output-path"])
        .arg(&json)
        .args(["--lib", "--tests"])
        // What `xtask` itself was run with is not for what it runs.
        .env_remove("CARGO_MANIFEST_DIR")
        // Branches are unstable, whichever compiler it is.
        .env("RUSTC_BOOTSTRAP", "1")
        .stdin(Stdio::null());
    for package in MEASURED.iter().chain([&SIMULATION]) {
        command.args(["--package", package]);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(
        status.success(),
        "cargo llvm-cov failed (it takes `cargo install cargo-llvm-cov`, and llvm-cov of the \
         compiler's LLVM: `rustup component add llvm-tools`)"
    );
    let export = fs::read(&json).context("cargo llvm-cov has written nothing")?;
    serde_json::from_slice(&export).context("llvm-cov exports something else now")
}

/// Runs all of it, and prints a table. Fails if too little is taken, or a branch is not that has no
/// reason.
pub(crate) fn run() -> Result<ExitCode> {
    let checkout = checkout();
    say("cargo llvm-cov");
    let files = files(&measure(&checkout)?, &checkout)?;
    if files.is_empty() {
        bail!("llvm-cov has seen no file of {}", MEASURED.join(" and "));
    }
    let (mut branches, mut regions) = (Share::default(), Share::default());
    println!("{:<36} {:<24} regions", "", "branches");
    for (name, file) in &files {
        let (b, r) = (file.branches_taken(), file.regions_run());
        println!("{name:<36} {:<24} {}", b.text(), r.text());
        branches.add(b);
        regions.add(r);
    }
    println!("{:<36} {:<24} {}", "all", branches.text(), regions.text());

    let reasons = fs::read(checkout.join(REASONS)).with_context(|| REASONS)?;
    let reasons: Vec<Reason> = serde_json::from_slice(&reasons).with_context(|| REASONS)?;
    let mut ok = branches.is_enough() && regions.is_enough();
    let untaken = untaken(&files, &checkout)?;
    for (branch, line) in &untaken {
        let Branch {
            file,
            condition,
            never,
        } = branch;
        let reason = reasons.iter().find(|reason| reason.branch == *branch);
        let why = reason.map_or("NO REASON GIVEN", |reason| &reason.why);
        println!("{file}:{line}: `{condition}` is never {never}: {why}");
        ok &= reason.is_some();
    }
    for Reason { branch, .. } in &reasons {
        if !untaken.iter().any(|(other, _)| other == branch) {
            println!("{REASONS}: is taken now, or is no branch: {branch:?}");
            ok = false;
        }
    }
    for (name, file) in &files {
        for (place, _) in file.regions.iter().filter(|(_, &count)| count == 0) {
            let text = fs::read_to_string(checkout.join(name))?;
            println!("{name}:{}: never run: {}", place[0], text_at(&text, *place));
        }
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "fn a(b: bool) {\n    if b\n        && b {\n    }\n}\n#[cfg(test)]\nmod tests;\n";

    /// Two instances of a function of `file`, and tests behind it.
    fn export(file: &Path) -> Export {
        let function = |holds: u64, fails: u64| {
            serde_json::json!({
                "filenames": ["/elsewhere/lib.rs", file],
                "regions": [[1, 1, 5, 2, holds, 1, 0, 0], [9, 1, 9, 2, 0, 1, 0, 0]],
                "branches": [[2, 8, 3, 13, holds, fails, 1, 0, 4], [7, 1, 7, 2, 0, 0, 0, 0, 4]],
            })
        };
        let functions = [function(3, 0), function(4, 0)];
        serde_json::from_value(serde_json::json!({ "data": [{ "functions": functions }] })).unwrap()
    }

    #[test]
    fn instances_are_one_and_tests_none() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("hmm-abi/src");
        fs::create_dir_all(&src).unwrap();
        fs::write(src.join("lib.rs"), TEXT).unwrap();
        let files = files(&export(&src.join("lib.rs")), dir.path()).unwrap();
        let file = &files["hmm-abi/src/lib.rs"];
        assert_eq!(file.branches, BTreeMap::from([([2, 8, 3, 13], [7, 0])]));
        assert_eq!(file.regions, BTreeMap::from([([1, 1, 5, 2], 7)]));
        assert_eq!(file.branches_taken().text(), "1 of 2 (50.0 %)");
        assert!(!file.branches_taken().is_enough() && file.regions_run().is_enough());

        let branch = Branch {
            file: "hmm-abi/src/lib.rs".to_owned(),
            condition: "b && b".to_owned(),
            never: false,
        };
        assert_eq!(untaken(&files, dir.path()).unwrap(), [(branch, 2)]);
    }

    #[test]
    fn reasons_are_read() {
        let text = fs::read(checkout().join(REASONS)).unwrap();
        let reasons: Vec<Reason> = serde_json::from_slice(&text).unwrap();
        for Reason { branch, why } in reasons {
            assert!(why.len() > 10, "no reason: {branch:?}");
            let text = fs::read_to_string(checkout().join(&branch.file)).unwrap();
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(&branch.condition), "not there: {branch:?}");
        }
    }
}
