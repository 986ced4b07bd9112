// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the fault path needs of a memory region: a mirror with a key.

use firmware_cmds::Mkey;
use hmm_abi::{ChunkIndex, FaultChunk, Scratch, Slots, Store};

use crate::{NotIn, Placement};

/// Why no progress was possible for now. Never an error of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// An invalidation of the same range is running.
    Race,
    /// One has been running for longer than the mirror waits, or somebody holds the process's
    /// memory map.
    Held,
    /// No memory.
    Memory,
}

/// Why the memory of a region could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// The access is not valid and will not become so: no mapping there, `PROT_NONE`, the process
    /// is gone (`-EFAULT`, `-EINVAL`).
    Invalid,
    /// Write was asked for and the mapping is read-only (`-EPERM`).
    WriteRefused,
    /// Worth another try.
    Again(Pressure),
}

/// A user memory region with an MKey, kept alive by the value.
pub trait Region: Store<Chunk: FaultChunk<Error = MemoryError>> {
    /// See [`Region::scratch`].
    type Scratch: Scratch;

    /// The region's key.
    fn mkey(&self) -> Mkey;

    /// Where the region lies; constant during its life.
    fn placement(&self) -> &Placement;

    /// Room for what range faults find.
    fn scratch(&self) -> Self::Scratch;

    /// Says of slots of a chunk whether the process has memory there now: a guess, for a chunk that
    /// does not exist to be worth making.
    ///
    /// # Errors
    ///
    /// [`NotIn::Invalid`] if the process is gone, [`NotIn::Busy`] for want of memory.
    fn occupancy(&self) -> Result<impl FnMut(ChunkIndex, Slots) -> bool + '_, NotIn>;

    /// A chunk that was made may have nothing in it: it can go, if that is so.
    fn tidy(&self, at: ChunkIndex);

    /// Whether the region's destruction waits for those who use it.
    fn is_closing(&self) -> bool;

    /// Adds to the region's statistics: one handled fault that brought in `base_pages` pages of
    /// 4 KiB (`page_faults`, `page_faults_handled`).
    fn count_fault(&self, base_pages: u64);

    /// Adds pages of 4 KiB that nobody demanded to the statistics (`page_prefetch`).
    fn count_prefetch(&self, base_pages: u64);
}
