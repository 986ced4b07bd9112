// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The Debian root: the guest's userland, the stock kernel, the toolchain that
//! kernel was built with, and QEMU.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::{namespaces, quote_str, MOUNT_POINTS};
use crate::fail::Failure;
use crate::progress::{say, Log};

const SUITE: &str = "trixie";

/// The mirror that mmdebstrap itself would take.
const MIRROR: &str = "http://deb.debian.org/debian";

/// How often a download is tried.
const TRIES: u32 = 3;

const PACKAGES: &[&str] = &[
    // The kernel, its source and what built it.
    "linux-image-amd64",
    "linux-headers-amd64",
    "linux-source",
    "build-essential",
    "rustc",
    "rust-src",
    "rustfmt",
    "rust-clippy",
    "bindgen",
    "bc",
    "bison",
    "flex",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "pahole",
    "xz-utils",
    "cpio",
    // The debug kernel: Rust and KASAN together want clang.
    "clang",
    "lld",
    "llvm",
    // The machine.
    "qemu-system-x86",
    "busybox-static",
    // What runs in the guest.
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "libibverbs-dev",
    "librdmacm-dev",
    "perftest",
    "procps",
    "python3",
    "python3-pyverbs",
    "rdma-core",
    "strace",
];

/// Backports are preferred, so that kernel, QEMU and rdma-core come from there
/// with whatever they need. The compilers are not: backports build with those of
/// the release, and modules must be built with what built the kernel.
const PREFERENCES: &str = "\
Package: src:rustc src:gcc-14 src:gcc-defaults src:binutils src:llvm-defaults src:rust-bindgen
Pin: release n=trixie
Pin-Priority: 995
";

/// Documentation, except the tests that rdma-core ships as such, and
/// translations: a third of the files.
const LEAVE_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/rdma-core*",
    "path-include=/usr/share/doc/python3-pyverbs*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
];

/// Marks of a network that is not there, and of downloads that came damaged.
const OFFLINE: [&str; 6] = [
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Unable to connect",
    "Network is unreachable",
    "Connection timed out",
];
const DAMAGED: [&str; 5] = [
    "Hash Sum mismatch",
    "File has unexpected size",
    "Connection failed",
    "Error reading from server",
    "Undetermined Error",
];

/// The root in the cache.
#[derive(Debug)]
pub(crate) struct Root {
    ready: Ready,
    release: String,
}

impl Root {
    /// The tree.
    pub(crate) fn tree(&self) -> &Path {
        self.ready.path()
    }

    /// The kernel's release string.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// Identifies this making.
    pub(crate) fn id(&self) -> Value {
        self.ready.id()
    }

    /// The kernel image.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.tree().join(format!("boot/vmlinuz-{}", self.release))
    }

    /// A program of the root, run on the host with the root's own libraries.
    pub(crate) fn qemu(&self) -> Command {
        let lib = self.tree().join("usr/lib/x86_64-linux-gnu");
        let mut command = crate::proc::command(lib.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(&lib)
            .arg(self.tree().join("usr/bin/qemu-system-x86_64"))
            .arg("-L")
            .arg(self.tree().join("usr/share/qemu"))
            .arg("-L")
            .arg(self.tree().join("usr/share/seabios"))
            .env("QEMU_MODULE_DIR", lib.join("qemu"));
        command
    }
}

/// The mirror to use.
fn mirror() -> String {
    env::var("MLX5_ODP_MIRROR").unwrap_or_else(|_| MIRROR.to_owned())
}

