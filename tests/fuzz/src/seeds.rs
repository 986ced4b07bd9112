// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Inputs to start with: for each kind of thing one that is as it should be.

use firmware_cmds::page_fault::{DemandPages, FaultType};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{
    Iova, MemoryFault, MemoryToken, Mkey, PageFault, RdmaFault, TransportToken, WqNumber, WqeFault,
    WqeFaultKind,
};

use crate::data_path::rig::{address, atomic, ctrl, data, inline, raddr};
use crate::device_queues::{self, User, VA};
use crate::driver_faults::{self, IOVA, QUEUE, READ_ONLY, WINDOW, WRITABLE};
use crate::{device_commands, steps};

/// Each command of the table, all zero but for its opcode, between INIT_HCA and TEARDOWN_HCA.
#[must_use]
pub fn device_commands() -> Vec<Vec<u8>> {
    use device_commands::Step;
    let command = |opcode: u16, input: usize, output: usize| {
        let mut bytes = vec![0; input];
        bytes[..2].copy_from_slice(&opcode.to_be_bytes());
        Step::Command {
            input: bytes,
            output: u16::try_from(output).unwrap_or(u16::MAX),
        }
    };
    let each = connectx::command::all().map(|it| {
        steps::encode(&[
            command(0x104, 16, 16),
            command(0x102, 16, 16),
            command(it.opcode, it.input, it.output),
        ])
    });
    let registers = [
        Step::Write {
            at: 0x18,
            bytes: vec![0, 0, 0, 1],
        },
        Step::Read { at: 0x1000 },
        Step::Store {
            at: 0x1000,
            bytes: vec![7, 0, 0, 0, 0, 0, 0, 16],
        },
        Step::Work { micros: 1000 },
        Step::Reset,
        Step::Inspect,
    ];
    each.chain([steps::encode(&registers)]).collect()
}

/// The bytes of the next send WQE of a QP.
fn wqe(user: &mut User, qp: u8, opcode: WqeOpcode, imm: u32, body: &[u8]) -> Vec<u8> {
    let qp = &mut user.qps[usize::from(qp)];
    let head = ctrl(qp, opcode, imm, body.len());
    let mut bytes = crate::data_path::rig::emit(&head, 16);
    bytes.extend_from_slice(body);
    qp.sq_pi += u16::try_from(bytes.len().div_ceil(64)).unwrap_or(0);
    bytes
}

