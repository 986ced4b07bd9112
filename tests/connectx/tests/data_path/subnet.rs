// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The subnet: what the administrator answers, and who hears what is sent to a group.

use connectx::caps::GID;
use connectx::qp::context as qpc;
use connectx::GuestMemory;
use firmware_cmds::wqe::{BaseAv, ServiceLevel, StatRate, WqeOpcode};
use firmware_cmds::{DmaAddr, MttAccess, Qpn, Scheme};

use crate::rig::{data, emit, inline, Completion, Rig, TestMr, TestQp, LOG_SQ};

const QP1: u32 = 8;
const UD: u32 = 2;
const SM_LID: u16 = 2;
const MLID: u16 = 0xc000;
const RESP_SEND: u8 = 2;
const GRH: usize = 40;

const GET: u8 = 0x01;
const SET: u8 = 0x02;
const DELETE: u8 = 0x15;
const CLASS_PORT_INFO: u16 = 0x01;
const PATH_RECORD: u16 = 0x35;
const MC_MEMBER_RECORD: u16 = 0x38;

const REQ_INVALID: u16 = 0x0200;
const NO_RECORDS: u16 = 0x0300;
const INVALID_GID: u16 = 0x0500;
const INSUFFICIENT: u16 = 0x0600;
const UNSUPPORTED: u16 = 0x000c;

/// Components of a join that makes a group: MGID, PortGID, Q_Key, TClass, P_Key, SL, FlowLabel,
/// JoinState.
const CREATE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13 | 1 << 16;
/// Of one that does not.
const JOIN: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 16;

const FULL: u8 = 1;
const SEND_ONLY: u8 = 4;

const BROADCAST: [u8; 16] = [
    0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];
const OTHER: [u8; 16] = [
    0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
];

/// A management QP, and memory that it sends from and receives to.
struct Client {
    rig: Rig,
    qp: TestQp,
    mr: TestMr,
    tid: u64,
}

impl Client {
    fn new() -> Self {
        let mut rig = Rig::new(Scheme::Memory);
        let qp = rig.create_qp(QP1);
        rig.connect(qp.qpn, 0);
        let mr = rig.mr(0x10_0000, 1, MttAccess::READ_WRITE);
        Self {
            rig,
            qp,
            mr,
            tid: 0x1234_0000_0000,
        }
    }

    /// Sends a datagram to the manager's QP 1; what completes.
    fn send(&mut self, mad: &[u8]) -> Vec<Completion> {
        let (key, va) = (self.mr.key, self.mr.va);
        self.rig.post_recv(&mut self.qp, &[(key, va, GRH + 256)]);
        let at = self.mr.iova + 0x400;
        self.rig.mem.write(DmaAddr::new(at), mad).unwrap();
        let mut body = to(SM_LID, 1, 0x8001_0000, None);
        body.extend(data(key, va + 0x400, mad.len()));
        self.rig.post(&mut self.qp, WqeOpcode::SEND, 0, &body);
        self.rig.run()
    }

    /// Asks; the status and the record of the answer.
    fn ask(&mut self, method: u8, attribute: u16, mask: u64, record: &[u8]) -> (u16, Vec<u8>) {
        self.tid += 1;
        let mut mad = vec![0; 256];
        mad[..4].copy_from_slice(&[1, 3, 2, method]);
        mad[8..16].copy_from_slice(&self.tid.to_be_bytes());
        mad[16..18].copy_from_slice(&attribute.to_be_bytes());
        mad[48..56].copy_from_slice(&mask.to_be_bytes());
        mad[56..56 + record.len()].copy_from_slice(record);
        let done = self.send(&mad);
        let received: Vec<_> = done.iter().filter(|c| c.opcode == RESP_SEND).collect();
        assert_eq!((done.len(), received.len()), (2, 1), "{done:?}");
        assert_eq!(received[0].byte_count, 296);
        let answer = self.rig.peek(self.mr.iova + 40, 256);
        let response = if method == DELETE { 0x95 } else { 0x81 };
        assert_eq!(answer[..4], [1, 3, 2, response]);
        assert_eq!(answer[8..18], mad[8..18]);
        let status = u16::from_be_bytes([answer[4], answer[5]]);
        (status, answer[56..].to_vec())
    }