/// The host's apt settings on how to reach a mirror: mmdebstrap does not hand
/// them on by itself.
fn host_apt_settings() -> Vec<String> {
    let Ok(out) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter(|line| {
            let key = line.split(' ').next().unwrap_or_default();
            ["http", "https", "Check-Date", "Check-Valid-Until"]
                .iter()
                .any(|k| {
                    key.strip_prefix("Acquire::")
                        .is_some_and(|rest| rest == *k || rest.starts_with(&format!("{k}::")))
                })
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        // Sections without a value of their own.
        .filter(|line| !line.ends_with("\"\""))
        .collect()
}

/// The root, made if need be.
pub(crate) fn ensure(cache: &Cache) -> Result<Root> {
    let recipe = Recipe {
        name: "root",
        title: "Debian root",
        made_from: json!({
            "recipe": 1,
            "suite": SUITE,
            "mirror": mirror(),
            "packages": PACKAGES,
            "preferences": PREFERENCES,
            "leave_out": LEAVE_OUT,
        }),
        disk: 6 << 10,
        holds: &[
            "usr/bin/qemu-system-x86_64",
            "usr/bin/busybox",
            "usr/bin/ibv_rc_pingpong",
            "project",
        ],
    };
    let ready = cache.step(&recipe, |tree, log| {
        bootstrap(tree, log)?;
        let (release, version) = kernel(tree)?;
        check_compiler(tree, &release)?;
        Ok(json!({ "release": release, "kernel": version }))
    })?;
    let release = ready.note("release")?.to_owned();
    Ok(Root { ready, release })
}

fn bootstrap(tree: &Path, log: &mut Log) -> Result<()> {
    for attempt in 1.. {
        let result = log.run("mmdebstrap", &mut mmdebstrap(tree));
        let Err(error) = result else { return Ok(()) };
        let text = log.text()?;
        let find = |marks: &[&str]| {
            text.lines()
                .rfind(|l| marks.iter().any(|m| l.contains(m)))
                .map(|l| l.trim().to_owned())
        };
        if let Some(detail) = find(&DAMAGED) {
            if attempt < TRIES {
                say(&format!("broken download, trying again: {detail}"));
                fs::remove_dir_all(tree)?;
                fs::create_dir(tree)?;
                continue;
            }
            return Err(Failure::Download {
                tries: attempt,
                detail,
                log: log.path().to_owned(),
            }
            .into());
        }
        if let Some(detail) = find(&OFFLINE) {
            return Err(Failure::Network {
                detail,
                log: log.path().to_owned(),
            }
            .into());
        }
        return Err(error);
    }
    unreachable!("the loop ends by returning")
}

fn mmdebstrap(tree: &Path) -> Command {
    let mirror = mirror();
    let mut command = namespaces();
    command.args(["mmdebstrap", "--mode=root", "--variant=minbase"]);
    command.args([
        "--aptopt=Acquire::Retries \"3\"",
        "--aptopt=APT::Default-Release \"trixie-backports\"",
    ]);
    for setting in host_apt_settings() {
        command.arg(format!("--aptopt={setting}"));
    }
    // A root that is not whole is thrown away: no need to sync every file.
    command.arg("--dpkgopt=force-unsafe-io");
    for rule in LEAVE_OUT {
        command.arg(format!("--dpkgopt={rule}"));
    }
    // Our initramfs is our own; do not spend time on the distribution's.
    command.env("INITRD", "No");
    command.arg(format!(
        "--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\"; printf %s {} > \"$1/etc/apt/preferences.d/mlx5-odp\"",
        quote_str(PREFERENCES)
    ));
    let dirs: Vec<_> = MOUNT_POINTS.iter().map(|m| format!("\"$1\"{m}")).collect();
    command.arg(format!("--customize-hook=mkdir -p {}", dirs.join(" ")));
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command
        .arg(SUITE)
        .arg(tree)
        .arg(format!("deb {mirror} {SUITE} main"))
        .arg(format!("deb {mirror} {SUITE}-backports main"));
    command
}

/// Release string and version of the one kernel in the root.
fn kernel(tree: &Path) -> Result<(String, String)> {
    let mut releases: Vec<_> = fs::read_dir(tree.join("boot"))?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("vmlinuz-").map(str::to_owned)
        })
        .collect();
    let release = releases.pop().context("no kernel in the Debian root")?;
    if !releases.is_empty() {
        bail!("more than one kernel in the Debian root: {release}, {releases:?}");
    }
    let version: String = release
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    Ok((release, version))
}

/// Fails unless the Rust compiler in the root is the one that built the kernel.
fn check_compiler(tree: &Path, release: &str) -> Result<()> {
    let config = fs::read_to_string(tree.join(format!("boot/config-{release}")))?;
    let built_with = |key: &str| {
        config
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
            .ok_or_else(|| anyhow!("no {key} in the kernel's configuration: not built with Rust?"))
    };
    let status = fs::read_to_string(tree.join("var/lib/dpkg/status"))?;
    let installed = |package: &str| {
        status
            .split("\n\n")
            .find(|p| p.lines().any(|l| l == format!("Package: {package}")))
            .and_then(|p| p.lines().find_map(|l| l.strip_prefix("Version: ")))
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("{package} is not in the Debian root"))
    };
    let built = built_with("CONFIG_RUSTC_VERSION_TEXT")?;
    let version = installed("rustc")?;
    // "rustc 1.85.1 (4eb161250 2025-03-15)" and "1.85.1+dfsg1-1".
    let kernels = built.split(' ').nth(1).unwrap_or_default();
    if kernels.is_empty() || !version.starts_with(kernels) {
        bail!("the kernel was built with {built}, the archive has rustc {version}");
    }
    Ok(())
}
