// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Faults, invalidations and deregistration at the same time, interleaved at random by shuttle.
//!
//! Two QPs access a region of two chunks that stays and one that is revoked under way, two workers
//! serve their events, and the kernel takes pages and changes protections. The device must not
//! reach memory that was taken away (the model's assertions), no access may fail that was valid
//! all the time, and every stall is resumed exactly once.

mod model;

use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::{Iova, MemoryFault, MemoryToken, Mkey, PageFault, RdmaFault, TransportToken};
use hmm_abi::WINDOW_PAGES;
use model::device::Accessed;
use model::world::Trouble;
use model::{Model, Protection};
use shuttle::rand::{thread_rng, Rng};
use shuttle::scheduler::RandomScheduler;
use shuttle::{thread, Config, Runner};

const SEED: u64 = 0x6d6c_7835;
const ITERATIONS: usize = 40;

const STAYS: Mkey = Mkey::new(0x1200);
const GOES: Mkey = Mkey::new(0x3400);
/// The first page of each in the process.
const STAYS_AT: usize = 0x1000;
const GOES_AT: usize = 0x9000;
const PAGES: usize = WINDOW_PAGES + 16;

/// Where things happen: on both sides of the border of the chunks.
const BUSY: Range<usize> = WINDOW_PAGES - 8..WINDOW_PAGES + 8;
/// Pages that are read-only at times: on both sides too.
const FICKLE: Range<usize> = WINDOW_PAGES - 4..WINDOW_PAGES + 4;

struct Simulation {
    model: Model,
    transport: bool,
    /// Stalls so far; the tokens are 1 to so many.
    stalls: AtomicUsize,
    /// QPs at work.
    qps: AtomicUsize,
    served: AtomicUsize,
    refused: AtomicUsize,
}

fn some_pages(most: usize) -> Range<usize> {
    let mut rng = thread_rng();
    let first = rng.gen_range(BUSY);
    first..rng.gen_range(first + 1..=BUSY.end.min(first + most))
}

impl Simulation {
    /// The fault of an access to `pages`, of which those before `missing` are done.
    fn fault(&self, mkey: Mkey, pages: &Range<usize>, missing: usize, write: bool) -> PageFault {
        let token = self.stalls.load(Ordering::Relaxed);
        let bytes = |pages: usize| u32::try_from(pages * 4096).unwrap();
        if self.transport {
            return PageFault::Rdma(RdmaFault {
                fault_type: FaultType::rdma(write),
                token: TransportToken::truncate(u32::try_from(token).unwrap()),
                r_key: mkey,
                rdma_va: Iova::new(u64::from(bytes(pages.start))),
                rdma_op_len: bytes(pages.len()),
                packet_length: 4096,
                bytes_committed: bytes(missing - pages.start),
            });
        }
        let rest = u32::try_from(pages.end - missing).unwrap();
        PageFault::Memory(MemoryFault {
            last: true,
            token: MemoryToken::truncate(u64::try_from(token).unwrap()),
            mkey,
            va: Iova::new(u64::from(bytes(missing))),
            demand_pages: DemandPages::truncate(rest),
            pre_demand_pages: thread_rng().gen_range(0..2),
            post_demand_pages: thread_rng().gen_range(0..3),
        })
    }

    /// One access to pages in turn, which stalls until it gets through or fails. True if it got
    /// through.
    fn access(&self, mkey: Mkey, pages: &Range<usize>, write: bool) -> bool {
        let mut at = pages.start;
        while at < pages.end {
            let mut token = 0;
            let accessed = self.model.access(mkey, at, write, || {
                token = self.stalls.fetch_add(1, Ordering::Relaxed) + 1;
                self.fault(mkey, pages, at, write)
            });
            match accessed {
                Accessed::Done => at += 1,
                Accessed::Gone => return false,
                Accessed::Fault if self.is_resumed_with_error(token) => return false,
                Accessed::Fault => {}
            }
        }
        true
    }

