// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The command queue: mailboxes, errors, delays, and whatever bytes a driver may send.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectx::Journal;
use firmware_cmds::EventType;
use proptest::prelude::*;

use crate::rig::{command, Post, Rig, MEMORY};

const BAD_OP: u8 = 0x02;
const BAD_INPUT_LEN: u8 = 0x50;
const BAD_OUTPUT_LEN: u8 = 0x51;

#[test]
fn output_over_several_mailboxes_is_whole() {
    let mut rig = Rig::ready();
    // QUERY_HCA_CAP GENERAL: 4112 bytes, nine mailboxes.
    let answer = rig.command(&command(0x100, 1, 16), 4112);
    assert_eq!(answer.delivery, 0);
    assert_eq!(answer.status(), 0);
    let caps = rig
        .device
        .hca
        .current()
        .get(connectx::caps::CapType::General);
    assert_eq!(answer.output[0x10..0x110], caps[..]);
    assert!(answer.output[0x110..].iter().all(|&byte| byte == 0));
}

#[test]
fn input_over_several_mailboxes_is_whole() {
    let mut rig = Rig::new();
    rig.command(&command(0x104, 0, 16), 12);
    let mut input = command(0x109, 0, 4112);
    let caps = *rig
        .device
        .hca
        .current()
        .get(connectx::caps::CapType::General);
    input[0x10..0x110].copy_from_slice(&caps);
    assert_eq!(rig.command(&input, 16).status(), 0);
    // The last byte of the capabilities lies in the first mailbox, at its byte 255.
    input[0x10f] ^= 1;
    assert_eq!(rig.command(&input, 16).status(), 3);
}

#[test]
fn unknown_opcode_is_an_error_and_a_violation() {
    let mut rig = Rig::ready();
    assert_eq!(rig.command(&command(0x7ff, 3, 16), 16).status(), BAD_OP);
    assert_eq!(rig.device.counters.unknown_commands, 1);
    assert_eq!(
        rig.device.journal.violations(),
        ["command 0x7ff (modifier 3) is not known"]
    );
}

#[test]
fn lengths_are_checked() {
    let mut rig = Rig::ready();
    assert_eq!(
        rig.command(&command(0x301, 0, 0x10f), 16).status(),
        BAD_INPUT_LEN
    );
    assert_eq!(
        rig.command(&command(0x100, 1, 16), 16).status(),
        BAD_OUTPUT_LEN
    );
}

