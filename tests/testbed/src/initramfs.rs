// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An initramfs of our own: busybox and the few modules that it takes to mount
//! the root over 9p. The kernel accepts several archives, one after the other;
//! the second one holds the job of one run.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, Context, Result};
use serde_json::json;

use crate::cache::{Cache, Ready, Recipe};
use crate::root::Root;

/// Loaded by `init` in this order, with what they depend on.
const MODULES: [&str; 3] = ["9pnet_virtio", "9p", "overlay"];

const INIT: &str = include_str!("../guest/initramfs.sh");

/// The archive's name in the step's directory.
pub(crate) const ARCHIVE: &str = "initramfs.cpio";

/// Writes archives in the `newc` format (kernel, `driver-api/early-userspace`).
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: usize,
}

impl Cpio {
    const DIR: usize = 0o040_755;
    const FILE: usize = 0o100_644;
    const PROGRAM: usize = 0o100_755;
    const CONSOLE: usize = 0o020_600;

    /// Adds a directory.
    pub(crate) fn dir(&mut self, name: &str) {
        self.entry(name, Self::DIR, (0, 0), &[]);
    }

    /// Adds a plain file.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, Self::FILE, (0, 0), content);
    }

    /// Adds a program.
    pub(crate) fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, Self::PROGRAM, (0, 0), content);
    }

    /// Adds /dev/console, which the kernel opens for init.
    pub(crate) fn console(&mut self) {
        self.entry("dev/console", Self::CONSOLE, (5, 1), &[]);
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: usize, device: (usize, usize), content: &[u8]) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, mtime, size, device, rdevice, name, check.
        let numbers = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            device.0,
            device.1,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes
                .extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `modules` and what they depend on, dependencies first, as paths below the
/// module directory.
fn in_order(dep: &str, modules: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for module in modules {
        let line = dep
            .lines()
            .find(|l| {
                let path = l.split(':').next().unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default();
                name.split('.').next() == Some(module)
            })
            .with_context(|| format!("the kernel has no module {module}"))?;
        let (path, needs) = line.split_once(':').ok_or_else(|| anyhow!("modules.dep"))?;
        // modules.dep lists the closure, nearest first.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|o| o == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// The archive for the stock kernel of `root`.
pub(crate) fn ensure(cache: &Cache, root: &Root) -> Result<Ready> {
    let modules = root.tree().join("usr/lib/modules").join(root.release());
    let dep = fs::read_to_string(modules.join("modules.dep"))?;
    let files = in_order(&dep, &MODULES)?;
    let files: Vec<_> = files.iter().map(|path| modules.join(path)).collect();
    step(cache, root, "initramfs", &files)
}

/// The archive for the debug kernel, which has built in what it takes.
pub(crate) fn ensure_debug(cache: &Cache, root: &Root) -> Result<Ready> {
    step(cache, root, "initramfs-debug", &[])
}

fn step(cache: &Cache, root: &Root, name: &'static str, modules: &[PathBuf]) -> Result<Ready> {
    let recipe = Recipe {
        name,
        title: "initramfs",
        made_from: json!({ "recipe": 1, "root": root.id(), "init": INIT }),
        disk: 64,
        holds: &[ARCHIVE],
    };
    cache.step(&recipe, |dir, _| {
        fs::write(dir.join(ARCHIVE), base(root.tree(), modules)?)?;
        Ok(json!({}))
    })
}

/// The base archive with the given modules, to be loaded in order.
fn base(tree: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for dir in ["dev", "proc", "sys", "bin", "m", "ro", "rw", "new"] {
        cpio.dir(dir);
    }
    cpio.console();
    cpio.program("init", INIT.as_bytes());
    cpio.program("bin/busybox", &fs::read(tree.join("usr/bin/busybox"))?);
    let mut order = String::new();
    for path in modules {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().to_owned() + ".ko";
        cpio.file(&format!("m/{name}"), &uncompressed(path)?);
        order += &name;
        order += "\n";
    }
    cpio.file("m/order", order.as_bytes());
    Ok(cpio.finish())
}

/// A module's bytes; busybox cannot decompress for the kernel.
fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => return Ok(fs::read(path)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        other => return Err(anyhow!("unknown compression {other:?}: {}", path.display())),
    };
    let out = Command::new(program).arg("-dc").arg(path).output()?;
    if !out.status.success() {
        std::io::stderr().write_all(&out.stderr)?;
        return Err(anyhow!("cannot decompress {}", path.display()));
    }
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let dep = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                   kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz\n\
                   kernel/fs/netfs/netfs.ko.xz:\n";
        assert_eq!(
            in_order(dep, &["9p"]).unwrap(),
            [
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/fs/9p/9p.ko.xz"
            ]
        );
        assert!(in_order(dep, &["nfs"]).is_err());
    }

    #[test]
    fn archive_layout() {
        let mut cpio = Cpio::default();
        cpio.file("a", b"xyz");
        let bytes = cpio.finish();
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header, "a\0", content at 112.
        assert_eq!(&bytes[110..115], b"a\0xyz");
        assert_eq!(bytes[115], 0);
        assert_eq!(bytes.len() % 4, 0);
    }
}
