// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What every layout of the crate is in the kernel's headers.

use firmware_cmds::cmd::EmptyOutLayout;
use firmware_cmds::eqe::EqeLayout;
use firmware_cmds::mkc::MkcLayout;
use firmware_cmds::mkey::{
    CreateMkeyInLayout, CreateMkeyOutLayout, DestroyMkeyInLayout, QueryMkeyInLayout,
    QueryMkeyOutLayout,
};
use firmware_cmds::page_fault::{MemoryFaultLayout, RdmaFaultLayout, WqeFaultLayout};
use firmware_cmds::resume::{MemResumeInLayout, TransResumeInLayout};
use firmware_cmds::umr::{MkeyMask, UmrCtrlSegLayout};
use firmware_cmds::wqe::{
    AtomicSegLayout, AvLayout, BaseAvLayout, CtrlSegLayout, DataSegLayout, InlineSegLayout,
    RaddrSegLayout, SrqNextSegLayout, XrcSegLayout,
};
use firmware_cmds::xlt::{KlmLayout, KsmLayout, MttLayout, StrideBlockLayout, StrideLayout};

use crate::table::Is::{Named, Over, Part, Struct, Within};
use crate::table::Mask::{Bits, Constant};
use crate::table::{table, Table};

/// Why the header of a command has a uid where the kernel's struct has nothing.
const UID: &str = "mlx5_core puts the uid there in every command that user space may issue";

/// Why CREATE_MKEY has a umem where the kernel's struct has nothing.
const UMEM: &str = "the kernel hands these on from user space as they are";

/// Bits of the mask that select nothing.
const UNKNOWN_MASK: u128 = (!MkeyMask::KNOWN) as u128;

/// Every layout.
pub(crate) fn all() -> Vec<Table> {
    [commands(), memory_keys(), events(), wqe_segments()]
        .into_iter()
        .flatten()
        .collect()
}

fn commands() -> Vec<Table> {
    vec![
        table!(CreateMkeyInLayout is "mlx5_ifc_create_mkey_in_bits" {
            header.opcode, header.uid, header.reserved_at_20, header.op_mod,
            reserved_at_40,
            flags.pg_access(), flags.mkey_umem_valid(), flags.data_direct(),
            memory_key_mkey_entry => Struct("mlx5_ifc_mkc_bits"),
            reserved_at_280,
            translations_octword_actual_size,
            mkey_umem_id => Within("reserved_at_320", UMEM),
            mkey_umem_offset => Within("reserved_at_320", UMEM),
            reserved_at_380 => Within("reserved_at_320", UMEM),
        } unused ["klm_pas_mtt"];),
        table!(CreateMkeyOutLayout is "mlx5_ifc_create_mkey_out_bits" {
            header.status, header.reserved_at_8, header.syndrome,
            mkey.mkey_index(),
            reserved_at_60,
        }),
        table!(QueryMkeyInLayout is "mlx5_ifc_query_mkey_in_bits" {
            header.opcode, header.uid => Over("reserved_at_10", UID),
            header.reserved_at_20, header.op_mod,
            mkey.mkey_index(),
            flags.pg_access(),
        }),
        table!(QueryMkeyOutLayout is "mlx5_ifc_query_mkey_out_bits" {
            header.status, header.reserved_at_8, header.syndrome,
            reserved_at_40,
            memory_key_mkey_entry => Struct("mlx5_ifc_mkc_bits"),
            reserved_at_280,
        } unused ["bsf0_klm0_pas_mtt0_1", "bsf1_klm1_pas_mtt2_3"];),
        table!(DestroyMkeyInLayout is "mlx5_ifc_destroy_mkey_in_bits" {
            header.opcode, header.uid, header.reserved_at_20, header.op_mod,
            mkey.mkey_index(),
            reserved_at_60,
        }),
        table!(EmptyOutLayout is "mlx5_ifc_destroy_mkey_out_bits" {
            header.status, header.reserved_at_8, header.syndrome,
            reserved_at_40,
        }),
        table!(EmptyOutLayout is "mlx5_ifc_page_fault_resume_out_bits" {
            header.status, header.reserved_at_8, header.syndrome,
            reserved_at_40,
        }),
        table!(TransResumeInLayout is "mlx5_ifc_page_fault_resume_in_bits"
            within "page_fault_info.trans_page_fault_info." {
            header.opcode, header.uid => Over("reserved_at_10", UID),
            header.reserved_at_20, header.op_mod,
            fault.error(), fault.page_fault_type(), fault.wq_number(),
            token.fault_token(),
        } unused ["page_fault_info.mem_page_fault_info"];),
        table!(MemResumeInLayout is "mlx5_ifc_page_fault_resume_in_bits"
            within "page_fault_info.mem_page_fault_info." {
            header.opcode, header.uid => Over("reserved_at_10", UID),
            header.reserved_at_20, header.op_mod,
            fault.error(), fault.fault_token_47_32(),
            fault_token_31_0,
        } unused ["page_fault_info.trans_page_fault_info"];),
    ]
}

