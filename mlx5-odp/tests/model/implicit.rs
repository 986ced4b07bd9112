// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Implicit MRs, whose children are made when they are asked for, and stay.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use firmware_cmds::Mkey;
use mlx5_odp::implicit::{ChildIndex, Implicit, Layout};
use mlx5_odp::NotIn;

use super::driver::{HeldMr, Model};

/// An implicit MR.
pub(crate) struct Parent {
    mkey: Mkey,
    null: Mkey,
    /// The key of child 0; the others follow by index.
    first_child: u32,
    layout: Layout,
    writable: bool,
    /// Children that there are, and what making them failed with so often first.
    children: Mutex<BTreeMap<usize, Mkey>>,
    pub(crate) refuses: Mutex<Vec<NotIn>>,
    pub(crate) faults: AtomicU64,
    pub(crate) faults_handled: AtomicU64,
    pub(crate) prefetched: AtomicU64,
}

impl Parent {
    /// Known by `mkey`, by `null`, and by the keys of its children.
    pub(crate) fn new(mkey: Mkey, null: Mkey, first_child: u32, writable: bool) -> Self {
        Self {
            mkey,
            null,
            first_child,
            layout: Layout::of((1 << 47) - 4096, 12).unwrap(),
            writable,
            children: Mutex::default(),
            refuses: Mutex::default(),
            faults: AtomicU64::new(0),
            faults_handled: AtomicU64::new(0),
            prefetched: AtomicU64::new(0),
        }
    }

    pub(crate) fn has_key(&self, mkey: Mkey) -> bool {
        let children = self.children.lock().unwrap();
        [self.mkey, self.null].contains(&mkey) || children.values().any(|&child| child == mkey)
    }

    /// The children that there are.
    pub(crate) fn children(&self) -> Vec<usize> {
        self.children.lock().unwrap().keys().copied().collect()
    }

    /// The key that a child has, or will have.
    pub(crate) fn key_of(&self, at: usize) -> Mkey {
        Mkey::new(self.first_child + (u32::try_from(at).unwrap() << 8))
    }
}

/// A reference to one.
pub(crate) struct HeldParent<'m> {
    model: &'m Model,
    parent: Arc<Parent>,
}

impl<'m> HeldParent<'m> {
    pub(crate) fn new(model: &'m Model, parent: &Arc<Parent>) -> Self {
        let parent = Arc::clone(parent);
        Self { model, parent }
    }
}

impl Implicit for HeldParent<'_> {
    type Child<'i>
        = HeldMr
    where
        Self: 'i;

    fn mkey(&self) -> Mkey {
        self.parent.mkey
    }

    fn layout(&self) -> &Layout {
        &self.parent.layout
    }

    fn is_writable(&self) -> bool {
        self.parent.writable
    }

    fn child(&self, at: ChildIndex) -> Result<HeldMr, NotIn> {
        if let Some(refused) = self.parent.refuses.lock().unwrap().pop() {
            return Err(refused);
        }
        let mkey = self.parent.key_of(at.0);
        let mut children = self.parent.children.lock().unwrap();
        if children.insert(at.0, mkey).is_none() {
            let start = self.parent.layout.start_of(at);
            let address = usize::try_from(start).unwrap();
            let bytes = 1 << self.parent.layout.child_shift();
            let writable = self.parent.writable;
            self.model.register(mkey, start, address, bytes, writable);
        }
        Ok(HeldMr::new(&self.model.mr(mkey)))
    }

    fn count_fault(&self, base_pages: u64) {
        self.parent.faults.fetch_add(base_pages, Ordering::Relaxed);
        self.parent.faults_handled.fetch_add(1, Ordering::Relaxed);
    }

    fn count_prefetch(&self, base_pages: u64) {
        let prefetched = &self.parent.prefetched;
        prefetched.fetch_add(base_pages, Ordering::Relaxed);
    }
}
