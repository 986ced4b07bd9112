// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Values against the bits of the kernel's headers: a field of a value is read from, and written
//! to, the place that the headers give the field of that name. `layout` compares the layouts; this
//! compares what is made of them.

use std::fmt::Debug;

use firmware_cmds::mkey::{
    CreateMkeyIn, CreateMkeyOut, DestroyMkeyIn, DestroyMkeyOut, QueryMkeyIn, QueryMkeyOut,
};
use firmware_cmds::umr::UmrCtrlSeg;
use firmware_cmds::wqe::{AtomicSeg, Av, BaseAv, CtrlSeg, DataSeg, RaddrSeg, SrqNextSeg, XrcSeg};
use firmware_cmds::{
    CmdStatus, Eqe, EventType, FaultToken, Klm, Ksm, Mkc, Mtt, Opcode, PageFault, PageFaultResume,
    Scheme, Stride, StrideBlock, Wire,
};
use ifc_oracle::{require_or_skip, Field, Layout, Oracle};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A struct of the headers over bytes.
struct Bits<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
}

impl<'a> Bits<'a> {
    const fn of(layout: &'a Layout, bytes: &'a [u8]) -> Self {
        Self { layout, bytes }
    }

    /// The field of that path.
    fn get(&self, path: &str) -> u64 {
        self.field(path).get(self.bytes)
    }

    fn field(&self, path: &str) -> &'a Field {
        self.layout
            .field(path)
            .unwrap_or_else(|| panic!("no {path}"))
    }

    /// The bytes of the field of that path.
    fn bytes_of(&self, path: &str) -> &'a [u8] {
        let field = self.field(path);
        let at = |bit: u64| usize::try_from(bit / 8).expect("an index");
        &self.bytes[at(field.offset)..at(field.end())]
    }

    fn is(&self, opcode: Opcode) -> bool {
        self.get("opcode") == u64::from(opcode.get())
    }

    fn flag(&self, path: &str) -> bool {
        self.get(path) != 0
    }
}

