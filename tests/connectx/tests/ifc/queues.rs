// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Structures in memory and registers: the init segment, mailboxes, CQEs and EQEs.

use std::time::Duration;

use connectx::completion::cqe_opcode;
use connectx::Cqe;
use firmware_cmds::{Cqn, Eqe, EventType, Qpn, Srqn};

use crate::driver::{Driver, Image};

#[test]
fn init_segment() {
    let Some(mut driver) = Driver::new("init_segment") else {
        return;
    };
    let revision = driver.read_register("fw_rev");
    let (major, minor) = (revision & 0xffff, revision >> 16);
    assert_eq!(
        driver.read_register("health.fw_ver") >> 16,
        major << 8 | minor
    );
    if let Ok(spoken) = driver.oracle.constant("CMD_IF_REV") {
        let revision = driver.read_register("cmdif_rev_fw_sub") >> 16;
        assert_eq!(u64::from(revision), spoken);
    }
    // Bit 31: the firmware still initialises itself.
    assert_eq!(driver.read_register("initializing") >> 31, 0);
    // Sizes of the queue and of its entries, as powers of two.
    let sizes = driver.read_register("cmdq_addr_l_sz");
    let entry = driver.image("mlx5_cmd_layout").bytes.len();
    assert_eq!((sizes >> 4 & 0xf, 1 << (sizes & 0xf)), (5, entry));

    let clock = |driver: &mut Driver| {
        let high = u64::from(driver.read_register("internal_timer_h"));
        let low = u64::from(driver.read_register("internal_timer_l"));
        (high << 32 | low, driver.read_register("health_counter"))
    };
    let (timer, health) = clock(&mut driver);
    driver.now += Duration::from_secs(2);
    let (later, alive) = clock(&mut driver);
    assert!(later > timer && alive != health);
    driver.now += Duration::from_secs(1 << 20);
    assert_ne!(driver.read_register("internal_timer_h"), 0);

    driver.write_register("clr_intx", 1);
    assert_eq!(driver.device.journal.violations(), [] as [&str; 0]);
}

/// SET_HCA_CAP's input and QUERY_HCA_CAP's output take several mailboxes.
#[test]
fn mailboxes() {
    let Some(mut driver) = Driver::new("mailboxes") else {
        return;
    };
    let input = driver.command("ENABLE_HCA");
    driver.send("ENABLE_HCA", &input);
    let mut input = driver.command("QUERY_HCA_CAP");
    input.set("op_mod", 1);
    let answer = driver.send("QUERY_HCA_CAP", &input);
    let max = |path: &str| answer.get(&format!("capability.cmd_hca_cap.{path}"));
    assert_eq!((max("cqe_version"), max("num_ports"), max("rc")), (1, 1, 1));

    let mut input = driver.command("SET_HCA_CAP");
    let (from, to) = (answer.byte("capability"), input.byte("capability"));
    let len = answer.bytes.len() - from;
    input.bytes[to..to + len].copy_from_slice(&answer.bytes[from..]);
    driver.send("SET_HCA_CAP", &input);
    // The last field of the capabilities that the model has is not to be chosen.
    input.set("capability.cmd_hca_cap.num_of_uars_per_page", 2);
    let refused = driver.status(&input.bytes, 16);
    assert_eq!(refused, driver.constant("MLX5_CMD_STAT_BAD_PARAM_ERR"));
}

