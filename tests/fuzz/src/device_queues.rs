// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a user of the device writes: WQEs, doorbell records, doorbells. And what the device tells
//! the driver of it: page faults, which are resumed, with and without the pages.
//!
//! Whatever a user does, the device neither panics nor hangs, the driver has broken no protocol,
//! and what is not the user's is not read and not written.

use std::collections::VecDeque;
use std::time::Duration;

use connectx::GuestMemory;
use firmware_cmds::umr::{MkeyMask, UmrFlags};
use firmware_cmds::{DmaAddr, Mkc, Mkey, MttAccess, PageFault, Scheme};
use serde::{Deserialize, Serialize};

use crate::data_path::rig::{mtt, Rig, TestQp};
use crate::steps;

/// The most pieces of work in a row, of those that a step starts.
const WORK: usize = 200;
/// Pieces of work after which the user and the driver look at their queues.
const LOOK: usize = 20;
const PAGE: u64 = 4096;
/// Bytes of a receive WQE.
const RECEIVE: usize = 64;
/// What is in the pages that are not the user's.
const SECRET: [u8; 16] = *b"not for the user";

/// The user's address of its memory regions.
pub(crate) const VA: u64 = 0x7f00_0000_0000;
/// Pages of each.
const PAGES: u64 = 4;
/// QPs.
pub(crate) const QPS: usize = 7;

/// What the user does, and the driver for it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Step {
    /// The scheme of page faults and the order of a seed: only as the first step.
    Device { transport: bool, seed: Option<u64> },
    /// Posts a send WQE as it should be posted, whatever is in it.
    Send { qp: u8, wqe: Vec<u8> },
    /// Posts a receive WQE.
    Receive { qp: u8, wqe: Vec<u8> },
    /// Writes to memory that the user and the device share: ring and doorbell record of the
    /// shared receive queue, a page each, then those of each QP, a page each.
    Store { at: u16, bytes: Vec<u8> },
    /// Writes to the user's doorbell page.
    Doorbell { at: u16, bytes: Vec<u8> },
    /// Lets the device work after so many milliseconds.
    Work { milliseconds: u16 },
    /// The driver makes pages of the region with faults present, to be written to or not, or
    /// takes all of them away.
    Present { pages: u8, write: bool },
    /// The driver resumes the fault that waits for longest.
    Resume { error: bool },
    /// 2ERR, or 2RST and up again.
    State { qp: u8, reset: bool },
}

/// A user, its driver and its device.
pub(crate) struct User {
    rig: Rig,
    /// RC, RC, UC, UC, RC that sends to a shared receive queue, RC that has it, UD.
    pub(crate) qps: [TestQp; QPS],
    remotes: [usize; QPS],
    /// Pages to write to, pages to read, pages that fault.
    pub(crate) keys: [Mkey; 3],
    /// The doorbell page of the EQ.
    driver_uar: u32,
    /// The user's.
    user_uar: u32,
    /// What the user and the device share: bus addresses.
    shared: std::ops::Range<u64>,
    /// Pages that no access of the user may reach, and pages that it may only read.
    secret: Vec<u64>,
    read_only: u64,
    /// Pages that the user may write to.
    writable: [u64; 2],
    stalls: VecDeque<PageFault>,
}

/// Executes ALLOC_PD or ALLOC_UAR.
fn alloc(rig: &mut Rig, opcode: u16) -> u32 {
    let mut input = [0; 16];
    input[..2].copy_from_slice(&opcode.to_be_bytes());
    let out = rig.command(&input, 16);
    u32::from_be_bytes([out[8], out[9], out[10], out[11]])
}

fn secret(rig: &mut Rig) -> u64 {
    let at = rig.pages(1);
    for line in (at..at + PAGE).step_by(SECRET.len()) {
        rig.mem.write(DmaAddr::new(line), &SECRET).expect("memory");
    }
    at
}

impl User {
    pub(crate) fn new(transport: bool, seed: Option<u64>) -> Self {
        let scheme = if transport {
            Scheme::Transport
        } else {
            Scheme::Memory
        };
        let mut rig = Rig::with_seed(scheme, seed);
        let driver_uar = rig.uar;
        // The user's own domain and doorbells; the driver's are out of its reach.
        rig.pd = alloc(&mut rig, 0x800);
        let user_uar = alloc(&mut rig, 0x802);

        let mut secrets = vec![secret(&mut rig)];
        let write = rig.mr(VA, PAGES, MttAccess::READ_WRITE);
        secrets.push(secret(&mut rig));
        let read = rig.mr(VA, PAGES, MttAccess::READ);
        secrets.push(secret(&mut rig));
        let faults = rig.mr(VA, PAGES, MttAccess::NONE);
        rig.uar = user_uar;
        secrets.push(secret(&mut rig));
        let start = secrets[3] + PAGE;
        let srq = rig.create_srq();
        let [a, b] = [(), ()].map(|()| rig.create_qp(0));
        let [c, d] = [(), ()].map(|()| rig.create_qp(1));
        let e = rig.create_qp(0);
        let f = rig.create_qp_with_srq(0, &srq);
        let g = rig.create_qp(3);
        let qps = [a, b, c, d, e, f, g];
        secrets.push(secret(&mut rig));
        let mut user = Self {
            qps,
            remotes: [1, 0, 3, 2, 5, 4, 6],
            keys: [write.key, read.key, faults.key],
            driver_uar,
            user_uar,
            shared: start..secrets[4],
            secret: secrets,
            read_only: read.iova,
            writable: [write.iova, faults.iova],
            stalls: VecDeque::new(),
            rig,
        };
        for qp in 0..QPS {
            user.connect(qp);
        }
        user
    }

