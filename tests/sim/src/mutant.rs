// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Mistakes, one at a time, that the oracles must find: those of the C driver's history, and of its
//! kind. They are made where the simulation stands in for the kernel or the driver's glue; nothing
//! of them is in what ships.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutant {
    /// A zap names a key that was destroyed (abb604a1a9c8, CVE-2025-21732).
    ZapOfDestroyedKey,
    /// Memory is allocated under the lock that invalidations take, and reclaim invalidates
    /// (2ed25aa7f771).
    AllocationUnderTheLock,
    /// The index of a page is computed from the device's address (8ffc32485158).
    IndexFromIova,
    /// A lock is held from the start to the end of an invalidation, and a THP split within it
    /// invalidates too (f25a546e6529).
    LockedUntilTheEnd,
    /// An invalidation that would block leaves the lock taken.
    MissedUnlock,
    /// Range faults share what HMM writes to.
    SharedScratch,
    /// A UMR that failed is taken for one that was done.
    IgnoredUmrFailure,
    /// Pages stay mapped for the device once its key is gone.
    NoUnmapOnceTheKeyIsGone,
    /// An invalidation does not record its sequence.
    NoSetSequence,
    /// A range fault is not validated.
    NoRetryCheck,
    /// A zap is not waited for.
    ZapNotWaitedFor,
    /// What the device has written is not marked dirty.
    NoDirty,
    /// A UMR QP that failed is recovered by who waits for the UMR that failed and nobody else
    /// (found by this simulation, in our own patch to `umr.c`).
    RecoveryByTheWaiterAlone,
    /// To recover the UMR QP allocates memory in a way that reclaims, in the middle of invalidations
    /// (`mlx5r_umr_recover` calls `ib_modify_qp`).
    RecoveryThatReclaims,
    /// A key that cannot be revoked is destroyed while UMRs may still name it (found by this
    /// simulation, in our own glue).
    OpenWhileDestroyed,
    /// An invalidation that must not sleep waits for a chunk's lock when it is done (found by this
    /// simulation, in our own glue).
    TidyThatSleeps,
    /// The state of a child is looked at and changed without the lock in between (d3d930411ce3,
    /// CVE-2025-21714: a child that was being destroyed was destroyed again, or used).
    ChildrenUnlocked,
    /// Who looks for children to destroy and finds none keeps the parent's reference (3d8c6f26893d).
    RetiredNothingAndHeld,
    /// A child and its notifier are made for a process that is gone ("ensure the mm is still alive
    /// before creating an implicit child").
    NotifierOfNobody,
    /// KSMs lead to a page behind the start of children (of the kind of 235f23840219).
    UnalignedKsm,
    /// KSMs are read from the table under its lock, and posted without.
    KsmsPostedUnlocked,
    /// A hidden child is destroyed before the events about it are served.
    ChildDestroyedAtOnce,
    /// Not a mistake: no invalidation is in two passes.
    OnePass,
}

impl Mutant {
    /// All that are mistakes.
    pub const ALL: [Self; 22] = [
        Self::ZapOfDestroyedKey,
        Self::AllocationUnderTheLock,
        Self::IndexFromIova,
        Self::LockedUntilTheEnd,
        Self::MissedUnlock,
        Self::SharedScratch,
        Self::IgnoredUmrFailure,
        Self::NoUnmapOnceTheKeyIsGone,
        Self::NoSetSequence,
        Self::NoRetryCheck,
        Self::ZapNotWaitedFor,
        Self::NoDirty,
        Self::RecoveryByTheWaiterAlone,
        Self::RecoveryThatReclaims,
        Self::OpenWhileDestroyed,
        Self::TidyThatSleeps,
        Self::ChildrenUnlocked,
        Self::RetiredNothingAndHeld,
        Self::NotifierOfNobody,
        Self::UnalignedKsm,
        Self::KsmsPostedUnlocked,
        Self::ChildDestroyedAtOnce,
    ];
}
