// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What rules do to UMRs, messages and page faults.

use firmware_cmds::umr::{MkeyMask, UmrFlags};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{Mkc, Mtt, MttAccess, Scheme};

use crate::rig::{data, mtt, raddr, Completion, Rig, TestMr, TestQp};

const RW: MttAccess = MttAccess::READ_WRITE;
const VA: u64 = 0x7f00_0000_1000;
const LEN: usize = 64;
const ZAP: [Mtt; 8] = [Mtt::NOT_PRESENT; 8];

struct Pair {
    rig: Rig,
    a: TestQp,
    b: TestQp,
    src: TestMr,
    dst: TestMr,
}

fn pair() -> Pair {
    let mut rig = Rig::new(Scheme::Memory);
    let (a, b) = rig.rc_pair();
    let src = rig.mr(VA, 8, RW);
    let dst = rig.mr(2 * VA, 8, RW);
    Pair {
        rig,
        a,
        b,
        src,
        dst,
    }
}

impl Pair {
    fn rule(&mut self, rule: &str) -> u64 {
        self.rig.device.rules.add(rule).unwrap()
    }

    fn post_write(&mut self) {
        let mut body = raddr(self.dst.key, self.dst.va);
        body.extend(data(self.src.key, self.src.va, LEN));
        self.rig.post(&mut self.a, WqeOpcode::RDMA_WRITE, 0, &body);
    }

    /// RDMA WRITE from `src` to `dst`.
    fn write(&mut self) -> Vec<Completion> {
        self.post_write();
        self.rig.run()
    }

    /// Takes all translations of `dst` back.
    fn post_zap(&mut self) {
        let flags = UmrFlags::new().with_check_free(true);
        let (mask, mkc) = (MkeyMask::new(), Mkc::default());
        self.rig.post_umr(self.dst.key, flags, mask, &mkc, 0, &ZAP);
    }

    fn zap(&mut self) -> Vec<Completion> {
        self.post_zap();
        self.rig.run()
    }

    /// Makes `dst` free, or valid again.
    fn set_free(&mut self, free: bool) -> Vec<Completion> {
        let mkc = Mkc {
            free,
            ..Mkc::default()
        };
        let mask = MkeyMask::new().with_free(true);
        self.rig
            .post_umr(self.dst.key, UmrFlags::new(), mask, &mkc, 0, &[]);
        self.rig.run()
    }

    /// Brings translations of `dst`, the first of them to where it was or elsewhere.
    fn map(&mut self, first: u64) -> Vec<Completion> {
        let iova = self.dst.iova;
        let list: Vec<Mtt> = (first..first + 8)
            .map(|n| mtt(iova + n * 4096, RW))
            .collect();
        let flags = UmrFlags::new().with_check_free(true);
        let (mask, mkc) = (MkeyMask::new(), Mkc::default());
        self.rig.post_umr(self.dst.key, flags, mask, &mkc, 0, &list);
        self.rig.run()
    }

    fn counts(&self, id: u64) -> (u64, u64) {
        let entry = self.rig.device.rules.get(id).unwrap();
        (entry.matches, entry.acts)
    }
}

/// Opcode of the WQE and syndrome of each completion.
fn ends(done: &[Completion]) -> Vec<(u8, u8)> {
    done.iter().map(|c| (c.send_opcode, c.syndrome)).collect()
}

const UMR: u8 = WqeOpcode::UMR.0;
const WRITE: u8 = WqeOpcode::RDMA_WRITE.0;

#[test]
fn a_delayed_umr_takes_effect_when_it_completes() {
    let mut t = pair();
    t.rule("umr do=delay ms=100");
    // Two of them: the latency of one must not be added to that of the next.
    t.post_zap();
    assert_eq!(t.rig.run_after(40), []);
    t.post_zap();
    let done = t.write();
    assert_eq!(ends(&done), [(WRITE, 0)], "the old translation still holds");
    assert_eq!(t.rig.run_after(59), []);
    assert_eq!(ends(&t.rig.run_after(1)), [(UMR, 0)]);
    assert_eq!(t.rig.run_after(39), []);
    assert_eq!(ends(&t.rig.run_after(1)), [(UMR, 0)]);
    assert_eq!(t.write(), []);
    assert_eq!(t.rig.faults().len(), 1);
}

