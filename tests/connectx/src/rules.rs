// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Rules: faults on purpose.
//!
//! A rule says where it applies (its *point*), what it matches there, when it acts, and what
//! it does. It is written as words, the point first, in any order behind it:
//!
//! ```text
//! umr every=64 do=delay ms=25
//! command op=DESTROY_MKEY do=fail status=BAD_RES_STATE times=1
//! completion qp=0x41 syndrome=FLUSH do=drop
//! ```
//!
//! or as a JSON object of the same words: `{"point":"umr","every":64,"do":"delay","ms":25}`.
//!
//! - [`points`]: the points, what is matched at each, and what can be done there.
//! - [`words`]: what several points have in common: the numbers with names, a delay, a change
//!   of bits.
//! - `text`: the text form.
//! - `held`: what a rule holds back, and its release.
//!
//! Whatever matches a rule is counted, whether another rule acts on it or not. Of those whose
//! turn it is, the rule that was added first acts, and no other.
//!
//! To give a point another action: a variant of its `*Act` in [`points`], and the place where
//! the device asks for that point ([`Device::rule`]) does what it says. Parser, text and
//! errors follow from the type.

mod held;
pub mod points;
mod text;
pub mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::device::Device;
use held::Held;
use points::{Command, Completion, Event, Fault, Message, Umr};

/// Why a rule was not added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleError(String);

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RuleError {}

/// When a rule acts. The first match is number 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct When {
    /// Every Nth match, from the Nth on.
    pub every: Option<NonZeroU64>,
    /// Not the first N matches; `every` counts from there.
    pub after: Option<u64>,
    /// N times; after that the rule only counts.
    pub times: Option<u64>,
}

impl When {
    /// Whether it is the turn of a rule that has matched `matches` times, this time included,
    /// and acted `acts` times.
    fn turn(&self, matches: u64, acts: u64) -> bool {
        let Some(counted) = matches.checked_sub(self.after.unwrap_or(0)) else {
            return false;
        };
        let every = self.every.map_or(1, NonZeroU64::get);
        counted > 0 && counted % every == 0 && self.times.is_none_or(|times| acts < times)
    }
}

/// A place where rules apply.
///
/// The type itself holds what a rule matches there; a field that is not given matches
/// everything.
pub trait Point: Placed + Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned {
    /// What a rule calls it.
    const NAME: &'static str;

    /// What is looked at.
    type Seen: fmt::Debug;

    /// What can be done to it.
    type Act: Clone + PartialEq + fmt::Debug + Serialize + DeserializeOwned;

    /// Whether the rule is about this one.
    fn matches(&self, seen: &Self::Seen) -> bool;

    /// Whether `act` makes sense with what is matched.
    ///
    /// # Errors
    ///
    /// A message for the user.
    fn check(&self, act: &Self::Act) -> Result<(), String> {
        let _ = act;
        Ok(())
    }
}

/// The rules of a point among all rules.
pub trait Placed: Sized {
    /// The rule, if it is of this point.
    fn of(rule: &Rule) -> Option<&At<Self>>
    where
        Self: Point;
}

/// A rule of one point.
#[derive(Clone, PartialEq, Debug)]
pub struct At<P: Point> {
    /// What it matches.
    pub what: P,
    /// When it acts.
    pub when: When,
    /// What it does.
    pub act: P::Act,
}

impl<P: Point> At<P> {
    fn from_words(words: Map<String, Value>) -> Result<Self, RuleError> {
        // What neither match nor `when` know is the action's, which refuses what it does not
        // know itself.
        #[derive(Deserialize)]
        struct Words<P> {
            #[serde(flatten)]
            what: P,
            #[serde(flatten)]
            when: When,
            #[serde(flatten)]
            act: Map<String, Value>,
        }
        let refuse = |error: String| RuleError(format!("{}: {error}", P::NAME));
        let Words { what, when, act }: Words<P> =
            serde_json::from_value(Value::Object(words)).map_err(|e| refuse(e.to_string()))?;
        let act = serde_json::from_value(Value::Object(act)).map_err(|e| refuse(e.to_string()))?;
        P::check(&what, &act).map_err(refuse)?;
        Ok(Self { what, when, act })
    }

