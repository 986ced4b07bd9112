// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The points: what a rule matches at each, and what it can do there.

use firmware_cmds::page_fault::{SUBTYPE_MEMORY, SUBTYPE_RDMA, SUBTYPE_WQE};
use firmware_cmds::{Cqn, Eqe, EventType, Mkey, Qpn};
use serde::{Deserialize, Serialize};

use super::words::{
    CommandOp, Corrupt, CqeOp, Delay, Hold, Named, Names, Number, Status, Syndrome, Type, WqeOp,
};
use super::Point;
use crate::command::word;
use crate::completion::{syndrome, Cqe};
use crate::fault::shape::{Reply, Shape};
pub use crate::fault::Side;
use crate::fault::{Stall, StallKind};

/// Bytes of an EQE and of a CQE.
const ENTRY_LEN: usize = 64;

fn is(wanted: Option<Number>, found: impl Into<u64>) -> bool {
    wanted.is_none_or(|Number(wanted)| wanted == found.into())
}

fn named<N: Names>(wanted: Option<Named<N>>, found: impl Into<u64>) -> bool {
    wanted.is_none_or(|wanted| wanted.get() == found.into())
}

/// Whether a rule's `mkey` is this one. The variant of a key changes while it lives: the index
/// counts.
fn is_mkey(wanted: Option<Number>, found: Mkey) -> bool {
    wanted.is_none_or(|Number(wanted)| wanted >> 8 == u64::from(found.index().get()))
}

/// `command`: a command whose doorbell rang.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Its opcode.
    pub op: Option<Named<CommandOp>>,
    /// The number of the object that it names: bits 23:0 of the input's third dword, where
    /// commands on objects have it.
    pub object: Option<Number>,
}

/// A command as rules see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenCommand {
    /// Its opcode.
    pub op: u16,
    /// See [`Command::object`].
    pub object: u32,
}

/// What can be done to a command.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum CommandAct {
    /// Execute it so much after its doorbell.
    Delay(Delay),
    /// Forget it: it is neither executed nor answered.
    Drop {},
    /// Answer with an error, without executing it.
    Fail {
        /// The status, INTERNAL_ERROR unless given.
        status: Option<Named<Status>>,
        /// The firmware's own code for the reason, 0 unless given.
        syndrome: Option<u32>,
    },
    /// Answer OK, without executing it: the rest of the output is zero.
    Complete {},
    /// Execute it, then change the output. A field is one of the structure `OPCODE_out`.
    Corrupt(Corrupt),
    /// Execute it only when the rule lets go.
    Hold(Hold),
}

impl Point for Command {
    const NAME: &'static str = "command";
    type Seen = SeenCommand;
    type Act = CommandAct;

    fn matches(&self, seen: &SeenCommand) -> bool {
        named(self.op, seen.op) && is(self.object, seen.object)
    }

    fn check(&self, act: &CommandAct) -> Result<(), String> {
        let CommandAct::Corrupt(Corrupt {
            name: Some(name), ..
        }) = act
        else {
            return Ok(());
        };
        let output = self.op.map(|op| String::from(op).to_lowercase() + "_out.");
        match output {
            Some(output) if name.starts_with(&output) => Ok(()),
            Some(output) => Err(format!(
                "{name:?} is no field of this command, {output}FIELD is"
            )),
            None => Err("to corrupt a field needs the command's `op`".to_owned()),
        }
    }
}

/// `umr`: a UMR WQE of the driver's UMR QP whose turn it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Umr {
    /// Its MKey; the variant, bits 7:0, is not looked at.
    pub mkey: Option<Number>,
    /// What it changes.
    pub kind: Option<UmrKind>,
}

/// What a UMR changes; each is of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UmrKind {
    /// The MKey becomes valid; translations may come with it.
    Enable,
    /// The MKey becomes free.
    Revoke,
    /// Takes translations back and brings none: the list is zero where the table is not.
    Zap,
    /// Any other change of the translation table.
    Map,
    /// Fields of the MKey other than `free`, or nothing.
    Modify,
}

