// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Capabilities: what the function can do, and what of it the driver chose.
//!
//! What is not listed is 0: the driver then never asks for it. The function is the smallest
//! one on which ODP is whole:
//!
//! - InfiniBand (`port_type` 0) with virtualized access to the port (`ib_virt`): three small
//!   commands for port, GID and P_Key, and no netdev, flow table or subnet manager
//!   (`mlx5_ib/main.c:mlx5_get_vport_access_method`).
//! - `page_request_disable`: it owns no pages of the host, so that nothing is left to give
//!   back (`mlx5_core/pagealloc.c`).
//! - No BlueFlame (`bf`, `log_max_sq`): user space falls back to doorbells of 8 bytes.
//! - DEVX (`log_max_uctx`), whose users have no further rights (`uctx_cap`).
//! - Memory windows (`imaicl`), of both types.
//! - DC, whose faults the transport scheme does not report (`dc_odp_caps`).
//! - `umr_*_disabled` clear, `fixed_buffer_size`, `null_mkey` and
//!   `umr_extended_translation_offset` set: without them there is no ODP, or no implicit one
//!   (`mlx5_ib/odp.c:internal_fill_odp_caps`).
//! - The per-transport bits of the transport scheme are in the current capabilities from the
//!   start, because the driver takes only some of them over from the maximal ones; whether
//!   the maximal ones offer `mem_page_fault` is what chooses the scheme
//!   (`mlx5_core/main.c:handle_hca_cap_odp`).

use firmware_cmds::Scheme;
use serde::Serialize;

use crate::ifc::{atomic_caps, cmd_hca_cap as general, odp_cap, Field};
use crate::inspect::show;

/// Bytes of the capabilities of one type.
pub const CAP_SIZE: usize = 256;
/// The capabilities of one type, as the command interface carries them.
pub type Caps = [u8; CAP_SIZE];

/// How many objects of a kind there may be, as a power of two; every number is below.
pub const LOG_MAX_QP: u64 = 17;
/// The same for SRQs. RMPs share their numbers.
pub const LOG_MAX_SRQ: u64 = 16;
/// The same for CQs.
pub const LOG_MAX_CQ: u64 = 17;
/// The same for EQs. There is none with number 0.
pub const LOG_MAX_EQ: u64 = 6;
/// The same for indices of MKeys.
pub const LOG_MAX_MKEY: u64 = 24;
/// The same for QPs that are attached to one multicast group.
pub const LOG_MAX_QP_MCG: u64 = 10;
/// The same for transport domains.
pub const LOG_MAX_TD: u64 = 16;
/// The same for protection domains.
pub const LOG_MAX_PD: u64 = 18;
/// The same for XRC domains.
pub const LOG_MAX_XRCD: u64 = 16;

/// The same for user contexts.
pub const LOG_MAX_UCTX: u64 = 12;
/// The same for umems.
pub const LOG_MAX_UMEM: u64 = 20;
/// General objects that reserve QP numbers (libmlx5 `MLX5_OBJ_TYPE_RESERVED_QPN`).
pub const OBJECT_TYPE_RESERVED_QPN: u64 = 0x2c;
/// Objects of the DEVX kind: user contexts, umems (`MLX5_GENERAL_OBJ_TYPES_CAP_*`), QP numbers.
const OBJECT_TYPES: u64 = 1 << 4 | 1 << 5 | 1 << OBJECT_TYPE_RESERVED_QPN;

/// Streams of one DC initiator, as a power of two. None may be in error while the QP goes on
/// (`log_max_dci_errored_streams` 0), so that all they could decide is an order.
pub const LOG_MAX_DCI_STREAM_CHANNELS: u64 = 4;

/// How many multicast groups a driver should attach QPs to, as a power of two. More do no harm.
const LOG_MAX_MCG: u64 = 13;

/// How many indirect MKeys (KLMs, KSMs) one behind the other may lead to memory.
pub const MAX_INDIRECTION: u64 = 4;

/// Rate of the device's free-running clock: it counts nanoseconds, as ConnectX-7's does.
const CLOCK_KHZ: u64 = 1_000_000;

