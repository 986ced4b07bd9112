// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One run: the threads of a plan, and the scheduler.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::time::Duration;

use crate::choice::Choices;
use crate::coverage::Coverage;
use crate::driver::implicit::{Parent, ParentData};
use crate::mm::change::PAUSE;
use crate::mutant::Mutant;
use crate::oracle::Oracle;
use crate::plan::{After, Plan, Step};
use crate::sim::{Finding, Sim};
use crate::task::{earlier, Coroutines, Stacks, Thread};
use crate::traffic::{Pair, BUFFER};

/// A run that has taken so many steps goes on for ever.
const TOO_LONG: usize = 40_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) finding: Option<Finding>,
    pub(crate) coverage: Coverage,
    /// What was chosen.
    pub(crate) record: Vec<u8>,
    pub(crate) trace: Vec<String>,
}

/// What the scheduler can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Thread(usize),
    Device,
    Completions,
    Events,
    Clock,
}

/// Runs a plan.
pub(crate) fn run(
    plan: &Plan,
    choices: Choices,
    mutant: Option<Mutant>,
    is_traced: bool,
    stacks: &mut Stacks,
) -> Outcome {
    let sim = Sim::new(plan, choices, mutant, is_traced);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut coroutines = Coroutines::new(Rc::clone(&sim), stacks);
        spawn(&sim, plan, &mut coroutines);
        schedule(&sim, &mut coroutines);
    }));
    let finding = sim.take_finding().or_else(|| {
        let panic = result.err()?;
        let text = (panic.downcast_ref::<String>().cloned())
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some(Finding {
            kind: "a panic",
            text: text.unwrap_or_default(),
            step: sim.steps(),
        })
    });
    let trace = sim.take_trace();
    let mut coverage = sim.counted();
    let memory = sim.memory.lock();
    coverage.device_accesses = memory.device_reads + memory.device_writes;
    coverage.served = sim.events.served();
    drop(memory);
    let record = sim
        .choices
        .replace(Choices::of_record(Vec::new()))
        .into_record();
    Outcome {
        finding,
        coverage,
        record,
        trace,
    }
}