    fn connect(&mut self, qp: usize) {
        let remote = self.qps[self.remotes[qp]].qpn;
        self.rig.connect(self.qps[qp].qpn, remote);
    }

    /// What completed is polled, and what faulted waits to be resumed.
    fn look(&mut self) {
        self.rig.poll_cq();
        self.rig.uar = self.driver_uar;
        let events = self.rig.events();
        self.rig.uar = self.user_uar;
        let faults = events
            .iter()
            .filter_map(|eqe| PageFault::from_eqe(eqe).ok());
        self.stalls.extend(faults);
    }

    fn work(&mut self) {
        for n in 1..=WORK {
            let next = self.rig.device.step(self.rig.now);
            let rests = next.is_none_or(|at| at > self.rig.now);
            if rests || n % LOOK == 0 {
                self.look();
            }
            if rests {
                return;
            }
        }
    }

    fn take(&mut self, step: Step) {
        let index = |qp: u8| usize::from(qp) % QPS;
        match step {
            Step::Device { .. } => {}
            Step::Send { qp, wqe } => {
                self.rig.post_raw(&mut self.qps[index(qp)], &wqe);
            }
            Step::Receive { qp, mut wqe } => {
                wqe.truncate(RECEIVE);
                self.rig.post_recv_raw(&mut self.qps[index(qp)], &wqe);
            }
            Step::Store { at, mut bytes } => {
                let size = self.shared.end - self.shared.start;
                let at = self.shared.start + u64::from(at) % size;
                bytes.truncate(usize::try_from(self.shared.end - at).unwrap_or(0));
                let stored = self.rig.mem.write(DmaAddr::new(at), &bytes);
                stored.expect("it is memory");
            }
            Step::Doorbell { at, bytes } => {
                let at = u64::from(self.user_uar) * PAGE + u64::from(at) % PAGE;
                self.rig.device.mmio_write(self.rig.now, at, &bytes);
            }
            Step::Work { milliseconds } => {
                self.rig.now += Duration::from_millis(u64::from(milliseconds));
                self.work();
            }
            Step::Present { pages, write } => self.present(pages, write),
            Step::Resume { error } => {
                if let Some(fault) = self.stalls.pop_front() {
                    // Its queue may be gone, and then the device says so.
                    self.rig.status(&fault.resume(error).to_bytes());
                }
            }
            Step::State { qp, reset } => self.state(index(qp), reset),
        }
    }

    fn present(&mut self, pages: u8, write: bool) {
        let access = |page: u64| match (pages >> page & 1, write) {
            (0, _) => MttAccess::NONE,
            (_, false) => MttAccess::READ,
            (_, true) => MttAccess::READ_WRITE,
        };
        let iova = self.writable[1];
        let list: Vec<_> = (0..PAGES)
            .map(|page| mtt(iova + page * PAGE, access(page)))
            .collect();
        let flags = UmrFlags::new().with_check_free(true);
        let (key, none) = (self.keys[2], MkeyMask::new());
        self.rig.uar = self.driver_uar;
        let context = Mkc::default();
        self.rig.post_umr(key, flags, none, &context, 0, &list);
        self.rig.uar = self.user_uar;
        // The queue has room for a few.
        self.work();
    }

    fn state(&mut self, qp: usize, reset: bool) {
        if reset {
            self.rig.reset(&mut self.qps[qp]);
            self.connect(qp);
        } else {
            let mut input = [0; 16];
            input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
            input[8..12].copy_from_slice(&self.qps[qp].qpn.to_be_bytes());
            self.rig.status(&input);
        }
    }

    /// What has to hold whatever the user did.
    fn check(&self) {
        let violations = self.rig.violations();
        assert!(violations.is_empty(), "{violations:?}");
        let size = usize::try_from(PAGE).unwrap_or(0);
        for &page in &self.secret {
            let bytes = self.rig.peek(page, size);
            let changed = bytes.chunks(SECRET.len()).any(|line| line != SECRET);
            assert!(!changed, "what is not the user's was written");
        }
        let pages = size * usize::try_from(PAGES).unwrap_or(0);
        let read_only = self.rig.peek(self.read_only, pages);
        assert!(read_only.iter().all(|&byte| byte == 0), "it was written");
        for at in self.writable {
            let bytes = self.rig.peek(at, pages);
            let found = bytes.windows(SECRET.len()).any(|line| line == SECRET);
            assert!(!found, "what is not the user's was read");
        }
    }
}

/// Takes the steps on a device in use.
pub fn run(bytes: &[u8]) {
    if bytes.windows(SECRET.len()).any(|part| part == SECRET) {
        // It has been guessed.
        return;
    }
    let mut steps = steps::decode(bytes).peekable();
    let (transport, seed) = match steps.peek() {
        Some(&Step::Device { transport, seed }) => (transport, seed),
        _ => (false, None),
    };
    let mut user = User::new(transport, seed);
    for step in steps {
        user.take(step);
    }
    user.check();
}
