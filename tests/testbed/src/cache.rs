// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The cache: steps that are made once, whole or not at all.
//!
//! A step is a directory with a `stamp.json` that says what it was made from.
//! It is made as `NAME.partial.*` and renamed when complete, under a lock of its
//! own. What an interrupted run left behind is removed by the next one.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{anyhow, Context, Result};
use rustix::fs::{flock, statvfs, FlockOperation};
use serde_json::{json, Value};

use crate::fail::Failure;
use crate::proc::{remove_tree, Scratch};
use crate::progress::{say, Log};

/// Name of the file that makes a step complete.
const STAMP: &str = "stamp.json";

/// The cache directory.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// What a step is and needs.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Directory name in the cache.
    pub(crate) name: &'static str,
    /// Shown while it is being made.
    pub(crate) title: &'static str,
    /// What the result depends on; compared with the stamp.
    pub(crate) made_from: Value,
    /// Disk to have free, in MiB.
    pub(crate) disk: u64,
    /// Files that a complete step holds: their absence means that someone
    /// damaged the cache, and the step is made again.
    pub(crate) holds: &'static [&'static str],
}

/// A step that is there, and stays while this is held.
#[derive(Debug)]
pub(crate) struct Ready {
    path: PathBuf,
    stamp: Value,
    _lock: File,
}

impl Ready {
    /// The step's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Identifies this making of the step, for the steps that are made from it.
    pub(crate) fn id(&self) -> Value {
        self.stamp["made_at"].clone()
    }

    /// What the maker noted.
    pub(crate) fn note(&self, key: &str) -> Result<&str> {
        self.stamp["notes"][key]
            .as_str()
            .ok_or_else(|| anyhow!("{}: no {key} in the stamp", self.path.display()))
    }
}

