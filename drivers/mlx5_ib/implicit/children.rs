// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The table of an implicit MR's children, and what is done to them.

use core::ptr::NonNull;

use firmware_cmds::Mkey;
use kernel::{
    mm::MmWithUser,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
};
use mlx5_odp::{
    implicit::{
        self,
        ChildIndex,
        Family,
        Layout,
        Slot, //
    },
    key::UmrError,
    xlt::NullKey,
    NotIn,
    Pressure,
    LATE, //
};

use super::Parent;
use crate::{
    bindings,
    mirror::{
        Mirror,
        MirrorOf, //
    },
    region::Mr,
    umr::Umr,
};

/// No child.
pub(super) const NO_CHILD: usize = usize::MAX;

/// The children whose slots are not absent.
pub(crate) struct Table {
    pub(super) children: RBTree<usize, Child>,
    /// The first of those to be retired.
    pub(super) idle: usize,
    /// A child could not be destroyed, and is kept for good.
    pub(super) has_lost_one: bool,
}

/// An entry of the table.
///
/// # Invariants
///
/// `mr` is a child's MR, which `table` owns. Whoever is in, and whoever has made the slot busy, may
/// use it.
#[derive(Default)]
pub(super) struct Child {
    slot: Slot,
    mr: Option<NonNull<bindings::mlx5_ib_mr>>,
    /// The KSM leads to it, or shall from the next UMR on.
    is_shown: bool,
    /// The next one to be retired, if it is one of them; it is not removed from the table then.
    pub(super) next_idle: Option<usize>,
}

impl Table {
    /// Of no child.
    pub(super) fn new() -> Self {
        Self {
            children: RBTree::new(),
            idle: NO_CHILD,
            has_lost_one: false,
        }
    }

    /// An MR of a child that is in the table.
    pub(super) fn mr_of(&self, at: ChildIndex) -> Option<NonNull<bindings::mlx5_ib_mr>> {
        self.children.get(&at.0)?.mr
    }
}

impl Parent {
    /// Makes the MR of a child.
    fn make_child(&self, at: ChildIndex) -> Result<NonNull<bindings::mlx5_ib_mr>> {
        let parent = NonNull::new(self.mr()).ok_or(EINVAL)?;
        // For one that is gone no child is made; while it is there, chunks see to themselves.
        let mm = self.mm.mmget_not_zero().ok_or(EFAULT)?;
        drop(MmWithUser::into_mmput_async(mm));
        let placement = self.layout.placement(at, self.is_writable).ok_or(EFAULT)?;
        let entries = c_int::try_from(self.layout.entries())?;
        // SAFETY: The parent is live, and so is its PD.
        let pdn = unsafe { bindings::mlx5r_odp_pdn(bindings::mlx5r_odp_pd(parent.as_ptr())) };
        let of = MirrorOf {
            mm: self.mm.clone(),
            placement,
            // CAST: widens.
            length: 1 << self.layout.child_shift(),
            parent: Some((NonNull::from(self), at)),
        };
        // SAFETY: The device outlives the parent, and that its children.
        let raw = Mirror::into_raw(unsafe { Mirror::of(self.dev, of) }?);
        // SAFETY: The parent is live; it is the mirror's MR.
        let mr = unsafe { bindings::mlx5r_odp_alloc_child(parent.as_ptr(), raw, entries) };
        let mr = match kernel::error::from_err_ptr(mr).map(NonNull::new) {
            Ok(Some(mr)) => mr,
            other => {
                // SAFETY: Nobody knows it.
                unsafe { Mirror::put(raw) };
                return Err(other.err().unwrap_or(ENOMEM));
            }
        };
        // SAFETY: It is live, and its umem is just that mirror.
        let enabled = unsafe { Mr::new(mr) }
            .enable_blank(pdn)
            .map_err(device_error)
            .and_then(|()| {
                if !self.memory_scheme {
                    return Ok(());
                }
                // SAFETY: The MR is live.
                kernel::error::to_result(unsafe { bindings::mlx5r_odp_make_known(mr.as_ptr()) })
            });
        if let Err(error) = enabled {
            self.dereg(mr);
            return Err(error);
        }
        Ok(mr)
    }

    /// Destroys the MR of a child, which nobody else knows.
    fn dereg(&self, mr: NonNull<bindings::mlx5_ib_mr>) {
        // SAFETY: By the caller's promise.
        if unsafe { bindings::mlx5r_odp_dereg(mr.as_ptr()) } != 0 {
            self.table.lock().has_lost_one = true;
        }
    }
}

/// What the device did not do, unlike what the process has not.
fn device_error(error: Error) -> Error {
    match error {
        e if e == ENOMEM => ENOMEM,
        _ => EIO,
    }
}

/// Why a child could not be had.
pub(super) fn not_in(error: Error) -> NotIn {
    match error {
        e if e == ENOMEM || e == EAGAIN => NotIn::Busy(Pressure::Memory),
        e if e == EFAULT || e == EINVAL => NotIn::Invalid,
        _ => NotIn::Device,
    }
}

