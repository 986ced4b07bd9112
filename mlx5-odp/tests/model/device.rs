// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The device's translation tables, one per key, which updates change in blocks of MTTs, in the
//! order in which they were posted; and its event queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use firmware_cmds::{DmaAddr, Mkey, Mtt, Wire};
use hmm_abi::{Device, LockedChunk, NotZapped, PublishError, Table, Zap};
use mlx5_odp::{xlt, EventQueue};

use super::eq::Eq;
use super::memory::{Frame, Memory};
use super::world::World;

/// An update that was posted.
struct Update {
    number: u64,
    key: u32,
    first: usize,
    mtts: Vec<Mtt>,
    /// How many of them the device has written.
    written: usize,
    is_zap: bool,
}

/// The table of one key.
#[derive(Default)]
struct KeyTable {
    mtts: BTreeMap<usize, Mtt>,
    gone: bool,
}

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accessed {
    Done,
    Fault,
    /// The key is gone.
    Gone,
}

pub(crate) struct Nic {
    tables: BTreeMap<u32, KeyTable>,
    updates: VecDeque<Update>,
    posted: u64,
    failed: BTreeSet<u64>,
    /// Publications posted.
    pub(crate) publishes: usize,
    /// Zaps posted.
    pub(crate) zaps: usize,
    /// Mappings, by bus address.
    bus: BTreeMap<u64, Frame>,
    next_address: u64,
    pub(crate) eq: Eq,
}

impl Default for Nic {
    fn default() -> Self {
        Self {
            tables: BTreeMap::new(),
            updates: VecDeque::new(),
            posted: 0,
            failed: BTreeSet::new(),
            publishes: 0,
            zaps: 0,
            bus: BTreeMap::new(),
            next_address: 0x1_0000_0000,
            // Event numbers wrap early on.
            eq: Eq::new(usize::MAX, u32::MAX - 10),
        }
    }
}

impl Nic {
    pub(crate) fn enable(&mut self, mkey: Mkey) {
        self.tables.insert(mkey.get(), KeyTable::default());
    }

    pub(crate) fn is_gone(&self, mkey: Mkey) -> bool {
        self.tables.get(&mkey.get()).is_none_or(|table| table.gone)
    }

    pub(crate) fn revoke(&mut self, mkey: Mkey) {
        if let Some(table) = self.tables.get_mut(&mkey.get()) {
            table.gone = true;
            table.mtts.clear();
        }
    }

    /// What the device has for an entry.
    pub(crate) fn mtt(&self, mkey: Mkey, at: usize) -> Mtt {
        let table = self.tables.get(&mkey.get());
        let mtt = table.and_then(|table| table.mtts.get(&at));
        mtt.copied().unwrap_or(Mtt::NOT_PRESENT)
    }

    /// One access to an entry's memory, which is the process's `page`.
    pub(crate) fn access(
        &self,
        memory: &Memory,
        (mkey, at): (Mkey, usize),
        page: usize,
        write: bool,
    ) -> Accessed {
        if self.is_gone(mkey) {
            return Accessed::Gone;
        }
        let mtt = self.mtt(mkey, at);
        let allowed = match write {
            true => mtt.access().write,
            false => mtt.access().read,
        };
        if !allowed {
            return Accessed::Fault;
        }
        let frame = self.bus.get(&mtt.addr().get());
        let frame = *frame.expect("the device uses an address that is not mapped");
        memory.reached(page, frame, write);
        Accessed::Done
    }

    pub(crate) fn map(&mut self, frame: Frame) -> u64 {
        self.next_address += 4096;
        self.bus.insert(self.next_address, frame);
        self.next_address
    }

    pub(crate) fn unmap(&mut self, address: u64) -> Frame {
        let visible = |mtt: &Mtt| mtt.is_present() && mtt.addr() == DmaAddr::new(address);
        let used = (self.tables.values()).any(|table| table.mtts.values().any(visible));
        assert!(!used, "unmapped while the device has it");
        self.bus.remove(&address).expect("unmapped twice")
    }

    pub(crate) fn is_anything_mapped(&self) -> bool {
        !self.bus.is_empty()
    }

    fn post(&mut self, key: u32, first: usize, mtts: Vec<Mtt>, is_zap: bool) -> u64 {
        assert_eq!(first % xlt::UMR_BLOCK, 0);
        assert_eq!(mtts.len() % xlt::UMR_BLOCK, 0);
        self.posted += 1;
        self.publishes += usize::from(!is_zap);
        self.zaps += usize::from(is_zap);
        self.updates.push_back(Update {
            number: self.posted,
            key,
            first,
            mtts,
            written: 0,
            is_zap,
        });
        self.posted
    }

