// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Threads that run one at a time, in an order that a seed decides.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// xorshift64*.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator; equal seeds give equal numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}

struct State {
    random: Random,
    /// Threads that have not finished.
    alive: Vec<usize>,
    /// Whose turn it is.
    turn: usize,
    steps: u64,
    failed: bool,
}

/// The order of the threads of one simulation.
pub(crate) struct Schedule {
    state: Mutex<State>,
    /// One for each thread: it is its turn.
    turn: [Condvar; MAX_THREADS],
}

const MAX_THREADS: usize = 8;

thread_local! {
    static ME: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

/// A simulation that takes more steps than this hangs.
const MAX_STEPS: u64 = 200_000;

impl Schedule {
    /// Runs `threads` to their end, interleaved as `seed` says. False if one of them panicked.
    #[must_use]
    pub(crate) fn run(
        seed: u64,
        threads: Vec<Box<dyn FnOnce() + Send>>,
        schedule: &Arc<Self>,
    ) -> bool {
        {
            let mut state = schedule.state.lock().unwrap();
            state.random = Random::new(seed);
            state.alive = (0..threads.len()).collect();
            state.turn = 0;
        }
        let handles: Vec<_> = threads
            .into_iter()
            .enumerate()
            .map(|(id, body)| {
                let schedule = Arc::clone(schedule);
                thread::spawn(move || {
                    let finish = Finish(id, Arc::clone(&schedule));
                    ME.set(Some(id));
                    schedule.wait_for(id);
                    body();
                    drop(finish);
                })
            })
            .collect();
        let results: Vec<_> = handles.into_iter().map(thread::JoinHandle::join).collect();
        results.iter().all(Result::is_ok)
    }

    /// A schedule without threads; [`Schedule::step`] does nothing outside [`Schedule::run`].
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                random: Random::new(0),
                alive: Vec::new(),
                turn: 0,
                steps: 0,
                failed: false,
            }),
            turn: Default::default(),
        })
    }

    /// Lets another thread run, or this one go on.
    pub(crate) fn step(&self) {
        let Some(me) = ME.get() else { return };
        // Most steps change nothing that another thread could see, and switching takes time.
        if self.state.lock().unwrap().random.below(4) == 0 {
            self.pass(me);
        }
    }

    /// Lets others run, as there is nothing to do.
    pub(crate) fn idle(&self) {
        if let Some(me) = ME.get() {
            self.pass(me);
        }
    }

    fn pass(&self, me: usize) {
        {
            let mut state = self.state.lock().unwrap();
            state.steps += 1;
            if state.steps > MAX_STEPS {
                state.failed = true;
            }
            state.pass();
            if state.turn == me && !state.failed {
                return;
            }
            self.wake(&state);
        }
        self.wait_for(me);
    }

    fn wake(&self, state: &State) {
        if state.failed {
            self.turn.iter().for_each(Condvar::notify_all);
        } else {
            self.turn[state.turn].notify_all();
        }
    }

    fn wait_for(&self, me: usize) {
        let mut state = self.state.lock().unwrap();
        while state.turn != me && !state.failed {
            state = self.turn[me].wait(state).unwrap();
        }
        let failed = state.failed;
        drop(state);
        if failed && !thread::panicking() {
            panic!("the simulation hangs, or another thread failed");
        }
    }
}

impl State {
    fn pass(&mut self) {
        if !self.alive.is_empty() {
            let n = self.random.below(self.alive.len() as u64);
            self.turn = self.alive[usize::try_from(n).unwrap()];
        }
    }
}

struct Finish(usize, Arc<Schedule>);

impl Drop for Finish {
    fn drop(&mut self) {
        let mut state = self.1.state.lock().unwrap();
        state.alive.retain(|id| *id != self.0);
        if thread::panicking() {
            state.failed = true;
        }
        state.pass();
        self.1.wake(&state);
    }
}
