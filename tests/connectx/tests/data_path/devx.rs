// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! DEVX: user contexts, whose objects are whose, and queues and keys in umems.

use connectx::ifc::{
    cqc, create_cq_in, create_qp_in, create_umem_in, destroy_uctx_in, eqc, rmpc, unnamed, Field,
};
use connectx::qp::context as qpc;
use connectx::qp::context::QpContext;
use connectx::GuestMemory;
use firmware_cmds::mkey::CreateMkeyIn;
use firmware_cmds::wqe::{CompletionMode, CtrlSeg, Ds, FenceMode, WqeOpcode};
use firmware_cmds::{
    Access, AccessMode, DmaAddr, Iova, Mkc, Mkey, MkeyIndex, MkeyVariant, Pdn, Qpn, Scheme, Wire,
};

use crate::rig::{data, emit, Rig};

const BAD_OP: u8 = 0x02;
pub(crate) const BAD_PARAM: u8 = 0x03;
pub(crate) const BAD_RES: u8 = 0x05;
const RES_BUSY: u8 = 0x06;

/// Bytes of a page of a umem.
const PAGE: u64 = 4096;

/// Executes a command of a user context: its status, and the third word of its output.
pub(crate) fn run(rig: &mut Rig, uid: u16, mut input: Vec<u8>) -> (u8, u32) {
    input[2..4].copy_from_slice(&uid.to_be_bytes());
    let mut output = vec![0; 0x210];
    rig.device.execute(&input, &mut output);
    let word = u32::from_be_bytes(output[8..12].try_into().unwrap());
    (output[0], word)
}

/// A command that must succeed; the number that it returned.
pub(crate) fn number(rig: &mut Rig, uid: u16, input: Vec<u8>) -> u32 {
    let (status, number) = run(rig, uid, input);
    assert_eq!(status, 0, "{:?}", rig.journal.lock().unwrap());
    number
}

/// A command of `len` bytes about an object.
pub(crate) fn about(opcode: u16, number: u32, len: usize) -> Vec<u8> {
    let mut input = vec![0; len];
    input[..2].copy_from_slice(&opcode.to_be_bytes());
    input[8..12].copy_from_slice(&number.to_be_bytes());
    input
}

fn set(input: &mut [u8], at: usize, fields: &[(Field, u64)]) {
    for &(field, value) in fields {
        field.set(&mut input[at..], value);
    }
}

pub(crate) fn user(rig: &mut Rig) -> u16 {
    let out = rig.command(&about(0xa04, 0, 0x40), 16);
    u16::from_be_bytes(out[10..12].try_into().unwrap())
}

/// A umem over `count` pages in reverse order, used from byte `offset` of the first on; their
/// addresses in the order of the umem.
fn umem(rig: &mut Rig, uid: u16, count: u64, offset: u64) -> (u32, Vec<u64>) {
    let base = rig.pages(count);
    let pages: Vec<u64> = (0..count).rev().map(|n| base + n * PAGE).collect();
    let mut input = about(0xa08, 0, 0x30);
    set(
        &mut input,
        0,
        &[
            (create_umem_in::PAGE_OFFSET, offset),
            (create_umem_in::NUM_OF_MTT, count),
        ],
    );
    input.extend(pages.iter().flat_map(|page| (page | 3).to_be_bytes()));
    (number(rig, uid, input), pages)
}

/// What a user has of its own.
struct User {
    uid: u16,
    pd: u32,
    uar: u32,
    /// Of the queue and of the doorbell records.
    umem: u32,
    pages: Vec<u64>,
    cqn: u32,
}

/// Places in the umem of a [`User`], which starts 128 bytes into its first page: a CQ that
/// spans two pages, doorbell records, two QPs of 2 KiB.
const CQ_AT: u64 = 0x800;
const CQ_LOG: u64 = 6;
const RECORDS_AT: u64 = 0;
const QPS_AT: u64 = 0x2000;
const OFFSET: u64 = 128;
const COUNT: u64 = 4;

