// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The state as a tree.

use connectx::inspect::inspect;
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{MttAccess, Scheme};
use serde_json::{json, Value};

use crate::rig::{data, raddr, Rig, TestMr, TestQp};

const VA: u64 = 0x7f00_0000_1000;

/// A WRITE that waits for the second page of its source.
fn stalled() -> (Rig, TestQp, TestMr) {
    let mut rig = Rig::new(Scheme::Memory);
    let (mut a, _b) = rig.rc_pair();
    let mr = rig.mr(VA, 2, MttAccess::READ);
    rig.set_mtts(mr.key, 0, &[crate::rig::mtt(mr.iova, MttAccess::READ)]);
    let mut body = raddr(mr.key, mr.va);
    body.extend(data(mr.key, mr.va, 0x2000));
    rig.post(&mut a, WqeOpcode::RDMA_WRITE, 0, &body);
    rig.run();
    (rig, a, mr)
}

fn at(rig: &Rig, path: &str) -> Value {
    inspect(&rig.device, path, None).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn error(rig: &Rig, path: &str) -> String {
    inspect(&rig.device, path, None).unwrap_err()
}

#[test]
fn the_top_level_says_what_there_is() {
    let (rig, ..) = stalled();
    let top = at(&rig, "");
    for name in [
        "agenda", "commands", "counters", "cq", "eq", "fault", "hca", "init", "journal", "mcg",
        "mkey", "now", "order", "pd", "qp", "rules", "scheme", "srq", "subnet", "td", "uar",
        "xrcd",
    ] {
        assert!(!top[name].is_null(), "{name}: {top}");
    }
    assert_eq!(top["pd"], "1 entry");
    assert_eq!(top["now"], "0ns");
    assert_eq!(at(&rig, "/"), top);
}

#[test]
fn a_qp_and_what_it_does() {
    let (rig, a, mr) = stalled();
    let qp = format!("qp/{:#x}", a.qpn);
    let shown = at(&rig, &qp);
    assert_eq!(
        (&shown["st"], &shown["state"]),
        (&json!("Rc"), &json!("Rts"))
    );
    assert_eq!(shown, at(&rig, &format!("qp/{}", a.qpn)));
    // Fields of the context by name, nested as the PRM nests them.
    assert_eq!(shown["context"]["min_rnr_nak"], 12);
    let timeout = at(
        &rig,
        &format!("{qp}/context/primary_address_path/ack_timeout"),
    );
    assert_eq!(timeout, 14);
    let sq = at(&rig, &format!("{qp}/sq"));
    assert_eq!((&sq["pi"], &sq["ci"]), (&json!(1), &json!(0)));
    assert_eq!(sq["op"]["done"], 0);
    let op = at(&rig, &format!("{qp}/sq/op/request"));
    assert_eq!(op["raddr"]["rkey"], format!("{:#x}", mr.key));
    assert_eq!(op["len"], 0x2000);
    let local = at(&rig, &format!("{qp}/sq/op/request/local/0/Memory/va"));
    assert_eq!(local, VA);
    let token = at(&rig, &format!("{qp}/sq/wait/Stall"));
    let stall = at(&rig, &format!("fault/{token}"));
    assert_eq!(stall["kind"], "SendOrWrite");
    assert_eq!(stall["missing"]["va"], VA + 0x1000);
    assert!(stall["event"]["Memory"].is_string(), "{stall}");
}

#[test]
fn an_mkey_and_its_translations() {
    let (rig, _, mr) = stalled();
    let mkey = format!("mkey/{:#x}", mr.key.index().get());
    let mkc = at(&rig, &format!("{mkey}/mkc"));
    assert_eq!(mkc["access_mode"], "Mtt");
    assert_eq!(mkc["access"]["local_read"], true);
    assert_eq!(mkc["start_addr"], format!("{VA:#x}"));
    let entries = at(&rig, &format!("{mkey}/xlt/entries"));
    assert_eq!(entries, json!({ "0x0": format!("{:#x}", mr.iova | 1) }));
}

#[test]
fn queues_capabilities_and_counters() {
    let (rig, ..) = stalled();
    let Value::Object(eqs) = at(&rig, "eq") else {
        panic!("no EQs");
    };
    let (_, eq) = eqs.iter().find(|(name, _)| name.starts_with("0x")).unwrap();
    assert_eq!((&eq["producer"], &eq["armed"]), (&json!(1), &json!(false)));
    assert_eq!(at(&rig, "hca/current/odp/mem_page_fault"), 1);
    assert_eq!(at(&rig, "counters/faults_memory"), 1);
    assert_eq!(at(&rig, "commands/rung"), "0x0");
    assert_eq!(at(&rig, "order"), json!({}));
    // The whole device can be shown.
    let whole = inspect(&rig.device, "", Some(usize::MAX)).unwrap();
    assert!(!whole.to_string().contains(" entries\""), "{whole}");
}

#[test]
fn what_is_not_there_is_an_error_that_says_what_is() {
    let (rig, a, _) = stalled();
    let said = error(&rig, "nonsense");
    assert!(
        said.contains("no \"nonsense\" in the device, but "),
        "{said}"
    );
    assert!(said.contains("counters, "), "{said}");
    let said = error(&rig, "qp/17/sq");
    assert!(said.contains("no \"17\" in \"qp\", but "), "{said}");
    assert!(said.contains(&format!("{:#x}", a.qpn)), "{said}");
    let said = error(&rig, "counters/cqes/1");
    assert!(said.contains("which has nothing in it"), "{said}");
}
