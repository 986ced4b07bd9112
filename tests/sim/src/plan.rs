// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the threads of a run do. A plan comes from a seed; the schedule, which says in what order
//! it is done and what fails on the way, comes from another one.

use std::fmt;

use connectx::Order;
use firmware_cmds::Scheme;

use mlx5_odp::Advice;

use crate::driver::region::{self, Registration};
use crate::memory::{Area, Kind, Protection, BORDER, COUNT, PAGE};
use crate::mm::change::Change;
use crate::notifier::Pages;

/// What an access does, and at which end it meets the MR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// RDMA READ of the MR at the responder.
    Read,
    /// RDMA WRITE to the MR at the responder.
    Write,
    /// SEND from the MR.
    Send,
    /// RDMA READ into the MR.
    ReadInto,
    /// SEND that is received in the MR.
    Receive,
}

impl Verb {
    const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Send,
        Self::ReadInto,
        Self::Receive,
    ];

    /// Whether the device writes to the MR.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadInto | Self::Receive)
    }
}

/// An access of a QP's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) verb: Verb,
    /// Which MR.
    pub(crate) mr: usize,
    /// Pages of the process.
    pub(crate) pages: Pages,
    /// How far into the last bytes of the first page it begins.
    pub(crate) skip: usize,
    /// What it writes.
    pub(crate) value: u8,
}

/// What a thread of the kernel does, after so many steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct After<T> {
    pub(crate) steps: usize,
    pub(crate) what: T,
}

/// What happens to an MR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Deregister(usize),
    Register(usize, Registration),
}

/// What a user advises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advise {
    /// Which MR.
    pub(crate) mr: usize,
    pub(crate) advice: Advice,
    /// Pages of the process.
    pub(crate) pages: Pages,
    /// Waits until it is done.
    pub(crate) waits: bool,
}

/// What goes wrong: once in so many times, never if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// There is no memory.
    pub(crate) memory: usize,
    /// An allocation reclaims.
    pub(crate) reclaim: usize,
    /// A range fault that has to wait has waited for too long.
    pub(crate) busy: usize,
    /// The device fails UMRs.
    pub(crate) umrs_fail: bool,
    /// The device loses events.
    pub(crate) events_are_lost: bool,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) scheme: Scheme,
    /// The device's seed; without one it does first what came first.
    pub(crate) device: Option<u64>,
    pub(crate) areas: Vec<Area>,
    /// The device's rules.
    pub(crate) rules: Vec<&'static str>,
    pub(crate) trouble: Trouble,
    pub(crate) workers: usize,
    /// Events that there is memory for.
    pub(crate) slots: usize,
    /// Buffers for UMRs, beside the last.
    pub(crate) umrs: usize,
    pub(crate) mrs: [Registration; 2],
    pub(crate) qps: [Vec<Access>; 2],
    pub(crate) kernel: [Vec<After<Change>>; 2],
    pub(crate) registrar: Vec<After<Step>>,
    pub(crate) advices: Vec<After<Advise>>,
    /// The process ends under way.
    pub(crate) exits: bool,
}

/// Where things happen: on both sides of the border between chunks.
const BUSY: Pages = BORDER - 8..BORDER + 8;
/// Pages of the MR that stays, if it is explicit: a chunk and a short one.
const LARGE: Pages = BORDER - 512..BORDER + 16;

/// Rules of the device that a driver must live with, each with a part of the seeds.
const DELAYS: [&str; 5] = [
    "umr every=3 do=delay us=300",
    "umr kind=zap every=2 do=delay ms=2",
    "message every=5 do=delay us=700",
    "event type=PAGE_FAULT every=3 do=delay ms=5",
    "command op=PAGE_FAULT_RESUME every=4 do=delay us=200",
];
const SHAPES: [&str; 4] = [
    "fault do=shape pre=2 post=3",
    "fault do=shape pieces=2",
    "fault do=shape pieces=2 last=first",
    "fault do=shape committed=packets",
];
const FAILURES: [&[&str]; 6] = [
    &["umr kind=zap every=4 do=fail syndrome=LOCAL_QP_OP"],
    &["umr kind=map every=5 do=fail syndrome=LOCAL_QP_OP"],
    &["umr every=9 do=fail syndrome=LOCAL_QP_OP"],
    &["umr kind=zap do=fail syndrome=LOCAL_QP_OP"],
    &["umr kind=revoke times=2 do=fail syndrome=LOCAL_QP_OP"],
    &[
        "umr kind=zap do=fail syndrome=LOCAL_QP_OP",
        "umr kind=revoke times=3 do=fail syndrome=LOCAL_QP_OP",
    ],
];

