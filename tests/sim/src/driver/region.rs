// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Memory regions: `drivers/mlx5_ib/region.rs`, and as much of `mr.c` as makes and destroys one.

use std::rc::{Rc, Weak};

use firmware_cmds::{Access, AccessMode, Iova, Mkc, Mkey};
use hmm_abi::{ChunkIndex, Geometry, HmmPfn, Need, Scratch, Slots, Store};
use mlx5_odp::implicit::{ChildIndex, Implicit, Layout};
use mlx5_odp::key::UmrError;
use mlx5_odp::{bring_in_present, key, MemoryError, NotIn, Placement, Region};

use super::chunk::Chunk;
use super::implicit::{Parent, ParentData};
use super::key::{Key, KeyData};
use super::mirror::Mirror;
use crate::memory::PAGE;
use crate::mutant::Mutant;
use crate::notifier::Pages;
use crate::sim::Sim;
use crate::task::Thread;

const PAGE_SHIFT: u32 = 12;

/// A memory region to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// An explicit one.
    Explicit(Area),
    /// An implicit one.
    Implicit { writable: bool },
}

/// What an explicit one is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// Pages of the process.
    pub(crate) pages: Pages,
    /// The device's address of the first of them.
    pub(crate) iova: u64,
    pub(crate) writable: bool,
}

/// An MR as its user has it.
#[derive(Clone)]
pub(crate) enum UserMr {
    Explicit(Rc<Mirror>),
    Implicit(Rc<ParentData>),
}

impl UserMr {
    pub(crate) fn mkey(&self) -> Mkey {
        match self {
            Self::Explicit(mirror) => mirror.key().mkey,
            Self::Implicit(parent) => parent.mkey,
        }
    }

    /// Whether these pages are in it.
    pub(crate) fn covers(&self, pages: &Pages) -> bool {
        match self {
            Self::Explicit(mirror) => {
                let own = &mirror.pages;
                own.start <= pages.start && pages.end <= own.end
            }
            Self::Implicit(_) => true,
        }
    }

    /// What the device calls the first byte of a page.
    pub(crate) fn address(&self, page: usize) -> u64 {
        let address = |pages: usize| u64::try_from(pages.wrapping_mul(PAGE)).unwrap_or(u64::MAX);
        match self {
            Self::Explicit(mirror) => {
                let offset = address(page.wrapping_sub(mirror.pages.start));
                mirror.placement.iova.get().wrapping_add(offset)
            }
            Self::Implicit(_) => address(page),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        match self {
            Self::Explicit(mirror) => mirror.placement.writable,
            Self::Implicit(parent) => parent.writable,
        }
    }

    /// Whether it is there, and will be for now.
    pub(crate) fn is_known(&self) -> bool {
        match self {
            Self::Explicit(mirror) => mirror.is_known(),
            Self::Implicit(parent) => parent.is_known(),
        }
    }
}

/// What keeps an MR from being destroyed, and belongs to the value.
enum Hold {
    /// The caller sees to it.
    Not,
    /// A reference on its MKey.
    Key,
    /// It is a child, and was entered.
    Child(Rc<ParentData>, ChildIndex),
}

/// An explicit MR or a child, to a thread.
pub(crate) struct Mr<'t> {
    mirror: Rc<Mirror>,
    thread: &'t Thread<'t>,
    hold: Hold,
}

impl<'t> Mr<'t> {
    /// Takes over a reference on its MKey.
    pub(crate) fn adopt(mirror: &Rc<Mirror>, thread: &'t Thread<'t>) -> Self {
        Self {
            mirror: Rc::clone(mirror),
            thread,
            hold: Hold::Key,
        }
    }

    /// A child that was entered.
    pub(crate) fn enter(
        mirror: Rc<Mirror>,
        thread: &'t Thread<'t>,
        parent: &Rc<ParentData>,
        at: ChildIndex,
    ) -> Self {
        Self {
            mirror,
            thread,
            hold: Hold::Child(Rc::clone(parent), at),
        }
    }
}

impl Drop for Mr<'_> {
    fn drop(&mut self) {
        if self.thread.sim.is_over() {
            return;
        }
        match &self.hold {
            Hold::Not => {}
            Hold::Key => {
                self.mirror.put();
                self.thread.sim.tasks.wake(self.thread.sim.unused);
            }
            Hold::Child(parent, at) => Parent::new(parent, self.thread).leave(*at),
        }
    }
}

/// An implicit MR of which a reference on the MKey is held, to a thread.
pub(crate) struct ImplicitMr<'t> {
    parent: Rc<ParentData>,
    thread: &'t Thread<'t>,
}

impl<'t> ImplicitMr<'t> {
    /// Takes over the reference.
    pub(crate) fn adopt(parent: &Rc<ParentData>, thread: &'t Thread<'t>) -> Self {
        Self {
            parent: Rc::clone(parent),
            thread,
        }
    }
}

impl Drop for ImplicitMr<'_> {
    fn drop(&mut self) {
        self.parent.put(self.thread.sim);
    }
}

