// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The QP context, `qpc` of the PRM, kept as the image the driver wrote.
//!
//! The image is the only copy of every value, so QUERY_QP returns what was set
//! and a field the model has no use for survives a modify.
//!
//! Offsets: kernel `include/linux/mlx5/mlx5_ifc.h:mlx5_ifc_qpc_bits`.

/// Length of a QP context, in bytes.
pub const QPC_LEN: usize = 232;

/// A field of at most 32 bits inside one big-endian dword of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Byte offset of the dword that holds the field; a multiple of 4.
    dword: usize,
    /// Position of the least significant bit, 0..=31.
    shift: u32,
    /// Width in bits, 1..=32.
    width: u32,
}

impl Field {
    const fn new(dword: usize, shift: u32, width: u32) -> Self {
        assert!(dword % 4 == 0 && dword < QPC_LEN && width >= 1 && shift + width <= 32);
        Self {
            dword,
            shift,
            width,
        }
    }

    const fn mask(self) -> u32 {
        u32::MAX >> (32 - self.width)
    }
}

/// State, as [`super::QpState`] encodes it.
pub const STATE: Field = Field::new(0x00, 28, 4);
/// Service type, as [`super::ServiceType`] encodes it.
pub const ST: Field = Field::new(0x00, 16, 8);
/// Path migration state.
pub const PM_STATE: Field = Field::new(0x00, 11, 2);
/// Protection domain.
pub const PD: Field = Field::new(0x04, 0, 24);
/// Path MTU, code 1..=5 for 256..=4096 bytes.
pub const MTU: Field = Field::new(0x08, 29, 3);
/// log2 of the longest message, in bytes.
pub const LOG_MSG_MAX: Field = Field::new(0x08, 24, 5);
/// log2 of the number of receive WQEs.
pub const LOG_RQ_SIZE: Field = Field::new(0x08, 19, 4);
/// log2 of the receive WQE stride, in units of 16 bytes.
pub const LOG_RQ_STRIDE: Field = Field::new(0x08, 16, 3);
/// The QP has no send queue.
pub const NO_SQ: Field = Field::new(0x08, 15, 1);
/// log2 of the number of 64-byte WQEBBs of the send queue.
pub const LOG_SQ_SIZE: Field = Field::new(0x08, 11, 4);
/// The reserved lkey may be used.
pub const RLKY: Field = Field::new(0x08, 4, 1);
/// Q counter set.
pub const COUNTER_SET_ID: Field = Field::new(0x0c, 24, 8);
/// UAR page that the doorbells of the QP belong to.
pub const UAR_PAGE: Field = Field::new(0x0c, 0, 24);
/// User index reported in CQEs of version 1.
pub const USER_INDEX: Field = Field::new(0x10, 0, 24);
/// log2 of the page size of the buffer, minus 12.
pub const LOG_PAGE_SIZE: Field = Field::new(0x14, 24, 5);
/// QP number of the peer.
pub const REMOTE_QPN: Field = Field::new(0x14, 0, 24);
/// P_Key index of the primary path.
pub const PKEY_INDEX: Field = Field::new(0x18, 0, 16);
/// Destination LID of the primary path.
pub const RLID: Field = Field::new(0x1c, 0, 16);
/// Local ACK timeout: 4.096 us * 2^n, 0 for none.
pub const ACK_TIMEOUT: Field = Field::new(0x20, 27, 5);
/// Port of the primary path.
pub const PORT: Field = Field::new(0x3c, 16, 8);
/// Requested frequency of acknowledgements.
pub const LOG_ACK_REQ_FREQ: Field = Field::new(0x70, 28, 4);
/// log2 of the RDMA READs and atomics this QP may have outstanding.
pub const LOG_SRA_MAX: Field = Field::new(0x70, 21, 3);
/// Transport retries.
pub const RETRY_COUNT: Field = Field::new(0x70, 16, 3);
/// Retries after an RNR NAK, 7 for without limit.
pub const RNR_RETRY: Field = Field::new(0x70, 13, 3);
/// First PSN to send.
pub const NEXT_SEND_PSN: Field = Field::new(0x78, 0, 24);
/// CQ of the send queue.
pub const CQN_SND: Field = Field::new(0x7c, 0, 24);
/// log2 of the RDMA READs and atomics the peer may have outstanding.
pub const LOG_RRA_MAX: Field = Field::new(0x90, 21, 3);
/// Size and endianness of atomics.
pub const ATOMIC_MODE: Field = Field::new(0x90, 16, 4);
/// Remote read enabled.
pub const RRE: Field = Field::new(0x90, 15, 1);
/// Remote write enabled.
pub const RWE: Field = Field::new(0x90, 14, 1);
/// Remote atomics enabled.
pub const RAE: Field = Field::new(0x90, 13, 1);
/// Start of the buffer in its first page, in 1/64 of the page size.
pub const PAGE_OFFSET: Field = Field::new(0x90, 6, 6);
/// Code of the RNR NAK timer, IBTA 9.7.5.2.8.
pub const MIN_RNR_NAK: Field = Field::new(0x94, 24, 5);
/// First PSN to receive.
pub const NEXT_RCV_PSN: Field = Field::new(0x94, 0, 24);
/// XRC domain.
pub const XRCD: Field = Field::new(0x98, 0, 24);
/// CQ of the receive queue.
pub const CQN_RCV: Field = Field::new(0x9c, 0, 24);
/// High half of the doorbell record's address.
pub const DBR_ADDR_HI: Field = Field::new(0xa0, 0, 32);
/// Low half of the doorbell record's address.
pub const DBR_ADDR_LO: Field = Field::new(0xa4, 0, 32);
/// Q_Key.
pub const Q_KEY: Field = Field::new(0xa8, 0, 32);
/// Kind of receive queue: 0 its own, 1 shared, 3 none.
pub const RQ_TYPE: Field = Field::new(0xac, 24, 3);
/// Number of the shared receive queue.
pub const SRQN: Field = Field::new(0xac, 0, 24);
/// WQEBBs of the send queue done by hardware.
pub const HW_SQ_COUNTER: Field = Field::new(0xb4, 16, 16);
/// WQEBBs of the send queue posted by software.
pub const SW_SQ_COUNTER: Field = Field::new(0xb4, 0, 16);
/// Receive WQEs done by hardware.
pub const HW_RQ_COUNTER: Field = Field::new(0xb8, 0, 32);
/// Receive WQEs posted by software.
pub const SW_RQ_COUNTER: Field = Field::new(0xbc, 0, 32);

