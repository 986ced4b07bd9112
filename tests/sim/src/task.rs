// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Threads of the simulated kernel: coroutines, of which one runs at a time and lets go of the CPU
//! only where it says so.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

use crate::lock::Class;
use crate::sim::Sim;

/// Bytes of a thread's stack. Unoptimised code takes more of it.
const STACK: usize = 256 << 10;

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel(u32);

/// What a thread is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    /// Until that or then, if there is a then.
    Waits(Channel, Option<Duration>),
    Sleeps(Duration),
    Done,
}

/// What threads wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// When the first thread that sleeps wakes up.
    pub(crate) alarm: Option<Duration>,
    /// Every thread has ended.
    pub(crate) all_done: bool,
}

/// The earlier one, if there is one.
pub(crate) fn earlier(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Who is there, and who may run.
#[derive(Default)]
pub(crate) struct Tasks {
    status: RefCell<Vec<Status>>,
    names: RefCell<Vec<&'static str>>,
    channels: Cell<u32>,
}

impl Tasks {
    /// A new thing to wait for.
    pub(crate) fn channel(&self) -> Channel {
        self.channels.set(self.channels.get() + 1);
        Channel(self.channels.get())
    }

    /// Whoever waits for it looks again.
    pub(crate) fn wake(&self, channel: Channel) {
        for status in &mut *self.status.borrow_mut() {
            if matches!(status, Status::Waits(on, _) if *on == channel) {
                *status = Status::Ready;
            }
        }
    }

    /// Calls `ready` for every thread that may run.
    pub(crate) fn look(&self, mut ready: impl FnMut(usize)) -> Look {
        let mut look = Look {
            alarm: None,
            all_done: true,
        };
        for (id, status) in self.status.borrow().iter().enumerate() {
            let alarm = match *status {
                Status::Done => continue,
                Status::Ready => {
                    ready(id);
                    None
                }
                Status::Sleeps(until) => Some(until),
                Status::Waits(_, until) => until,
            };
            look.all_done = false;
            look.alarm = earlier(look.alarm, alarm);
        }
        look
    }

    /// Time has passed.
    pub(crate) fn expire(&self, now: Duration) {
        for status in &mut *self.status.borrow_mut() {
            let due = matches!(status, Status::Sleeps(until) | Status::Waits(_, Some(until)) if *until <= now);
            if due {
                *status = Status::Ready;
            }
        }
    }

    /// Whether a thread has ended.
    pub(crate) fn is_done(&self, id: usize) -> bool {
        self.status.borrow()[id] == Status::Done
    }

    /// The name of a thread.
    pub(crate) fn name(&self, id: usize) -> &'static str {
        self.names.borrow()[id]
    }
}

impl fmt::Display for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, status) in self.names.borrow().iter().zip(&*self.status.borrow()) {
            if *status != Status::Done {
                write!(f, " {name}: {status:?};")?;
            }
        }
        Ok(())
    }
}

/// A thread, to whoever runs in it.
pub(crate) struct Thread<'y> {
    yielder: &'y Yielder<(), ()>,
    /// The world.
    pub(crate) sim: &'y Rc<Sim>,
    /// Its number.
    pub(crate) id: usize,
    /// Locks that it holds, in the order in which it took them.
    pub(crate) held: RefCell<Vec<Class>>,
    /// How many invalidations it is in the callbacks of.
    pub(crate) invalidating: Cell<u32>,
    /// How many reasons there are for it not to sleep.
    pub(crate) atomic: Cell<u32>,
    /// It is reclaiming memory.
    pub(crate) reclaiming: Cell<bool>,
}

impl Thread<'_> {
    fn suspend(&self, status: Status) {
        if self.sim.is_over() {
            return;
        }
        self.sim.tasks.status.borrow_mut()[self.id] = status;
        self.yielder.suspend(());
    }

    /// Others may run.
    pub(crate) fn step(&self) {
        self.suspend(Status::Ready);
    }

    /// Others run until [`Tasks::wake`].
    pub(crate) fn wait(&self, channel: Channel) {
        self.may_sleep("waits");
        self.suspend(Status::Waits(channel, None));
    }

    /// Others run until [`Tasks::wake`], or until it is so late.
    pub(crate) fn wait_until(&self, channel: Channel, time: Option<Duration>) {
        self.may_sleep("waits");
        self.suspend(Status::Waits(channel, time));
    }

    /// Others run until so much time has passed.
    pub(crate) fn sleep(&self, time: Duration) {
        self.may_sleep("sleeps");
        let until = self.sim.now() + time;
        self.suspend(Status::Sleeps(until));
    }

    fn may_sleep(&self, what: &str) {
        if self.atomic.get() > 0 {
            self.sim.fail(
                "sleeps where it must not",
                format_args!("{} {what}", self.name()),
            );
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.sim.tasks.name(self.id)
    }
}

/// What a thread does.
pub(crate) type Body = Box<dyn FnOnce(&Thread<'_>)>;

/// Stacks that are used again.
#[derive(Default)]
pub(crate) struct Stacks(Vec<DefaultStack>);

/// The threads themselves, which the scheduler runs.
pub(crate) struct Coroutines<'s> {
    sim: Rc<Sim>,
    stacks: &'s mut Stacks,
    all: Vec<Option<Coroutine<(), (), ()>>>,
}

impl<'s> Coroutines<'s> {
    pub(crate) fn new(sim: Rc<Sim>, stacks: &'s mut Stacks) -> Self {
        Self {
            sim,
            stacks,
            all: Vec::new(),
        }
    }

    /// Adds a thread; returns its number.
    ///
    /// # Panics
    ///
    /// If there is no memory for its stack.
    pub(crate) fn spawn(&mut self, name: &'static str, body: Body) -> usize {
        let id = self.all.len();
        self.sim.tasks.status.borrow_mut().push(Status::Ready);
        self.sim.tasks.names.borrow_mut().push(name);
        let stack = self.stacks.0.pop();
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK).expect("memory for a stack"));
        let sim = Rc::clone(&self.sim);
        let run = move |yielder: &Yielder<(), ()>, ()| {
            let thread = Thread {
                yielder,
                sim: &sim,
                id,
                held: RefCell::default(),
                invalidating: Cell::new(0),
                atomic: Cell::new(0),
                reclaiming: Cell::new(false),
            };
            body(&thread);
        };
        self.all.push(Some(Coroutine::with_stack(stack, run)));
        id
    }

    /// Lets a thread run until it lets go of the CPU.
    pub(crate) fn resume(&mut self, id: usize) {
        let Some(coroutine) = &mut self.all[id] else {
            return;
        };
        coroutine.resume(());
        if coroutine.done() {
            self.sim.tasks.status.borrow_mut()[id] = Status::Done;
            if let Some(done) = self.all[id].take() {
                self.stacks.0.push(done.into_stack());
            }
            self.sim.tasks.wake(self.sim.ended);
        }
    }
}

impl Drop for Coroutines<'_> {
    /// Ends those that are under way: they unwind, and nothing of theirs waits any more.
    fn drop(&mut self) {
        self.sim.end();
        for coroutine in self.all.drain(..).flatten() {
            let mut coroutine = coroutine;
            coroutine.force_unwind();
            self.stacks.0.push(coroutine.into_stack());
        }
    }
}
