// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What rules hold back, and its release.

use firmware_cmds::Qpn;
use serde::Serialize;

use super::words::Hold;
use crate::agenda::Work;
use crate::device::Device;

/// Work that a rule holds back.
#[derive(Debug, Serialize)]
struct Waiting {
    rule: u64,
    /// Stalled accesses that let it go.
    stalls: Option<usize>,
    work: Work,
}

/// All work that is held back, and what was let go since the last step.
#[derive(Debug, Default, Serialize)]
pub(super) struct Held {
    waiting: Vec<Waiting>,
    released: Vec<Work>,
}

impl Held {
    /// Lets go what this rule holds back, in the order in which it came.
    pub(super) fn release(&mut self, rule: u64) {
        self.release_if(|waiting| waiting.rule == rule);
    }

    /// Holds a completion of a QP back with the one before it, if that is held; otherwise gives it
    /// back.
    pub(super) fn behind(&mut self, qpn: Qpn, work: Work) -> Result<(), Work> {
        let mut last_first = self.waiting.iter().rev();
        let Some(before) = last_first.find(|waiting| waiting.work.completes(qpn)) else {
            return Err(work);
        };
        let (rule, stalls) = (before.rule, before.stalls);
        self.waiting.push(Waiting { rule, stalls, work });
        Ok(())
    }

    fn release_if(&mut self, go: impl Fn(&Waiting) -> bool) {
        let (go, stay) = std::mem::take(&mut self.waiting).into_iter().partition(go);
        self.waiting = stay;
        let go: Vec<Waiting> = go;
        self.released
            .extend(go.into_iter().map(|waiting| waiting.work));
    }
}

impl Device {
    /// Holds a completion of a QP back with the one before it, if that is held; otherwise gives it
    /// back.
    pub(crate) fn hold_behind(&mut self, qpn: Qpn, work: Work) -> Result<(), Work> {
        self.rules.held.behind(qpn, work)
    }

    /// Holds work back as a rule says.
    pub(crate) fn hold(&mut self, rule: u64, hold: Hold, work: Work) {
        self.counters.held += 1;
        self.rules.held.waiting.push(Waiting {
            rule,
            stalls: hold.stalls.map(Into::into),
            work,
        });
        self.stalls_changed();
    }

    /// Lets go what waits for no more stalled accesses than there are.
    pub(crate) fn stalls_changed(&mut self) {
        if self.rules.held.waiting.is_empty() {
            return;
        }
        let stalls = self.faults.len();
        let most = &mut self.counters.most_stalls_while_held;
        *most = (*most).max(crate::guest::to_u64(stalls));
        let reached = |waiting: &Waiting| waiting.stalls.is_some_and(|at| at <= stalls);
        for waiting in self.rules.held.waiting.iter().filter(|w| reached(w)) {
            let rule = waiting.rule;
            for entry in self.rules.entries.iter_mut().filter(|e| e.id == rule) {
                if !std::mem::replace(&mut entry.opened, true) {
                    self.journal.note(format_args!(
                        "rule {rule}: {stalls} accesses are stalled, nothing is held back any more"
                    ));
                }
            }
        }
        self.rules.held.release_if(reached);
        self.take_released();
    }

    /// Puts what was let go on the agenda.
    pub(crate) fn take_released(&mut self) {
        for work in std::mem::take(&mut self.rules.held.released) {
            self.agenda.add(work);
        }
    }

    /// Forgets held work that is not to be done any more.
    pub(crate) fn forget_held(&mut self, forget: impl Fn(&Work) -> bool) {
        let held = &mut self.rules.held;
        held.waiting.retain(|waiting| !forget(&waiting.work));
        held.released.retain(|work| !forget(work));
    }
}
