// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which events are served, against a list of those that are not.

use mlx5_odp::{Generation, Unserved};
use proptest::prelude::*;

/// The events of a queue, and what is to be known of them.
struct Events {
    unserved: Unserved,
    dispatched: Vec<(u32, Generation)>,
    next: u32,
}

impl Events {
    fn new(next: u32) -> Self {
        Self {
            unserved: Unserved::new(next),
            dispatched: Vec::new(),
            next,
        }
    }

    fn dispatch(&mut self) {
        let generation = self.unserved.dispatch(self.next);
        self.dispatched.push((self.next, generation));
        self.next = self.next.wrapping_add(1);
    }

    /// Serves one of them; whoever waits is told if more is served than before.
    fn serve(&mut self, at: usize) {
        let before = self.unserved.served();
        let (_, generation) = self.dispatched.remove(at);
        let told = self.unserved.serve(generation);
        let more = self.unserved.served().wrapping_sub(before);
        assert!(more <= u32::MAX / 2, "it goes back from {before} by {more}");
        assert!(told || more == 0, "nobody is told of {more} more");
        self.check();
    }

    /// All that is said to be served is.
    fn check(&self) {
        let first = self.dispatched.iter().map(|event| event.0).next();
        let ahead = first
            .unwrap_or(self.next)
            .wrapping_sub(self.unserved.served());
        assert!(ahead <= u32::MAX / 2, "{ahead:#x}: what is not served is");
        if first.is_none() {
            assert_eq!(ahead, 0, "all are served");
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_served_first(
        first in prop_oneof![Just(0), Just(u32::MAX - 20), any::<u32>()],
        steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200),
    ) {
        let mut events = Events::new(first);
        events.check();
        for (is_new, which) in steps {
            match is_new || events.dispatched.is_empty() {
                true => events.dispatch(),
                false => {
                    let at = which.index(events.dispatched.len());
                    events.serve(at);
                }
            }
            events.check();
        }
    }

    /// Who waits for an event does not wait for all those that came later.
    #[test]
    fn later_ones_do_not_matter_for_ever(
        running in 1usize..20,
        rounds in 1usize..50,
        pick in prop::collection::vec(any::<prop::sample::Index>(), 1000),
    ) {
        let mut events = Events::new(0);
        for _ in 0..running {
            events.dispatch();
        }
        let since = events.next;
        let mut pick = pick.into_iter();
        // There are always as many, and each is served before as many rounds are over.
        for _ in 0..rounds {
            for _ in 0..running {
                let old = events.dispatched.len().min(running);
                let at = pick.next().unwrap().index(old);
                events.dispatch();
                events.serve(at);
            }
        }
        // The oldest ones at last: two generations are enough.
        for _ in 0..3 {
            for _ in 0..running {
                events.dispatch();
                events.serve(0);
            }
        }
        assert!(events.unserved.served().wrapping_sub(since) <= u32::MAX / 2);
    }
}

#[test]
fn one_that_stalls_holds_up_what_came_after_it_and_nothing_else() {
    let mut events = Events::new(0);
    for _ in 0..3 {
        events.dispatch();
    }
    events.serve(0);
    for _ in 0..100 {
        events.dispatch();
        events.serve(1);
    }
    assert!(events.unserved.served() <= 1, "event 1 is not served");
    while !events.dispatched.is_empty() {
        events.serve(0);
    }
    assert_eq!(events.unserved.served(), events.next);
}
