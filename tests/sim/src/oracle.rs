// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What must hold after every step, and at the end.

use connectx::mkey::MKey;
use firmware_cmds::{Ksm, Mtt};
use hmm_abi::{Entry, Indices, State};
use mlx5_odp::implicit::{ChildIndex, Slot};
use mlx5_odp::xlt::NullKey;

use crate::driver::implicit::ParentData;
use crate::driver::mirror::Mirror;
use crate::memory::{Memory, Pte};
use crate::sim::Sim;

/// What was looked at last.
#[derive(Default)]
pub(crate) struct Oracle {
    /// [`Memory::version`].
    memory: Option<u64>,
    /// How many UMRs and commands the device had carried out.
    device: Option<u64>,
}

impl Oracle {
    /// What must hold after every step.
    pub(crate) fn check(&mut self, sim: &Sim) {
        let adapter = sim.adapter.borrow();
        let device = &adapter.device;
        let violations = device.journal.violation_count();
        if violations > 0 {
            let text = device.journal.violations().last().cloned();
            drop(adapter);
            return sim.fail(
                "the device is violated",
                format_args!("{}", text.unwrap_or_default()),
            );
        }
        let mut memory = sim.memory.lock();
        memory.step = sim.steps();
        if let Some((kind, text)) = memory.finding.take() {
            drop((memory, adapter));
            return sim.fail(kind, format_args!("{text}"));
        }
        let counters = &device.counters;
        let device = counters.umr_wqes + counters.commands;
        let (is_memory_seen, is_device_seen) = (
            self.memory == Some(memory.version),
            self.device == Some(device),
        );
        if is_memory_seen && is_device_seen {
            return;
        }
        (self.memory, self.device) = (Some(memory.version), Some(device));
        let mut wrong = check_tables(sim, &memory);
        if !is_device_seen {
            wrong = wrong.or_else(|| check_parents(sim));
        }
        if !is_memory_seen {
            wrong = wrong.or_else(|| check_writes(&memory));
        }
        drop((memory, adapter));
        if let Some((kind, text)) = wrong {
            sim.fail(kind, format_args!("{text}"));
        }
    }

    /// What must hold when all is over.
    pub(crate) fn check_at_end(&mut self, sim: &Sim) {
        self.check(sim);
        let is_kept = sim.counted().held > 0;
        let adapter = sim.adapter.borrow();
        let memory = sim.memory.lock();
        let used = |frame: &crate::memory::Frame| frame.users > 0 || frame.held > 0;
        let frames = memory
            .frames
            .iter()
            .skip(1)
            .filter(|frame| used(frame))
            .count();
        let left = [
            ("accesses are stalled", adapter.device.faults.len()),
            ("events are not served", usize::from(!sim.events.is_idle())),
            ("UMRs are under way", usize::from(!sim.umrs().is_idle())),
            ("invalidations have not ended", sim.notifiers.active()),
            ("MRs", sim.driver.mirrors.borrow().len()),
            ("implicit MRs", sim.driver.parents.borrow().len()),
            ("prefetches", sim.driver.prefetches.borrow().len()),
            // But the one for what is shared.
            ("MKeys", adapter.device.mkeys.len() - 1),
            (
                "notifiers",
                if is_kept {
                    0
                } else {
                    sim.notifiers.subscribed()
                },
            ),
            ("frames", if is_kept { 0 } else { frames }),
        ];
        drop((memory, adapter));
        for (what, count) in left {
            if count > 0 {
                sim.fail("a leak", format_args!("{count} {what}"));
            }
        }
    }
}