#[test]
fn umrs_posted_together_are_delayed_together() {
    let mut t = pair();
    t.rule("umr kind=zap do=delay ms=100");
    t.rule("umr do=delay ms=100");
    t.post_zap();
    t.post_zap();
    assert_eq!(t.rig.run_after(99), []);
    assert_eq!(ends(&t.rig.run_after(1)), [(UMR, 0), (UMR, 0)]);
    // The second took nothing back any more.
    assert_eq!((t.counts(1), t.counts(2)), ((1, 1), (2, 1)));
}

#[test]
fn a_umr_is_executed_and_never_completes() {
    let mut t = pair();
    t.rule("umr times=1 do=drop");
    assert_eq!(t.zap(), []);
    assert_eq!(t.rig.device.counters.mtts_cleared, 8);
    assert_eq!(ends(&t.zap()), [(UMR, 0)]);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn a_umr_completes_without_effect() {
    let mut t = pair();
    let rule = t.rule("umr kind=zap do=complete");
    assert_eq!(ends(&t.zap()), [(UMR, 0)]);
    assert_eq!(t.rig.device.counters.mtts_cleared, 0);
    assert_eq!(ends(&t.write()), [(WRITE, 0)], "the translation is stale");
    assert!(t.rig.device.rules.remove(rule));
    assert_eq!(ends(&t.zap()), [(UMR, 0)]);
    assert_eq!(t.write(), []);
    assert!(t.rig.violations().is_empty());
}

#[test]
fn a_umr_fails_without_effect() {
    for (rule, syndrome) in [("umr do=fail", 2), ("umr do=fail syndrome=MW_BIND", 6)] {
        let mut t = pair();
        t.rule(rule);
        assert_eq!(ends(&t.zap()), [(UMR, syndrome)]);
        assert_eq!(t.rig.device.counters.mtts_cleared, 0);
        assert!(t.rig.violations().is_empty());
    }
}

#[test]
fn the_kinds_of_umrs() {
    let kinds = ["enable", "revoke", "zap", "map", "modify"];
    let check = |kind: &str, umr: &dyn Fn(&mut Pair)| {
        let mut t = pair();
        let ids = kinds.map(|kind| t.rule(&format!("umr kind={kind} times=0 do=drop")));
        umr(&mut t);
        let counts = ids.map(|id| t.counts(id).0);
        let last = kinds.map(|name| u64::from(name == kind));
        assert_eq!(counts, last, "{kind}");
    };
    check("zap", &|t| drop(t.zap()));
    check("map", &|t| drop(t.map(0)));
    check("map", &|t| drop(t.map(1)));
    check("revoke", &|t| drop(t.set_free(true)));
    check("enable", &|t| drop(t.set_free(false)));
    check("modify", &|t| {
        let mask = MkeyMask::new().with_lw(true);
        let (flags, mkc) = (UmrFlags::new(), Mkc::default());
        t.rig.post_umr(t.dst.key, flags, mask, &mkc, 0, &[]);
        t.rig.run();
    });
}

#[test]
fn the_mkey_of_a_umr() {
    let mut t = pair();
    let (src, dst) = (t.src.key.get(), t.dst.key.get());
    let other = t.rule(&format!("umr mkey={src:#x} do=drop"));
    let this = t.rule(&format!("umr mkey={:#x} do=fail", dst ^ 0xff));
    assert_eq!(ends(&t.zap()), [(UMR, 2)]);
    assert_eq!((t.counts(other), t.counts(this)), ((0, 0), (1, 1)));
}

#[test]
fn a_umr_is_held_until_its_rule_is_removed() {
    let mut t = pair();
    let rule = t.rule("umr do=hold");
    t.post_zap();
    t.post_zap();
    assert_eq!(t.rig.run_after(10_000), []);
    assert_eq!(ends(&t.write()), [(WRITE, 0)]);
    // The second waits behind the first.
    assert_eq!((t.counts(rule), t.rig.device.counters.held), ((1, 1), 1));
    assert!(t.rig.device.rules.remove(rule));
    assert_eq!(ends(&t.rig.run()), [(UMR, 0), (UMR, 0)]);
    assert_eq!(t.write(), []);
}

#[test]
fn umrs_are_held_until_so_many_accesses_are_stalled() {
    let mut t = pair();
    assert_eq!(ends(&t.zap()), [(UMR, 0)]);
    t.rule("umr kind=map do=hold stalls=3");
    let mut qps = [t.rig.rc_pair(), t.rig.rc_pair()];
    assert_eq!(t.write(), []);
    assert_eq!(t.map(0), []);
    assert_eq!(t.rig.device.counters.most_stalls_while_held, 1);
    let mut body = raddr(t.dst.key, t.dst.va);
    body.extend(data(t.src.key, t.src.va, LEN));
    t.rig.post(&mut qps[0].0, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(t.rig.run(), []);
    t.rig.post(&mut qps[1].0, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(ends(&t.rig.run()), [(UMR, 0)]);
    let counters = t.rig.device.counters;
    assert_eq!((counters.held, counters.most_stalls_while_held), (1, 3));
    assert_eq!(t.rig.device.faults.len(), 3);
    for fault in t.rig.faults() {
        assert_eq!(ends(&t.rig.resume(&fault, false)), [(WRITE, 0)]);
    }
    // Once is enough: with fewer stalls nothing is held any more.
    assert_eq!(ends(&t.map(0)), [(UMR, 0)]);
    assert_eq!(t.counts(1), (2, 1));
    assert!(t.rig.violations().is_empty());
}

#[test]
fn a_umr_that_comes_after_the_stalls_is_not_held() {
    let mut t = pair();
    assert_eq!(ends(&t.zap()), [(UMR, 0)]);
    t.rule("umr do=hold stalls=1");
    assert_eq!(t.write(), []);
    assert_eq!(ends(&t.map(0)), [(UMR, 0)]);
    assert_eq!(t.rig.device.counters.most_stalls_while_held, 1);
}

#[test]
fn a_message_is_delayed() {
    let mut t = pair();
    let qpn = t.a.qpn;
    t.rule(&format!("message qp={qpn} op=RDMA_WRITE do=delay ms=5"));
    t.rule("message op=SEND do=drop");
    assert_eq!(t.write(), []);
    assert_eq!(t.rig.run_after(4), []);
    assert_eq!(t.rig.device.counters.msgs_write, 0);
    assert_eq!(ends(&t.rig.run_after(1)), [(WRITE, 0)]);
}

/// The QP's ACK timeout is 4.096 us << 14, 67.1 ms; it retries twice.
#[test]
fn a_lost_message_is_sent_again() {
    let mut t = pair();
    let rule = t.rule("message times=2 do=drop");
    assert_eq!(t.write(), []);
    assert_eq!(t.rig.run_after(68), []);
    assert_eq!(ends(&t.rig.run_after(68)), [(WRITE, 0)]);
    assert_eq!(t.counts(rule), (3, 2));
    assert_eq!(t.rig.device.counters.msgs_write, 1);
    assert_eq!(t.rig.device.counters.ack_timeouts, 2);
}

#[test]
fn a_message_that_is_lost_too_often_fails() {
    let mut t = pair();
    t.rule("message do=drop");
    assert_eq!(t.write(), []);
    let mut done = Vec::new();
    for _ in 0..4 {
        done.extend(t.rig.run_after(68));
    }
    assert_eq!(ends(&done), [(WRITE, 0x15)]);
    assert_eq!(t.rig.device.counters.msgs_write, 0);
}

#[test]
fn a_message_of_an_unreliable_qp_is_lost_for_good() {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, b) = (rig.create_qp(1), rig.create_qp(1));
    rig.connect(a.qpn, b.qpn);
    rig.connect(b.qpn, a.qpn);
    let (src, dst) = (rig.mr(VA, 8, RW), rig.mr(2 * VA, 8, RW));
    rig.device.rules.add("message do=drop").unwrap();
    let body = [raddr(dst.key, dst.va), data(src.key, src.va, LEN)].concat();
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    assert_eq!(ends(&rig.run()), [(WRITE, 0)]);
    assert_eq!(rig.device.counters.msgs_write, 0);
}

#[test]
fn a_message_fails_or_completes_without_effect() {
    for (rule, syndrome) in [
        ("message do=fail syndrome=REMOTE_ACCESS", 0x13),
        ("message do=fail syndrome=0x99", 0x99),
        ("message do=complete", 0),
    ] {
        let mut t = pair();
        t.rule(rule);
        assert_eq!(ends(&t.write()), [(WRITE, syndrome)], "{rule}");
        assert_eq!(t.rig.device.counters.msgs_write, 0);
        let qp = t.rig.device.qps.get(firmware_cmds::Qpn::truncate(t.a.qpn));
        let failed = qp.unwrap().state == connectx::qp::QpState::Err;
        assert_eq!(failed, syndrome != 0);
    }
}

#[test]
fn a_message_is_held_until_its_rule_is_removed() {
    let mut t = pair();
    let rule = t.rule("message op=RDMA_WRITE do=hold");
    t.post_write();
    t.post_write();
    assert_eq!(t.rig.run_after(10_000), []);
    assert_eq!(t.rig.device.counters.held, 1);
    // Another doorbell does not let it go.
    t.post_write();
    assert_eq!(t.rig.run(), []);
    assert!(t.rig.device.rules.remove(rule));
    assert_eq!(ends(&t.rig.run()), [(WRITE, 0); 3]);
}

#[test]
fn a_held_message_ends_with_its_qp() {
    let mut t = pair();
    t.rule("message do=hold");
    t.post_write();
    t.post_write();
    assert_eq!(t.rig.run_after(1000), []);
    let mut input = vec![0; 16];
    input[..2].copy_from_slice(&0x507_u16.to_be_bytes());
    input[8..12].copy_from_slice(&t.a.qpn.to_be_bytes());
    t.rig.command(&input, 16);
    let flushed = t.rig.run();
    assert!(flushed.len() == 2 && flushed.iter().all(|c| c.syndrome == 5));
    t.rig.device.rules.clear();
    assert_eq!(t.rig.run(), []);
    assert_eq!(t.rig.device.counters.msgs_write, 0);
    let _ = &t.b;
}

#[test]
fn completions_under_way_end_with_their_qp() {
    for rule in [
        "completion op=REQ do=hold",
        "completion op=REQ do=delay ms=1",
    ] {
        let mut t = pair();
        t.rule(rule);
        assert_eq!(t.write(), []);
        t.rig.reset(&mut t.a);
        t.rig.device.rules.clear();
        assert_eq!(t.rig.run_after(1), [], "{rule}");
    }
}

#[test]
fn a_page_fault_fails() {
    let cases = [
        ("fault do=fail", true),
        ("fault kind=rdma side=responder do=fail", true),
        ("fault side=requester do=fail", false),
        ("fault kind=receive do=fail", false),
    ];
    for (rule, acts) in cases {
        let mut t = pair();
        t.zap();
        t.rule(rule);
        let done = ends(&t.write());
        assert_eq!(
            done,
            if acts { vec![(WRITE, 0x13)] } else { vec![] },
            "{rule}"
        );
        assert_eq!(t.rig.device.faults.len(), usize::from(!acts));
    }
    let mut t = pair();
    t.zap();
    let (qp, mkey) = (t.b.qpn, t.dst.key.get());
    t.rule(&format!("fault qp={} do=fail", t.a.qpn));
    t.rule(&format!("fault mkey={} do=fail", t.src.key.get()));
    let id = t.rule(&format!("fault qp={qp:#x} mkey={mkey:#x} do=fail"));
    assert_eq!(ends(&t.write()), [(WRITE, 0x13)]);
    assert_eq!(t.counts(id), (1, 1));
}
