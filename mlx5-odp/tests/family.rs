// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The children of an implicit MR: made once, hidden when nobody needs them, destroyed when no event
//! can be about them; whatever fails, and whoever comes in between.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};

use mlx5_odp::implicit::{enter, leave, retire, Again, ChildIndex, Entered, Family, Retired, Slot};

const AT: ChildIndex = ChildIndex(7);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Make,
    Show,
    Hide,
    Destroy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

/// What runs while a slot is busy.
type Meanwhile<'t> = Box<dyn Fn(&Script, Did) + 't>;

/// One thread, by a script.
#[derive(Default)]
struct Script {
    slots: RefCell<BTreeMap<ChildIndex, Slot>>,
    did: RefCell<Vec<Did>>,
    fail: Cell<Option<Did>>,
    /// What it is about to do fails.
    refuse: Cell<bool>,
    no_memory: Cell<bool>,
    is_empty: Cell<bool>,
    now: Cell<u32>,
    late: Cell<u32>,
    moment: Cell<u32>,
    served: Cell<u32>,
    later: RefCell<Vec<ChildIndex>>,
    meanwhile: RefCell<Option<Meanwhile<'static>>>,
}

impl Script {
    fn new() -> Self {
        let script = Self::default();
        script.is_empty.set(true);
        script
    }

    fn slot(&self) -> Slot {
        self.slots.borrow().get(&AT).copied().unwrap_or_default()
    }

    fn does(&self, what: Did) -> Result<(), Failed> {
        assert_eq!(self.slot(), Slot::Busy, "{what:?}");
        self.did.borrow_mut().push(what);
        if let Some(meanwhile) = self.meanwhile.borrow().as_ref() {
            meanwhile(self, what);
        }
        match self.fail.get() == Some(what) || self.refuse.take() {
            true => Err(Failed),
            false => Ok(()),
        }
    }

    fn did(&self) -> Vec<Did> {
        self.did.take()
    }
}

impl Family for Script {
    type Error = Failed;

    fn with<R>(&self, at: ChildIndex, change: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        if self.no_memory.get() && !slots.contains_key(&at) {
            return None;
        }
        let slot = slots.entry(at).or_default();
        let result = change(slot);
        if *slot == Slot::Absent {
            slots.remove(&at);
        }
        Some(result)
    }

    fn no_memory(&self) -> Failed {
        Failed
    }

    fn wait(&self, _: ChildIndex) {
        unreachable!("it would wait for ever")
    }

    fn make(&self, _: ChildIndex) -> Result<(), Failed> {
        self.does(Did::Make)
    }

    fn show(&self, _: ChildIndex) -> Result<(), Failed> {
        self.does(Did::Show)
    }

    fn hide(&self, _: ChildIndex) -> Result<(), Failed> {
        self.does(Did::Hide)
    }

    fn destroy(&self, _: ChildIndex) {
        self.does(Did::Destroy).unwrap();
    }