impl User {
    fn new(rig: &mut Rig) -> Self {
        let uid = user(rig);
        let pd = number(rig, uid, about(0x800, 0, 16));
        let uar = number(rig, uid, about(0x802, 0, 16));
        let (umem, pages) = umem(rig, uid, COUNT, OFFSET);
        let mut user = Self {
            uid,
            pd,
            uar,
            umem,
            pages,
            cqn: 0,
        };
        // As software leaves it: nothing there.
        for n in 0..1 << CQ_LOG {
            let owner = user.at(CQ_AT + n * 64 + 63);
            rig.mem.write(DmaAddr::new(owner), &[0xf1]).unwrap();
        }
        user.cqn = number(rig, uid, user.create_cq(rig));
        user
    }

    /// Where byte `at` of the umem is.
    fn at(&self, at: u64) -> u64 {
        let byte = at + OFFSET;
        self.pages[usize::try_from(byte / PAGE).unwrap()] + byte % PAGE
    }

    fn create_cq(&self, rig: &Rig) -> Vec<u8> {
        let mut input = about(0x400, 0, 0x110);
        set(
            &mut input,
            0,
            &[
                (create_cq_in::CQ_UMEM_VALID, 1),
                (unnamed::CQ_UMEM_ID, self.umem.into()),
                (unnamed::CQ_UMEM_OFFSET, CQ_AT),
            ],
        );
        set(
            &mut input,
            0x10,
            &[
                (cqc::LOG_CQ_SIZE, CQ_LOG),
                (cqc::UAR_PAGE, self.uar.into()),
                (cqc::C_EQN, rig.eqn.into()),
                (cqc::DBR_UMEM_VALID, 1),
                (unnamed::CQC_DBR_UMEM_ID, self.umem.into()),
                (cqc::DBR_ADDR, RECORDS_AT),
            ],
        );
        input
    }

    /// CREATE_QP of the first or second QP: 16 WQEs of 64 bytes in each queue.
    fn create_qp(&self, n: u64) -> Vec<u8> {
        let mut context = QpContext::zeroed();
        for (field, value) in [
            (qpc::PD, self.pd),
            (qpc::LOG_SQ_SIZE, 4),
            (qpc::LOG_RQ_SIZE, 4),
            (qpc::LOG_RQ_STRIDE, 2),
            (qpc::UAR_PAGE, self.uar),
            (qpc::CQN_SND, self.cqn),
            (qpc::CQN_RCV, self.cqn),
            (qpc::DBR_UMEM_VALID, 1),
            (unnamed::QPC_DBR_UMEM_ID, self.umem),
            (qpc::DBR_ADDR, u32::try_from(self.record(n)).unwrap()),
        ] {
            context.set(field, value);
        }
        let mut input = about(0x500, 0, 0x110);
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        set(
            &mut input,
            0,
            &[
                (create_qp_in::WQ_UMEM_VALID, 1),
                (create_qp_in::WQ_UMEM_ID, self.umem.into()),
                (create_qp_in::WQ_UMEM_OFFSET, QPS_AT + n * 0x800),
            ],
        );
        input
    }

    /// The doorbell record of a QP.
    fn record(&self, n: u64) -> u64 {
        RECORDS_AT + 64 + n * 64
    }

    /// CREATE_RMP of 16 WQEs of 64 bytes.
    fn create_rmp(&self) -> Vec<u8> {
        let mut input = about(0x90c, 0, 0x110);
        set(
            &mut input,
            0x20,
            &[
                (rmpc::LOG_WQ_SZ, 4),
                (rmpc::LOG_WQ_STRIDE, 6),
                (rmpc::PD, self.pd.into()),
                (rmpc::WQ_UMEM_VALID, 1),
                (rmpc::WQ_UMEM_ID, self.umem.into()),
                (rmpc::WQ_UMEM_OFFSET, QPS_AT),
                (rmpc::DBR_UMEM_VALID, 1),
                (rmpc::DBR_UMEM_ID, self.umem.into()),
                (rmpc::DBR_ADDR, RECORDS_AT + 256),
            ],
        );
        input
    }

