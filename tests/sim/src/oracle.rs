// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What must hold after every step, and at the end.

use connectx::mkey::MKey;
use firmware_cmds::Mtt;
use hmm_abi::State;

use crate::driver::mirror::Mirror;
use crate::memory::{Memory, Pte};
use crate::sim::Sim;

/// What was looked at last.
#[derive(Default)]
pub(crate) struct Oracle {
    seen: Option<(u64, u64, u64)>,
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
        let seen = (memory.version, counters.umr_wqes, counters.commands);
        if self.seen == Some(seen) {
            return;
        }
        self.seen = Some(seen);
        let wrong = check_tables(sim, &memory).or_else(|| {
            let page = memory.lost()?;
            Some((
                "a write is lost",
                format!("page {page:#x}: {:x?}", memory.page(page)),
            ))
        });
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

fn check_table(sim: &Sim, memory: &Memory, mirror: &Mirror, mkey: &MKey) -> Wrong {
    let start = mirror.pages.start;
    let chunks = mirror.chunks();
    for page in Memory::all() {
        if !mirror.pages.contains(&page) {
            continue;
        }
        let index = page - start;
        let at = u64::try_from(index).unwrap_or(u64::MAX);
        let mtt = mkey.xlt.entry::<Mtt>(at).unwrap_or(Mtt::NOT_PRESENT);
        let entry = chunks.iter().find_map(|chunk| {
            let own = mirror.placement.geometry.chunk(chunk.at);
            chunk.entry(index.checked_sub(own.first().0)?)
        });
        let state = entry.map(|entry| entry.state());
        let what = || {
            format!(
                "entry {index} of MR {}, page {page:#x}: {mtt:?} {entry:?}",
                mirror.number
            )
        };
        if !mtt.is_present() {
            if state == Some(State::Live) {
                return Some(("what is live the device does not have", what()));
            }
            continue;
        }
        let Some(mapping) = memory.mapping(mtt.addr().get()) else {
            return Some(("published and not mapped", what()));
        };
        if mapping.page != page {
            return Some(("the translation of another page", what()));
        }
        let frame = &memory.frames[mapping.frame];
        if frame.held > 0 {
            continue;
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
                return Some((
                    "published and not the process's",
                    format!("{}: {other:?}", what()),
                ))
            }
        };
        if mtt.access().write && !writable {
            return Some(("a read-only page is published writable", what()));
        }
        if state == Some(State::Live)
            && entry.is_some_and(|e| e.is_writable() != mtt.access().write)
        {
            return Some(("an entry and its translation differ", what()));
        }
    }
    None
}
