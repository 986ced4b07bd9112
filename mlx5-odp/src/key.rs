// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MKey: whether UMRs may name it, and what becomes of those that write its translations.
//!
//! The device violates the protocol's end if a UMR names an MKey that was destroyed
//! (abb604a1a9c8, CVE-2025-21732), and a zap that is not done must not look as if it were. What of
//! that is a rule is here; [`Key`] is what the driver does for it.

use core::mem::ManuallyDrop;

use hmm_abi::{LockedChunk, NotZapped, PublishError, Table, Zap};

use crate::xlt;

/// How often a UMR that was flushed because of another one is posted again.
pub const RETRIES: u32 = 3;

/// Whether the device may use an MKey, and UMRs may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    Open,
    /// A UMR that revokes it is under way, or the command that destroys it: what was posted before
    /// comes before it.
    Revoking,
    /// No.
    Gone,
}

/// Why a UMR did not write what it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UmrError {
    /// It was flushed because of another one.
    Flushed,
    /// It failed.
    Failed,
}

/// A UMR of a pool.
pub trait Umr {
    /// The MTTs that it writes.
    fn mtts(&mut self) -> &mut [[u8; xlt::MTT_LEN]];

    /// It is the one that is left when all others are in use.
    fn is_last(&self) -> bool;
}

/// An MKey, and its UMRs. The methods may be called with a chunk's lock held: none of them
/// allocates in a way that reclaims memory.
pub trait Key {
    /// A UMR.
    type Umr: Umr;
    /// Why something could not be posted.
    type Error;

    /// A UMR: one that nobody uses, else the last, when nobody uses it. `None` if there is no MKey
    /// yet.
    fn umr(&self) -> Option<Self::Umr>;

    /// Gives a UMR back that is not under way.
    fn put(&self, umr: Self::Umr);

    /// Calls `f` with the gate, under its lock, whenever the gate has changed until it returns
    /// something.
    fn gate<R>(&self, f: impl FnMut(&mut Gate) -> Option<R>) -> R;

    /// Posts a UMR that writes its first `mtts` MTTs, or as many that are not present if `blank`,
    /// from MTT `first` of the MKey on. Called under the gate's lock.
    ///
    /// # Errors
    ///
    /// It was not posted.
    fn post(
        &self,
        umr: &mut Self::Umr,
        first: usize,
        mtts: usize,
        blank: bool,
    ) -> Result<(), Self::Error>;

    /// Waits for a UMR that was posted.
    ///
    /// # Errors
    ///
    /// See [`UmrError`].
    fn wait(&self, umr: &Self::Umr) -> Result<(), UmrError>;

    /// Has the device revoke the MKey, and waits for it.
    ///
    /// # Errors
    ///
    /// The device may use it still.
    fn revoke_mkey(&self) -> Result<(), Self::Error>;
}

/// A zap under way; nothing if it is done. It has to be settled: a drop would lose the UMR.
#[derive(Debug)]
pub struct Ticket<U>(Option<ManuallyDrop<U>>);

/// UMRs may name the MKey.
pub fn open<K: Key>(key: &K) {
    set(key, Gate::Open);
}

/// Revokes the MKey, once.
///
/// # Errors
///
/// Those of [`Key::revoke_mkey`]; UMRs may name it again then.
pub fn revoke<K: Key>(key: &K) -> Result<(), K::Error> {
    revoke_or(key, Gate::Open)
}

/// The MKey is about to be destroyed: revokes it, and even if that fails no UMR names it until
/// [`closed()`].
pub fn close<K: Key>(key: &K) {
    // If it cannot be revoked, it may still be destroyed.
    let _ = revoke_or(key, Gate::Revoking);
}

/// The MKey was destroyed, or could not be.
pub fn closed<K: Key>(key: &K, destroyed: bool) {
    key.gate(|gate| {
        *gate = match *gate {
            Gate::Revoking if !destroyed => Gate::Open,
            _ => Gate::Gone,
        };
        Some(())
    });
}

