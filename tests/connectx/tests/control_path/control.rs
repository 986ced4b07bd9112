// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The control protocol.

use connectx::control::serve;
use connectx::Scheme;
use firmware_cmds::DmaAddr;
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
fn knobs() {
    let mut rig = Rig::new();
    let set = r#"{"cmd":"set","umr_delay_ms":1500,"scheme":"transport"}"#;
    assert_eq!(ask(&mut rig, set)["ok"], true);
    let knobs = ask(&mut rig, r#"{"cmd":"knobs"}"#);
    assert_eq!(knobs["umr_delay_ms"], 1500);
    assert_eq!(knobs["scheme"], "transport");
    // The scheme is that of the next ENABLE_HCA.
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
        r#"{"cmd":"set","umr_delay_ms":7,"nonsense":1}"#,
        r#"{"cmd":"set","umr_delay_ms":-1}"#,
        r#"{"cmd":"set","umr_delay_ms":"7"}"#,
        r#"{"cmd":"set","umr_delay_ms":7,"scheme":"both"}"#,
    ] {
        let reply = ask(&mut rig, line);
        assert!(reply["error"].is_string(), "{line}: {reply}");
    }
    assert_eq!(rig.device.knobs, connectx::Knobs::default());
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
