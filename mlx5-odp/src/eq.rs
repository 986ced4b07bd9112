// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The page-fault event queue: handing events out without losing one.

use firmware_cmds::Eqe;

/// Entries after which the device must be told how far the driver is, even when there is more to
/// do: an EQ has so many to spare (`MLX5_NUM_SPARE_EQE`).
pub const SPARE: u32 = 0x80;

/// An event with its number: how many came before it. Wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The entry.
    pub eqe: Eqe,
    /// The number.
    pub number: u32,
}

/// A page-fault EQ, locked, possibly in interrupt context: no method sleeps.
pub trait EventQueue {
    /// Memory for one event to be served later.
    type Slot;

    /// The entry `ahead` of the first one that was not consumed, if the device has written it.
    fn peek(&self, ahead: u32) -> Option<Eqe>;

    /// Memory for an event, if there is any now.
    fn slot(&mut self) -> Option<Self::Slot>;

    /// Has `event` served outside of interrupt context, concurrently with others.
    fn dispatch(&mut self, slot: Self::Slot, event: Event);

    /// The number of the next event: how many were consumed since the queue was made. Wraps.
    fn consumed(&self) -> u32;

    /// Has [`drain`] called again, outside of interrupt context, when there is memory.
    fn drain_later(&mut self);

    /// Tells the device that `count` more entries are free, and whether to interrupt again.
    fn consume(&mut self, count: u32, arm: bool);
}

/// Dispatches all events that are there. Those for which there is no memory stay in the queue.
pub fn drain(queue: &mut impl EventQueue) {
    let mut done = 0;

    while let Some(eqe) = queue.peek(done) {
        let number = queue.consumed().wrapping_add(done);
        let Some(slot) = queue.slot() else {
            queue.drain_later();
            break;
        };
        queue.dispatch(slot, Event { eqe, number });
        done += 1;
        if done == SPARE {
            queue.consume(done, false);
            done = 0;
        }
    }
    // Armed in any case: an event that comes now must not go unnoticed.
    queue.consume(done, true);
}

/// The number of the first event that the device has not written yet: what it writes from now on
/// has this number or a later one ([`hmm_abi::Device::moment`]).
pub fn moment(queue: &impl EventQueue) -> u32 {
    let mut written = 0;
    while queue.peek(written).is_some() {
        written += 1;
    }
    queue.consumed().wrapping_add(written)
}
