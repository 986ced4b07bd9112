// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! How the memory of a process is reached: allocation, which may reclaim it, and the range faults of
//! a mirror.

pub(crate) mod change;
mod userfaultfd;

use hmm_abi::{HmmPfn, Need, Order, Pfn};

use crate::lock::Class;
use crate::memory::{Memory, Walked, COUNT, FIRST};
use crate::notifier::{Notifier, Pages};
use crate::task::Thread;

/// How often a range fault that is overtaken begins anew, before it has lasted for as long as the
/// kernel waits.
const PATIENCE: usize = 40;

impl Thread<'_> {
    /// An allocation that may reclaim memory, which it does once in a while; false if there is
    /// none to be had.
    pub(crate) fn allocate(&self) -> bool {
        let sim = self.sim;
        if self.invalidating.get() > 0 {
            sim.fail(
                "allocation in an invalidation",
                format_args!("{}", self.name()),
            );
        }
        self.check_order(Class::Reclaim);
        let (fails, reclaims) = {
            let mut choices = sim.choices.borrow_mut();
            (
                choices.one_in(sim.trouble.memory),
                choices.one_in(sim.trouble.reclaim),
            )
        };
        if reclaims && sim.mm_users.get() > 0 && !self.reclaiming.replace(true) {
            let victim = FIRST + sim.choices.borrow_mut().pick(COUNT);
            sim.coverage(|c| c.reclaims += 1);
            self.held.borrow_mut().push(Class::Reclaim);
            self.reclaim(victim);
            self.held
                .borrow_mut()
                .retain(|held| *held != Class::Reclaim);
            self.reclaiming.set(false);
        }
        !fails
    }

    /// `hmm_range_fault_unlocked_timeout`: what it finds, page by page, and the sequence.
    pub(crate) fn range_fault(
        &self,
        notifier: &Notifier,
        pages: &Pages,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<usize, RangeFault> {
        let sim = self.sim;
        'again: for _ in 0..PATIENCE {
            if sim.is_over() {
                break;
            }
            let sequence = sim.notifiers.read_begin(self, notifier);
            sim.mmap_lock.read(self);
            for (page, found) in pages.clone().zip(&mut *found) {
                // Pages of which there is nothing are passed over at once.
                if Memory::all().contains(&page) {
                    self.step();
                }
                let walked = self.memory(|memory| memory.walk(page, need));
                let wait = match walked {
                    Walked::Hole => {
                        *found = HmmPfn::EMPTY;
                        continue;
                    }
                    Walked::Found {
                        frame,
                        write,
                        order,
                    } => {
                        *found = HmmPfn::present(Pfn(frame), write, Order(order));
                        continue;
                    }
                    Walked::Invalid => Err(RangeFault::Fault),
                    Walked::WriteRefused => Err(RangeFault::Permission),
                    Walked::Shared => {
                        self.copy(page);
                        sim.mmap_lock.unlock(self);
                        continue 'again;
                    }
                    Walked::Migrating | Walked::Missing => Ok(()),
                };
                sim.mmap_lock.unlock(self);
                wait?;
                if sim.choices.borrow_mut().one_in(sim.trouble.busy) {
                    return Err(RangeFault::Busy);
                }
                // Who moves it or fills it in, wakes.
                sim.coverage(|c| c.stalled += 1);
                sim.tasks.wake(sim.wanted);
                self.wait(sim.resolved);
                continue 'again;
            }
            sim.mmap_lock.unlock(self);
            return Ok(sequence);
        }
        Err(RangeFault::Busy)
    }
}

/// An errno of a range fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RangeFault {
    /// `-EFAULT`.
    Fault,
    /// `-EPERM`.
    Permission,
    /// `-EBUSY`.
    Busy,
}