/// Largest work queue, event queue and so on that the model grants.
const GENERAL: &[(Field, u64)] = &[
    (general::PAGE_REQUEST_DISABLE, 1),
    (general::LOG_MAX_SRQ_SZ, 15),
    (general::LOG_MAX_QP_SZ, 15),
    (general::LOG_MAX_QP, LOG_MAX_QP),
    (general::LOG_MAX_SRQ, LOG_MAX_SRQ),
    (general::LOG_MAX_CQ_SZ, 22),
    (general::LOG_MAX_CQ, LOG_MAX_CQ),
    (general::LOG_MAX_EQ_SZ, 22),
    (general::LOG_MAX_MKEY, LOG_MAX_MKEY),
    (general::LOG_MAX_EQ, LOG_MAX_EQ),
    (general::MAX_INDIRECTION, MAX_INDIRECTION),
    (general::FIXED_BUFFER_SIZE, 1),
    (general::UMR_EXTENDED_TRANSLATION_OFFSET, 1),
    (general::NULL_MKEY, 1),
    (general::LOG_MAX_KLM_LIST_SIZE, 17),
    (general::LOG_MAX_RA_REQ_DC, 4),
    (general::LOG_MAX_RA_RES_DC, 4),
    (general::LOG_MAX_RA_REQ_QP, 4),
    (general::LOG_MAX_RA_RES_QP, 4),
    (general::VPORT_COUNTERS, 1),
    (general::IB_VIRT, 1),
    (general::LOCAL_CA_ACK_DELAY, 16),
    (general::NUM_PORTS, 1),
    (general::LOG_MAX_MSG, 30),
    (general::STAT_RATE_SUPPORT, 0x1ff),
    (general::CQE_VERSION, 1),
    (general::DCT, 1),
    (general::ATOMIC, 1),
    (general::CQ_RESIZE, 1),
    (general::PG, 1),
    (general::BLOCK_LB_MC, 1),
    (general::IMAICL, 1),
    (general::XRC, 1),
    (general::UD, 1),
    (general::UC, 1),
    (general::RC, 1),
    (general::LOG_PG_SZ, 12),
    (general::LOG_BF_REG_SIZE, 9),
    (general::MAX_WQE_SZ_SQ, 1008),
    (general::MAX_WQE_SZ_RQ, 512),
    (general::MAX_WQE_SZ_SQ_DC, 1008),
    (general::LOG_MAX_TRANSPORT_DOMAIN, LOG_MAX_TD),
    (general::LOG_MAX_PD, LOG_MAX_PD),
    (general::LOG_MAX_XRCD, LOG_MAX_XRCD),
    (general::MAX_QP_MCG, 1 << LOG_MAX_QP_MCG),
    (general::LOG_MAX_MCG, LOG_MAX_MCG),
    (general::LOG_MAX_RMP, LOG_MAX_SRQ),
    (general::MAX_NUM_EQS, (1 << LOG_MAX_EQ) - 1),
    (general::DEVICE_FREQUENCY_KHZ, CLOCK_KHZ),
    (general::NUM_OF_UARS_PER_PAGE, 1),
    (
        general::LOG_MAX_DCI_STREAM_CHANNELS,
        LOG_MAX_DCI_STREAM_CHANNELS,
    ),
    (general::CQE_128_ALWAYS, 1),
    (general::GENERAL_OBJ_TYPES, OBJECT_TYPES),
    (general::LOG_MAX_UCTX, LOG_MAX_UCTX),
    (general::LOG_MAX_UMEM, LOG_MAX_UMEM),
];

/// What SET_HCA_CAP may choose freely.
const GENERAL_FREE: &[Field] = &[
    general::PKEY_TABLE_SIZE,
    general::CMDIF_CHECKSUM,
    general::LOG_UAR_PAGE_SZ,
];

/// Compare-and-swap and fetch-and-add.
const ATOMIC_OPERATIONS: u64 = 0x3;
/// Sizes as a bit per power of two: 8 bytes only.
const ATOMIC_SIZES: u64 = 1 << 3;

/// Bits of a per-transport word of `odp_cap`.
const SEND: u64 = 1 << 31;
const RECEIVE: u64 = 1 << 30;
const WRITE: u64 = 1 << 29;
const READ: u64 = 1 << 28;
const ATOMIC: u64 = 1 << 27;
const SRQ_RECEIVE: u64 = 1 << 26;

/// The port's LID.
pub const LID: u16 = 1;
/// The port's EUI-64, of a locally administered OUI.
pub const PORT_GUID: u64 = 0x0200_5e00_0300_0003;
/// fe80::/64, the prefix of a fabric without a subnet manager's choice.
const DEFAULT_PREFIX: u64 = 0xfe80_0000_0000_0000;
/// The port's only GID.
pub const GID: [u8; 16] = (((DEFAULT_PREFIX as u128) << 64) | PORT_GUID as u128).to_be_bytes();

/// Types of capabilities (`enum mlx5_cap_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CapType {
    /// The device in general.
    General,
    /// On-Demand Paging.
    Odp,
    /// Atomic operations.
    Atomic,
}

impl CapType {
    /// The type with this number, if the device has it.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::General),
            2 => Some(Self::Odp),
            3 => Some(Self::Atomic),
            _ => None,
        }
    }
}

