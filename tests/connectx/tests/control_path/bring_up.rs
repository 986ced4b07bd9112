// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The function's states, and what is left at their end.

use std::sync::{Arc, Mutex};

use connectx::{GuestMemory, Journal};
use firmware_cmds::DmaAddr;

use crate::rig::{command, Post, Rig};

const BAD_SYS_STATE: u8 = 0x04;
/// Modifiers of ACCESS_REG.
const WRITE: u16 = 0;
const READ: u16 = 1;

#[test]
fn states_follow_each_other() {
    let mut rig = Rig::new();
    let mut run = |opcode| rig.command(&command(opcode, 0, 32), 16).status();
    let (init, teardown, enable, disable) = (0x102, 0x103, 0x104, 0x105);
    assert_eq!(run(init), BAD_SYS_STATE);
    assert_eq!(run(enable), 0);
    assert_eq!(run(enable), BAD_SYS_STATE);
    assert_eq!(run(init), 0);
    assert_eq!(run(init), BAD_SYS_STATE);
    assert_eq!(run(disable), BAD_SYS_STATE);
    assert_eq!(run(teardown), 0);
    assert_eq!(run(teardown), BAD_SYS_STATE);
    assert_eq!(run(disable), 0);
    assert_eq!(run(enable), 0);
    assert_eq!(rig.device.journal.violation_count(), 0);
}

#[test]
fn objects_are_there_from_init_to_teardown() {
    let mut rig = Rig::new();
    let alloc_pd = command(0x800, 0, 16);
    assert_eq!(rig.command(&alloc_pd, 16).status(), BAD_SYS_STATE);
    rig.command(&command(0x104, 0, 16), 12);
    assert_eq!(rig.command(&alloc_pd, 16).status(), BAD_SYS_STATE);
    rig.command(&command(0x102, 0, 32), 16);
    assert_eq!(rig.command(&alloc_pd, 16).status(), 0);
    // A command that is too short, or of which there is none, is that in any state.
    rig.device.hca.initialized = false;
    assert_eq!(rig.command(&command(0x301, 0, 16), 16).status(), 0x50);
    assert_eq!(rig.command(&alloc_pd, 16).status(), BAD_SYS_STATE);
    assert_eq!(rig.device.journal.violation_count(), 0);
}

#[test]
fn objects_left_at_teardown_are_a_violation() {
    let mut rig = Rig::new();
    rig.command(&command(0x104, 0, 16), 12);
    rig.command(&command(0x102, 0, 32), 16);
    rig.number(&command(0x800, 0, 16));
    rig.command(&command(0x103, 0, 16), 16);
    assert_eq!(
        rig.device.journal.violations(),
        [r#"TEARDOWN_HCA with objects left: [("pd", 1)]"#]
    );
}

#[test]
fn reset_forgets_objects_registers_and_delayed_commands() {
    let mut rig = Rig::ready();
    rig.alloc_uar();
    rig.device.rules.add("command do=delay ms=5").unwrap();
    let input = command(0x800, 0, 16);
    rig.post(Post::new(&input, 16));
    assert!(rig.settle().is_some());
    rig.device.reset();
    assert_eq!(rig.settle(), None);
    assert!(rig.device.objects().iter().all(|&(_, n)| n == 0));
    assert_eq!(rig.device.init.queue, None);
    assert!(!rig.device.hca.enabled);
    let mut own = [0];
    rig.mem.read(DmaAddr::new(0x1000 + 63), &mut own).unwrap();
    assert_eq!(own, [1], "the device let go of the slot");
}

/// What `mlx5_core/health.c` reads to find out, and what a driver does until then.
#[test]
fn a_bound_driver_sees_a_reset_and_sets_the_function_up_again() {
    const DISABLED: u32 = 1;
    let nic_interface = |rig: &mut Rig| rig.read32(0x14) >> 8 & 7;
    let mut rig = Rig::without_queue();
    assert_eq!(nic_interface(&mut rig), DISABLED);
    rig.set_queue();
    assert_eq!(nic_interface(&mut rig), 0);
    assert_eq!(rig.command(&command(0x104, 0, 16), 12).status(), 0);

    rig.device.reset();
    assert_eq!(nic_interface(&mut rig), DISABLED);
    let input = command(0x107, 1, 16);
    rig.post(Post::new(&input, 16));
    rig.write64(17 * 4096 + 0x20, 0, 5);
    rig.settle();
    assert_eq!(rig.answer(0, 16), None);
    assert_eq!(rig.device.counters.doorbells_lost, 2);
    // Reset again before the driver came to it: the same.
    rig.device.reset();
    rig.write32(0x18, 1);
    assert_eq!(rig.device.journal.violation_count(), 0);

    rig.set_queue();
    assert_eq!(nic_interface(&mut rig), 0);
    assert_eq!(rig.command(&command(0x104, 0, 16), 12).status(), 0);
    rig.write32(17 * 4096 + 0x20, 0);
    assert_eq!(rig.device.journal.violation_count(), 1);
}

#[test]
fn numbers_are_not_reused_at_once() {
    let mut rig = Rig::ready();
    let first = rig.number(&command(0x800, 0, 16));
    let mut dealloc = command(0x801, 0, 16);
    dealloc[8..12].copy_from_slice(&first.to_be_bytes());
    assert_eq!(rig.command(&dealloc, 16).status(), 0);
    assert_eq!(rig.command(&dealloc, 16).status(), 5);
    assert_ne!(rig.number(&command(0x800, 0, 16)), first);
}

#[test]
fn the_port_is_active() {
    use connectx::ifc::hca_vport_context as vport;
    let mut rig = Rig::ready();
    let answer = rig.command(&command(0x762, 0, 16), 528);
    let context = &answer.output[0x10..];
    assert_eq!(vport::VPORT_STATE.get(context), 4);
    assert_eq!(vport::LID.get(context), 1);
    let gid = rig.command(&command(0x764, 0, 16), 32);
    assert_eq!(gid.output[0x10..0x20], connectx::caps::GID);
    assert_eq!(
        gid.output[0x18..0x20],
        vport::PORT_GUID.get(context).to_be_bytes()
    );
}

#[test]
fn an_unknown_register_is_refused_in_one_line() {
    const MNVDA: u16 = 0x9024;
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let mut rig = Rig::ready();
    rig.device.journal = Journal::new(move |line| sink.lock().unwrap().push(line.to_owned()));
    for modifier in [READ, WRITE] {
        let mut input = command(0x805, modifier, 0x10 + 0x10c);
        input[10..12].copy_from_slice(&MNVDA.to_be_bytes());
        let answer = rig.command(&input, 0x10 + 0x10c);
        assert_eq!(answer.status(), 3);
        assert_eq!(answer.word(4), u32::from(MNVDA));
    }
    let line = "command ACCESS_REG (0x805) failed: BadParam, syndrome 0x9024";
    assert_eq!(lines.lock().unwrap()[..], [line, line]);
    assert_eq!(rig.device.journal.violation_count(), 0);
}
