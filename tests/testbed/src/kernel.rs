// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The stock kernel's build directory, prepared for out-of-tree Rust modules.
//!
//! The distribution's headers package lacks the Rust metadata, which the
//! kernel's own source of the same version recreates: same configuration, same
//! compilers, same symbol names, so that the result loads into the stock kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::root::Root;

/// Parts of the source that neither the preparation nor our modules read: other
/// architectures, and C files of subsystems that are not rebuilt. Kconfig files
/// and headers stay.
const LEAVE_OUT: &[&str] = &[
    "arch/[a-wyz]*.[chS]",
    "arch/[a-wyz]*.dts*",
    "block/*.c",
    "crypto/*.c",
    "Documentation/*.rst",
    "Documentation/*.svg",
    "Documentation/*.txt",
    "Documentation/*.yaml",
    "drivers/[a-hj-mo-z]*.c",
    "drivers/gpu/drm/amd/include/asic_reg/*",
    "drivers/i[a-mo-z]*.c",
    "drivers/input/*.c",
    "drivers/interconnect/*.c",
    "drivers/n[a-df-z]*.c",
    "drivers/net/[a-df-z]*.c",
    "drivers/net/ethernet/[a-ln-z]*.c",
    "fs/*.c",
    "mm/*.c",
    "net/*.c",
    "samples/*.c",
    "sound/*.c",
    "tools/perf/*",
    "tools/testing/*",
];

/// Disk to have free for the prepared tree, in MiB.
pub(crate) const DISK: u64 = 1536;

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

/// A kernel to build modules for: a step that holds `source` and `build`.
#[derive(Debug)]
pub(crate) struct Kernel {
    ready: Ready,
    flags: &'static str,
}

impl Kernel {
    /// Arguments that every make for it takes.
    pub(crate) fn flags(&self) -> &'static str {
        self.flags
    }

    /// Its release string.
    pub(crate) fn release(&self) -> Result<&str> {
        self.ready.note("release")
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
fn unpack(leave_out: &[&str]) -> String {
    let exclude: String = leave_out
        .iter()
        .map(|pattern| format!("--exclude=\"$top/{pattern}\" "))
        .collect();
    format!(
        "archive=$(ls /usr/src/linux-source-*.tar.xz) top=$(basename \"$archive\" .tar.xz)\n\
         tar -x -f \"$archive\" -C {SOURCE} --strip-components=1 --no-same-owner \
         --anchored --wildcards --wildcards-match-slash {exclude}\n"
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
        disk: DISK,
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
    Ok(Kernel { ready, flags: "" })
}

/// What the debug kernel is made of, on top of tinyconfig.
const DEBUG_CONFIG: &str = include_str!("../debug.config");

/// Rust and KASAN together are for clang only.
const DEBUG_FLAGS: &str = "LLVM=1";

/// Runs in the root; `/modules` is where the result goes. Objects are of no use
/// once they are linked.
const DEBUG_BUILD: &str = r##"
src=/usr/src/mlx5-odp/source out=/usr/src/mlx5-odp/build
make="make -C $src O=$out LLVM=1 -j$(nproc)"
$make tinyconfig
cat /modules/debug.config >> $out/.config
$make olddefconfig
for option in RUST PROVE_LOCKING DEBUG_ATOMIC_SLEEP KASAN DEBUG_KMEMLEAK DMA_API_DEBUG \
	FAILSLAB FAIL_PAGE_ALLOC FAULT_INJECTION_DEBUG_FS FAULT_INJECTION_STACKTRACE_FILTER \
	MEMCG SWAP ZRAM TEST_HMM INFINIBAND_ON_DEMAND_PAGING INTEL_IOMMU AMD_IOMMU \
	9P_FS OVERLAY_FS VIRTIO_CONSOLE; do
	grep -q "^CONFIG_$option=[my]" $out/.config || { echo "ERROR: $option is off"; exit 1; }
done
$make bzImage modules
$make INSTALL_MOD_PATH=/modules modules_install
cp $out/arch/x86/boot/bzImage /modules/
rm -f /modules/lib/modules/*/build /modules/debug.config
find $out -name '*.o' ! -path '*/scripts/*' ! -path '*/tools/*' ! -path '*/rust/*' -delete
rm -rf $out/vmlinux* $out/.tmp_vmlinux* $out/arch/x86/boot
"##;

/// The debug kernel, whole: `bzImage` and `lib/modules` beside `source` and `build`.
pub(crate) fn ensure_debug(cache: &Cache, root: &Root) -> Result<Kernel> {
    let recipe = Recipe {
        name: "debug-kernel",
        title: "debug kernel (takes 20 minutes and more, once)",
        made_from: json!({
            "recipe": 1,
            "root": root.id(),
            "config": DEBUG_CONFIG,
            "build": DEBUG_BUILD,
        }),
        disk: 8 << 10,
        holds: &["bzImage", "lib/modules", "build/rust/libkernel.rmeta"],
    };
    let ready = cache.step(&recipe, |dir, log| {
        let (source, build) = (dir.join("source"), dir.join("build"));
        fs::create_dir(&source)?;
        fs::create_dir(&build)?;
        fs::write(dir.join("debug.config"), DEBUG_CONFIG)?;
        let chroot = Chroot::new(root.tree())
            .bind(&source, SOURCE)
            .bind(&build, BUILD)
            .bind(dir, "/modules");
        log.run(
            "unpacking the kernel source",
            &mut chroot.shell(&unpack(&[])),
        )?;
        log.run("building the debug kernel", &mut chroot.shell(DEBUG_BUILD))?;
        let release = fs::read_dir(dir.join("lib/modules"))?
            .next()
            .context("the debug kernel has no modules")??
            .file_name()
            .to_string_lossy()
            .into_owned();
        Ok(json!({ "release": release }))
    })?;
    Ok(Kernel {
        ready,
        flags: DEBUG_FLAGS,
    })
}
