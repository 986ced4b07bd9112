// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Channels: two QPs, of which one posts operations and the other receives.
//!
//! Each channel has two parts of the MR for itself, a source and a destination; a receive has
//! a slot of its queue. So what an operation leaves behind is known once it has completed.

use std::collections::VecDeque;
use std::ops::Range;

use firmware_cmds::wqe::WqeOpcode;

use super::{World, PAGE, PINNED, VA};
use crate::rig::{address, atomic, data, raddr, xrc, Completion, TestQp, TestSrq};

/// Pages of each part of a channel.
const PART: usize = 8 * PAGE;
/// Bytes of a receive.
const SLOT: usize = PAGE / 2;
/// Receives of each queue.
const SLOTS: usize = 8;
/// Operations of a channel at a time: each takes two of 16 WQEBBs at most.
const DEPTH: usize = 6;
/// Room for the GRH of a datagram.
const GRH: usize = 40;

/// What kind of channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rc,
    Uc,
    Ud,
    Xrc,
}

impl Kind {
    /// `st` of the QP context.
    fn service_type(self) -> u32 {
        match self {
            Self::Rc => 0,
            Self::Uc => 1,
            Self::Ud => 2,
            Self::Xrc => 3,
        }
    }

    /// Whether a message arrives unless the channel breaks.
    fn reliable(self) -> bool {
        matches!(self, Self::Rc | Self::Xrc)
    }
}

/// Kinds of the channels, and the receive queue of each.
const CHANNELS: [(Kind, usize); 7] = [
    (Kind::Rc, 0),
    (Kind::Rc, 1),
    (Kind::Rc, 2),
    (Kind::Rc, 2),
    (Kind::Uc, 3),
    (Kind::Xrc, 4),
    (Kind::Ud, 5),
];
const QUEUES: usize = 6;
/// First slot of the receives, after the parts of the channels.
const RECEIVES: usize = CHANNELS.len() * 2 * PART;

/// What an operation does.
#[derive(Clone, Copy, Debug)]
enum What {
    Send,
    Write,
    Read,
    Add(u64),
    Swap { compare: u64, swap: u64 },
}

/// An operation under way, between these bytes of the MR.
#[derive(Clone, Copy, Debug)]
struct Op {
    id: u32,
    /// Index of its WQE.
    counter: u16,
    what: What,
    local: usize,
    remote: usize,
    len: usize,
}

/// A channel: operations go from one QP to the other.
pub(super) struct Channel {
    kind: Kind,
    from: usize,
    to: usize,
    queue: usize,
    base: usize,
    /// In the order in which they were posted.
    ops: VecDeque<Op>,
    /// An operation failed: nothing more until both QPs were reset.
    broken: bool,
}

/// A receive queue.
pub(super) struct Queue {
    srq: Option<TestSrq>,
    /// Its channel's receiving QP, if it is no SRQ.
    owner: usize,
    /// Index of each WQE and its slot, in the order in which they were posted.
    posted: VecDeque<(u16, usize)>,
    free: Vec<usize>,
    next: u16,
}

/// A message between its two completions, which are seen in any order.
#[derive(Debug)]
pub(super) struct Message {
    channel: usize,
    payload: Option<Vec<u8>>,
    slot: Option<(usize, usize)>,
}

impl World {
    pub(super) fn open_channels(&mut self) {
        for queue in 0..QUEUES {
            let srq = match queue {
                2 => Some(self.rig.create_srq()),
                4 => Some(self.rig.create_xrc_srq()),
                _ => None,
            };
            let datagrams = queue == QUEUES - 1;
            let base = if datagrams {
                PINNED * PAGE
            } else {
                RECEIVES + queue * SLOTS * SLOT
            };
            self.queues.push(Queue {
                srq,
                owner: 0,
                posted: VecDeque::new(),
                free: (0..SLOTS).map(|slot| base + slot * SLOT).collect(),
                next: 0,
            });
        }
        for (number, &(kind, queue)) in CHANNELS.iter().enumerate() {
            let st = kind.service_type();
            let from = self.rig.create_qp(st);
            let to = match &self.queues[queue].srq {
                Some(srq) if kind == Kind::Rc => self.rig.create_qp_with_srq(st, srq),
                _ => self.rig.create_qp(st),
            };
            let at = self.qps.len();
            self.qps.extend([from, to]);
            self.queues[queue].owner = at + 1;
            self.channels.push(Channel {
                kind,
                from: at,
                to: at + 1,
                queue,
                base: number * 2 * PART,
                ops: VecDeque::new(),
                broken: false,
            });
            self.connect(number);
        }
    }

