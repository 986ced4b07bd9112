// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MKey and its UMRs: what `drivers/mlx5_ib/umr.rs` does for [`mlx5_odp::key`].

use std::cell::Cell;
use std::rc::Rc;

use firmware_cmds::Mkey;
use hmm_abi::{Device, LockedChunk, NotZapped, PublishError, Table, Zap};
use mlx5_odp::key::{self, Gate, UmrError};
use mlx5_odp::xlt;

use super::umr::{Piece, Umr, MTTS};
use crate::lock::{Class, Lock};
use crate::mutant::Mutant;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

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

    /// Whether the device can use none of its translations.
    pub(crate) fn is_gone(&self) -> bool {
        self.gate.get() == Gate::Gone
    }
}

/// The MKey, to a thread.
#[derive(Clone)]
pub(crate) struct Key<'t> {
    pub(crate) data: Rc<KeyData>,
    pub(crate) thread: &'t Thread<'t>,
    /// With a mutant: its UMRs do not care whether it is there.
    is_ungated: bool,
}

impl<'t> Key<'t> {
    pub(crate) fn new(data: Rc<KeyData>, thread: &'t Thread<'t>) -> Self {
        Self {
            data,
            thread,
            is_ungated: false,
        }
    }

    /// For UMRs that write its translations.
    fn for_updates(&self) -> Self {
        Self {
            is_ungated: self.thread.sim.has(Mutant::ZapOfDestroyedKey),
            ..self.clone()
        }
    }

    /// It is about to be destroyed.
    pub(crate) fn close(&self) {
        match self.thread.sim.has(Mutant::OpenWhileDestroyed) {
            true => drop(key::revoke(self)),
            false => key::close(self),
        }
    }
}

/// A UMR, and what it is to write.
pub(crate) struct Filled {
    umr: Umr,
    mtts: Box<[[u8; xlt::MTT_LEN]]>,
}

impl key::Umr for Filled {
    fn mtts(&mut self) -> &mut [[u8; xlt::MTT_LEN]] {
        &mut self.mtts
    }

    fn is_last(&self) -> bool {
        self.umr.is_last
    }
}

impl mlx5_odp::Key for Key<'_> {
    type Umr = Filled;
    type Error = UmrError;

    fn umr(&self) -> Option<Filled> {
        Some(Filled {
            umr: self.thread.sim.umrs().get(self.thread),
            mtts: vec![[0xff; xlt::MTT_LEN]; MTTS].into(),
        })
    }

    fn put(&self, filled: Filled) {
        self.thread.sim.umrs().put(self.thread, &filled.umr);
    }

    fn gate<R>(&self, mut f: impl FnMut(&mut Gate) -> Option<R>) -> R {
        let KeyData {
            gate,
            lock,
            changed,
            ..
        } = &*self.data;
        let sim = self.thread.sim;
        if self.is_ungated {
            if let Some(result) = f(&mut Gate::Open) {
                return result;
            }
        }
        lock.lock(self.thread);
        loop {
            let before = match gate.get() {
                // Nobody comes to change it any more.
                Gate::Revoking if sim.is_over() => Gate::Gone,
                gate => gate,
            };
            let mut after = before;
            let result = f(&mut after);
            if after != before {
                gate.set(after);
                sim.tasks.wake(*changed);
            }
            if let Some(result) = result {
                lock.unlock(self.thread);
                return result;
            }
            lock.wait(self.thread, *changed);
        }
    }

    fn post(
        &self,
        filled: &mut Filled,
        first: usize,
        mtts: usize,
        blank: bool,
    ) -> Result<(), UmrError> {
        let sim = self.thread.sim;
        let bytes = match blank {
            true => vec![0; mtts * xlt::MTT_LEN],
            false => filled.mtts[..mtts].as_flattened().to_vec(),
        };
        sim.adapter.borrow().write(filled.umr.buffer, &bytes);
        let piece = Piece {
            first: first * xlt::MTT_LEN,
            len: bytes.len(),
        };
        sim.umrs()
            .post(self.thread, &mut filled.umr, self.data.mkey, piece);
        Ok(())
    }

    fn wait(&self, filled: &Filled) -> Result<(), UmrError> {
        let umrs = self.thread.sim.umrs();
        umrs.wait(self.thread, &filled.umr, self.data.mkey)
    }

    fn revoke_mkey(&self) -> Result<(), UmrError> {
        let umrs = self.thread.sim.umrs();
        umrs.revoke(self.thread, self.data.mkey)
    }
}

/// A zap under way.
pub(crate) type Ticket = key::Ticket<Filled>;

impl Device for Key<'_> {
    const GRANULE: usize = xlt::UMR_BLOCK;
    const LATE: u32 = mlx5_odp::LATE;
    type Ticket = Ticket;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        key::publish(&self.for_updates(), table)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<Ticket>, NotZapped> {
        key::zap(&self.for_updates(), table)
    }

    fn settle(&self, ticket: Ticket) -> Result<(), NotZapped> {
        if self.thread.sim.has(Mutant::ZapNotWaitedFor) {
            return Ok(());
        }
        key::settle(self, ticket)
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.thread.sim.coverage(|c| c.cut_off += 1);
        key::revoke(self).map_err(|_| NotZapped)
    }

    fn now(&self) -> u32 {
        self.thread.sim.milliseconds()
    }

    fn moment(&self) -> u32 {
        self.thread.sim.moment()
    }
}