/// Revokes the MKey, once; `otherwise` is what the gate is if that fails.
fn revoke_or<K: Key>(key: &K, otherwise: Gate) -> Result<(), K::Error> {
    let is_gone = key.gate(|gate| match *gate {
        Gate::Open => {
            *gate = Gate::Revoking;
            Some(false)
        }
        Gate::Revoking => None,
        Gate::Gone => Some(true),
    });
    if is_gone {
        return Ok(());
    }
    let revoked = key.revoke_mkey();
    set(
        key,
        match revoked {
            Ok(()) => Gate::Gone,
            Err(_) => otherwise,
        },
    );
    revoked
}

fn set<K: Key>(key: &K, to: Gate) {
    key.gate(|gate| {
        *gate = to;
        Some(())
    });
}

/// Why a UMR was not posted.
enum NotPosted {
    /// The MKey is gone.
    Gone,
    /// It could not be.
    Failed,
}

/// Posts the UMR that writes `table`; if the MKey is being revoked, waits for that.
fn post<K: Key, L: LockedChunk>(
    key: &K,
    umr: &mut K::Umr,
    table: &Table<'_, L>,
) -> Result<(), NotPosted> {
    let blank = table.is_blank();
    let mtts = match blank {
        true => xlt::len(table),
        false => xlt::fill(table, umr.mtts()).ok_or(NotPosted::Failed)?,
    };
    key.gate(|gate| match *gate {
        Gate::Open => {
            let posted = key.post(umr, table.first().0, mtts, blank);
            Some(posted.map_err(|_| NotPosted::Failed))
        }
        Gate::Revoking => None,
        Gate::Gone => Some(Err(NotPosted::Gone)),
    })
}

/// Writes `table`, and waits for it: [`hmm_abi::Device::publish`].
///
/// # Errors
///
/// See [`PublishError`].
pub fn publish<K: Key, L: LockedChunk>(key: &K, table: &Table<'_, L>) -> Result<(), PublishError> {
    let mut umr = key.umr().ok_or(PublishError::Gone)?;
    let mut published = Err(PublishError::Again);
    for _ in 0..=RETRIES {
        published = match post(key, &mut umr, table) {
            Ok(()) => match key.wait(&umr) {
                Ok(()) => Ok(()),
                Err(UmrError::Flushed) => Err(PublishError::Again),
                Err(UmrError::Failed) => Err(PublishError::Failed),
            },
            Err(NotPosted::Gone) => Err(PublishError::Gone),
            Err(NotPosted::Failed) => Err(PublishError::Failed),
        };
        if published != Err(PublishError::Again) {
            break;
        }
    }
    key.put(umr);
    published
}

/// Posts `table`: [`hmm_abi::Device::zap`].
///
/// # Errors
///
/// [`NotZapped`] if it could not be posted.
pub fn zap<K: Key, L: LockedChunk>(
    key: &K,
    table: &Table<'_, L>,
) -> Result<Zap<Ticket<K::Umr>>, NotZapped> {
    let Some(mut umr) = key.umr() else {
        return Ok(Zap::Gone);
    };
    let posted = post(key, &mut umr, table);
    if posted.is_ok() && !umr.is_last() {
        return Ok(Zap::Posted(Ticket(Some(ManuallyDrop::new(umr)))));
    }
    let zapped = match posted {
        // Others wait for the last UMR, and whoever waits for this zap may wait for them.
        Ok(()) => match key.wait(&umr) {
            Ok(()) => Ok(Zap::Posted(Ticket(None))),
            Err(_) => Err(NotZapped),
        },
        Err(NotPosted::Gone) => Ok(Zap::Gone),
        Err(NotPosted::Failed) => Err(NotZapped),
    };
    key.put(umr);
    zapped
}

/// Waits for a zap: [`hmm_abi::Device::settle`].
///
/// # Errors
///
/// [`NotZapped`] if it failed.
pub fn settle<K: Key>(key: &K, ticket: Ticket<K::Umr>) -> Result<(), NotZapped> {
    let Some(umr) = ticket.0.map(ManuallyDrop::into_inner) else {
        return Ok(());
    };
    let zapped = key.wait(&umr).map_err(|_| NotZapped);
    key.put(umr);
    zapped
}
