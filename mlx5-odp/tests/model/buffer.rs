// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! An MR of a dma-buf whose exporter does as it is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use firmware_cmds::{Iova, Mkey};
use mlx5_odp::{Buffer, NotIn};

/// A dma-buf's MR.
pub(crate) struct Exported {
    pub(crate) mkey: Mkey,
    iova: u64,
    len: u64,
    writable: bool,
    /// What publishing it comes to, the last one first; then it is published.
    pub(crate) trouble: Mutex<Vec<NotIn>>,
    /// How often the exporter was asked.
    pub(crate) asked: AtomicU64,
    /// How often it was published.
    pub(crate) published: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) faults_handled: AtomicU64,
    pub(crate) prefetched: AtomicU64,
}

impl Exported {
    pub(crate) fn new(mkey: Mkey, iova: u64, len: u64, writable: bool) -> Arc<Self> {
        Arc::new(Self {
            mkey,
            iova,
            len,
            writable,
            trouble: Mutex::default(),
            asked: AtomicU64::new(0),
            published: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            faults_handled: AtomicU64::new(0),
            prefetched: AtomicU64::new(0),
        })
    }
}

/// A reference to one.
pub(crate) struct HeldBuffer(pub(crate) Arc<Exported>);

impl Buffer for HeldBuffer {
    fn mkey(&self) -> Mkey {
        self.0.mkey
    }

    fn iova(&self) -> Iova {
        Iova::new(self.0.iova)
    }

    fn len(&self) -> u64 {
        self.0.len
    }

    fn is_writable(&self) -> bool {
        self.0.writable
    }

    fn publish(&self) -> Result<u64, NotIn> {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        if let Some(why) = self.0.trouble.lock().unwrap().pop() {
            return Err(why);
        }
        self.0.published.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.len.div_ceil(4096))
    }

    fn count_fault(&self, base_pages: u64) {
        self.0.faults.fetch_add(base_pages, Ordering::Relaxed);
        self.0.faults_handled.fetch_add(1, Ordering::Relaxed);
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.0.prefetched.fetch_add(base_pages, Ordering::Relaxed);
    }
}
