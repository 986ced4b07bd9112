// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The driver around hmm-abi and mlx5-odp: what `drivers/mlx5_ib` is in the kernel, module by
//! module, on the simulated kernel's locks.

pub(crate) mod chunk;
pub(crate) mod eq;
pub(crate) mod key;
pub(crate) mod mirror;
pub(crate) mod region;
pub(crate) mod umr;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{Mkey, PageFaultResume, WqeFault};
use mlx5_odp::{Driver, Found, FoundBy, NoImplicit, NoRegion, NoWqe, Pressure, Queue, Report};

use crate::adapter::Qp;
use crate::task::Thread;
use mirror::Mirror;
use region::Mr;

/// What a driver knows.
#[derive(Default)]
pub(crate) struct State {
    /// The regions, those that are being destroyed too.
    pub(crate) mirrors: RefCell<Vec<Rc<Mirror>>>,
    /// The users' QPs.
    pub(crate) qps: RefCell<Vec<Qp>>,
}

/// The driver, to a thread.
pub(crate) struct Adapter<'t>(pub(crate) &'t Thread<'t>);

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

impl<'t> Driver for Adapter<'t> {
    type Region<'a>
        = Mr<'t>
    where
        Self: 'a;
    type Implicit<'a>
        = NoImplicit<Mr<'t>>
    where
        Self: 'a;
    type Queue<'a>
        = HeldQp<'t>
    where
        Self: 'a;

    fn region(&self, mkey: Mkey) -> Result<FoundBy<'_, Self>, NoRegion> {
        self.0.step();
        let mirrors = self.0.sim.driver.mirrors.borrow();
        // What was registered last comes first.
        let mut known = mirrors.iter().rev().filter(|mirror| mirror.is_known());
        let same_index = |mirror: &&Rc<Mirror>| mirror.key().mkey.index() == mkey.index();
        match known.find(same_index) {
            Some(mirror) if mirror.key().mkey == mkey => {
                Ok(Found::Region(Mr::adopt(mirror, self.0)))
            }
            Some(_) => Err(NoRegion::Stale),
            None => Err(NoRegion::NotOdp),
        }
    }

    fn queue(&self, fault: &WqeFault) -> Option<HeldQp<'t>> {
        self.0.step();
        let qps = self.0.sim.driver.qps.borrow();
        let qp = qps.iter().find(|qp| qp.qpn == fault.wq_number.get())?;
        Some(HeldQp {
            qp: qp.clone(),
            thread: self.0,
        })
    }

    fn end_of_list(&self) -> Mkey {
        Mkey::TERMINATE_SCATTER_LIST
    }

    fn resume(&self, command: &PageFaultResume) {
        let sim = self.0.sim;
        if sim.is_over() {
            return;
        }
        sim.trace(|| format!("{}: resume {command:?}", self.0.name()));
        self.0.step();
        let mut out = [0; 16];
        let mut adapter = sim.adapter.borrow_mut();
        adapter.try_command(&command.to_bytes(), &mut out);
        drop(adapter);
        sim.coverage(|c| {
            c.resumes += 1;
            c.resumed_with_error += usize::from(command.error);
        });
        self.0.step();
    }

    fn sleep(&self, milliseconds: u32) {
        self.0.sleep(Duration::from_millis(milliseconds.into()));
    }

    fn gave_back(&self, _: Pressure) {
        self.0.sim.coverage(|c| c.gave_back += 1);
    }

    fn report(&self, report: Report) {
        // A device that fails is a trouble of its own; what cannot be made out never is one.
        if let Report::Event(_) | Report::Wqe(_) = report {
            self.0.sim.fail(
                "what the device says is not understood",
                format_args!("{report:?}"),
            );
        }
    }
}