    /// CREATE_MKEY over `len` bytes from byte `at` of a umem on, at address `va`.
    fn create_mkey(&self, umem: u32, at: u64, va: u64, len: u64) -> CreateMkeyIn {
        CreateMkeyIn {
            mkey_umem_valid: true,
            mkc: Mkc {
                access_mode: AccessMode::Mtt,
                access: Access {
                    local_read: true,
                    local_write: true,
                    remote_write: true,
                    ..Access::default()
                },
                qpn: Qpn::ANY,
                variant: MkeyVariant::new(7),
                pd: Pdn::new(self.pd).unwrap(),
                start_addr: Iova::new(va),
                len,
                ..Mkc::default()
            },
            translations_octword_actual_size: 1,
            mkey_umem_id: umem,
            mkey_umem_offset: at,
            ..CreateMkeyIn::default()
        }
    }
}

fn mkey_of(create: &CreateMkeyIn) -> Vec<u8> {
    emit(create, CreateMkeyIn::LEN)
}

/// Takes a QP to RTS as rdma-core's tests do: only what each transition needs.
fn to_rts(rig: &mut Rig, uid: u16, qpn: u32, remote: u32) {
    let fields: [(u16, &[(Field, u32)]); 3] = [
        (0x502, &[(qpc::RRE, 1), (qpc::RWE, 1)]),
        (
            0x503,
            &[
                (qpc::MTU, 3),
                (qpc::REMOTE_QPN, remote),
                (qpc::MIN_RNR_NAK, 12),
            ],
        ),
        (
            0x504,
            &[
                (qpc::RETRY_COUNT, 7),
                (qpc::RNR_RETRY, 7),
                (qpc::ACK_TIMEOUT, 14),
            ],
        ),
    ];
    for (opcode, fields) in fields {
        let mut context = QpContext::zeroed();
        for &(field, value) in fields {
            context.set(field, value);
        }
        let mut input = about(opcode, qpn, 0x110);
        input[0x18..0x18 + qpc::QPC_LEN].copy_from_slice(context.bytes());
        number(rig, uid, input);
    }
}

#[test]
fn a_message_between_queues_and_keys_in_umems() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    let qpns: Vec<u32> = (0..2)
        .map(|n| number(&mut rig, user.uid, user.create_qp(n)))
        .collect();
    to_rts(&mut rig, user.uid, qpns[0], qpns[1]);
    to_rts(&mut rig, user.uid, qpns[1], qpns[0]);
    // Pages in reverse order, so that the message is in two pieces.
    let (memory, pages) = umem(&mut rig, user.uid, 3, 0x40);
    let va = 0x7f00_0000_0f00;
    let create = user.create_mkey(memory, 0xf00 - 0x40, va, 0x1100);
    let index = number(&mut rig, user.uid, mkey_of(&create));
    let key = Mkey::from_parts(MkeyIndex::new(index).unwrap(), MkeyVariant::new(7));
    let bytes = rig.fill(pages[0] + 0xf00, 0x100, 1);
    let rest = rig.fill(pages[1], 0x100, 2);

    let (sender, receiver) = (user.at(QPS_AT + 1024), user.at(QPS_AT + 0x800));
    let receive = data(key, va + 0x800, 0x200);
    rig.mem.write(DmaAddr::new(receiver), &receive).unwrap();
    let record = DmaAddr::new(user.at(user.record(1)));
    rig.mem.write(record, &1_u32.to_be_bytes()).unwrap();
    let ctrl = CtrlSeg {
        opmod: 0,
        wqe_index: 0,
        opcode: WqeOpcode::SEND_IMM,
        qpn: Qpn::truncate(qpns[0]),
        ds: Ds::truncate(2),
        signature: 0,
        fence: FenceMode::NONE,
        completion: CompletionMode::Always,
        solicited: false,
        imm: 0x1234,
    };
    let mut wqe = emit(&ctrl, CtrlSeg::LEN);
    wqe.extend(data(key, va, 0x200));
    rig.mem.write(DmaAddr::new(sender), &wqe).unwrap();
    let record = DmaAddr::new(user.at(user.record(0) + 4));
    rig.mem.write(record, &1_u32.to_be_bytes()).unwrap();
    let mut doorbell = [0; 8];
    doorbell[4..].copy_from_slice(&(qpns[0] << 8).to_be_bytes());
    let at = u64::from(user.uar) * 4096 + 0x800;
    rig.device.mmio_write(rig.now, at, &doorbell);
    rig.run();

    let cqe = |n: u64| rig.peek(user.at(CQ_AT + n * 64), 64);
    let opcodes: Vec<u8> = (0..3).map(|n| cqe(n)[63] >> 4).collect();
    assert_eq!(opcodes, [3, 0, 0xf]);
    assert_eq!(cqe(0)[0x24..0x28], 0x1234_u32.to_be_bytes());
    let moved = rig.peek(pages[1] + 0x700, 0x200);
    assert_eq!(moved, [bytes, rest].concat());
    assert!(rig.violations().is_empty(), "{:?}", rig.violations());
}

