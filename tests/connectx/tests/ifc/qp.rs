// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The QP context: its codes, and what the optional parameters bring.

use std::collections::BTreeMap;

use connectx::qp::context::{QpContext, PRIMARY_PATH, QPC_LEN, SECONDARY_PATH};
use connectx::qp::transition::Transition;
use connectx::qp::{QpState, ServiceType};
use ifc_oracle::require_or_skip;

use crate::driver::Image;

#[test]
fn states_and_service_types() {
    let Some(oracle) = require_or_skip("states_and_service_types") else {
        return;
    };
    for (name, state) in [
        ("RST", QpState::Rst),
        ("INIT", QpState::Init),
        ("RTR", QpState::Rtr),
        ("RTS", QpState::Rts),
        ("SQER", QpState::SqErr),
        ("SQD", QpState::SqDrained),
        ("ERR", QpState::Err),
    ] {
        let code = oracle.constant(&format!("MLX5_QP_STATE_{name}"));
        assert_eq!(code, Ok(state.code().into()), "{name}");
    }
    let types = [
        ("RC", ServiceType::Rc),
        ("UC", ServiceType::Uc),
        ("UD", ServiceType::Ud),
        ("XRC", ServiceType::Xrc),
        ("DCI", ServiceType::Dci),
        ("QP0", ServiceType::Qp0),
        ("QP1", ServiceType::Qp1),
        ("REG_UMR", ServiceType::RegUmr),
    ]
    .map(|(name, st)| (oracle.constant(&format!("MLX5_QP_ST_{name}")), st));
    for code in 0..0x100 {
        let found = types.iter().find(|(number, _)| *number == Ok(code.into()));
        let expected = found.map(|(_, st)| *st);
        assert_eq!(ServiceType::parse(code), expected, "{code:#x}");
    }
    assert!(types.iter().all(|(number, _)| number.is_ok()), "{types:?}");
}

#[test]
fn paths_are_parts_of_the_context() {
    let Some(oracle) = require_or_skip("paths_are_parts_of_the_context") else {
        return;
    };
    let qpc = Image::zeroed(&oracle, "mlx5_ifc_qpc_bits");
    assert_eq!(qpc.bytes.len(), QPC_LEN);
    for (path, ours) in [
        ("primary_address_path", PRIMARY_PATH),
        ("secondary_address_path", SECONDARY_PATH),
    ] {
        let len = usize::try_from(qpc.field(path).bits / 8).unwrap();
        assert_eq!(ours, qpc.byte(path)..qpc.byte(path) + len, "{path}");
    }
}

/// With one bit of the mask set, RTS2RTS brings the fields that this bit stands for.
#[test]
fn optional_parameters() {
    let Some(oracle) = require_or_skip("optional_parameters") else {
        return;
    };
    let ones = QpContext::parse(&[0xff; QPC_LEN]).unwrap();
    let own = ["pkey_index", "ack_timeout", "vhca_port_num"];
    let all = Image::of(&oracle, "mlx5_ifc_qpc_bits", ones.bytes());
    let below = |path: &str, but: &[&str]| -> Vec<String> {
        let is_below = |field: &&str| {
            let rest = field.strip_prefix(path).and_then(|f| f.strip_prefix('.'));
            rest.is_some_and(|rest| !but.contains(&rest))
        };
        let fields = all.set_fields().into_iter().filter(is_below);
        fields.map(str::to_owned).collect()
    };
    let one = |field: &str| vec![field.to_owned()];
    let path = |field: &str| vec![format!("primary_address_path.{field}")];
    let mut expected = BTreeMap::from([
        ("ALT_ADDR_PATH", below("secondary_address_path", &[])),
        ("RRE", one("rre")),
        ("RAE", vec!["atomic_mode".to_owned(), "rae".to_owned()]),
        ("RWE", one("rwe")),
        ("PKEY_INDEX", path("pkey_index")),
        ("Q_KEY", one("q_key")),
        ("RNR_TIMEOUT", one("min_rnr_nak")),
        ("PRIMARY_ADDR_PATH", below("primary_address_path", &own)),
        ("SRA_MAX", one("log_sra_max")),
        ("RRA_MAX", one("log_rra_max")),
        ("PM_STATE", one("pm_state")),
        ("RETRY_COUNT", one("retry_count")),
        ("RNR_RETRY", one("rnr_retry")),
        ("ACK_TIMEOUT", path("ack_timeout")),
        ("PRI_PORT", path("vhca_port_num")),
        ("SRQN", one("srqn_rmpn_xrqn")),
        ("CQN_RCV", one("cqn_rcv")),
        ("COUNTER_SET_ID", one("counter_set_id")),
        // What the model has no use for.
        ("LAG_TX_AFF", vec![]),
        ("DC_HS", vec![]),
        ("DC_KEY", vec![]),
        ("PP_INDEX", vec![]),
    ]);
    for name in oracle.constants_with_prefix("MLX5_QP_OPTPAR_") {
        let bit = u32::try_from(oracle.constant(name).unwrap()).unwrap();
        let mut context = QpContext::zeroed();
        let done = Transition::RtsToRts.apply(&mut context, QpState::Rts, bit, &ones);
        let changed = Image::of(&oracle, "mlx5_ifc_qpc_bits", context.bytes());
        let (state, changed): (Vec<_>, Vec<_>) = changed
            .set_fields()
            .into_iter()
            .map(str::to_owned)
            .partition(|field| *field == "state");
        // A bit that brings nothing may be refused.
        assert!(done.is_ok() || changed.is_empty(), "{name}: {done:?}");
        assert_eq!(state.len(), usize::from(done.is_ok()), "{name}");
        let expected = expected.remove(name.trim_start_matches("MLX5_QP_OPTPAR_"));
        assert_eq!(Some(changed), expected, "{name}");
    }
    assert!(expected.is_empty(), "not in the header: {expected:?}");
}
