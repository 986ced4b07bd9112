// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Fields of firmware structures by bit offset and width, as `mlx5_ifc.h` lays them out.

/// A field of a big-endian structure. Bit 0 is the most significant bit of byte 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// First bit.
    pub bit: usize,
    /// Number of bits, at most 64.
    pub width: usize,
}

impl Field {
    /// A field of `width` bits from `bit` on.
    #[must_use]
    pub const fn new(bit: usize, width: usize) -> Self {
        assert!(width >= 1 && width <= 64);
        Self { bit, width }
    }

    /// Its value in a structure. What lies beyond the end of `bytes` reads as 0.
    #[must_use]
    pub fn get(self, bytes: &[u8]) -> u64 {
        let end = self.bit + self.width;
        // Up to 9 bytes hold the field.
        let mut value = 0_u128;
        for at in self.bit / 8..end.div_ceil(8) {
            value = value << 8 | u128::from(bytes.get(at).copied().unwrap_or(0));
        }
        let mask = u64::MAX >> (64 - self.width);
        let low = value >> (end.next_multiple_of(8) - end) & u128::from(mask);
        u64::try_from(low).unwrap_or(mask)
    }

    /// Its value where it is known to fit 32 bits.
    ///
    /// # Panics
    ///
    /// If the field is wider than 32 bits.
    #[must_use]
    pub fn get32(self, bytes: &[u8]) -> u32 {
        assert!(self.width <= 32);
        u32::try_from(self.get(bytes)).unwrap_or(u32::MAX)
    }

    /// Whether its value is not 0.
    #[must_use]
    pub fn is_set(self, bytes: &[u8]) -> bool {
        self.get(bytes) != 0
    }

