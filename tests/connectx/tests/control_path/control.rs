// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The control protocol.

use connectx::control::serve;
use firmware_cmds::{DmaAddr, Scheme};
use serde_json::Value;

use crate::rig::{command, Rig};

fn ask(rig: &mut Rig, line: &str) -> Value {
    let reply = serve(&mut rig.device, line);
    assert!(!reply.contains('\n'));
    serde_json::from_str(&reply).unwrap()
}

#[test]
fn counters_and_objects() {
    let mut rig = Rig::ready();
    rig.alloc_uar();
    assert_eq!(ask(&mut rig, r#"{"cmd":"counters"}"#)["commands"], 1);
    assert_eq!(ask(&mut rig, r#"{"cmd":"objects"}"#)["uar"], 1);
    assert_eq!(ask(&mut rig, r#"{"cmd":"objects"}"#)["qp"], 0);
    assert_eq!(ask(&mut rig, r#"{"cmd":"reset-counters"}"#)["ok"], true);
    assert_eq!(ask(&mut rig, r#"{"cmd":"counters"}"#)["commands"], 0);
}

#[test]
fn rules() {
    let mut rig = Rig::ready();
    let text = r#"{"cmd":"rule","add":"command op=ALLOC_PD times=1 do=fail status=NO_RES"}"#;
    assert_eq!(ask(&mut rig, text)["id"], 1);
    let words = r#"{"cmd":"rule","add":{"point":"command","op":2070,"do":"drop"}}"#;
    assert_eq!(ask(&mut rig, words)["id"], 2);
    assert_eq!(rig.command(&command(0x800, 0, 16), 16).status(), 0xf);
    assert_eq!(rig.command(&command(0x800, 0, 16), 16).status(), 0);
    let rules = ask(&mut rig, r#"{"cmd":"rules"}"#);
    let expected = r#"{"rules":[
        {"id":1,"rule":"command op=ALLOC_PD times=1 do=fail status=NO_RES","matches":2,"acts":1,"opened":false},
        {"id":2,"rule":"command op=ALLOC_TRANSPORT_DOMAIN do=drop","matches":0,"acts":0,"opened":false}]}"#;
    assert_eq!(rules, serde_json::from_str::<Value>(expected).unwrap());
    assert_eq!(ask(&mut rig, r#"{"cmd":"counters"}"#)["rule_acts"], 1);
    assert_eq!(ask(&mut rig, r#"{"cmd":"remove-rule","id":1}"#)["ok"], true);
    let again = ask(&mut rig, r#"{"cmd":"remove-rule","id":1}"#);
    assert_eq!(again["error"], "there is no rule 1");
    assert_eq!(ask(&mut rig, r#"{"cmd":"clear-rules"}"#)["ok"], true);
    assert_eq!(
        ask(&mut rig, r#"{"cmd":"rules"}"#)["rules"],
        Value::Array(Vec::new())
    );
}

#[test]
fn the_scheme_is_that_of_the_next_enable_hca() {
    let mut rig = Rig::new();
    let set = r#"{"cmd":"set","scheme":"transport"}"#;
    assert_eq!(ask(&mut rig, set)["ok"], true);
    assert_eq!(rig.device.hca.scheme, Scheme::Memory);
    rig.command(&command(0x104, 0, 16), 12);
    assert_eq!(rig.device.hca.scheme, Scheme::Transport);
}

#[test]
fn what_cannot_be_served_changes_nothing() {
    let mut rig = Rig::ready();
    for line in [
        "",
        "[]",
        "{",
        r#"{"command":"counters"}"#,
        r#"{"cmd":"shutdown"}"#,
        r#"{"cmd":"counters","of":"qp"}"#,
        r#"{"cmd":"set"}"#,
        r#"{"cmd":"set","scheme":"both"}"#,
        r#"{"cmd":"set","scheme":"transport","nonsense":1}"#,
        r#"{"cmd":"rule"}"#,
        r#"{"cmd":"rule","add":7}"#,
        r#"{"cmd":"rule","add":"umr do=explode"}"#,
        r#"{"cmd":"rule","add":{"do":"drop"}}"#,
        r#"{"cmd":"rule","add":{"point":7,"do":"drop"}}"#,
        r#"{"cmd":"rule","add":{"point":"umr","do":"drop","mkey":-1}}"#,
        r#"{"cmd":"rule","add":"umr do=drop","id":3}"#,
        r#"{"cmd":"remove-rule","id":1}"#,
        r#"{"cmd":"remove-rule"}"#,
    ] {
        let reply = ask(&mut rig, line);
        assert!(reply["error"].is_string(), "{line}: {reply}");
    }
    assert!(rig.device.rules.entries().is_empty());
    assert_eq!(rig.device.scheme, Scheme::Memory);
}

#[test]
fn inspection() {
    let mut rig = Rig::ready();
    let uar = rig.alloc_uar();
    let pages = ask(&mut rig, r#"{"cmd":"inspect","path":"uar/pages"}"#);
    assert_eq!(pages["inspect"][0], format!("{uar:#x}"));
    let top = ask(&mut rig, r#"{"cmd":"inspect"}"#);
    assert_eq!(top["inspect"]["uar"], "4 entries");
    let all = ask(&mut rig, r#"{"cmd":"inspect","depth":3}"#);
    assert_eq!(all["inspect"]["uar"]["pages"][0], format!("{uar:#x}"));
    for wrong in [r#""path":7"#, r#""depth":-1"#, r#""path":"qp/1""#] {
        let reply = ask(&mut rig, &format!(r#"{{"cmd":"inspect",{wrong}}}"#));
        assert!(reply["error"].is_string(), "{reply}");
    }
}

#[test]
fn violations() {
    let mut rig = Rig::ready();
    rig.mem.unmap(DmaAddr::new(0), 0x2000);
    rig.write32(0x18, 1);
    rig.settle();
    let reply = ask(&mut rig, r#"{"cmd":"violations"}"#);
    assert_eq!(reply["count"], 1);
    assert_eq!(
        reply["violations"][0],
        "command slot 0: IOVA 0x1000 is not mapped"
    );
}