fn memory_keys() -> Vec<Table> {
    vec![
        table!(MkcLayout is "mlx5_ifc_mkc_bits" {
            flags.free(), flags.access_mode_4_2(), flags.relaxed_ordering_write(),
            flags.small_fence_on_rdma_read_response(), flags.umr_en(),
            flags.a(), flags.rw(), flags.rr(), flags.lw(), flags.lr(),
            flags.access_mode_1_0(), flags.ma_translation_mode(),
            qpn_mkey.qpn(), qpn_mkey.mkey_7_0(),
            reserved_at_40,
            flags_pd.length64(), flags_pd.bsf_en(), flags_pd.sync_umr(),
            flags_pd.expected_sigerr_count(), flags_pd.en_rinval(), flags_pd.pd(),
            start_addr, len, bsf_octword_size,
            reserved_at_120,
            crossing_target_vhca_id,
            reserved_at_190,
            translations_octword_size,
            page.relaxed_ordering_read(), page.log_page_size(),
            tph.pcie_tph_en(), tph.pcie_tph_ph(), tph.pcie_tph_steering_tag_index(),
        }),
        // The same 64 bytes as umr.c declares them. This struct gives bytes, no bits, so the bits
        // are those of the table above.
        table!(MkcLayout is "mlx5_mkey_seg" {
            flags.free() => Part("status", Bits(0x40, "comment in device.h")),
            flags.access_mode_4_2() => Part("status", Bits(0x1c, "mlx5_ifc_mkc_bits")),
            flags.relaxed_ordering_write() => Part("pcie_control", Constant("MLX5_PCIE_CTRL_RELAXED_ORDERING")),
            flags.small_fence_on_rdma_read_response() => Part("pcie_control", Constant("MLX5_PCIE_CTRL_SMALL_FENCE")),
            flags.umr_en() => Part("flags", Constant("MLX5_PERM_UMR_EN")),
            flags.a() => Part("flags", Constant("MLX5_PERM_ATOMIC")),
            flags.rw() => Part("flags", Constant("MLX5_PERM_REMOTE_WRITE")),
            flags.rr() => Part("flags", Constant("MLX5_PERM_REMOTE_READ")),
            flags.lw() => Part("flags", Constant("MLX5_PERM_LOCAL_WRITE")),
            flags.lr() => Part("flags", Constant("MLX5_PERM_LOCAL_READ")),
            flags.access_mode_1_0() => Part("flags", Bits(0x03, "mlx5_ifc_mkc_bits")),
            flags.ma_translation_mode() => Part("version", Bits(0x30, "mlx5_ifc_mkc_bits")),
            qpn_mkey.qpn() => Part("qpn_mkey7_0", Bits(0xffff_ff00, "its name")),
            qpn_mkey.mkey_7_0() => Part("qpn_mkey7_0", Bits(0xff, "its name")),
            reserved_at_40 => Named("rsvd1"),
            flags_pd.length64() => Part("flags_pd", Bits(1 << 31, "mlx5_ifc_mkc_bits")),
            flags_pd.bsf_en() => Part("flags_pd", Bits(1 << 30, "mlx5_ifc_mkc_bits")),
            flags_pd.sync_umr() => Part("flags_pd", Bits(1 << 29, "mlx5_ifc_mkc_bits")),
            flags_pd.expected_sigerr_count() => Part("flags_pd", Bits(1 << 26, "mlx5_ifc_mkc_bits")),
            flags_pd.en_rinval() => Part("flags_pd", Bits(1 << 24, "mlx5_ifc_mkc_bits")),
            flags_pd.pd() => Part("flags_pd", Bits(0x00ff_ffff, "mlx5_ifc_mkc_bits")),
            start_addr, len, bsf_octword_size => Named("bsfs_octo_size"),
            reserved_at_120 => Part("rsvd2", Bits(u128::MAX << 32, "mlx5_ifc_mkc_bits")),
            crossing_target_vhca_id => Part("rsvd2", Bits(0xffff << 16, "mlx5_ifc_mkc_bits")),
            reserved_at_190 => Part("rsvd2", Bits(0xffff, "mlx5_ifc_mkc_bits")),
            translations_octword_size => Named("xlt_oct_size"),
            page.relaxed_ordering_read() => Part("log2_page_size", Bits(0x40, "mlx5_ifc_mkc_bits")),
            page.log_page_size() => Part("log2_page_size", Bits(0x3f, "mlx5_ifc_mkc_bits")),
            tph.pcie_tph_en() => Part("rsvd4", Bits(1 << 26, "mlx5_ifc_mkc_bits")),
            tph.pcie_tph_ph() => Part("rsvd4", Bits(3 << 24, "mlx5_ifc_mkc_bits")),
            tph.pcie_tph_steering_tag_index() => Part("rsvd4", Bits(0xff << 16, "mlx5_ifc_mkc_bits")),
        } partly [
            ("status", 0xa3), ("pcie_control", 0xfa), ("version", 0xcf),
            ("flags_pd", 0x1a00_0000), ("log2_page_size", 0x80),
        ];),
        table!(MttLayout is "mlx5_ifc_mtt_bits" {
            ptag_63_32(), ptag_31_8(), wr_en(), rd_en(),
        }),
        table!(MttLayout is "mlx5_mtt" {
            ptag_63_32() => Part("ptag", Bits(0xffff_ffff << 32, "mlx5_ifc_mtt_bits")),
            ptag_31_8() => Part("ptag", Bits(0xffff_ff00, "mlx5_ifc_mtt_bits")),
            wr_en() => Part("ptag", Constant("MLX5_EN_WR")),
            rd_en() => Part("ptag", Constant("MLX5_EN_RD")),
        } partly [("ptag", 0xfc)];),
        table!(KlmLayout is "mlx5_klm" { bcount, key, va }),
        table!(KsmLayout is "mlx5_ksm" { reserved, key, va }),
        table!(StrideBlockLayout is "mlx5_stride_block_ctrl_seg" {
            bcount_per_cycle, op, repeat_count, rsvd, num_entries,
        }),
        table!(StrideLayout is "mlx5_stride_block_entry" { stride, bcount, key, va }),
    ]
}

