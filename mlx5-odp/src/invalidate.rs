// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Taking translations back before the kernel takes the pages.

use crate::xlt::UMR_BLOCK;
use crate::{PageIndex, PageRun, PageState};

/// The device did not confirm that a translation is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotZapped;

/// A region inside its invalidate callback: locked, the notifier's sequence already set.
pub trait Invalidate {
    /// Whether the device may still use the region's MKey. False once that was revoked or
    /// destroyed: no translation is left to zap then.
    fn has_mkey(&self) -> bool;

    /// The state of a page.
    fn state(&self, page: PageIndex) -> PageState;

    /// Makes a mapped page [`PageState::Leaving`], so that no table update emits it again.
    fn leave(&mut self, page: PageIndex);

    /// Rewrites the device's translations of the blocks that hold `run` and waits until the device
    /// neither has nor uses those of leaving pages.
    ///
    /// # Errors
    ///
    /// [`NotZapped`] if the update failed.
    fn zap(&mut self, run: PageRun) -> Result<(), NotZapped>;

    /// Takes the whole MKey from the device, for good; later faults on it are refused.
    ///
    /// # Errors
    ///
    /// [`NotZapped`] if that failed too.
    fn revoke(&mut self) -> Result<(), NotZapped>;

    /// Unmaps the pages of `run`, marks those dirty that the device could write, and forgets them;
    /// except for stuck ones.
    fn unmap(&mut self, run: PageRun);

    /// Makes a leaving page [`PageState::Stuck`]: it stays mapped and in memory until the MKey is
    /// destroyed, because the device may still use it.
    fn keep(&mut self, page: PageIndex);
}

/// What an invalidation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidated {
    /// Pages whose translation was taken back: what the statistics count.
    pub pages: u64,
    /// Table updates that took.
    pub updates: u64,
    /// Pages that had to be kept.
    pub kept: u64,
    /// Whether an update failed, so that the MKey had to go.
    pub failed: bool,
}

/// Takes back the translations of `range`, then unmaps it.
///
/// One UMR serves each run of published pages; runs whose blocks touch share one.
///
/// When a UMR fails the device may still hold a translation, and to return would give it access
/// to memory of somebody else. The MKey as a whole is taken away then, and if even that fails the
/// pages stay mapped and in memory.
pub fn invalidate<T: Invalidate>(region: &mut T, range: PageRun) -> Invalidated {
    let mut done = Invalidated::default();

    if !region.has_mkey() {
        region.unmap(range);
        return done;
    }

    // All of the range first: an update covers whole blocks, and must not emit a page again that
    // a later run of this invalidation takes.
    for page in range.iter() {
        if matches!(region.state(page), PageState::Mapped(_)) {
            region.leave(page);
        }
    }

    let mut rest = range;
    while let Some((run, pages)) = next_run(region, rest) {
        if region.zap(run) == Err(NotZapped) {
            done.failed = true;
            break;
        }
        done.updates += 1;
        done.pages += pages;
        rest = PageRun::new(run.end(), range.end());
    }

    if done.failed && region.revoke() == Err(NotZapped) {
        for page in rest.iter() {
            if region.state(page) == PageState::Leaving {
                region.keep(page);
                done.kept += 1;
            }
        }
    }
    region.unmap(range);
    done
}

/// The next run of leaving pages, and how many it holds: pages between them that stay lie in
/// blocks that the update rewrites in any case.
fn next_run<T: Invalidate>(region: &T, range: PageRun) -> Option<(PageRun, u64)> {
    let mut pages = range
        .iter()
        .filter(|page| region.state(*page) == PageState::Leaving);

    let first = pages.next()?;
    let mut last = first;
    let mut count = 1;
    for page in pages {
        if page.0 / UMR_BLOCK > last.0 / UMR_BLOCK + 1 {
            break;
        }
        last = page;
        count += 1;
    }
    Some((PageRun::new(first, PageIndex(last.0 + 1)), count))
}
