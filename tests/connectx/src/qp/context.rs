// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The QP context, `qpc` of the PRM, kept as the image the driver wrote.
//!
//! The image is the only copy of every value, so QUERY_QP returns what was set
//! and a field the model has no use for survives a modify.
//!
//! Offsets: kernel `include/linux/mlx5/mlx5_ifc.h:mlx5_ifc_qpc_bits`.

use serde::{Serialize, Serializer};

use crate::ifc::layouts;
pub use crate::ifc::Field;
use crate::inspect::show;

/// Length of a QP context, in bytes.
pub const QPC_LEN: usize = 232;

layouts! {
    /// The fields that the model knows.
    qpc {
        /// State, as [`crate::qp::QpState`] encodes it.
        STATE "state" @ 0x0, 4;
        /// Service type, as [`crate::qp::ServiceType`] encodes it.
        ST "st" @ 0x8, 8;
        /// Path migration state.
        PM_STATE "pm_state" @ 0x13, 2;
        /// Multicast that the QP sends does not come back to it.
        BLOCK_LB_MC "block_lb_mc" @ 0x21, 1;
        /// Protection domain.
        PD "pd" @ 0x28, 24;
        /// Path MTU, code 1..=5 for 256..=4096 bytes.
        MTU "mtu" @ 0x40, 3;
        /// log2 of the longest message, in bytes.
        LOG_MSG_MAX "log_msg_max" @ 0x43, 5;
        /// log2 of the number of receive WQEs.
        LOG_RQ_SIZE "log_rq_size" @ 0x49, 4;
        /// log2 of the receive WQE stride, in units of 16 bytes.
        LOG_RQ_STRIDE "log_rq_stride" @ 0x4d, 3;
        /// The QP has no send queue.
        NO_SQ "no_sq" @ 0x50, 1;
        /// log2 of the number of 64-byte WQEBBs of the send queue.
        LOG_SQ_SIZE "log_sq_size" @ 0x51, 4;
        /// The reserved lkey may be used.
        RLKY "rlky" @ 0x5b, 1;
        /// Q counter set.
        COUNTER_SET_ID "counter_set_id" @ 0x60, 8;
        /// UAR page that the doorbells of the QP belong to.
        UAR_PAGE "uar_page" @ 0x68, 24;
        /// User index reported in CQEs of version 1.
        USER_INDEX "user_index" @ 0x88, 24;
        /// log2 of the page size of the buffer, minus 12.
        LOG_PAGE_SIZE "log_page_size" @ 0xa3, 5;
        /// QP number of the peer.
        REMOTE_QPN "remote_qpn" @ 0xa8, 24;
        /// P_Key index of the primary path.
        PKEY_INDEX "primary_address_path.pkey_index" @ 0xd0, 16;
        /// Destination LID of the primary path.
        RLID "primary_address_path.rlid" @ 0xf0, 16;
        /// Local ACK timeout: 4.096 us * 2^n, 0 for none.
        ACK_TIMEOUT "primary_address_path.ack_timeout" @ 0x100, 5;
        /// Port of the primary path.
        PORT "primary_address_path.vhca_port_num" @ 0x1e8, 8;
        /// Requested frequency of acknowledgements.
        LOG_ACK_REQ_FREQ "log_ack_req_freq" @ 0x380, 4;
        /// log2 of the RDMA READs and atomics this QP may have outstanding.
        LOG_SRA_MAX "log_sra_max" @ 0x388, 3;
        /// Transport retries.
        RETRY_COUNT "retry_count" @ 0x38d, 3;
        /// Retries after an RNR NAK, 7 for without limit.
        RNR_RETRY "rnr_retry" @ 0x390, 3;
        /// First PSN to send.
        NEXT_SEND_PSN "next_send_psn" @ 0x3c8, 24;
        /// log2 of the streams of a DC initiator.
        LOG_DCI_STREAMS "log_num_dci_stream_channels" @ 0x3e3, 5;
        /// CQ of the send queue.
        CQN_SND "cqn_snd" @ 0x3e8, 24;
        /// log2 of the streams that may be in error while the QP goes on.
        LOG_DCI_ERRORED "log_num_dci_errored_streams" @ 0x403, 5;
        /// log2 of the RDMA READs and atomics the peer may have outstanding.
        LOG_RRA_MAX "log_rra_max" @ 0x488, 3;
        /// Size and endianness of atomics.
        ATOMIC_MODE "atomic_mode" @ 0x48c, 4;
        /// Remote read enabled.
        RRE "rre" @ 0x490, 1;
        /// Remote write enabled.
        RWE "rwe" @ 0x491, 1;
        /// Remote atomics enabled.
        RAE "rae" @ 0x492, 1;
        /// Start of the buffer in its first page, in 1/64 of the page size.
        PAGE_OFFSET "page_offset" @ 0x494, 6;
        /// Code of the RNR NAK timer, IBTA 9.7.5.2.8.
        MIN_RNR_NAK "min_rnr_nak" @ 0x4a3, 5;
        /// First PSN to receive.
        NEXT_RCV_PSN "next_rcv_psn" @ 0x4a8, 24;
        /// XRC domain.
        XRCD "xrcd" @ 0x4c8, 24;
        /// CQ of the receive queue.
        CQN_RCV "cqn_rcv" @ 0x4e8, 24;
        /// Address of the doorbell record.
        DBR_ADDR "dbr_addr" @ 0x500, 64;
        /// Q_Key.
        Q_KEY "q_key" @ 0x540, 32;
        /// Kind of receive queue: 0 its own, 1 shared, 3 none.
        RQ_TYPE "rq_type" @ 0x565, 3;
        /// Number of the shared receive queue.
        SRQN "srqn_rmpn_xrqn" @ 0x568, 24;
        /// WQEBBs of the send queue done by hardware.
        HW_SQ_COUNTER "hw_sq_wqebb_counter" @ 0x5a0, 16;
        /// WQEBBs of the send queue posted by software.
        SW_SQ_COUNTER "sw_sq_wqebb_counter" @ 0x5b0, 16;
        /// Receive WQEs done by hardware.
        HW_RQ_COUNTER "hw_rq_counter" @ 0x5c0, 32;
        /// Receive WQEs posted by software.
        SW_RQ_COUNTER "sw_rq_counter" @ 0x5e0, 32;
        /// The doorbell record is in a umem.
        DBR_UMEM_VALID "dbr_umem_valid" @ 0x683, 1;
    }
}

