// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the device has still to do beside the work of QPs: commands that were rung for,
//! completions and events that are not visible yet, and what was put off to a later time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use firmware_cmds::eqe::EQE_DATA_LEN;
use firmware_cmds::{Cqn, Eqe, Eqn, EventType, Qpn};
use serde::{Serialize, Serializer};

use crate::completion::Cqe;
use crate::inspect::show;
use crate::rules::points::CommandAct;
use crate::rules::words::Corrupt;

/// One thing to do.
#[derive(Clone, Debug, Serialize)]
pub(crate) enum Work {
    /// Execute the command in this slot, as a rule says if one acts on it.
    Command(u8, Option<CommandAct>),
    /// Write an event, with the bits that a rule changes in it.
    Event(
        #[serde(serialize_with = "show::debug")] Eqn,
        #[serde(serialize_with = "show::debug")] Eqe,
        Option<Corrupt>,
    ),
    /// Write a completion, with the bits that a rule changes in it.
    Completion(
        #[serde(serialize_with = "show::debug")] Cqn,
        Cqe,
        Option<Corrupt>,
    ),
    /// Go on with the work request that a rule held back on this QP.
    Request(#[serde(serialize_with = "show::debug")] Qpn),
}

/// Work of one stream is done in the order in which it came.
#[derive(PartialEq, Eq)]
enum Stream {
    Command(u8),
    /// Events about one object.
    Event(Eqn, EventType, [u8; EQE_DATA_LEN]),
    /// Completions of one QP.
    Completion(Qpn),
    Request(Qpn),
}

impl Work {
    /// Whether it is a completion of this QP.
    pub(crate) fn completes(&self, qpn: Qpn) -> bool {
        matches!(self, Self::Completion(_, cqe, _) if cqe.qpn == qpn)
    }

    fn stream(&self) -> Stream {
        match self {
            Self::Command(slot, _) => Stream::Command(*slot),
            Self::Event(eqn, eqe, _) => {
                let mut about = eqe.data;
                // Page faults and command slots are independent of each other; everything
                // else names its object in the last word.
                if !matches!(eqe.event_type, EventType::PAGE_FAULT | EventType::CMD) {
                    about[..EQE_DATA_LEN - 4].fill(0);
                }
                Stream::Event(*eqn, eqe.event_type, about)
            }
            Self::Completion(_, cqe, _) => Stream::Completion(cqe.qpn),
            Self::Request(qpn) => Stream::Request(*qpn),
        }
    }
}

/// Everything that is to be done, now or later.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Agenda {
    /// May be done now, in the order in which it came.
    due: VecDeque<Work>,
    /// Not before a time.
    #[serde(serialize_with = "by_time")]
    later: BTreeMap<(Duration, u64), Work>,
    /// Tells apart what is put off to the same time.
    sequence: u64,
}

fn by_time<S: Serializer>(
    later: &BTreeMap<(Duration, u64), Work>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(
        later
            .iter()
            .map(|((at, _), work)| (format!("{at:?}"), work)),
    )
}

impl Agenda {
    /// Adds work that may be done now.
    pub(crate) fn add(&mut self, work: Work) {
        self.due.push_back(work);
    }

    /// Adds work that is not to be done before `at`.
    pub(crate) fn put_off(&mut self, at: Duration, work: Work) {
        self.sequence += 1;
        self.later.insert((at, self.sequence), work);
    }

    /// Makes due what was put off to `now` or earlier.
    pub(crate) fn expire(&mut self, now: Duration) {
        while let Some(entry) = self.later.first_entry().filter(|e| e.key().0 <= now) {
            self.due.push_back(entry.remove());
        }
    }

    /// How much may be done now.
    pub(crate) fn due(&self) -> usize {
        self.due.len()
    }