    fn member(&mut self, method: u8, mask: u64, mgid: [u8; 16], state: u8) -> (u16, Vec<u8>) {
        self.ask(method, MC_MEMBER_RECORD, mask, &member(mgid, state))
    }
}

/// An MCMemberRecord of the port.
fn member(mgid: [u8; 16], state: u8) -> Vec<u8> {
    let mut record = vec![0; 52];
    record[..16].copy_from_slice(&mgid);
    record[16..32].copy_from_slice(&GID);
    record[32..36].copy_from_slice(&0x0b1b_u32.to_be_bytes());
    record[40..42].copy_from_slice(&[0xff, 0xff]);
    record[48] = 0x20 | state;
    record
}

/// A PathRecord from the port to `dgid`.
fn path(dgid: [u8; 16]) -> Vec<u8> {
    let mut record = vec![0; 64];
    record[8..24].copy_from_slice(&dgid);
    record[24..40].copy_from_slice(&GID);
    record[50..52].copy_from_slice(&[0xff, 0xff]);
    record
}

/// An address vector, with a GRH to `dgid` if there is one.
fn to(rlid: u16, qpn: u32, q_key: u32, dgid: Option<[u8; 16]>) -> Vec<u8> {
    let base = BaseAv {
        key: u64::from(q_key) << 32,
        extended: true,
        dqp_dct: Qpn::new(qpn).unwrap(),
        stat_rate: StatRate::truncate(0),
        sl: ServiceLevel::truncate(0),
        fl_mlid: 0,
        rlid,
    };
    let mut bytes = emit(&base, 48);
    if let Some(dgid) = dgid {
        bytes[28] = 0x40;
        bytes[32..48].copy_from_slice(&dgid);
    }
    bytes
}

#[test]
fn a_path_leads_to_the_port_and_nowhere_else() {
    let mut client = Client::new();
    let mask = 1 << 2 | 1 << 3 | 1 << 13;
    let (status, record) = client.ask(GET, PATH_RECORD, mask, &path(GID));
    assert_eq!(status, 0);
    // Both LIDs, reversible with one path, P_Key, exactly 4096 bytes.
    assert_eq!(record[40..44], [0, 1, 0, 1]);
    assert_eq!(record[49], 0x81);
    assert_eq!(record[50..52], [0xff, 0xff]);
    assert_eq!(record[54], 0x85);
    let mut stranger = GID;
    stranger[15] ^= 1;
    let (status, _) = client.ask(GET, PATH_RECORD, mask, &path(stranger));
    assert_eq!(status, NO_RECORDS);
    let mut partition = path(GID);
    partition[50] = 0x12;
    let (status, _) = client.ask(GET, PATH_RECORD, mask, &partition);
    assert_eq!(status, NO_RECORDS);
    let (status, _) = client.ask(GET, PATH_RECORD, 1 << 2, &path(GID));
    assert_eq!(status, INSUFFICIENT);
    assert_eq!(client.rig.device.counters.sa_requests, 4);
    assert!(client.rig.violations().is_empty());
}

#[test]
fn groups_are_joined_made_and_left() {
    let mut client = Client::new();
    // The broadcast group is there.
    let (status, record) = client.member(SET, JOIN, BROADCAST, FULL);
    assert_eq!(status, 0);
    assert_eq!(record[32..36], [0, 0, 0x0b, 0x1b]);
    assert_eq!(record[36..38], MLID.to_be_bytes());
    assert_eq!(record[48], 0x21);
    // The other one must be made, and only a full member can.
    for (mask, state, refused) in [
        (JOIN, FULL, INSUFFICIENT),
        (CREATE, SEND_ONLY, REQ_INVALID),
        (CREATE, 0, REQ_INVALID),
        (CREATE, 8, REQ_INVALID),
        (CREATE & !(1 << 1), FULL, INSUFFICIENT),
    ] {
        assert_eq!(client.member(SET, mask, OTHER, state).0, refused);
    }
    let not_a_group = [0xfe; 16];
    assert_eq!(client.member(SET, CREATE, not_a_group, FULL).0, INVALID_GID);
    assert_eq!(client.member(GET, 1, OTHER, 0).0, NO_RECORDS);
    let (status, record) = client.member(SET, CREATE, OTHER, FULL);
    assert_eq!((status, &record[36..38]), (0, &[0xc0, 1][..]));
    // Now it is there, as it was made.
    let (status, record) = client.member(SET, JOIN, OTHER, SEND_ONLY);
    assert_eq!((status, record[48]), (0, 0x25));
    let mut other_key = member(OTHER, FULL);
    other_key[35] = 0x1c;
    let (status, _) = client.ask(SET, MC_MEMBER_RECORD, CREATE, &other_key);
    assert_eq!(status, REQ_INVALID);
    // The last full member takes it with it; the broadcast group stays.
    assert_eq!(client.member(DELETE, JOIN, OTHER, SEND_ONLY).0, 0);
    assert_eq!(client.member(DELETE, JOIN, OTHER, SEND_ONLY).0, REQ_INVALID);
    assert_eq!(client.member(DELETE, JOIN, OTHER, FULL).0, 0);
    assert_eq!(client.member(GET, 1, OTHER, 0).0, NO_RECORDS);
    assert_eq!(client.member(DELETE, JOIN, BROADCAST, FULL).0, 0);
    assert_eq!(client.member(GET, 1, BROADCAST, 0).0, 0);
}