fn spawn(sim: &Rc<Sim>, plan: &Plan, coroutines: &mut Coroutines<'_>) {
    {
        let mut adapter = sim.adapter.borrow_mut();
        for rule in &plan.rules {
            adapter.device.rules.add(rule).expect("it is a rule");
        }
    }
    let mut users = Vec::new();
    let registrations = plan.mrs.clone();
    let main = coroutines.spawn(
        "registration",
        Box::new(move |thread| {
            for (number, registration) in registrations.iter().enumerate() {
                thread.register_for_users(number, registration);
            }
        }),
    );
    for (name, accesses) in ["QP 0", "QP 1"].into_iter().zip(&plan.qps) {
        let (requester, responder, buffer) = {
            let mut adapter = sim.adapter.borrow_mut();
            let (a, b) = (adapter.create_qp(0), adapter.create_qp(0));
            adapter.connect(a.qpn, b.qpn);
            adapter.connect(b.qpn, a.qpn);
            // CAST: widens.
            (a, b, adapter.share(BUFFER as u64, 64))
        };
        let mut qps = sim.driver.qps.borrow_mut();
        qps.extend([requester.clone(), responder.clone()]);
        let pair = Pair {
            requester,
            responder,
            buffer,
        };
        let accesses = accesses.clone();
        users.push(coroutines.spawn(
            name,
            Box::new(move |thread| {
                thread.join(&[main]);
                thread.run_qp(pair, &accesses);
            }),
        ));
    }
    let exits = plan.exits;
    for (name, changes) in ["kernel 0", "kernel 1"].into_iter().zip(&plan.kernel) {
        let changes = changes.clone();
        let is_last = exits && name == "kernel 1";
        users.push(coroutines.spawn(
            name,
            Box::new(move |thread| {
                for After { steps, what } in &changes {
                    (0..*steps).for_each(|_| thread.step());
                    thread.change(what);
                }
                if is_last {
                    thread.exit();
                }
            }),
        ));
    }
    let steps = plan.registrar.clone();
    users.push(coroutines.spawn(
        "registrar",
        Box::new(move |thread| {
            thread.join(&[main]);
            for After { steps, what } in &steps {
                (0..*steps).for_each(|_| thread.step());
                match what {
                    Step::Register(number, registration) => {
                        thread.register_for_users(*number, registration);
                    }
                    Step::Deregister(number) => thread.deregister_of_users(*number),
                }
            }
        }),
    ));
    let advices = plan.advices.clone();
    users.push(coroutines.spawn(
        "adviser",
        Box::new(move |thread| {
            thread.join(&[main]);
            for After { steps, what } in &advices {
                (0..*steps).for_each(|_| thread.step());
                thread.advise(what);
            }
        }),
    ));
    let workers: Vec<_> = (0..plan.workers)
        .map(|_| coroutines.spawn("worker", Box::new(|thread| thread.serve_events())))
        .collect();
    coroutines.spawn(
        "userfaultfd",
        Box::new(|thread| {
            while !thread.sim.closing.get() {
                if !thread.fill_missing() {
                    thread.wait(thread.sim.wanted);
                }
            }
        }),
    );
    coroutines.spawn("reaper", Box::new(|thread| thread.reap_mirrors()));
    coroutines.spawn("retirer", Box::new(|thread| thread.retire_children()));
    coroutines.spawn("prefetcher", Box::new(|thread| thread.prefetch_later()));
    coroutines.spawn(
        "end",
        Box::new(move |thread| {
            thread.join(&users);
            thread.check_children();
            for number in 0..2 {
                thread.deregister_of_users(number);
            }
            thread.drain();
            thread.sim.events.close(thread.sim);
            thread.join(&workers);
            if !exits {
                thread.exit();
            }
            thread.sim.closing.set(true);
            let sim = thread.sim;
            for channel in [sim.wanted, sim.reap, sim.retire, sim.advised] {
                sim.tasks.wake(channel);
            }
        }),
    );
}

impl<'t> Thread<'t> {
    /// Waits for threads to end.
    fn join(&self, threads: &[usize]) {
        while !threads.iter().all(|&id| self.sim.tasks.is_done(id)) && !self.sim.is_over() {
            self.wait(self.sim.ended);
        }
    }

    /// Waits for what the device still has to say.
    fn drain(&self) {
        let is_quiet = || {
            let adapter = self.sim.adapter.borrow();
            !adapter.busy
                && adapter.alarm.is_none()
                && !adapter.has_events()
                && self.sim.events.is_idle()
        };
        while !is_quiet() && !self.sim.is_over() {
            self.sleep(Duration::from_millis(1));
        }
    }

    fn register_for_users(
        &'t self,
        number: usize,
        registration: &crate::driver::region::Registration,
    ) {
        // What is registered belongs to a process that is there.
        if !self.sim.get_mm() {
            return;
        }
        // A device that fails now may not fail then.
        let mr = (0..4).find_map(|_| self.register(registration));
        self.sim.put_mm();
        self.sim.set_user_mr(number, mr);
    }

    fn deregister_of_users(&'t self, number: usize) {
        let Some(mr) = self.sim.user_mr(number) else {
            return;
        };
        self.sim.set_user_mr(number, None);
        let in_use = self.sim.qps_at_work.get() > 0;
        self.sim
            .coverage(|c| c.deregistered_in_use += usize::from(in_use));
        self.deregister_mr(&mr);
    }

