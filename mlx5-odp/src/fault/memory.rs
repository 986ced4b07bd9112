// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The memory scheme: the event names an MKey and an address.

use firmware_cmds::{MemoryFault, PageFault};

use super::{answer, demand, demand_all};
use crate::bring_in::{Asked, NotIn};
use crate::driver::{Driver, Intent, NoRegion, Report};
use crate::stall::Stall;

pub(super) fn serve<D: Driver>(driver: &D, fault: &MemoryFault, number: u32, stall: Stall<'_, D>) {
    let outcome = bring_in_window(driver, fault, number);
    if fault.last {
        answer(driver, stall, &PageFault::Memory(*fault), outcome);
    } else {
        // All events of an access have its token, and only the last one is answered. If this one
        // failed, the access is repeated, and what is still missing is reported by itself.
        stall.forget();
    }
}

fn bring_in_window<D: Driver>(driver: &D, fault: &MemoryFault, number: u32) -> Result<(), NotIn> {
    let found = match driver.region(fault.mkey) {
        Ok(found) => found,
        // Unlike in the transport scheme the key is the one whose entry is missing, so it must be ours.
        Err(NoRegion::NotOdp | NoRegion::Stale | NoRegion::Indirect) => return Err(NotIn::Invalid),
        Err(NoRegion::Unsupported(what)) => {
            driver.report(Report::Unsupported(what));
            return Err(NotIn::Invalid);
        }
    };
    // The device does not know where the MR ends, nor what is mapped there.
    let demanded = found
        .clamped(fault.va, 0, fault.demand_bytes(), 0)
        .ok_or(NotIn::Invalid)?;
    let window = found.clamped(
        fault.va,
        fault.pre_demand_bytes(),
        fault.demand_bytes(),
        fault.post_demand_bytes(),
    );

    // What surrounds the demanded pages is a suggestion, and may fail. It is asked for as one, with
    // the access of most of its pages: what is special about a page is for its own fault to find.
    let asked_for = |intent| Asked {
        is_part: !fault.last,
        ..Asked::by_event(number, intent)
    };
    let around = asked_for(Intent::of(found.is_writable()));
    match window {
        Some(window) if window != demanded && demand(driver, &found, &window, around).is_ok() => {
            Ok(())
        }
        _ => demand_all(asked_for(Intent::Unknown), |asked| {
            demand(driver, &found, &demanded, asked)
        }),
    }
}
