// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme's remote accesses: RDMA READ, RDMA WRITE and atomics at the responder.

use firmware_cmds::RdmaFault;

use super::{answer, demand_all, demand_of_key};
use crate::bring_in::{bring_in, Asked};
use crate::driver::{Driver, Intent};
use crate::region::Region;
use crate::stall::Stall;

/// At most so many bytes are brought in that nobody has asked for yet.
const MAX_PREFETCH: u32 = 4 << 20;

pub(super) fn serve<D: Driver>(driver: &D, fault: &RdmaFault, number: u32, stall: Stall<'_, D>) {
    let intent = Intent::of(fault.fault_type.is_write());
    let Some(at) = fault.rdma_va.checked_add(u64::from(fault.bytes_committed)) else {
        return stall.fail();
    };
    let rest = fault.rdma_op_len.saturating_sub(fault.bytes_committed);

    // A device that does not know how long the operation is says 0. The packet must be there for
    // it to get on; what follows is brought in when it runs again.
    let (bytes, prefetch) = match rest {
        0 => (
            u32::from(fault.packet_length),
            fault.bytes_committed.min(MAX_PREFETCH),
        ),
        rest => (rest, 0),
    };

    let outcome = match bytes {
        0 => Ok(()),
        bytes => demand_all(number, intent, |asked| {
            demand_of_key(driver, fault.r_key, at, u64::from(bytes), asked)
        }),
    };
    answer(driver, stall, outcome);

    if outcome.is_ok() && prefetch != 0 {
        // Nobody waits for this; if it cannot be had, the device will ask for it.
        if let Ok(region) = driver.region(fault.r_key) {
            let indices = region.placement().exactly(at, u64::from(prefetch));
            let asked = Asked::by_nobody(intent);
            let pages = indices.map(|indices| bring_in(&region, indices, asked, driver));
            if let Some(Ok(brought_in)) = pages {
                region.count_prefetch(brought_in.base_pages);
            }
        }
    }
}
