// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Ten thousand seeds, and that a seed says all there is to say.

use std::thread;

use sim::{explore, Coverage, Explored, Mutant};

/// Seeds that are run with every test.
const SEEDS: u64 = 10_000;
/// Threads that run them.
const JOBS: u64 = 2;

/// What has to have happened, and how often at least.
fn too_rare(coverage: &Coverage) -> Vec<(&'static str, u64)> {
    let wanted = |name: &str| match name {
        "steps" => 200 * SEEDS,
        "invalidations" | "completed" | "chunks" | "faults" | "device_accesses" => 2 * SEEDS,
        "deregistered_in_use" | "overlapping" => SEEDS / 2,
        "held" | "not_zapped" => 10,
        _ => SEEDS / 100,
    };
    let mut all = coverage.all();
    all.retain(|&(name, count)| count < wanted(name));
    all
}

#[test]
fn ten_thousand_seeds() {
    let part = SEEDS / JOBS;
    let threads: Vec<_> = (0..JOBS)
        .map(|n| thread::spawn(move || explore(n * part..(n + 1) * part, None)))
        .collect();
    let mut explored = Explored::default();
    for thread in threads {
        explored.add(thread.join().unwrap());
    }
    if let Some(failure) = explored.failure {
        panic!("{}", failure.shrunk());
    }
    assert_eq!(explored.runs, usize::try_from(SEEDS).unwrap());
    assert!(explored.fewest_steps >= 200, "{}", explored.fewest_steps);
    let rare = too_rare(&explored.coverage);
    assert!(rare.is_empty(), "hardly ever: {rare:?}");
}

#[test]
fn a_seed_does_the_same_again() {
    let one = explore(7..8, None).coverage;
    assert_eq!(one, explore(7..8, None).coverage);
    assert_ne!(one, explore(8..9, None).coverage);
}

#[test]
fn a_failure_is_reproduced_and_shrunk() {
    let failure = explore(0..100, Some(Mutant::NoSetSequence))
        .failure
        .unwrap();
    assert_eq!(failure.again().as_ref(), Some(&failure.finding));
    let shrunk = failure.shrunk();
    assert_eq!(shrunk.finding.kind, failure.finding.kind);
    assert_eq!(shrunk.again().as_ref(), Some(&shrunk.finding));
    assert!(
        shrunk.choices() * 3 < failure.choices() && shrunk.trace.len() < 60,
        "{} of {} choices are left\n{shrunk}",
        shrunk.choices(),
        failure.choices()
    );
}
