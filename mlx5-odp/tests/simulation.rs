// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Faults, invalidations and deregistration at the same time, interleaved by a seed.
//!
//! Two devices' worth of accesses run against one region that stays and one that is deregistered
//! under way, while the kernel takes pages and changes protections. No access may reach a freed
//! frame, none may fail that was valid all the time, and every stall is resumed exactly once.

mod model;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::{
    Eqe, Iova, MemoryFault, MemoryToken, Mkey, PageFault, RdmaFault, TransportToken,
};
use mlx5_odp::{serve, PageIndex, PageRun};

use model::schedule::{Random, Schedule};
use model::{Model, Protection};

const STAYS: Mkey = Mkey::new(0x1200);
const GOES: Mkey = Mkey::new(0x3400);
const PAGE: u64 = 4096;
const PAGES: u64 = 24;
/// Pages from here on change their protection.
const FICKLE: u64 = 16;
const FIRST: u64 = 0x100;
const DEVICES: u32 = 2;

struct Simulation {
    model: Model,
    events: Mutex<VecDeque<Eqe>>,
    next_token: AtomicU32,
    devices: AtomicU32,
    transport: bool,
}

impl Simulation {
    fn event(&self, mkey: Mkey, page: u64, write: bool, token: u32) -> Eqe {
        let at = Iova::new(page * PAGE);
        let fault = if self.transport {
            PageFault::Rdma(RdmaFault {
                fault_type: FaultType::rdma(write),
                token: TransportToken::truncate(token),
                r_key: mkey,
                rdma_va: at,
                rdma_op_len: 4096,
                packet_length: 4096,
                bytes_committed: 0,
            })
        } else {
            PageFault::Memory(MemoryFault {
                last: true,
                token: MemoryToken::truncate(token.into()),
                mkey,
                va: at,
                demand_pages: DemandPages::truncate(1),
                pre_demand_pages: 1,
                post_demand_pages: 2,
            })
        };
        fault.to_eqe(true)
    }

    /// One access: stalls until it gets through or fails. True if it got through.
    fn access(&self, mkey: Mkey, page: u64, write: bool) -> bool {
        loop {
            {
                let mut world = self.model.world();
                if !world.enabled.contains(&mkey.get()) {
                    return false;
                }
                if world.device_access(mkey, PageIndex(page), write) {
                    return true;
                }
                world.clock += 20;
            }
            let token = self.next_token.fetch_add(1, Ordering::Relaxed);
            let event = self.event(mkey, page, write, token);
            self.events.lock().unwrap().push_back(event);
            let error = loop {
                self.model.schedule.idle();
                let world = self.model.world();
                let mine = |r: &&firmware_cmds::PageFaultResume| r.fault.get() == u64::from(token);
                if let Some(resume) = world.resumes.iter().rev().find(mine) {
                    break resume.error;
                }
            };
            if error {
                return false;
            }
        }
    }

    fn device(&self, seed: u64) {
        let mut random = Random::new(seed);
        for _ in 0..25 {
            let mkey = if random.below(4) == 0 { GOES } else { STAYS };
            let (page, write) = (random.below(PAGES), random.below(2) == 0);
            let through = self.access(mkey, page, write);
            let mut world = self.model.world();
            if !through && mkey == STAYS && (page < FICKLE || !write) {
                world
                    .violations
                    .push(format!("failed: page {page}, write {write}"));
            }
        }
        self.devices.fetch_sub(1, Ordering::Relaxed);
    }

    fn worker(&self) {
        loop {
            let event = self.events.lock().unwrap().pop_front();
            match event {
                Some(event) => serve(&self.model, PageFault::from_eqe(&event)),
                None if self.devices.load(Ordering::Relaxed) == 0 => return,
                None => self.model.schedule.idle(),
            }
        }
    }

