// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the fault path needs of a memory region: its pages brought in and held still.

use firmware_cmds::Mkey;
use hmm_abi::{Entry, State};

use crate::{PageIndex, PageRun, Placement, VaRange};

/// What the device may do through a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Gather: SEND, the source of WRITE and READ.
    Read,
    /// Scatter and atomics.
    Write,
}

/// What is known of one page of an MR while its lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Not known: no fault asked for it, or an invalidation took it.
    Absent,
    /// The mirror knows the page; it is not mapped for DMA, so the device cannot have it.
    Present,
    /// Mapped for DMA; the device has, or is about to be given, a translation.
    Mapped(Access),
    /// Mapped for DMA, and its translation is being taken back.
    Leaving,
    /// Taken by the kernel, but the device did not confirm that its translation is gone.
    Stuck,
}

impl From<Entry> for PageState {
    fn from(entry: Entry) -> Self {
        match entry.state() {
            State::Empty => Self::Absent,
            State::Present => Self::Present,
            State::Mapped { writable: true } => Self::Mapped(Access::Write),
            State::Mapped { writable: false } => Self::Mapped(Access::Read),
            State::Leaving => Self::Leaving,
            State::Stuck => Self::Stuck,
        }
    }
}

/// Why no progress was possible for now. Never an error of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// An invalidation of the same range is running (`-EAGAIN`).
    Race,
    /// One has been running for longer than the mirror waits (`-EBUSY`).
    Held,
    /// No memory (`-ENOMEM`).
    Memory,
}

/// Why a range was not brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// The access is not valid and will not become so: no mapping there, `PROT_NONE`, the process
    /// is gone, the MR is no longer usable (`-EFAULT`, `-EINVAL`).
    Invalid,
    /// [`Access::Write`] was asked and the mapping is read-only (`-EPERM`).
    WriteRefused,
    /// The device could not be told of the pages.
    Device,
    /// Worth another try.
    Again(Pressure),
}

/// A user memory region with an MKey, kept alive by the value.
pub trait Region {
    /// See [`Region::fault_and_lock`].
    type Pages<'a>: LockedPages
    where
        Self: 'a;

    /// The region's key.
    fn mkey(&self) -> Mkey;

    /// Where the region lies; constant during its life.
    fn placement(&self) -> Placement;

    /// Faults `range` in with `access` and returns with the region locked against invalidation,
    /// all pages of `range` at least [`PageState::Present`] and, for [`Access::Write`], writable:
    /// never a part of it.
    ///
    /// # Errors
    ///
    /// As [`FaultError`] says; the region is not locked then.
    fn fault_and_lock(&self, range: VaRange, access: Access)
        -> Result<Self::Pages<'_>, FaultError>;

    /// Adds to the region's statistics: one handled fault that brought in `base_pages` pages of
    /// 4 KiB (`page_faults`, `page_faults_handled`).
    fn count_fault(&self, base_pages: u64);

    /// Adds pages of 4 KiB that nobody demanded to the statistics (`page_prefetch`).
    fn count_prefetch(&self, base_pages: u64);
}

/// Pages of a region while no invalidation can touch them; the drop unlocks.
pub trait LockedPages {
    /// The state of a page of the locked range.
    fn state(&self, page: PageIndex) -> PageState;

    /// Maps a page that is [`PageState::Present`] for DMA, which makes it
    /// [`PageState::Mapped`]; does nothing to one that is mapped already.
    ///
    /// # Errors
    ///
    /// [`FaultError::Again`] for want of memory, [`FaultError::Invalid`] for a page that this
    /// device cannot reach.
    fn map(&mut self, page: PageIndex) -> Result<(), FaultError>;

    /// Writes the translations of `run` to the device and waits until it has them.
    ///
    /// # Errors
    ///
    /// [`FaultError::Again`] or [`FaultError::Device`]; the device may then have none, some or
    /// all of them.
    fn publish(&mut self, run: PageRun) -> Result<(), FaultError>;
}
