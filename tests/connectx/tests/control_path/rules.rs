// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What rules do to commands, events and completions.

use std::time::Duration;

use connectx::completion::{cqe_opcode, syndrome};
use connectx::Cqe;
use firmware_cmds::{Cqn, Eqe, EventType, Qpn};

use crate::rig::{command, Post, Rig};

const ALLOC_PD: u16 = 0x800;
const ALLOC_TD: u16 = 0x816;

/// Rings for ALLOC_PD in slot 0; its status once it is answered.
fn alloc_pd(rig: &mut Rig) -> Option<u8> {
    let input = command(ALLOC_PD, 0, 16);
    rig.post(Post::new(&input, 16));
    rig.settle();
    answer(rig)
}

fn answer(rig: &Rig) -> Option<u8> {
    rig.answer(0, 16).map(|answer| answer.status())
}

/// A device with one rule.
fn with_rule(rule: &str) -> Rig {
    let mut rig = Rig::ready();
    rig.device.rules.add(rule).unwrap();
    rig
}

#[test]
fn a_command_is_delayed() {
    let mut rig = with_rule("command op=ALLOC_PD do=delay ms=19 us=1000");
    assert_eq!(alloc_pd(&mut rig), None);
    // Another opcode is not held up, not even by the first.
    let other = command(ALLOC_TD, 0, 16);
    rig.post(Post {
        slot: 1,
        ..Post::new(&other, 16)
    });
    rig.settle();
    assert_eq!(rig.answer(1, 16).unwrap().status(), 0);
    rig.now = Duration::from_micros(19_999);
    rig.settle();
    assert_eq!(answer(&rig), None);
    rig.now = Duration::from_millis(20);
    rig.settle();
    assert_eq!(answer(&rig), Some(0));
    assert_eq!(rig.device.domains.pds.len(), 1);
}

#[test]
fn a_command_is_dropped_failed_or_answered_without_effect() {
    for (rule, expected) in [
        ("command op=0x800 times=1 do=drop", None),
        ("command times=1 do=fail", Some(1)),
        (
            "command times=1 do=fail status=NO_RES syndrome=0x1234",
            Some(0xf),
        ),
        ("command times=1 do=complete", Some(0)),
    ] {
        let mut rig = with_rule(rule);
        assert_eq!(alloc_pd(&mut rig), expected, "{rule}");
        if rule.contains("syndrome") {
            assert_eq!(rig.answer(0, 16).unwrap().word(4), 0x1234);
        }
        assert_eq!(rig.device.domains.pds.len(), 0, "{rule}");
        assert_eq!(rig.device.counters.rule_acts, 1);
        assert_eq!(alloc_pd(&mut rig), Some(0), "{rule}");
        assert_eq!(rig.device.journal.violation_count(), 0);
    }
}

#[test]
fn the_object_of_a_command() {
    let mut rig = Rig::ready();
    let pds: Vec<u32> = (0..2)
        .map(|_| rig.number(&command(ALLOC_PD, 0, 16)))
        .collect();
    let rule = format!(
        "command op=DEALLOC_PD object={} do=fail status=BAD_RES_STATE",
        pds[1]
    );
    rig.device.rules.add(&rule).unwrap();
    let mut status = |pd: u32| {
        let mut input = command(0x801, 0, 16);
        input[8..12].copy_from_slice(&pd.to_be_bytes());
        rig.command(&input, 16).status()
    };
    assert_eq!((status(pds[0]), status(pds[1])), (0, 9));
}

#[test]
fn the_output_of_a_command_is_corrupted() {
    let query_issi = command(0x10a, 0, 16);
    let mut rig = Rig::new();
    let good = rig.command(&query_issi, 0x70);
    let corrupted = |rule: &str| {
        let mut rig = with_rule(rule);
        let bad = rig.command(&query_issi, 0x70);
        (0..0x70 / 4)
            .map(|n| (n * 4, good.word(n * 4) ^ bad.word(n * 4)))
            .filter(|&(_, change)| change != 0)
            .collect::<Vec<_>>()
    };
    let field = "command op=QUERY_ISSI do=corrupt field=query_issi_out.supported_issi_dw0";
    assert_eq!(corrupted(field), [(0x6c, u32::MAX)]);
    assert_eq!(corrupted(&format!("{field} xor=0x2")), [(0x6c, 2)]);
    let bits = "command do=corrupt bit=36 width=8 xor=0x81";
    assert_eq!(corrupted(bits), [(4, 0x0810_0000)]);
    assert_eq!(corrupted("command do=corrupt bit=0"), [(0, 1 << 31)]);
    // Beyond the end there is nothing to change.
    assert_eq!(corrupted("command do=corrupt bit=4096"), []);
}

