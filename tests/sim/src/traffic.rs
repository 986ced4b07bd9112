// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Accesses of QPs to MRs, and what becomes of them.

use std::time::Duration;

use firmware_cmds::wqe::WqeOpcode;

use crate::adapter::{data, raddr, Completion, Qp};
use crate::driver::region::UserMr;
use crate::memory::{BORDER, EDGE, PAGE};
use crate::plan::{Access, Verb};
use crate::task::Thread;

/// Bytes of what the other end of a message has.
pub(crate) const BUFFER: usize = 12 << 10;
/// For how long a QP waits for what may have been lost.
const PATIENCE: u32 = 12;

/// Two QPs that are connected.
pub(crate) struct Pair {
    pub(crate) requester: Qp,
    pub(crate) responder: Qp,
    /// The other end's memory, which is always there.
    pub(crate) buffer: u64,
}

/// Bytes, which differ where a message begins and ends.
fn pattern(len: usize, value: u8) -> Vec<u8> {
    let mut bytes = vec![value; len];
    let tail = len.saturating_sub(2 * EDGE).max(len.min(2 * EDGE));
    for at in (0..len.min(2 * EDGE)).chain(tail..len) {
        let mixed = u8::try_from(at % 251).unwrap_or(0);
        bytes[at] = value ^ mixed;
    }
    bytes
}

impl Access {
    /// Offset of the first byte in the first page, and how many.
    fn bytes(&self) -> (usize, usize) {
        let first = PAGE - EDGE + self.skip;
        let end = match self.pages.len() {
            1 => PAGE,
            pages => (pages - 1) * PAGE + EDGE - self.skip / 2,
        };
        (first, end - first)
    }
}

