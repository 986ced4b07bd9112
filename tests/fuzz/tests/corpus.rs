// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Runs each target on its seeds, on its committed corpus, and on every part of both from the
//! start: an input that ends early is one too.

use std::fs;
use std::path::Path;

use fuzz::{Target, TARGETS};

/// Lengths of an input's beginnings that are run beside all of it.
const CUTS: usize = 8;

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let inputs = files.map(|file| fs::read(file.unwrap().path()).unwrap());
    inputs.collect()
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    assert!(corpus.len() > 10, "{} inputs", corpus.len());
    for input in (target.seeds)().iter().chain(&corpus) {
        (target.run)(input);
        for cut in 1..CUTS {
            (target.run)(&input[..input.len() * cut / CUTS]);
        }
    }
}

#[test]
fn device_commands() {
    run("device_commands");
}

#[test]
fn device_queues() {
    run("device_queues");
}

#[test]
fn driver_faults() {
    run("driver_faults");
}

#[test]
fn formats() {
    run("formats");
}