/// The primary path (`ads`), as dwords of the context.
pub const PRIMARY_PATH: core::ops::Range<usize> = 0x18..0x44;
/// The alternate path (`ads`), as dwords of the context.
pub const SECONDARY_PATH: core::ops::Range<usize> = 0x44..0x70;

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

    fn dword(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_be_bytes(word)
    }

    /// Reads a field.
    pub fn get(&self, field: Field) -> u32 {
        (self.dword(field.dword) >> field.shift) & field.mask()
    }

    /// True if a one-bit field is set.
    pub fn flag(&self, field: Field) -> bool {
        self.get(field) != 0
    }

    /// Writes a field; bits of `value` beyond its width are ignored.
    pub fn set(&mut self, field: Field, value: u32) {
        let keep = self.dword(field.dword) & !(field.mask() << field.shift);
        let word = keep | ((value & field.mask()) << field.shift);
        self.0[field.dword..field.dword + 4].copy_from_slice(&word.to_be_bytes());
    }

    /// Takes `field` from `other`.
    pub fn copy_field(&mut self, other: &Self, field: Field) {
        self.set(field, other.get(field));
    }

    /// Takes a range of bytes from `other`.
    pub fn copy_range(&mut self, other: &Self, range: core::ops::Range<usize>) {
        self.0[range.clone()].copy_from_slice(&other.0[range]);
    }

    /// Address of the doorbell record, 0 if none was given.
    pub fn dbr_addr(&self) -> u64 {
        u64::from(self.get(DBR_ADDR_HI)) << 32 | u64::from(self.get(DBR_ADDR_LO))
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