    fn connect(&mut self, channel: usize) {
        let channel = &self.channels[channel];
        let (from, to) = (self.qps[channel.from].qpn, self.qps[channel.to].qpn);
        self.rig.connect(from, to);
        self.rig.connect(to, from);
    }

    /// Posts an operation to a channel that has room.
    pub(super) fn post_some(&mut self) {
        let number = self.rng.pick(CHANNELS.len());
        let channel = &self.channels[number];
        if channel.broken || channel.ops.len() == DEPTH {
            return;
        }
        let (kind, base) = (channel.kind, channel.base);
        let what = match (kind, self.rng.pick(8)) {
            (Kind::Ud, _) | (_, 0..=2) => What::Send,
            (_, 3..=4) | (Kind::Uc, _) => What::Write,
            (_, 5) => What::Read,
            (_, 6) => What::Add(u64::try_from(self.rng.pick(1 << 20)).unwrap()),
            _ => What::Swap {
                // Now and then what is there, once a swap to it was done.
                compare: u64::try_from(self.rng.pick(2)).unwrap(),
                swap: u64::try_from(self.rng.pick(2)).unwrap(),
            },
        };
        let most = match what {
            What::Send if kind == Kind::Ud => SLOT - GRH,
            What::Send => SLOT,
            What::Write | What::Read => PART / 2,
            What::Add(_) | What::Swap { .. } => 8,
        };
        let len = if most == 8 {
            8
        } else {
            1 + self.rng.pick(most)
        };
        let local = base + self.rng.pick(PART - len);
        let mut remote = base + PART + self.rng.pick(PART - len);
        if most == 8 {
            remote &= !7;
        }
        self.post_op(number, what, local, remote, len);
    }

    fn post_op(&mut self, number: usize, what: What, local: usize, remote: usize, len: usize) {
        self.operations += 1;
        let id = u32::try_from(self.operations).unwrap();
        let channel = &mut self.channels[number];
        let mut body = match (channel.kind, &self.queues[channel.queue].srq) {
            (Kind::Ud, _) => address(self.qps[channel.to].qpn),
            (Kind::Xrc, Some(srq)) => xrc(srq.srqn),
            _ => Vec::new(),
        };
        let there = raddr(self.key, va(remote));
        let opcode = match what {
            What::Send => WqeOpcode::SEND_IMM,
            What::Write => {
                body.extend(there);
                WqeOpcode::RDMA_WRITE
            }
            What::Read => {
                body.extend(there);
                WqeOpcode::RDMA_READ
            }
            What::Add(add) => {
                body.extend([there, atomic(add, 0)].concat());
                WqeOpcode::ATOMIC_FA
            }
            What::Swap { compare, swap } => {
                body.extend([there, atomic(swap, compare)].concat());
                WqeOpcode::ATOMIC_CS
            }
        };
        body.extend(data(self.key, va(local), len));
        let qp = &mut self.qps[channel.from];
        channel.ops.push_back(Op {
            id,
            counter: qp.sq_pi,
            what,
            local,
            remote,
            len,
        });
        if matches!(what, What::Send) {
            let message = Message {
                channel: number,
                payload: None,
                slot: None,
            };
            self.messages.insert(id, message);
        }
        self.rig.post(qp, opcode, id, &body);
    }

    /// An RDMA WRITE on the first channel.
    pub(crate) fn post_write(&mut self, local: usize, remote: usize, len: usize) {
        self.post_op(0, What::Write, local, remote, len);
    }

