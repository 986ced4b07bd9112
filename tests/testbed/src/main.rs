// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The testbed: makes a Debian root, a kernel tree and our modules in a cache,
//! and runs them in QEMU with the software ConnectX.

mod bench;
mod cache;
mod chroot;
mod console;
mod coverage;
mod demo;
mod fail;
mod hmm_tests;
mod host;
mod initramfs;
mod kernel;
mod modules;
mod proc;
mod progress;
mod report;
mod root;
mod suites;
mod testbed;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Result};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};

use crate::fail::Failure;
use crate::testbed::{Options, Testbed};
use crate::vm::{terminal, Hardware, Iommu, Job, Scheme};

/// The testbed of mlx5-odp.
///
/// Everything it makes is kept below $MLX5_ODP_CACHE (default ~/.cache/mlx5-odp),
/// logs included; remove that directory to start afresh with what the Debian
/// archive offers today. MLX5_ODP_MIRROR names another Debian mirror.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// The distribution's driver beside ours: faults served, bytes verified.
    Demo {
        /// Write the figures to this file as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// What it costs: the distribution's driver beside ours, by lines.
    ///
    /// Instructions of all kernel contexts, counted one by one; run time of kernel threads;
    /// what the device and kprobes count; kernel memory.
    Bench(bench::Args),
    /// Run all tests: on the host, then in the guest.
    Test {
        /// Only these suites.
        #[arg(value_name = "SUITE", value_parser = PossibleValuesParser::new(suites::names()))]
        only: Vec<String>,
    },
    /// The demo's traffic on ours under the debug kernel: lockdep, KASAN, kmemleak.
    Debug,
    /// Run a command, or a shell on this terminal, as root in the guest.
    ///
    /// A command's output and exit status are passed on; its standard input is empty.
    ///
    /// Without a command there is a shell, with the programs of tests/conformance: every key
    /// is the guest's, Ctrl-C as well, and the shell's end is that of the guest. A splat in
    /// the kernel's log does not end it, as with --keep-going.
    ///
    /// Exit status: the command's or the shell's; 70 if the kernel's log has a splat and the
    /// guest was to keep going; 1 for all else that goes wrong.
    Vm(VmArgs),
    /// Build ib_core.ko and mlx5_ib.ko only.
    Modules,
    /// Which branches of hmm-abi and mlx5-odp their tests and the simulation do not take.
    ///
    /// Takes cargo-llvm-cov and the llvm-tools of the toolchain, and no guest.
    Coverage,
}

/// Whose ODP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Odp {
    /// Ours.
    Rust,
    /// The distribution's modules, untouched.
    C,
}

#[derive(Debug, clap::Args)]
struct VmArgs {
    /// Whose ODP to load.
    #[arg(long, value_enum, default_value = "rust")]
    odp: Odp,
    /// The page-fault scheme that the device speaks.
    #[arg(long, value_enum, default_value = "memory")]
    scheme: Scheme,
    /// Boot the debug kernel (PROVE_LOCKING, DEBUG_ATOMIC_SLEEP, KASAN, kmemleak).
    #[arg(long)]
    debug_kernel: bool,
    /// No software ConnectX in the machine, nor an IOMMU (rdma_rxe needs none).
    #[arg(long, conflicts_with = "iommu")]
    no_device: bool,
    /// Bring the programs of tests/conformance, in /modules/conformance.
    #[arg(long)]
    conformance: bool,
    /// Bring the kernel's own tests of HMM, in /modules/hmm-tests.
    #[arg(long)]
    hmm_tests: bool,
    /// Load no RDMA module: the command does (`rdma-stack load c|rust|...`).
    #[arg(long)]
    no_load: bool,
    /// Let the device go on after a protocol violation.
    #[arg(long)]
    lax: bool,
    /// Let this seed decide the order of all that hardware leaves open.
    #[arg(long, value_name = "N", conflicts_with = "no_device")]
    seed: Option<u64>,
    /// Go on after a splat in the kernel's log (a WARN, an oops, a report of a checker).
    #[arg(long)]
    keep_going: bool,
    /// Seconds that it may take [default: 1800; for a shell no end].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command; none for a shell.
    #[arg(last = true)]
    command: Vec<String>,
    #[command(flatten)]
    hardware: Hardware,
}

/// How long a command may take, unless said.
const COMMAND: Duration = Duration::from_secs(1800);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = proc::handle_signals().and_then(|()| match cli.command {
        Subcommands::Demo { json } => demo::run(json.as_deref()),
        Subcommands::Bench(args) => bench::run(&args),
        Subcommands::Test { only } => suites::run(&only),
        Subcommands::Debug => suites::debug(),
        Subcommands::Vm(args) => vm(args),
        Subcommands::Modules => modules(),
        Subcommands::Coverage => coverage::run(),
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(error.downcast_ref().map_or(1, Failure::exit_status))
    })
}

fn modules() -> Result<ExitCode> {
    let testbed = Testbed::open()?;
    for path in testbed.modules()? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn vm(args: VmArgs) -> Result<ExitCode> {
    let shell = args.command.is_empty();
    if shell && !terminal::present() {
        bail!("no terminal for a shell: standard input or output is none (`-- COMMAND` runs one)");
    }
    let mut hardware = args.hardware;
    if args.no_device {
        hardware.iommu = Iommu::None;
    }
    hardware.check()?;
    let testbed = Testbed::open()?;
    let options = Options {
        ours: args.odp == Odp::Rust,
        conformance: args.conformance || shell,
        hmm_tests: args.hmm_tests,
        device: !args.no_device,
        scheme: args.scheme,
        strict: !args.lax,
        seed: args.seed,
        hardware,
        debug_kernel: args.debug_kernel,
    };
    let machine = testbed.machine(&options)?;
    let stack = match args.odp {
        Odp::Rust => "rust",
        Odp::C => "c",
    };
    let job = Job {
        command: match shell {
            true => vec!["bash".to_owned()],
            false => args.command,
        },
        on_terminal: shell,
        keep_going: args.keep_going || shell,
        stack: (!args.no_load).then_some(stack),
        timeout: match (args.timeout, shell) {
            (Some(seconds), _) => Duration::from_secs(seconds),
            (None, true) => Duration::MAX,
            (None, false) => COMMAND,
        },
    };
    let status = vm::run(
        machine,
        &job,
        Box::new(std::io::stdout()),
        Box::new(std::io::stderr()),
    )?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}