/// A UMR as rules see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenUmr {
    /// Its MKey.
    pub mkey: Mkey,
    /// What it changes; `None` if it makes no sense.
    pub kind: Option<UmrKind>,
}

impl Point for Umr {
    const NAME: &'static str = "umr";
    type Seen = SeenUmr;
    type Act = WqeAct;

    fn matches(&self, seen: &SeenUmr) -> bool {
        is_mkey(self.mkey, seen.mkey) && self.kind.is_none_or(|kind| seen.kind == Some(kind))
    }
}

/// `message`: a send WQE of any other QP whose turn it is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Its opcode.
    pub op: Option<Named<WqeOp>>,
    /// Its QP.
    pub qp: Option<Number>,
}

/// A message as rules see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenMessage {
    /// Opcode of its WQE.
    pub op: u8,
    /// QP of its WQE.
    pub qp: Qpn,
}

impl Point for Message {
    const NAME: &'static str = "message";
    type Seen = SeenMessage;
    type Act = WqeAct;

    fn matches(&self, seen: &SeenMessage) -> bool {
        named(self.op, seen.op) && is(self.qp, seen.qp.get())
    }
}

/// What can be done to a send WQE. Those behind it on its QP wait for it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum WqeAct {
    /// Execute it so much later: a UMR after it was posted, a message after its turn came.
    Delay(Delay),
    /// A UMR is executed and never completes. A message is lost on its way: a reliable QP
    /// sends it again after its ACK timeout, which the rule sees as another message.
    Drop {},
    /// Complete with an error, without executing it.
    Fail {
        /// The syndrome, LOCAL_QP_OP unless given.
        syndrome: Option<Named<Syndrome>>,
    },
    /// Complete with success, without executing it.
    Complete {},
    /// Execute it only when the rule lets go.
    Hold(Hold),
}

impl WqeAct {
    /// The syndrome that a [`WqeAct::Fail`] means.
    pub(crate) fn failure(named: Option<Named<Syndrome>>) -> u8 {
        let given = named.and_then(|named| u8::try_from(named.get()).ok());
        given.unwrap_or(syndrome::LOCAL_QP_OP)
    }
}

/// `event`: an event that has a queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: Option<Named<Type>>,
    /// Its sub-type.
    pub sub_type: Option<Number>,
    /// The number of the QP, SRQ or CQ that it is about. Of a page fault: the MKey's, or in
    /// the transport scheme the work queue's or R_Key.
    pub object: Option<Number>,
}

/// The number of the object that an event is about.
fn object(eqe: &Eqe) -> Option<u32> {
    let at = |at| word(&eqe.data, at);
    Some(match (eqe.event_type, eqe.sub_type) {
        (EventType::CQ_ERROR, _) => at(0),
        (EventType::PAGE_FAULT, SUBTYPE_MEMORY) => at(16),
        (EventType::PAGE_FAULT, SUBTYPE_RDMA) => at(4),
        (EventType::PAGE_FAULT, SUBTYPE_WQE)
        | (
            EventType::COMP
            | EventType::SQ_DRAINED
            | EventType::WQ_CATAS_ERROR
            | EventType::WQ_INVAL_REQ_ERROR
            | EventType::WQ_ACCESS_ERROR
            | EventType::SRQ_LAST_WQE
            | EventType::SRQ_RQ_LIMIT,
            _,
        ) => at(24) & Qpn::MAX.get(),
        _ => return None,
    })
}

impl Point for Event {
    const NAME: &'static str = "event";
    type Seen = Eqe;
    type Act = EntryAct;

    fn matches(&self, seen: &Eqe) -> bool {
        named(self.event_type, seen.event_type.0)
            && is(self.sub_type, seen.sub_type)
            && (self.object.is_none() || object(seen).is_some_and(|n| is(self.object, n)))
    }

    fn check(&self, act: &EntryAct) -> Result<(), String> {
        act.check()
    }
}