impl<'t> Implicit for ImplicitMr<'t> {
    type Child<'i>
        = Mr<'t>
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

    fn child(&self, at: ChildIndex) -> Result<Mr<'t>, NotIn> {
        Parent::new(&self.parent, self.thread).child(at)
    }

    fn count_fault(&self, base_pages: u64) {
        self.thread.sim.count_fault(base_pages);
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.thread.sim.count_prefetch(base_pages);
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
        self.mirror.is_closing()
    }

    fn count_fault(&self, base_pages: u64) {
        self.thread.sim.count_fault(base_pages);
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.thread.sim.count_prefetch(base_pages);
    }
}

impl Sim {
    fn count_fault(&self, base_pages: u64) {
        self.coverage(|c| {
            c.faults += 1;
            c.faulted_pages += base_pages;
        });
    }

    fn count_prefetch(&self, base_pages: u64) {
        self.coverage(|c| c.prefetched_pages += base_pages);
    }
}

impl<'t> Thread<'t> {
    /// `ibv_reg_mr`. `None` for want of memory, or of a device that takes it.
    pub(crate) fn register(&'t self, registration: &Registration) -> Option<UserMr> {
        self.sim
            .trace(|| format!("{}: registers {registration:x?}", self.name()));
        match registration {
            Registration::Explicit(area) => self.register_area(area).map(UserMr::Explicit),
            Registration::Implicit { writable } => {
                Parent::register(self, *writable).map(UserMr::Implicit)
            }
        }
    }

    fn register_area(&'t self, area: &Area) -> Option<Rc<Mirror>> {
        let sim = self.sim;
        let (start, bytes) = (area.pages.start * PAGE, area.pages.len() * PAGE);
        let placement = Placement {
            iova: Iova::new(area.iova),
            address: match sim.has(Mutant::IndexFromIova) {
                true => usize::try_from(area.iova).ok()?,
                false => start,
            },
            geometry: Geometry::cover(start, bytes, PAGE_SHIFT, PAGE_SHIFT).ok()?,
            writable: area.writable,
        };
        let mirror = self.alloc_mr(placement, area.pages.clone(), None);

        // `mlx5r_store_odp_mkey`, `mlx5_ib_init_odp_mr`.
        mirror.set_known(true);
        if self.enable(&mirror).is_err() {
            self.deregister(&mirror);
            return None;
        }
        let mr = Mr {
            mirror: Rc::clone(&mirror),
            thread: self,
            hold: Hold::Not,
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

    /// An MR with a key that is not enabled.
    pub(crate) fn alloc_mr(
        &'t self,
        placement: Placement,
        pages: Pages,
        parent: Option<(Weak<ParentData>, ChildIndex)>,
    ) -> Rc<Mirror> {
        let sim = self.sim;
        let number = sim.next_mr();
        sim.memory.lock().reserve(number, pages.len());
        self.step();
        let mut mkc = sim.adapter.borrow().mkc(AccessMode::Mtt);
        mkc.translations_octword_size = u32::try_from(pages.len().div_ceil(2)).unwrap_or(0);
        let mkey = sim.adapter.borrow_mut().create_mkey(&mkc);
        let key = KeyData::new(sim, mkey);
        let mirror = Rc::new(Mirror::new(self, number, placement, pages, key, parent));
        sim.driver.mirrors.borrow_mut().push(Rc::clone(&mirror));
        sim.trace(|| format!("{}: MR {number} is {mkey:?}", self.name()));
        mirror
    }

    /// Has the device use an MR's key, with no translation.
    pub(crate) fn enable(&'t self, mirror: &Mirror) -> Result<(), UmrError> {
        let sim = self.sim;
        let (mkey, placement) = (mirror.key().mkey, &mirror.placement);
        let mkc = sim.adapter.borrow().mkc(AccessMode::Mtt);
        let enabled = Mkc {
            free: false,
            len: u64::try_from(mirror.pages.len() * PAGE).unwrap_or(0),
            start_addr: placement.iova,
            access: rights(&mkc, placement.writable),
            ..mkc
        };
        sim.umrs().enable(self, mkey, &enabled)?;
        key::open(&self.key_of(mirror));
        Ok(())
    }

    fn key_of(&'t self, mirror: &Mirror) -> Key<'t> {
        Key::new(mirror.key(), self)
    }

    /// `ibv_dereg_mr`.
    pub(crate) fn deregister_mr(&'t self, mr: &UserMr) {
        self.sim.coverage(|c| c.deregistered += 1);
        match mr {
            UserMr::Explicit(mirror) => self.deregister(mirror),
            UserMr::Implicit(parent) => Parent::new(parent, self).deregister(),
        }
    }

    /// `ibv_dereg_mr` of an explicit MR, or the same of a child, as `mr.c` does it with our patch:
    /// unknown to faults, unused, revoked, destroyed, unmapped.
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

/// The rights of an MR's key.
pub(crate) fn rights(mkc: &Mkc, writable: bool) -> Access {
    Access {
        local_write: writable,
        remote_write: writable,
        ..mkc.access
    }
}