#[test]
fn a_command_is_held_until_its_rule_is_removed() {
    let mut rig = with_rule("command op=ALLOC_PD do=hold");
    assert_eq!(alloc_pd(&mut rig), None);
    rig.now = Duration::from_secs(3600);
    rig.settle();
    // Ringing again changes nothing.
    rig.write32(0x18, 1);
    rig.settle();
    assert_eq!(answer(&rig), None);
    assert_eq!(rig.device.counters.held, 1);
    assert!(rig.device.rules.remove(1));
    rig.settle();
    assert_eq!(answer(&rig), Some(0));
    assert_eq!(rig.device.domains.pds.len(), 1);
    assert_eq!(alloc_pd(&mut rig), Some(0));
}

#[test]
fn a_reset_forgets_what_is_held() {
    let mut rig = with_rule("command op=ALLOC_PD do=hold");
    assert_eq!(alloc_pd(&mut rig), None);
    rig.device.reset();
    rig.device.rules.clear();
    rig.settle();
    assert_eq!(answer(&rig), None);
    assert_eq!(rig.device.counters.commands, 0);
}

/// A device with an EQ and a CQ whose events go there.
struct Queues {
    rig: Rig,
    cqn: u32,
    eq: u64,
    cq: u64,
}

/// Entries of either queue.
const LOG_SIZE: u32 = 4;

impl Queues {
    fn with_rule(rule: &str) -> Self {
        let mut rig = with_rule(rule);
        let uar = rig.alloc_uar();
        let types = [EventType::PAGE_FAULT, EventType::PORT_CHANGE];
        let (eqn, eq) = rig.create_eq(uar, &types, LOG_SIZE, 1);
        let (cqn, cq, _) = rig.create_cq(uar, eqn, LOG_SIZE);
        Self { rig, cqn, eq, cq }
    }

    /// Page faults of the memory scheme on these MKeys.
    fn raise(&mut self, mkeys: &[u32]) {
        for mkey in mkeys {
            let mut data = [0; 20];
            data[16..].copy_from_slice(&mkey.to_be_bytes());
            let eqe = Eqe::new(EventType::PAGE_FAULT, 2, &data, false).unwrap();
            self.rig.device.raise(eqe);
        }
        self.rig.settle();
    }

    fn events(&self) -> Vec<u32> {
        self.entries(self.eq, 0x30)
    }

    fn push(&mut self, qp: u32, counters: &[u16], syndrome: u8) {
        for &wqe_counter in counters {
            let cqe = Cqe {
                opcode: if syndrome == 0 {
                    cqe_opcode::RESP_SEND
                } else {
                    cqe_opcode::REQ_ERR
                },
                qpn: Qpn::truncate(qp),
                wqe_counter,
                syndrome,
                ..Cqe::default()
            };
            self.rig.device.push_cqe(Cqn::truncate(self.cqn), &cqe);
        }
        self.rig.settle();
    }

    fn completions(&self) -> Vec<u32> {
        let words = self.entries(self.cq, 0x3c);
        words.into_iter().map(|word| word >> 16).collect()
    }

    /// A word of each entry that is the driver's, in the first pass over a queue.
    fn entries(&self, ring: u64, word: usize) -> Vec<u32> {
        let entries = (0..1 << LOG_SIZE).map(|n| self.rig.entry(ring, n));
        entries
            .take_while(|entry| entry[0x3f] & 1 == 0)
            .map(|entry| u32::from_be_bytes(entry[word..word + 4].try_into().unwrap()))
            .collect()
    }

    fn at(&mut self, ms: u64) {
        self.rig.now = Duration::from_millis(ms);
        self.rig.settle();
    }
}

#[test]
fn events_are_delayed_dropped_doubled_and_held() {
    let mut queues = Queues::with_rule("event type=PAGE_FAULT object=7 do=delay ms=3");
    queues.raise(&[7, 8]);
    assert_eq!(queues.events(), [8]);
    queues.at(3);
    assert_eq!(queues.events(), [8, 7]);

    let mut queues = Queues::with_rule("event type=0xc sub_type=2 every=2 do=drop");
    queues.raise(&[1, 2, 3, 4]);
    assert_eq!(queues.events(), [1, 3]);

    let mut queues = Queues::with_rule("event times=1 do=duplicate");
    queues.raise(&[1, 2]);
    assert_eq!(queues.events(), [1, 1, 2]);

    let mut queues = Queues::with_rule("event type=PAGE_FAULT after=1 times=2 do=hold");
    queues.raise(&[1, 2, 3, 4]);
    queues.at(1000);
    assert_eq!(queues.events(), [1, 4]);
    queues.rig.device.rules.clear();
    queues.at(1000);
    assert_eq!(queues.events(), [1, 4, 2, 3]);

    // Another type, another sub-type.
    for rule in ["event type=PORT_CHANGE do=drop", "event sub_type=1 do=drop"] {
        let mut queues = Queues::with_rule(rule);
        queues.raise(&[1]);
        assert_eq!(queues.events(), [1], "{rule}");
    }
}

