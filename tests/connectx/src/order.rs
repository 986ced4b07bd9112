// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The order of what the hardware leaves open: which QP works next and how far it gets,
//! which rung command runs first, when a completion or an event is seen.
//!
//! Wherever a ConnectX promises nothing, the device asks its [`Order`]. Without a seed what
//! came first is done first, as far as it goes, and is seen at once. With a seed a generator
//! chooses, and the same seed with the same inputs chooses the same.
//!
//! What the InfiniBand specification or the PRM order is not asked for: the WQEs of a QP and
//! its CQEs, the bytes of a message before its CQE, the effect of a UMR before its CQE, the
//! entries of a queue, the events about one object.

use std::fmt;

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Decides what the hardware leaves open.
#[derive(Clone, Default, Serialize)]
pub struct Order {
    #[serde(flatten)]
    seeded: Option<Seeded>,
}

#[derive(Clone, Serialize)]
struct Seeded {
    seed: u64,
    /// Its numbers for a seed are the same in every version of its crate.
    #[serde(skip)]
    generator: ChaCha8Rng,
}

/// The shortest slice of a message with a seed: the smallest path MTU.
const SHORTEST: u64 = 256;

impl Order {
    /// First in, first out.
    #[must_use]
    pub fn fifo() -> Self {
        Self::default()
    }

    /// The order of this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seeded: Some(Seeded {
                seed,
                generator: ChaCha8Rng::seed_from_u64(seed),
            }),
        }
    }

    /// The seed, if there is one.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.seeded.as_ref().map(|seeded| seeded.seed)
    }

    /// One of `candidates`, which are in the order in which they came; 0, the first, without
    /// a seed.
    pub fn pick(&mut self, candidates: usize) -> usize {
        let Some(seeded) = self.seeded.as_mut().filter(|_| candidates > 1) else {
            return 0;
        };
        // The upper bits of the product: as good as even for numbers as small as these.
        let product = u128::from(seeded.generator.next_u64()) * candidates as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// Whether something that may be done later is; never without a seed.
    pub fn later(&mut self) -> bool {
        self.pick(2) == 1
    }

    /// How many bytes of at most `most` are moved before others have their turn; all of them
    /// without a seed, whole packets with one.
    pub fn slice(&mut self, most: u64) -> u64 {
        // Every size between is as likely as its double.
        let doublings = most.max(SHORTEST).ilog2() - SHORTEST.ilog2();
        let halved = self.pick(usize::try_from(doublings).unwrap_or(0) + 1);
        (most >> halved).max(SHORTEST).min(most)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("seed", &self.seed()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_seed_the_first_whole_and_at_once() {
        let mut order = Order::fifo();
        assert_eq!((order.pick(7), order.slice(1 << 18)), (0, 1 << 18));
        assert!(!order.later());
    }

    #[test]
    fn a_seed_chooses_the_same_again_and_another_differently() {
        let choices = |seed| {
            let mut order = Order::seeded(seed);
            std::array::from_fn::<_, 64, _>(|_| order.pick(5))
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
        // Every candidate has its turn.
        assert!((0..5).all(|n| choices(1).contains(&n)));
        // For ever: a seed that was written down says the same in every version.
        assert_eq!(choices(1)[..8], [2, 0, 2, 1, 1, 3, 2, 0]);
    }

    #[test]
    fn slices_are_whole_packets_or_everything() {
        let mut order = Order::seeded(3);
        let slices: Vec<u64> = (0..200).map(|_| order.slice(1 << 18)).collect();
        assert!(slices
            .iter()
            .all(|n| n % SHORTEST == 0 && (SHORTEST..=1 << 18).contains(n)));
        assert!(slices.contains(&SHORTEST) && slices.contains(&(1 << 18)));
        assert_eq!(order.slice(100), 100);
    }
}
