// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which events are served: for who may go on only when all before one are.

/// The generation of an event that was dispatched, to be given back when it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Generation(bool);

/// The events of a queue that were dispatched and are not served yet, under the queue's lock.
///
/// They are counted, by two generations: what is dispatched belongs to the newer one, and when the
/// older one is served whole, the newer one becomes the older. So it may take until a few later
/// events are served for one to be known as served.
#[derive(Debug)]
pub struct Unserved {
    counts: [usize; 2],
    newer: bool,
    /// The number of the first event of the newer generation: all before it are served, or of the
    /// older one.
    newer_from: u32,
    /// All events before this number are served.
    served: u32,
    /// The number of the next event to be dispatched.
    next: u32,
}

impl Unserved {
    /// Of a queue whose next event has this number.
    pub const fn new(next: u32) -> Self {
        Self {
            counts: [0; 2],
            newer: false,
            newer_from: next,
            served: next,
            next,
        }
    }

    /// Event `number` is dispatched; the next one has the next number.
    pub fn dispatch(&mut self, number: u32) -> Generation {
        self.next = number.wrapping_add(1);
        self.counts[usize::from(self.newer)] += 1;
        Generation(self.newer)
    }

    /// An event is served: nobody will look for its key any more. Returns whether [`Unserved::served`]
    /// may say more than before.
    pub fn serve(&mut self, generation: Generation) -> bool {
        let count = &mut self.counts[usize::from(generation.0)];
        *count = count.saturating_sub(1);
        if self.counts[usize::from(!self.newer)] != 0 {
            return false;
        }
        self.served = self.newer_from;
        self.newer_from = self.next;
        self.newer = !self.newer;
        true
    }

    /// The number of an event before which all are served.
    pub fn served(&self) -> u32 {
        match self.counts {
            [0, 0] => self.next,
            _ => self.served,
        }
    }
}