fn events() -> Vec<Table> {
    vec![
        table!(EqeLayout is "mlx5_eqe" {
            rsvd0, event_type => Named("type"), rsvd1, sub_type, rsvd2,
            data => Struct("ev_data"),
            rsvd3, signature,
            owner.owner() => Part("owner", Bits(1, "eq.c:mlx5_eq_get_eqe")),
        } partly [("owner", 0xfe)];),
        table!(WqeFaultLayout is "mlx5_eqe_page_fault" within "wqe." {
            bytes_committed, reserved1, wqe_index, reserved2, packet_length, token, reserved4,
            pftype_wq.pftype() => Part("pftype_wq", Bits(7 << 24, "odp.c:mlx5_ib_eq_pf_process")),
            pftype_wq.wq() => Part("pftype_wq", Constant("MLX5_24BIT_MASK")),
        } unused ["rdma", "memory"]; partly [("pftype_wq", 0xf8 << 24)];),
        table!(RdmaFaultLayout is "mlx5_eqe_page_fault" within "rdma." {
            bytes_committed, r_key, reserved1, packet_length, rdma_op_len, rdma_va,
            pftype_token.pftype() => Part("pftype_token", Bits(7 << 24, "mlx5_ifc_trans_page_fault_info_bits")),
            pftype_token.token() => Part("pftype_token", Constant("MLX5_24BIT_MASK")),
        } unused ["wqe", "memory"]; partly [("pftype_token", 0xf8 << 24)];),
        table!(MemoryFaultLayout is "mlx5_eqe_page_fault" within "memory." {
            flags.last() => Part("flags", Bits(0x80, "odp.c:MLX5_MEMORY_PAGE_FAULT_FLAGS_LAST")),
            reserved1, post_demand_fault_pages, pre_demand_fault_pages, token47_32, token31_0,
            demand_fault_pages.pages() => Part("demand_fault_pages", Bits(0xffff_f000, "comment in device.h")),
            mkey, va,
        } unused ["wqe", "rdma"];
          partly [("flags", 0x7f), ("demand_fault_pages", 0xfff)];),
    ]
}