#[test]
fn malformed_entries_get_a_delivery_status() {
    const TOKEN: u8 = 0x2;
    const OUT_ALIGN: u8 = 0x4;
    const IN_ALIGN: u8 = 0x5;
    const IN_LEN: u8 = 0x7;
    const OUT_LEN: u8 = 0x8;
    let long = command(0x109, 0, 4112);
    let short = command(0x100, 1, 16);
    let cases: [(u8, Post<'_>); 7] = [
        (
            TOKEN,
            Post {
                mailbox_token: 1,
                ..Post::new(&long, 16)
            },
        ),
        (
            IN_ALIGN,
            Post {
                input_chain: 0x1_0040,
                ..Post::new(&long, 16)
            },
        ),
        (
            IN_LEN,
            Post {
                input_chain: 0,
                ..Post::new(&long, 16)
            },
        ),
        (
            IN_LEN,
            Post {
                input_len: u32::MAX,
                ..Post::new(&long, 16)
            },
        ),
        (
            OUT_ALIGN,
            Post {
                output_chain: 0x8_0040,
                ..Post::new(&short, 4112)
            },
        ),
        (
            OUT_LEN,
            Post {
                output_chain: 0,
                ..Post::new(&short, 4112)
            },
        ),
        (
            OUT_LEN,
            Post {
                output_len: 4,
                ..Post::new(&short, 16)
            },
        ),
    ];
    for (expected, post) in cases {
        let mut rig = Rig::ready();
        rig.post(post);
        rig.settle();
        let answer = rig.answer(0, 16).expect("the slot comes back");
        assert_eq!(answer.delivery, expected);
        assert_eq!(rig.device.journal.violation_count(), 1);
    }
}

#[test]
fn mailboxes_outside_memory_are_a_violation() {
    let mut rig = Rig::ready();
    let long = command(0x109, 0, 4112);
    rig.post(Post {
        input_chain: 1 << 40,
        ..Post::new(&long, 16)
    });
    rig.settle();
    assert_eq!(rig.answer(0, 16), None);
    assert_eq!(
        rig.device.journal.violations(),
        ["command slot 0: IOVA 0x10000000230 is not mapped"]
    );
}

#[test]
fn slots_complete_on_their_own() {
    let mut rig = Rig::ready();
    let input = command(0x800, 0, 16);
    for slot in [31, 4, 0] {
        rig.post(Post {
            slot,
            ..Post::new(&input, 16)
        });
    }
    rig.settle();
    for slot in [0, 4, 31] {
        assert_eq!(rig.answer(slot, 16).unwrap().status(), 0);
    }
    assert_eq!(rig.device.domains.pds.len(), 3);
}

#[test]
fn a_seed_decides_which_slot_runs_first() {
    let first = |seed: Option<u64>| {
        let mut rig = Rig::ready();
        if let Some(seed) = seed {
            rig.device.set_seed(seed);
        }
        for slot in [3, 9] {
            let alloc_pd = command(0x800, 0, 16);
            rig.post(Post {
                slot,
                ..Post::new(&alloc_pd, 16)
            });
        }
        rig.settle();
        let pd = |slot| rig.answer(slot, 16).unwrap().word(8);
        if pd(3) < pd(9) {
            3
        } else {
            9
        }
    };
    assert_eq!(first(None), 3);
    let seeded: Vec<u8> = (0..32).map(|seed| first(Some(seed))).collect();
    assert!(seeded.contains(&3) && seeded.contains(&9), "{seeded:?}");
    assert_eq!(first(Some(7)), first(Some(7)));
}

#[test]
fn a_slot_runs_once_however_often_it_is_rung() {
    let mut rig = Rig::ready();
    let input = command(0x800, 0, 16);
    rig.post(Post::new(&input, 16));
    rig.settle();
    // The slot is software's again.
    rig.write32(0x18, 1);
    rig.settle();
    assert_eq!(rig.device.domains.pds.len(), 1);
    // A command that is put off, and rung again before its time.
    rig.device.rules.add("command do=delay ms=20").unwrap();
    rig.post(Post::new(&input, 16));
    rig.settle();
    let at = |rig: &mut Rig, ms| {
        rig.now = Duration::from_millis(ms);
        rig.settle();
        rig.answer(0, 16).map(|answer| answer.status())
    };
    assert_eq!(at(&mut rig, 10), None);
    rig.write32(0x18, 1);
    assert_eq!(at(&mut rig, 15), None);
    assert_eq!(at(&mut rig, 20), Some(0));
    // The next command in the slot has all of its time.
    rig.post(Post::new(&input, 16));
    assert_eq!(at(&mut rig, 20), None);
    assert_eq!(at(&mut rig, 39), None);
    assert_eq!(at(&mut rig, 40), Some(0));
    assert_eq!(rig.device.domains.pds.len(), 3);
    assert_eq!(rig.device.journal.violation_count(), 0);
}

#[test]
fn registers_of_the_init_segment() {
    let mut rig = Rig::ready();
    assert_eq!(rig.read32(0x0), 43 << 16 | 28);
    assert_eq!(rig.read32(0x4) >> 16, 5);
    assert_eq!(rig.read32(0x14) & 0xfff, 5 << 4 | 6);
    assert_eq!(rig.read32(0x1fc), 0);
    let health = rig.read32(0x1010);
    rig.now += Duration::from_secs(2);
    assert_ne!(rig.read32(0x1010), health);
    rig.write32(0x100, 7);
    assert_eq!(rig.device.journal.violation_count(), 1);
}

#[test]
fn reads_of_what_is_not_there_are_noted_once_each() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let mut rig = Rig::ready();
    rig.device.journal = Journal::new(move |line| sink.lock().unwrap().push(line.to_owned()));
    // What mlx5_core reads: revision, queue, state, health, timeouts, timers.
    for offset in [
        0, 4, 0x14, 0x1fc, 0x200, 0x230, 0x23c, 0xff8, 0xffc, 0x1000, 0x1004, 0x1010,
    ] {
        rig.read32(offset);
    }
    assert!(lines.lock().unwrap().is_empty());
    for _ in 0..2 {
        rig.read32(0x300);
        rig.read32(0x2_0800);
        rig.read32(0x3_0800);
    }
    assert_eq!(
        lines.lock().unwrap()[..],
        [
            "read at 0x300 of the init segment: no such register",
            "read at 0x800 of UAR 0x20: no such register"
        ]
    );
}