    /// The words of match, time and action, in this order; of an action its name first.
    fn words(&self) -> Result<Vec<(String, Value)>, serde_json::Error> {
        let mut words = Vec::new();
        for part in [
            serde_json::to_value(&self.what)?,
            serde_json::to_value(self.when)?,
            serde_json::to_value(&self.act)?,
        ] {
            if let Value::Object(part) = part {
                // In the order of the names, whatever features serde_json was built with.
                let mut part: BTreeMap<_, _> = part.into_iter().collect();
                let action = part.remove("do");
                words.extend(action.map(|name| ("do".to_owned(), name)));
                words.extend(part.into_iter().filter(|(_, value)| !value.is_null()));
            }
        }
        Ok(words)
    }
}

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident,)*) => {
        /// A rule.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Rule {
            $($(#[$doc])* $point(At<$point>),)*
        }

        $(impl Placed for $point {
            fn of(rule: &Rule) -> Option<&At<Self>> {
                match rule {
                    Rule::$point(at) => Some(at),
                    _ => None,
                }
            }
        })*

        impl Rule {
            fn from_point(point: &str, words: Map<String, Value>) -> Result<Self, RuleError> {
                match point {
                    $(<$point as Point>::NAME => Ok(Self::$point(At::from_words(words)?)),)*
                    _ => Err(RuleError(format!(
                        "there is no point {point:?}; the points are {}",
                        [$(<$point as Point>::NAME),*].join(", ")
                    ))),
                }
            }

            fn words(&self) -> (&'static str, Result<Vec<(String, Value)>, serde_json::Error>) {
                match self {
                    $(Self::$point(at) => (<$point as Point>::NAME, at.words()),)*
                }
            }
        }
    };
}

points! {
    /// A command.
    Command,
    /// A UMR of the driver.
    Umr,
    /// A work request of a user.
    Message,
    /// An event.
    Event,
    /// A completion.
    Completion,
    /// A page fault.
    Fault,
}

impl Rule {
    /// The rule that a JSON object says; its point is the word `point`.
    ///
    /// # Errors
    ///
    /// [`RuleError`], which names what is wrong and what there is.
    pub fn from_words(mut words: Map<String, Value>) -> Result<Self, RuleError> {
        match words.remove("point") {
            Some(Value::String(point)) => Self::from_point(&point, words),
            Some(other) => Err(RuleError(format!("\"point\" must be a name, not {other}"))),
            None => Err(RuleError("a rule needs a \"point\"".to_owned())),
        }
    }
}

/// A rule with its number and its counts.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Entry {
    /// Its number, never given twice.
    pub id: u64,
    /// The rule.
    pub rule: Rule,
    /// What it matched.
    pub matches: u64,
    /// How often it acted.
    pub acts: u64,
    /// What it held back was let go because enough accesses are stalled: it holds nothing
    /// back any more.
    pub opened: bool,
}

/// All rules of a device, in the order in which they were added.
#[derive(Debug, Default, Serialize)]
pub struct Rules {
    entries: Vec<Entry>,
    last: u64,
    held: Held,
}

impl Rules {
    /// Adds a rule given as text and returns its number.
    ///
    /// # Errors
    ///
    /// [`RuleError`], which names what is wrong and what there is. Nothing was added.
    pub fn add(&mut self, text: &str) -> Result<u64, RuleError> {
        Ok(self.insert(text.parse()?))
    }

    /// Adds a rule and returns its number.
    pub fn insert(&mut self, rule: Rule) -> u64 {
        self.last += 1;
        self.entries.push(Entry {
            id: self.last,
            rule,
            matches: 0,
            acts: 0,
            opened: false,
        });
        self.last
    }

