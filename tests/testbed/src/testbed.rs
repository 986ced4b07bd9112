// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! All the steps together: from an empty cache to a machine that can be started.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{check_disk, Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::hmm_tests;
use crate::host;
use crate::initramfs;
use crate::kernel::{self, Kernel};
use crate::modules::{self, checkout, Variant, MODULES};
use crate::progress::{say, Log};
use crate::root::{self, Root};
use crate::vm::{Hardware, Machine, Scheme};

/// Logs of this many runs are kept.
const KEEP: usize = 20;

/// The program of the step `plugin`.
pub(crate) const PLUGIN: &str = "insn_profile.so";

/// Steps that take most of the disk, in MiB.
const LARGE: [(&str, u64); 3] = [
    ("root", root::DISK),
    ("kernel", kernel::DISK),
    ("modules", modules::DISK),
];

/// What a machine should have.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Our modules.
    pub(crate) ours: bool,
    /// The programs of tests/conformance.
    pub(crate) conformance: bool,
    /// The kernel's own tests of HMM.
    pub(crate) hmm_tests: bool,
    /// The software ConnectX.
    pub(crate) device: bool,
    /// The scheme it starts with.
    pub(crate) scheme: Scheme,
    /// Whether it ends the run on a violation.
    pub(crate) strict: bool,
    /// The seed of its order, if it has one.
    pub(crate) seed: Option<u64>,
    /// Memory, processors, IOMMU.
    pub(crate) hardware: Hardware,
    /// The debug kernel.
    pub(crate) debug_kernel: bool,
}

/// Both drivers' modules and a strict device, in the hardware of every suite.
impl Default for Options {
    fn default() -> Self {
        Self {
            ours: true,
            conformance: true,
            hmm_tests: false,
            device: true,
            scheme: Scheme::Memory,
            strict: true,
            seed: None,
            hardware: Hardware::default(),
            debug_kernel: false,
        }
    }
}

/// The cache and the steps that are ready.
#[derive(Debug)]
pub(crate) struct Testbed {
    cache: Cache,
    root: Root,
}

impl Testbed {
    /// Opens the cache and makes sure of the Debian root.
    pub(crate) fn open() -> Result<Self> {
        let cache = Cache::open()?;
        host::ensure(&cache)?;
        // Before minutes are spent on the first of them.
        let missing = LARGE.iter().filter(|(step, _)| !cache.join(step).exists());
        let need = missing.map(|(_, disk)| disk).sum();
        check_disk("the testbed", need, &cache.join("."))?;
        let root = root::ensure(&cache)?;
        Ok(Self { cache, root })
    }

    /// The kernel's release string.
    pub(crate) fn release(&self) -> &str {
        self.root.release()
    }

    /// The prepared tree of the stock kernel.
    pub(crate) fn kernel(&self) -> Result<Kernel> {
        kernel::ensure(&self.cache, &self.root)
    }

    /// Runs the tests of the scripts, with the root's Python.
    pub(crate) fn script_tests(&self) -> Result<()> {
        let mut log = Log::create(&self.cache.logs(), "scripts", "tests of the scripts")?;
        let chroot = Chroot::new(self.root.tree()).bind_ro(&checkout(), "/project");
        let script = "cd /project/tests/conformance && python3 -B -m unittest test_scripts\n\
                      cd /project/tests/testbed/guest && python3 -B -m unittest test_bed\n";
        log.run("the tests of the scripts", &mut chroot.shell(script))
    }

    /// Builds our modules for the stock kernel.
    pub(crate) fn modules(&self) -> Result<Vec<PathBuf>> {
        let kernel = self.kernel()?;
        let ready = modules::ensure(&self.cache, &self.root, &kernel, Variant::Stock)?;
        Ok(MODULES.iter().map(|m| ready.path().join(m)).collect())
    }

    /// What the build of our modules warned of.
    pub(crate) fn module_warnings(&self) -> Result<String> {
        let kernel = self.kernel()?;
        let ready = modules::ensure(&self.cache, &self.root, &kernel, Variant::Stock)?;
        Ok(ready.note(modules::WARNINGS)?.to_owned())
    }

    /// Builds the QEMU plugin that counts instructions, with the root's compiler.
    pub(crate) fn plugin(&self) -> Result<Ready> {
        let sources = checkout().join("tests/testbed/plugin");
        let recipe = Recipe {
            name: "plugin",
            title: "QEMU plugin",
            made_from: json!({
                "root": self.root.id(),
                "sources": modules::fingerprint(&checkout(), &["tests/testbed/plugin"])?,
            }),
            disk: 1,
            holds: &[PLUGIN],
        };
        self.cache.step(&recipe, |dir, log| {
            let chroot = Chroot::new(self.root.tree())
                .bind_ro(&sources, "/project")
                .bind(dir, "/out");
            let script = format!(
                "gcc -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden \
                 -o /out/{PLUGIN} /project/insn_profile.c"
            );
            log.run("building the QEMU plugin", &mut chroot.shell(&script))?;
            Ok(json!({}))
        })
    }

