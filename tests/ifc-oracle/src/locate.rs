// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where the kernel's headers are.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Error, Oracle};

/// Directory that contains `linux/mlx5/mlx5_ifc.h`: `$MLX5_ODP_KERNEL_HEADERS`, else the kernel
/// headers package in the testbed's cache (`$MLX5_ODP_CACHE`, by default `~/.cache/mlx5-odp`).
///
/// # Errors
///
/// Where it was looked for.
fn find_headers() -> Result<PathBuf, Error> {
    let probe = |include: &Path| include.join("linux/mlx5/mlx5_ifc.h").is_file();
    if let Some(include) = env::var_os("MLX5_ODP_KERNEL_HEADERS") {
        let include = PathBuf::from(include);
        return if probe(&include) {
            Ok(include)
        } else {
            Err(Error(format!(
                "MLX5_ODP_KERNEL_HEADERS: no linux/mlx5/mlx5_ifc.h in {}",
                include.display()
            )))
        };
    }
    let cache = match env::var_os("MLX5_ODP_CACHE") {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(env::var_os("HOME").ok_or("HOME is not set")?).join(".cache/mlx5-odp")
        }
    };
    let sources = cache.join("root/usr/src");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&sources)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("linux-headers-") && name.ends_with("-common")
        })
        .map(|entry| entry.path().join("include"))
        .filter(|include| probe(include))
        .collect();
    found.sort();
    found.pop().ok_or_else(|| {
        Error(format!(
            "no kernel headers: neither is MLX5_ODP_KERNEL_HEADERS set, nor is there a \
             linux-headers-*-common in {} (`cargo xtask modules` makes it)",
            sources.display()
        ))
    })
}

/// The oracle over the headers found, or `None` if there are none; then says on standard error
/// that `test` is skipped and why.
///
/// # Panics
///
/// If the headers cannot be parsed, or are missing while `MLX5_ODP_REQUIRE_HEADERS` is `1`: this is
/// for tests, which fail so.
pub fn require_or_skip(test: &str) -> Option<Oracle> {
    match find_headers() {
        Ok(include) => match Oracle::load(&include) {
            Ok(oracle) => Some(oracle),
            Err(error) => panic!("{test}: {}: {error}", include.display()),
        },
        Err(error) => {
            let required = env::var_os("MLX5_ODP_REQUIRE_HEADERS").is_some_and(|v| v == "1");
            assert!(!required, "{test}: {error}");
            eprintln!("{test}: SKIPPED: {error}");
            None
        }
    }
}