    /// The device gets on by one block.
    pub(crate) fn get_on(&mut self, skip_zaps: bool) {
        let Some(update) = self.updates.front_mut() else {
            return;
        };
        let gone = self.tables.get(&update.key).is_none_or(|table| table.gone);
        let end = update.written + xlt::UMR_BLOCK;
        let skipped = gone || (update.is_zap && skip_zaps);
        let table = self.tables.entry(update.key).or_default();
        for at in update.written..end {
            match update.mtts[at] {
                _ if skipped => {}
                mtt if mtt.is_present() => drop(table.mtts.insert(update.first + at, mtt)),
                _ => drop(table.mtts.remove(&(update.first + at))),
            }
        }
        update.written = end;
        if gone {
            self.failed.insert(update.number);
        }
        if end == update.mtts.len() {
            self.updates.pop_front();
        }
    }

    fn is_pending(&self, number: u64) -> bool {
        (self.updates.front()).is_some_and(|update| update.number <= number)
    }
}

/// What a key's table is reached by.
pub(crate) struct Key {
    pub(crate) world: Arc<World>,
    pub(crate) mkey: Mkey,
}

/// The MTTs of a table, as the bytes of a UMR carry them.
fn mtts<L: LockedChunk>(table: &Table<'_, L>) -> Vec<Mtt> {
    let mut bytes = vec![[0xff; xlt::MTT_LEN]; table.len().next_multiple_of(xlt::UMR_BLOCK)];
    assert_eq!(xlt::fill(table, &mut bytes[1..]), None, "it is too short");
    assert_eq!(xlt::fill(table, &mut bytes), Some(bytes.len()));
    let parse = |bytes: &[u8; xlt::MTT_LEN]| Mtt::parse_prefix(bytes).unwrap().0;
    bytes.iter().map(parse).collect()
}

impl Key {
    /// Waits for an update. False if the key was gone before it was done.
    fn wait(&self, number: u64) -> bool {
        loop {
            let mut state = self.world.state();
            if !state.nic.is_pending(number) {
                return !state.nic.failed.contains(&number);
            }
            let skip_zaps = state.trouble.skip_zaps;
            state.nic.get_on(skip_zaps);
        }
    }
}

impl Device for Key {
    const GRANULE: usize = xlt::UMR_BLOCK;

    type Ticket = u64;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        assert!(!table.is_blank(), "nothing to publish");
        let mtts = mtts(table);
        let number = {
            let mut state = self.world.state();
            if state.nic.is_gone(self.mkey) {
                return Err(PublishError::Gone);
            }
            match state.trouble.publishes.pop_front() {
                Some(error @ PublishError::Again) => return Err(error),
                Some(error) => {
                    // Some of it arrives all the same.
                    let some = mtts[..xlt::UMR_BLOCK].to_vec();
                    let key = self.mkey.get();
                    state.nic.post(key, table.first().0, some, false);
                    return Err(error);
                }
                None => {}
            }
            (state.nic).post(self.mkey.get(), table.first().0, mtts, false)
        };
        self.wait(number).then_some(()).ok_or(PublishError::Gone)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<u64>, NotZapped> {
        let mtts = mtts(table);
        let mut state = self.world.state();
        if state.nic.is_gone(self.mkey) {
            return Ok(Zap::Gone);
        }
        if state.trouble.zaps.pop_front() == Some(true) {
            return Err(NotZapped);
        }
        let number = (state.nic).post(self.mkey.get(), table.first().0, mtts, true);
        Ok(Zap::Posted(number))
    }

    fn settle(&self, ticket: u64) -> Result<(), NotZapped> {
        // Of a key that is gone meanwhile the device has nothing.
        self.wait(ticket);
        Ok(())
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        let mut state = self.world.state();
        if state.trouble.revoke {
            return Err(NotZapped);
        }
        state.nic.revoke(self.mkey);
        Ok(())
    }

    fn moment(&self) -> u32 {
        let state = self.world.state();
        match state.trouble.early_moments {
            true => state.nic.eq.consumed().wrapping_sub(1000),
            false => mlx5_odp::moment(&state.nic.eq),
        }
    }
}