/// Runs `test` on many random buffers of `len` bytes, which start with `head`.
fn for_bytes(len: usize, head: &[u8], test: impl Fn(&[u8])) {
    let config = ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&vec(any::<u8>(), len), |mut bytes| {
            bytes[..head.len()].copy_from_slice(head);
            test(&bytes);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// `same` says whether a value is what a struct of the headers holds. It must be so for the bytes
/// that the value was read from, and for those it writes.
fn agrees<T: Wire + Debug>(
    oracle: &Oracle,
    header: &str,
    head: &[u8],
    same: impl Fn(&T, &Bits<'_>) -> bool,
) {
    let layout = oracle
        .layout(header)
        .unwrap_or_else(|error| panic!("{error}"));
    let len = usize::try_from(layout.bits / 8).expect("a length");
    // What a union has in the same place as a field that means something is none.
    let reserved: Vec<_> = layout
        .leaves()
        .filter(|field| field.is_reserved() && !field.path.ends_with("_at_10"))
        .filter(|field| field.bits <= 64 && field.end() <= 8 * T::LEN as u64)
        .filter(|field| {
            layout.leaves().all(|other| {
                other.is_reserved() || other.end() <= field.offset || field.end() <= other.offset
            })
        })
        .collect();
    let accepted = std::cell::Cell::new(0);
    for_bytes(len, head, |bytes| {
        let Ok(value) = T::parse(bytes) else {
            return;
        };
        accepted.set(accepted.get() + 1);
        assert!(same(&value, &Bits::of(&layout, bytes)), "read: {value:?}");
        let mut written = vec![0xa5; len];
        assert_eq!(value.emit(&mut written), Ok(()));
        let bits = Bits::of(&layout, &written);
        assert!(same(&value, &bits), "written: {value:?}");
        for field in &reserved {
            assert_eq!(bits.get(&field.path), 0, "{} is not zero", field.path);
        }
    });
    assert!(accepted.get() > 0, "{header}: nothing was accepted");
}

fn same_mkc(mkc: &Mkc, prefix: &str, bits: &Bits<'_>) -> bool {
    let get = |name: &str| bits.get(&format!("{prefix}{name}"));
    let flag = |name: &str| get(name) != 0;
    mkc.free == flag("free")
        && u64::from(mkc.access_mode.get()) == get("access_mode_4_2") << 2 | get("access_mode_1_0")
        && mkc.relaxed_ordering_write == flag("relaxed_ordering_write")
        && mkc.relaxed_ordering_read == flag("relaxed_ordering_read")
        && mkc.small_fence_on_rdma_read_response == flag("small_fence_on_rdma_read_response")
        && mkc.umr_en == flag("umr_en")
        && mkc.access.atomic == flag("a")
        && mkc.access.remote_write == flag("rw")
        && mkc.access.remote_read == flag("rr")
        && mkc.access.local_write == flag("lw")
        && mkc.access.local_read == flag("lr")
        && u64::from(mkc.ma_translation_mode.get()) == get("ma_translation_mode")
        && u64::from(mkc.qpn.get()) == get("qpn")
        && u64::from(mkc.variant.get()) == get("mkey_7_0")
        && mkc.length64 == flag("length64")
        && mkc.bsf_en == flag("bsf_en")
        && mkc.sync_umr == flag("sync_umr")
        && mkc.expected_sigerr_count == flag("expected_sigerr_count")
        && mkc.en_rinval == flag("en_rinval")
        && u64::from(mkc.pd.get()) == get("pd")
        && mkc.start_addr.get() == get("start_addr")
        && mkc.len == get("len")
        && u64::from(mkc.bsf_octword_size) == get("bsf_octword_size")
        && u64::from(mkc.crossing_target_vhca_id) == get("crossing_target_vhca_id")
        && u64::from(mkc.translations_octword_size) == get("translations_octword_size")
        && u64::from(mkc.log_page_size.get()) == get("log_page_size")
        && mkc.tph.enabled == flag("pcie_tph_en")
        && u64::from(mkc.tph.hint.get()) == get("pcie_tph_ph")
        && u64::from(mkc.tph.steering_tag_index) == get("pcie_tph_steering_tag_index")
}

#[test]
fn mkc() {
    let Some(oracle) = require_or_skip("mkc") else {
        return;
    };
    agrees::<Mkc>(&oracle, "mlx5_ifc_mkc_bits", &[], |mkc, bits| {
        same_mkc(mkc, "", bits)
    });
}

#[test]
fn mkey_commands() {
    let Some(oracle) = require_or_skip("mkey_commands") else {
        return;
    };
    let entry = "memory_key_mkey_entry.";
    let head = |command| [2, command, 0x12, 0x34, 0, 0, 0, 0];
    agrees::<CreateMkeyIn>(
        &oracle,
        "mlx5_ifc_create_mkey_in_bits",
        &head(0),
        |value, bits| {
            bits.is(Opcode::CreateMkey)
                && u64::from(value.uid) == bits.get("uid")
                && bits.get("op_mod") == 0
                && value.pg_access == bits.flag("pg_access")
                && value.mkey_umem_valid == bits.flag("mkey_umem_valid")
                && value.data_direct == bits.flag("data_direct")
                && same_mkc(&value.mkc, entry, bits)
                && u64::from(value.translations_octword_actual_size)
                    == bits.get("translations_octword_actual_size")
        },
    );
    agrees::<QueryMkeyIn>(
        &oracle,
        "mlx5_ifc_query_mkey_in_bits",
        &head(1),
        |value, bits| {
            // The header has no uid here; see `layout`.
            bits.is(Opcode::QueryMkey)
                && u64::from(value.uid) == bits.get("reserved_at_10")
                && u64::from(value.mkey_index.get()) == bits.get("mkey_index")
                && value.pg_access == bits.flag("pg_access")
        },
    );
    agrees::<DestroyMkeyIn>(
        &oracle,
        "mlx5_ifc_destroy_mkey_in_bits",
        &head(2),
        |value, bits| {
            bits.is(Opcode::DestroyMkey)
                && u64::from(value.uid) == bits.get("uid")
                && u64::from(value.mkey_index.get()) == bits.get("mkey_index")
        },
    );
    let head = [CmdStatus::BadRes.get()];
    agrees::<CreateMkeyOut>(
        &oracle,
        "mlx5_ifc_create_mkey_out_bits",
        &head,
        |value, bits| {
            u64::from(value.header.status.get()) == bits.get("status")
                && u64::from(value.header.syndrome) == bits.get("syndrome")
                && u64::from(value.mkey_index.get()) == bits.get("mkey_index")
        },
    );
    agrees::<DestroyMkeyOut>(
        &oracle,
        "mlx5_ifc_destroy_mkey_out_bits",
        &head,
        |value, bits| {
            u64::from(value.header.status.get()) == bits.get("status")
                && u64::from(value.header.syndrome) == bits.get("syndrome")
        },
    );
    agrees::<QueryMkeyOut>(
        &oracle,
        "mlx5_ifc_query_mkey_out_bits",
        &head,
        |value, bits| {
            u64::from(value.header.status.get()) == bits.get("status")
                && u64::from(value.header.syndrome) == bits.get("syndrome")
                && same_mkc(&value.mkc, entry, bits)
        },
    );
}

#[test]
fn translation_entries() {
    let Some(oracle) = require_or_skip("translation_entries") else {
        return;
    };
    agrees::<Mtt>(&oracle, "mlx5_ifc_mtt_bits", &[], |mtt, bits| {
        mtt.addr().get() == bits.get("ptag_63_32") << 32 | bits.get("ptag_31_8") << 8
            && mtt.access().read == bits.flag("rd_en")
            && mtt.access().write == bits.flag("wr_en")
    });
    agrees::<Klm>(&oracle, "mlx5_klm", &[], |klm, bits| {
        u64::from(klm.bcount) == bits.get("bcount")
            && u64::from(klm.key.get()) == bits.get("key")
            && klm.va.get() == bits.get("va")
    });
    agrees::<Ksm>(&oracle, "mlx5_ksm", &[], |ksm, bits| {
        u64::from(ksm.key.get()) == bits.get("key") && ksm.va.get() == bits.get("va")
    });
    let head = [0, 0, 0, 0x10, 0, 0, 4, 0];
    agrees::<StrideBlock>(
        &oracle,
        "mlx5_stride_block_ctrl_seg",
        &head,
        |block, bits| {
            u64::from(block.bcount_per_cycle) == bits.get("bcount_per_cycle")
                && u64::from(StrideBlock::OP) == bits.get("op")
                && u64::from(block.repeat_count) == bits.get("repeat_count")
                && u64::from(block.num_entries) == bits.get("num_entries")
        },
    );
    agrees::<Stride>(&oracle, "mlx5_stride_block_entry", &[], |stride, bits| {
        u64::from(stride.stride) == bits.get("stride")
            && u64::from(stride.bcount) == bits.get("bcount")
            && u64::from(stride.key.get()) == bits.get("key")
            && stride.va.get() == bits.get("va")
    });
}

/// The masks are those of ah.c:create_ib_ah.
fn same_base_av(av: &BaseAv, bits: &Bits<'_>) -> bool {
    av.key == bits.get("key.dc_key")
        && u64::from(av.extended) == bits.get("dqp_dct") >> 31
        && u64::from(av.dqp_dct.get()) == bits.get("dqp_dct") & 0xff_ffff
        && u64::from(av.stat_rate.get()) == bits.get("stat_rate_sl") >> 4
        && u64::from(av.sl.get()) == bits.get("stat_rate_sl") & 0xf
        && u64::from(av.fl_mlid) == bits.get("fl_mlid")
        && u64::from(av.rlid) == bits.get("rlid")
}

#[test]
fn segments() {
    let Some(oracle) = require_or_skip("segments") else {
        return;
    };
    agrees::<CtrlSeg>(&oracle, "mlx5_wqe_ctrl_seg", &[], |ctrl, bits| {
        let fm_ce_se =
            ctrl.fence.get() << 5 | ctrl.completion.get() << 2 | u8::from(ctrl.solicited) << 1;
        u64::from(ctrl.opmod) << 24 | u64::from(ctrl.wqe_index) << 8 | u64::from(ctrl.opcode.0)
            == bits.get("opmod_idx_opcode")
            && u64::from(ctrl.qpn.get()) == bits.get("qpn_ds") >> 8
            && u64::from(ctrl.ds.get()) == bits.get("qpn_ds") & 0x3f
            && u64::from(ctrl.signature) == bits.get("signature")
            && u64::from(fm_ce_se) == bits.get("fm_ce_se") & 0xee
            && u64::from(ctrl.imm) == bits.get("imm")
    });
    agrees::<XrcSeg>(&oracle, "mlx5_wqe_xrc_seg", &[], |xrc, bits| {
        u64::from(xrc.srqn.get()) == bits.get("xrc_srqn") & 0xff_ffff
    });
    agrees::<BaseAv>(&oracle, "mlx5_base_av", &[], same_base_av);
    agrees::<Av>(&oracle, "mlx5_av", &[], |av, bits| {
        let grh = &av.grh;
        let grh_gid_fl = u64::from(grh.present) << 30
            | u64::from(grh.sgid_index) << 20
            | u64::from(grh.flow_label.get());
        let rgid = bits.bytes_of("rgid");
        same_base_av(&av.base, bits)
            && bits.bytes_of("rmac") == av.rmac
            && u64::from(grh.tclass) == bits.get("tclass")
            && u64::from(grh.hop_limit) == bits.get("hop_limit")
            && grh_gid_fl == bits.get("grh_gid_fl") & 0x4fff_ffff
            && rgid == grh.rgid
    });
    agrees::<AtomicSeg>(&oracle, "mlx5_wqe_atomic_seg", &[], |atomic, bits| {
        atomic.swap_add == bits.get("swap_add") && atomic.compare == bits.get("compare")
    });
    agrees::<RaddrSeg>(&oracle, "mlx5_wqe_raddr_seg", &[], |segment, bits| {
        segment.raddr.get() == bits.get("raddr")
            && u64::from(segment.rkey.get()) == bits.get("rkey")
    });
    agrees::<DataSeg>(&oracle, "mlx5_wqe_data_seg", &[], |data, bits| {
        u64::from(data.byte_count.get()) == bits.get("byte_count")
            && u64::from(data.lkey.get()) == bits.get("lkey")
            && data.addr.get() == bits.get("addr")
    });
    agrees::<SrqNextSeg>(&oracle, "mlx5_wqe_srq_next_seg", &[], |next, bits| {
        u64::from(next.next_wqe_index) == bits.get("next_wqe_index")
            && u64::from(next.signature) == bits.get("signature")
    });
}

#[test]
fn umr_control_segment() {
    let Some(oracle) = require_or_skip("umr_control_segment") else {
        return;
    };
    let constant = |name: &str| {
        oracle
            .constant(name)
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let [offset_en, not_free, free, inline] = [
        constant("MLX5_UMR_TRANSLATION_OFFSET_EN"),
        constant("MLX5_UMR_CHECK_NOT_FREE"),
        constant("MLX5_UMR_CHECK_FREE"),
        constant("MLX5_UMR_INLINE"),
    ];
    let [mask_free, mask_pd] = [
        constant("MLX5_MKEY_MASK_FREE"),
        constant("MLX5_MKEY_MASK_PD"),
    ];
    // umr.c:mlx5r_umr_update_offset splits the offset so.
    agrees::<UmrCtrlSeg>(&oracle, "mlx5_wqe_umr_ctrl_seg", &[], |umr, bits| {
        let flags = bits.get("flags");
        umr.flags.translation_offset_en() == (flags & offset_en != 0)
            && umr.flags.check_not_free() == (flags & not_free != 0)
            && umr.flags.check_free() == (flags & free != 0)
            && umr.flags.inline() == (flags & inline != 0)
            && u64::from(umr.xlt_octowords) == bits.get("xlt_octowords")
            && umr.offset.get() & 0xffff == bits.get("xlt_offset")
            && umr.offset.get() >> 16 == bits.get("xlt_offset_47_16")
            && umr.mkey_mask.get() == bits.get("mkey_mask")
            && umr.mkey_mask.free() == (bits.get("mkey_mask") & mask_free != 0)
            && umr.mkey_mask.pd() == (bits.get("mkey_mask") & mask_pd != 0)
    });
}

/// What odp.c:mlx5_ib_eq_pf_process takes out of the event's fields.
fn same_fault(fault: &PageFault, bits: &Bits<'_>) -> bool {
    let get = |name: &str| bits.get(&format!("data.page_fault.{name}"));
    match fault {
        PageFault::Wqe(wqe) => {
            u64::from(wqe.kind.fault_type().get()) == get("wqe.pftype_wq") >> 24 & 7
                && u64::from(wqe.wq_number.get()) == get("wqe.pftype_wq") & 0xff_ffff
                && u64::from(wqe.token.get()) == get("wqe.token") & 0xff_ffff
                && u64::from(wqe.wqe_index) == get("wqe.wqe_index")
                && u64::from(wqe.bytes_committed) == get("wqe.bytes_committed")
                && u64::from(wqe.packet_length) == get("wqe.packet_length")
        }
        PageFault::Rdma(rdma) => {
            u64::from(rdma.fault_type.get()) == get("rdma.pftype_token") >> 24 & 7
                && u64::from(rdma.token.get()) == get("rdma.pftype_token") & 0xff_ffff
                && u64::from(rdma.r_key.get()) == get("rdma.r_key")
                && rdma.rdma_va.get() == get("rdma.rdma_va")
                && u64::from(rdma.rdma_op_len) == get("rdma.rdma_op_len")
                && u64::from(rdma.packet_length) == get("rdma.packet_length")
                && u64::from(rdma.bytes_committed) == get("rdma.bytes_committed")
        }
        PageFault::Memory(memory) => {
            memory.last == (get("memory.flags") & 0x80 != 0)
                && memory.token.get() == get("memory.token47_32") << 32 | get("memory.token31_0")
                && u64::from(memory.mkey.get()) == get("memory.mkey")
                && memory.va.get() == get("memory.va")
                && memory.demand_bytes() == (get("memory.demand_fault_pages") >> 12) * 4096
                && memory.pre_demand_bytes() == get("memory.pre_demand_fault_pages") * 4096
                && memory.post_demand_bytes() == get("memory.post_demand_fault_pages") * 4096
        }
    }
}

#[test]
fn page_faults() {
    let Some(oracle) = require_or_skip("page_faults") else {
        return;
    };
    let layout = oracle.layout("mlx5_eqe").expect("an EQE");
    for sub_type in 0..3 {
        for_bytes(64, &[0, EventType::PAGE_FAULT.0, 0, sub_type], |bytes| {
            let eqe = Eqe::parse(bytes).expect("any bytes are an EQE");
            let bits = Bits::of(&layout, bytes);
            assert_eq!(u64::from(eqe.sub_type), bits.get("sub_type"));
            assert_eq!(u64::from(eqe.signature), bits.get("signature"));
            assert_eq!(u64::from(eqe.owner), bits.get("owner") & 1);
            let Ok(fault) = PageFault::from_eqe(&eqe) else {
                assert!(sub_type == 0 && bits.get("data.page_fault.wqe.pftype_wq") >> 24 & 4 != 0);
                return;
            };
            assert!(same_fault(&fault, &bits), "read: {fault:?}");
            let mut bytes = vec![0xa5; 64];
            assert_eq!(fault.to_eqe(eqe.owner).emit(&mut bytes), Ok(()));
            let bits = Bits::of(&layout, &bytes);
            assert!(same_fault(&fault, &bits), "written: {fault:?}");
            assert_eq!(bits.get("type"), u64::from(EventType::PAGE_FAULT.0));
            assert_eq!(bits.get("sub_type"), u64::from(sub_type));
        });
    }
}

#[test]
fn page_fault_resume() {
    let Some(oracle) = require_or_skip("page_fault_resume") else {
        return;
    };
    let layout = oracle
        .layout("mlx5_ifc_page_fault_resume_in_bits")
        .expect("a command");
    let same = |resume: &PageFaultResume, bits: &Bits<'_>| {
        let trans = |name: &str| bits.get(&format!("page_fault_info.trans_page_fault_info.{name}"));
        let mem = |name: &str| bits.get(&format!("page_fault_info.mem_page_fault_info.{name}"));
        bits.is(Opcode::PageFaultResume)
            && match resume.fault {
                FaultToken::Transport {
                    fault_type,
                    wq_number,
                    token,
                } => {
                    u64::from(resume.error) == trans("error")
                        && u64::from(fault_type.get()) == trans("page_fault_type")
                        && u64::from(wq_number.get()) == trans("wq_number")
                        && u64::from(token.get()) == trans("fault_token")
                }
                FaultToken::Memory(token) => {
                    u64::from(resume.error) == mem("error")
                        && token.get() == mem("fault_token_47_32") << 32 | mem("fault_token_31_0")
                }
            }
    };
    for scheme in [Scheme::Transport, Scheme::Memory] {
        for_bytes(16, &[2, 4, 0, 0, 0, 0, 0, 0], |bytes| {
            let resume = PageFaultResume::parse(bytes, scheme).expect("the opcode is right");
            assert!(same(&resume, &Bits::of(&layout, bytes)), "read: {resume:?}");
            let written = resume.to_bytes();
            let bits = Bits::of(&layout, &written);
            assert!(same(&resume, &bits), "written: {resume:?}");
        });
    }
}