    /// The work that frees chunks.
    fn reap_mirrors(&'t self) {
        while !self.sim.closing.get() {
            let to_be_reaped = {
                let mirrors = self.sim.driver.mirrors.borrow();
                mirrors
                    .iter()
                    .find(|mirror| mirror.is_to_be_reaped())
                    .cloned()
            };
            match to_be_reaped {
                // It is flushed before a mirror is released.
                Some(mirror) => mirror.reap(self),
                None => self.wait(self.sim.reap),
            }
        }
    }

    /// The work that retires children of implicit MRs.
    fn retire_children(&'t self) {
        let sim = self.sim;
        while !sim.closing.get() {
            let next = {
                let parents = sim.driver.parents.borrow();
                let due = |parent: &Rc<ParentData>| Some((parent.retires_at()?, Rc::clone(parent)));
                parents.iter().filter_map(due).min_by_key(|(at, _)| *at)
            };
            match next {
                Some((at, parent)) if at <= sim.now() => Parent::new(&parent, self).retire(),
                next => self.wait_until(sim.retire, next.map(|(at, _)| at)),
            }
        }
    }

    /// In the end a child with nothing in it is gone, unless a device that fails may have it.
    fn check_children(&self) {
        let sim = self.sim;
        let is_at_rest = || {
            let (mirrors, parents) = (&sim.driver.mirrors, &sim.driver.parents);
            mirrors.borrow().iter().all(|mirror| mirror.is_reaped())
                && parents.borrow().iter().all(|parent| parent.is_at_rest())
        };
        while !is_at_rest() && !sim.is_over() {
            self.sleep(PAUSE);
        }
        let parents = sim.driver.parents.borrow();
        let left: usize = parents.iter().map(|parent| parent.empty_children()).sum();
        drop(parents);
        if left > 0 && !sim.trouble.umrs_fail {
            sim.fail(
                "a leak",
                format_args!("{left} children with nothing in them"),
            );
        }
    }
}

/// Lets threads, the device and its interrupts have their turns until all threads have ended.
fn schedule(sim: &Rc<Sim>, coroutines: &mut Coroutines<'_>) {
    let mut oracle = Oracle::default();
    let mut turns = Vec::new();
    let mut last = Turn::Clock;
    loop {
        if sim.steps() == TOO_LONG {
            sim.fail("it does not end", format_args!("{}", sim.tasks));
        }
        turns.clear();
        let look = sim.tasks.look(|id| turns.push(Turn::Thread(id)));
        let alarm = {
            let adapter = sim.adapter.borrow();
            let mut add = |is_due: bool, turn| {
                if is_due {
                    turns.push(turn);
                }
            };
            add(adapter.busy, Turn::Device);
            add(adapter.has_completions(), Turn::Completions);
            add(
                adapter.has_events() || sim.events.is_to_be_drained(),
                Turn::Events,
            );
            earlier(adapter.alarm, look.alarm)
        };
        if look.all_done && turns.is_empty() {
            break;
        }
        if let Some(at) = alarm {
            if turns.is_empty() || sim.choices.borrow_mut().one_in(16) {
                let mut adapter = sim.adapter.borrow_mut();
                adapter.now = adapter.now.max(at);
                adapter.busy |= adapter.alarm.is_some_and(|alarm| alarm <= at);
                sim.tasks.expire(at);
                continue;
            }
        }
        if turns.is_empty() {
            sim.fail("a deadlock", format_args!("{}", sim.tasks));
        }
        // The first choice goes on with what is under way.
        if let Some(at) = turns.iter().position(|turn| *turn == last) {
            turns.swap(0, at);
        }
        let turn = turns[sim.choices.borrow_mut().pick(turns.len())];
        last = turn;
        sim.coverage(|c| c.steps += 1);
        match turn {
            Turn::Thread(id) => coroutines.resume(id),
            Turn::Device => sim.adapter.borrow_mut().step(),
            Turn::Completions => sim.poll_cq(),
            Turn::Events => sim.events.drain(sim),
            Turn::Clock => {}
        }
        oracle.check(sim);
    }
    oracle.check_at_end(sim);
}
