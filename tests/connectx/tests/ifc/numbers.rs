// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Numbers that stand alone.

use connectx::caps::CapType;
use connectx::command;
use connectx::completion::{cqe_opcode, syndrome};
use firmware_cmds::{Eqe, EventType, Wire};
use ifc_oracle::{require_or_skip, Oracle};

use crate::driver::{struct_of, Driver};

/// Each of `ours` is the constant of the headers with `prefix` before its name.
fn compare<T: Into<u64>>(
    oracle: &Oracle,
    prefix: &str,
    ours: impl IntoIterator<Item = (&'static str, T)>,
) {
    for (name, number) in ours {
        let name = format!("{prefix}{name}");
        assert_eq!(oracle.constant(&name), Ok(number.into()), "{name}");
    }
}

#[test]
fn commands() {
    let Some(oracle) = require_or_skip("commands") else {
        return;
    };
    let mut count = 0;
    for command in (0..=u16::MAX).filter_map(command::find) {
        count += 1;
        compare(&oracle, "MLX5_CMD_OP_", [(command.name, command.opcode)]);
        // A driver sends, and has room for, the whole struct. It has to be enough.
        for (way, needed) in [("in", command.input), ("out", command.output)] {
            let name = struct_of(command.name, way);
            let layout = oracle.layout(&name).unwrap_or_else(|e| panic!("{e}"));
            assert!(needed as u64 <= layout.bits / 8, "{name}: {needed} needed");
        }
    }
    assert!(count > 40, "only {count} commands");
}

#[test]
fn event_types() {
    let Some(oracle) = require_or_skip("event_types") else {
        return;
    };
    let ours = EventType::NAMES.iter();
    compare(
        &oracle,
        "MLX5_EVENT_TYPE_",
        ours.map(|&(number, name)| (name, number.0)),
    );
    let bits = oracle.layout("mlx5_eqe").map(|layout| layout.bits);
    assert_eq!(bits, Ok(8 * Eqe::LEN as u64));
}

#[test]
fn cqe_codes() {
    let Some(oracle) = require_or_skip("cqe_codes") else {
        return;
    };
    let opcodes = [
        ("REQ", cqe_opcode::REQ),
        ("RESP_WR_IMM", cqe_opcode::RESP_WR_IMM),
        ("RESP_SEND", cqe_opcode::RESP_SEND),
        ("RESP_SEND_IMM", cqe_opcode::RESP_SEND_IMM),
        ("RESP_SEND_INV", cqe_opcode::RESP_SEND_INV),
        ("RESIZE_CQ", cqe_opcode::RESIZE_CQ),
        ("REQ_ERR", cqe_opcode::REQ_ERR),
        ("RESP_ERR", cqe_opcode::RESP_ERR),
        ("INVALID", cqe_opcode::INVALID),
    ];
    compare(&oracle, "MLX5_CQE_", opcodes);
    let syndromes = [
        ("LOCAL_LENGTH_ERR", syndrome::LOCAL_LENGTH),
        ("LOCAL_QP_OP_ERR", syndrome::LOCAL_QP_OP),
        ("LOCAL_PROT_ERR", syndrome::LOCAL_PROT),
        ("WR_FLUSH_ERR", syndrome::FLUSH),
        ("MW_BIND_ERR", syndrome::MW_BIND),
        ("BAD_RESP_ERR", syndrome::BAD_RESPONSE),
        ("LOCAL_ACCESS_ERR", syndrome::LOCAL_ACCESS),
        ("REMOTE_INVAL_REQ_ERR", syndrome::REMOTE_INVALID_REQUEST),
        ("REMOTE_ACCESS_ERR", syndrome::REMOTE_ACCESS),
        ("REMOTE_OP_ERR", syndrome::REMOTE_OP),
        ("TRANSPORT_RETRY_EXC_ERR", syndrome::RETRY_EXCEEDED),
        ("RNR_RETRY_EXC_ERR", syndrome::RNR_EXCEEDED),
    ];
    compare(&oracle, "MLX5_CQE_SYNDROME_", syndromes);
}

#[test]
fn capabilities() {
    let Some(driver) = Driver::new("capabilities") else {
        return;
    };
    for (name, cap_type, layout) in [
        ("GENERAL", CapType::General, "cmd_hca_cap"),
        ("ODP", CapType::Odp, "odp_cap"),
        ("ATOMIC", CapType::Atomic, "atomic_caps"),
    ] {
        let number = driver.constant(&format!("MLX5_CAP_{name}"));
        let number = u16::try_from(number).unwrap();
        assert_eq!(CapType::from_number(number), Some(cap_type), "{name}");
        // No bit is set that means nothing.
        let mut image = driver.image(&format!("mlx5_ifc_{layout}_bits"));
        let caps = driver.device.hca.max().get(cap_type);
        image.bytes.resize(caps.len().max(image.bytes.len()), 0);
        image.bytes[..caps.len()].copy_from_slice(caps);
        let set = image.set_fields();
        assert!(!set.is_empty(), "{name}");
        assert!(
            set.iter().all(|f| !f.contains("reserved")),
            "{name}: {set:?}"
        );
    }
}

/// ACCESS_REG knows these registers, and of all that the headers have no other.
#[test]
fn registers() {
    let Some(mut driver) = Driver::new("registers") else {
        return;
    };
    let names: Vec<_> = driver
        .oracle
        .constants_with_prefix("MLX5_REG_")
        .map(str::to_owned)
        .collect();
    let mut known = Vec::new();
    for name in &names {
        for way in ["READ", "WRITE"] {
            let mut input = driver.command("ACCESS_REG");
            input.set("register_id", driver.constant(name));
            let op_mod = format!("MLX5_ACCESS_REGISTER_IN_OP_MOD_{way}");
            input.set("op_mod", driver.constant(&op_mod));
            input.bytes.resize(0x100, 0);
            if driver.status(&input.bytes, 0x100) == driver.constant("MLX5_CMD_STAT_OK") {
                known.push((way, name.trim_start_matches("MLX5_REG_")));
            }
        }
    }
    known.sort_unstable();
    let expected = [
        ("READ", "NODE_DESC"),
        ("READ", "PMTU"),
        ("READ", "PTYS"),
        ("READ", "PVLC"),
        ("WRITE", "HOST_ENDIANNESS"),
    ];
    assert_eq!(known, expected);
}