    /// Removes a rule; what it holds back goes on in the next step. `false`: there is none
    /// with this number.
    pub fn remove(&mut self, id: u64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.id != id);
        self.held.release(id);
        self.entries.len() < before
    }

    /// Removes all rules; what they hold back goes on in the next step.
    pub fn clear(&mut self) {
        for entry in std::mem::take(&mut self.entries) {
            self.held.release(entry.id);
        }
    }

    /// Every rule, in the order in which they are tried.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The rule with this number.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Whether there are rules of this point.
    pub(crate) fn any<P: Point>(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| P::of(&entry.rule).is_some())
    }

    /// Counts what is seen at a point, and what is to be done to it by which rule.
    fn consult<P: Point>(&mut self, seen: &P::Seen) -> Option<(u64, P::Act)> {
        let mut acting = None;
        for entry in &mut self.entries {
            let Some(at) = P::of(&entry.rule).filter(|at| at.what.matches(seen)) else {
                continue;
            };
            entry.matches += 1;
            let turn = !entry.opened && at.when.turn(entry.matches, entry.acts);
            if turn && acting.is_none() {
                entry.acts += 1;
                acting = Some((entry.id, at.act.clone()));
            }
        }
        acting
    }
}

impl Device {
    /// What a rule does to what is seen at a point, with the number of the rule. Whoever asks
    /// does it.
    pub(crate) fn rule<P: Point>(&mut self, seen: &P::Seen) -> Option<(u64, P::Act)> {
        let (id, act) = self.rules.consult::<P>(seen)?;
        self.counters.rule_acts += 1;
        self.journal
            .note(format_args!("rule {id}: {act:x?} of {seen:x?}"));
        Some((id, act))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(rule: &str, matches: u64) -> Vec<u64> {
        let mut rules = Rules::default();
        let id = rules.add(rule).unwrap();
        let seen = firmware_cmds::Eqe::completion(firmware_cmds::Cqn::truncate(1));
        let acted = (1..=matches).filter(|_| rules.consult::<Event>(&seen).is_some());
        let acted = acted.collect();
        let entry = rules.get(id).unwrap();
        assert_eq!(entry.matches, matches);
        acted
    }

    #[test]
    fn when_it_is_a_rules_turn() {
        assert_eq!(turns("event do=drop", 3), [1, 2, 3]);
        assert_eq!(turns("event every=3 do=drop", 7), [3, 6]);
        assert_eq!(turns("event after=2 do=drop", 4), [3, 4]);
        assert_eq!(turns("event times=2 do=drop", 4), [1, 2]);
        assert_eq!(turns("event every=2 after=3 times=2 do=drop", 12), [5, 7]);
        assert_eq!(turns("event times=0 do=drop", 2), [0_u64; 0]);
        assert_eq!(
            turns("event type=CMD do=drop after=18446744073709551615", 0),
            [0_u64; 0]
        );
    }

    #[test]
    fn the_first_whose_turn_it_is_acts_and_all_count() {
        let mut rules = Rules::default();
        let first = rules.add("event type=PAGE_FAULT do=drop").unwrap();
        let second = rules.add("event times=1 do=duplicate").unwrap();
        let third = rules.add("event do=delay ms=1").unwrap();
        let seen = firmware_cmds::Eqe::completion(firmware_cmds::Cqn::truncate(1));
        let acting: Vec<u64> = (0..3)
            .filter_map(|_| rules.consult::<Event>(&seen))
            .map(|(id, _)| id)
            .collect();
        assert_eq!(acting, [second, third, third]);
        let counts = |id| rules.get(id).map(|entry| (entry.matches, entry.acts));
        assert_eq!(counts(first), Some((0, 0)));
        assert_eq!(counts(second), Some((3, 1)));
        assert_eq!(counts(third), Some((3, 2)));
        assert!(rules.remove(second) && !rules.remove(second));
        assert_eq!(rules.add("event do=drop"), Ok(4));
        rules.clear();
        assert!(rules.entries().is_empty());
    }
}
