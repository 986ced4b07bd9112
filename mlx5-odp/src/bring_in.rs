// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One range of one region: faulted in, mapped, published.

use core::num::NonZeroU64;

use crate::driver::{Driver, Intent};
use crate::region::{Access, FaultError, LockedPages, PageState, Pressure, Region};
use crate::{PageIndex, PageRun, PageShift, VaRange};

/// Pages of 4 KiB faulted in and published under one hold of the region's lock, unless one page
/// of the region is larger. A longer range takes several, so that an invalidation waits for one of
/// them at most, and so that a fault gets on among invalidations elsewhere: the mirror can find no
/// more than this at once.
pub const WINDOW: u64 = 512;

/// How often a fault tries again in place before it goes back to the device, which will repeat
/// the access and fault again. Bounded, for the MR cannot be destroyed meanwhile.
pub const TRIES: u32 = 4;

/// Why a range is not in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIn {
    /// The access is invalid: resume with error.
    Invalid,
    /// The device could not be told: resume with error.
    Device,
    /// Out of tries: resume without error, the device will ask again.
    Busy(Pressure),
}

/// Brings `range`, which must lie within the region's pages, in; returns how many pages of 4 KiB.
///
/// # Errors
///
/// [`NotIn`]. Windows before the one that failed stay published.
pub fn bring_in<R: Region>(
    region: &R,
    range: VaRange,
    intent: Intent,
    driver: &impl Driver,
) -> Result<u64, NotIn> {
    let placement = region.placement();
    let pages = placement.pages_of(range);
    let mut next = pages.first;
    let mut base_pages = 0;
    let size = window_pages(placement.shift);

    while next < pages.end() {
        // Windows are aligned in the MR, so that concurrent faults agree on them.
        let end = PageIndex((next.0 / size + 1) * size.get()).min(pages.end());
        let window = PageRun::new(next, end);
        for_access(region, window, intent, driver)?;
        base_pages += window.count * placement.shift.base_pages();
        next = end;
    }
    Ok(base_pages)
}

/// Pages of a region in one window.
fn window_pages(shift: PageShift) -> NonZeroU64 {
    let pages = WINDOW.checked_div(shift.base_pages()).unwrap_or(0);
    NonZeroU64::new(pages).unwrap_or(NonZeroU64::MIN)
}

/// Picks the access to ask for.
///
/// Write is asked for only when the device is known, or may be assumed, to write: otherwise a READ
/// would break COW, dirty the page, and fail on read-only memory.
fn for_access<R: Region>(
    region: &R,
    run: PageRun,
    intent: Intent,
    driver: &impl Driver,
) -> Result<(), NotIn> {
    let writable = region.placement().writable;

    match intent {
        // The MKey does not allow it; with read access the device would fault for ever.
        Intent::Write if !writable => Err(NotIn::Invalid),
        Intent::Write => match retrying(region, run, Access::Write, driver)? {
            Brought::WriteRefused => Err(NotIn::Invalid),
            Brought::New | Brought::HadRead => Ok(()),
        },
        Intent::Unknown if writable => match retrying(region, run, Access::Write, driver)? {
            // Some page of the run is read-only: each is asked for on its own.
            Brought::WriteRefused => run
                .iter()
                .try_for_each(|page| best_access(region, page, driver)),
            Brought::New | Brought::HadRead => Ok(()),
        },
        Intent::Read | Intent::Unknown => match retrying(region, run, Access::Read, driver)? {
            // The event says read, and read it had, again and again. Faults raised before the pages
            // were published would have come to an end: so the event cannot be trusted.
            Brought::HadRead if writable && driver.repeats(region.mkey(), run.first) => {
                match retrying(region, run, Access::Write, driver)? {
                    Brought::WriteRefused => Err(NotIn::Invalid),
                    Brought::New | Brought::HadRead => Ok(()),
                }
            }
            _ => Ok(()),
        },
    }
}

/// Write if it can be had, else read; but not for ever, if it is a write that is wanted.
fn best_access<R: Region>(region: &R, page: PageIndex, driver: &impl Driver) -> Result<(), NotIn> {
    let run = PageRun::new(page, PageIndex(page.0 + 1));

    match retrying(region, run, Access::Write, driver)? {
        Brought::New | Brought::HadRead => return Ok(()),
        Brought::WriteRefused => {}
    }
    match retrying(region, run, Access::Read, driver)? {
        Brought::HadRead if driver.repeats(region.mkey(), page) => Err(NotIn::Invalid),
        _ => Ok(()),
    }
}

/// What asking for an access led to.
enum Brought {
    /// The device has been told of pages, or of access, that it did not have.
    New,
    /// It had read access to all of them before, and has no more now.
    HadRead,
    /// Not brought in: at least one page is read-only.
    WriteRefused,
}

/// Tries until something else than pressure comes back, or [`TRIES`] are used up.
fn retrying<R: Region>(
    region: &R,
    run: PageRun,
    access: Access,
    driver: &impl Driver,
) -> Result<Brought, NotIn> {
    let mut attempt = 1;

    loop {
        match once(region, run, access) {
            Ok(Brought::New) => {
                driver.progressed(region.mkey(), run);
                return Ok(Brought::New);
            }
            Ok(brought) => return Ok(brought),
            Err(FaultError::WriteRefused) => return Ok(Brought::WriteRefused),
            Err(FaultError::Invalid) => return Err(NotIn::Invalid),
            Err(FaultError::Device) => return Err(NotIn::Device),
            // The mirror has been patient, and its caller holds up the MR's destruction.
            Err(FaultError::Again(Pressure::Held)) => return Err(NotIn::Busy(Pressure::Held)),
            Err(FaultError::Again(why)) if attempt == TRIES => return Err(NotIn::Busy(why)),
            Err(FaultError::Again(why)) => driver.back_off(why, attempt),
        }
        attempt += 1;
    }
}

fn once<R: Region>(region: &R, run: PageRun, access: Access) -> Result<Brought, FaultError> {
    let range = region.placement().va_of(run).ok_or(FaultError::Invalid)?;
    let mut pages = region.fault_and_lock(range, access)?;

    let had_read = run
        .iter()
        .all(|page| pages.state(page) == PageState::Mapped(Access::Read));
    for page in run.iter() {
        pages.map(page)?;
    }
    pages.publish(run)?;

    Ok(if had_read {
        Brought::HadRead
    } else {
        Brought::New
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_two_megabytes_or_a_page() {
        for (shift, pages) in [(12, 512), (16, 32), (21, 1), (30, 1)] {
            let shift = PageShift::new(shift).unwrap();
            assert_eq!(window_pages(shift).get(), pages);
        }
    }
}