#[test]
fn a_shared_queue_in_a_umem() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    let srqn = number(&mut rig, user.uid, user.create_rmp());
    let srq = &rig.device.srqs.queues[&firmware_cmds::Srqn::truncate(srqn)];
    assert_eq!(srq.dbr, DmaAddr::new(user.at(RECORDS_AT + 256)));
    assert_eq!(srq.buffer.locate(64).0, DmaAddr::new(user.at(QPS_AT + 64)));
}

#[test]
fn to_a_user_the_objects_of_others_are_not_there() {
    let mut rig = Rig::new(Scheme::Memory);
    let (a, b) = (User::new(&mut rig), User::new(&mut rig));
    let qpn = number(&mut rig, a.uid, a.create_qp(0));
    let srqn = number(&mut rig, a.uid, a.create_rmp());
    let (memory, _) = umem(&mut rig, a.uid, 1, 0);
    let mkey = mkey_of(&a.create_mkey(memory, 0, 0, 64));
    let index = number(&mut rig, a.uid, mkey.clone());
    // What names an object that exists, and belongs to another.
    let commands = [
        about(0x201, index, 16),
        about(0x202, index, 16),
        about(0x502, qpn, 0x110),
        about(0x50b, qpn, 16),
        about(0x50a, qpn, 16),
        about(0x501, qpn, 16),
        about(0x90f, srqn, 16),
        about(0x90e, srqn, 16),
        about(0x402, a.cqn, 16),
        about(0x401, a.cqn, 16),
        about(0x801, a.pd, 16),
        about(0x803, a.uar, 16),
        about(0xa0a, memory, 16),
    ];
    for input in &commands {
        let (status, _) = run(&mut rig, b.uid, input.clone());
        assert_eq!(status, BAD_RES, "{:02x?}", &input[..2]);
        // What is the driver's is nobody else's.
        let opcode = u16::from_be_bytes([input[0], input[1]]);
        if opcode == 0x402 || opcode == 0x801 {
            let own = if opcode == 0x402 { rig.cqn } else { rig.pd };
            let (status, _) = run(&mut rig, b.uid, about(opcode, own, 16));
            assert_eq!(status, BAD_RES);
        }
    }
    // What refers to one.
    let foreign = [
        User {
            pd: a.pd,
            ..User::copy(&b)
        }
        .create_qp(0),
        User {
            pd: rig.pd,
            ..User::copy(&b)
        }
        .create_qp(0),
        User {
            cqn: a.cqn,
            ..User::copy(&b)
        }
        .create_qp(0),
        User {
            umem: a.umem,
            ..User::copy(&b)
        }
        .create_qp(0),
        User {
            umem: a.umem,
            ..User::copy(&b)
        }
        .create_cq(&rig),
        User {
            umem: a.umem,
            ..User::copy(&b)
        }
        .create_rmp(),
        mkey,
        mkey_of(&CreateMkeyIn {
            mkc: a.create_mkey(0, 0, 0, 64).mkc,
            ..b.create_mkey(b.umem, 0, 128, 64)
        }),
    ];
    for input in foreign {
        let (status, _) = run(&mut rig, b.uid, input.clone());
        assert!(
            status == BAD_RES || status == BAD_PARAM,
            "{status} {:02x?}",
            &input[..2]
        );
    }
    // An EQ that is not everybody's.
    let mut own_eq = about(0x301, 0, 0x118);
    set(&mut own_eq, 0x10, &[(eqc::UAR_PAGE, rig.uar.into())]);
    let eqn = number(&mut rig, 0, own_eq);
    let mut cq = b.create_cq(&rig);
    cqc::C_EQN.set(&mut cq[0x10..], eqn.into());
    assert_eq!(run(&mut rig, b.uid, cq).0, BAD_PARAM);
    let foreign_pd = User {
        pd: a.pd,
        ..User::copy(&b)
    }
    .create_rmp();
    assert_eq!(run(&mut rig, b.uid, foreign_pd).0, BAD_PARAM);
    // The owner may, and so may the driver.
    for input in commands {
        let opcode = u16::from_be_bytes([input[0], input[1]]);
        let uid = if opcode == 0x50b { 0 } else { a.uid };
        assert_eq!(run(&mut rig, uid, input).0, 0, "{opcode:#x}");
    }
    assert!(rig.violations().is_empty(), "{:?}", rig.violations());
}

