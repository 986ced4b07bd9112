// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Writes a target's seeds into a folder: `seeds TARGET FOLDER`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [name, folder] = &args[..] else {
        eprintln!("seeds TARGET FOLDER");
        return ExitCode::FAILURE;
    };
    let Some(target) = fuzz::TARGETS.iter().find(|target| target.name == name) else {
        let names = fuzz::TARGETS.map(|target| target.name);
        eprintln!("there is no target {name}; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    let seeds = (target.seeds)();
    for (n, seed) in seeds.iter().enumerate() {
        let path = Path::new(folder).join(format!("seed-{n:02}"));
        if let Err(error) = fs::write(&path, seed) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    println!("{} seeds", seeds.len());
    ExitCode::SUCCESS
}
