// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The stock kernel's build directory, prepared for out-of-tree Rust modules.
//!
//! The distribution's headers package lacks the Rust metadata, which the
//! kernel's own source of the same version recreates: same configuration, same
//! compilers, same symbol names, so that the result loads into the stock kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Result};
use serde_json::{json, Value};

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::root::Root;

/// Parts of the source that neither the preparation nor our modules read: other
/// architectures, and C files of subsystems that are not rebuilt. Kconfig files
/// and headers stay.
const LEAVE_OUT: &[&str] = &[
    "*/tools/testing/*",
    "*/tools/perf/*",
    "*/Documentation/*.rst",
    "*/Documentation/*.yaml",
    "*/Documentation/*.txt",
    "*/Documentation/*.svg",
    "*/arch/*/boot/dts/*",
    "*/drivers/gpu/drm/amd/include/asic_reg/*",
    "*/sound/*.c",
    "*/fs/*.c",
    "*/net/*.c",
    "*/mm/*.c",
    "*/crypto/*.c",
    "*/drivers/[a-hj-mo-z]*.c",
    "*/drivers/i[a-mo-z]*.c",
    "*/drivers/n[a-df-z]*.c",
    "*/drivers/net/[a-df-z]*.c",
    "*/drivers/net/ethernet/[a-ln-z]*.c",
];

/// Runs in the root; `$release` is set.
const PREPARE: &str = r##"
src=/usr/src/mlx5-odp/source out=/usr/src/mlx5-odp/build
headers=/usr/src/linux-headers-$release
cp $headers/.config $headers/Module.symvers $out/
make -C $src O=$out -j$(nproc) olddefconfig
make -C $src O=$out -j$(nproc) modules_prepare
# What the distribution appends to the version of the source.
mkdir -p $out/include/config $out/include/generated
echo $release > $out/include/config/kernel.release
echo "#define UTS_RELEASE \"$release\"" > $out/include/generated/utsrelease.h
"##;

/// Where a kernel's source and build directory are seen in the root.
pub(crate) const SOURCE: &str = "/usr/src/mlx5-odp/source";
/// See [`SOURCE`].
pub(crate) const BUILD: &str = "/usr/src/mlx5-odp/build";

/// A kernel to build modules for.
#[derive(Debug)]
pub(crate) struct Kernel {
    ready: Ready,
}

impl Kernel {
    /// Wraps a step that holds `source` and `build`.
    pub(crate) fn new(ready: Ready) -> Self {
        Self { ready }
    }

    /// The source tree.
    pub(crate) fn source(&self) -> PathBuf {
        self.ready.path().join("source")
    }

    /// The build directory.
    pub(crate) fn build(&self) -> PathBuf {
        self.ready.path().join("build")
    }

    /// The step itself.
    pub(crate) fn path(&self) -> &Path {
        self.ready.path()
    }

    /// Identifies this making.
    pub(crate) fn id(&self) -> Value {
        self.ready.id()
    }
}

/// Shell lines that unpack the root's kernel source, without what matches `leave_out`.
pub(crate) fn unpack(leave_out: &[&str]) -> String {
    let exclude: String = leave_out
        .iter()
        .map(|pattern| format!("--exclude='{pattern}' "))
        .collect();
    format!(
        "tar -x -f $(ls /usr/src/linux-source-*.tar.xz) -C {SOURCE} \
         --strip-components=1 --no-same-owner {exclude}\n"
    )
}

/// The prepared tree of the stock kernel.
pub(crate) fn ensure(cache: &Cache, root: &Root) -> Result<Kernel> {
    let recipe = Recipe {
        name: "kernel",
        title: "kernel tree for Rust modules",
        made_from: json!({
            "recipe": 1,
            "root": root.id(),
            "leave_out": LEAVE_OUT,
            "prepare": PREPARE,
        }),
        disk: 3 << 10,
        holds: &[
            "build/rust/libkernel.rmeta",
            "build/scripts/mod/modpost",
            "source/include/linux/mlx5/mlx5_ifc.h",
        ],
    };
    let release = root.release().to_owned();
    let ready = cache.step(&recipe, |dir, log| {
        let (source, build) = (dir.join("source"), dir.join("build"));
        fs::create_dir(&source)?;
        fs::create_dir(&build)?;
        let chroot = Chroot::new(root.tree())
            .bind(&source, SOURCE)
            .bind(&build, BUILD);
        log.run(
            "unpacking the kernel source",
            &mut chroot.shell(&unpack(LEAVE_OUT)),
        )?;
        let prepare = format!("release={release}\n{PREPARE}");
        log.run("preparing the kernel tree", &mut chroot.shell(&prepare))?;
        let made = fs::read_to_string(build.join("include/generated/autoconf.h"))?;
        if !made.contains("#define CONFIG_RUST 1") {
            bail!("the kernel's build dropped CONFIG_RUST: compilers do not fit");
        }
        Ok(json!({ "release": release }))
    })?;
    Ok(Kernel::new(ready))
}
