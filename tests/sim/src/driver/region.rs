// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: `drivers/mlx5_ib/region.rs`, and as much of `mr.c` as makes and destroys one.

use std::rc::Rc;

use firmware_cmds::{AccessMode, Iova, Mkc, Mkey};
use hmm_abi::{ChunkIndex, Geometry, HmmPfn, Need, Scratch, Slots, Store};
use mlx5_odp::{bring_in_present, key, MemoryError, NotIn, Placement, Region};

use super::chunk::Chunk;
use super::key::{Key, KeyData};
use super::mirror::Mirror;
use crate::memory::PAGE;
use crate::mutant::Mutant;
use crate::task::Thread;

const PAGE_SHIFT: u32 = 12;

/// A memory region to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// Pages of the process.
    pub(crate) pages: std::ops::Range<usize>,
    /// The device's address of the first of them.
    pub(crate) iova: u64,
    pub(crate) writable: bool,
}

/// An MR, to a thread.
pub(crate) struct Mr<'t> {
    pub(crate) mirror: Rc<Mirror>,
    thread: &'t Thread<'t>,
    is_held: bool,
}

impl<'t> Mr<'t> {
    /// With a reference on its MKey.
    pub(crate) fn adopt(mirror: &Rc<Mirror>, thread: &'t Thread<'t>) -> Self {
        mirror.hold();
        Self {
            mirror: Rc::clone(mirror),
            thread,
            is_held: true,
        }
    }
}

impl Drop for Mr<'_> {
    fn drop(&mut self) {
        if self.is_held {
            self.mirror.put();
            self.thread.sim.tasks.wake(self.thread.sim.unused);
        }
    }
}

impl<'t> Store for Mr<'t> {
    type Chunk = Chunk<'t>;

    fn find(&self, at: ChunkIndex) -> Option<Chunk<'t>> {
        self.mirror.find(self.thread, at)
    }

    fn find_or_make(&self, at: ChunkIndex) -> Result<Chunk<'t>, MemoryError> {
        self.mirror.find_or_make(self.thread, at)
    }
}

/// Memory for what range faults find: a little on the stack.
pub(crate) struct Room<'t> {
    thread: &'t Thread<'t>,
    pages: Vec<HmmPfn>,
}

impl Scratch for Room<'_> {
    fn pages(&mut self, pages: usize) -> Option<&mut [HmmPfn]> {
        if pages > 32.max(self.pages.len()) && !self.thread.allocate() {
            return None;
        }
        self.pages
            .resize(pages.max(self.pages.len()), HmmPfn::EMPTY);
        self.pages.get_mut(..pages)
    }
}

impl<'t> Region for Mr<'t> {
    type Scratch = Room<'t>;

    fn mkey(&self) -> Mkey {
        self.mirror.key().mkey
    }

    fn placement(&self) -> &Placement {
        &self.mirror.placement
    }

    fn scratch(&self) -> Room<'t> {
        Room {
            thread: self.thread,
            pages: Vec::new(),
        }
    }

    fn occupancy(&self) -> Result<impl FnMut(ChunkIndex, Slots) -> bool + '_, NotIn> {
        let sim = self.thread.sim;
        Ok(|at: ChunkIndex, slots: Slots| {
            self.thread.step();
            let span = self.placement().geometry.span_of_slots(at, slots);
            let mut pages = span.start / PAGE..span.end / PAGE;
            let mut memory = sim.memory.lock();
            pages.any(|page| {
                matches!(
                    memory.walk(page, Need::Snapshot),
                    crate::memory::Walked::Found { .. }
                )
            })
        })
    }

    fn tidy(&self, at: ChunkIndex) {
        self.mirror.tidy(self.thread, at);
    }

    fn is_closing(&self) -> bool {
        !self.mirror.is_known()
    }

    fn count_fault(&self, base_pages: u64) {
        self.thread.sim.coverage(|c| {
            c.faults += 1;
            c.faulted_pages += base_pages;
        });
    }

    fn count_prefetch(&self, _: u64) {}
}