    /// Takes the oldest work of the stream that the work at `index` belongs to; `None` if
    /// there is not so much.
    pub(crate) fn take(&mut self, index: usize) -> Option<Work> {
        let stream = self.due.get(index)?.stream();
        let oldest = self.due.iter().position(|work| work.stream() == stream)?;
        self.due.remove(oldest)
    }

    /// Takes the oldest completion or event that may be written now.
    pub(crate) fn take_report(&mut self) -> Option<Work> {
        let mut works = self.due.iter();
        let at = works.position(|work| matches!(work, Work::Event(..) | Work::Completion(..)))?;
        self.due.remove(at)
    }

    /// Forgets work, due or not.
    pub(crate) fn forget(&mut self, forget: impl Fn(&Work) -> bool) {
        self.due.retain(|work| !forget(work));
        self.later.retain(|_, work| !forget(work));
    }

    /// Whether a completion of this QP may be written now and is not yet.
    pub(crate) fn has_completion(&self, qpn: Qpn) -> bool {
        self.due.iter().any(|work| work.completes(qpn))
    }

    /// When the last completion of this QP becomes due, if one is put off.
    pub(crate) fn completions_until(&self, qpn: Qpn) -> Option<Duration> {
        let mut latest_first = self.later.iter().rev();
        let last = latest_first.find(|(_, work)| work.completes(qpn));
        last.map(|(&(at, _), _)| at)
    }

    /// When the next work becomes due that is not yet.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.later.first_key_value().map(|(&(at, _), _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(qpn: u32, wqe_counter: u16) -> Work {
        let cqe = Cqe {
            qpn: Qpn::truncate(qpn),
            wqe_counter,
            ..Cqe::default()
        };
        Work::Completion(Cqn::truncate(1), cqe, None)
    }

    fn counter(work: Option<Work>) -> u16 {
        match work {
            Some(Work::Completion(_, cqe, _)) => cqe.wqe_counter,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn completions_of_one_qp_keep_their_order() {
        let mut agenda = Agenda::default();
        for (qpn, n) in [(1, 10), (1, 11), (2, 20), (1, 12)] {
            agenda.add(completion(qpn, n));
        }
        assert_eq!(counter(agenda.take(3)), 10);
        assert_eq!(counter(agenda.take(1)), 20);
        assert_eq!(counter(agenda.take(1)), 11);
        assert!(agenda.take(1).is_none());
    }

    #[test]
    fn events_about_one_object_keep_their_order_and_page_faults_have_none() {
        let mut agenda = Agenda::default();
        let event = |event_type, first, last| {
            let mut eqe = Eqe::empty(event_type, 0);
            (eqe.data[0], eqe.data[EQE_DATA_LEN - 1]) = (first, last);
            Work::Event(Eqn::new(1), eqe, None)
        };
        let first = |work: Option<Work>| match work {
            Some(Work::Event(_, eqe, _)) => eqe.data[0],
            other => panic!("{other:?}"),
        };
        agenda.add(event(EventType::CQ_ERROR, 1, 7));
        agenda.add(event(EventType::CQ_ERROR, 2, 7));
        assert_eq!(first(agenda.take(1)), 1);
        agenda.add(event(EventType::PAGE_FAULT, 3, 7));
        agenda.add(event(EventType::PAGE_FAULT, 4, 7));
        assert_eq!(first(agenda.take(2)), 4);
    }

    #[test]
    fn what_is_put_off_becomes_due_in_the_order_of_time() {
        let mut agenda = Agenda::default();
        let ms = Duration::from_millis;
        agenda.put_off(ms(2), Work::Command(2, None));
        agenda.put_off(ms(1), Work::Command(1, None));
        agenda.put_off(ms(3), Work::Command(3, None));
        assert_eq!((agenda.due(), agenda.next()), (0, Some(ms(1))));
        agenda.expire(ms(2));
        assert_eq!((agenda.due(), agenda.next()), (2, Some(ms(3))));
        assert!(matches!(agenda.take(0), Some(Work::Command(1, _))));
        assert!(agenda.take_report().is_none());
    }
}
