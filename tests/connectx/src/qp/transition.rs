// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! QP state transitions: which fields of the command's context are taken.
//!
//! A driver writes its modify commands into a context of zeros, so a field that
//! does not belong to the transition, or whose optional-parameter bit is clear,
//! must be left as it was: at RST2INIT it often writes `rre` = 0 and brings the
//! real value with INIT2RTR and the RRE bit (kernel
//! `drivers/infiniband/hw/mlx5/qp.c:__mlx5_ib_modify_qp`, `opt_mask`).

use super::context::{self as qpc, Field, QpContext};
use super::QpState;

/// A transition command; 2ERR and 2RST take nothing from a context and are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// RST2INIT_QP.
    RstToInit,
    /// INIT2INIT_QP.
    InitToInit,
    /// INIT2RTR_QP.
    InitToRtr,
    /// RTR2RTS_QP.
    RtrToRts,
    /// RTS2RTS_QP.
    RtsToRts,
    /// SQERR2RTS_QP.
    SqErrToRts,
    /// SQD_RTS_QP.
    SqdToRts,
}

/// Optional-parameter bits, kernel `include/linux/mlx5/qp.h:mlx5_qp_optpar`.
pub(crate) mod optpar {
    pub(crate) const ALT_ADDR_PATH: u32 = 1 << 0;
    pub(crate) const RRE: u32 = 1 << 1;
    pub(crate) const RAE: u32 = 1 << 2;
    pub(crate) const RWE: u32 = 1 << 3;
    pub(crate) const PKEY_INDEX: u32 = 1 << 4;
    pub(crate) const Q_KEY: u32 = 1 << 5;
    pub(crate) const RNR_TIMEOUT: u32 = 1 << 6;
    pub(crate) const PRIMARY_ADDR_PATH: u32 = 1 << 7;
    pub(crate) const SRA_MAX: u32 = 1 << 8;
    pub(crate) const RRA_MAX: u32 = 1 << 9;
    pub(crate) const PM_STATE: u32 = 1 << 10;
    pub(crate) const RETRY_COUNT: u32 = 1 << 12;
    pub(crate) const RNR_RETRY: u32 = 1 << 13;
    pub(crate) const ACK_TIMEOUT: u32 = 1 << 14;
    pub(crate) const PRI_PORT: u32 = 1 << 16;
    pub(crate) const SRQN: u32 = 1 << 18;
    pub(crate) const CQN_RCV: u32 = 1 << 19;
    pub(crate) const COUNTER_SET_ID: u32 = 1 << 25;
}

/// Every field an optional-parameter bit brings.
const OPTIONAL: &[(u32, Field)] = &[
    (optpar::RRE, qpc::RRE),
    (optpar::RAE, qpc::RAE),
    (optpar::RAE, qpc::ATOMIC_MODE),
    (optpar::RWE, qpc::RWE),
    (optpar::PKEY_INDEX, qpc::PKEY_INDEX),
    (optpar::Q_KEY, qpc::Q_KEY),
    (optpar::RNR_TIMEOUT, qpc::MIN_RNR_NAK),
    (optpar::SRA_MAX, qpc::LOG_SRA_MAX),
    (optpar::RRA_MAX, qpc::LOG_RRA_MAX),
    (optpar::PM_STATE, qpc::PM_STATE),
    (optpar::RETRY_COUNT, qpc::RETRY_COUNT),
    (optpar::RNR_RETRY, qpc::RNR_RETRY),
    (optpar::ACK_TIMEOUT, qpc::ACK_TIMEOUT),
    (optpar::PRI_PORT, qpc::PORT),
    (optpar::SRQN, qpc::SRQN),
    (optpar::CQN_RCV, qpc::CQN_RCV),
    (optpar::COUNTER_SET_ID, qpc::COUNTER_SET_ID),
];

/// Optional-parameter bits that say something. The others of `mlx5_qp_optpar` belong to
/// what the capabilities do not offer (LAG, DC, packet pacing).
fn known_bits() -> u32 {
    let paths = optpar::PRIMARY_ADDR_PATH | optpar::ALT_ADDR_PATH;
    OPTIONAL.iter().fold(paths, |known, &(bit, _)| known | bit)
}

/// Not the domain and the CQs, which a QP keeps from its creation on: the driver repeats them here,
/// a user of DEVX does not (rdma-core `tests/mlx5_base.py:Mlx5DevxRcResources.to_rts`).
const RST_TO_INIT: &[Field] = &[
    qpc::PM_STATE,
    qpc::PORT,
    qpc::PKEY_INDEX,
    qpc::Q_KEY,
    qpc::RRE,
    qpc::RWE,
    qpc::RAE,
    qpc::ATOMIC_MODE,
    qpc::LOG_ACK_REQ_FREQ,
    qpc::COUNTER_SET_ID,
    qpc::RLKY,
];

const INIT_TO_RTR: &[Field] = &[
    qpc::MTU,
    qpc::LOG_MSG_MAX,
    qpc::REMOTE_QPN,
    qpc::NEXT_RCV_PSN,
    qpc::LOG_RRA_MAX,
    qpc::MIN_RNR_NAK,
];

const RTR_TO_RTS: &[Field] = &[
    qpc::NEXT_SEND_PSN,
    qpc::ACK_TIMEOUT,
    qpc::RETRY_COUNT,
    qpc::RNR_RETRY,
    qpc::LOG_SRA_MAX,
];

/// Why a transition is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The state the command found the QP in does not allow it.
    BadState,
    /// Optional-parameter bits that nobody knows.
    UnknownBits(u32),
}

