// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Traffic of every kind while pages come and go: nothing is lost, and the same seed does the
//! same.

use firmware_cmds::{MttAccess, Scheme};

use crate::world::{World, PAGE, PAGES};

#[test]
fn bytes_survive_paging() {
    for scheme in [Scheme::Memory, Scheme::Transport] {
        for seed in 1..=4 {
            let mut world = World::new(scheme, seed, seed % 2 == 0);
            world.run(1500);
            world.verify();
            let counters = world.rig.device.counters;
            let faults = counters.faults_memory + counters.faults_rdma;
            assert!(faults > 100, "seed {seed}: {faults} faults");
            assert_eq!(counters.resumes_error, 0);
        }
    }
}

#[test]
fn one_zap_left_out_is_seen() {
    let mut world = World::new(Scheme::Memory, 99, false);
    world.forget = Some(3);
    world.page_in(0..PAGES, MttAccess::READ_WRITE);
    world.page_out(0..8);
    world.post_write(3 * PAGE, 8 * PAGE, 64);
    world.rest();
    let violations = world.rig.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("taken back"), "{violations:?}");
}

/// Faults on purpose that a driver must live with.
const RULES: [&str; 9] = [
    "umr every=7 do=delay us=300",
    "umr kind=zap every=5 do=delay ms=2",
    "message op=RDMA_WRITE every=40 do=fail syndrome=REMOTE_OP",
    "message op=SEND_IMM every=25 do=drop",
    "message op=RDMA_READ every=9 do=delay us=700",
    "event type=PAGE_FAULT every=6 do=delay us=900",
    "completion qp=0x40 every=4 do=delay us=100",
    "fault side=responder every=60 do=fail",
    "fault kind=read_or_atomic every=20 do=fail",
];

/// The journal of a run with everything that can go wrong.
fn journal(scheme: Scheme, seed: u64, operations: usize) -> Vec<String> {
    let mut world = World::new(scheme, seed, true);
    world.fail_faults = true;
    world.rig.device.journal.trace = true;
    for rule in RULES {
        world.rig.device.rules.add(rule).unwrap();
    }
    world.run(operations);
    world.verify();
    if operations > 1000 {
        let c = world.rig.device.counters;
        let faults = c.faults_memory + c.faults_rdma + c.faults_wqe_requester;
        let kinds = [
            c.msgs_send,
            c.msgs_write,
            c.msgs_read,
            c.msgs_atomic,
            c.rnr_naks,
        ];
        let ends = [
            c.resumes_ok,
            c.resumes_error,
            c.mtts_set,
            c.mtts_cleared,
            faults,
        ];
        assert!(kinds.into_iter().chain(ends).all(|n| n > 100), "{c:?}");
        for rule in world.rig.device.rules.entries() {
            assert!(rule.acts > 3, "{rule:?}");
        }
    }
    let journal = world.rig.journal.lock().unwrap();
    journal.clone()
}

/// The same seed gives the same journal byte for byte, another one another.
fn repeats(scheme: Scheme) {
    let first = journal(scheme, 1, 10_000);
    let again = journal(scheme, 1, 10_000);
    for (n, (a, b)) in first.iter().zip(&again).enumerate() {
        assert_eq!(a, b, "line {n}");
    }
    assert_eq!(first.len(), again.len());
    for kind in [
        "command", "doorbell", "cqe", "eqe", "fault", "resume", "umr", "rule",
    ] {
        let lines = first.iter().filter(|line| line.starts_with(kind)).count();
        assert!(lines > 500, "{lines} lines {kind}");
    }
    let other = journal(scheme, 2, 500);
    assert_ne!(first[1..other.len()], other[1..]);
}

#[test]
fn the_same_seed_gives_the_same_journal_in_the_memory_scheme() {
    repeats(Scheme::Memory);
}

#[test]
fn the_same_seed_gives_the_same_journal_in_the_transport_scheme() {
    repeats(Scheme::Transport);
}
