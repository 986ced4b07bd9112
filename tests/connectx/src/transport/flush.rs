// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The flush: everything posted to a QP in error completes with the flush syndrome.

use std::time::Duration;

use firmware_cmds::Qpn;

use crate::completion::syndrome;
use crate::device::Device;
use crate::guest::{DmaError, GuestMemory};
use crate::qp::Qp;
use crate::wqe::{self, Receive};

/// Completions that one step writes at most.
const BUDGET: u32 = 64;

/// How often the receive queue of a QP in error is looked at: it has no doorbell.
const POLL: Duration = Duration::from_millis(20);

impl Device {
    /// Completes what is posted to a QP in error, in order; `true` if there is more.
    pub(super) fn flush(&mut self, qpn: Qpn) -> bool {
        self.flush_queues(qpn).unwrap_or_else(|error| {
            self.queue_lost(qpn, error);
            false
        })
    }

    fn flush_queues(&mut self, qpn: Qpn) -> Result<bool, DmaError> {
        let Some(qp) = self.qps.get_mut(qpn).filter(|qp| !qp.lost) else {
            return Ok(false);
        };
        if !qp.flushing {
            read_counters(qp, &*self.mem)?;
            qp.flushing = true;
        }
        for _ in 0..BUDGET {
            // Each queue has its own order; nobody promises one between them.
            let receive_first = self.order.later();
            let flushed = receive_first && self.flush_receive(qpn)
                || self.flush_send(qpn)?
                || self.flush_receive(qpn);
            if flushed {
                continue;
            }
            let Some(qp) = self.qps.get_mut(qpn) else {
                break;
            };
            qp.flushing = false;
            if qp.rq.log_size.is_some() {
                self.qps.wake_at(self.now + POLL, qpn);
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Completes the WQE at the head of the send queue; `false` if there is none.
    fn flush_send(&mut self, qpn: Qpn) -> Result<bool, DmaError> {
        let Some(qp) = self.qps.get(qpn).filter(|qp| wqe::sq_pending(qp) > 0) else {
            return Ok(false);
        };
        let wqebbs = wqe::head_wqebbs(qp, &*self.mem)?;
        let index = qp.sq.ci;
        self.complete_error(qpn, index, wqebbs, 0, syndrome::FLUSH);
        Ok(true)
    }

    /// Completes the WQE at the head of the receive queue; `false` if there is none.
    fn flush_receive(&mut self, qpn: Qpn) -> bool {
        let Some(qp) = self.qps.get_mut(qpn).filter(|qp| qp.rq.ci != qp.rq.pi) else {
            return false;
        };
        let receive = Receive {
            index: qp.rq.ci,
            srq: None,
            list: None,
        };
        qp.rq.ci = qp.rq.ci.wrapping_add(1);
        self.push_receive_error(qpn, &receive, syndrome::FLUSH);
        true
    }
}

/// Reads how much is posted, once for the whole flush: the doorbell record is the user's,
/// who may write to it all the time.
///
/// # Errors
///
/// If the doorbell record cannot be read.
fn read_counters(qp: &mut Qp, mem: &dyn GuestMemory) -> Result<(), DmaError> {
    if let Some(log) = qp.sq.log_size {
        qp.sq.pi = wqe::counter(mem, qp.send_dbr())?;
        qp.sq.ci = clamp(qp.sq.ci, qp.sq.pi, log);
    }
    if let Some(log) = qp.rq.log_size {
        qp.rq.pi = wqe::counter(mem, qp.recv_dbr())?;
        qp.rq.ci = clamp(qp.rq.ci, qp.rq.pi, log);
    }
    Ok(())
}

/// Where a flush starts: a queue holds no more than its size, the newest of what is said
/// to be posted.
fn clamp(ci: u16, pi: u16, log_size: u32) -> u16 {
    let posted = u32::from(pi.wrapping_sub(ci)).min(1 << log_size);
    pi.wrapping_sub(u16::try_from(posted).unwrap_or(u16::MAX))
}