/// Each operation once, and what may happen around it.
#[must_use]
pub fn device_queues() -> Vec<Vec<u8>> {
    use device_queues::Step;
    let keys = User::new(false, None).keys;
    let [write, read, faults] = keys;
    let work = Step::Work { milliseconds: 0 };
    let receive = |qp, key| Step::Receive {
        qp,
        wqe: [data(key, VA, 0x800), data(Mkey::new(0x100), 0, 0)].concat(),
    };
    let shared = Step::Store {
        at: 16,
        bytes: [data(write, VA, 0x800), data(Mkey::new(0x100), 0, 0)].concat(),
    };
    let record = Step::Store {
        at: 0x1000,
        bytes: vec![0, 0, 0, 1],
    };
    let unreliable = User::new(false, None).qps[6].qpn;
    let operations = [
        (0, WqeOpcode::NOP, vec![]),
        (0, WqeOpcode::SEND, data(read, VA + 100, 0x500)),
        (
            0,
            WqeOpcode::SEND_IMM,
            inline(b"inline data of some length"),
        ),
        (0, WqeOpcode::SEND_INVAL, data(read, VA, 8)),
        (2, WqeOpcode::SEND, data(read, VA, 64)),
        (4, WqeOpcode::SEND, data(read, VA, 0x600)),
        (
            6,
            WqeOpcode::SEND,
            [address(unreliable), data(read, VA, 64)].concat(),
        ),
        (
            0,
            WqeOpcode::RDMA_WRITE,
            [raddr(write, VA + 0x1ff0), data(read, VA, 0x1800)].concat(),
        ),
        (
            2,
            WqeOpcode::RDMA_WRITE_IMM,
            [raddr(write, VA), data(read, VA, 0x800)].concat(),
        ),
        (
            0,
            WqeOpcode::RDMA_READ,
            [raddr(read, VA), data(write, VA, 0x1800)].concat(),
        ),
        (
            0,
            WqeOpcode::ATOMIC_CS,
            [raddr(write, VA), atomic(1, 0), data(write, VA + 8, 8)].concat(),
        ),
        (
            0,
            WqeOpcode::ATOMIC_FA,
            [raddr(write, VA), atomic(1, 0), data(write, VA + 8, 8)].concat(),
        ),
        (0, WqeOpcode::UMR, vec![0; 112]),
        // With faults: at the requester, at the responder, of a receive.
        (0, WqeOpcode::SEND, data(faults, VA, 0x1800)),
        (
            0,
            WqeOpcode::RDMA_WRITE,
            [raddr(faults, VA), data(read, VA, 0x1800)].concat(),
        ),
        (
            0,
            WqeOpcode::RDMA_READ,
            [raddr(faults, VA), data(faults, VA, 0x1800)].concat(),
        ),
    ];
    let mut all = Vec::new();
    for (n, (qp, opcode, body)) in (0_u8..).zip(operations) {
        let mut user = User::new(false, None);
        let steps = [
            Step::Device {
                transport: n % 2 == 1,
                seed: (n % 3 == 0).then_some(n.into()),
            },
            receive(1, if n % 2 == 0 { write } else { faults }),
            receive(3, write),
            receive(6, write),
            shared.clone(),
            record.clone(),
            Step::Send {
                qp,
                wqe: wqe(&mut user, qp, opcode, 7, &body),
            },
            work.clone(),
            Step::Present {
                pages: 0xf,
                write: n % 2 == 0,
            },
            Step::Resume { error: false },
            work.clone(),
            Step::Present {
                pages: 0xf,
                write: true,
            },
            Step::Resume { error: n % 4 == 3 },
            Step::Work { milliseconds: 100 },
            Step::State { qp, reset: false },
            Step::State { qp, reset: true },
            Step::Send {
                qp,
                wqe: wqe(&mut User::new(false, None), qp, opcode, 7, &body),
            },
            work.clone(),
        ];
        all.push(steps::encode(&steps));
    }
    all.push(steps::encode(&[
        Step::Doorbell {
            at: 0x20,
            bytes: vec![0; 8],
        },
        Step::Doorbell {
            at: 0x800,
            bytes: vec![0; 4],
        },
        Step::Doorbell {
            at: 0x804,
            bytes: vec![0, 0, 1, 0],
        },
        work,
    ]));
    all
}

fn memory(mkey: Mkey, at: u64, pages: u32, last: bool) -> PageFault {
    PageFault::Memory(MemoryFault {
        last,
        token: MemoryToken::truncate(0x1234),
        mkey,
        va: Iova::new(at),
        demand_pages: DemandPages::truncate(pages),
        pre_demand_pages: 1,
        post_demand_pages: 8,
    })
}

fn rdma(r_key: Mkey, write: bool, rdma_op_len: u32, bytes_committed: u32) -> PageFault {
    PageFault::Rdma(RdmaFault {
        fault_type: FaultType::rdma(write),
        token: TransportToken::truncate(0x77),
        r_key,
        rdma_va: Iova::new(IOVA + 0x1ff0),
        rdma_op_len,
        packet_length: 1024,
        bytes_committed,
    })
}

fn of_wqe(kind: WqeFaultKind, bytes_committed: u32) -> PageFault {
    PageFault::Wqe(WqeFault {
        kind,
        wq_number: WqNumber::truncate(QUEUE),
        wqe_index: 0,
        bytes_committed,
        packet_length: 0,
        token: TransportToken::truncate(0x99),
    })
}