impl<'t> Thread<'t> {
    /// `ibv_reg_mr`. `None` for want of memory, or of a device that takes it.
    pub(crate) fn register(&'t self, registration: &Registration) -> Option<Rc<Mirror>> {
        let sim = self.sim;
        let pages = &registration.pages;
        let (start, bytes) = (pages.start * PAGE, pages.len() * PAGE);
        let placement = Placement {
            iova: Iova::new(registration.iova),
            address: match sim.has(Mutant::IndexFromIova) {
                true => usize::try_from(registration.iova).ok()?,
                false => start,
            },
            geometry: Geometry::cover(start, bytes, PAGE_SHIFT, PAGE_SHIFT).ok()?,
            writable: registration.writable,
        };
        let number = sim.next_mr();
        sim.memory.lock().reserve(number, pages.len());
        self.step();
        let mut mkc = sim.adapter.borrow().mkc(AccessMode::Mtt);
        mkc.translations_octword_size = u32::try_from(pages.len().div_ceil(2)).ok()?;
        let mkey = sim.adapter.borrow_mut().create_mkey(&mkc);
        let key = KeyData::new(sim, mkey);
        let mirror = Mirror::new(self, number, placement, pages.clone(), key);
        let mirror = Rc::new(mirror);
        sim.driver.mirrors.borrow_mut().push(Rc::clone(&mirror));
        sim.trace(|| format!("{}: registers {registration:x?} as {mkey:?}", self.name()));

        // `mlx5r_store_odp_mkey`, `mlx5_ib_init_odp_mr`.
        mirror.set_known(true);
        let enabled = Mkc {
            free: false,
            len: u64::try_from(bytes).ok()?,
            start_addr: Iova::new(registration.iova),
            access: firmware_cmds::Access {
                local_write: registration.writable,
                remote_write: registration.writable,
                ..mkc.access
            },
            ..mkc
        };
        let enabled = sim.umrs().enable(self, mkey, &enabled);
        if enabled.is_err() {
            self.deregister(&mirror);
            return None;
        }
        key::open(&self.key_of(&mirror));
        let mr = Mr {
            mirror: Rc::clone(&mirror),
            thread: self,
            is_held: false,
        };
        let indices = mirror.placement.geometry.indices();
        let brought_in =
            (mr.occupancy()).and_then(|occupied| bring_in_present(&mr, indices, occupied));
        if brought_in.is_err() {
            self.deregister(&mirror);
            return None;
        }
        Some(mirror)
    }

    fn key_of(&'t self, mirror: &Mirror) -> Key<'t> {
        Key::new(mirror.key(), self)
    }

    /// `ibv_dereg_mr`, as `mr.c` does it with our patch: unknown to faults, unused, revoked,
    /// destroyed, unmapped.
    pub(crate) fn deregister(&'t self, mirror: &Rc<Mirror>) {
        let sim = self.sim;
        let mkey = mirror.key().mkey;
        sim.trace(|| format!("{}: deregisters {mkey:?}", self.name()));
        mirror.set_known(false);
        self.step();
        while mirror.users() > 0 && !sim.is_over() {
            self.wait(sim.unused);
        }
        if !sim.has(Mutant::ZapOfDestroyedKey) {
            self.key_of(mirror).close();
        }
        self.step();
        sim.adapter.borrow_mut().destroy_mkey(mkey);
        key::closed(&self.key_of(mirror), true);
        self.step();
        mirror.release(self);
        sim.coverage(|c| c.deregistered += 1);
        let left = sim.memory.lock().mapped(mirror.number);
        if left > 0 && !mirror.kept.get() {
            sim.fail(
                "a leak",
                format_args!("{left} entries of {mkey:?} are mapped"),
            );
        }
        // The oracles have no key to look at any more.
        sim.driver
            .mirrors
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, mirror));
    }
}