    /// Posts a receive to a queue that has room.
    pub(super) fn post_receive(&mut self) {
        let number = self.rng.pick(QUEUES);
        let queue = &mut self.queues[number];
        let broken = self
            .channels
            .iter()
            .any(|channel| channel.queue == number && channel.broken);
        if queue.free.is_empty() || queue.srq.is_none() && broken {
            return;
        }
        let slot = queue.free.swap_remove(self.rng.pick(queue.free.len()));
        let index = match &mut queue.srq {
            Some(srq) => self
                .rig
                .post_srq(srq, self.key, va(slot), SLOT)
                .expect("more slots in the SRQ than receives"),
            None => {
                let qp: &mut TestQp = &mut self.qps[queue.owner];
                self.rig.post_recv(qp, &[(self.key, va(slot), SLOT)]);
                queue.next = queue.next.wrapping_add(1);
                queue.next.wrapping_sub(1)
            }
        };
        queue.posted.push_back((index, slot));
    }

    /// Takes note of a completion.
    pub(super) fn completed(&mut self, completion: &Completion) {
        let qpn = completion.qpn;
        let mut channels = self.channels.iter();
        let number = channels
            .position(|channel| {
                let qp = if is_send(completion) {
                    channel.from
                } else {
                    channel.to
                };
                self.qps[qp].qpn == qpn
            })
            .unwrap_or_else(|| panic!("{completion:?}\n{}", self.story()));
        if is_send(completion) {
            let op = self.channels[number].ops.pop_front();
            let Some(op) = op.filter(|op| op.counter == completion.counter) else {
                panic!("{completion:?} is not of {op:?}\n{}", self.story());
            };
            // Of a UC message the sender does not learn that the receiver gave it up.
            let unsure = self.faults_may_fail() && self.channels[number].kind == Kind::Uc;
            if completion.syndrome == 0 && unsure && matches!(op.what, What::Write) {
                self.failed(&op);
            } else if completion.syndrome == 0 {
                self.apply(&op);
            } else {
                self.channels[number].broken = true;
                self.failed(&op);
            }
        } else {
            self.received(self.channels[number].queue, completion);
        }
    }

    fn received(&mut self, number: usize, completion: &Completion) {
        let queue = &mut self.queues[number];
        let at = match queue.srq {
            Some(_) => {
                let mut posted = queue.posted.iter();
                posted.position(|&(index, _)| index == completion.counter)
            }
            None => (queue.posted.front().map(|&(index, _)| index) == Some(completion.counter))
                .then_some(0),
        };
        let Some((index, slot)) = at.and_then(|at| queue.posted.remove(at)) else {
            panic!("{completion:?} is of no receive\n{}", self.story());
        };
        if let Some(srq) = &mut queue.srq {
            self.rig.free_srq(srq, index);
        }
        if completion.syndrome == 0 {
            let message = self.messages.get_mut(&completion.immediate);
            let Some(message) = message.filter(|message| message.slot.is_none()) else {
                panic!("{completion:?} is of no message\n{}", self.story());
            };
            message.slot = Some((number, slot));
            self.deliver(completion.immediate);
        } else {
            self.adopt(slot..slot + SLOT);
            self.queues[number].free.push(slot);
        }
    }

    /// Does what an operation that succeeded must have done.
    fn apply(&mut self, op: &Op) {
        let (local, remote) = (op.local..op.local + op.len, op.remote..op.remote + op.len);
        match op.what {
            What::Send => {
                let payload = self.expected[local].to_vec();
                if let Some(message) = self.messages.get_mut(&op.id) {
                    message.payload = Some(payload);
                }
                self.deliver(op.id);
            }
            What::Write => self.expected.copy_within(local, remote.start),
            What::Read => self.expected.copy_within(remote, local.start),
            What::Add(_) | What::Swap { .. } => {
                let old = self.expected[remote.clone()].to_vec();
                let was = u64::from_ne_bytes(old[..].try_into().unwrap());
                let new = match op.what {
                    What::Add(add) => was.wrapping_add(add),
                    What::Swap { compare, swap } if was == compare => swap,
                    _ => was,
                };
                self.expected[remote].copy_from_slice(&new.to_ne_bytes());
                self.expected[local].copy_from_slice(&old);
            }
        }
    }