#[test]
fn doorbell_before_the_queue_has_an_address() {
    let mut rig = Rig::without_queue();
    rig.write32(0x18, 1);
    rig.settle();
    assert_eq!(rig.device.journal.violation_count(), 1);
}

/// Opcodes of commands that exist, or anything.
fn opcodes() -> impl Strategy<Value = u16> {
    let known: Vec<u16> = (0..=u16::MAX)
        .filter(|&opcode| connectx::command::find(opcode).is_some())
        .collect();
    prop_oneof![8 => proptest::sample::select(known), 1 => any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No input panics the device, and every slot comes back.
    #[test]
    fn any_input_is_answered(
        commands in proptest::collection::vec(
            (
                opcodes(),
                0_u16..16,
                proptest::collection::vec(any::<u8>(), 0..600),
                8_u32..2000,
                any::<bool>(),
            ),
            1..8,
        ),
    ) {
        let mut rig = Rig::ready();
        let uar = rig.alloc_uar();
        rig.create_eq(uar, &[EventType::PAGE_FAULT], 4, 0);
        for (opcode, op_mod, body, output_len, sparse) in commands {
            let mut input = command(opcode, op_mod, 16 + body.len());
            input[8..8 + body.len()].copy_from_slice(&body);
            if sparse {
                // Small numbers name objects that exist.
                for byte in input[8..].iter_mut() {
                    *byte &= 0x11;
                }
            }
            rig.post(Post { output_len, ..Post::new(&input, 16) });
            rig.settle();
            prop_assert!(rig.answer(0, 16).is_some());
        }
    }

    /// Neither does any queue entry, nor any write to the BAR.
    #[test]
    fn any_entry_and_any_register_write_is_survived(
        entry in proptest::collection::vec(any::<u8>(), 64),
        small in any::<bool>(),
        writes in proptest::collection::vec(
            (0_u64..0x2_0000, proptest::collection::vec(any::<u8>(), 1..9)),
            0..16,
        ),
    ) {
        use connectx::GuestMemory;
        use firmware_cmds::DmaAddr;
        let mut rig = Rig::ready();
        let uar = rig.alloc_uar();
        let (eqn, _) = rig.create_eq(uar, &[EventType::CMD], 4, 0);
        rig.create_cq(uar, eqn, 4);
        let mut entry = entry;
        entry[0] = 7;
        if small {
            entry[4..6].fill(0);
            entry[56..58].fill(0);
            for at in [8, 48] {
                let chain = u64::from_be_bytes(entry[at..at + 8].try_into().unwrap());
                let inside = (chain % MEMORY) & !0x3ff;
                entry[at..at + 8].copy_from_slice(&inside.to_be_bytes());
            }
        }
        rig.mem.write(DmaAddr::new(0x1000), &entry).unwrap();
        rig.write32(0x18, 1);
        rig.settle();
        for (offset, data) in writes {
            rig.device.mmio_write(rig.now, offset, &data);
            rig.settle();
        }
    }
}
