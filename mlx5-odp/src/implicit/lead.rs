// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where the device's table of children leads.

use firmware_cmds::Mkey;

use super::{ChildIndex, Layout};
use crate::key::{UmrError, RETRIES};
use crate::xlt::{self, NullKey, KSM_BLOCK, KSM_LEN};

/// What is known of the children of one implicit MR, under the lock of
/// [`Family::with`](super::Family::with).
pub trait Children {
    /// The KSM of a child leads to it from the next UMR on, or not. The child is there.
    fn show(&mut self, at: ChildIndex, is_shown: bool);

    /// The key that the KSM of a child leads to; `None` for the null key.
    fn shown(&self, at: ChildIndex) -> Option<Mkey>;
}

/// An implicit MR and its UMRs.
pub trait Parent {
    /// See [`Parent::children`].
    type Children: Children;
    /// A UMR, and the KSMs that it writes: one block of [`KSM_BLOCK`] at least.
    type Umr: AsMut<[u8]>;
    /// Why the device does not lead where it should.
    type Error;

    /// Where its children lie.
    fn layout(&self) -> &Layout;

    /// Where the others lead.
    fn null_key(&self) -> NullKey;

    /// Calls `f` with the children, under their lock.
    fn children<R>(&self, f: impl FnOnce(&mut Self::Children) -> R) -> R;

    /// A UMR that nobody uses. Called without the children's lock, for it may wait for one.
    fn umr(&self) -> Self::Umr;

    /// Gives a UMR back that is not under way.
    fn put(&self, umr: Self::Umr);

    /// Posts a UMR that writes its first `len` bytes into the table of the parent's key, from byte
    /// `first` on. Called under the children's lock.
    ///
    /// # Errors
    ///
    /// It was not posted.
    fn post(&self, umr: &mut Self::Umr, first: usize, len: usize) -> Result<(), Self::Error>;

    /// Waits for a UMR that was posted.
    ///
    /// # Errors
    ///
    /// See [`UmrError`].
    fn settle(&self, umr: &Self::Umr) -> Result<(), UmrError>;

    /// What [`lead()`] fails with: [`UmrError::Flushed`] if the device may take it later.
    fn error(&self, error: UmrError) -> Self::Error;
}

/// Has the device's table lead to a child, or not, and waits until the device sees that: what
/// [`Family::show`](super::Family::show) and [`Family::hide`](super::Family::hide) are to do. A UMR
/// writes a block of KSMs, all of them as they are to be.
///
/// # Errors
///
/// The table may lead to the child or not.
pub fn lead<P: Parent>(parent: &P, at: ChildIndex, is_shown: bool) -> Result<(), P::Error> {
    let mut umr = parent.umr();
    let led = lead_with(parent, &mut umr, at, is_shown);
    parent.put(umr);
    led
}

fn lead_with<P: Parent>(
    parent: &P,
    umr: &mut P::Umr,
    at: ChildIndex,
    is_shown: bool,
) -> Result<(), P::Error> {
    let first = ChildIndex(at.0 & !(KSM_BLOCK - 1));
    let len = KSM_BLOCK * KSM_LEN;
    for _ in 0..=RETRIES {
        // What is posted first comes first: under the lock, so do the states.
        parent.children(|children| {
            children.show(at, is_shown);
            let ksms = &mut umr.as_mut()[..len];
            let key_of = |at| children.shown(at);
            xlt::fill_ksms(ksms, parent.layout(), first, parent.null_key(), key_of);
            parent.post(umr, first.0 * KSM_LEN, len)
        })?;
        match parent.settle(umr) {
            Err(UmrError::Flushed) => {}
            settled => return settled.map_err(|error| parent.error(error)),
        }
    }
    Err(parent.error(UmrError::Flushed))
}
