// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Runs seeds of the simulation, or says how soon it finds mistakes.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use sim::{explore, Explored, Mutant};

#[derive(Parser)]
#[command(about, version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run seeds, until one fails.
    Seeds {
        /// The first.
        first: u64,
        /// How many.
        #[arg(default_value_t = 1)]
        count: u64,
        /// Threads, each with its part of them.
        #[arg(long, default_value_t = 1)]
        jobs: u64,
        /// A mistake to be made.
        #[arg(long)]
        mutant: Option<Mutant>,
        /// Do not look for a shorter run that fails.
        #[arg(long)]
        whole: bool,
    },
    /// For each mistake the number of seeds until it is found.
    Mutants {
        /// How often each is looked for, with other seeds every time.
        #[arg(default_value_t = 21)]
        times: u64,
        /// The most seeds.
        #[arg(long, default_value_t = 100_000)]
        most: u64,
        /// Only this one.
        #[arg(long)]
        mutant: Option<Mutant>,
    },
}

/// `range` in so many parts of one size, but for the last.
fn parts(range: Range<u64>, count: u64) -> Vec<Range<u64>> {
    let size = (range.end - range.start).div_ceil(count.max(1)).max(1);
    let starts = (range.start..range.end).step_by(usize::try_from(size).unwrap_or(usize::MAX));
    starts
        .map(|start| start..range.end.min(start + size))
        .collect()
}

/// Seeds after which a thread says how far it has come.
const PIECE: usize = 50_000;

/// Explores piece by piece: a run of hours that is interrupted has counted.
fn explore_pieces(part: Range<u64>, mutant: Option<Mutant>) -> Explored {
    let mut explored = Explored::default();
    let starts = part.clone().step_by(PIECE);
    let ends = part.clone().step_by(PIECE).skip(1).chain([part.end]);
    for (first, end) in starts.zip(ends) {
        explored.add(explore(first..end, mutant));
        if explored.failure.is_some() {
            break;
        }
        eprintln!("seeds {first} to {}: no finding", end - 1);
    }
    explored
}

fn seeds(range: Range<u64>, jobs: u64, mutant: Option<Mutant>, whole: bool) -> ExitCode {
    let begun = Instant::now();
    let threads: Vec<_> = parts(range, jobs)
        .into_iter()
        .map(|part| std::thread::spawn(move || explore_pieces(part, mutant)))
        .collect();
    let mut explored = Explored::default();
    for thread in threads {
        match thread.join() {
            Ok(part) => explored.add(part),
            Err(_) => return ExitCode::FAILURE,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    // CAST: for a rate to be printed.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = explored.runs as f64 / seconds;
    println!(
        "{} seeds in {seconds:.1} s, {rate:.0} a second; {} steps a seed, {} at least",
        explored.runs,
        explored.coverage.steps / explored.runs.max(1),
        explored.fewest_steps
    );
    for (name, count) in explored.coverage.all() {
        println!("{name:>20} {count}");
    }
    let Some(failure) = explored.failure else {
        return ExitCode::SUCCESS;
    };
    println!("{}", if whole { failure } else { failure.shrunk() });
    ExitCode::FAILURE
}

fn mutants(times: u64, most: u64, only: Option<Mutant>) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for mutant in Mutant::ALL {
        if only.is_some_and(|only| only != mutant) {
            continue;
        }
        let mut counts = Vec::new();
        let mut kinds = std::collections::BTreeMap::new();
        for n in 0..times {
            let first = n * most;
            let explored = explore(first..first + most, Some(mutant));
            counts.push(explored.runs);
            let kind = explored
                .failure
                .map_or("NOT FOUND", |failure| failure.finding.kind);
            *kinds.entry(kind).or_insert(0) += 1;
        }
        counts.sort_unstable();
        if kinds.contains_key("NOT FOUND") {
            code = ExitCode::FAILURE;
        }
        let (median, worst) = (counts[counts.len() / 2], counts[counts.len() - 1]);
        println!("{mutant:?}: median {median}, at most {worst}: {kinds:?}");
    }
    code
}

fn main() -> ExitCode {
    match Args::parse().what {
        What::Seeds {
            first,
            count,
            jobs,
            mutant,
            whole,
        } => seeds(first..first + count, jobs, mutant, whole),
        What::Mutants {
            times,
            most,
            mutant,
        } => mutants(times, most, mutant),
    }
}