impl Transition {
    /// The state a QP in `from` is in afterwards.
    ///
    /// # Errors
    ///
    /// [`Refused::BadState`] if the transition does not start at `from`.
    fn target(self, from: QpState) -> Result<QpState, Refused> {
        use QpState::{Init, Rst, Rtr, Rts, SqDrained, SqErr};
        match (self, from) {
            (Self::RstToInit, Rst) | (Self::InitToInit, Init) => Ok(Init),
            (Self::InitToRtr, Init) => Ok(Rtr),
            (Self::RtrToRts, Rtr)
            | (Self::RtsToRts, Rts)
            | (Self::SqErrToRts, SqErr)
            | (Self::SqdToRts, SqDrained) => Ok(Rts),
            _ => Err(Refused::BadState),
        }
    }

    /// Applies the transition to `context`: the new state, the fields it always
    /// brings, and those whose bit is set in `opt_mask`.
    ///
    /// # Errors
    ///
    /// [`Refused`]; `context` is then unchanged.
    pub fn apply(
        self,
        context: &mut QpContext,
        from: QpState,
        opt_mask: u32,
        new: &QpContext,
    ) -> Result<QpState, Refused> {
        let target = self.target(from)?;
        let unknown = opt_mask & !known_bits();
        if unknown != 0 {
            return Err(Refused::UnknownBits(unknown));
        }
        let always: &[Field] = match self {
            Self::RstToInit => RST_TO_INIT,
            Self::InitToRtr => INIT_TO_RTR,
            Self::RtrToRts => RTR_TO_RTS,
            _ => &[],
        };
        for &field in always {
            context.copy_field(new, field);
        }
        match self {
            Self::RstToInit if new.dbr_addr() != 0 => {
                context.copy_field(new, qpc::DBR_ADDR);
            }
            Self::InitToRtr => copy_path(context, new),
            _ => {}
        }
        if opt_mask & optpar::PRIMARY_ADDR_PATH != 0 {
            copy_path(context, new);
        }
        if opt_mask & optpar::ALT_ADDR_PATH != 0 {
            context.copy_range(new, qpc::SECONDARY_PATH);
        }
        for &(bit, field) in OPTIONAL {
            if opt_mask & bit != 0 {
                context.copy_field(new, field);
            }
        }
        context.set(qpc::STATE, target.code());
        Ok(target)
    }
}

/// Takes the primary path, less the fields that have transitions of their own.
fn copy_path(context: &mut QpContext, new: &QpContext) {
    let own = [qpc::PKEY_INDEX, qpc::ACK_TIMEOUT, qpc::PORT];
    let saved = own.map(|field| context.get(field));
    context.copy_range(new, qpc::PRIMARY_PATH);
    for (field, value) in own.into_iter().zip(saved) {
        context.set(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(state: QpState) -> QpContext {
        let mut context = QpContext::zeroed();
        context.set(qpc::STATE, state.code());
        context
    }

    #[test]
    fn remote_read_arrives_with_its_bit_only() {
        let mut context = at(QpState::Init);
        context.set(qpc::RWE, 1);
        let mut new = QpContext::zeroed();
        new.set(qpc::RRE, 1);
        new.set(qpc::REMOTE_QPN, 0x41);
        let mut without = context.clone();
        Transition::InitToRtr
            .apply(&mut without, QpState::Init, 0, &new)
            .unwrap();
        assert!(!without.flag(qpc::RRE) && without.flag(qpc::RWE));
        assert_eq!(without.get(qpc::REMOTE_QPN), 0x41);
        Transition::InitToRtr
            .apply(&mut context, QpState::Init, optpar::RRE, &new)
            .unwrap();
        assert!(context.flag(qpc::RRE) && context.flag(qpc::RWE));
        assert_eq!(context.get(qpc::STATE), QpState::Rtr.code());
    }

    #[test]
    fn sizes_survive_a_modify_from_zeros() {
        let mut context = at(QpState::Rst);
        context.set(qpc::LOG_SQ_SIZE, 7);
        context.set(qpc::USER_INDEX, 0x1234);
        context.set(qpc::DBR_ADDR, 0x1000);
        Transition::RstToInit
            .apply(&mut context, QpState::Rst, 0, &QpContext::zeroed())
            .unwrap();
        assert_eq!(context.get(qpc::LOG_SQ_SIZE), 7);
        assert_eq!(context.get(qpc::USER_INDEX), 0x1234);
        assert_eq!(context.dbr_addr(), 0x1000);
    }

    #[test]
    fn a_refused_transition_changes_nothing() {
        let mut context = at(QpState::Rst);
        let before = context.clone();
        let mut new = QpContext::zeroed();
        new.set(qpc::MTU, 3);
        let done = Transition::InitToRtr.apply(&mut context, QpState::Rst, 0, &new);
        assert_eq!(done, Err(Refused::BadState));
        assert_eq!(context, before);
        let mut context = at(QpState::Init);
        let before = context.clone();
        let lag_tx_aff = 1 << 15;
        let mask = optpar::RRE | optpar::ALT_ADDR_PATH | lag_tx_aff;
        let done = Transition::InitToRtr.apply(&mut context, QpState::Init, mask, &new);
        assert_eq!(done, Err(Refused::UnknownBits(lag_tx_aff)));
        assert_eq!(context, before);
    }

    #[test]
    fn path_keeps_timeout_and_port() {
        let mut context = at(QpState::Init);
        context.set(qpc::PORT, 1);
        context.set(qpc::ACK_TIMEOUT, 14);
        let mut new = QpContext::zeroed();
        new.set(qpc::RLID, 7);
        Transition::InitToRtr
            .apply(&mut context, QpState::Init, 0, &new)
            .unwrap();
        assert_eq!(context.get(qpc::RLID), 7);
        assert_eq!(context.get(qpc::PORT), 1);
        assert_eq!(context.get(qpc::ACK_TIMEOUT), 14);
    }
}
