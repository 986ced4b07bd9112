// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MKey and the UMRs that write its translations: `drivers/mlx5_ib/umr.rs`.

use std::cell::Cell;
use std::rc::Rc;

use firmware_cmds::Mkey;
use hmm_abi::{Device, LockedChunk, NotZapped, PublishError, Table, Zap};
use mlx5_odp::xlt;

use super::umr::{Umr, UmrError, MTTS};
use crate::lock::{Class, Lock};
use crate::mutant::Mutant;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// How often a UMR that was flushed because of another one is posted again.
const RETRIES: u32 = 3;

/// Whether the device may use the MKey, and UMRs may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Revoking,
    Gone,
}

/// The MKey of a mirror.
pub(crate) struct KeyData {
    pub(crate) mkey: Mkey,
    gate: Cell<Gate>,
    lock: Lock,
    changed: Channel,
}

impl KeyData {
    pub(crate) fn new(sim: &Sim, mkey: Mkey) -> Self {
        Self {
            mkey,
            gate: Cell::new(Gate::Gone),
            lock: Lock::new(sim, Class::Gate),
            changed: sim.tasks.channel(),
        }
    }

    /// UMRs may name it.
    pub(crate) fn open(&self, thread: &Thread<'_>) {
        self.lock.lock(thread);
        self.gate.set(Gate::Open);
        self.lock.unlock(thread);
    }

    /// It was destroyed, or could not be.
    pub(crate) fn closed(&self, thread: &Thread<'_>, destroyed: bool) {
        self.lock.lock(thread);
        self.gate.set(match self.gate.get() {
            Gate::Revoking if !destroyed => Gate::Open,
            _ => Gate::Gone,
        });
        self.lock.unlock(thread);
        thread.sim.tasks.wake(self.changed);
    }

    /// Whether the device can use none of its translations.
    pub(crate) fn is_gone(&self) -> bool {
        self.gate.get() == Gate::Gone
    }

    fn lock_settled(&self, thread: &Thread<'_>) -> Gate {
        self.lock.lock(thread);
        while self.gate.get() == Gate::Revoking && !thread.sim.is_over() {
            self.lock.wait(thread, self.changed);
        }
        self.gate.get()
    }

    /// Revokes it, once.
    pub(crate) fn revoke(&self, thread: &Thread<'_>) -> Result<(), UmrError> {
        self.revoke_or(thread, Gate::Open)
    }

    /// Revokes it because it is about to be destroyed: no UMR names it until it is
    /// [`closed`](Self::closed), even if it cannot be revoked.
    pub(crate) fn close(&self, thread: &Thread<'_>) {
        let otherwise = match thread.sim.has(Mutant::OpenWhileDestroyed) {
            true => Gate::Open,
            false => Gate::Revoking,
        };
        // A failure is for DESTROY_MKEY to find.
        let _ = self.revoke_or(thread, otherwise);
    }

    /// Revokes it, once; `otherwise` is what it is if it cannot be.
    fn revoke_or(&self, thread: &Thread<'_>, otherwise: Gate) -> Result<(), UmrError> {
        if self.lock_settled(thread) == Gate::Gone {
            self.lock.unlock(thread);
            return Ok(());
        }
        self.gate.set(Gate::Revoking);
        self.lock.unlock(thread);
        let revoked = thread.sim.umrs().revoke(thread, self.mkey);
        self.lock.lock(thread);
        self.gate.set(match revoked {
            Ok(()) => Gate::Gone,
            Err(_) => otherwise,
        });
        self.lock.unlock(thread);
        thread.sim.tasks.wake(self.changed);
        revoked
    }
}

/// The MKey, to a thread.
#[derive(Clone)]
pub(crate) struct Key<'t> {
    pub(crate) data: Rc<KeyData>,
    pub(crate) thread: &'t Thread<'t>,
}

/// A zap under way; nothing if it is done.
#[derive(Debug)]
pub(crate) struct Ticket(Option<Umr>);

impl std::fmt::Debug for Umr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UMR {:#x}", self.buffer)
    }
}

impl Key<'_> {
    /// Posts the UMR that writes `table`. False if the MKey is gone; if it is being revoked, waits
    /// for that.
    fn post<L: LockedChunk>(&self, umr: &mut Umr, table: &Table<'_, L>) -> bool {
        let sim = self.thread.sim;
        let mut mtts = [[0xff; xlt::MTT_LEN]; MTTS];
        let Some(count) = xlt::fill(table, &mut mtts) else {
            sim.fail(
                "a table that is too long",
                format_args!("{} entries", table.len()),
            );
            return false;
        };
        sim.adapter
            .borrow()
            .write(umr.buffer, mtts[..count].as_flattened());
        if sim.has(Mutant::ZapOfDestroyedKey) {
            sim.umrs()
                .post(self.thread, umr, self.data.mkey, (table.first().0, count));
            return true;
        }
        let gate = self.data.lock_settled(self.thread);
        if gate == Gate::Open {
            sim.umrs()
                .post(self.thread, umr, self.data.mkey, (table.first().0, count));
        }
        self.data.lock.unlock(self.thread);
        gate == Gate::Open
    }

    fn wait(&self, umr: &Umr) -> Result<(), UmrError> {
        self.thread
            .sim
            .umrs()
            .wait(self.thread, umr, self.data.mkey)
    }

    fn put(&self, umr: &Umr) {
        self.thread.sim.umrs().put(self.thread, umr);
    }
}

impl Device for Key<'_> {
    const GRANULE: usize = xlt::UMR_BLOCK;
    const LATE: u32 = mlx5_odp::LATE;
    type Ticket = Ticket;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        let umrs = self.thread.sim.umrs();
        let mut umr = umrs.get(self.thread);
        let mut result = Err(PublishError::Again);
        for _ in 0..=RETRIES {
            if !self.post(&mut umr, table) {
                result = Err(PublishError::Gone);
                break;
            }
            match self.wait(&umr) {
                Ok(()) => {
                    result = Ok(());
                    break;
                }
                Err(UmrError::Again) => {}
                Err(UmrError::Fault) => {
                    result = Err(PublishError::Failed);
                    break;
                }
            }
        }
        self.put(&umr);
        result
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Ticket>, NotZapped> {
        let umrs = self.thread.sim.umrs();
        let mut umr = umrs.get(self.thread);
        if !self.post(&mut umr, table) {
            self.put(&umr);
            return Ok(Zap::Gone);
        }
        if umr.is_last {
            // Others wait for it, and whoever waits for this zap may wait for them.
            let result = self.wait(&umr);
            self.put(&umr);
            return match result {
                Ok(()) => Ok(Zap::Posted(Ticket(None))),
                Err(_) => Err(NotZapped),
            };
        }
        Ok(Zap::Posted(Ticket(Some(umr))))
    }

    fn settle(&self, ticket: Ticket) -> Result<(), NotZapped> {
        let Some(umr) = ticket.0 else {
            return Ok(());
        };
        if self.thread.sim.has(Mutant::ZapNotWaitedFor) {
            return Ok(());
        }
        let result = self.wait(&umr);
        self.put(&umr);
        result.map_err(|_| NotZapped)
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.thread.sim.coverage(|c| c.cut_off += 1);
        self.data.revoke(self.thread).map_err(|_| NotZapped)
    }

    fn now(&self) -> u32 {
        self.thread.sim.milliseconds()
    }

    fn moment(&self) -> u32 {
        self.thread.sim.moment()
    }
}
