// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Prefetch at the user's wish (`ibv_advise_mr`).

use firmware_cmds::Iova;

use crate::bring_in::{Asked, NotIn};
use crate::buffer::Buffer;
use crate::driver::{Driver, Intent};
use crate::found::Found;
use crate::implicit::Implicit;
use crate::region::Region;

/// What a user advises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// To bring pages in, for reading (`IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH`).
    Read,
    /// To bring pages in, for writing (`IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE`).
    Write,
    /// To publish what is in memory (`IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT`).
    Present,
}

/// Does what was advised for `bytes` at `at`, and counts it.
///
/// No bytes are none of an implicit MR, of a region the entry that they are in the middle of, and an
/// error at its start; so `odp.c:pagefault_mr` and `ib_umem_odp_map_dma_and_lock` have it.
///
/// # Errors
///
/// [`NotIn`]. What comes before what failed stays published. With [`Advice::Present`] it is no error
/// that there is nothing.
pub fn prefetch<R: Region, I: Implicit, B: Buffer>(
    found: &Found<R, I, B>,
    at: Iova,
    bytes: u64,
    advice: Advice,
    driver: &impl Driver,
) -> Result<(), NotIn> {
    let inside = found.exactly(at, bytes.max(1));
    let extent = match (found, inside.ok_or(NotIn::Invalid)?) {
        (Found::Implicit(_), _) if bytes == 0 => return Ok(()),
        (Found::Region(region), _) if bytes == 0 && region.placement().begins_entry(at) => {
            return Err(NotIn::Empty)
        }
        (_, extent) => extent,
    };
    let bring_in = |intent| found.bring_in(&extent, Asked::by_nobody(intent), driver);
    let base_pages = match advice {
        Advice::Read => bring_in(Intent::Read)?.base_pages,
        Advice::Write => bring_in(Intent::Write)?.base_pages,
        Advice::Present => found.bring_in_present(&extent, driver)?,
    };
    found.count_prefetch(base_pages);
    Ok(())
}