#[test]
fn what_a_join_asks_of_mtu_and_rate_must_be_there() {
    let mut client = Client::new();
    let mtu = CREATE | 1 << 4 | 1 << 5;
    // Greater than, less than, exactly, the largest: 2048 (4) and 4096 (5).
    for (selector, value, status) in [
        (0, 5, REQ_INVALID),
        (1, 5, REQ_INVALID),
        (3, 0, 0),
        (0, 4, 0),
        (2, 4, REQ_INVALID),
        (2, 5, 0),
    ] {
        let mut record = member(OTHER, FULL);
        record[38] = selector << 6 | value;
        let found = client.ask(SET, MC_MEMBER_RECORD, mtu, &record).0;
        assert_eq!(found, status, "{selector} {value}");
    }
    // A group may be made smaller.
    assert_eq!(client.member(DELETE, JOIN, OTHER, FULL).0, 0);
    let mut record = member(OTHER, FULL);
    record[38] = 2 << 6 | 4;
    let (status, made) = client.ask(SET, MC_MEMBER_RECORD, mtu, &record);
    assert_eq!((status, made[38]), (0, 0x84));
}

#[test]
fn what_nobody_answers() {
    let mut client = Client::new();
    assert_eq!(client.ask(GET, CLASS_PORT_INFO, 0, &[]).0, 0);
    assert_eq!(client.ask(SET, PATH_RECORD, 0, &[]).0, UNSUPPORTED);
    assert_eq!(client.ask(GET, 0x31, 0, &[]).0, UNSUPPORTED);
    // Another class, an answer, half a datagram.
    let mut mad = vec![0; 256];
    mad[..4].copy_from_slice(&[1, 4, 1, GET]);
    assert_eq!(client.send(&mad).len(), 1);
    mad[..4].copy_from_slice(&[1, 3, 2, 0x81]);
    assert_eq!(client.send(&mad).len(), 1);
    assert_eq!(client.send(&[1, 3, 2, GET]).len(), 1);
    assert_eq!(client.rig.device.counters.sa_requests, 3);
    assert!(client.rig.violations().is_empty());
}

/// ATTACH_TO_MCG or DETACH_FROM_MCG.
fn group_command(opcode: u16, qpn: u32, mgid: [u8; 16]) -> Vec<u8> {
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&opcode.to_be_bytes());
    input[8..12].copy_from_slice(&qpn.to_be_bytes());
    input.extend_from_slice(&mgid);
    input
}

const ATTACH: u16 = 0x806;
const DETACH: u16 = 0x807;
const BAD_PARAM: u8 = 0x03;
const BAD_RES: u8 = 0x05;
const RES_BUSY: u8 = 0x06;

