// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The `connectx` program: one software ConnectX on a vfio-user socket.
//!
//! - [`server`]: QEMU on one side, the device on the other; threads and the clock.
//! - [`memory`]: the guest's memory, as QEMU shares it.
//! - [`client`]: asks a program that runs.

#![forbid(unsafe_code)]

mod client;
mod memory;
mod server;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};
use connectx::{control, Journal, Rule};
use firmware_cmds::Scheme;
use server::{Connectx, Outcome};

/// Exit status after a violation in strict mode.
const EXIT_VIOLATION: u8 = 3;

#[derive(Clone, Copy, ValueEnum)]
enum SchemeArg {
    Memory,
    Transport,
}

/// A software ConnectX: a vfio-user PCI device that the unmodified mlx5 driver binds to.
///
/// Serves one QEMU and ends with it: status 0, or 3 if strict mode saw a violation.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Subcommand)]
enum Command {
    /// Show the state of a device that runs, as a tree
    Inspect {
        /// Its control socket
        #[arg(long, value_name = "SOCKET")]
        control: PathBuf,
        /// Levels to show; what lies deeper is counted
        #[arg(long, value_name = "N")]
        depth: Option<u32>,
        /// What to show, such as qp/0x41/sq; the top level without
        #[arg(default_value = "")]
        path: String,
    },
}

#[derive(Args)]
struct Serve {
    /// Socket for QEMU; must not exist
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How page faults are reported
    #[arg(long, value_enum, default_value = "memory")]
    scheme: SchemeArg,
    /// A fault on purpose, as src/rules.rs has them: "umr every=64 do=delay ms=25"; repeatable
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<Rule>,
    /// End the run at the first protocol violation
    #[arg(long)]
    strict: bool,
    /// Socket for the control protocol; must not exist
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Write the journal here instead of standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Write the counters here as JSON at the end
    #[arg(long, value_name = "FILE")]
    counters: Option<PathBuf>,
    /// Order of everything that hardware leaves open; first in, first out without
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write a line for each command, doorbell, CQE and EQE
    #[arg(long)]
    trace: bool,
}

fn journal(args: &Serve) -> Result<Journal, String> {
    let mut out: Box<dyn Write + Send> = match &args.log {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(io::stderr()),
    };
    let start = Instant::now();
    let mut journal = Journal::new(move |line| {
        let at = start.elapsed();
        // A full disk must not end the guest's run.
        let _ = writeln!(out, "{:5}.{:06} {line}", at.as_secs(), at.subsec_micros());
        let _ = out.flush();
    });
    journal.trace = args.trace;
    Ok(journal)
}

fn run(args: &Serve) -> Result<Outcome, String> {
    let journal = journal(args)?;
    let scheme = match args.scheme {
        SchemeArg::Memory => Scheme::Memory,
        SchemeArg::Transport => Scheme::Transport,
    };
    let rules = args.rules.clone();
    let connectx = Connectx::listen(&args.socket, journal, scheme, rules, args.seed, args.strict)?;
    if let Some(path) = &args.control {
        if let Err(error) = connectx.control(path) {
            remove(&args.socket);
            return Err(error);
        }
    }
    let mut written = Ok(());
    let outcome = connectx.run(|device| {
        if let Some(path) = &args.counters {
            let mut counters = control::counters(&device.counters);
            if let Some(seed) = device.seed() {
                counters["seed"] = seed.into();
            }
            written = std::fs::write(path, format!("{counters}\n"))
                .map_err(|error| format!("cannot write {}: {error}", path.display()));
        }
    });
    remove(&args.socket);
    if let Some(path) = &args.control {
        remove(path);
    }
    written?;
    outcome
}

/// Removes a socket that this run made; its server thread may still hold it.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.command, cli.serve) {
        (
            Some(Command::Inspect {
                control,
                depth,
                path,
            }),
            _,
        ) => client::inspect(&control, &path, depth).map(|tree| {
            println!("{tree}");
            Outcome::Disconnected
        }),
        (None, Some(args)) => run(&args),
        (None, None) => Err("no socket".to_owned()),
    };
    match done {
        Ok(Outcome::Disconnected) => ExitCode::SUCCESS,
        Ok(Outcome::Violation(violation)) => {
            eprintln!("connectx: protocol violation: {violation}");
            ExitCode::from(EXIT_VIOLATION)
        }
        Err(error) => {
            eprintln!("connectx: {error}");
            ExitCode::FAILURE
        }
    }
}