    fn is_empty(&self, _: ChildIndex) -> bool {
        self.is_empty.get()
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn late(&self) -> u32 {
        self.late.get()
    }

    fn moment(&self) -> u32 {
        self.moment.get()
    }

    fn served(&self) -> u32 {
        self.served.get()
    }

    fn retire_later(&self, at: ChildIndex) {
        self.later.borrow_mut().push(at);
    }
}

#[test]
fn a_child_is_made_once_and_goes_when_nobody_needs_it() {
    let script = Script::new();
    assert_eq!(enter(&script, AT), Ok(()));
    assert_eq!(enter(&script, AT), Ok(()));
    assert_eq!(script.did(), [Did::Make, Did::Show]);
    assert_eq!(retire(&script, AT), Retired::No, "it is in use");
    leave(&script, AT);
    assert_eq!(script.later.take(), [], "it still is");
    leave(&script, AT);
    assert_eq!(script.later.take(), [AT]);
    assert_eq!(retire(&script, AT), Retired::Yes);
    assert_eq!(script.did(), [Did::Hide, Did::Destroy]);
    assert_eq!(script.slot(), Slot::Absent);
    // What is gone is not retired again, and may be made again.
    assert_eq!(retire(&script, AT), Retired::No);
    assert_eq!(enter(&script, AT), Ok(()));
    assert_eq!(script.did(), [Did::Make, Did::Show]);
}

#[test]
fn what_nobody_is_in_is_not_left() {
    for mut slot in [Slot::Absent, Slot::Busy, Slot::Unsure] {
        let before = slot;
        assert!(!slot.leave());
        assert_eq!(slot, before);
    }
}

#[test]
fn what_is_mirrored_stays() {
    let script = Script::new();
    enter(&script, AT).unwrap();
    script.is_empty.set(false);
    leave(&script, AT);
    assert_eq!(script.later.take(), []);
    // Whoever emptied it said so, and a fault has come since.
    assert_eq!(retire(&script, AT), Retired::No);
    assert_eq!(script.did(), [Did::Make, Did::Show]);
    assert_eq!(script.slot(), Slot::Live { users: 0 });
}

/// Numbers wrap.
#[test]
fn a_hidden_child_waits_for_the_events_before() {
    for moment in [5, 0, u32::MAX, u32::MAX / 2] {
        let script = Script::new();
        enter(&script, AT).unwrap();
        leave(&script, AT);
        script.moment.set(moment);
        for before in [3, 1] {
            script.served.set(moment.wrapping_sub(before));
            assert_eq!(retire(&script, AT), Retired::After(moment));
        }
        assert_eq!(script.did(), [Did::Make, Did::Show, Did::Hide]);
        script.served.set(moment.wrapping_add(2));
        assert_eq!(retire(&script, AT), Retired::Yes);
        assert_eq!(script.did(), [Did::Destroy]);
    }
}

/// An event may be late. The number counts that there is when none of those is.
#[test]
fn a_hidden_child_waits_for_events_that_are_late() {
    for hidden in [7, u32::MAX - 20] {
        let script = Script::new();
        enter(&script, AT).unwrap();
        leave(&script, AT);
        script.late.set(50);
        script.now.set(hidden);
        script.moment.set(3);
        assert_eq!(retire(&script, AT), Retired::In(50));
        script.now.set(hidden.wrapping_add(49));
        assert_eq!(retire(&script, AT), Retired::In(1));
        script.now.set(hidden.wrapping_add(50));
        script.moment.set(5);
        script.served.set(4);
        assert_eq!(retire(&script, AT), Retired::After(5));
        script.moment.set(9);
        script.served.set(5);
        assert_eq!(retire(&script, AT), Retired::Yes);
    }
}

/// By one of the events that it waits for, perhaps.
#[test]
fn a_hidden_child_is_shown_again() {
    let script = Script::new();
    enter(&script, AT).unwrap();
    leave(&script, AT);
    script.moment.set(1);
    assert_eq!(retire(&script, AT), Retired::After(1));
    assert_eq!(enter(&script, AT), Ok(()));
    assert_eq!(script.did(), [Did::Make, Did::Show, Did::Hide, Did::Show]);
    script.served.set(1);
    assert_eq!(retire(&script, AT), Retired::No);
    assert_eq!(script.slot(), Slot::Live { users: 1 });
}

#[test]
fn what_is_hidden_is_retired_again_when_the_first_of_it_may_go() {
    let mut again = Again::default();
    assert!(!again.add(Retired::No) && !again.add(Retired::Yes));
    assert_eq!(again, Again::default());
    for time in [7, 5, 6] {
        assert!(again.add(Retired::In(time)));
    }
    assert_eq!((again.time, again.event), (Some(5), None));
    // Numbers wrap.
    for first in [3, 1, u32::MAX, u32::MAX / 2 + 1] {
        let mut again = Again::default();
        for behind in [2, 0, 1] {
            assert!(again.add(Retired::After(first.wrapping_add(behind))));
        }
        assert_eq!((again.time, again.event), (None, Some(first)));
    }
}

#[test]
fn failures_leave_something_sound() {
    // Not made: there is none.
    let script = Script::new();
    script.fail.set(Some(Did::Make));
    assert_eq!(enter(&script, AT), Err(Failed));
    assert_eq!(script.did(), [Did::Make]);
    assert_eq!(script.slot(), Slot::Absent);

    // Not shown: nobody knows what the device has, so it is hidden before it goes.
    script.fail.set(Some(Did::Show));
    assert_eq!(enter(&script, AT), Err(Failed));
    assert_eq!(script.did(), [Did::Make, Did::Show, Did::Hide]);
    assert_eq!(script.later.take(), [AT]);
    script.fail.set(None);
    assert_eq!(retire(&script, AT), Retired::Yes);
    assert_eq!(script.did(), [Did::Destroy]);

    // Not hidden: it stays, and is hidden the next time, or shown for sure.
    enter(&script, AT).unwrap();
    leave(&script, AT);
    script.did();
    script.fail.set(Some(Did::Hide));
    for _ in 0..2 {
        assert_eq!(retire(&script, AT), Retired::No);
        assert_eq!(script.did(), [Did::Hide]);
    }
    script.fail.set(None);
    assert_eq!(enter(&script, AT), Ok(()));
    assert_eq!(script.did(), [Did::Show]);

    // Neither shown nor hidden.
    let script = Script::new();
    script.fail.set(Some(Did::Hide));
    let fails = |script: &Script, did| {
        if did == Did::Show {
            script.refuse.set(true);
        }
    };
    *script.meanwhile.borrow_mut() = Some(Box::new(fails));
    assert_eq!(enter(&script, AT), Err(Failed));
    assert_eq!(script.slot(), Slot::Unsure);

    let script = Script::new();
    script.no_memory.set(true);
    assert_eq!(enter(&script, AT), Err(Failed));
    assert_eq!(script.did(), []);
}

#[test]
fn while_it_is_busy_everybody_else_waits() {
    let script = Script::new();
    let others = |script: &Script, _| {
        assert_eq!(script.with(AT, Slot::enter), Some(Entered::Wait));
        assert_eq!(script.with(AT, Slot::begin_to_hide), Some(false));
        let destroy = script.with(AT, |slot| slot.begin_to_destroy(script));
        assert_eq!(destroy, Some(Retired::No));
    };
    *script.meanwhile.borrow_mut() = Some(Box::new(others));
    enter(&script, AT).unwrap();
    leave(&script, AT);
    assert_eq!(retire(&script, AT), Retired::Yes);
    let all = [Did::Make, Did::Show, Did::Hide, Did::Destroy];
    assert_eq!(script.did(), all);
}

// --- Threads ----------------------------------------------------------------------------

/// A child that counts what it is used for.
#[derive(Default)]
struct Crowd {
    slot: Mutex<Slot>,
    changed: Condvar,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    exists: bool,
    is_shown: bool,
    users: usize,
    made: usize,
    destroyed: usize,
}

impl Family for Crowd {
    type Error = Failed;

