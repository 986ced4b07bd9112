// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Numbers for new objects.

use serde::Serialize;

/// Hands out numbers of one kind, in a rotation: a number that was freed comes back as
/// late as possible, so that a stale one is noticed rather than taken for its successor.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    first: u32,
    last: u32,
    next: u32,
}

impl Numbers {
    /// Numbers `first..=last`.
    #[must_use]
    pub fn new(first: u32, last: u32) -> Self {
        assert!(first <= last);
        Self {
            first,
            last,
            next: first,
        }
    }

    /// Numbers from `first` on that are below `2^log`, as the capabilities state it.
    #[must_use]
    pub fn below(first: u32, log: u64) -> Self {
        Self::new(first, (1 << log) - 1)
    }

    /// The next number that `used` does not know, or `None` when all are in use.
    pub fn take(&mut self, used: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in self.first..=self.last {
            let n = self.next;
            self.next = if n == self.last { self.first } else { n + 1 };
            if !used(n) {
                return Some(n);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rotate_and_run_out() {
        let mut numbers = Numbers::new(5, 7);
        assert_eq!(numbers.take(|_| false), Some(5));
        assert_eq!(numbers.take(|_| false), Some(6));
        assert_eq!(numbers.take(|n| n == 7), Some(5));
        assert_eq!(numbers.take(|_| true), None);
    }
}
