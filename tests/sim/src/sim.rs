// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The world of one run.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectx::Journal;
use firmware_cmds::Scheme;
use hmm_abi::HmmPfn;

use crate::adapter::{Adapter, Completion};
use crate::choice::Choices;
use crate::coverage::Coverage;
use crate::driver::eq::{Events, LockedEq};
use crate::driver::region::UserMr;
use crate::driver::umr::Umrs;
use crate::driver::State;
use crate::lock::{Class, RwLock};
use crate::memory::{Memory, Shared};
use crate::mutant::Mutant;
use crate::notifier::Notifiers;
use crate::plan::{Plan, Trouble};
use crate::task::{Channel, Tasks, Thread};

/// What an oracle found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: &'static str,
    /// Where.
    pub text: String,
    /// After so many steps.
    pub step: usize,
}

/// Unwinds a thread, or the scheduler, to where the finding is looked at.
struct Found;

/// Everything there is.
pub(crate) struct Sim {
    pub(crate) choices: RefCell<Choices>,
    pub(crate) tasks: Tasks,
    pub(crate) memory: Shared,
    pub(crate) adapter: RefCell<Adapter>,
    pub(crate) notifiers: Notifiers,
    pub(crate) mmap_lock: RwLock,
    pub(crate) driver: State,
    pub(crate) events: Events,
    umrs: OnceCell<Umrs>,
    pub(crate) scheme: Scheme,
    pub(crate) trouble: Trouble,
    mutant: Option<Mutant>,
    finding: RefCell<Option<Finding>>,
    over: Cell<bool>,
    coverage: RefCell<Coverage>,
    trace: Option<RefCell<Vec<String>>>,
    /// Users of the process's memory.
    pub(crate) mm_users: Cell<usize>,
    mrs: Cell<usize>,
    /// By number in the plan.
    user_mrs: RefCell<Vec<Option<UserMr>>>,
    completions: RefCell<VecDeque<Completion>>,
    pub(crate) qps_at_work: Cell<usize>,
    scratch: RefCell<Vec<HmmPfn>>,
    /// A thread has ended.
    pub(crate) ended: Channel,
    /// A page is no longer being moved, or was filled in.
    pub(crate) resolved: Channel,
    /// A page waits for a userfaultfd.
    pub(crate) wanted: Channel,
    /// The last user of the process's memory is gone.
    pub(crate) mm_unused: Channel,
    /// A reference on an MKey is gone.
    pub(crate) unused: Channel,
    /// There are chunks to be freed.
    pub(crate) reap: Channel,
    /// There are children to be retired.
    pub(crate) retire: Channel,
    /// Work that frees chunks or retires children is done.
    pub(crate) reaped: Channel,
    /// There is something to be prefetched.
    pub(crate) advised: Channel,
    /// There are completions.
    pub(crate) completed: Channel,
    /// The threads that wait for work end.
    pub(crate) closing: Cell<bool>,
}

impl Sim {
    pub(crate) fn new(
        plan: &Plan,
        choices: Choices,
        mutant: Option<Mutant>,
        is_traced: bool,
    ) -> Rc<Self> {
        let tasks = Tasks::default();
        let memory = Shared(Arc::new(Mutex::new(Memory::new(&plan.areas))));
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        let mut journal = Journal::new(move |line: &str| {
            if let Ok(mut log) = sink.lock() {
                log.push(line.to_owned());
            }
        });
        journal.trace = is_traced;
        let adapter = Adapter::new(plan.scheme, plan.device, &memory, journal);
        let [wait, there] = [(); 2].map(|()| tasks.channel());
        let [ended, resolved, wanted, mm_unused, unused, completed] =
            [(); 6].map(|()| tasks.channel());
        let [reap, retire, reaped, advised] = [(); 4].map(|()| tasks.channel());
        let sim = Rc::new_cyclic(|_| Self {
            choices: RefCell::new(choices),
            memory,
            adapter: RefCell::new(adapter),
            notifiers: Notifiers::new(wait),
            mmap_lock: RwLock::new(tasks.channel(), Class::Mmap),
            driver: State::default(),
            events: Events::new(there, plan.slots),
            umrs: OnceCell::new(),
            scheme: plan.scheme,
            trouble: plan.trouble,
            mutant,
            finding: RefCell::default(),
            over: Cell::new(false),
            coverage: RefCell::default(),
            trace: is_traced.then(RefCell::default),
            mm_users: Cell::new(1),
            mrs: Cell::new(0),
            user_mrs: RefCell::new(vec![None; plan.mrs.len()]),
            completions: RefCell::default(),
            qps_at_work: Cell::new(plan.qps.len()),
            scratch: RefCell::default(),
            ended,
            resolved,
            wanted,
            mm_unused,
            unused,
            reap,
            retire,
            reaped,
            advised,
            completed,
            closing: Cell::new(false),
            tasks,
        });
        let umrs = Umrs::new(&sim, &mut sim.adapter.borrow_mut(), plan.umrs);
        assert!(sim.umrs.set(umrs).is_ok());
        sim
    }