type Wrong = Option<(&'static str, String)>;

/// The process sees what was written.
fn check_writes(memory: &Memory) -> Wrong {
    let page = memory.lost()?;
    let what = format!("page {page:#x}: {:x?}", memory.page(page));
    Some(("a write is lost", what))
}

/// Every table of the device, as far as there can be anything in it.
fn check_tables(sim: &Sim, memory: &Memory) -> Wrong {
    let adapter = sim.adapter.borrow();
    for mirror in &*sim.driver.mirrors.borrow() {
        let mkey = adapter.device.mkeys.get(mirror.key().mkey.index().get());
        // Of one that is revoked the device uses nothing.
        let Some(mkey) = mkey.filter(|mkey| !mkey.mkc.free) else {
            continue;
        };
        let wrong = check_table(sim, memory, mirror, mkey);
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

/// Every table of KSMs.
fn check_parents(sim: &Sim) -> Wrong {
    let adapter = sim.adapter.borrow();
    for parent in &*sim.driver.parents.borrow() {
        let mkey = adapter.device.mkeys.get(parent.mkey.index().get());
        let Some(mkey) = mkey.filter(|mkey| parent.is_there() && !mkey.mkc.free) else {
            continue;
        };
        let ats = (0..parent.layout.count()).map(ChildIndex);
        let wrong = ats.filter_map(|at| check_ksm(parent, mkey, at)).next();
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

/// A KSM leads to a child that is there, and to the null key if there is none.
fn check_ksm(parent: &ParentData, mkey: &MKey, at: ChildIndex) -> Wrong {
    let (slot, mirror) = parent.child(at).unwrap_or_default();
    let child = mirror.map(|mirror| mirror.key().mkey);
    let start = parent.layout.start_of(at);
    let null = match parent.null {
        NullKey::Own(key) => (key, start),
        NullKey::Device(key) => (key, 0),
    };
    let ksm: Ksm = mkey.xlt.entry(u64::try_from(at.0).unwrap_or(u64::MAX))?;
    let what = || format!("child {}: {ksm:x?}, {slot:?}, {child:?}", at.0);
    let leads_to = (ksm.key, ksm.va.get());
    if leads_to == null {
        let is_live = matches!(slot, Slot::Live { .. });
        return is_live.then(|| ("what is live the device does not have", what()));
    }
    if child.is_none_or(|child| leads_to != (child, start)) {
        return Some(("a KSM leads to what is not there", what()));
    }
    let is_hidden = matches!(slot, Slot::Absent | Slot::Hidden(_));
    is_hidden.then(|| ("a KSM leads to a child that is hidden", what()))
}

fn check_table(sim: &Sim, memory: &Memory, mirror: &Mirror, mkey: &MKey) -> Wrong {
    let (all, own) = (Memory::all(), &mirror.pages);
    let first = all.start.max(own.start) - own.start;
    let end = all.end.min(own.end).saturating_sub(own.start);
    let geometry = &mirror.placement.geometry;
    for (at, slots) in geometry.by_chunk(Indices::new(first..end)) {
        let chunk = mirror.chunk(at);
        let first = geometry.chunk(at).first().0;
        for slot in slots.range() {
            let entry = chunk.as_ref().and_then(|chunk| chunk.entry(slot));
            let wrong = check_entry(sim, memory, mirror, mkey, first + slot, entry);
            if wrong.is_some() {
                return wrong;
            }
        }
    }
    None
}

/// An entry of a mirror, and what the device has for it.
fn check_entry(
    sim: &Sim,
    memory: &Memory,
    mirror: &Mirror,
    mkey: &MKey,
    index: usize,
    entry: Option<Entry>,
) -> Wrong {
    let page = mirror.pages.start + index;
    let at = u64::try_from(index).unwrap_or(u64::MAX);
    let mtt = mkey.xlt.entry::<Mtt>(at).unwrap_or(Mtt::NOT_PRESENT);
    let state = entry.map(|entry| entry.state());
    let what = || {
        format!(
            "entry {index} of MR {}, page {page:#x}: {mtt:?} {entry:?}",
            mirror.number
        )
    };
    if !mtt.is_present() {
        let is_live = state == Some(State::Live);
        return is_live.then(|| ("what is live the device does not have", what()));
    }
    let Some(mapping) = memory.mapping(mtt.addr().get()) else {
        return Some(("published and not mapped", what()));
    };
    if mapping.page != page {
        return Some(("the translation of another page", what()));
    }
    let frame = &memory.frames[mapping.frame];
    if frame.held > 0 {
        return None;
    }
    if frame.users == 0 {
        return Some(("published and freed", what()));
    }
    if sim.notifiers.is_settled(page) {
        return Some(("published during an invalidation", what()));
    }
    let writable = match memory.page(page).map(|page| page.pte) {
        Some(Pte::Present { frame, write, .. }) if frame == mapping.frame => write,
        other => {
            let what = format!("{}: {other:?}", what());
            return Some(("published and not the process's", what));
        }
    };
    if mtt.access().write && !writable {
        return Some(("a read-only page is published writable", what()));
    }
    let differs = |entry: Entry| entry.is_writable() != mtt.access().write;
    let is_other = state == Some(State::Live) && entry.is_some_and(differs);
    is_other.then(|| ("an entry and its translation differ", what()))
}
