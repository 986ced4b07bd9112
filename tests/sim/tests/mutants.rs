// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Every mistake is found, by the oracle that is there for its kind.

use sim::{explore, Mutant};

/// The oracles that may notice a mistake, and a number of seeds that is enough for it: some ten times
/// the median (`sim mutants`), or as many as it takes from seed 0 on.
fn expected(mutant: Mutant) -> (&'static [&'static str], u64) {
    match mutant {
        Mutant::ZapOfDestroyedKey => (&["the device is violated"], 200),
        Mutant::AllocationUnderTheLock => (&["lock order"], 20),
        Mutant::IndexFromIova => (&["a valid access failed", "a valid prefetch failed"], 50),
        Mutant::LockedUntilTheEnd => (&["a deadlock"], 20),
        Mutant::MissedUnlock => (&["a deadlock", "lock order"], 100),
        Mutant::SharedScratch => (
            &["published and not the process's", "freed and mapped"],
            100,
        ),
        Mutant::IgnoredUmrFailure => (
            &[
                "what is live the device does not have",
                "published and not mapped",
                "a KSM leads to a child that is hidden",
            ],
            100,
        ),
        Mutant::NoUnmapOnceTheKeyIsGone => (&["a leak", "freed and mapped"], 20),
        Mutant::NoSetSequence | Mutant::NoRetryCheck => (
            &[
                "published during an invalidation",
                "published and not the process's",
                "freed and mapped",
                "mapped twice",
                "a leak",
            ],
            50,
        ),
        Mutant::ZapNotWaitedFor => (&["a leak", "published and not mapped"], 20),
        Mutant::NoDirty => (&["a write is lost"], 200),
        Mutant::RecoveryByTheWaiterAlone => (&["it does not end", "a deadlock"], 1000),
        Mutant::RecoveryThatReclaims => (&["lock order", "allocation in an invalidation"], 100),
        Mutant::TidyThatSleeps => (&["sleeps where it must not"], 20_000),
        Mutant::OpenWhileDestroyed => (&["the device is violated"], 2000),
        Mutant::ChildrenUnlocked => (
            &[
                "a KSM leads to a child that is hidden",
                "a KSM leads to what is not there",
                "what is live the device does not have",
                "used after it was freed",
                "made twice",
                "a deadlock",
                "it does not end",
                "a leak",
            ],
            50,
        ),
        Mutant::RetiredNothingAndHeld => (&["a deadlock", "it does not end"], 50),
        Mutant::NotifierOfNobody => (&["a notifier of a process that is gone"], 100),
        Mutant::UnalignedKsm => (&["a KSM leads to what is not there"], 20),
        Mutant::KsmsPostedUnlocked => (
            &[
                "a KSM leads to a child that is hidden",
                "a KSM leads to what is not there",
                "what is live the device does not have",
            ],
            2000,
        ),
        Mutant::ChildDestroyedAtOnce => (&["a valid access failed"], 5000),
        Mutant::OnePass => (&[], 0),
    }
}

fn found(mutant: Mutant) {
    let (kinds, seeds) = expected(mutant);
    let failure = explore(0..seeds, Some(mutant)).failure;
    let failure = failure.unwrap_or_else(|| panic!("{mutant:?} is not found in {seeds} seeds"));
    assert!(
        kinds.contains(&failure.finding.kind),
        "{mutant:?} is found by another oracle: {failure}"
    );
}

#[test]
fn mistakes_are_found() {
    Mutant::ALL.into_iter().for_each(found);
}

/// Without two passes there is no mistake, only less that happens at the same time.
#[test]
fn one_pass_is_no_mistake() {
    let explored = explore(0..200, Some(Mutant::OnePass));
    assert!(explored.failure.is_none(), "{:?}", explored.failure);
    assert_eq!(explored.coverage.two_passes, 0);
}
