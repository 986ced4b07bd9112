// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `ib_core.ko` and `mlx5_ib.ko`, built from this checkout.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::kernel::{Kernel, BUILD, SOURCE};
use crate::proc::remove_tree;
use crate::progress::Log;
use crate::root::Root;

/// What the modules are built from, in the checkout.
const SOURCES: [&str; 5] = ["Kbuild", "drivers", "firmware-cmds", "hmm-abi", "mlx5-odp"];

/// Disk to have free for a build, in MiB.
pub(crate) const DISK: u64 = 512;

/// The modules that a build must bring.
pub(crate) const MODULES: [&str; 6] = [
    "ib_core.ko",
    "mlx5_ib.ko",
    "kernel_ext_test.ko",
    "test_hmm.ko",
    "hmm_dmirror_rust.ko",
    "odp_exporter.ko",
];

/// Fails if the C half of hmm_dmirror_rust.ko mirrors anything by itself, as the kernel's own module
/// does.
const NO_MIRROR_IN_C: &str = r##"
mirrors() {
	undefined=$(nm -u "$1") || exit 1
	echo "$undefined" | grep -E 'hmm_range_fault|mmu_interval_'
}
if mirrors /out/build/hmm_dmirror/test_hmm.o; then
	echo 'ERROR: the C half of hmm_dmirror_rust.ko has a mirror'
	exit 1
fi
if ! mirrors /out/build/test_hmm/test_hmm.o; then
	echo 'ERROR: a mirror in test_hmm.c is not noticed any more'
	exit 1
fi
"##;

/// A note of the step: what compilers and objtool warned of.
pub(crate) const WARNINGS: &str = "warnings";

/// Which modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// For the stock kernel.
    Stock,
    /// For the debug kernel.
    Debug,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Stock => "modules",
            Self::Debug => "modules-debug",
        }
    }

    fn build_name(self) -> &'static str {
        match self {
            Self::Stock => "build-modules",
            Self::Debug => "build-modules-debug",
        }
    }
}

/// The checkout that this program was built from.
pub(crate) fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A number that changes when the name or content of a file below `sources` does.
pub(crate) fn fingerprint(checkout: &Path, sources: &[&str]) -> Result<String> {
    fn walk(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
        if !path.is_dir() {
            files.push(path.to_owned());
            return Ok(());
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Tests never go into a module; `build` is where Kbuild works if it
            // is run by hand in the checkout.
            if name.starts_with('.') || ["tests", "target", "build"].contains(&&*name) {
                continue;
            }
            walk(&entry.path(), files)?;
        }
        Ok(())
    }
    let mut files = Vec::new();
    for source in sources {
        let path = checkout.join(source);
        if !path.exists() {
            bail!("{} is missing from the checkout", path.display());
        }
        walk(&path, &mut files)?;
    }
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let ext = file.extension().unwrap_or_default().to_string_lossy();
        ["Kbuild", "Makefile"].contains(&&*name)
            || ["rs", "c", "h", "params", "patch"].contains(&&*ext)
    });
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(checkout)?.hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// The source directory of a package that the workspace depends on.
fn package_source(checkout: &Path, package: &str, log: &mut Log) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(checkout)
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let metadata = log.capture("cargo metadata", &mut command)?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == package)
        .and_then(|p| p["manifest_path"].as_str())
        .with_context(|| format!("the workspace does not depend on {package}"))?;
    Ok(Path::new(manifest).with_file_name(""))
}

/// Where make works; kept from one build to the next, for make to decide what is stale.
///
/// It decides by times of modification. Those say nothing of another checkout's files, nor
/// of another kernel's; and half an object, left by a build or a copy that was killed,
/// passes for a new one. Such a directory is not used again.
#[derive(Debug)]
struct Workshop {
    path: PathBuf,
    made_for: String,
}

impl Workshop {
    fn new(path: PathBuf, made_for: &Value) -> Self {
        let made_for = made_for.to_string();
        Self { path, made_for }
    }

    fn mark(&self) -> PathBuf {
        self.path.join("made-for")
    }

    fn busy(&self) -> PathBuf {
        self.path.join("running")
    }

