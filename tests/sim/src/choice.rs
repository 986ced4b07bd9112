// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Every choice of a run, from a seed or from a record of an earlier run.

use connectx::Order;

/// Where choices come from; what was chosen is recorded.
#[derive(Debug)]
pub(crate) struct Choices {
    seed: Order,
    replay: Option<Vec<u8>>,
    taken: Vec<u8>,
}

impl Choices {
    /// Those of a seed.
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self {
            seed: Order::seeded(seed),
            replay: None,
            taken: Vec::with_capacity(2048),
        }
    }

    /// Those of a record; behind its end everything is 0, which is always the tamest choice.
    pub(crate) fn of_record(record: Vec<u8>) -> Self {
        Self {
            seed: Order::fifo(),
            replay: Some(record),
            taken: Vec::new(),
        }
    }

    /// One of `count` things, at most 256.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        if count < 2 {
            return 0;
        }
        let choice = match &self.replay {
            Some(record) => {
                let recorded = record.get(self.taken.len()).copied().unwrap_or(0);
                usize::from(recorded).min(count - 1)
            }
            None => self.seed.pick(count),
        };
        self.taken.push(u8::try_from(choice).unwrap_or(u8::MAX));
        choice
    }

    /// True once in `rarity` times; never if that is 0.
    pub(crate) fn one_in(&mut self, rarity: usize) -> bool {
        rarity != 0 && self.pick(rarity) == rarity - 1
    }

    /// What was chosen so far.
    pub(crate) fn into_record(self) -> Vec<u8> {
        self.taken
    }
}
