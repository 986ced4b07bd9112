// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the host must have: little, since the tools live in the Debian root.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rustix::process::geteuid;

use crate::cache::Cache;
use crate::fail::Failure;
use crate::proc;
use crate::progress::Log;

/// A program or file, and the Debian package that brings it.
const NEEDS: [(&str, &str); 7] = [
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("xz", "xz-utils"),
    ("cc", "gcc libc6-dev"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// What it takes to be root in a namespace only.
const NEEDS_AS_USER: [(&str, &str); 1] = [("newuidmap", "uidmap")];

/// Whether a program is on the path, or a file is there.
fn present(what: &str) -> bool {
    if what.starts_with('/') {
        // Since trixie the keyring is a link named .pgp, too.
        return Path::new(what).exists() || Path::new(what).with_extension("pgp").exists();
    }
    env::split_paths(&proc::path()).any(|dir| dir.join(what).is_file())
}

/// What is not there.
fn missing() -> Vec<(&'static str, &'static str)> {
    let as_user = NEEDS_AS_USER.iter().filter(|_| !geteuid().is_root());
    let needs = NEEDS.iter().chain(as_user).copied();
    needs.filter(|(what, _)| !present(what)).collect()
}

/// Makes sure of the host packages: installs them as root, names the command otherwise.
pub(crate) fn ensure(cache: &Cache) -> Result<()> {
    if missing().is_empty() {
        return Ok(());
    }
    // Another run may be about to install them.
    let _alone = cache.lock_alone("host")?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing
        .iter()
        .flat_map(|(_, package)| package.split(' '))
        .collect();
    let failure = || Failure::HostPackages {
        missing: missing
            .iter()
            .map(|(what, _)| *what)
            .collect::<Vec<_>>()
            .join(", "),
        command: format!(
            "sudo apt-get update && sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        ),
    };
    if !geteuid().is_root() || !present("apt-get") {
        return Err(failure().into());
    }
    let mut log = Log::create(&cache.logs(), "host", "host packages")?;
    // The first child to be started: `setpriv` may be among what is missing.
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(args)
            .args(["-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"])
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Lists that cannot all be refreshed may still do.
    let _ = log.run("apt-get update", &mut apt(&["update"]));
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    install.args(&packages);
    log.run("apt-get install", &mut install)?;
    if missing.iter().any(|(what, _)| !present(what)) {
        return Err(failure().into());
    }
    Ok(())
}
