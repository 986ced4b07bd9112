// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Shared receive queues, kept as libmlx5 keeps them: a list of free slots through the ring.

use connectx::ifc::{rmpc, xrc_srqc};
use connectx::qp::context as qpc;
use connectx::GuestMemory;
use firmware_cmds::{DmaAddr, Mkey};

use super::wqe::data;
use super::{words, Rig, TestQp};

/// Slots of each queue, of 64 bytes.
const LOG_SRQ: u32 = 4;
/// Bytes of a slot, as a power of two.
const LOG_STRIDE: u32 = 6;

/// An SRQ as its owner sees it.
pub(crate) struct TestSrq {
    /// Its number.
    pub(crate) srqn: u32,
    ring: u64,
    dbr: u64,
    /// The next slot to be posted.
    head: u16,
    /// The last free slot, which is not posted before another follows it.
    tail: u16,
    posted: u16,
}

impl Rig {
    /// A basic SRQ: an RMP.
    pub(crate) fn create_srq(&mut self) -> TestSrq {
        let (ring, dbr) = (self.pages(1), self.pages(1));
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&0x90c_u16.to_be_bytes());
        let context = &mut input[0x20..];
        for (field, value) in [
            (rmpc::LOG_WQ_SZ, u64::from(LOG_SRQ)),
            (rmpc::LOG_WQ_STRIDE, u64::from(LOG_STRIDE)),
            (rmpc::PD, u64::from(self.pd)),
            (rmpc::DBR_ADDR, dbr),
        ] {
            field.set(context, value);
        }
        self.finish_srq(input, ring, dbr)
    }

    /// An XRC SRQ, with the rig's domain and CQ.
    pub(crate) fn create_xrc_srq(&mut self) -> TestSrq {
        let (ring, dbr) = (self.pages(1), self.pages(1));
        let mut input = vec![0; 0x110];
        input[..2].copy_from_slice(&0x705_u16.to_be_bytes());
        let context = &mut input[0x10..];
        for (field, value) in [
            (xrc_srqc::LOG_XRC_SRQ_SIZE, u64::from(LOG_SRQ)),
            (xrc_srqc::LOG_RQ_STRIDE, u64::from(LOG_STRIDE - 4)),
            (xrc_srqc::XRCD, u64::from(self.xrcd)),
            (xrc_srqc::CQN, u64::from(self.cqn)),
            (xrc_srqc::PD, u64::from(self.pd)),
            (xrc_srqc::DB_RECORD_ADDR_L, dbr >> 2),
        ] {
            field.set(context, value);
        }
        self.finish_srq(input, ring, dbr)
    }

    fn finish_srq(&mut self, mut input: Vec<u8>, ring: u64, dbr: u64) -> TestSrq {
        input.extend(ring.to_be_bytes());
        let srqn = words(&self.command(&input, 16), 8);
        let srq = TestSrq {
            srqn,
            ring,
            dbr,
            head: 0,
            tail: (1 << LOG_SRQ) - 1,
            posted: 0,
        };
        for slot in 0..srq.tail {
            self.link(&srq, slot, slot + 1);
        }
        srq
    }

    fn link(&self, srq: &TestSrq, slot: u16, next: u16) {
        let at = srq.ring + (u64::from(slot) << LOG_STRIDE) + 2;
        self.mem
            .write(DmaAddr::new(at), &next.to_be_bytes())
            .unwrap();
    }

    /// A QP that receives from an SRQ, in RST.
    pub(crate) fn create_qp_with_srq(&mut self, st: u32, srq: &TestSrq) -> TestQp {
        let mut context = self.qp_context(st, super::LOG_SQ);
        context.set(qpc::RQ_TYPE, 1);
        context.set(qpc::SRQN, srq.srqn);
        self.create_qp_from(context, super::LOG_SQ)
    }

    /// Posts a receive WQE and returns its index; `None` if no slot is free.
    pub(crate) fn post_srq(
        &mut self,
        srq: &mut TestSrq,
        key: Mkey,
        va: u64,
        len: usize,
    ) -> Option<u16> {
        if srq.head == srq.tail {
            return None;
        }
        let index = srq.head;
        let slot = srq.ring + (u64::from(index) << LOG_STRIDE);
        srq.head = u16::from_be_bytes(self.peek(slot + 2, 2).try_into().unwrap());
        let mut segments = data(key, va, len);
        segments.extend(super::wqe::terminator());
        self.mem.write(DmaAddr::new(slot + 16), &segments).unwrap();
        srq.posted = srq.posted.wrapping_add(1);
        let record = u32::from(srq.posted).to_be_bytes();
        self.mem.write(DmaAddr::new(srq.dbr), &record).unwrap();
        Some(index)
    }

    /// Gives the slot of a WQE that completed back.
    pub(crate) fn free_srq(&mut self, srq: &mut TestSrq, index: u16) {
        self.link(srq, srq.tail, index);
        srq.tail = index;
    }
}