/// Whether a ConnectX has capabilities of the type with this number (`enum mlx5_cap_type`) and
/// this one none of them: not Ethernet, flow tables, QoS, device memory and so on. A card of this
/// generation knows the type and answers zeros for what is switched off. Only a type that is
/// younger than the firmware is refused, which is why drivers look at `hca_cap_2` before they ask
/// for the second part of the general ones (`mlx5_core/fw.c`); without that bit, as here, 0x20 is
/// such a type. Those of an eswitch (8, 9) belong to its manager; what a function that is none is
/// told nobody has written down, and no driver asks.
#[must_use]
pub fn is_void(number: u16) -> bool {
    matches!(
        number,
        1 | 4..=9 | 0xc..=0x11 | 0x13..=0x15 | 0x1a | 0x1d..=0x1f | 0x25 | 0x26 | 0x28 | 0x2a
    )
}

/// Capabilities of every type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CapSet {
    #[serde(serialize_with = "show::cmd_hca_cap")]
    general: Caps,
    #[serde(serialize_with = "show::odp_cap")]
    odp: Caps,
    #[serde(serialize_with = "show::atomic_caps")]
    atomic: Caps,
}

impl CapSet {
    /// Those of one type.
    #[must_use]
    pub fn get(&self, cap_type: CapType) -> &Caps {
        match cap_type {
            CapType::General => &self.general,
            CapType::Odp => &self.odp,
            CapType::Atomic => &self.atomic,
        }
    }

    fn get_mut(&mut self, cap_type: CapType) -> &mut Caps {
        match cap_type {
            CapType::General => &mut self.general,
            CapType::Odp => &mut self.odp,
            CapType::Atomic => &mut self.atomic,
        }
    }

    /// What the device could do.
    fn max(scheme: Scheme) -> Self {
        let mut set = Self::initial(scheme);
        let rc = SEND | RECEIVE | WRITE | READ | ATOMIC | SRQ_RECEIVE;
        odp_cap::TRANSPORT_RC.set(&mut set.odp, rc);
        odp_cap::TRANSPORT_UD.set(&mut set.odp, SEND | SRQ_RECEIVE);
        odp_cap::TRANSPORT_XRC.set(&mut set.odp, rc);
        if scheme == Scheme::Memory {
            odp_cap::MEM_PAGE_FAULT.set(&mut set.odp, 1);
        }
        set
    }

    /// What it does before the driver chose.
    fn initial(scheme: Scheme) -> Self {
        let mut set = Self {
            general: [0; CAP_SIZE],
            odp: [0; CAP_SIZE],
            atomic: [0; CAP_SIZE],
        };
        for &(field, value) in GENERAL {
            field.set(&mut set.general, value);
        }
        atomic_caps::SUPPORTED_REQ_8B_ENDIANNESS_MODE_1.set(&mut set.atomic, 1);
        atomic_caps::OPERATIONS.set(&mut set.atomic, ATOMIC_OPERATIONS);
        atomic_caps::SIZE_QP.set(&mut set.atomic, ATOMIC_SIZES);
        let rc = SEND | RECEIVE | WRITE | READ | ATOMIC;
        odp_cap::TRANSPORT_RC.set(&mut set.odp, rc);
        odp_cap::TRANSPORT_UD.set(&mut set.odp, SEND);
        if scheme == Scheme::Memory {
            odp_cap::MEMORY_PAGE_PREFETCH.set(&mut set.odp, 1);
            odp_cap::MEMORY_RC.set(&mut set.odp, rc | SRQ_RECEIVE);
            odp_cap::MEMORY_UD.set(&mut set.odp, SEND | SRQ_RECEIVE);
            odp_cap::MEMORY_XRC.set(&mut set.odp, rc | SRQ_RECEIVE);
            odp_cap::MEMORY_DC.set(&mut set.odp, rc | SRQ_RECEIVE);
            // What libmlx5 looks at in either scheme (`verbs.c:get_dc_odp_caps`).
            odp_cap::TRANSPORT_DC.set(&mut set.odp, rc | SRQ_RECEIVE);
        }
        set
    }
}

/// State of the function between ENABLE_HCA and DISABLE_HCA.
#[derive(Clone, Debug, Serialize)]
pub struct Hca {
    /// How page faults can be reported until the next ENABLE_HCA. How they are reported is
    /// the driver's choice, see [`Hca::memory_scheme`].
    #[serde(serialize_with = "show::debug")]
    pub scheme: Scheme,
    /// ENABLE_HCA was executed.
    pub enabled: bool,
    /// INIT_HCA was executed.
    pub initialized: bool,
    /// Interface step the driver chose.
    pub issi: u16,
    /// PortInfo.CapabilityMask as the driver set it.
    pub port_cap_mask: u64,
    max: CapSet,
    current: CapSet,
}

