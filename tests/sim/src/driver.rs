// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The driver around hmm-abi and mlx5-odp: what `drivers/mlx5_ib` is in the kernel, module by
//! module, on the simulated kernel's locks.

pub(crate) mod advise;
pub(crate) mod buffer;
pub(crate) mod chunk;
pub(crate) mod eq;
pub(crate) mod implicit;
pub(crate) mod key;
pub(crate) mod mirror;
pub(crate) mod region;
pub(crate) mod umr;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{Mkey, PageFault, PageFaultResume, WqeFault};
use mlx5_odp::{
    Driver, Found, FoundBy, Generation, NoQuery, NoRegion, NoWqe, NotIn, Pressure, Queue, Report,
};

use crate::adapter::Qp;
use crate::task::Thread;
use advise::Piece;
use buffer::NoBuffer;
use implicit::ParentData;
use mirror::Mirror;
use region::{ImplicitMr, Mr};

/// What a driver knows.
#[derive(Default)]
pub(crate) struct State {
    /// The regions, those that are being destroyed too.
    pub(crate) mirrors: RefCell<Vec<Rc<Mirror>>>,
    /// The implicit MRs, as well.
    pub(crate) parents: RefCell<Vec<Rc<ParentData>>>,
    /// What is to be prefetched later.
    pub(crate) prefetches: RefCell<VecDeque<Piece>>,
    /// The users' QPs.
    pub(crate) qps: RefCell<Vec<Qp>>,
}

/// The driver, to a thread.
pub(crate) struct Adapter<'t> {
    thread: &'t Thread<'t>,
    /// Of the event that is being served, until it is.
    event: Cell<Option<Generation>>,
}

impl<'t> Adapter<'t> {
    /// Serves an event.
    pub(crate) fn of_event(thread: &'t Thread<'t>, generation: Generation) -> Self {
        Self {
            thread,
            event: Cell::new(Some(generation)),
        }
    }

    /// Outside of any event.
    pub(crate) fn without_event(thread: &'t Thread<'t>) -> Self {
        Self {
            thread,
            event: Cell::new(None),
        }
    }

    /// The event is served, if it was not before: no key is looked for any more.
    pub(crate) fn served(&self) {
        if let Some(generation) = self.event.take() {
            let sim = self.thread.sim;
            sim.events.event_served(sim, generation);
        }
    }
}

/// A QP that is held.
pub(crate) struct HeldQp<'t> {
    qp: Qp,
    thread: &'t Thread<'t>,
}

impl Queue for HeldQp<'_> {
    type Wqe = Vec<u8>;

    fn transport(&self) -> Option<SendTransport> {
        Some(SendTransport::Connected)
    }

    fn receive_signature(&self) -> bool {
        false
    }

    fn read_send(&self, index: u16) -> Result<Vec<u8>, NoWqe> {
        if !self.thread.allocate() {
            return Err(NoWqe::Memory);
        }
        Ok(self.thread.sim.adapter.borrow().send_wqe(&self.qp, index))
    }

    fn read_receive(&self, index: u16) -> Result<Vec<u8>, NoWqe> {
        if !self.thread.allocate() {
            return Err(NoWqe::Memory);
        }
        Ok(self
            .thread
            .sim
            .adapter
            .borrow()
            .receive_wqe(&self.qp, index))
    }
}

impl<'t> Adapter<'t> {
    /// An implicit MR that a key leads to; the keys below it are there for longer than its own.
    fn implicit(&self, parent: &Rc<ParentData>) -> Result<FoundBy<'_, Self>, NoRegion> {
        match parent.hold() {
            true => Ok(Found::Implicit(ImplicitMr::adopt(parent, self.thread))),
            false => Err(NoRegion::NotOdp),
        }
    }
}

impl<'t> Driver for Adapter<'t> {
    type Region<'a>
        = Mr<'t>
    where
        Self: 'a;
    type Implicit<'a>
        = ImplicitMr<'t>
    where
        Self: 'a;
    type Buffer<'a>
        = NoBuffer
    where
        Self: 'a;
    type Queue<'a>
        = HeldQp<'t>
    where
        Self: 'a;
    type Query = Vec<u8>;

    fn region(&self, mkey: Mkey) -> Result<FoundBy<'_, Self>, NoRegion> {
        self.thread.step();
        let driver = &self.thread.sim.driver;
        let is_it = |other: Mkey| other.index() == mkey.index();
        let mirrors = driver.mirrors.borrow();
        let mut known = mirrors.iter().filter(|mirror| mirror.is_known());
        if let Some(mirror) = known.find(|mirror| is_it(mirror.key().mkey)) {
            if mirror.key().mkey != mkey {
                return Err(NoRegion::Stale);
            }
            if let Some((parent, _)) = mirror.parent() {
                return self.implicit(&parent);
            }
            mirror.hold();
            return Ok(Found::Region(Mr::adopt(mirror, self.thread)));
        }
        let parents = driver.parents.borrow();
        let parent = parents.iter().find(|parent| parent.keys().any(is_it));
        parent.map_or(Err(NoRegion::NotOdp), |parent| self.implicit(parent))
    }

    fn query(&self, _: Mkey) -> Result<Vec<u8>, NoQuery> {
        // Nobody makes a key that refers to keys.
        Err(NoQuery::Gone)
    }

    fn max_indirection(&self) -> u8 {
        0
    }

    fn queue(&self, fault: &WqeFault) -> Option<HeldQp<'t>> {
        self.thread.step();
        let qps = self.thread.sim.driver.qps.borrow();
        let qp = qps.iter().find(|qp| qp.qpn == fault.wq_number.get())?;
        Some(HeldQp {
            qp: qp.clone(),
            thread: self.thread,
        })
    }

    fn end_of_list(&self) -> Mkey {
        Mkey::TERMINATE_SCATTER_LIST
    }

    fn resume(&self, command: &PageFaultResume) {
        let sim = self.thread.sim;
        if sim.is_over() {
            return;
        }
        sim.trace(|| format!("{}: resume {command:?}", self.thread.name()));
        self.served();
        self.thread.step();
        let mut out = [0; 16];
        let mut adapter = sim.adapter.borrow_mut();
        adapter.try_command(&command.to_bytes(), &mut out);
        drop(adapter);
        sim.coverage(|c| {
            c.resumes += 1;
            c.resumed_with_error += usize::from(command.error);
        });
        self.thread.step();
    }

    fn sleep(&self, milliseconds: u32) {
        self.thread
            .sleep(Duration::from_millis(milliseconds.into()));
    }

    fn gave_back(&self, _: Pressure) {
        self.thread.sim.coverage(|c| c.gave_back += 1);
    }

    fn refused(&self, fault: &PageFault, why: NotIn) {
        let thread = self.thread;
        (thread.sim).trace(|| format!("{}: refused, {why:?}: {fault:?}", thread.name()));
    }

    fn report(&self, report: Report) {
        // A device that fails is a trouble of its own; what cannot be made out never is one.
        if let Report::Event(_) | Report::Wqe(_) | Report::Key(_) = report {
            self.thread.sim.fail(
                "what the device says is not understood",
                format_args!("{report:?}"),
            );
        }
    }
}