    /// An operation that failed has done nothing, a part of what it should, or all.
    fn failed(&mut self, op: &Op) {
        let (local, remote) = (op.local..op.local + op.len, op.remote..op.remote + op.len);
        match op.what {
            What::Send => {
                let message = self.messages.remove(&op.id);
                assert!(message.is_some_and(|m| m.slot.is_none()), "{op:?} arrived");
            }
            What::Write => self.adopt(remote),
            What::Read => self.adopt(local),
            What::Add(_) | What::Swap { .. } => {
                self.adopt(local);
                self.adopt(remote);
            }
        }
    }

    /// Expects what is there.
    fn adopt(&mut self, bytes: Range<usize>) {
        let actual = self.actual(bytes.clone());
        self.expected[bytes].copy_from_slice(&actual);
    }

    /// Puts a message whose two completions were seen where it belongs.
    fn deliver(&mut self, id: u32) {
        let Some(Message {
            channel,
            payload: Some(payload),
            slot: Some((queue, slot)),
        }) = self.messages.get(&id)
        else {
            return;
        };
        let header = if self.channels[*channel].kind == Kind::Ud {
            GRH
        } else {
            0
        };
        let start = slot + header;
        self.expected[start..start + payload.len()].copy_from_slice(payload);
        self.queues[*queue].free.push(*slot);
        self.messages.remove(&id);
    }

    /// The local memory of the operation whose WQE this is.
    pub(super) fn local(
        &self,
        qpn: u32,
        counter: u16,
        write: bool,
    ) -> Option<(usize, usize, bool)> {
        let mut channels = self.channels.iter();
        let channel = channels.find(|channel| self.qps[channel.from].qpn == qpn)?;
        let op = channel.ops.iter().find(|op| op.counter == counter)?;
        Some((op.local, op.len, write))
    }

    /// The slot of a receive WQE, of a QP or of an SRQ.
    pub(super) fn slot(
        &self,
        number: u32,
        index: u16,
        shared: bool,
    ) -> Option<(usize, usize, bool)> {
        let queue = self.queues.iter().find(|queue| match &queue.srq {
            Some(srq) => shared && srq.srqn == number,
            None => !shared && self.qps[queue.owner].qpn == number,
        })?;
        let posted = queue.posted.iter().find(|&&(posted, _)| posted == index)?;
        Some((posted.1, SLOT, true))
    }

    /// Brings a channel back if it broke.
    pub(super) fn heal_some(&mut self) {
        let number = self.rng.pick(CHANNELS.len());
        self.heal(number);
    }

    /// Brings all channels that broke back. A receive that waited for the rest of a message
    /// ends with it.
    pub(super) fn heal_all(&mut self) {
        for number in 0..CHANNELS.len() {
            self.heal(number);
        }
    }

    /// Brings a channel that broke back, once all of its operations have ended.
    fn heal(&mut self, number: usize) {
        let channel = &self.channels[number];
        if !channel.broken || !channel.ops.is_empty() {
            return;
        }
        let (from, to, queue) = (channel.from, channel.to, channel.queue);
        for qp in [from, to] {
            let mut input = vec![0; 16];
            input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
            input[8..12].copy_from_slice(&self.qps[qp].qpn.to_be_bytes());
            self.rig.command(&input, 16);
        }
        if self.queues[queue].srq.is_none() {
            self.wait("a flush", |world| world.queues[queue].posted.is_empty());
        }
        for qp in [from, to] {
            self.rig.reset(&mut self.qps[qp]);
        }
        self.collect();
        if self.queues[queue].srq.is_none() {
            self.queues[queue].next = 0;
        }
        self.channels[number].broken = false;
        self.connect(number);
    }

    /// Whether an operation has not completed yet.
    pub(super) fn under_way(&self) -> bool {
        self.channels.iter().any(|channel| !channel.ops.is_empty())
    }

    /// Every message that succeeded has arrived, where that is promised.
    pub(super) fn check_messages(&self) {
        for (id, message) in &self.messages {
            let kind = self.channels[message.channel].kind;
            assert!(!kind.reliable(), "{id}: {message:?}\n{}", self.story());
        }
    }
}

fn is_send(completion: &Completion) -> bool {
    matches!(completion.opcode, 0 | 0xd)
}

/// Address of a byte of the MR.
fn va(at: usize) -> u64 {
    VA + u64::try_from(at).unwrap()
}
