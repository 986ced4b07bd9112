// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What runs have come across.

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident: $int:ident,)*) => {
        /// What runs have come across, in numbers.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: $int,)*
        }

        impl Coverage {
            /// Adds another run's.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Every number with its name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                // CAST: widens.
                vec![$((stringify!($name), self.$name as u64),)*]
            }
        }
    };
}

coverage! {
    /// Scheduling decisions.
    steps: usize,
    /// Accesses that completed.
    completed: usize,
    /// Accesses that failed because they had to.
    refused: usize,
    /// Accesses whose bytes were compared.
    compared: usize,
    /// Accesses of which a report was lost, and which ended with their QP.
    lost: usize,
    /// Events served.
    served: usize,
    /// Faults that brought pages in.
    faults: usize,
    /// And how many.
    faulted_pages: u64,
    /// Resumes.
    resumes: usize,
    /// Those with error.
    resumed_with_error: usize,
    /// Faults that went back to the device.
    gave_back: usize,
    /// Range faults that waited for a page that was moved, or for a userfaultfd.
    stalled: usize,
    /// Invalidations.
    invalidations: usize,
    /// Those that began while another was under way.
    overlapping: usize,
    /// Second passes.
    two_passes: usize,
    /// Invalidations that must not sleep, and would have had to.
    would_block: usize,
    /// Entries taken back from the device.
    taken_back: usize,
    /// Zaps that were not done in the usual way.
    not_zapped: usize,
    /// Entries that the device kept.
    held: usize,
    /// Times that a mirror was cut off, that at its end among them.
    cut_off: usize,
    /// UMR QPs recovered.
    recoveries: usize,
    /// Times that the last UMR of the pool was taken.
    last_umr: usize,
    /// Chunks made.
    chunks: usize,
    /// Chunks freed before the end.
    reaped: usize,
    /// Children of implicit MRs made.
    children: usize,
    /// Those that were hidden, and shown again.
    children_shown_again: usize,
    /// Those destroyed because nobody needed them.
    children_retired: usize,
    /// Accesses to two children.
    over_two_children: usize,
    /// Prefetches.
    advised: usize,
    /// Pages that they brought in, or looked at.
    prefetched_pages: u64,
    /// MRs deregistered.
    deregistered: usize,
    /// Those of them with QPs at work.
    deregistered_in_use: usize,
    /// Allocations that reclaimed memory.
    reclaims: usize,
    /// Bytes that the device read or wrote: accesses to pages.
    device_accesses: usize,
}