/// `completion`: a completion.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Completion {
    /// Its CQ.
    pub cq: Option<Number>,
    /// Its QP.
    pub qp: Option<Number>,
    /// Its opcode.
    pub op: Option<Named<CqeOp>>,
    /// Its syndrome; only errors have one.
    pub syndrome: Option<Named<Syndrome>>,
}

impl Point for Completion {
    const NAME: &'static str = "completion";
    type Seen = (Cqn, Cqe);
    type Act = EntryAct;

    fn matches(&self, (cqn, cqe): &(Cqn, Cqe)) -> bool {
        let syndrome =
            self.syndrome.is_none() || cqe.is_error() && named(self.syndrome, cqe.syndrome);
        is(self.cq, cqn.get())
            && is(self.qp, cqe.qpn.get())
            && named(self.op, cqe.opcode)
            && syndrome
    }

    fn check(&self, act: &EntryAct) -> Result<(), String> {
        act.check()
    }
}

/// What can be done to an entry of an EQ or a CQ.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum EntryAct {
    /// Write it so much later; what comes meanwhile overtakes it.
    Delay(Delay),
    /// Do not write it.
    Drop {},
    /// Write it twice.
    Duplicate {},
    /// Write it with other bits, of its 64 bytes. The owner bit is the last of them.
    Corrupt(Corrupt),
    /// Write it only when the rule lets go.
    Hold(Hold),
}

impl EntryAct {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Corrupt(corrupt) if corrupt.name.is_some() => {
                Err("the fields of entries have no names; say `bit` and `width`".to_owned())
            }
            Self::Corrupt(corrupt) if !corrupt.fits(ENTRY_LEN) => {
                Err(format!("an entry has {} bits", 8 * ENTRY_LEN))
            }
            _ => Ok(()),
        }
    }
}

/// `fault`: a page fault that is about to be reported.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// Which access stalls.
    pub kind: Option<FaultKind>,
    /// The QP whose access it is: at the responder, the responder's.
    pub qp: Option<Number>,
    /// The MKey that the work request or the packet names; the variant, bits 7:0, is not
    /// looked at.
    pub mkey: Option<Number>,
    /// Whose access it is.
    pub side: Option<Side>,
}

/// Which access stalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The requester's gather of a SEND or RDMA WRITE.
    SendOrWrite,
    /// The requester's scatter of an RDMA READ or atomic response.
    ReadOrAtomic,
    /// The responder's scatter of a SEND into a WQE of its own queue.
    Receive,
    /// The same into a WQE of a shared queue.
    SharedReceive,
    /// The responder's access for an RDMA operation or atomic.
    Rdma,
}

/// What can be done to a page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultAct {
    /// Do not report it: the access fails as if the driver had resumed it with error.
    Fail {},
    /// Report it like this.
    Shape(Shape),
}

impl Point for Fault {
    const NAME: &'static str = "fault";
    type Seen = Stall;
    type Act = FaultAct;

    fn matches(&self, seen: &Stall) -> bool {
        let kind = match seen.kind {
            StallKind::SendOrWrite => FaultKind::SendOrWrite,
            StallKind::ReadOrAtomic => FaultKind::ReadOrAtomic,
            StallKind::Receive => FaultKind::Receive,
            StallKind::SharedReceive(_) => FaultKind::SharedReceive,
            StallKind::Rdma => FaultKind::Rdma,
        };
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.side.is_none_or(|wanted| wanted == seen.kind.side())
            && is(self.qp, seen.qpn.get())
            && is_mkey(self.mkey, seen.target.key)
    }

    fn check(&self, act: &FaultAct) -> Result<(), String> {
        match act {
            FaultAct::Shape(shape) if *shape == Shape::default() => {
                Err("a shape needs at least one word that is not as usual".to_owned())
            }
            FaultAct::Shape(shape)
                if shape.reply != Reply::Nothing && self.side == Some(Side::Requester) =>
            {
                Err("a requester replies to nobody".to_owned())
            }
            _ => Ok(()),
        }
    }
}