#[test]
fn an_event_is_corrupted() {
    // Bits 7:0 of the MKey; the owner bit, which hides the entry.
    let mut queues = Queues::with_rule("event times=1 do=corrupt bit=408 width=8 xor=0x0f");
    queues.raise(&[0x100, 0x200]);
    assert_eq!(queues.events(), [0x10f, 0x200]);
    let mut queues = Queues::with_rule("event after=1 do=corrupt bit=511");
    queues.raise(&[0x100, 0x200]);
    assert_eq!(queues.events(), [0x100]);
}

#[test]
fn completions_are_delayed_dropped_doubled_and_held() {
    let mut queues = Queues::with_rule("completion qp=0x41 do=delay us=2000");
    queues.push(0x41, &[1], 0);
    queues.push(0x42, &[2], 0);
    assert_eq!(queues.completions(), [2]);
    queues.at(2);
    assert_eq!(queues.completions(), [2, 1]);

    // Those of one QP stay in order.
    let mut queues = Queues::with_rule("completion times=1 do=delay ms=2");
    queues.push(0x41, &[1, 2], 0);
    queues.push(0x42, &[3], 0);
    assert_eq!(queues.completions(), [3]);
    queues.at(1);
    queues.push(0x41, &[4], 0);
    assert_eq!(queues.completions(), [3]);
    queues.at(2);
    assert_eq!(queues.completions(), [3, 1, 2, 4]);
    queues.push(0x41, &[5], 0);
    assert_eq!(queues.completions(), [3, 1, 2, 4, 5]);

    let mut queues = Queues::with_rule("completion qp=0x41 syndrome=FLUSH do=drop");
    queues.push(0x41, &[1], 0);
    queues.push(0x41, &[2], syndrome::FLUSH);
    queues.push(0x41, &[3], syndrome::LOCAL_PROT);
    queues.push(0x42, &[4], syndrome::FLUSH);
    assert_eq!(queues.completions(), [1, 3, 4]);

    let mut queues = Queues::with_rule("completion op=RESP_SEND times=1 do=duplicate");
    queues.push(0x41, &[1], syndrome::FLUSH);
    queues.push(0x41, &[2, 3], 0);
    assert_eq!(queues.completions(), [1, 2, 2, 3]);

    let mut queues = Queues::with_rule("completion times=2 do=hold");
    queues.push(0x41, &[1, 2, 3], 0);
    queues.push(0x42, &[4], 0);
    assert_eq!(queues.completions(), [4]);
    assert!(queues.rig.device.rules.remove(1));
    queues.at(0);
    assert_eq!(queues.completions(), [4, 1, 2, 3]);

    let other = Queues::with_rule("completion do=drop").cqn + 1;
    let mut queues = Queues::with_rule(&format!("completion cq={other} do=drop"));
    queues.push(0x41, &[1], 0);
    assert_eq!(queues.completions(), [1]);
}

#[test]
fn a_completion_is_corrupted() {
    let mut queues = Queues::with_rule("completion times=1 do=corrupt bit=495");
    queues.push(0x41, &[0x10, 0x20], 0);
    assert_eq!(queues.completions(), [0x11, 0x20]);
}

#[test]
fn the_journal_and_the_counters_tell_of_each_act() {
    use std::sync::{Arc, Mutex};

    let mut rig = with_rule("command op=ALLOC_PD every=2 do=complete");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    rig.device.journal =
        connectx::Journal::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
    for _ in 0..4 {
        assert_eq!(alloc_pd(&mut rig), Some(0));
    }
    let entry = rig.device.rules.get(1).unwrap();
    assert_eq!((entry.matches, entry.acts), (4, 2));
    assert_eq!(rig.device.counters.rule_acts, 2);
    let line = "rule 1: Complete of SeenCommand { op: 800, object: 0 }";
    assert_eq!(*lines.lock().unwrap(), [line, line]);
}