impl Cache {
    /// `$MLX5_ODP_CACHE`, or `mlx5-odp` in the user's cache directory.
    pub(crate) fn open() -> Result<Self> {
        let dir = match env::var_os("MLX5_ODP_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let home = env::var_os("HOME").context("neither MLX5_ODP_CACHE nor HOME is set")?;
                env::var_os("XDG_CACHE_HOME")
                    .map_or_else(|| Path::new(&home).join(".cache"), PathBuf::from)
                    .join("mlx5-odp")
            }
        };
        let logs = dir.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let dir = dir.canonicalize()?;
        Ok(Self { dir })
    }

    /// Where logs go.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A path in the cache.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the step, made by `make` if it is not there or not from
    /// `recipe.made_from`. `make` gets the directory to fill and the log, and
    /// returns notes for the stamp.
    pub(crate) fn step(
        &self,
        recipe: &Recipe,
        make: impl FnOnce(&Path, &mut Log) -> Result<Value>,
    ) -> Result<Ready> {
        let path = self.dir.join(recipe.name);
        let lock = self.lock(recipe.name, FlockOperation::NonBlockingLockShared)?;
        if let Some(stamp) = current(&path, recipe) {
            return Ok(Ready {
                path,
                stamp,
                _lock: lock,
            });
        }
        drop(lock);
        let lock = self.lock(recipe.name, FlockOperation::NonBlockingLockExclusive)?;
        // Another run may have made it while we waited.
        if current(&path, recipe).is_none() {
            self.make(recipe, &path, make)?;
        }
        let stamp = current(&path, recipe)
            .ok_or_else(|| anyhow!("{} is not complete after it was made", recipe.name))?;
        // Not atomic, but whoever slips in between finds the step current.
        flock(&lock, FlockOperation::LockShared)?;
        Ok(Ready {
            path,
            stamp,
            _lock: lock,
        })
    }

    fn make(
        &self,
        recipe: &Recipe,
        path: &Path,
        make: impl FnOnce(&Path, &mut Log) -> Result<Value>,
    ) -> Result<()> {
        let prefix = format!("{}.partial.", recipe.name);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                remove_tree(&entry.path())?;
            }
        }
        // The old one first: nothing can use it, and the disk may be small.
        remove_tree(path)?;
        check_disk(recipe.name, recipe.disk, &self.dir)?;

        let start = Instant::now();
        let mut log = Log::create(&self.logs(), recipe.name, recipe.title)?;
        let partial = Scratch::new(&self.dir, &prefix)?;
        let notes = make(partial.path(), &mut log)?;
        let seconds = start.elapsed().as_secs();
        let made_at = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_millis();
        let stamp = json!({
            "step": recipe.name,
            "made_from": recipe.made_from,
            "made_at": made_at.to_string(),
            "seconds": seconds,
            "notes": notes,
        });
        fs::write(
            partial.path().join(STAMP),
            serde_json::to_string_pretty(&stamp)?,
        )?;
        partial.rename(path)?;
        log.done();
        say(&format!("{}: done in {seconds} s", recipe.title));
        Ok(())
    }

    /// Takes the lock `name` for this process alone, until the file is dropped.
    pub(crate) fn lock_alone(&self, name: &str) -> Result<File> {
        self.lock(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock of `name`; says so if that means waiting.
    fn lock(&self, name: &str, how: FlockOperation) -> Result<File> {
        let path = self.dir.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, how).is_err() {
            say(&format!("waiting for another run to finish with {name}"));
            let blocking = match how {
                FlockOperation::NonBlockingLockShared => FlockOperation::LockShared,
                _ => FlockOperation::LockExclusive,
            };
            flock(&file, blocking).with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The stamp of a step that is complete and was made from the same things.
fn current(path: &Path, recipe: &Recipe) -> Option<Value> {
    let stamp: Value = serde_json::from_slice(&fs::read(path.join(STAMP)).ok()?).ok()?;
    let whole = recipe
        .holds
        .iter()
        .all(|file| path.join(file).symlink_metadata().is_ok());
    (stamp["made_from"] == recipe.made_from && whole).then_some(stamp)
}

/// Fails unless `need` MiB are free at `at`.
pub(crate) fn check_disk(step: &'static str, need: u64, at: &Path) -> Result<()> {
    let fs = statvfs(at).with_context(|| format!("cannot look at {}", at.display()))?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize) >> 20;
    if free < need {
        return Err(Failure::Disk {
            step,
            need,
            free,
            at: at.to_owned(),
        }
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(version: u32) -> Recipe {
        Recipe {
            name: "thing",
            title: "thing",
            made_from: json!({ "version": version }),
            disk: 1,
            holds: &["file"],
        }
    }

    fn make(text: &'static str) -> impl FnOnce(&Path, &mut Log) -> Result<Value> {
        move |dir, _| {
            fs::write(dir.join("file"), text)?;
            Ok(json!({ "text": text }))
        }
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        let cache = Cache {
            dir: dir.path().to_owned(),
        };
        (dir, cache)
    }

    #[test]
    fn made_once_and_again_when_its_sources_change() {
        let (_dir, cache) = cache();
        let ready = cache.step(&recipe(1), make("a")).unwrap();
        assert_eq!(ready.note("text").unwrap(), "a");
        drop(ready);
        let again = cache.step(&recipe(1), make("b")).unwrap();
        assert_eq!(again.note("text").unwrap(), "a");
        drop(again);
        let newer = cache.step(&recipe(2), make("c")).unwrap();
        assert_eq!(fs::read_to_string(newer.path().join("file")).unwrap(), "c");
    }

    #[test]
    fn failure_leaves_nothing() {
        let (dir, cache) = cache();
        let broken = cache.step(&recipe(1), |dir, _| {
            fs::write(dir.join("file"), "half")?;
            Err(anyhow!("no"))
        });
        assert!(broken.is_err());
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| n != "logs" && n != "thing.lock")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn damage_and_leftovers_are_repaired() {
        let (dir, cache) = cache();
        drop(cache.step(&recipe(1), make("a")).unwrap());
        fs::remove_file(dir.path().join("thing/file")).unwrap();
        fs::create_dir(dir.path().join("thing.partial.old")).unwrap();
        let ready = cache.step(&recipe(1), make("b")).unwrap();
        assert_eq!(ready.note("text").unwrap(), "b");
        assert!(!dir.path().join("thing.partial.old").exists());
    }

    #[test]
    fn no_disk_is_one_line() {
        let (_dir, cache) = cache();
        let mut greedy = recipe(1);
        greedy.disk = u64::MAX;
        let error = cache.step(&greedy, make("a")).unwrap_err().to_string();
        assert!(error.starts_with("not enough disk for thing"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