    /// The kernel: takes pages, changes protections.
    fn kernel(&self, seed: u64) {
        let mut random = Random::new(seed);
        while self.devices.load(Ordering::Relaxed) != 0 {
            for _ in 0..random.below(20) {
                self.model.schedule.idle();
            }
            let first = random.below(PAGES);
            let end = (first + 1 + random.below(12)).min(PAGES);
            let run = PageRun::new(PageIndex(first), PageIndex(end));
            let protection = match random.below(2) {
                0 => Protection::Read,
                _ => Protection::Write,
            };
            self.model.take_away(STAYS, run, |world| {
                for page in run.iter() {
                    if page.0 >= FICKLE {
                        world.protection.insert(FIRST + page.0, protection);
                    } else {
                        world.free(FIRST + page.0);
                    }
                }
            });
        }
    }

    fn deregister(&self, seed: u64) {
        for _ in 0..Random::new(seed).below(200) {
            self.model.schedule.idle();
        }
        self.model.deregister(GOES);
        let mut world = self.model.world();
        for page in 0..PAGES {
            world.free(2 * FIRST + page);
        }
    }
}

/// Runs one seed; returns what was violated, and how many faults there were.
fn simulate(seed: u64, transport: bool, prepare: impl FnOnce(&Model)) -> (Vec<String>, usize) {
    let model = Model::new();
    model.world().mmap(FIRST, PAGES, Protection::Write);
    model.world().mmap(2 * FIRST, PAGES, Protection::Write);
    model.register(STAYS, 0, FIRST * PAGE, PAGES * PAGE, true);
    model.register(GOES, 0, 2 * FIRST * PAGE, PAGES * PAGE, true);
    prepare(&model);
    let schedule = Arc::clone(&model.schedule);
    let simulation = Arc::new(Simulation {
        model,
        events: Mutex::default(),
        next_token: AtomicU32::new(1),
        devices: AtomicU32::new(DEVICES),
        transport,
    });

    let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    let mut add = |body: fn(&Simulation, u64), n: u64| {
        let simulation = Arc::clone(&simulation);
        threads.push(Box::new(move || body(&simulation, seed * 16 + n)));
    };
    add(Simulation::device, 0);
    add(Simulation::device, 1);
    add(|simulation, _| simulation.worker(), 2);
    add(|simulation, _| simulation.worker(), 3);
    add(Simulation::kernel, 4);
    add(Simulation::deregister, 5);
    if !Schedule::run(seed, threads, &schedule) {
        return (vec!["a thread panicked".into()], 0);
    }

    simulation.model.deregister(STAYS);
    let mut world = simulation.model.world();
    let raised = simulation.next_token.load(Ordering::Relaxed) - 1;
    let mut tokens: Vec<u64> = world.resumes.iter().map(|r| r.fault.get()).collect();
    tokens.sort_unstable();
    if !tokens.iter().copied().eq(1..=u64::from(raised)) {
        world
            .violations
            .push(format!("{raised} stalls, resumed: {tokens:?}"));
    }
    (std::mem::take(&mut world.violations), tokens.len())
}

#[test]
fn no_interleaving_does_harm() {
    let mut faults = 0;
    for seed in 0..20 {
        for transport in [false, true] {
            let (violations, count) = simulate(seed, transport, |_| ());
            assert_eq!(violations, [""; 0], "seed {seed}, transport {transport}");
            faults += count;
        }
    }
    assert!(faults > 1000, "{faults} faults test nothing");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let run = || simulate(3, true, |_| ()).1;
    assert_eq!(run(), run());
}

/// The simulation sees what it is for: drivers with one fault each.
#[test]
fn a_skipped_zap_is_seen() {
    let seen = (0..200).any(|seed| {
        let skip = |model: &Model| model.world().trouble.skip_zap = Some(2);
        !simulate(seed, true, skip).0.is_empty()
    });
    assert!(seen);
}

#[test]
fn an_unchecked_sequence_is_seen() {
    let seen = (0..200).any(|seed| {
        let unchecked = |model: &Model| model.world().trouble.no_retry_check = true;
        !simulate(seed, true, unchecked).0.is_empty()
    });
    assert!(seen);
}