pub use qpc::*;

/// The primary path (`ads`), as dwords of the context.
pub const PRIMARY_PATH: core::ops::Range<usize> = 0x18..0x44;
/// The alternate path (`ads`), as dwords of the context.
pub const SECONDARY_PATH: core::ops::Range<usize> = 0x44..0x70;

impl Serialize for QpContext {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut layouts = LAYOUTS.iter();
        let layout = layouts.next().map_or(&[][..], |(_, fields)| fields);
        show::fields(layout, &self.0, to)
    }
}

/// A QP context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QpContext([u8; QPC_LEN]);

impl QpContext {
    /// Takes a context from a command's input.
    ///
    /// Returns `None` if `bytes` is shorter than [`QPC_LEN`].
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.get(..QPC_LEN)?.try_into().ok()?))
    }

    /// A context of zeros: what a driver starts a modify command from.
    pub fn zeroed() -> Self {
        Self([0; QPC_LEN])
    }

    /// The image, for QUERY_QP.
    pub fn bytes(&self) -> &[u8; QPC_LEN] {
        &self.0
    }

    /// Reads a field of at most 32 bits.
    pub fn get(&self, field: Field) -> u32 {
        field.get32(&self.0)
    }

    /// True if a one-bit field is set.
    pub fn flag(&self, field: Field) -> bool {
        field.is_set(&self.0)
    }

    /// Writes a field; bits of `value` beyond its width are ignored.
    pub fn set(&mut self, field: Field, value: u32) {
        field.set(
            &mut self.0,
            u64::from(value) & (u64::MAX >> (64 - field.width)),
        );
    }

    /// Takes `field` from `other`.
    pub fn copy_field(&mut self, other: &Self, field: Field) {
        field.set(&mut self.0, field.get(&other.0));
    }

    /// Takes a range of bytes from `other`.
    pub fn copy_range(&mut self, other: &Self, range: core::ops::Range<usize>) {
        self.0[range.clone()].copy_from_slice(&other.0[range]);
    }

    /// Address of the doorbell record, 0 if none was given.
    pub fn dbr_addr(&self) -> u64 {
        DBR_ADDR.get(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_touches_only_its_field() {
        let mut context = QpContext([0xff; QPC_LEN]);
        context.set(MIN_RNR_NAK, 0);
        assert_eq!(context.get(MIN_RNR_NAK), 0);
        assert_eq!(context.get(NEXT_RCV_PSN), 0xff_ffff);
        assert_eq!(context.0[0x94], 0xe0);
        context.set(Q_KEY, 0x8001_0000);
        assert_eq!(context.0[0xa8..0xac], [0x80, 0x01, 0, 0]);
    }

    #[test]
    fn short_image_is_refused() {
        assert!(QpContext::parse(&[0; QPC_LEN - 1]).is_none());
    }
}