    /// Stores a value.
    ///
    /// # Panics
    ///
    /// If the field lies beyond the end of `bytes` or the value does not fit: both are
    /// decided by the model, never by the guest.
    pub fn set(self, bytes: &mut [u8], value: u64) {
        assert!(
            self.width == 64 || value >> self.width == 0,
            "{value:#x} does not fit {} bits",
            self.width
        );
        for (i, bit) in (self.bit..self.bit + self.width).rev().enumerate() {
            let mask = 1 << (7 - bit % 8);
            if value >> i & 1 == 1 {
                bytes[bit / 8] |= mask;
            } else {
                bytes[bit / 8] &= !mask;
            }
        }
    }
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $layout:ident { $(
        $(#[$field_doc:meta])* $name:ident $path:literal @ $bit:literal, $width:literal;
    )* })*) => {
        $(
            $(#[$doc])*
            pub mod $layout {
                use $crate::ifc::Field;
                $(
                    #[doc = concat!("`", $path, "`.")]
                    $(#[doc = ""] #[$field_doc])*
                    pub const $name: Field = Field::new($bit, $width);
                )*
            }
        )*

        /// Every field of this module: structure, path within it, place. For the test
        /// that compares them with the kernel's header.
        pub const LAYOUTS: &[(&str, &[(&str, $crate::ifc::Field)])] = &[
            $((stringify!($layout), &[$(($path, $layout::$name),)*]),)*
        ];
    };
}
pub(crate) use layouts;

/// The field with this name, `STRUCTURE.FIELD`.
#[must_use]
pub fn find(name: &str) -> Option<Field> {
    let (structure, path) = name.split_once('.')?;
    let mut layouts = LAYOUTS.iter();
    let (_, fields) = layouts.find(|(layout, _)| *layout == structure)?;
    let mut fields = fields.iter();
    fields
        .find(|(field, _)| *field == path)
        .map(|&(_, field)| field)
}

layouts! {
    /// General capabilities.
    cmd_hca_cap {
        PAGE_REQUEST_DISABLE "page_request_disable" @ 0x6, 1;
        LOG_MAX_SRQ_SZ "log_max_srq_sz" @ 0x80, 8;
        LOG_MAX_QP_SZ "log_max_qp_sz" @ 0x88, 8;
        LOG_MAX_QP "log_max_qp" @ 0x9b, 5;
        LOG_MAX_SRQ "log_max_srq" @ 0xab, 5;
        LOG_MAX_CQ_SZ "log_max_cq_sz" @ 0xc8, 8;
        LOG_MAX_CQ "log_max_cq" @ 0xdb, 5;
        LOG_MAX_EQ_SZ "log_max_eq_sz" @ 0xe0, 8;
        LOG_MAX_MKEY "log_max_mkey" @ 0xea, 6;
        LOG_MAX_EQ "log_max_eq" @ 0xfc, 4;
        MAX_INDIRECTION "max_indirection" @ 0x100, 8;
        FIXED_BUFFER_SIZE "fixed_buffer_size" @ 0x108, 1;
        UMR_EXTENDED_TRANSLATION_OFFSET "umr_extended_translation_offset" @ 0x118, 1;
        NULL_MKEY "null_mkey" @ 0x119, 1;
        LOG_MAX_KLM_LIST_SIZE "log_max_klm_list_size" @ 0x11a, 6;
        LOG_MAX_RA_REQ_DC "log_max_ra_req_dc" @ 0x12a, 6;
        LOG_MAX_RA_RES_DC "log_max_ra_res_dc" @ 0x13a, 6;
        LOG_MAX_RA_REQ_QP "log_max_ra_req_qp" @ 0x14a, 6;
        LOG_MAX_RA_RES_QP "log_max_ra_res_qp" @ 0x15a, 6;
        GID_TABLE_SIZE "gid_table_size" @ 0x170, 16;
        VPORT_COUNTERS "vport_counters" @ 0x181, 1;
        PKEY_TABLE_SIZE "pkey_table_size" @ 0x190, 16;
        IB_VIRT "ib_virt" @ 0x1a2, 1;
        LOCAL_CA_ACK_DELAY "local_ca_ack_delay" @ 0x1ab, 5;
        PORT_TYPE "port_type" @ 0x1b6, 2;
        NUM_PORTS "num_ports" @ 0x1b8, 8;
        LOG_MAX_MSG "log_max_msg" @ 0x1c3, 5;
        STAT_RATE_SUPPORT "stat_rate_support" @ 0x1e0, 16;
        CQE_VERSION "cqe_version" @ 0x1fc, 4;
        CMDIF_CHECKSUM "cmdif_checksum" @ 0x210, 2;
        DCT "dct" @ 0x21a, 1;
        ATOMIC "atomic" @ 0x21e, 1;
        CQ_RESIZE "cq_resize" @ 0x221, 1;
        PG "pg" @ 0x227, 1;
        BLOCK_LB_MC "block_lb_mc" @ 0x228, 1;
        IMAICL "imaicl" @ 0x231, 1;
        XRC "xrc" @ 0x23c, 1;
        UD "ud" @ 0x23d, 1;
        UC "uc" @ 0x23e, 1;
        RC "rc" @ 0x23f, 1;
        LOG_PG_SZ "log_pg_sz" @ 0x258, 8;
        LOG_BF_REG_SIZE "log_bf_reg_size" @ 0x26b, 5;
        MAX_WQE_SZ_SQ "max_wqe_sz_sq" @ 0x290, 16;
        MAX_WQE_SZ_RQ "max_wqe_sz_rq" @ 0x2b0, 16;
        MAX_WQE_SZ_SQ_DC "max_wqe_sz_sq_dc" @ 0x2d0, 16;
        MAX_QP_MCG "max_qp_mcg" @ 0x2e7, 25;
        LOG_MAX_MCG "log_max_mcg" @ 0x318, 8;
        LOG_MAX_TRANSPORT_DOMAIN "log_max_transport_domain" @ 0x323, 5;
        LOG_MAX_PD "log_max_pd" @ 0x32b, 5;
        LOG_MAX_XRCD "log_max_xrcd" @ 0x33b, 5;
        LOG_MAX_RMP "log_max_rmp" @ 0x383, 5;
        GENERAL_OBJ_TYPES "general_obj_types" @ 0x400, 64;
        LOG_MAX_UCTX "log_max_uctx" @ 0x463, 5;
        LOG_MAX_UMEM "log_max_umem" @ 0x46b, 5;
        MAX_NUM_EQS "max_num_eqs" @ 0x470, 16;
        LOG_UAR_PAGE_SZ "log_uar_page_sz" @ 0x490, 16;
        DEVICE_FREQUENCY_KHZ "device_frequency_khz" @ 0x4e0, 32;
        NUM_OF_UARS_PER_PAGE "num_of_uars_per_page" @ 0x520, 32;
        LOG_MAX_DCI_STREAM_CHANNELS "log_max_dci_stream_channels" @ 0x58b, 5;
        CQE_128_ALWAYS "cqe_128_always" @ 0x5bd, 1;
    }

    /// Capabilities of atomic operations.
    atomic_caps {
        REQ_8B_ENDIANNESS_MODE "atomic_req_8B_endianness_mode" @ 0x40, 2;
        SUPPORTED_REQ_8B_ENDIANNESS_MODE_1 "supported_atomic_req_8B_endianness_mode_1" @ 0x46, 1;
        OPERATIONS "atomic_operations" @ 0x90, 16;
        SIZE_QP "atomic_size_qp" @ 0xb0, 16;
    }

    /// Capabilities of On-Demand Paging.
    odp_cap {
        TRANSPORT_RC "transport_page_fault_scheme_cap.rc_odp_caps" @ 0x80, 32;
        TRANSPORT_UD "transport_page_fault_scheme_cap.ud_odp_caps" @ 0xc0, 32;
        TRANSPORT_XRC "transport_page_fault_scheme_cap.xrc_odp_caps" @ 0xe0, 32;
        TRANSPORT_DC "transport_page_fault_scheme_cap.dc_odp_caps" @ 0x100, 32;
        MEMORY_PAGE_PREFETCH "memory_page_fault_scheme_cap.page_prefetch" @ 0x245, 1;
        MEMORY_RC "memory_page_fault_scheme_cap.rc_odp_caps" @ 0x280, 32;
        MEMORY_UD "memory_page_fault_scheme_cap.ud_odp_caps" @ 0x2c0, 32;
        MEMORY_XRC "memory_page_fault_scheme_cap.xrc_odp_caps" @ 0x2e0, 32;
        MEMORY_DC "memory_page_fault_scheme_cap.dc_odp_caps" @ 0x300, 32;
        MEM_PAGE_FAULT "mem_page_fault" @ 0x600, 1;
    }

    /// Answer of QUERY_ISSI.
    query_issi_out {
        CURRENT_ISSI "current_issi" @ 0x50, 16;
        SUPPORTED_ISSI_DW0 "supported_issi_dw0" @ 0x360, 32;
    }

    /// Answer of QUERY_ADAPTER.
    query_adapter_out {
        IEEE_VENDOR_ID "query_adapter_struct.ieee_vendor_id" @ 0x148, 24;
    }

    /// Answer of QUERY_SPECIAL_CONTEXTS.
    query_special_contexts_out {
        NULL_MKEY "null_mkey" @ 0x80, 32;
        TERMINATE_SCATTER_LIST_MKEY "terminate_scatter_list_mkey" @ 0xa0, 32;
    }

    /// Request of ACCESS_REG.
    access_register_in {
        REGISTER_ID "register_id" @ 0x50, 16;
    }

    /// Port type and speed register.
    ptys_reg {
        IB_LINK_WIDTH_CAPABILITY "ib_link_width_capability" @ 0x80, 16;
        IB_PROTO_CAPABILITY "ib_proto_capability" @ 0x90, 16;
        IB_LINK_WIDTH_ADMIN "ib_link_width_admin" @ 0xe0, 16;
        IB_PROTO_ADMIN "ib_proto_admin" @ 0xf0, 16;
        IB_LINK_WIDTH_OPER "ib_link_width_oper" @ 0x140, 16;
        IB_PROTO_OPER "ib_proto_oper" @ 0x150, 16;
    }

    /// Port MTU register.
    pmtu_reg {
        MAX_MTU "max_mtu" @ 0x20, 16;
        ADMIN_MTU "admin_mtu" @ 0x40, 16;
        OPER_MTU "oper_mtu" @ 0x60, 16;
    }

    /// Port virtual lanes register.
    pvlc_reg {
        VL_HW_CAP "vl_hw_cap" @ 0x3c, 4;
        VL_ADMIN "vl_admin" @ 0x5c, 4;
        VL_OPERATIONAL "vl_operational" @ 0x7c, 4;
    }

    /// Port as a virtual port sees it.
    hca_vport_context {
        FIELD_SELECT "field_select" @ 0x0, 32;
        PORT_PHYSICAL_STATE "port_physical_state" @ 0x110, 4;
        PORT_STATE "port_state" @ 0x118, 4;
        VPORT_STATE "vport_state" @ 0x11c, 4;
        SYSTEM_IMAGE_GUID "system_image_guid" @ 0x140, 64;
        PORT_GUID "port_guid" @ 0x180, 64;
        NODE_GUID "node_guid" @ 0x1c0, 64;
        CAP_MASK1 "cap_mask1" @ 0x200, 32;
        CAP_MASK1_FIELD_SELECT "cap_mask1_field_select" @ 0x220, 32;
        LID "lid" @ 0x300, 16;
        SUBNET_TIMEOUT "subnet_timeout" @ 0x31b, 5;
        SM_LID "sm_lid" @ 0x320, 16;
    }

    /// Requests about the virtual port.
    query_hca_vport_context_in {
        OTHER_VPORT "other_vport" @ 0x40, 1;
    }

    /// Request of QUERY_HCA_VPORT_GID.
    query_hca_vport_gid_in {
        GID_INDEX "gid_index" @ 0x70, 16;
    }

    /// Answer of QUERY_HCA_VPORT_GID.
    query_hca_vport_gid_out {
        GIDS_NUM "gids_num" @ 0x60, 16;
    }

    /// Request of QUERY_HCA_VPORT_PKEY.
    query_hca_vport_pkey_in {
        PKEY_INDEX "pkey_index" @ 0x70, 16;
    }

    /// Answer of QUERY_HCA_VPORT_PKEY.
    query_hca_vport_pkey_out {
        PKEY "pkey.pkey" @ 0x90, 16;
    }

    /// Event queue context.
    eqc {
        STATUS "status" @ 0x0, 4;
        OI "oi" @ 0xe, 1;
        ST "st" @ 0x14, 4;
        PAGE_OFFSET "page_offset" @ 0x54, 6;
        LOG_EQ_SIZE "log_eq_size" @ 0x63, 5;
        UAR_PAGE "uar_page" @ 0x68, 24;
        INTR "intr" @ 0xb4, 12;
        LOG_PAGE_SIZE "log_page_size" @ 0xc3, 5;
        CONSUMER_COUNTER "consumer_counter" @ 0x148, 24;
        PRODUCER_COUNTER "producer_counter" @ 0x168, 24;
    }

    /// Completion queue context.
    cqc {
        STATUS "status" @ 0x0, 4;
        DBR_UMEM_VALID "dbr_umem_valid" @ 0x6, 1;
        CQE_SZ "cqe_sz" @ 0x8, 3;
        OI "oi" @ 0xe, 1;
        ST "st" @ 0x14, 4;
        PAGE_OFFSET "page_offset" @ 0x54, 6;
        LOG_CQ_SIZE "log_cq_size" @ 0x63, 5;
        UAR_PAGE "uar_page" @ 0x68, 24;
        CQ_PERIOD "cq_period" @ 0x84, 12;
        CQ_MAX_COUNT "cq_max_count" @ 0x90, 16;
        C_EQN "c_eqn_or_apu_element" @ 0xa0, 32;
        LOG_PAGE_SIZE "log_page_size" @ 0xc3, 5;
        PRODUCER_COUNTER "producer_counter" @ 0x168, 24;
        DBR_ADDR "dbr_addr" @ 0x1c0, 64;
    }

    /// Requests of CREATE_CQ, and of MODIFY_CQ in the same place.
    create_cq_in {
        CQ_UMEM_VALID "cq_umem_valid" @ 0x2e0, 1;
    }

    /// Request of CREATE_QP.
    create_qp_in {
        WQ_UMEM_OFFSET "wq_umem_offset" @ 0x800, 64;
        WQ_UMEM_ID "wq_umem_id" @ 0x840, 32;
        WQ_UMEM_VALID "wq_umem_valid" @ 0x860, 1;
    }

    /// Request of CREATE_XRC_SRQ.
    create_xrc_srq_in {
        XRC_SRQ_UMEM_VALID "xrc_srq_umem_valid" @ 0x2e0, 1;
    }

    /// Request of CREATE_UCTX.
    create_uctx_in {
        CAP "uctx.cap" @ 0x80, 32;
    }

    /// Answer of CREATE_UCTX.
    create_uctx_out {
        UID "uid" @ 0x50, 16;
    }

    /// Request of DESTROY_UCTX.
    destroy_uctx_in {
        UID "uid" @ 0x50, 16;
    }

    /// Request of CREATE_UMEM.
    create_umem_in {
        LOG_PAGE_SIZE "umem.log_page_size" @ 0x11b, 5;
        PAGE_OFFSET "umem.page_offset" @ 0x120, 32;
        NUM_OF_MTT "umem.num_of_mtt" @ 0x140, 64;
    }

    /// Header of commands about general objects.
    general_obj_in_cmd_hdr {
        OBJ_TYPE "obj_type" @ 0x30, 16;
        LOG_OBJ_RANGE "op_param.create.log_obj_range" @ 0x63, 5;
    }

    /// Receive memory pool context.
    rmpc {
        STATE "state" @ 0x8, 4;
        PAGE_OFFSET "wq.page_offset" @ 0x1ab, 5;
        LWM "wq.lwm" @ 0x1b0, 16;
        PD "wq.pd" @ 0x1c8, 24;
        DBR_ADDR "wq.dbr_addr" @ 0x200, 64;
        LOG_WQ_STRIDE "wq.log_wq_stride" @ 0x28c, 4;
        LOG_WQ_PG_SZ "wq.log_wq_pg_sz" @ 0x293, 5;
        LOG_WQ_SZ "wq.log_wq_sz" @ 0x29b, 5;
        DBR_UMEM_VALID "wq.dbr_umem_valid" @ 0x2a0, 1;
        WQ_UMEM_VALID "wq.wq_umem_valid" @ 0x2a1, 1;
        DBR_UMEM_ID "wq.dbr_umem_id" @ 0x2c0, 32;
        WQ_UMEM_ID "wq.wq_umem_id" @ 0x2e0, 32;
        WQ_UMEM_OFFSET "wq.wq_umem_offset" @ 0x300, 64;
    }

    /// Request of MODIFY_RMP.
    modify_rmp_in {
        RMPN "rmpn" @ 0x48, 24;
        BITMASK_LWM "bitmask.lwm" @ 0xbf, 1;
    }

    /// XRC SRQ context.
    xrc_srqc {
        STATE "state" @ 0x0, 4;
        LOG_XRC_SRQ_SIZE "log_xrc_srq_size" @ 0x4, 4;
        LOG_RQ_STRIDE "log_rq_stride" @ 0x25, 3;
        XRCD "xrcd" @ 0x28, 24;
        PAGE_OFFSET "page_offset" @ 0x40, 6;
        DBR_UMEM_VALID "dbr_umem_valid" @ 0x47, 1;
        CQN "cqn" @ 0x48, 24;
        LOG_PAGE_SIZE "log_page_size" @ 0x82, 6;
        USER_INDEX "user_index" @ 0x88, 24;
        PD "pd" @ 0xc8, 24;
        LWM "lwm" @ 0xe0, 16;
        DB_RECORD_ADDR_H "db_record_addr_h" @ 0x140, 32;
        DB_RECORD_ADDR_L "db_record_addr_l" @ 0x160, 30;
    }

    /// DC target context.
    dctc {
        STATE "state" @ 0x4, 4;
        USER_INDEX "user_index" @ 0x28, 24;
        CQN "cqn" @ 0x48, 24;
        ATOMIC_MODE "atomic_mode" @ 0x68, 4;
        RRE "rre" @ 0x6c, 1;
        RWE "rwe" @ 0x6d, 1;
        RAE "rae" @ 0x6e, 1;
        MIN_RNR_NAK "min_rnr_nak" @ 0x93, 5;
        SRQN "srqn_xrqn" @ 0xa8, 24;
        PD "pd" @ 0xc8, 24;
        DC_ACCESS_KEY "dc_access_key" @ 0x100, 64;
        MTU "mtu" @ 0x145, 3;
        PORT "port" @ 0x148, 8;
        PKEY_INDEX "pkey_index" @ 0x150, 16;
        VIOLATIONS "dc_access_key_violation_count" @ 0x180, 32;
    }

    /// Request of ARM_XRC_SRQ.
    arm_xrc_srq_in {
        XRC_SRQN "xrc_srqn" @ 0x48, 24;
        LWM "lwm" @ 0x70, 16;
    }
}

/// Fields that the kernel hands on from user space as they are: its header says nothing in these
/// places. Named as in rdma-core's `tests/mlx5_prm_structs.py` and `providers/mlx5/mlx5_ifc.h`.
pub mod unnamed {
    use super::Field;

    /// CREATE_CQ: first byte of the queue in the umem.
    pub const CQ_UMEM_OFFSET: Field = Field::new(0x280, 64);
    /// CREATE_CQ: umem of the queue.
    pub const CQ_UMEM_ID: Field = Field::new(0x2c0, 32);
    /// CQ context: umem of the doorbell record.
    pub const CQC_DBR_UMEM_ID: Field = Field::new(0x20, 32);
    /// QP context: umem of the doorbell record.
    pub const QPC_DBR_UMEM_ID: Field = Field::new(0x720, 32);

    /// All of them: structure and place. For the test that looks whether it is free.
    pub const ALL: &[(&str, Field)] = &[
        ("create_cq_in", CQ_UMEM_OFFSET),
        ("create_cq_in", CQ_UMEM_ID),
        ("cqc", CQC_DBR_UMEM_ID),
        ("qpc", QPC_DBR_UMEM_ID),
    ];
}
