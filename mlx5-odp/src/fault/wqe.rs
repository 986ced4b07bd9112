// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme's local accesses: a WQE whose data segments are not present.
//!
//! The event names the WQE only, so it is read back and every segment that is not done yet is
//! brought in.

use firmware_cmds::wqe::{DataSeg, RecvSges, SendWqe, Sge, SrqNextSeg};
use firmware_cmds::{Error, PageFault, Piece, Wire, WqeFault, WqeFaultKind};

use super::{answer, demand_all, demand_of_key};
use crate::bring_in::{Asked, NotIn};
use crate::driver::{Driver, Intent, NoWqe, Queue, Report, Unsupported};
use crate::region::Pressure;
use crate::stall::Stall;

pub(super) fn serve<D: Driver>(driver: &D, fault: &WqeFault, number: u32, stall: Stall<'_, D>) {
    let Some(queue) = driver.queue(fault) else {
        // Its stalled accesses went with it, and its number may be another queue's by now.
        return stall.forget();
    };
    let outcome = if fault.kind.is_send_queue() {
        bring_in_send(driver, fault, number, &queue)
    } else {
        bring_in_receive(driver, fault, number, &queue)
    };
    answer(driver, stall, &PageFault::Wqe(*fault), outcome);
    // Not before the answer is out: the number in it must still be this queue's.
    drop(queue);
}

fn bring_in_send<D: Driver>(
    driver: &D,
    fault: &WqeFault,
    number: u32,
    queue: &impl Queue,
) -> Result<(), NotIn> {
    let Some(transport) = queue.transport() else {
        driver.report(Report::Unsupported(Unsupported::Transport));
        return Err(NotIn::Invalid);
    };
    let bytes = queue.read_send(fault.wqe_index).map_err(unread)?;
    let wqe = SendWqe::parse(bytes.as_ref(), transport).map_err(|e| malformed(driver, e))?;

    let asked = Asked::by_event(number, Intent::of(fault.kind.is_write()));
    demand_all(asked, |asked| {
        let mut walk = Walk::new(driver, fault, asked);
        for segment in wqe.sges() {
            match segment.map_err(|e| malformed(driver, e))? {
                Sge::Data(data) => walk.data(&data)?,
                Sge::Inline(bytes) => {
                    // CAST: widens.
                    walk.skip(bytes.len() as u64);
                }
            }
        }
        walk.end()
    })
}

fn bring_in_receive<D: Driver>(
    driver: &D,
    fault: &WqeFault,
    number: u32,
    queue: &impl Queue,
) -> Result<(), NotIn> {
    if queue.receive_signature() {
        driver.report(Report::Unsupported(Unsupported::Signature));
        return Err(NotIn::Invalid);
    }
    let bytes = queue.read_receive(fault.wqe_index).map_err(unread)?;
    let list = match fault.kind {
        WqeFaultKind::SharedReceive => {
            SrqNextSeg::parse_prefix(bytes.as_ref()).map(|(_, list)| list)
        }
        _ => Ok(bytes.as_ref()),
    };
    let list = list.map_err(|e| malformed(driver, e))?;

    let asked = Asked::by_event(number, Intent::of(fault.kind.is_write()));
    demand_all(asked, |asked| {
        let mut walk = Walk::new(driver, fault, asked);
        for data in RecvSges::new(list, driver.end_of_list()) {
            walk.data(&data.map_err(|e| malformed(driver, e))?)?;
        }
        walk.end()
    })
}

fn unread(error: NoWqe) -> NotIn {
    match error {
        NoWqe::Memory => NotIn::Busy(Pressure::Memory),
        NoWqe::Unreadable => NotIn::Invalid,
    }
}

fn malformed<D: Driver>(driver: &D, error: Error) -> NotIn {
    driver.report(Report::Wqe(error));
    NotIn::Invalid
}

/// The segments of one WQE, in order.
struct Walk<'a, D> {
    driver: &'a D,
    asked: Asked,
    /// Bytes at the front that are done and need no page any more.
    committed: u64,
    empty: bool,
    /// The device could read all of it when it asked.
    asked_again: bool,
}

impl<'a, D: Driver> Walk<'a, D> {
    fn new(driver: &'a D, fault: &WqeFault, asked: Asked) -> Self {
        Self {
            driver,
            asked,
            committed: u64::from(fault.bytes_committed),
            empty: true,
            asked_again: true,
        }
    }

    /// Passes over bytes, and returns how many of them are done.
    fn skip(&mut self, bytes: u64) -> u64 {
        let done = bytes.min(self.committed);
        self.committed -= done;
        self.empty = false;
        done
    }

    fn data(&mut self, data: &DataSeg) -> Result<(), NotIn> {
        let bytes = data.byte_count.bytes();
        let done = self.skip(bytes);
        if done == bytes {
            return Ok(());
        }
        let piece = Piece {
            key: data.lkey,
            at: data.addr.checked_add(done).ok_or(NotIn::Invalid)?,
            bytes: bytes - done,
        };
        self.asked_again &= demand_of_key(self.driver, &piece, self.asked)?;
        Ok(())
    }

    /// A WQE without a segment cannot have stalled on one.
    fn end(self) -> Result<bool, NotIn> {
        if self.empty {
            return Err(NotIn::Invalid);
        }
        Ok(self.asked_again)
    }
}
