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
            world.run(400);
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

/// Faults on purpose that a driver must live with, and the match each is done to.
const RULES: [(&str, usize); 15] = [
    ("umr do=delay us=300", 7),
    ("umr do=fail", 50),
    ("umr kind=zap do=delay ms=2", 5),
    ("message op=RDMA_WRITE do=fail syndrome=REMOTE_OP", 80),
    ("message op=SEND_IMM do=drop", 50),
    ("message op=RDMA_READ do=delay us=700", 9),
    ("event type=PAGE_FAULT do=delay us=900", 6),
    // Of the UMR QP: others' have to keep their order.
    ("completion qp=0x40 do=delay us=100", 4),
    ("fault side=responder do=fail", 60),
    ("fault kind=read_or_atomic do=fail", 20),
    ("fault side=responder do=shape reply=rnr", 15),
    ("fault side=responder do=shape reply=rnr_each_faults", 40),
    ("fault do=shape pieces=2 last=first pre=2 post=9", 4),
    ("fault do=shape pieces=3 pre=65535", 7),
    ("fault do=shape committed=packets", 3),
];

impl World {
    /// Adds one of the rules, for each match of so many.
    fn rule(&mut self, rule: &str, every: usize) {
        self.rig.rule(&format!("{rule} every={every}"));
    }
}

/// The journal of a run with everything that can go wrong.
fn journal(scheme: Scheme, seed: u64, operations: usize) -> Vec<String> {
    let mut world = World::new(scheme, seed, true);
    world.fail_faults = true;
    world.rig.device.journal.trace = true;
    for (rule, every) in RULES {
        world.rule(rule, every);
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
            assert!(rule.acts > 10, "{rule:?}");
        }
    }
    let journal = world.rig.journal.lock().unwrap();
    journal.clone()
}

/// Some of the rules, each more or less often than usual, and all the seed's choices.
fn survives(scheme: Scheme, seed: u64) {
    let mut world = World::new(scheme, seed, true);
    world.fail_faults = world.rng.pick(2) == 0;
    for (rule, usual) in RULES {
        if world.rng.pick(2) == 0 {
            let every = 2 + world.rng.pick(2 * usual);
            world.rule(rule, every);
        }
    }
    let rules = world.rig.device.rules.entries();
    let rules: Vec<_> = rules.iter().map(|entry| entry.rule.to_string()).collect();
    // To be seen if it fails.
    println!("{scheme:?} seed {seed}: {rules:#?}");
    world.run(300);
    world.verify();
}

/// `CONNECTX_SEEDS` says how many seeds: some, unless it is set.
#[test]
fn every_seed_comes_to_an_end() {
    let seeds = std::env::var("CONNECTX_SEEDS").map_or(10, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        survives(Scheme::Memory, seed);
        survives(Scheme::Transport, seed);
    }
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