#[test]
fn cqes() {
    let Some(mut driver) = Driver::new("cqes") else {
        return;
    };
    driver.bring_up();
    let uar = driver.alloc_uar();
    let (eqn, _) = driver.create_eq(uar, &[]);
    let (cqn, ring) = driver.create_cq(uar, eqn, 1);
    let cqn = Cqn::truncate(u32::try_from(cqn).unwrap());
    let good = Cqe {
        opcode: cqe_opcode::RESP_SEND_IMM,
        send_opcode: 0xa,
        qpn: Qpn::truncate(0x12_3456),
        user_index: 0x65_4321,
        immediate: 0x0102_0304,
        byte_count: 0x0a0b_0c0d,
        wqe_counter: 0x4711,
        source_lid: 0xbeef,
        source_qpn: Qpn::truncate(0xab_cdef),
        service_level: 9,
        grh: true,
        ..Cqe::default()
    };
    driver.device.push_cqe(cqn, &good);
    let image = driver.read("mlx5_cqe64", ring);
    // With CQEs of version 1 the place of the SRQ's number has the user's index.
    let expected = [
        ("srqn", 0x65_4321),
        ("slid", 0xbeef),
        ("flags_rqpn", 1 << 28 | 9 << 24 | 0xab_cdef),
        ("immediate", 0x0102_0304),
        ("byte_cnt", 0x0a0b_0c0d),
        ("sop_drop_qpn", 0xa << 24 | 0x12_3456),
        ("wqe_counter", 0x4711),
        ("op_own", driver.constant("MLX5_CQE_RESP_SEND_IMM") << 4),
    ];
    only(&image, &expected, &["inval_rkey", "pkey", "ft_metadata"]);

    let bad = Cqe {
        opcode: cqe_opcode::REQ_ERR,
        syndrome: 0x13,
        vendor_syndrome: 0x88,
        ..good
    };
    driver.device.push_cqe(cqn, &bad);
    let image = driver.read("mlx5_err_cqe", ring + 64);
    let expected = [
        ("srqn", 0x65_4321),
        ("vendor_err_synd", 0x88),
        ("syndrome", 0x13),
        ("s_wqe_opcode_qpn", 0xa << 24 | 0x12_3456),
        ("wqe_counter", 0x4711),
        ("op_own", driver.constant("MLX5_CQE_REQ_ERR") << 4),
    ];
    only(&image, &expected, &[]);
}

/// The fields have these numbers, and all others are 0; `same` are other names of such a field.
fn only(image: &Image, expected: &[(&str, u64)], same: &[&str]) {
    for (path, value) in expected {
        assert_eq!(image.get(path), *value, "{path}");
    }
    for path in image.set_fields() {
        let known = expected.iter().any(|(name, _)| *name == path) || same.contains(&path);
        assert!(known, "{path} is set");
    }
}

#[test]
fn eqes() {
    let Some(mut driver) = Driver::new("eqes") else {
        return;
    };
    let [comp, cmd, cq_error, limit, access] =
        ["COMP", "CMD", "CQ_ERROR", "SRQ_RQ_LIMIT", "WQ_ACCESS_ERROR"]
            .map(|name| driver.constant(&format!("MLX5_EVENT_TYPE_{name}")));
    driver.bring_up();
    let uar = driver.alloc_uar();
    let (eqn, ring) = driver.create_eq(uar, &[cmd, cq_error, limit, access]);
    let mut seen = 0;
    let mut next = |driver: &Driver, event_type: u64| {
        let image = driver.read("mlx5_eqe", ring + 64 * seen);
        seen += 1;
        assert_eq!(image.get("type"), event_type);
        assert_eq!(image.get("owner"), 0);
        image
    };

    // CREATE_CQ completes, by an event.
    let (cqn, _) = driver.create_cq(uar, eqn, 0);
    assert_eq!(next(&driver, cmd).get("data.cmd.vector"), 1);

    // The driver arms the CQ as cq.h:mlx5_cq_arm does.
    let doorbell = driver.constant("MLX5_CQ_DOORBELL");
    let arm = (driver.constant("MLX5_CQ_DB_REQ_NOT") << 32 | cqn).to_be_bytes();
    let at = uar * 4096 + doorbell;
    driver.device.mmio_write(driver.now, at, &arm);
    let number = Cqn::truncate(u32::try_from(cqn).unwrap());
    driver.device.push_cqe(number, &Cqe::default());
    assert_eq!(next(&driver, comp).get("data.comp.cqn"), cqn);

    // The second does not fit.
    driver.device.push_cqe(number, &Cqe::default());
    let image = next(&driver, cq_error);
    assert_eq!(image.get("data.cq_err.cqn"), cqn);
    assert_eq!(image.get("data.cq_err.syndrome"), 1);

    let event_type = EventType(u8::try_from(access).unwrap());
    driver
        .device
        .raise(Eqe::about_qp(event_type, Qpn::truncate(0x12_3456)));
    let image = next(&driver, access);
    assert_eq!(image.get("data.qp_srq.qp_srq_n"), 0x12_3456);
    driver.device.raise(Eqe::empty(event_type, 7));
    assert_eq!(next(&driver, access).get("sub_type"), 7);
    let event_type = EventType(u8::try_from(limit).unwrap());
    driver
        .device
        .raise(Eqe::about_srq(event_type, Srqn::truncate(0x65_4321)));
    let image = next(&driver, limit);
    assert_eq!(image.get("data.qp_srq.qp_srq_n"), 0x65_4321);
}
