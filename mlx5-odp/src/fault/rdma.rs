// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The transport scheme's remote accesses: RDMA READ, RDMA WRITE and atomics at the responder.

use firmware_cmds::{PageFault, Piece, RdmaFault};

use super::{answer, demand_all, demand_of_key};
use crate::bring_in::{Asked, NotIn};
use crate::driver::{Driver, Intent};
use crate::prefetch::{prefetch, Advice};
use crate::stall::Stall;

/// At most so many bytes are brought in that nobody has asked for yet.
const MAX_PREFETCH: u32 = 4 << 20;

pub(super) fn serve<D: Driver>(driver: &D, fault: &RdmaFault, number: u32, stall: Stall<'_, D>) {
    let intent = Intent::of(fault.fault_type.is_write());
    let Some(at) = fault.rdma_va.checked_add(u64::from(fault.bytes_committed)) else {
        let wraps = Err(NotIn::Invalid);
        return answer(driver, stall, &PageFault::Rdma(*fault), wraps);
    };
    let rest = fault.rdma_op_len.saturating_sub(fault.bytes_committed);

    // A device that does not know how long the operation is says 0. The packet must be there for
    // it to get on; what follows is brought in when it runs again.
    let (bytes, ahead) = match rest {
        0 => (
            u32::from(fault.packet_length),
            fault.bytes_committed.min(MAX_PREFETCH),
        ),
        rest => (rest, 0),
    };

    let outcome = match bytes {
        0 => Ok(()),
        bytes => {
            let piece = Piece {
                key: fault.r_key,
                at,
                bytes: bytes.into(),
            };
            demand_all(Asked::by_event(number, intent), |asked| {
                demand_of_key(driver, &piece, asked)
            })
        }
    };
    answer(driver, stall, &PageFault::Rdma(*fault), outcome);

    if outcome.is_ok() && ahead != 0 {
        // Nobody waits for this; if it cannot be had, the device will ask for it.
        if let Ok(found) = driver.region(fault.r_key) {
            let advice = match fault.fault_type.is_write() {
                true => Advice::Write,
                false => Advice::Read,
            };
            let _ = prefetch(&found, at, u64::from(ahead), advice, driver);
        }
    }
}