impl Hca {
    /// A function after reset.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            enabled: false,
            initialized: false,
            issi: 0,
            port_cap_mask: 0,
            max: CapSet::max(scheme),
            current: CapSet::initial(scheme),
        }
    }

    /// What the device could do.
    #[must_use]
    pub fn max(&self) -> &CapSet {
        &self.max
    }

    /// What the driver chose.
    #[must_use]
    pub fn current(&self) -> &CapSet {
        &self.current
    }

    /// Takes the driver's choice.
    ///
    /// # Errors
    ///
    /// The first bit that is neither free to choose nor offered. A field other than the
    /// free ones may keep its current value or take the largest one; `log_max_qp` may be
    /// anything up to it.
    pub fn choose(&mut self, cap_type: CapType, wanted: &Caps) -> Result<(), usize> {
        let mut checked = *wanted;
        let current = self.current.get(cap_type);
        let max = self.max.get(cap_type);
        let copy = |field: Field, checked: &mut Caps| field.set(checked, field.get(current));
        match cap_type {
            CapType::General => {
                for &field in GENERAL_FREE {
                    copy(field, &mut checked);
                }
                if general::LOG_MAX_QP.get(wanted) <= general::LOG_MAX_QP.get(max) {
                    copy(general::LOG_MAX_QP, &mut checked);
                }
            }
            CapType::Atomic => {
                if atomic_caps::REQ_8B_ENDIANNESS_MODE.get(wanted) <= 1 {
                    copy(atomic_caps::REQ_8B_ENDIANNESS_MODE, &mut checked);
                }
                // The driver sends nothing but the mode (`handle_hca_cap_atomic`).
                for field in [
                    atomic_caps::SUPPORTED_REQ_8B_ENDIANNESS_MODE_1,
                    atomic_caps::OPERATIONS,
                    atomic_caps::SIZE_QP,
                ] {
                    if !field.is_set(wanted) {
                        copy(field, &mut checked);
                    }
                }
            }
            CapType::Odp => {}
        }
        for (byte, ((&want, &have), &most)) in checked.iter().zip(current).zip(max).enumerate() {
            let refused = (want ^ have) & !(want & most);
            if refused != 0 {
                let bit = usize::try_from(refused.leading_zeros()).unwrap_or(0);
                return Err(byte * 8 + bit);
            }
        }
        if cap_type == CapType::Atomic {
            let mode = atomic_caps::REQ_8B_ENDIANNESS_MODE.get(wanted);
            atomic_caps::REQ_8B_ENDIANNESS_MODE.set(self.current.get_mut(cap_type), mode);
        } else {
            *self.current.get_mut(cap_type) = *wanted;
        }
        Ok(())
    }

    /// Whether page faults are reported by MKey and address.
    #[must_use]
    pub fn memory_scheme(&self) -> bool {
        odp_cap::MEM_PAGE_FAULT.is_set(self.current.get(CapType::Odp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_chooses_the_memory_scheme_only_where_it_is_offered() {
        for scheme in [Scheme::Memory, Scheme::Transport] {
            let mut hca = Hca::new(scheme);
            assert!(!hca.memory_scheme());
            let mut wanted = *hca.current().get(CapType::Odp);
            odp_cap::MEM_PAGE_FAULT.set(&mut wanted, 1);
            let chosen = hca.choose(CapType::Odp, &wanted);
            assert_eq!(hca.memory_scheme(), scheme == Scheme::Memory);
            assert_eq!(chosen.is_ok(), scheme == Scheme::Memory);
        }
    }

    #[test]
    fn choosing_what_is_not_offered_is_refused() {
        let mut hca = Hca::new(Scheme::Memory);
        let mut wanted = *hca.current().get(CapType::General);
        general::LOG_MAX_QP.set(&mut wanted, 18);
        assert_eq!(
            hca.choose(CapType::General, &wanted),
            Err(general::LOG_MAX_QP.bit + 3)
        );
        general::LOG_MAX_QP.set(&mut wanted, 12);
        general::PKEY_TABLE_SIZE.set(&mut wanted, 1);
        hca.choose(CapType::General, &wanted).unwrap();
        assert_eq!(
            general::LOG_MAX_QP.get(hca.current().get(CapType::General)),
            12
        );
    }

    #[test]
    fn atomic_mode_leaves_the_rest() {
        let mut hca = Hca::new(Scheme::Memory);
        let mut wanted = [0; CAP_SIZE];
        atomic_caps::REQ_8B_ENDIANNESS_MODE.set(&mut wanted, 1);
        hca.choose(CapType::Atomic, &wanted).unwrap();
        let caps = hca.current().get(CapType::Atomic);
        assert_eq!(atomic_caps::OPERATIONS.get(caps), ATOMIC_OPERATIONS);
        assert_eq!(atomic_caps::REQ_8B_ENDIANNESS_MODE.get(caps), 1);
    }
}