impl Thread<'_> {
    /// A user's QP: one access after the other.
    pub(crate) fn run_qp(&self, mut pair: Pair, accesses: &[Access]) {
        for access in accesses {
            let Some(mr) = self.sim.user_mr(access.mr) else {
                continue;
            };
            self.access(&mut pair, &mr, access);
        }
        self.sim.qps_at_work.set(self.sim.qps_at_work.get() - 1);
    }

    fn access(&self, pair: &mut Pair, mr: &UserMr, access: &Access) {
        let sim = self.sim;
        let pages = &access.pages;
        let (first, len) = access.bytes();
        let va = mr.address(pages.start);
        let va = va.wrapping_add(u64::try_from(first).unwrap_or(0));
        let key = mr.mkey();
        if matches!(mr, UserMr::Implicit(_)) && pages.start < BORDER && BORDER < pages.end {
            sim.coverage(|c| c.over_two_children += 1);
        }
        let sent = pattern(len, access.value);
        let begin = sim.steps();
        let before = self.changes(access);
        sim.trace(|| format!("{}: {access:x?} at {va:#x}", self.name()));
        {
            let mut adapter = sim.adapter.borrow_mut();
            let pa = adapter.pa;
            let buffer = pair.buffer;
            adapter.write(buffer, &sent);
            let (requester, responder) = (&mut pair.requester, &mut pair.responder);
            match access.verb {
                Verb::Read | Verb::Write => {
                    let mut body = raddr(key, va);
                    body.extend(data(pa, buffer, len));
                    let opcode = match access.verb {
                        Verb::Read => WqeOpcode::RDMA_READ,
                        _ => WqeOpcode::RDMA_WRITE,
                    };
                    adapter.post(requester, opcode, 0, &body);
                }
                Verb::ReadInto => {
                    let mut body = raddr(pa, buffer);
                    body.extend(data(key, va, len));
                    adapter.post(requester, WqeOpcode::RDMA_READ, 0, &body);
                }
                Verb::Send => {
                    adapter.post_receive(responder, pa, buffer, len);
                    let body = data(key, va, len);
                    adapter.post(requester, WqeOpcode::SEND, 0, &body);
                }
                Verb::Receive => {
                    adapter.post_receive(responder, key, va, len);
                    let body = data(pa, buffer, len);
                    adapter.post(requester, WqeOpcode::SEND, 0, &body);
                }
            }
        }
        match self.completion(pair) {
            Some(Completion { syndrome: 0, .. }) => {
                sim.coverage(|c| c.completed += 1);
                self.compare(pair, access, before, &sent);
            }
            Some(completion) => {
                self.check_refused(mr, access, begin, completion);
                self.recover(pair);
            }
            None => {
                sim.coverage(|c| c.lost += 1);
                self.recover(pair);
            }
        }
    }

    /// What the requester's WQE came to; `None` if it takes for ever because a report was lost.
    fn completion(&self, pair: &Pair) -> Option<Completion> {
        let sim = self.sim;
        let mut slept = 0;
        loop {
            let qpn = pair.requester.qpn;
            if let Some(completion) = sim.take_completion(|c| c.qpn == qpn && !c.receive) {
                return Some(completion);
            }
            if sim.is_over() || slept == PATIENCE {
                return None;
            }
            if sim.trouble.events_are_lost {
                self.sleep(Duration::from_millis(1 << slept));
                slept += 1;
            } else {
                self.wait(sim.completed);
            }
        }
    }

    /// How often the pages have changed.
    fn changes(&self, access: &Access) -> Vec<Option<u32>> {
        let memory = self.sim.memory.lock();
        let pages = access.pages.clone();
        pages
            .map(|page| memory.page(page).map(|page| page.changes))
            .collect()
    }

    /// Compares what was moved, if nobody else has written meanwhile.
    fn compare(&self, pair: &Pair, access: &Access, before: Vec<Option<u32>>, sent: &[u8]) {
        let sim = self.sim;
        // What was written, the oracles compare byte by byte as it is written. What a device has
        // kept may be anything.
        let is_kept = sim.counted().held > 0;
        if access.verb.writes() || is_kept || self.changes(access) != before {
            return;
        }
        let mut received = vec![0; sent.len()];
        sim.adapter.borrow().read(pair.buffer, &mut received);
        let (first, len) = access.bytes();
        let memory = sim.memory.lock();
        for at in (0..len.min(2 * EDGE)).chain(len.saturating_sub(EDGE)..len) {
            let (page, offset) = ((first + at) / PAGE, (first + at) % PAGE);
            let index = match offset {
                offset if offset < EDGE => offset,
                offset if offset >= PAGE - EDGE => EDGE + offset - (PAGE - EDGE),
                _ => continue,
            };
            let Some(page) = memory.page(access.pages.start + page) else {
                return;
            };
            if received[at] != page.shadow[index] {
                let expected = page.shadow[index];
                drop(memory);
                sim.fail(
                    "wrong data",
                    format_args!(
                        "byte {at} of {access:x?}: {:#x}, not {expected:#x}",
                        received[at]
                    ),
                );
                return;
            }
        }
        drop(memory);
        sim.coverage(|c| c.compared += 1);
    }

    /// An access fails only if it was against the rules at some moment, or the device had failed.
    fn check_refused(&self, mr: &UserMr, access: &Access, begin: usize, completion: Completion) {
        let sim = self.sim;
        let write = access.verb.writes();
        let memory = sim.memory.lock();
        let mut pages = access.pages.clone();
        let refused = pages.any(|page| memory.was_refused(page, write, begin))
            || sim.mm_users.get() == 0
            || !mr.covers(&access.pages)
            || write && !mr.is_writable()
            || !mr.is_known()
            || sim.trouble.umrs_fail;
        drop(memory);
        if !refused {
            sim.fail(
                "a valid access failed",
                format_args!("{access:x?}: {completion:?}"),
            );
        }
        sim.coverage(|c| c.refused += 1);
    }

    /// Both QPs again from RESET.
    fn recover(&self, pair: &mut Pair) {
        let sim = self.sim;
        self.step();
        let mut adapter = sim.adapter.borrow_mut();
        let (requester, responder) = (&mut pair.requester, &mut pair.responder);
        adapter.reset(requester);
        adapter.reset(responder);
        adapter.connect(requester.qpn, responder.qpn);
        adapter.connect(responder.qpn, requester.qpn);
        drop(adapter);
        // What is still to be looked at is of before: `mlx5_ib_cq_clean`.
        sim.poll_cq();
        while sim
            .take_completion(|c| c.qpn == pair.requester.qpn)
            .is_some()
        {}
    }
}