fn some_pages(order: &mut Order, within: &Pages, most: usize) -> Pages {
    let first = within.start + order.pick(within.len());
    let room = (within.end - first).min(most);
    first..first + 1 + order.pick(room)
}

fn one_in(order: &mut Order, rarity: usize) -> bool {
    order.pick(rarity) == 0
}

fn area(order: &mut Order) -> Area {
    let protection = match order.pick(8) {
        0 => Protection::Read,
        _ => Protection::Write,
    };
    Area {
        mapped: true,
        kind: if one_in(order, 4) {
            Kind::File
        } else {
            Kind::Anonymous
        },
        protection,
        uffd: one_in(order, 16),
        truncated: false,
    }
}

fn access(order: &mut Order, over_the_border: bool) -> Access {
    let pages = match over_the_border {
        true => BORDER - 1 - order.pick(2)..BORDER + 1 + order.pick(2),
        false => some_pages(order, &BUSY, 3),
    };
    Access {
        verb: Verb::ALL[order.pick(Verb::ALL.len())],
        mr: usize::from(one_in(order, 3)),
        pages,
        skip: order.pick(64),
        value: u8::try_from(order.pick(256)).unwrap_or(0),
    }
}

/// What the kernel does: more often what is most common. Pages around the border, so that any two
/// are likely to overlap.
fn change(order: &mut Order, kind: usize) -> After<Change> {
    let pages = match order.pick(6) {
        0 | 1 => some_pages(order, &BUSY, 8),
        // All that there is of a child.
        2 => BUSY.start..BORDER,
        _ => BORDER - 1 - order.pick(3)..BORDER + 1 + order.pick(3),
    };
    let protection = match order.pick(6) {
        0 => Protection::None,
        1 | 2 => Protection::Read,
        _ => Protection::Write,
    };
    After {
        steps: order.pick(30),
        what: Change::of(kind, pages, protection),
    }
}

fn small(order: &mut Order) -> Registration {
    let pages = BUSY.start - order.pick(4)..BUSY.end + order.pick(4);
    Registration::Explicit(region::Area {
        iova: 0x7f00_0000_0000 + u64::try_from(order.pick(16) * PAGE).unwrap_or(0),
        pages,
        writable: !one_in(order, 4),
    })
}

/// An implicit MR once in a while, or else that one.
fn or_implicit(order: &mut Order, explicit: Registration) -> Registration {
    match order.pick(3) {
        0 => Registration::Implicit {
            writable: !one_in(order, 8),
        },
        _ => explicit,
    }
}

/// An MR over what is busy, or all of the process's memory.
fn another(order: &mut Order) -> Registration {
    let explicit = small(order);
    or_implicit(order, explicit)
}

fn advise(order: &mut Order) -> After<Advise> {
    After {
        steps: order.pick(60),
        what: Advise {
            mr: usize::from(one_in(order, 3)),
            advice: match order.pick(3) {
                0 => Advice::Read,
                1 => Advice::Write,
                _ => Advice::Present,
            },
            pages: match order.pick(2) {
                0 => some_pages(order, &BUSY, 6),
                _ => BORDER - 1 - order.pick(4)..BORDER + 1 + order.pick(4),
            },
            waits: one_in(order, 2),
        },
    }
}

