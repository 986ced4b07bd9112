// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What can go wrong, one clear line each.

use std::path::PathBuf;

/// A failure that the user can act on. Everything else is an `anyhow` chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Host packages are missing and we may not install them.
    #[error("missing on this host: {missing}; install with: {command}")]
    HostPackages {
        /// What is missing.
        missing: String,
        /// The command that brings it.
        command: String,
    },

    /// Not enough disk below the cache.
    #[error("not enough disk for {step}: needs {need} MiB below {at}, {free} MiB are free (MLX5_ODP_CACHE moves the cache)")]
    Disk {
        /// The step that was about to start.
        step: &'static str,
        /// MiB the step needs.
        need: u64,
        /// MiB there are.
        free: u64,
        /// The file system looked at.
        at: PathBuf,
    },

    /// The archive cannot be reached.
    #[error("no network: {detail} (full log: {log})")]
    Network {
        /// The line of the log that says so.
        detail: String,
        /// The log.
        log: PathBuf,
    },

    /// A download came damaged, again and again.
    #[error("broken download, {tries} times: {detail} (full log: {log})")]
    Download {
        /// How often it was tried.
        tries: u32,
        /// The line of the log that says so.
        detail: String,
        /// The log.
        log: PathBuf,
    },

    /// A command of a step failed.
    #[error("{what} failed ({status}): {detail} (full log: {log})")]
    Command {
        /// What was being done.
        what: String,
        /// How it ended.
        status: String,
        /// The line of the log that says most.
        detail: String,
        /// The log.
        log: PathBuf,
    },

    /// The guest's kernel panicked.
    #[error("guest panic: {detail}\n{tail}\n(console: {log})")]
    Panic {
        /// The panic line.
        detail: String,
        /// Last console lines.
        tail: String,
        /// Console log.
        log: PathBuf,
    },

    /// The guest stopped answering, or took too long.
    #[error("guest hang: {detail}\n{tail}\n(console: {log})")]
    Hang {
        /// What was waited for, and for how long.
        detail: String,
        /// Last console lines.
        tail: String,
        /// Console log.
        log: PathBuf,
    },

    /// QEMU ended without a verdict from the guest.
    #[error("the guest ended early: {detail}\n{tail}\n(console: {log})")]
    GuestEnded {
        /// How QEMU ended.
        detail: String,
        /// Last console lines.
        tail: String,
        /// Console log.
        log: PathBuf,
    },

    /// The software ConnectX died.
    #[error(
        "the device model died ({status}): {detail} (log: {log})\n{tail}\n(console: {console})"
    )]
    Model {
        /// How it ended.
        status: String,
        /// Its last words.
        detail: String,
        /// Its log.
        log: PathBuf,
        /// Last console lines.
        tail: String,
        /// Console log.
        console: PathBuf,
    },

    /// The device model ended the run because the driver broke the protocol.
    #[error("strict violation: {detail} (log: {log})")]
    Violation {
        /// Its last words.
        detail: String,
        /// Its log.
        log: PathBuf,
    },

    /// The guest's kernel log holds something that must not be there.
    #[error("guest kernel log, line {line}: {text} (console: {log})")]
    Splat {
        /// Line of the console log, from 1.
        line: usize,
        /// The line.
        text: String,
        /// Console log.
        log: PathBuf,
    },

    /// The same, of a guest that was to go on: the run went to its end.
    #[error(
        "guest kernel log, line {line}; the command ended with status {status} all the same\n\
         {report}\n(console: {log})"
    )]
    Complaint {
        /// What the command ended with.
        status: i32,
        /// Line of the console log, from 1.
        line: usize,
        /// What the kernel said, from that line on.
        report: String,
        /// Console log.
        log: PathBuf,
    },
}

impl Failure {
    /// What `cargo xtask` exits with.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            // EX_SOFTWARE of sysexits.h.
            Self::Complaint { .. } => 70,
            _ => 1,
        }
    }
}