    /// The UMR QP.
    pub(crate) fn umrs(&self) -> &Umrs {
        self.umrs.get().expect("set when the world was made")
    }

    /// Whether this mistake is made.
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Time.
    pub(crate) fn now(&self) -> Duration {
        self.adapter.borrow().now
    }

    /// Scheduling decisions so far.
    pub(crate) fn steps(&self) -> usize {
        self.coverage.borrow().steps
    }

    /// Counts.
    pub(crate) fn coverage(&self, f: impl FnOnce(&mut Coverage)) {
        f(&mut self.coverage.borrow_mut());
    }

    /// What was counted.
    pub(crate) fn counted(&self) -> Coverage {
        self.coverage.borrow().clone()
    }

    /// A line of the trace, if there is one.
    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:5} {}", self.steps(), line());
            trace.borrow_mut().push(line);
        }
    }

    /// The trace.
    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// Ends the run: an oracle found something.
    pub(crate) fn fail(&self, kind: &'static str, text: fmt::Arguments<'_>) {
        if self.is_over() {
            return;
        }
        self.trace(|| format!("FOUND {kind}: {text}"));
        *self.finding.borrow_mut() = Some(Finding {
            kind,
            text: text.to_string(),
            step: self.steps(),
        });
        self.end();
        resume_unwind(Box::new(Found));
    }

    /// What was found.
    pub(crate) fn take_finding(&self) -> Option<Finding> {
        self.finding.borrow_mut().take()
    }

    /// Nothing waits any more.
    pub(crate) fn end(&self) {
        self.over.set(true);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// `mmget_not_zero`.
    pub(crate) fn get_mm(&self) -> bool {
        let users = self.mm_users.get();
        self.mm_users.set(users + usize::from(users > 0));
        users > 0
    }

    /// `mmput`.
    pub(crate) fn put_mm(&self) {
        self.mm_users.set(self.mm_users.get().saturating_sub(1));
        if self.mm_users.get() == 0 {
            self.tasks.wake(self.mm_unused);
        }
    }

    /// The IOMMU's range for another MR.
    pub(crate) fn next_mr(&self) -> usize {
        self.mrs.set(self.mrs.get() + 1);
        self.mrs.get() - 1
    }

    /// The MR that the plan counts so.
    pub(crate) fn user_mr(&self, number: usize) -> Option<UserMr> {
        self.user_mrs.borrow()[number].clone()
    }

    /// Sets it.
    pub(crate) fn set_user_mr(&self, number: usize, mr: Option<UserMr>) {
        self.user_mrs.borrow_mut()[number] = mr;
    }

    /// The kernel's clock.
    pub(crate) fn milliseconds(&self) -> u32 {
        u32::try_from(self.now().as_millis()).unwrap_or(u32::MAX)
    }

    /// The number of the first event that the device has not written yet.
    pub(crate) fn moment(&self) -> u32 {
        mlx5_odp::moment(&LockedEq(self))
    }

    /// The interrupt of the CQ.
    pub(crate) fn poll_cq(&self) {
        loop {
            let completion = self.adapter.borrow_mut().poll_cq();
            let Some(completion) = completion else { return };
            if completion.qpn == self.umrs().qpn() {
                self.umrs().completed(self, &completion);
            } else {
                self.completions.borrow_mut().push_back(completion);
                self.tasks.wake(self.completed);
            }
        }
    }

    /// The first completion of which `is_it` holds; those of receives are dropped.
    pub(crate) fn take_completion(
        &self,
        is_it: impl Fn(&Completion) -> bool,
    ) -> Option<Completion> {
        let mut completions = self.completions.borrow_mut();
        completions.retain(|completion| !completion.receive);
        let at = completions.iter().position(is_it)?;
        completions.remove(at)
    }

    /// With a mutant: what a range fault found goes through what all of them share.
    pub(crate) fn share_scratch(&self, thread: &Thread<'_>, found: &mut [HmmPfn]) {
        *self.scratch.borrow_mut() = found.to_vec();
        thread.step();
        for (found, shared) in found.iter_mut().zip(&*self.scratch.borrow()) {
            *found = *shared;
        }
    }
}
