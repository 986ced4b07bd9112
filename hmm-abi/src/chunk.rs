// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A locked chunk's entries: what may be done to them, and the table that the device sees.

use crate::{Entry, Index, LockedChunk, Slots, State};

/// The right to change entries: only this crate makes one.
///
/// ```compile_fail
/// # use hmm_abi::{Entry, LockedChunk, Proof};
/// fn forget<L: LockedChunk>(locked: &mut L, proof: fn() -> Proof) {
///     locked.entries_mut(Proof(())).fill(Entry::EMPTY);
/// }
/// ```
///
/// ```
/// # use hmm_abi::{Entry, LockedChunk, Proof};
/// fn forget<L: LockedChunk>(locked: &mut L, proof: fn() -> Proof) {
///     locked.entries_mut(proof()).fill(Entry::EMPTY);
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Proof(());

impl Proof {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// Stands for it that the device neither has nor uses translations of the entries that it is
/// shown for. Only this crate makes one: when a zap was settled, when the device was cut off, or
/// when it was never offered them.
///
/// ```compile_fail
/// # use hmm_abi::{LetGo, LockedChunk, Slots};
/// fn unmap<L: LockedChunk>(locked: &mut L, let_go: fn() -> LetGo) {
///     locked.unmap(Slots::new(0..1), &LetGo(()));
/// }
/// ```
///
/// ```
/// # use hmm_abi::{LetGo, LockedChunk, Slots};
/// fn unmap<L: LockedChunk>(locked: &mut L, let_go: fn() -> LetGo) {
///     locked.unmap(Slots::new(0..1), &let_go());
/// }
/// ```
#[derive(Debug)]
pub struct LetGo(());

impl LetGo {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// What a device's table must show for some entries of a locked chunk: whole granules
/// ([`Device::GRANULE`](crate::Device::GRANULE)), so that neighbours come out right.
///
/// An entry's translation depends on the entry alone, however often and for whatever reason it is
/// written.
///
/// ```compile_fail
/// # use hmm_abi::{Device, LockedChunk, Slots, Table};
/// fn publish<D: Device, L: LockedChunk>(device: &D, locked: &L, table: &Table<'_, L>) {
///     let table = Table { locked, slots: Slots::new(0..8) };
///     assert!(device.publish(&table).is_ok());
/// }
/// ```
///
/// ```
/// # use hmm_abi::{Device, LockedChunk, Slots, Table};
/// fn publish<D: Device, L: LockedChunk>(device: &D, locked: &L, table: &Table<'_, L>) {
///     assert!(device.publish(&table).is_ok());
/// }
/// ```
#[derive(Debug)]
pub struct Table<'c, L> {
    locked: &'c L,
    slots: Slots,
}

/// A translation that the device is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where the page is for the device.
    pub address: u64,
    /// Whether it may write.
    pub write: bool,
}

impl<'c, L: LockedChunk> Table<'c, L> {
    /// The granules that hold `slots`.
    pub(crate) fn around(locked: &'c L, slots: Slots, granule: usize) -> Self {
        let first = slots.first() & !(granule - 1);
        let end = slots.end().next_multiple_of(granule);
        let slots = Slots::new(first..end.min(locked.entries().len()));
        Self { locked, slots }
    }

    /// The index of the first entry: a multiple of the granule.
    pub fn first(&self) -> Index {
        Index(self.locked.first().0 + self.slots.first())
    }

    /// How many entries: a multiple of the granule, but at the end of the mirror.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No entry at all; no table is so.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn entries(&self) -> &[Entry] {
        self.locked
            .entries()
            .get(self.slots.range())
            .unwrap_or_default()
    }

    /// Whether it shows no translation.
    pub fn is_blank(&self) -> bool {
        Entry::position(self.entries(), Entry::is_shown).is_none()
    }

    /// The translations, `None` where there is to be none.
    pub fn translations(&self) -> impl Iterator<Item = Option<Translation>> + '_ {
        self.slots.range().zip(self.entries()).map(|(slot, entry)| {
            entry.is_shown().then(|| Translation {
                address: self.locked.address(slot),
                write: entry.is_writable(),
            })
        })
    }
}

/// The next run of entries in `slots` for which `wanted` holds; it holds for none that is empty.
pub(crate) fn next_run(
    entries: &[Entry],
    slots: Slots,
    wanted: impl Fn(Entry) -> bool,
) -> Option<Slots> {
    let entries = entries.get(slots.range())?;
    let first = Entry::position(entries, &wanted)?;
    let rest = &entries[first..];
    let len = rest.iter().position(|&entry| !wanted(entry));
    let first = slots.first() + first;
    Some(Slots::new(first..first + len.unwrap_or(rest.len())))
}

/// Unmaps the entries of `slots` in the states that `wanted` accepts, marks the pages dirty that
/// the device could write to, and forgets them. Returns how many.
pub(crate) fn unmap<L: LockedChunk>(
    locked: &mut L,
    slots: Slots,
    wanted: impl Fn(State) -> bool,
    let_go: &LetGo,
) -> usize {
    let mut rest = slots;
    let mut unmapped = 0;

    while let Some(run) = next_run(locked.entries(), rest, |entry| wanted(entry.state())) {
        locked.unmap(run, let_go);
        for slot in run.range() {
            let entry = locked.entries()[slot];
            if entry.is_writable() && entry.state() != State::Mapped {
                locked.set_dirty(slot, let_go);
            }
            if entry.state() == State::Stuck {
                locked.unhold(slot, let_go);
            }
        }
        forget(locked, run);
        unmapped += run.len();
        rest = Slots::new(run.end()..slots.end());
    }
    unmapped
}

/// Makes mapped entries, all of `slots`, empty.
fn forget<L: LockedChunk>(locked: &mut L, slots: Slots) {
    let proof = Proof::new();
    if let Some(entries) = locked.entries_mut(proof).get_mut(slots.range()) {
        entries.fill(Entry::EMPTY);
    }
    let mapped = &mut locked.book_mut(proof).mapped;
    // CAST: a chunk has no more slots than a `u16` counts.
    *mapped = mapped.saturating_sub(u16::try_from(slots.len()).unwrap_or(u16::MAX));
}

/// Changes the entries of `slots` for which `change` has a new value. The state may change, not
/// whether it is mapped.
#[inline]
pub(crate) fn change<L: LockedChunk>(
    locked: &mut L,
    slots: Slots,
    change: impl Fn(Entry) -> Option<Entry>,
) {
    let entries = locked.entries_mut(Proof::new()).get_mut(slots.range());
    for entry in entries.unwrap_or_default() {
        if let Some(new) = change(*entry) {
            *entry = new;
        }
    }
}