#[test]
fn what_only_the_driver_may_do() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    // ENABLE_HCA, SET_HCA_CAP, PAGE_FAULT_RESUME, CREATE_EQ, CREATE_UCTX, DESTROY_UCTX.
    for opcode in [0x104, 0x109, 0x204, 0x301, 0xa04, 0xa06] {
        let (status, _) = run(&mut rig, user.uid, about(opcode, 0, 0x210));
        assert_eq!(status, BAD_OP, "{opcode:#x}");
    }
    // A key over bus addresses, in either way.
    let create = user.create_mkey(user.umem, 0, 128, 64);
    let mut pa = create;
    pa.mkey_umem_valid = false;
    pa.mkc.access_mode = AccessMode::Pa;
    let mut mtt = create;
    mtt.mkey_umem_valid = false;
    mtt.mkc.translations_octword_size = 1;
    for create in [pa, mtt] {
        let mut input = mkey_of(&create);
        input.extend([0; 16]);
        assert_eq!(run(&mut rig, user.uid, input).0, BAD_PARAM);
    }
    assert_eq!(run(&mut rig, user.uid, mkey_of(&create)).0, 0);
    // QPs that see packets or keys of everybody.
    for st in [7, 8, 0xc] {
        let mut input = user.create_qp(0);
        qpc::ST.set(&mut input[0x18..], st);
        assert_eq!(run(&mut rig, user.uid, input).0, BAD_PARAM, "{st:#x}");
    }
    assert!(rig.violations().is_empty());
}