impl implicit::Children for Table {
    fn show(&mut self, at: ChildIndex, is_shown: bool) {
        if let Some(child) = self.children.get_mut(&at.0) {
            child.is_shown = is_shown;
        }
    }

    fn shown(&self, at: ChildIndex) -> Option<Mkey> {
        let child = self.children.get(&at.0).filter(|child| child.is_shown)?;
        let mr = child.mr?;
        // SAFETY: The table owns it.
        Some(Mkey::new(unsafe { bindings::mlx5r_odp_mkey(mr.as_ptr()) }))
    }
}

impl implicit::Parent for Parent {
    type Children = Table;
    type Umr = Umr;
    type Error = Error;

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn null_key(&self) -> NullKey {
        // SAFETY: By the type invariants; whoever asks holds the MR, or has just made it.
        let key = Mkey::new(unsafe { bindings::mlx5r_odp_null_key(self.mr()) });
        match self.memory_scheme {
            true => NullKey::Own(key),
            false => NullKey::Device(key),
        }
    }

    fn children<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        f(&mut self.table.lock())
    }

    fn umr(&self) -> Umr {
        Umr::get(self.faults())
    }

    fn put(&self, umr: Umr) {
        drop(umr);
    }

    fn post(&self, umr: &mut Umr, first: usize, len: usize) -> Result {
        let mr = NonNull::new(self.mr()).ok_or(EINVAL)?;
        // SAFETY: The MR is live, for whoever leads holds it.
        unsafe { umr.post(mr, first, len, false) }.map_err(|_| EIO)
    }

    fn settle(&self, umr: &Umr) -> Result<(), UmrError> {
        let mr = NonNull::new(self.mr()).ok_or(UmrError::Failed)?;
        // SAFETY: As above.
        unsafe { umr.wait(mr) }
    }

    fn error(&self, error: UmrError) -> Error {
        match error {
            UmrError::Flushed => EAGAIN,
            UmrError::Failed => EIO,
        }
    }
}

impl Family for Parent {
    type Error = Error;

    fn with<R>(&self, at: ChildIndex, change: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let mut reservation = None;
        loop {
            let mut table = self.table.lock();
            if let Some(child) = table.children.get_mut(&at.0) {
                let was_busy = child.slot == Slot::Busy;
                let result = change(&mut child.slot);
                let is_useless = child.slot == Slot::Absent && child.next_idle.is_none();
                let removed = match is_useless {
                    true => table.children.remove_node(&at.0),
                    false => None,
                };
                drop(table);
                drop(removed);
                if was_busy {
                    self.changed.notify_all();
                }
                return Some(result);
            }
            let Some(reservation) = reservation.take() else {
                drop(table);
                reservation = Some(RBTreeNodeReservation::new(GFP_KERNEL).ok()?);
                continue;
            };
            let mut child = Child::default();
            let result = change(&mut child.slot);
            if child.slot != Slot::Absent {
                table.children.insert(reservation.into_node(at.0, child));
            }
            return Some(result);
        }
    }

    fn no_memory(&self) -> Error {
        ENOMEM
    }

    fn wait(&self, at: ChildIndex) {
        let mut table = self.table.lock();
        let is_busy = |table: &Table| {
            let child = table.children.get(&at.0);
            child.is_some_and(|child| child.slot == Slot::Busy)
        };
        while is_busy(&table) {
            self.changed.wait(&mut table);
        }
    }

    fn make(&self, at: ChildIndex) -> Result {
        let mr = self.make_child(at)?;
        if let Some(child) = self.table.lock().children.get_mut(&at.0) {
            // INVARIANT: Just made.
            child.mr = Some(mr);
        }
        Ok(())
    }

    fn show(&self, at: ChildIndex) -> Result {
        implicit::lead(self, at, true)
    }

    fn hide(&self, at: ChildIndex) -> Result {
        implicit::lead(self, at, false)
    }

    fn destroy(&self, at: ChildIndex) {
        let mut table = self.table.lock();
        let mr = (table.children.get_mut(&at.0)).and_then(|child| child.mr.take());
        drop(table);
        if let Some(mr) = mr {
            self.dereg(mr);
        }
    }

    fn is_empty(&self, at: ChildIndex) -> bool {
        let table = self.table.lock();
        // SAFETY: The table owns the MR, and its mirror goes with it.
        let is_empty = |mr: NonNull<bindings::mlx5_ib_mr>| unsafe {
            Mirror::from_raw(bindings::mlx5r_odp_umem(mr.as_ptr())).is_empty()
        };
        table.mr_of(at).is_some_and(is_empty)
    }

    fn now(&self) -> u32 {
        // SAFETY: It reads a counter.
        unsafe { bindings::mlx5r_odp_now() }
    }

    fn late(&self) -> u32 {
        LATE
    }

    fn moment(&self) -> u32 {
        match self.memory_scheme {
            true => self.faults().moment(),
            false => self.served(),
        }
    }

    fn served(&self) -> u32 {
        self.faults().served()
    }

    fn retire_later(&self, at: ChildIndex) {
        self.push_idle(at);
        self.retire_soon();
    }
}
