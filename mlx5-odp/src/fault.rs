// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A page fault, from event to resume.

mod indirect;
mod memory;
mod rdma;
mod wqe;

use firmware_cmds::{PageFault, PageFaultError, Piece};

use crate::bring_in::{Asked, NotIn};
use crate::driver::{Driver, FoundBy, Intent, NoRegion, Report};
use crate::found::Extent;
use crate::stall::Stall;

/// Serves one event, by its number ([`crate::Event`]). Sleeps for as long as bringing the pages in takes.
///
/// When it returns the access has been resumed, exactly once; unless another event of the same
/// access follows, its queue is gone, or the event is of a kind whose token nobody knows where to
/// find. It was resumed with error only if it is not valid, or if the
/// device could not be told of the pages; a race or pressure that outlasts the tries goes back to
/// the device, which repeats the access.
pub fn serve<D: Driver>(driver: &D, event: Result<PageFault, PageFaultError>, number: u32) {
    match event {
        Ok(PageFault::Memory(fault)) => {
            let stall = Stall::new(driver, fault.fault_token());
            memory::serve(driver, &fault, number, stall);
        }
        Ok(PageFault::Rdma(fault)) => {
            let stall = Stall::new(driver, fault.fault_token());
            rdma::serve(driver, &fault, number, stall);
        }
        Ok(PageFault::Wqe(fault)) => {
            let stall = Stall::new(driver, fault.fault_token());
            wqe::serve(driver, &fault, number, stall);
        }
        Err(error) => {
            driver.report(Report::Event(error));
            if let Some(token) = error.fault_token() {
                Stall::new(driver, token).fail();
            }
        }
    }
}

/// Answers the device.
fn answer<D: Driver>(
    driver: &D,
    stall: Stall<'_, D>,
    fault: &PageFault,
    outcome: Result<(), NotIn>,
) {
    match outcome {
        Ok(()) => stall.go_on(),
        Err(NotIn::Busy(why)) => {
            driver.gave_back(why);
            stall.go_on();
        }
        Err(why @ (NotIn::Invalid | NotIn::ReadOnly | NotIn::Empty | NotIn::Device)) => {
            stall.fail();
            driver.refused(fault, why);
        }
    }
}

/// Brings in all that an event demands, as it is `asked` for: `pass` does, for a device that wants
/// what it is told, and returns whether the device could read all of it when it asked
/// ([`BroughtIn`]).
///
/// If it could, it wants to write, whatever its event says. Only what was demanded together says
/// so: one page that was missing explains the fault, in whichever chunk or region it is. Events
/// that were raised before the pages were there, by any number of QPs, come to an end.
fn demand_all(
    asked: Asked,
    mut pass: impl FnMut(Asked) -> Result<bool, NotIn>,
) -> Result<(), NotIn> {
    if pass(asked)? && asked.intent != Intent::Write {
        pass(Asked::by_nobody(Intent::Write))?;
    }
    Ok(())
}

/// Brings in `extent` because the device demanded it; a second pass for the same event is not
/// counted. Returns whether the device could read all of it when it asked.
fn demand<D: Driver>(
    driver: &D,
    found: &FoundBy<'_, D>,
    extent: &Extent,
    asked: Asked,
) -> Result<bool, NotIn> {
    let brought_in = found.bring_in(extent, asked, driver)?;
    if asked.event.is_some() {
        found.count_fault(brought_in.base_pages);
    }
    if brought_in.others > 0 {
        found.count_prefetch(brought_in.others);
    }
    Ok(brought_in.asked_again)
}

/// Brings in a piece of a key's space, for a transport-scheme fault. Returns whether the device could
/// read all of it when it asked.
fn demand_of_key<D: Driver>(driver: &D, piece: &Piece, asked: Asked) -> Result<bool, NotIn> {
    match demand_of_piece(driver, piece, asked)? {
        Some(asked_again) => Ok(asked_again),
        None => indirect::demand(driver, piece, asked),
    }
}

/// The same, unless the key refers to keys: then `None`.
///
/// A key without a region counts as present: it is a pinned MR's, whose pages cannot be the ones
/// that are missing, or it was destroyed meanwhile, which the device finds out when it repeats the
/// access.
fn demand_of_piece<D: Driver>(
    driver: &D,
    piece: &Piece,
    asked: Asked,
) -> Result<Option<bool>, NotIn> {
    let found = match driver.region(piece.key) {
        Ok(found) => found,
        Err(NoRegion::NotOdp) => return Ok(Some(true)),
        Err(NoRegion::Stale) => return Err(NotIn::Invalid),
        Err(NoRegion::Indirect) => return Ok(None),
        Err(NoRegion::Unsupported(what)) => {
            driver.report(Report::Unsupported(what));
            return Err(NotIn::Invalid);
        }
    };
    let extent = found.exactly(piece.at, piece.bytes);
    let extent = extent.ok_or(NotIn::Invalid)?;

    demand(driver, &found, &extent, asked).map(Some)
}
