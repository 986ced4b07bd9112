// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device's translation tables. What is posted is done: the real thing, the software ConnectX,
//! is what `tests/sim` is for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firmware_cmds::{Mkey, Mtt, Wire};
use hmm_abi::{Device, LockedChunk, NotZapped, PublishError, Table, Zap};
use mlx5_odp::xlt;

use super::eq::Eq;
use super::world::World;

#[derive(Default)]
pub(crate) struct Nic {
    pub(crate) keys: BTreeSet<u32>,
    mtts: BTreeMap<(u32, usize), Mtt>,
    pub(crate) publishes: usize,
    pub(crate) zaps: usize,
    pub(crate) eq: Eq,
}

impl Nic {
    /// What the device has for an entry.
    pub(crate) fn mtt(&self, mkey: Mkey, at: usize) -> Mtt {
        *self
            .mtts
            .get(&(mkey.get(), at))
            .unwrap_or(&Mtt::NOT_PRESENT)
    }
}

/// What a key's table is reached by.
pub(crate) struct Key {
    pub(crate) world: Arc<World>,
    pub(crate) mkey: Mkey,
}

impl Key {
    fn write<L: LockedChunk>(&self, nic: &mut Nic, table: &Table<'_, L>) {
        let mut bytes = vec![[0xff; xlt::MTT_LEN]; table.len().next_multiple_of(xlt::UMR_BLOCK)];
        assert_eq!(xlt::fill(table, &mut bytes[1..]), None, "it is too short");
        assert_eq!(xlt::fill(table, &mut bytes), Some(bytes.len()));
        for (at, bytes) in (table.first().0..).zip(&bytes) {
            let mtt = Mtt::parse(bytes).unwrap();
            nic.mtts.insert((self.mkey.get(), at), mtt);
        }
    }
}

impl Device for Key {
    const GRANULE: usize = xlt::UMR_BLOCK;
    const LATE: u32 = mlx5_odp::LATE;
    type Ticket = ();

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        assert!(!table.is_blank(), "nothing to publish");
        let mut state = self.world.state();
        if !state.nic.keys.contains(&self.mkey.get()) {
            return Err(PublishError::Gone);
        }
        let error = state.trouble.publishes.pop_front();
        if error != Some(PublishError::Again) {
            state.nic.publishes += 1;
            self.write(&mut state.nic, table);
        }
        error.map_or(Ok(()), Err)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<()>, NotZapped> {
        let mut state = self.world.state();
        if !state.nic.keys.contains(&self.mkey.get()) {
            return Ok(Zap::Gone);
        }
        if state.trouble.zaps.pop_front() == Some(true) {
            return Err(NotZapped);
        }
        state.nic.zaps += 1;
        self.write(&mut state.nic, table);
        Ok(Zap::Posted(()))
    }

    fn settle(&self, (): ()) -> Result<(), NotZapped> {
        Ok(())
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        let mut state = self.world.state();
        if state.trouble.revoke {
            return Err(NotZapped);
        }
        state.nic.keys.remove(&self.mkey.get());
        Ok(())
    }

    fn now(&self) -> u32 {
        self.world.state().clock
    }

    fn moment(&self) -> u32 {
        mlx5_odp::moment(&self.world.state().nic.eq)
    }
}
