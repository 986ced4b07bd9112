// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From an event's bytes to its resume, on the model: each sub-type, each kind of error.

mod around;
mod buffer;
mod events;
mod implicit;
mod indirect;
mod memory;
#[path = "../model/mod.rs"]
mod model;
mod present;
mod pressure;
mod rdma;
mod read_only;
mod wqe;

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::{
    Iova, MemoryFault, MemoryToken, Mkey, MttAccess, PageFault, RdmaFault, TransportToken,
    WqNumber, WqeFault, WqeFaultKind,
};

use mlx5_odp::LATE;

use model::queue::ModelQueue;
use model::{Model, Protection};

const KEY: Mkey = Mkey::new(0x1200);
const PAGE: u64 = 4096;
/// Where the MR begins: page number 0x100, and to the device another address.
const ADDRESS: usize = 0x10_0000;
const FIRST: usize = 0x100;
const IOVA: u64 = 0x7000_0000;

const NONE: MttAccess = MttAccess::NONE;
const R: MttAccess = MttAccess::READ;
const RW: MttAccess = MttAccess::READ_WRITE;

/// So many pages, all writable, registered.
fn model_of(pages: usize) -> Model {
    let model = Model::new();
    (model.world().memory).mmap(FIRST..FIRST + pages, Protection::Write);
    model.register(KEY, IOVA, ADDRESS, pages * 4096, true);
    model
}

/// 64 pages, all writable, registered.
fn model() -> Model {
    model_of(64)
}

/// Makes pages of the region read-only, or not accessible at all.
fn protect(model: &Model, pages: std::ops::Range<usize>, protection: Protection) {
    let pages = FIRST + pages.start..FIRST + pages.end;
    model.invalidate(&pages, |memory| memory.mprotect(pages.clone(), protection));
}

/// The process drops pages of the region.
fn drop_pages(model: &Model, pages: std::ops::Range<usize>) {
    model.drop_pages(&(FIRST + pages.start..FIRST + pages.end));
}

/// Raises a fault and serves it.
fn fault(model: &Model, fault: PageFault) {
    model.raise(fault);
    assert!(model.serve_next());
}

/// Events of what was missing before now have all been written.
fn later(model: &Model) {
    model.world().clock += LATE;
}

/// The address of a page, to the device.
fn iova(page: usize) -> u64 {
    IOVA + u64::try_from(page).unwrap() * PAGE
}

fn memory(at: u64, pages: u32) -> MemoryFault {
    MemoryFault {
        last: true,
        token: MemoryToken::truncate(0xabcd_1234_5678),
        mkey: KEY,
        va: Iova::new(at),
        demand_pages: DemandPages::truncate(pages),
        pre_demand_pages: 0,
        post_demand_pages: 0,
    }
}

fn rdma(at: u64, bytes: u32, write: bool) -> RdmaFault {
    RdmaFault {
        fault_type: FaultType::rdma(write),
        token: TransportToken::truncate(0x77),
        r_key: KEY,
        rdma_va: Iova::new(at),
        rdma_op_len: bytes,
        packet_length: 1024,
        bytes_committed: 0,
    }
}

fn wqe(kind: WqeFaultKind) -> WqeFault {
    WqeFault {
        kind,
        wq_number: WqNumber::truncate(0x42),
        wqe_index: 1,
        bytes_committed: 0,
        packet_length: 0,
        token: TransportToken::truncate(0x99),
    }
}

/// The accesses resumed so far: false for those that failed.
fn resumed(model: &Model) -> Vec<bool> {
    let world = model.world();
    world.resumes.iter().map(|resume| !resume.error).collect()
}

/// What the device may do with each page from `first` on.
fn table(model: &Model, first: usize, count: usize) -> Vec<MttAccess> {
    let world = model.world();
    let access = |page| world.nic.mtt(KEY, page).access();
    (first..first + count).map(access).collect()
}

/// `ctrl [av | xrc] [raddr [atomic]] data...` at block 1.
fn send_wqe(opcode: u8, head: &[u8], segments: &[(u32, u32, u64)]) -> Vec<u8> {
    let ds = 1 + head.len() / 16 + segments.len();
    let mut bytes = vec![0xa5; 64];
    bytes.extend([0, 0, 1, opcode, 0, 0, 0x42, u8::try_from(ds).unwrap()]);
    bytes.extend([0; 8]);
    bytes.extend(head);
    bytes.extend(segments.iter().flat_map(data_segment));
    bytes.resize(bytes.len().next_multiple_of(64), 0xa5);
    bytes
}

fn data_segment((count, key, addr): &(u32, u32, u64)) -> Vec<u8> {
    [
        &count.to_be_bytes()[..],
        &key.to_be_bytes(),
        &addr.to_be_bytes(),
    ]
    .concat()
}

fn with_queue(mut model: Model, queue: ModelQueue) -> Model {
    model.queues.insert(0x42, queue);
    model
}