    /// Waits for the resume of a stall.
    fn is_resumed_with_error(&self, token: usize) -> bool {
        let token = u64::try_from(token).unwrap();
        loop {
            let state = self.model.world();
            let mut resumes = state.resumes.iter().rev();
            if let Some(resume) = resumes.find(|resume| resume.fault.get() == token) {
                return resume.error;
            }
        }
    }

    fn qp(&self) {
        for _ in 0..8 {
            let mkey = if thread_rng().gen_ratio(1, 4) {
                GOES
            } else {
                STAYS
            };
            let (pages, write) = (some_pages(4), thread_rng().gen_bool(0.5));
            if self.access(mkey, &pages, write) || mkey == GOES {
                continue;
            }
            if self.model.world().nic.is_gone(STAYS) {
                break;
            }
            self.refused.fetch_add(1, Ordering::Relaxed);
            let fickle = pages.clone().any(|page| FICKLE.contains(&page));
            assert!(
                write && fickle,
                "a valid access failed: {pages:?}, write {write}"
            );
        }
        self.qps.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_at_rest(&self) -> bool {
        self.qps.load(Ordering::Relaxed) == 0
    }

    /// Serves events until nobody can raise one any more.
    fn worker(&self) {
        loop {
            let last = self.is_at_rest();
            if self.model.serve_next() {
                self.served.fetch_add(1, Ordering::Relaxed);
            } else if last {
                return;
            }
        }
    }

    /// The kernel: takes pages, changes protections.
    fn kernel(&self) {
        for _ in 0..6 {
            for _ in 0..thread_rng().gen_range(0..60) {
                self.model.step();
            }
            let pages = some_pages(8);
            let in_process = STAYS_AT + pages.start..STAYS_AT + pages.end;
            let protection = match thread_rng().gen_bool(0.5) {
                true => Protection::Read,
                false => Protection::Write,
            };
            self.model.invalidate(&in_process, |memory| {
                for page in pages {
                    let in_process = STAYS_AT + page;
                    if FICKLE.contains(&page) {
                        memory.mprotect(in_process..in_process + 1, protection);
                    } else {
                        memory.free(in_process);
                    }
                }
            });
        }
    }

    fn deregister(&self) {
        for _ in 0..thread_rng().gen_range(0..400) {
            self.model.step();
        }
        assert!(self.model.deregister(GOES).is_ok());
        // Whatever was behind it is somebody else's.
        self.model.drop_pages(&(GOES_AT..GOES_AT + PAGES));
    }
}

/// What came of the runs of a test.
#[derive(Default)]
struct Sum {
    served: AtomicUsize,
    refused: AtomicUsize,
    chunks: AtomicUsize,
    /// Runs at whose end the region that stays was gone.
    cut_off: AtomicUsize,
}

fn simulate(transport: bool, trouble: fn() -> Trouble, sum: &Sum) {
    let model = Model::with_step(thread::yield_now);
    for (mkey, first) in [(STAYS, STAYS_AT), (GOES, GOES_AT)] {
        (model.world().memory).mmap(first..first + PAGES, Protection::Write);
        model.register(mkey, 0, first * 4096, PAGES * 4096, true);
    }
    {
        let mut state = model.world();
        state.trouble = trouble();
        // Less than there can be events.
        state.nic.eq.slots = 1;
    }
    let simulation = Arc::new(Simulation {
        model,
        transport,
        stalls: AtomicUsize::new(0),
        qps: AtomicUsize::new(2),
        served: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
    });
    let spawn = |body: fn(&Simulation)| {
        let simulation = Arc::clone(&simulation);
        thread::spawn(move || body(&simulation))
    };
    let threads = [
        spawn(Simulation::qp),
        spawn(Simulation::qp),
        spawn(Simulation::worker),
        spawn(Simulation::worker),
        spawn(Simulation::kernel),
        spawn(Simulation::kernel),
        spawn(Simulation::deregister),
    ];
    for thread in threads {
        thread.join().unwrap();
    }

    let model = &simulation.model;
    let chunks = model.mr(STAYS).chunks().len();
    let cut_off = model.world().nic.is_gone(STAYS);
    assert!(model.deregister(STAYS).is_ok());
    model.drop_pages(&(STAYS_AT..STAYS_AT + PAGES));
    model.check_at_end();
    let stalls = simulation.stalls.load(Ordering::Relaxed);
    let mut tokens: Vec<_> = {
        let state = model.world();
        let tokens = state.resumes.iter().map(|resume| resume.fault.get());
        tokens.collect()
    };
    tokens.sort_unstable();
    let once = tokens
        .iter()
        .copied()
        .eq(1..=u64::try_from(stalls).unwrap());
    assert!(once, "{stalls} stalls, resumed: {tokens:?}");
    let add = |sum: &AtomicUsize, count| sum.fetch_add(count, Ordering::Relaxed);
    add(&sum.served, simulation.served.load(Ordering::Relaxed));
    add(&sum.refused, simulation.refused.load(Ordering::Relaxed));
    add(&sum.chunks, chunks);
    add(&sum.cut_off, usize::from(cut_off));
}

fn run(iterations: usize, transport: bool, trouble: fn() -> Trouble) -> Arc<Sum> {
    let sum = Arc::new(Sum::default());
    let total = Arc::clone(&sum);
    let scheduler = RandomScheduler::new_from_seed(SEED, iterations);
    Runner::new(scheduler, Config::default()).run(move || simulate(transport, trouble, &total));
    sum
}

/// No interleaving does harm; and what it is about has happened. Returns in how many runs, of
/// [`ITERATIONS`], the device was cut off.
fn no_harm(transport: bool, trouble: fn() -> Trouble) -> usize {
    let sum = run(ITERATIONS, transport, trouble);
    let [served, refused, chunks] =
        [&sum.served, &sum.refused, &sum.chunks].map(|sum| sum.load(Ordering::Relaxed));
    println!("{ITERATIONS} runs: {served} events, {refused} accesses refused, {chunks} chunks");
    assert!(served > 5 * ITERATIONS, "{served} events test nothing");
    assert!(refused > 0, "nothing was ever refused");
    assert!(chunks > ITERATIONS, "one chunk tests little");
    sum.cut_off.load(Ordering::Relaxed)
}

#[test]
fn the_memory_scheme() {
    assert_eq!(no_harm(false, Trouble::default), 0);
}

#[test]
fn the_transport_scheme() {
    assert_eq!(no_harm(true, Trouble::default), 0);
}

/// Zaps that fail are tried again, until the device is cut off.
#[test]
fn zaps_that_fail_do_no_harm() {
    let trouble = || Trouble {
        zaps: [true, true, true, false].repeat(20).into(),
        ..Trouble::default()
    };
    let cut_off = no_harm(false, trouble);
    assert!(0 < cut_off && cut_off < ITERATIONS, "{cut_off} cut off");
}

/// The simulation must find what it is there to find, by an assertion that says so.
fn must_be_found(transport: bool, trouble: fn() -> Trouble, symptoms: &[&str]) {
    let found = catch_unwind(AssertUnwindSafe(|| run(500, transport, trouble)));
    let panic = match found {
        Ok(_) => panic!("the simulation did not notice"),
        Err(panic) => panic,
    };
    let message = (panic.downcast_ref::<String>().map(String::as_str))
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    println!("found: {message}");
    assert!(
        symptoms.iter().any(|symptom| message.contains(symptom)),
        "not what was to be found: {message}"
    );
}

#[test]
fn zaps_that_do_nothing_are_found() {
    let trouble = || Trouble {
        skip_zaps: true,
        ..Trouble::default()
    };
    must_be_found(true, trouble, &["the device", "while the device has it"]);
}

#[test]
fn an_unchecked_sequence_is_found() {
    let trouble = || Trouble {
        no_retry_check: true,
        ..Trouble::default()
    };
    must_be_found(true, trouble, &["the device"]);
}

#[test]
fn a_moment_that_is_too_early_is_found() {
    let trouble = || Trouble {
        early_moments: true,
        ..Trouble::default()
    };
    must_be_found(false, trouble, &["a valid access failed"]);
}