fn wqe_segments() -> Vec<Table> {
    vec![
        table!(CtrlSegLayout is "mlx5_wqe_ctrl_seg" {
            opmod_idx_opcode.opmod() => Part("opmod_idx_opcode", Bits(0xff << 24, "its name")),
            opmod_idx_opcode.wqe_index() => Part("opmod_idx_opcode", Constant("MLX5_WQE_CTRL_WQE_INDEX_MASK")),
            opmod_idx_opcode.opcode() => Part("opmod_idx_opcode", Constant("MLX5_WQE_CTRL_OPCODE_MASK")),
            qpn_ds.qpn() => Part("qpn_ds", Constant("MLX5_WQE_CTRL_QPN_MASK")),
            qpn_ds.ds() => Part("qpn_ds", Constant("MLX5_WQE_CTRL_DS_MASK")),
            signature, rsvd,
            fm_ce_se.fm() => Part("fm_ce_se", Bits(0xe0, "MLX5_FENCE_MODE_*")),
            fm_ce_se.ce() => Part("fm_ce_se", Constant("MLX5_WQE_CTRL_CQ_UPDATE_AND_EQE")),
            fm_ce_se.se() => Part("fm_ce_se", Constant("MLX5_WQE_CTRL_SOLICITED")),
            imm,
        } unused ["general_id", "umr_mkey", "tis_tir_num"];
          partly [("qpn_ds", 0xc0), ("fm_ce_se", 0x11)];),
        table!(XrcSegLayout is "mlx5_wqe_xrc_seg" {
            xrc_srqn.xrc_srqn() => Part("xrc_srqn", Bits(0x00ff_ffff, "an SRQ's number")),
            rsvd,
        } partly [("xrc_srqn", 0xff << 24)];),
        table!(BaseAvLayout is "mlx5_base_av" {
            key => Named("key.dc_key"),
            dqp_dct.extended() => Part("dqp_dct", Constant("MLX5_EXTENDED_UD_AV")),
            dqp_dct.dqp_dct() => Part("dqp_dct", Bits(0x00ff_ffff, "a QP's number")),
            stat_rate_sl.stat_rate() => Part("stat_rate_sl", Bits(0xf0, "ah.c:create_ib_ah")),
            stat_rate_sl.sl() => Part("stat_rate_sl", Bits(0x0f, "ah.c:create_ib_ah")),
            fl_mlid, rlid,
        } unused ["key.qkey", "udp_sport"]; partly [("dqp_dct", 0x7f << 24)];),
        table!(AvLayout is "mlx5_av" {
            base.key => Named("key.dc_key"),
            base.dqp_dct.extended() => Part("dqp_dct", Constant("MLX5_EXTENDED_UD_AV")),
            base.dqp_dct.dqp_dct() => Part("dqp_dct", Bits(0x00ff_ffff, "a QP's number")),
            base.stat_rate_sl.stat_rate() => Part("stat_rate_sl", Bits(0xf0, "ah.c:create_ib_ah")),
            base.stat_rate_sl.sl() => Part("stat_rate_sl", Bits(0x0f, "ah.c:create_ib_ah")),
            base.fl_mlid, base.rlid,
            reserved0, rmac, tclass, hop_limit,
            grh_gid_fl.grh() => Part("grh_gid_fl", Bits(1 << 30, "ah.c:create_ib_ah")),
            grh_gid_fl.sgid_index() => Part("grh_gid_fl", Bits(0xff << 20, "ah.c:create_ib_ah")),
            grh_gid_fl.flow_label() => Part("grh_gid_fl", Bits(0x000f_ffff, "ah.c:create_ib_ah")),
            rgid,
        } unused ["key.qkey", "udp_sport"];
          partly [("dqp_dct", 0x7f << 24), ("grh_gid_fl", 0xb << 28)];),
        table!(RaddrSegLayout is "mlx5_wqe_raddr_seg" { raddr, rkey, reserved }),
        table!(AtomicSegLayout is "mlx5_wqe_atomic_seg" { swap_add, compare }),
        table!(DataSegLayout is "mlx5_wqe_data_seg" {
            byte_count.inline() => Part("byte_count", Constant("MLX5_INLINE_SEG")),
            byte_count.byte_count() => Part("byte_count", Bits(0x7fff_ffff, "the rest")),
            lkey, addr,
        }),
        table!(InlineSegLayout is "mlx5_wqe_inline_seg" {
            byte_count.inline() => Part("byte_count", Constant("MLX5_INLINE_SEG")),
            byte_count.byte_count() => Part("byte_count", Constant("MLX5_WQE_INLINE_SEG_BYTE_COUNT_MASK")),
        } unused ["data"]; partly [("byte_count", 0x7fff_fc00)];),
        table!(SrqNextSegLayout is "mlx5_wqe_srq_next_seg" {
            rsvd0, next_wqe_index, signature, rsvd1,
        }),
        table!(UmrCtrlSegLayout is "mlx5_wqe_umr_ctrl_seg" {
            flags.check_qpn() => Part("flags", Bits(1 << 3, "rdma-core, mlx5dv.h:MLX5_WQE_UMR_CTRL_FLAG_CHECK_QPN")),
            flags.translation_offset_en() => Part("flags", Constant("MLX5_UMR_TRANSLATION_OFFSET_EN")),
            flags.check_not_free() => Part("flags", Constant("MLX5_UMR_CHECK_NOT_FREE")),
            flags.check_free() => Part("flags", Constant("MLX5_UMR_CHECK_FREE")),
            flags.inline() => Part("flags", Constant("MLX5_UMR_INLINE")),
            rsvd0, xlt_octowords, xlt_offset,
            mkey_mask.len() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_LEN")),
            mkey_mask.page_size() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_PAGE_SIZE")),
            mkey_mask.start_addr() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_START_ADDR")),
            mkey_mask.pd() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_PD")),
            mkey_mask.en_rinval() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_EN_RINVAL")),
            mkey_mask.en_sigerr() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_EN_SIGERR")),
            mkey_mask.bsf_en() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_BSF_EN")),
            mkey_mask.key() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_KEY")),
            mkey_mask.qpn() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_QPN")),
            mkey_mask.lr() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_LR")),
            mkey_mask.lw() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_LW")),
            mkey_mask.rr() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_RR")),
            mkey_mask.rw() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_RW")),
            mkey_mask.a() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_A")),
            mkey_mask.small_fence() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_SMALL_FENCE")),
            mkey_mask.relaxed_ordering_write() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_RELAXED_ORDERING_WRITE")),
            mkey_mask.free() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_FREE")),
            mkey_mask.page_size_5() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_PAGE_SIZE_5")),
            mkey_mask.relaxed_ordering_read() => Part("mkey_mask", Constant("MLX5_MKEY_MASK_RELAXED_ORDERING_READ")),
            xlt_offset_47_16, rsvd1,
        } unused ["bsf_octowords"];
          partly [("flags", 0x07), ("mkey_mask", UNKNOWN_MASK)];),
    ]
}
