// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! WQEs: the segments that they are made of, and how to walk them.
//!
//! A send WQE is `ctrl [xrc] [av] [raddr [atomic]] {data | inline}...`, a UMR WQE is
//! `ctrl umr mkey [data | inline]` (see [`crate::umr`]), a receive WQE a list of data segments.
//! The walkers want the WQE in one piece: where it wraps around the end of its queue, copy it first.
//!
//! Source: PRM "WQE Formats"; kernel `qp.h`, `odp.c:mlx5_ib_mr_initiator_pfault_handler`.

mod address;
mod ctrl;
mod data;
mod recv;
mod send;

pub use address::{
    AtomicSeg, AtomicSegLayout, RaddrSeg, RaddrSegLayout, XrcSeg, XrcSegLayout, XrcSrqnWord,
};
pub use address::{
    Av, AvLayout, BaseAv, BaseAvLayout, DqpDct, FlowLabel, Grh, GrhGidFl, ServiceLevel, StatRate,
    StatRateSl,
};
pub use ctrl::{
    CompletionMode, CtrlSeg, CtrlSegLayout, Ds, FenceMode, FmCeSe, OpmodIdxOpcode, QpnDs, WqeOpcode,
};
pub use data::{
    ByteCount, ByteCountWord, DataSeg, DataSegLayout, InlineSegLayout, InlineWord, Sge, Sges,
};
pub use recv::{RecvSges, SrqNextSeg, SrqNextSegLayout};
pub use send::{AddressVector, SendTransport, SendWqe};

/// Bytes of a DS, the unit of a WQE's length.
pub const DS_LEN: usize = 16;

/// Bytes of a basic block, the unit in which a send queue counts.
pub const WQEBB_LEN: usize = 64;