#[test]
fn a_user_cannot_break_the_protocol() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    assert_eq!(run(&mut rig, user.uid, about(0x7ff, 0, 16)).0, BAD_OP);
    let mut no_caps = about(0x100, 0, 16);
    no_caps[7] = 0x7f;
    assert_eq!(run(&mut rig, user.uid, no_caps.clone()).0, BAD_PARAM);
    // QoS: there is nothing, which is no reason to refuse.
    let mut qos = no_caps.clone();
    qos[7] = 0xc << 1 | 1;
    assert_eq!(run(&mut rig, user.uid, qos).0, 0);
    // The second part of the general ones: `hca_cap_2` says that nobody knows of it.
    let mut general_2 = no_caps.clone();
    general_2[7] = 0x20 << 1 | 1;
    assert_eq!(run(&mut rig, user.uid, general_2).0, BAD_PARAM);
    let mut key = user.create_mkey(0, 0, 0, 1 << 40);
    key.mkey_umem_valid = false;
    key.mkc.access_mode = AccessMode::Ksm;
    let mut input = mkey_of(&key);
    input.extend([0; 16]);
    assert_eq!(run(&mut rig, user.uid, input).0, BAD_PARAM);
    assert!(rig.violations().is_empty());
    assert_eq!(run(&mut rig, 0, no_caps).0, BAD_PARAM);
    assert_eq!(rig.violations().len(), 1);
    // The driver stamps commands with a uid: one that was never handed out is its mistake.
    assert_eq!(
        run(&mut rig, user.uid + 1, about(0x800, 0, 16)).0,
        BAD_PARAM
    );
    assert_eq!(rig.violations().len(), 2);
}

#[test]
fn what_is_used_stays() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    let qpn = number(&mut rig, user.uid, user.create_qp(0));
    let create = user.create_mkey(user.umem, 0, OFFSET, 64);
    let index = number(&mut rig, user.uid, mkey_of(&create));
    let mut uctx = about(0xa06, 0, 16);
    destroy_uctx_in::UID.set(&mut uctx, user.uid.into());
    let umem = about(0xa0a, user.umem, 16);
    for gone in [
        about(0x501, qpn, 16),
        about(0x401, user.cqn, 16),
        about(0x202, index, 16),
    ] {
        assert_eq!(run(&mut rig, user.uid, umem.clone()).0, RES_BUSY);
        assert_eq!(run(&mut rig, 0, uctx.clone()).0, RES_BUSY);
        number(&mut rig, user.uid, gone);
    }
    number(&mut rig, user.uid, umem);
    for gone in [about(0x801, user.pd, 16), about(0x803, user.uar, 16)] {
        assert_eq!(run(&mut rig, 0, uctx.clone()).0, RES_BUSY);
        number(&mut rig, user.uid, gone);
    }
    number(&mut rig, 0, uctx.clone());
    assert_eq!(run(&mut rig, 0, uctx).0, BAD_RES);
    assert!(rig.violations().is_empty());
}

#[test]
fn what_does_not_fit_a_umem() {
    let mut rig = Rig::new(Scheme::Memory);
    let user = User::new(&mut rig);
    let end = COUNT * PAGE - OFFSET;
    let mut cases = Vec::new();
    let mut cq = user.create_cq(&rig);
    unnamed::CQ_UMEM_OFFSET.set(&mut cq, end - (64 << CQ_LOG) + 64);
    cases.push(cq);
    let mut cq = user.create_cq(&rig);
    cqc::DBR_ADDR.set(&mut cq[0x10..], end);
    cases.push(cq);
    let mut qp = user.create_qp(0);
    create_qp_in::WQ_UMEM_OFFSET.set(&mut qp, u64::MAX - 100);
    cases.push(qp);
    let mut qp = user.create_qp(0);
    // Not a multiple of 8.
    qpc::DBR_ADDR.set(&mut qp[0x18..], RECORDS_AT + 4);
    cases.push(qp);
    cases.push(mkey_of(&user.create_mkey(user.umem, 0, OFFSET, end + 1)));
    // The address does not lie in its page where its byte of the umem does.
    cases.push(mkey_of(&user.create_mkey(user.umem, 0, 0, 64)));
    for (n, input) in cases.into_iter().enumerate() {
        assert_eq!(run(&mut rig, user.uid, input).0, BAD_PARAM, "{n}");
    }
    number(
        &mut rig,
        user.uid,
        mkey_of(&user.create_mkey(user.umem, 0, OFFSET, end)),
    );
    assert!(rig.violations().is_empty());
}

impl User {
    /// The same numbers once more.
    fn copy(other: &Self) -> Self {
        Self {
            pages: other.pages.clone(),
            ..*other
        }
    }
}
