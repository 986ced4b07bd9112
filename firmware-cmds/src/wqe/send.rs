// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Send WQEs, taken apart.

use super::address::{AtomicSeg, Av, BaseAv, RaddrSeg, XrcSeg};
use super::ctrl::{CtrlSeg, WqeOpcode};
use super::data::Sges;
use crate::wire::{Error, Wire};

/// What a queue pair's transport puts between the control segment and the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendTransport {
    /// Nothing: RC, UC.
    Connected,
    /// An XRC segment: the initiator of XRC.
    XrcInitiator,
    /// An address vector: UD, the initiator of DC.
    Datagram,
}

/// Address vector of a send WQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressVector {
    /// The short one.
    Base(BaseAv),
    /// The long one.
    Extended(Av),
}

/// A send WQE, its leading segments decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendWqe<'a> {
    /// Control segment.
    pub ctrl: CtrlSeg,
    /// XRC segment.
    pub xrc: Option<XrcSeg>,
    /// Address vector.
    pub av: Option<AddressVector>,
    /// Remote address, of RDMA and atomic operations.
    pub raddr: Option<RaddrSeg>,
    /// Operands, of atomic operations.
    pub atomic: Option<AtomicSeg>,
    /// What follows, up to the end that the control segment gives: data segments, or what
    /// [`UmrWqe::parse`](crate::umr::UmrWqe::parse) reads.
    pub rest: &'a [u8],
}

impl<'a> SendWqe<'a> {
    /// Reads the WQE at the start of `bytes`, from the queue pair's transport and the opcode.
    ///
    /// # Errors
    ///
    /// - [`Error::EmptyWqe`]: the control segment gives no length.
    /// - [`Error::Truncated`]: `bytes` is shorter than the length given, or the length than the
    ///   leading segments.
    /// - [`Error::WqeOpcode`]: an opcode whose segments are not known.
    pub fn parse(bytes: &'a [u8], transport: SendTransport) -> Result<Self, Error> {
        let ctrl = CtrlSeg::parse(bytes)?;
        let needed = ctrl.ds.bytes();
        if needed == 0 {
            return Err(Error::EmptyWqe);
        }
        let wqe = bytes.get(..needed).ok_or(Error::Truncated {
            needed,
            available: bytes.len(),
        })?;
        let (_, rest) = CtrlSeg::parse_prefix(wqe)?;
        let (xrc, av, rest) = match transport {
            // A UMR stays within the device: it has no address, whatever its queue pair.
            _ if ctrl.opcode == WqeOpcode::UMR => (None, None, rest),
            SendTransport::Connected => (None, None, rest),
            SendTransport::XrcInitiator => {
                let (xrc, rest) = XrcSeg::parse_prefix(rest)?;
                (Some(xrc), None, rest)
            }
            SendTransport::Datagram => {
                let (av, rest) = AddressVector::parse_prefix(rest)?;
                (None, Some(av), rest)
            }
        };
        let (raddr, atomic, rest) = match ctrl.opcode {
            WqeOpcode::NOP
            | WqeOpcode::SEND
            | WqeOpcode::SEND_IMM
            | WqeOpcode::SEND_INVAL
            | WqeOpcode::UMR => (None, None, rest),
            WqeOpcode::RDMA_WRITE | WqeOpcode::RDMA_WRITE_IMM | WqeOpcode::RDMA_READ => {
                let (raddr, rest) = RaddrSeg::parse_prefix(rest)?;
                (Some(raddr), None, rest)
            }
            WqeOpcode::ATOMIC_CS | WqeOpcode::ATOMIC_FA => {
                let (raddr, rest) = RaddrSeg::parse_prefix(rest)?;
                let (atomic, rest) = AtomicSeg::parse_prefix(rest)?;
                (Some(raddr), Some(atomic), rest)
            }
            WqeOpcode(opcode) => return Err(Error::WqeOpcode(opcode)),
        };
        Ok(Self {
            ctrl,
            xrc,
            av,
            raddr,
            atomic,
            rest,
        })
    }

    /// The data segments, in order.
    pub const fn sges(&self) -> Sges<'a> {
        Sges::new(self.rest)
    }
}

impl AddressVector {
    /// Reads the address vector at the start of `bytes`, the long one if it says so, and returns
    /// it with the bytes behind it.
    fn parse_prefix(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (base, rest) = BaseAv::parse_prefix(bytes)?;
        if !base.extended {
            return Ok((Self::Base(base), rest));
        }
        let (av, rest) = Av::parse_prefix(bytes)?;
        Ok((Self::Extended(av), rest))
    }
}