    /// Whether make may go on with what is there.
    fn fits(&self) -> bool {
        let made_for = fs::read_to_string(self.mark()).ok();
        made_for.as_ref() == Some(&self.made_for) && !self.busy().exists()
    }

    /// Empties it. Until [`Self::end`] it does not fit.
    fn clear(&self) -> Result<()> {
        // The mark first: what else is left by a removal that is killed must not fit.
        let _ = fs::remove_file(self.mark());
        remove_tree(&self.path)?;
        fs::create_dir_all(&self.path)?;
        self.begin()?;
        Ok(fs::write(self.mark(), &self.made_for)?)
    }

    fn begin(&self) -> Result<()> {
        Ok(fs::write(self.busy(), "")?)
    }

    fn end(&self) -> Result<()> {
        Ok(fs::remove_file(self.busy())?)
    }
}

/// The modules, built if a source changed.
pub(crate) fn ensure(
    cache: &Cache,
    root: &Root,
    kernel: &Kernel,
    variant: Variant,
) -> Result<Ready> {
    let checkout = checkout();
    let recipe = Recipe {
        name: variant.name(),
        title: match variant {
            Variant::Stock => "ib_core.ko and mlx5_ib.ko",
            Variant::Debug => "ib_core.ko and mlx5_ib.ko for the debug kernel",
        },
        made_from: json!({
            "recipe": 3,
            "kernel": kernel.id(),
            "sources": fingerprint(&checkout, &SOURCES)?,
        }),
        disk: DISK,
        holds: &MODULES,
    };
    cache.step(&recipe, |dir, log| {
        let bitfield = package_source(&checkout, "bitfield-struct", log)?;
        let made_for = json!({ "kernel": kernel.id(), "checkout": checkout.to_string_lossy() });
        let work = Workshop::new(cache.join(variant.build_name()), &made_for);
        if !work.fits() {
            work.clear()?;
        }
        let kernel_flags = kernel.flags();
        let script = format!(
            "make -C {BUILD} M=/project MO=/out BITFIELD_STRUCT_SRC=/cargo \
             MLX5_ODP_SELFTEST=1 {kernel_flags} -j$(nproc) modules\n\
             {NO_MIRROR_IN_C}\n\
             cp {} /modules/\n",
            MODULES.map(|m| format!("/out/{m}")).join(" ")
        );
        let chroot = Chroot::new(root.tree())
            .bind_ro(&kernel.source(), SOURCE)
            .bind(&kernel.build(), BUILD)
            .bind_ro(&checkout, "/project")
            .bind_ro(&bitfield, "/cargo")
            .bind(&work.path, "/out")
            .bind(dir, "/modules");
        work.begin()?;
        let built = log.run("building the modules", &mut chroot.shell(&script));
        work.end()?;
        built?;
        let text = log.last_output()?;
        let warnings: Vec<_> = text.lines().filter(|l| l.contains("warning:")).collect();
        Ok(json!({ WARNINGS: warnings.join("; ") }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workshop_is_for_one_kernel_and_checkout() {
        let dir = tempfile::tempdir().unwrap();
        let shop = |kernel: u32, checkout: &str| {
            let made_for = json!({ "kernel": kernel, "checkout": checkout });
            Workshop::new(dir.path().join("build"), &made_for)
        };
        let work = shop(1, "/a");
        assert!(!work.fits());
        work.clear().unwrap();
        assert!(!work.fits(), "nothing was built yet");
        work.end().unwrap();
        assert!(work.fits());
        assert!(!shop(2, "/a").fits());
        assert!(!shop(1, "/b").fits());
    }

    #[test]
    fn what_was_killed_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let work = Workshop::new(dir.path().join("build"), &json!(1));
        work.clear().unwrap();
        fs::write(work.path.join("half.o"), "").unwrap();
        // As after a copy that was killed.
        assert!(!work.fits());
        work.end().unwrap();
        work.begin().unwrap();
        // As after a build that was killed.
        assert!(!work.fits());
        work.clear().unwrap();
        assert!(!work.path.join("half.o").exists());
    }
}
