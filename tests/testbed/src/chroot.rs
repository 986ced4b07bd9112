// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Commands inside the Debian root.
//!
//! Each runs in mount and PID namespaces of its own: no mount leaks to the
//! host, and nothing it starts outlives it. The root itself is mounted
//! read-only; what a command makes goes to directories bound into it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::proc::namespaces;

/// Mount points that `root` prepares for steps and for the guest.
pub(crate) const MOUNT_POINTS: [&str; 6] = [
    "/usr/src/mlx5-odp/source",
    "/usr/src/mlx5-odp/build",
    "/project",
    "/modules",
    "/cargo",
    "/out",
];

/// A view of the root with directories of the host bound into it.
#[derive(Debug)]
pub(crate) struct Chroot {
    root: PathBuf,
    binds: Vec<(PathBuf, &'static str, bool)>,
}

impl Chroot {
    /// The root at `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            binds: Vec::new(),
        }
    }

    /// Binds `host` at `guest`, one of [`MOUNT_POINTS`].
    pub(crate) fn bind(mut self, host: &Path, guest: &'static str) -> Self {
        self.binds.push((host.to_owned(), guest, false));
        self
    }

    /// The same, read-only.
    pub(crate) fn bind_ro(mut self, host: &Path, guest: &'static str) -> Self {
        self.binds.push((host.to_owned(), guest, true));
        self
    }

    /// A shell script in the root.
    pub(crate) fn shell(&self, script: &str) -> Command {
        let root = quote(&self.root);
        let mut setup = format!(
            "set -e\n\
             mount --bind {root} {root}\n\
             mount -o remount,bind,ro {root}\n\
             mount -t proc proc {root}/proc\n\
             mount --rbind /dev {root}/dev\n\
             mount -t tmpfs -o mode=1777 tmp {root}/tmp\n\
             mount -t tmpfs run {root}/run\n"
        );
        for (host, guest, ro) in &self.binds {
            let host = quote(host);
            setup += &format!("mount --bind {host} {root}{guest}\n");
            if *ro {
                setup += &format!("mount -o remount,bind,ro {root}{guest}\n");
            }
        }
        setup += &format!(
            "exec chroot {root} /usr/bin/env -i HOME=/tmp LC_ALL=C.UTF-8 \
             PATH=/usr/sbin:/usr/bin:/sbin:/bin KBUILD_BUILD_USER=mlx5-odp \
             KBUILD_BUILD_HOST=testbed /bin/sh -euc \"$1\"\n"
        );
        let mut command = namespaces();
        command.args(["sh", "-c", &setup, "sh", script]);
        command
    }
}

/// `path` as one word of a shell.
pub(crate) fn quote(path: &Path) -> String {
    quote_str(&path.to_string_lossy())
}

/// `text` as one word of a shell.
pub(crate) fn quote_str(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote_str;
    use std::process::Command;

    #[test]
    fn quoting_survives_the_shell() {
        for text in ["", "a b", "it's", "$HOME `x` \"y\" \\", "a\nb", "*"] {
            let out = Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote_str(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
        }
    }
}