#[test]
fn a_group_is_heard_by_who_is_attached() {
    let mut rig = Rig::new(Scheme::Memory);
    let mr = rig.mr(0x10_0000, 1, MttAccess::READ_WRITE);
    let mut qps: Vec<TestQp> = (0..4).map(|_| rig.create_qp(UD)).collect();
    for qp in &qps {
        rig.connect(qp.qpn, 0);
    }
    // 0 sends and listens, 1 listens, 2 to another group, 3 to none.
    for (qp, mgid) in [(0, OTHER), (1, OTHER), (2, BROADCAST), (1, OTHER)] {
        rig.command(&group_command(ATTACH, qps[qp].qpn, mgid), 16);
    }
    let mut send = |rig: &mut Rig, q_key: u32, dgid: Option<[u8; 16]>| {
        for (n, qp) in (0_u64..).zip(&mut qps) {
            rig.post_recv(qp, &[(mr.key, mr.va + n * 0x100, 64)]);
        }
        let mut body = to(MLID + 1, 0xff_ffff, q_key, dgid);
        body.extend(inline(b"to everybody"));
        rig.post(&mut qps[0], WqeOpcode::SEND, 0, &body);
        let done = rig.run();
        let heard = done.iter().filter(|c| c.opcode == RESP_SEND);
        let at = |c: &Completion| qps.iter().position(|qp| qp.qpn == c.qpn).unwrap();
        let mut heard: Vec<_> = heard.map(at).collect();
        heard.sort_unstable();
        heard
    };
    assert_eq!(send(&mut rig, 0, Some(OTHER)), [0, 1]);
    for n in [0, 1] {
        let received = rig.peek(mr.iova + n * 0x100, 52);
        assert_eq!(received[24..40], OTHER);
        assert_eq!(&received[40..], b"to everybody");
    }
    // The Q_Key is another, nobody is in the group, there is no group.
    assert_eq!(send(&mut rig, 7, Some(OTHER)), [0_usize; 0]);
    assert_eq!(send(&mut rig, 0, Some([0xff; 16])), [0_usize; 0]);
    assert_eq!(send(&mut rig, 0, None), [0_usize; 0]);
    assert_eq!(send(&mut rig, 0, Some(BROADCAST)), [2]);
}

#[test]
fn a_sender_may_block_its_own_multicast() {
    let mut rig = Rig::new(Scheme::Memory);
    let mr = rig.mr(0x10_0000, 1, MttAccess::READ_WRITE);
    let mut context = rig.qp_context(UD, LOG_SQ);
    context.set(qpc::BLOCK_LB_MC, 1);
    let mut sender = rig.create_qp_from(context, LOG_SQ);
    let mut other = rig.create_qp(UD);
    for qp in [&mut sender, &mut other] {
        rig.connect(qp.qpn, 0);
        rig.command(&group_command(ATTACH, qp.qpn, OTHER), 16);
        rig.post_recv(qp, &[(mr.key, mr.va, 64)]);
    }
    let mut body = to(MLID + 1, 0xff_ffff, 0, Some(OTHER));
    body.extend(inline(b"to the others"));
    rig.post(&mut sender, WqeOpcode::SEND, 0, &body);
    let done = rig.run();
    let heard = done.iter().filter(|c| c.opcode == RESP_SEND);
    assert_eq!(heard.map(|c| c.qpn).collect::<Vec<_>>(), [other.qpn]);
}

#[test]
fn only_datagram_qps_are_attached_and_they_stay() {
    let mut rig = Rig::new(Scheme::Memory);
    let (ud, rc) = (rig.create_qp(UD), rig.create_qp(0));
    let status = |rig: &mut Rig, opcode, qpn, mgid| rig.status(&group_command(opcode, qpn, mgid));
    assert_eq!(status(&mut rig, ATTACH, rc.qpn, OTHER), BAD_PARAM);
    assert_eq!(status(&mut rig, ATTACH, ud.qpn, [0xfe; 16]), BAD_PARAM);
    assert_eq!(status(&mut rig, ATTACH, 0x1234, OTHER), BAD_RES);
    assert_eq!(status(&mut rig, DETACH, ud.qpn, OTHER), BAD_RES);
    assert_eq!(status(&mut rig, ATTACH, ud.qpn, OTHER), 0);
    let mut destroy = vec![0; 16];
    destroy[..2].copy_from_slice(&0x501_u16.to_be_bytes());
    destroy[8..12].copy_from_slice(&ud.qpn.to_be_bytes());
    assert_eq!(rig.status(&destroy), RES_BUSY);
    assert_eq!(status(&mut rig, DETACH, ud.qpn, OTHER), 0);
    assert_eq!(rig.status(&destroy), 0);
}
