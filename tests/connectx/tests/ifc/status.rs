// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! How commands fail.

use crate::driver::{Driver, Image};

/// Makes a status with each mistake, and compares it with the constant of that name.
#[test]
fn commands_fail_with_the_statuses_of_the_headers() {
    let Some(mut driver) = Driver::new("commands_fail_with_the_statuses_of_the_headers") else {
        return;
    };
    let status = |driver: &mut Driver, name: &str, input: &[u8], output_len: usize| {
        let expected = driver.constant(&format!("MLX5_CMD_STAT_{name}"));
        assert_eq!(driver.status(input, output_len), expected, "{name}");
    };
    let input = driver.command("INIT_HCA");
    status(&mut driver, "BAD_SYS_STATE_ERR", &input.bytes, 16);
    let input = driver.command("ENABLE_HCA");
    status(&mut driver, "OK", &input.bytes, 16);
    driver.device.rules.add("command times=1 do=fail").unwrap();
    status(&mut driver, "INT_ERR", &input.bytes, 16);

    // What the model has not; too little input, too little room.
    let input = driver.command("CREATE_TIR");
    status(&mut driver, "BAD_OP_ERR", &input.bytes, 16);
    let input = driver.command("CREATE_EQ");
    status(&mut driver, "BAD_INP_LEN_ERR", &input.bytes[..16], 16);
    let mut input = driver.command("QUERY_HCA_CAP");
    status(&mut driver, "BAD_OUTP_LEN_ERR", &input.bytes, 16);
    input.set("op_mod", 0x7f << 1);
    status(&mut driver, "BAD_PARAM_ERR", &input.bytes, 0x1010);
    let mut input = driver.command("QUERY_HCA_VPORT_GID");
    input.set("gid_index", 0xfff0);
    status(&mut driver, "IX_ERR", &input.bytes, 16);

    let input = driver.command("INIT_HCA");
    status(&mut driver, "OK", &input.bytes, 16);
    let uar = driver.alloc_uar();
    let (eqn, _) = driver.create_eq(uar, &[]);
    let (cqn, _) = driver.create_cq(uar, eqn, 4);
    let mut input = driver.command("DESTROY_EQ");
    input.set("eq_number", eqn);
    status(&mut driver, "RES_BUSY", &input.bytes, 16);
    input.set("eq_number", eqn + 1);
    status(&mut driver, "BAD_RES_ERR", &input.bytes, 16);

    // A QP without queues, in state RST.
    let input = driver.command("ALLOC_PD");
    let pd = driver.send("ALLOC_PD", &input).get("pd");
    let mut input = driver.command("CREATE_QP");
    input.set("qpc.pd", pd);
    input.set("qpc.no_sq", 1);
    input.set("qpc.rq_type", driver.constant("MLX5_ZERO_LEN_RQ"));
    input.set("qpc.cqn_snd", cqn);
    input.set("qpc.cqn_rcv", cqn);
    let qpn = driver.send("CREATE_QP", &input).get("qpn");
    let mut input = driver.command("RTR2RTS_QP");
    input.set("qpn", qpn);
    status(&mut driver, "BAD_QP_STATE_ERR", &input.bytes, 16);

    let ring = driver.page();
    let input = driver.eq(uar, ring, &[]);
    let ok = driver.constant("MLX5_CMD_STAT_OK");
    let failed = (0..0x200)
        .map(|_| driver.status(&input.bytes, 16))
        .find(|status| *status != ok);
    assert_eq!(failed, Some(driver.constant("MLX5_CMD_STAT_NO_RES_ERR")));
}

/// A change to a queue entry, and the name of what it is answered.
type Mistake = (&'static str, fn(&mut Image));

#[test]
fn malformed_entries_are_answered_as_the_driver_reads_it() {
    let Some(mut driver) = Driver::new("malformed_entries_are_answered_as_the_driver_reads_it")
    else {
        return;
    };
    let prefix = "MLX5_CMD_DELIVERY_STAT_";
    if driver.oracle.constants_with_prefix(prefix).next().is_none() {
        // They are in no header, and a package of headers has no source.
        assert!(
            std::env::var_os("MLX5_ODP_REQUIRE_HEADERS").is_none_or(|value| value != "1"),
            "no {prefix}*"
        );
        eprintln!("SKIPPED: no {prefix}*, for want of the driver's source");
        return;
    }
    let mistakes: [Mistake; 9] = [
        ("OK", |_| {}),
        ("TOK_ERR", |entry| entry.set("token", 1)),
        ("IN_PTR_ALIGN_ERR", |entry| {
            entry.set("in_ptr", entry.get("in_ptr") + 0x40);
        }),
        ("OUT_PTR_ALIGN_ERR", |entry| {
            entry.set("out_ptr", entry.get("out_ptr") + 0x40);
        }),
        ("IN_LENGTH_ERR", |entry| entry.set("in_ptr", 0)),
        ("IN_LENGTH_ERR", |entry| entry.set("inlen", 4)),
        ("OUT_LENGTH_ERR", |entry| entry.set("out_ptr", 0)),
        ("OUT_LENGTH_ERR", |entry| entry.set("outlen", 4)),
        ("CMD_DESCR_ERR", |entry| entry.set("type", 1)),
    ];
    // Input and output of several mailboxes each.
    let mut input = driver.command("QUERY_HCA_CAP").bytes;
    input.resize(0x1000, 0);
    for (name, change) in mistakes {
        let expected = driver.constant(&format!("{prefix}{name}"));
        let answer = driver.send_changed(&input, 0x1010, change);
        assert_eq!(answer.delivery, expected, "{name}");
    }
}