/// Each kind of fault.
#[must_use]
pub fn driver_faults() -> Vec<Vec<u8>> {
    use driver_faults::Step;
    let faults = [
        memory(WRITABLE, IOVA, 1, true),
        memory(READ_ONLY, IOVA + 0x1f_f000, 4, true),
        memory(WRITABLE, IOVA + 0x3f_f000, 16, false),
        rdma(WRITABLE, true, 0x4000, 0x1000),
        rdma(READ_ONLY, false, 0, 0x100),
        of_wqe(WqeFaultKind::SendOrWrite, 0),
        of_wqe(WqeFaultKind::ReadOrAtomic, 0x10),
        of_wqe(WqeFaultKind::Receive, 0),
        of_wqe(WqeFaultKind::SharedReceive, 0),
    ];
    let mut user = User::new(false, None);
    let list = [
        data(WRITABLE, IOVA + 0x1f_fff0, 0x20),
        data(READ_ONLY, IOVA + 0x1000, 0),
    ]
    .concat();
    let mut heads = [
        (0, WqeOpcode::SEND, vec![]),
        (0, WqeOpcode::SEND, inline(&[1; 20])),
        (0, WqeOpcode::RDMA_WRITE, raddr(WRITABLE, 0)),
        (
            0,
            WqeOpcode::ATOMIC_FA,
            [raddr(WRITABLE, 0), atomic(1, 2)].concat(),
        ),
        (1, WqeOpcode::SEND, vec![0; 16]),
        (2, WqeOpcode::SEND_IMM, address(1)),
    ]
    .into_iter()
    .cycle();
    let mut all = Vec::new();
    for fault in faults {
        for access in 0..3 {
            let Some((transport, opcode, head)) = heads.next() else {
                break;
            };
            let body = [head, list.clone()].concat();
            let steps = [
                Step::Send {
                    transport,
                    bytes: wqe(&mut user, 0, opcode, 0, &body),
                },
                Step::Receive {
                    signature: false,
                    bytes: list.clone(),
                },
                Step::Protect {
                    page: 0,
                    pages: 4,
                    access,
                },
                Step::event(fault),
                Step::Wait { milliseconds: 100 },
                Step::event(fault),
                Step::Protect {
                    page: 1,
                    pages: 9,
                    access: 3,
                },
                Step::event(fault),
            ];
            all.push(steps::encode(&steps));
        }
    }
    // A key like a segment: over the end of a page, over the next page, itself.
    let referred = [
        data(WRITABLE, IOVA + 0xff0, 0x20),
        data(READ_ONLY, IOVA + 0x1000, 0x1000),
        data(WINDOW, 0, 0x10),
    ];
    for (ksm, at) in [(false, 0), (false, 0x1000), (true, 0x1ff0)] {
        all.push(steps::encode(&[
            Step::Refers {
                ksm,
                list: referred.concat(),
            },
            Step::Receive {
                signature: false,
                bytes: [vec![0; 16], data(WINDOW, at, 0x30)].concat(),
            },
            Step::event(rdma(WINDOW, false, 0x40, 0)),
            Step::event(of_wqe(WqeFaultKind::SharedReceive, 0)),
        ]));
    }
    all.push(steps::encode(&[
        Step::NoQueue { memory: true },
        Step::event(of_wqe(WqeFaultKind::Receive, 0)),
        Step::NoQueue { memory: false },
        Step::event(of_wqe(WqeFaultKind::SendOrWrite, 0)),
    ]));
    all
}

/// Events and WQEs.
#[must_use]
pub fn formats() -> Vec<Vec<u8>> {
    let mut user = User::new(false, None);
    let events = [
        memory(WRITABLE, IOVA, 1, true),
        rdma(WRITABLE, true, 0x4000, 0x1000),
        of_wqe(WqeFaultKind::Receive, 0),
    ];
    let events = events.map(|fault| fault.to_eqe(true).to_bytes().to_vec());
    let body = [raddr(WRITABLE, 0), atomic(1, 2), inline(&[1; 20])].concat();
    let wqes = [
        wqe(&mut user, 0, WqeOpcode::ATOMIC_CS, 0, &body),
        wqe(&mut user, 0, WqeOpcode::SEND, 0, &address(1)),
        wqe(&mut user, 0, WqeOpcode::UMR, 0, &[0; 176]),
        [
            vec![0, 0, 1, 0],
            data(WRITABLE, IOVA, 10),
            data(Mkey::new(0x100), 0, 0),
        ]
        .concat(),
    ];
    let resumes = [events_resume(true), events_resume(false)];
    let commands = [0_u8, 1, 2].map(|command| {
        let mut bytes = vec![0; 0x110];
        bytes[..4].copy_from_slice(&[2, command, 0, 1]);
        bytes
    });
    [&events[..], &wqes, &resumes, &commands].concat()
}

/// PAGE_FAULT_RESUME of either scheme.
fn events_resume(memory_scheme: bool) -> Vec<u8> {
    let fault = if memory_scheme {
        memory(WRITABLE, IOVA, 1, true)
    } else {
        rdma(WRITABLE, true, 1, 0)
    };
    fault.resume(true).to_bytes().to_vec()
}
