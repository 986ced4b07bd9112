// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Handles: the numbers by which driver and device name objects and addresses.

use std::fmt;

pub use firmware_cmds::DmaAddr;

/// The address `bytes` further on; wraps like the hardware's adder.
#[must_use]
pub fn offset(address: DmaAddr, bytes: u64) -> DmaAddr {
    DmaAddr::new(address.get().wrapping_add(bytes))
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

handle! {
    /// Event queue number, 8 bits.
    Eqn(u8)
}
handle! {
    /// Completion queue number, 24 bits.
    Cqn(u32)
}
handle! {
    /// Queue pair number, 24 bits.
    Qpn(u32)
}
handle! {
    /// Shared receive queue number, 24 bits. RMPs and XRC SRQs share this space, as the
    /// driver keeps both in one table (`mlx5_ib/srq_cmd.c`).
    Srqn(u32)
}
handle! {
    /// Protection domain number, 24 bits.
    Pdn(u32)
}
handle! {
    /// XRC domain number, 24 bits.
    Xrcdn(u32)
}
handle! {
    /// Transport domain number, 24 bits.
    Tdn(u32)
}
handle! {
    /// Index of a 4 KiB page of doorbells in BAR 0, 24 bits.
    Uar(u32)
}

/// Hands out numbers of one kind, in a rotation: a number that was freed comes back as
/// late as possible, so that a stale one is noticed rather than taken for its successor.
#[derive(Clone, Debug)]
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
