// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Reading the guest kernel's log.

/// What a clean kernel never says. Case matters: "BUG:" is the kernel's,
/// "bugs" is not.
const SPLATS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Call Trace:",
    "Oops",
    "general protection fault",
    "unable to handle",
    "KASAN: ",
    "UBSAN: ",
    "kmemleak: ",
    "refcount_t: ",
    "list_add corruption",
    "list_del corruption",
    "INFO: possible",
    "INFO: task ",
    "INFO: rcu",
    "rcu: INFO:",
    "INFO: trying to register non-static key",
    "possible recursive locking",
    "suspicious RCU usage",
    "sleeping function called from invalid context",
    "soft lockup",
    "hard LOCKUP",
    "Kernel panic",
    "blocked for more than",
    "Bad page state",
    "Bad rss-counter",
    "rust_kernel: panicked",
    "panicked at",
];

/// Lines that hold such a mark and mean no harm.
const HARMLESS: &[&str] = &[
    // kmemleak itself, as it starts, and as the guest turns its own scans off.
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread started",
    "kmemleak: Automatic memory scanning thread ended",
    // guest/init.sh looks at each of them.
    "new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
];

/// The first line that must not be there: its number from 1, and its text.
pub(crate) fn splat(log: &str) -> Option<(usize, &str)> {
    log.lines()
        .enumerate()
        .find(|(_, line)| {
            SPLATS.iter().any(|s| line.contains(s)) && !HARMLESS.iter().any(|h| line.contains(h))
        })
        .map(|(index, line)| (index + 1, line.trim()))
}

/// The panic line, if the kernel panicked.
pub(crate) fn panic(log: &str) -> Option<&str> {
    log.lines()
        .find(|line| line.contains("Kernel panic"))
        .map(str::trim)
}

/// Lines of a report of the kernel that are shown.
const REPORT: usize = 60;

/// The report that begins at `line`, counted from 1: up to its end mark, but not more than
/// what is of use; each line indented.
pub(crate) fn report(log: &str, line: usize) -> String {
    let lines: Vec<_> = log.lines().skip(line.saturating_sub(1)).collect();
    let end = lines
        .iter()
        .take(REPORT)
        .position(|line| line.contains("---[ end trace"))
        .map_or(REPORT, |last| last + 1);
    indented(lines.iter().take(end))
}

fn indented<'a>(lines: impl Iterator<Item = &'a &'a str>) -> String {
    lines
        .map(|l| format!("  | {}", l.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The last `n` lines, each indented.
pub(crate) fn tail(log: &str, n: usize) -> String {
    let lines: Vec<_> = log.lines().filter(|l| !l.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(n);
    indented(lines[from..].iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splats_are_found() {
        for line in [
            "[    9.1] WARNING: drivers/infiniband/hw/mlx5/odp.c:1 at f+0x1/0x2, CPU#0: x/1",
            "[    9.1] WARNING: CPU: 0 PID: 1 at kernel/x.c:1 f+0x1/0x2",
            "[    9.1] BUG: sleeping function called from invalid context at x.c:1",
            "[    9.1] BUG: KASAN: slab-use-after-free in f+0x1/0x2",
            "[    9.1] Call Trace:",
            "[    9.1] WARNING: possible circular locking dependency detected",
            "[    9.1] kmemleak: Cannot allocate a kmemleak_object structure",
            "[    9.1] INFO: task a:1 blocked for more than 120 seconds.",
            "[    9.1] Oops: general protection fault, probably for non-canonical address",
            "[    9.1] Kernel panic - not syncing: x",
            "[    9.1] rust_kernel: panicked at 'x'",
        ] {
            let log = format!("[    1.0] fine\n{line}\n");
            assert_eq!(splat(&log), Some((2, line)), "{line}");
        }
    }

    #[test]
    fn a_clean_boot_is_clean() {
        let log = "[    0.0] Linux version 7.3\n\
                   [    0.1] Spectre V2 : Mitigation\n\
                   [    0.2] kmemleak: Kernel memory leak detector initialized (mem pool)\n\
                   [    0.3] mlx5_core 0000:00:02.0: firmware version: 16.35.1\n\
                   [    0.4] debug: ignoring loglevel setting\n";
        assert_eq!(splat(log), None);
        assert_eq!(panic(log), None);
    }

    #[test]
    fn a_report_has_an_end() {
        let log = "fine\nWARNING: x\n RIP: y\n---[ end trace 0 ]---\nfine\n";
        assert_eq!(
            report(log, 2),
            "  | WARNING: x\n  |  RIP: y\n  | ---[ end trace 0 ]---"
        );
        let endless = format!("BUG: x\n{}", "more\n".repeat(1000));
        assert_eq!(report(&endless, 1).lines().count(), REPORT);
    }

    #[test]
    fn the_tail_is_short() {
        assert_eq!(tail("a\n\nb\nc\n", 2), "  | b\n  | c");
        assert_eq!(tail("", 2), "");
    }
}
