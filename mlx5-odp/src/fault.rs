// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A page fault, from event to resume.

mod memory;
mod rdma;
mod wqe;

use firmware_cmds::{Iova, Mkey, PageFault, PageFaultError};

use crate::bring_in::{bring_in, NotIn};
use crate::driver::{Driver, Intent, NoRegion, Report};
use crate::region::Region;
use crate::stall::Stall;
use crate::VaRange;

/// Serves one event. Sleeps for as long as bringing the pages in takes.
///
/// When it returns the access has been resumed, exactly once; unless another event of the same
/// access follows, its queue is gone, or the event is of a kind whose token nobody knows where to
/// find. It was resumed with error only if it is not valid, or if the
/// device could not be told of the pages; a race or pressure that outlasts the tries goes back to
/// the device, which repeats the access.
pub fn serve<D: Driver>(driver: &D, event: Result<PageFault, PageFaultError>) {
    match event {
        Ok(PageFault::Memory(fault)) => {
            memory::serve(driver, &fault, Stall::new(driver, fault.fault_token()));
        }
        Ok(PageFault::Rdma(fault)) => {
            rdma::serve(driver, &fault, Stall::new(driver, fault.fault_token()));
        }
        Ok(PageFault::Wqe(fault)) => {
            wqe::serve(driver, &fault, Stall::new(driver, fault.fault_token()));
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
fn answer<D: Driver>(driver: &D, stall: Stall<'_, D>, outcome: Result<(), NotIn>) {
    match outcome {
        Ok(()) => stall.go_on(),
        Err(NotIn::Busy(why)) => {
            driver.gave_back(why);
            stall.go_on();
        }
        Err(NotIn::Invalid | NotIn::Device) => stall.fail(),
    }
}

/// Brings in `range` of `region` because the device demanded it.
fn demand<D: Driver>(
    driver: &D,
    region: &impl Region,
    range: VaRange,
    intent: Intent,
) -> Result<(), NotIn> {
    match bring_in(region, range, intent, driver) {
        Ok(base_pages) => {
            region.count_fault(base_pages);
            Ok(())
        }
        Err(error) => {
            if error == NotIn::Device {
                driver.report(Report::Update(region.mkey()));
            }
            Err(error)
        }
    }
}

/// Brings in `bytes` at `at` of the region of `mkey`, for a transport-scheme fault.
///
/// A key without a region counts as present: it is a pinned MR's, whose pages cannot be the ones
/// that are missing, or it was destroyed meanwhile, which the device finds out when it repeats the
/// access.
fn demand_of_key<D: Driver>(
    driver: &D,
    mkey: Mkey,
    at: Iova,
    bytes: u64,
    intent: Intent,
) -> Result<(), NotIn> {
    let region = match driver.region(mkey) {
        Ok(region) => region,
        Err(NoRegion::NotOdp) => return Ok(()),
        Err(NoRegion::Stale) => return Err(NotIn::Invalid),
        Err(NoRegion::Unsupported(what)) => {
            driver.report(Report::Unsupported(what));
            return Err(NotIn::Invalid);
        }
    };
    let range = region
        .placement()
        .exactly(at, bytes)
        .ok_or(NotIn::Invalid)?;

    demand(driver, &region, range, intent)
}
