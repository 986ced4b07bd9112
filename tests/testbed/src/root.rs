// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The Debian root: the guest's userland, the stock kernel, the toolchain that
//! kernel was built with, and QEMU.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{check_disk, Cache, Ready, Recipe};
use crate::chroot::{quote_str, MOUNT_POINTS};
use crate::fail::Failure;
use crate::proc::{namespaces, remove_tree};
use crate::progress::{say, Log};

const SUITE: &str = "trixie";

/// The mirror that mmdebstrap itself would take.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Disk to have free for it, in MiB: while it is made, the packages are there as well.
pub(crate) const DISK: u64 = 4 << 10;

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
    "libucx0",
    "perftest",
    "procps",
    "python3",
    "python3-pyverbs",
    "python3-scapy",
    "rdma-core",
    "strace",
    "ucx-utils",
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

/// Marks of a full disk, of a network that is not there, and of downloads that came
/// damaged.
const DISK_FULL: [&str; 2] = ["No space left on device", "enough free space"];
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
        disk: DISK,
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
        let status = fs::read_to_string(tree.join("var/lib/dpkg/status"))?;
        check_source(&status, &release)?;
        let config = fs::read_to_string(tree.join(format!("boot/config-{release}")))?;
        check_compiler(&status, &config)?;
        Ok(json!({ "release": release, "kernel": version }))
    })?;
    let release = ready.note("release")?.to_owned();
    Ok(Root { ready, release })
}

fn bootstrap(tree: &Path, log: &mut Log) -> Result<()> {
    for attempt in 1.. {
        let result = log.run("mmdebstrap", &mut mmdebstrap(tree));
        let Err(error) = result else { return Ok(()) };
        let (log, said) = (log.path().to_owned(), log.last_output()?);
        return Err(match Cause::of(&said) {
            // Then downloads break as well.
            Some((Cause::Disk, _)) => {
                check_disk("root", DISK, tree)?;
                error
            }
            Some((Cause::Download, detail)) if attempt < TRIES => {
                say(&format!("broken download, trying again: {detail}"));
                remove_tree(tree)?;
                fs::create_dir(tree)?;
                continue;
            }
            Some((Cause::Download, detail)) => Failure::Download {
                tries: attempt,
                detail,
                log,
            }
            .into(),
            Some((Cause::Network, detail)) => Failure::Network { detail, log }.into(),
            None => error,
        });
    }
    unreachable!("the loop ends by returning")
}

/// Why mmdebstrap failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Disk,
    Download,
    Network,
}

impl Cause {
    /// The first that has left a mark in what was said, with the last such line.
    fn of(said: &str) -> Option<(Self, String)> {
        [
            (Self::Disk, &DISK_FULL[..]),
            (Self::Download, &DAMAGED),
            (Self::Network, &OFFLINE),
        ]
        .into_iter()
        .find_map(|(cause, marks)| {
            let line = said
                .lines()
                .rfind(|l| marks.iter().any(|m| l.contains(m)))?;
            Some((cause, line.trim().to_owned()))
        })
    }
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

/// The version of an installed package, by dpkg's status file.
fn installed<'a>(status: &'a str, package: &str) -> Result<&'a str> {
    status
        .split("\n\n")
        .find(|p| {
            p.lines()
                .any(|l| l.strip_prefix("Package: ") == Some(package))
        })
        .and_then(|p| p.lines().find_map(|l| l.strip_prefix("Version: ")))
        .ok_or_else(|| anyhow!("{package} is not in the Debian root"))
}

/// Fails unless the kernel's source is that of the kernel: while an archive is being
/// updated, one may have come without the other.
fn check_source(status: &str, release: &str) -> Result<()> {
    let image = installed(status, &format!("linux-image-{release}"))?;
    let source = installed(status, "linux-source")?;
    if image != source {
        bail!(
            "the archive offers linux-image-{release} {image}, but linux-source {source}; \
             try again when it has both (MLX5_ODP_MIRROR names another mirror)"
        );
    }
    Ok(())
}

/// Fails unless the Rust compiler in the root is the one that built the kernel.
fn check_compiler(status: &str, config: &str) -> Result<()> {
    let built = config
        .lines()
        .find_map(|l| l.strip_prefix("CONFIG_RUSTC_VERSION_TEXT="))
        .context("no CONFIG_RUSTC_VERSION_TEXT in the kernel's configuration")?
        .trim_matches('"');
    let version = installed(status, "rustc")?;
    // "rustc 1.85.1 (4eb161250 2025-03-15)" and "1.85.1+dfsg1-1".
    let kernels = built.split(' ').nth(1).unwrap_or_default();
    if kernels.is_empty() || !version.starts_with(kernels) {
        bail!("the kernel was built with {built}, the archive has rustc {version}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: linux-image-7.3.4+deb13-amd64\n\
        Source: linux-signed-amd64 (7.3.4+1~bpo13+1)\nVersion: 7.3.4-1~bpo13+1\n\n\
        Package: linux-source\nSource: linux\nVersion: 7.3.4-1~bpo13+1\n\n\
        Package: rustc\nVersion: 1.85.0+dfsg3-1\n";

    #[test]
    fn kernel_and_source_are_of_one_version() {
        let release = "7.3.4+deb13-amd64";
        check_source(STATUS, release).unwrap();
        let newer = STATUS.replace("linux\nVersion: 7.3.4-1", "linux\nVersion: 7.3.5-1");
        let text = check_source(&newer, release).unwrap_err().to_string();
        assert!(text.contains("7.3.4-1~bpo13+1") && text.contains("7.3.5-1~bpo13+1"));
    }

    #[test]
    fn the_compiler_is_the_kernels() {
        let config = |v: &str| format!("CONFIG_RUSTC_VERSION_TEXT=\"rustc {v} (4d91de4e4)\"\n");
        check_compiler(STATUS, &config("1.85.0")).unwrap();
        assert!(check_compiler(STATUS, &config("1.84.1")).is_err());
        assert!(check_compiler(STATUS, "CONFIG_X=y\n").is_err());
    }

    #[test]
    fn a_full_disk_breaks_downloads_too() {
        let cause = |said| Cause::of(said).map(|(cause, _)| cause);
        let full = "E: Write error - write (28: No space left on device)\nHash Sum mismatch\n";
        assert_eq!(cause(full), Some(Cause::Disk));
        assert_eq!(cause("Connection failed\n"), Some(Cause::Download));
        assert_eq!(cause("Could not connect to x:80\n"), Some(Cause::Network));
        assert_eq!(cause("dpkg: error\n"), None);
    }
}
