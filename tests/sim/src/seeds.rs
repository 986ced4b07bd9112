// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Many runs, and what is to be said of one that fails.

use std::fmt;
use std::ops::Range;

use crate::choice::Choices;
use crate::coverage::Coverage;
use crate::mutant::Mutant;
use crate::plan::Plan;
use crate::run::{run, Outcome};
use crate::shrink::shrink;
use crate::sim::Finding;
use crate::task::Stacks;

/// A run that an oracle did not like.
#[derive(Clone)]
pub struct Failure {
    /// The seed that it came from.
    pub seed: u64,
    /// What was found.
    pub finding: Finding,
    /// What happened, line by line.
    pub trace: Vec<String>,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) plan: Plan,
    pub(crate) record: Vec<u8>,
}

impl Failure {
    /// A run as short as can be found in which the same goes wrong. It takes some hundred runs.
    #[must_use]
    pub fn shrunk(&self) -> Self {
        shrink(self, &mut Stacks::default())
    }

    /// Runs exactly this again.
    #[must_use]
    pub fn again(&self) -> Option<Finding> {
        let choices = Choices::of_record(self.record.clone());
        let outcome = run(
            &self.plan,
            choices,
            self.mutant,
            false,
            &mut Stacks::default(),
        );
        outcome.finding
    }

    /// How many choices it took that were not the tamest.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.record.iter().filter(|&&choice| choice != 0).count()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {}: {}",
            self.seed, self.finding.kind, self.finding.text
        )?;
        writeln!(f, "{}", self.plan)?;
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What came of many runs.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// How many.
    pub runs: usize,
    /// The fewest steps of a run that ended well.
    pub fewest_steps: usize,
    /// What they have come across.
    pub coverage: Coverage,
    /// The first that failed, which was the last.
    pub failure: Option<Failure>,
}

impl Explored {
    /// Adds what came of others.
    pub fn add(&mut self, other: Self) {
        self.fewest_steps = match self.runs {
            0 => other.fewest_steps,
            _ => self.fewest_steps.min(other.fewest_steps),
        };
        self.runs += other.runs;
        self.coverage.add(&other.coverage);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Runs seeds, until one fails.
#[must_use]
pub fn explore(seeds: Range<u64>, mutant: Option<Mutant>) -> Explored {
    let mut stacks = Stacks::default();
    let mut explored = Explored::default();
    for seed in seeds {
        let plan = Plan::of_seed(seed);
        let Outcome {
            finding,
            coverage,
            record,
            ..
        } = run(&plan, Choices::of_seed(seed), mutant, false, &mut stacks);
        let failure = finding.map(|finding| {
            let choices = Choices::of_record(record.clone());
            let again = run(&plan, choices, mutant, true, &mut stacks);
            Failure {
                seed,
                finding,
                trace: again.trace,
                mutant,
                plan,
                record,
            }
        });
        explored.add(Explored {
            runs: 1,
            fewest_steps: coverage.steps,
            coverage,
            failure,
        });
        if explored.failure.is_some() {
            break;
        }
    }
    explored
}