    fn with<R>(&self, _: ChildIndex, change: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let result = change(&mut self.slot.lock().unwrap());
        self.changed.notify_all();
        Some(result)
    }

    fn no_memory(&self) -> Failed {
        Failed
    }

    fn wait(&self, _: ChildIndex) {
        let slot = self.slot.lock().unwrap();
        let _slot = self.changed.wait_while(slot, |slot| *slot == Slot::Busy);
    }

    fn make(&self, _: ChildIndex) -> Result<(), Failed> {
        let mut state = self.state.lock().unwrap();
        assert!(!state.exists, "made twice");
        state.exists = true;
        state.made += 1;
        Ok(())
    }

    fn show(&self, _: ChildIndex) -> Result<(), Failed> {
        let mut state = self.state.lock().unwrap();
        assert!(state.exists && !state.is_shown);
        state.is_shown = true;
        Ok(())
    }

    fn hide(&self, _: ChildIndex) -> Result<(), Failed> {
        let mut state = self.state.lock().unwrap();
        assert!(state.is_shown && state.users == 0, "hidden in use");
        state.is_shown = false;
        Ok(())
    }

    fn destroy(&self, _: ChildIndex) {
        let mut state = self.state.lock().unwrap();
        assert!(state.exists && !state.is_shown && state.users == 0);
        state.exists = false;
        state.destroyed += 1;
    }

    fn is_empty(&self, _: ChildIndex) -> bool {
        true
    }

    fn now(&self) -> u32 {
        0
    }

    fn late(&self) -> u32 {
        0
    }

    fn moment(&self) -> u32 {
        0
    }

    fn served(&self) -> u32 {
        0
    }

    fn retire_later(&self, _: ChildIndex) {}
}

#[test]
fn threads() {
    let crowd = Crowd::default();
    let rounds = 2000;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..rounds {
                    enter(&crowd, AT).unwrap();
                    let mut state = crowd.state.lock().unwrap();
                    assert!(state.is_shown, "entered, and not there");
                    state.users += 1;
                    drop(state);
                    std::thread::yield_now();
                    crowd.state.lock().unwrap().users -= 1;
                    leave(&crowd, AT);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..rounds {
                retire(&crowd, AT);
                std::thread::yield_now();
            }
        });
    });
    retire(&crowd, AT);
    let state = crowd.state.lock().unwrap();
    assert!(!state.exists);
    assert_eq!(state.made, state.destroyed);
}
