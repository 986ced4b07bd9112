// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The driver's way from a page-fault event to its resume: what a device may write into its event
//! queue, and what a malicious user writes into a work queue or has a key refer to.
//!
//! An access is resumed as often as it should be, once or not at all; what is given to the device is what
//! the process has, and nothing is left when the regions are gone.

use firmware_cmds::mkey::QueryMkeyOut;
use firmware_cmds::wqe::SendTransport;
use firmware_cmds::{
    AccessMode, Eqe, LogPageSize, Mkc, Mkey, OutHeader, PageFault, Wire, WqeFault,
};
use mlx5_odp::{NoQuery, NoWqe};
use serde::{Deserialize, Serialize};

use crate::model::queue::ModelQueue;
use crate::model::{Model, Protection};
use crate::steps;

/// Pages of a region: more than one chunk.
const PAGES: usize = 1024;
/// The first page of the process's memory.
const FIRST: usize = 0x100;
const PAGE: usize = 4096;

/// A region that allows writing.
pub(crate) const WRITABLE: Mkey = Mkey::new(0x1200);
/// A region over the same memory that does not.
pub(crate) const READ_ONLY: Mkey = Mkey::new(0x1300);
/// A key that refers to keys.
pub(crate) const WINDOW: Mkey = Mkey::new(0x1400);
/// The device's address of the first byte of both regions.
pub(crate) const IOVA: u64 = 0x7000_0000;
/// The queue pair, whose number is in the events.
pub(crate) const QUEUE: u32 = 0x42;

/// What happens.
#[derive(Serialize, Deserialize)]
pub(crate) enum Step {
    /// The device writes an event, and the driver serves it.
    Event { head: [u8; 4], data: [u8; 28] },
    /// The user writes its send queue, of a QP of this transport.
    Send { transport: u8, bytes: Vec<u8> },
    /// The user writes its receive WQE.
    Receive { signature: bool, bytes: Vec<u8> },
    /// WQEs cannot be read.
    NoQueue { memory: bool },
    /// The process protects pages, or gives them up.
    Protect { page: u16, pages: u8, access: u8 },
    /// Milliseconds pass.
    Wait { milliseconds: u16 },
    /// What the device says that the key refers to, behind the head of QUERY_MKEY's output.
    Refers { ksm: bool, list: Vec<u8> },
}

impl Step {
    /// An event with a page fault.
    pub(crate) fn event(fault: PageFault) -> Self {
        let eqe = fault.to_eqe(true);
        Self::Event {
            head: [0, eqe.event_type.0, 0, eqe.sub_type],
            data: eqe.data,
        }
    }
}

fn model() -> Model {
    let mut model = Model::new();
    let memory = FIRST..FIRST + PAGES;
    model.world().memory.mmap(memory, Protection::Write);
    model.register(WRITABLE, IOVA, FIRST * PAGE, PAGES * PAGE, true);
    // Neither starts nor ends with a page.
    let (address, bytes) = (FIRST * PAGE + 100, PAGES * PAGE - 200);
    model.register(READ_ONLY, IOVA + 100, address, bytes, false);
    model
        .indirect
        .insert(WINDOW.index().get(), Err(NoQuery::Failed));
    model.queues.insert(QUEUE, ModelQueue::default());
    model
}

/// The head of what QUERY_MKEY returns of a key over all of the address space.
fn query(ksm: bool) -> Vec<u8> {
    let key = QueryMkeyOut {
        header: OutHeader::OK,
        mkc: Mkc {
            access_mode: if ksm {
                AccessMode::Ksm
            } else {
                AccessMode::Klms
            },
            length64: true,
            log_page_size: LogPageSize::ADAPTER_PAGE,
            ..Mkc::default()
        },
    };
    let mut bytes = vec![0; QueryMkeyOut::LEN];
    key.emit(&mut bytes).expect("as long as it is");
    bytes
}

fn transport(number: u8) -> Option<SendTransport> {
    match number {
        0 => Some(SendTransport::Connected),
        1 => Some(SendTransport::XrcInitiator),
        2 => Some(SendTransport::Datagram),
        _ => None,
    }
}

/// How often the event's access is to be resumed.
fn owed(model: &Model, eqe: &Eqe) -> usize {
    let known = |fault: &WqeFault| model.queues.contains_key(&fault.wq_number.get());
    let owed = match PageFault::from_eqe(eqe) {
        Ok(PageFault::Memory(fault)) => fault.last,
        Ok(PageFault::Rdma(_)) => true,
        Ok(PageFault::Wqe(fault)) => known(&fault),
        Err(error) => error.fault_token().is_some(),
    };
    usize::from(owed)
}

fn event(model: &Model, head: [u8; 4], data: [u8; 28]) {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(&head);
    bytes[0x20..0x3c].copy_from_slice(&data);
    let Ok(eqe) = Eqe::parse(&bytes) else { return };
    let before = model.world().resumes.len();
    model.world().nic.eq.written.push_back(eqe);
    assert!(model.serve_next());
    assert_eq!(model.world().resumes.len() - before, owed(model, &eqe));
    assert_eq!(model.world().queues_held, 0);
}

fn protect(model: &Model, page: u16, pages: u8, access: u8) {
    let start = FIRST + usize::from(page) % PAGES;
    let end = (start + usize::from(pages)).min(FIRST + PAGES);
    let protection = match access {
        0 => Protection::None,
        1 => Protection::Read,
        2 => Protection::Write,
        _ => return model.drop_pages(&(start..end)),
    };
    let range = start..end;
    model.invalidate(&(start..end), |memory| memory.mprotect(range, protection));
}

/// What the device has is what the process has.
fn check(model: &Model) {
    let state = model.world();
    for page in 0..PAGES {
        for key in [WRITABLE, READ_ONLY] {
            // That a region may only be read is for its MKey to say, not for the entries.
            let access = state.nic.mtt(key, page).access();
            if access.read {
                state.memory.reached(FIRST + page, access.write);
            }
        }
    }
}

/// Takes the steps on two regions of a process and a queue pair.
pub fn run(bytes: &[u8]) {
    let mut model = model();
    for step in steps::decode(bytes) {
        let queue = model.queues.entry(QUEUE).or_default();
        match step {
            Step::Event { head, data } => event(&model, head, data),
            Step::Send {
                transport: number,
                bytes,
            } => {
                queue.transport = transport(number);
                queue.send = bytes;
                queue.error = None;
            }
            Step::Receive { signature, bytes } => {
                queue.signature = signature;
                queue.receive = bytes;
                queue.error = None;
            }
            Step::NoQueue { memory } => {
                let error = if memory {
                    NoWqe::Memory
                } else {
                    NoWqe::Unreadable
                };
                queue.error = Some(error);
            }
            Step::Protect {
                page,
                pages,
                access,
            } => protect(&model, page, pages, access),
            Step::Refers { ksm, list } => {
                let said = Ok([query(ksm), list].concat());
                model.indirect.insert(WINDOW.index().get(), said);
            }
            Step::Wait { milliseconds } => mlx5_odp::Driver::sleep(&model, milliseconds.into()),
        }
    }
    check(&model);
    for key in [WRITABLE, READ_ONLY] {
        model.deregister(key).expect("no trouble was made");
    }
    model.check_at_end();
}
