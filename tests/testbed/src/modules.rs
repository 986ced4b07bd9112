// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! `ib_core.ko` and `mlx5_ib.ko`, built from this checkout.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use serde_json::{json, Value};

use crate::cache::{Cache, Ready, Recipe};
use crate::chroot::Chroot;
use crate::kernel::{Kernel, BUILD, SOURCE};
use crate::root::Root;

/// What the modules are built from, in the checkout.
const SOURCES: [&str; 5] = ["Kbuild", "drivers", "firmware-cmds", "hmm-abi", "mlx5-odp"];

/// The modules that a build must bring.
pub(crate) const MODULES: [&str; 2] = ["ib_core.ko", "mlx5_ib.ko"];

/// Which modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// For the stock kernel.
    Stock,
    /// For the stock kernel, with an mlx5_ib that skips one zap: to show that
    /// the strict mode notices. Never for use.
    SkipZap,
    /// For the debug kernel.
    Debug,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Stock => "modules",
            Self::SkipZap => "modules-skip-zap",
            Self::Debug => "modules-debug",
        }
    }

    fn build_name(self) -> &'static str {
        match self {
            Self::Stock => "build-modules",
            Self::SkipZap => "build-modules-skip-zap",
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
fn package_source(checkout: &Path, package: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .current_dir(checkout)
        .args(["metadata", "--format-version=1", "--locked"])
        .stderr(Stdio::inherit())
        .output()?;
    if !out.status.success() {
        bail!("cargo metadata failed");
    }
    let metadata: Value = serde_json::from_slice(&out.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == package)
        .and_then(|p| p["manifest_path"].as_str())
        .with_context(|| format!("the workspace does not depend on {package}"))?;
    Ok(Path::new(manifest).with_file_name(""))
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
            Variant::SkipZap => "ib_core.ko and mlx5_ib.ko, test variant that skips one zap",
            Variant::Debug => "ib_core.ko and mlx5_ib.ko for the debug kernel",
        },
        made_from: json!({
            "kernel": kernel.id(),
            "sources": fingerprint(&checkout, &SOURCES)?,
        }),
        disk: 512,
        holds: &MODULES,
    };
    cache.step(&recipe, |dir, log| {
        let bitfield = package_source(&checkout, "bitfield-struct")?;
        // Kept from one build to the next, for make to decide what is stale; worth
        // nothing with another kernel, nor after a build that was killed: make takes
        // half an object for a new one.
        let work = cache.join(variant.build_name());
        let (mark, running) = (work.join("kernel"), work.join("running"));
        let id = kernel.id().to_string();
        if fs::read_to_string(&mark).ok().as_deref() != Some(&id) || running.exists() {
            let _ = fs::remove_dir_all(&work);
            let other = cache.join(Variant::Stock.build_name());
            if variant == Variant::SkipZap && other.exists() {
                // Nearly all of it is the same; held so that nobody builds there.
                let _held = ensure(cache, root, kernel, Variant::Stock)?;
                let mut copy = crate::proc::command("cp");
                copy.arg("-a").arg(&other).arg(&work);
                log.run("copying the other variant's objects", &mut copy)?;
            }
            fs::create_dir_all(&work)?;
            fs::write(&mark, &id)?;
        }
        let variant_flag = match variant {
            Variant::SkipZap => "MLX5_ODP_TEST_SKIP_ZAP=1",
            Variant::Stock | Variant::Debug => "",
        };
        let kernel_flags = kernel.flags();
        let script = format!(
            "make -C {BUILD} M=/project MO=/out BITFIELD_STRUCT_SRC=/cargo \
             {kernel_flags} {variant_flag} -j$(nproc) modules\n\
             cp {} /modules/\n",
            MODULES.map(|m| format!("/out/{m}")).join(" ")
        );
        let chroot = Chroot::new(root.tree())
            .bind_ro(&kernel.source(), SOURCE)
            .bind(&kernel.build(), BUILD)
            .bind_ro(&checkout, "/project")
            .bind_ro(&bitfield, "/cargo")
            .bind(&work, "/out")
            .bind(dir, "/modules");
        fs::write(&running, "")?;
        let built = log.run("building the modules", &mut chroot.shell(&script));
        fs::remove_file(&running)?;
        built.map(|()| json!({}))
    })
}