impl Plan {
    /// That of a seed.
    pub(crate) fn of_seed(seed: u64) -> Self {
        let order = &mut Order::seeded(seed.rotate_left(32) ^ 0x706c_616e);
        let scheme = match order.pick(2) {
            0 => Scheme::Memory,
            _ => Scheme::Transport,
        };
        let mut rules = Vec::new();
        for rule in DELAYS {
            if one_in(order, 6) {
                rules.push(rule);
            }
        }
        if one_in(order, 3) {
            let shape = SHAPES[order.pick(SHAPES.len())];
            if scheme == Scheme::Memory || shape.contains("committed") {
                rules.push(shape);
            }
        }
        let umrs_fail = one_in(order, 5);
        if umrs_fail {
            rules.extend(FAILURES[order.pick(FAILURES.len())]);
        }
        let events_are_lost = one_in(order, 20);
        if events_are_lost {
            rules.push("event type=PAGE_FAULT every=5 do=drop");
        }
        let scarce = one_in(order, 3);
        let trouble = Trouble {
            memory: if scarce { 12 } else { 0 },
            reclaim: if one_in(order, 2) { 4 } else { 0 },
            busy: if one_in(order, 4) { 3 } else { 0 },
            umrs_fail,
            events_are_lost,
        };
        let mut accesses = || {
            let count = 4 + order.pick(3);
            (0..count).map(|n| access(order, n == 0)).collect()
        };
        let qps = [accesses(), accesses()];
        let mut kinds = std::collections::BTreeSet::new();
        let mut kernel = [Vec::new(), Vec::new()];
        for changes in &mut kernel {
            for _ in 0..3 + order.pick(3) {
                let mut kind = match order.pick(8) {
                    0 => Change::OOM_REAPER,
                    _ => order.pick(Change::KINDS),
                };
                // Three kinds at least.
                while kinds.len() < 3 && kinds.contains(&kind) {
                    kind = (kind + 1) % Change::KINDS;
                }
                kinds.insert(kind);
                changes.push(change(order, kind));
            }
        }
        let mut registrar = vec![After {
            steps: order.pick(120),
            what: Step::Deregister(1),
        }];
        if one_in(order, 2) {
            registrar.push(After {
                steps: order.pick(10),
                what: Step::Register(1, another(order)),
            });
        }
        let advices = match order.pick(2) {
            0 => (0..1 + order.pick(3)).map(|_| advise(order)).collect(),
            _ => Vec::new(),
        };
        let large = Registration::Explicit(region::Area {
            iova: u64::try_from(LARGE.start * PAGE).unwrap_or(0),
            pages: LARGE,
            writable: !one_in(order, 8),
        });
        Self {
            scheme,
            device: Some(seed),
            areas: (0..COUNT).map(|_| area(order)).collect(),
            rules,
            trouble,
            workers: 2 + order.pick(3),
            slots: 1 + order.pick(4),
            umrs: order.pick(4),
            mrs: [or_implicit(order, large), another(order)],
            qps,
            kernel,
            registrar,
            advices,
            exits: one_in(order, 8),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:?} scheme; {} workers, {} events, {} UMRs; {:?}",
            self.scheme, self.workers, self.slots, self.umrs, self.trouble
        )?;
        for rule in &self.rules {
            writeln!(f, "  rule {rule}")?;
        }
        for (at, mr) in self.mrs.iter().enumerate() {
            writeln!(f, "  MR {at}: {mr:x?}")?;
        }
        for (at, accesses) in self.qps.iter().enumerate() {
            for access in accesses {
                writeln!(f, "  QP {at}: {access:x?}")?;
            }
        }
        for (at, changes) in self.kernel.iter().enumerate() {
            for After { steps, what } in changes {
                writeln!(f, "  kernel {at}: after {steps}: {what:x?}")?;
            }
        }
        for After { steps, what } in &self.registrar {
            writeln!(f, "  registrar: after {steps}: {what:x?}")?;
        }
        for After { steps, what } in &self.advices {
            writeln!(f, "  adviser: after {steps}: {what:x?}")?;
        }
        write!(
            f,
            "  the process ends {}",
            if self.exits { "under way" } else { "last" }
        )
    }
}