    /// A machine with what `options` ask for.
    pub(crate) fn machine(&self, options: &Options) -> Result<Machine> {
        let kernel = match options.debug_kernel {
            true => Some(kernel::ensure_debug(&self.cache, &self.root)?),
            false if options.ours => Some(self.kernel()?),
            false => None,
        };
        let mut modules = Vec::new();
        let mut held = Vec::new();
        if let Some(kernel) = kernel.as_ref().filter(|_| options.ours) {
            let variant = match options.debug_kernel {
                true => Variant::Debug,
                false => Variant::Stock,
            };
            let ready = modules::ensure(&self.cache, &self.root, kernel, variant)?;
            modules.push(("rust".to_owned(), ready.path().to_owned()));
            held.push(ready);
        }
        if options.conformance {
            let ready = conformance(&self.cache, &self.root)?;
            modules.push(("conformance".to_owned(), ready.path().to_owned()));
            held.push(ready);
        }
        if options.hmm_tests {
            let ready = hmm_tests::ensure(&self.cache, &self.root)?;
            modules.push((hmm_tests::NAME.to_owned(), ready.path().to_owned()));
            held.push(ready);
        }
        let (initramfs, vmlinuz) = match kernel.as_ref().filter(|_| options.debug_kernel) {
            Some(kernel) => {
                let release = kernel.release()?;
                let lib = kernel.path().join("lib/modules").join(release);
                modules.push((format!("lib/{release}"), lib));
                (
                    initramfs::ensure_debug(&self.cache, &self.root)?,
                    kernel.path().join("bzImage"),
                )
            }
            None => (
                initramfs::ensure(&self.cache, &self.root)?,
                self.root.vmlinuz(),
            ),
        };
        let base = initramfs.path().join(initramfs::ARCHIVE);
        held.push(initramfs);
        Ok(Machine {
            qemu: self.root.qemu(),
            vmlinuz,
            initramfs: base,
            tree: self.root.tree().to_owned(),
            project: checkout(),
            modules,
            connectx: options.device.then(connectx).transpose()?,
            scheme: options.scheme,
            strict: options.strict,
            seed: options.seed,
            hardware: options.hardware.clone(),
            debug_kernel: options.debug_kernel,
            logs: self.run_logs()?,
            held,
        })
    }

    /// A directory for the logs of one run; the oldest ones go.
    fn run_logs(&self) -> Result<PathBuf> {
        let all = self.cache.logs().join("vm");
        fs::create_dir_all(&all)?;
        let mut runs: Vec<_> = fs::read_dir(&all)?
            .filter_map(|e| Some(e.ok()?.path()))
            .collect();
        runs.sort_by_key(|path| path.metadata().and_then(|m| m.modified()).ok());
        for old in runs.iter().rev().skip(KEEP - 1) {
            let _ = fs::remove_dir_all(old);
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(all.join(format!("{}-{}", now.as_millis(), std::process::id())))
    }
}

/// Builds the programs of tests/conformance, with the root's compiler.
fn conformance(cache: &Cache, root: &Root) -> Result<Ready> {
    // odp_dmabuf speaks to odp_exporter.ko.
    const SOURCES: [&str; 2] = ["tests/conformance", "drivers/odp_exporter"];
    let recipe = Recipe {
        name: "conformance",
        title: "tests/conformance",
        made_from: json!({
            "root": root.id(),
            "sources": modules::fingerprint(&checkout(), &SOURCES)?,
        }),
        disk: 64,
        holds: &["odp_traffic"],
    };
    cache.step(&recipe, |dir, log| {
        let chroot = Chroot::new(root.tree())
            .bind_ro(&checkout(), "/project")
            .bind(dir, "/out");
        log.run(
            "building tests/conformance",
            &mut chroot.shell("make -C /project/tests/conformance O=/out -j$(nproc)"),
        )?;
        Ok(json!({}))
    })
}

/// Builds the device model; its program.
fn connectx() -> Result<PathBuf> {
    say("device model");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .current_dir(checkout())
        .args(["build", "--release", "--locked", "--package", "connectx"])
        .args(["--bin", "connectx"])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!("the device model does not build");
    }
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| {
            (message["target"]["name"] == "connectx")
                .then(|| message["executable"].as_str().map(PathBuf::from))
                .flatten()
        })
        .filter(|path| Path::new(path).exists())
        .context("cargo names no program of the device model")
}
