// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From a run that fails to a short one that fails for the same reason.

use crate::choice::Choices;
use crate::plan::{After, Plan};
use crate::run::{run, Outcome};
use crate::seeds::Failure;
use crate::task::Stacks;

/// Schedules that are tried with a plan before it is believed to do no harm.
const SCHEDULES: u64 = 60;

struct Shrinker<'s> {
    best: Failure,
    stacks: &'s mut Stacks,
}

/// A failure as short as can be found.
pub(crate) fn shrink(failure: &Failure, stacks: &mut Stacks) -> Failure {
    let mut shrinker = Shrinker {
        best: failure.clone(),
        stacks,
    };
    while shrinker.smaller_plan() {}
    shrinker.tamer_schedule();
    let Shrinker { mut best, stacks } = shrinker;
    let choices = Choices::of_record(best.record.clone());
    let again = run(&best.plan, choices, best.mutant, true, stacks);
    best.trace = again.trace;
    if let Some(finding) = again.finding {
        best.finding = finding;
    }
    best
}

impl Shrinker<'_> {
    /// Takes a run if the same goes wrong in it.
    fn take(&mut self, plan: &Plan, choices: Choices) -> bool {
        let Outcome {
            finding, record, ..
        } = run(plan, choices, self.best.mutant, false, self.stacks);
        let Some(finding) = finding.filter(|f| f.kind == self.best.finding.kind) else {
            return false;
        };
        self.best.plan = plan.clone();
        self.best.record = record;
        self.best.finding = finding;
        true
    }

    /// Whether a plan does the same harm, under some schedule.
    fn take_plan(&mut self, plan: &Plan) -> bool {
        let record = self.best.record.clone();
        if self.take(plan, Choices::of_record(record)) {
            return true;
        }
        let seed = self.best.seed;
        (0..SCHEDULES).any(|n| self.take(plan, Choices::of_seed(seed ^ n << 40)))
    }

    /// Leaves out one thing of the plan; false if every one of them is needed.
    fn smaller_plan(&mut self) -> bool {
        let plan = self.best.plan.clone();
        candidates(&plan)
            .iter()
            .any(|smaller| self.take_plan(smaller))
    }

    /// Makes as many choices the tamest as can be: blocks of them, then one by one.
    fn tamer_schedule(&mut self) {
        let mut block = self.best.record.len().next_power_of_two();
        while block > 0 {
            let mut at = 0;
            while at < self.best.record.len() {
                let mut record = self.best.record.clone();
                let end = record.len().min(at + block);
                if record[at..end].iter().any(|&choice| choice != 0) {
                    record[at..end].fill(0);
                    let plan = self.best.plan.clone();
                    let before = self.best.choices();
                    let old = self.best.clone();
                    if self.take(&plan, Choices::of_record(record)) && self.best.choices() >= before
                    {
                        self.best = old;
                    }
                }
                at += block;
            }
            block /= 2;
        }
    }
}

/// The plan with one thing left out, the largest first.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut candidates = Vec::new();
    let mut add = |change: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        change(&mut smaller);
        if smaller != *plan {
            candidates.push(smaller);
        }
    };
    add(&|plan| plan.trouble = crate::plan::Trouble::default());
    add(&|plan| plan.rules.clear());
    add(&|plan| plan.registrar.clear());
    add(&|plan| plan.advices.clear());
    for at in 0..2 {
        add(&|plan| plan.qps[at].clear());
        add(&|plan| plan.kernel[at].clear());
    }
    for at in 0..2 {
        for n in 0..plan.qps[at].len() {
            add(&|plan| {
                plan.qps[at].remove(n);
            });
        }
        for n in 0..plan.kernel[at].len() {
            add(&|plan| {
                plan.kernel[at].remove(n);
            });
        }
    }
    for n in 0..plan.rules.len() {
        add(&|plan| {
            plan.rules.remove(n);
        });
    }
    for n in 0..plan.registrar.len() {
        add(&|plan| {
            plan.registrar.remove(n);
        });
    }
    for n in 0..plan.advices.len() {
        add(&|plan| {
            plan.advices.remove(n);
        });
    }
    add(&|plan| plan.exits = false);
    add(&|plan| plan.device = None);
    add(&|plan| plan.trouble.memory = 0);
    add(&|plan| plan.trouble.reclaim = 0);
    add(&|plan| plan.trouble.busy = 0);
    add(&|plan| plan.workers = 1);
    add(&|plan| plan.slots = 4);
    add(&|plan| plan.umrs = 4);
    let at_once = |steps: &mut usize| *steps = 0;
    add(&|plan| {
        let delays = plan.kernel.iter_mut().flatten();
        delays.for_each(|After { steps, .. }| at_once(steps));
    });
    add(&|plan| {
        plan.registrar
            .iter_mut()
            .for_each(|After { steps, .. }| at_once(steps))
    });
    add(&|plan| {
        plan.advices
            .iter_mut()
            .for_each(|After { steps, .. }| at_once(steps))
    });
    candidates
}
