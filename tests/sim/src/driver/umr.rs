// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The UMR QP as `umr.c` drives it, with our patch (`drivers/patches`), and the pool of buffers of
//! `drivers/mlx5_ib/umr_pool.c`: C, hence modelled here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use firmware_cmds::umr::{MkeyMask, UmrCtrlSeg, UmrFlags, XltOffset, OCTOWORD};
use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{Mkc, Mkey, Wire};
use mlx5_odp::key::UmrError;

use crate::adapter::{data, emit, Adapter, Completion, Qp};
use crate::lock::{Class, Lock, Semaphore};
use crate::mutant::Mutant;
use crate::sim::Sim;
use crate::task::{Channel, Thread};

/// `MAX_UMR_WR`, and no more WQEBBs than the queue has.
const MAX_WR: usize = 8;
/// Bytes of a buffer.
const BUFFER: u64 = 4096;
/// MTTs of a buffer.
pub(crate) const MTTS: usize = 512;
/// The syndrome of a WQE that was flushed because of another one.
const FLUSHED: u8 = 0x05;

/// How a UMR ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    Flushed,
    Failed,
}

/// `enum mlx5r_umr_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    Recover,
}

/// `struct mlx5r_umr_context`.
pub(crate) struct Context {
    status: Cell<Option<Status>>,
    done: Channel,
    /// Its slot is free as soon as it is done, not when it was waited for.
    is_posted: bool,
}

/// `struct umr_common`, and the pool.
pub(crate) struct Umrs {
    qp: RefCell<Qp>,
    semaphore: Semaphore,
    lock: Lock,
    state: Cell<State>,
    contexts: RefCell<BTreeMap<u16, Rc<Context>>>,
    free: RefCell<Vec<u64>>,
    buffers: usize,
    last: (Lock, u64),
}

/// A buffer of the pool.
pub(crate) struct Umr {
    pub(crate) buffer: u64,
    pub(crate) is_last: bool,
    pub(crate) context: Option<Rc<Context>>,
}

/// Bytes of a key's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// A WQE that writes a piece of a key's table, and what the mask names of the MKey's own fields.
fn translations(pa: Mkey, buffer: u64, piece: Piece, mask: MkeyMask, mkc: &Mkc) -> Vec<u8> {
    let octowords = piece.first / OCTOWORD;
    let umr = UmrCtrlSeg {
        flags: UmrFlags::new()
            .with_check_free(!mask.free())
            .with_translation_offset_en(true),
        xlt_octowords: u16::try_from(piece.len / OCTOWORD).unwrap_or(u16::MAX),
        offset: XltOffset::truncate(u64::try_from(octowords).unwrap_or(u64::MAX)),
        mkey_mask: mask,
    };
    let mut body = emit(&umr, UmrCtrlSeg::LEN);
    body.extend(emit(mkc, Mkc::LEN));
    body.extend(data(pa, buffer, piece.len));
    body
}

/// The fields that are set when a key is enabled.
fn enabling() -> MkeyMask {
    MkeyMask::new()
        .with_free(true)
        .with_len(true)
        .with_start_addr(true)
        .with_page_size(true)
        .with_lw(true)
        .with_rw(true)
}

/// A WQE that changes fields of the MKey: `mlx5r_umr_revoke_mr`, and the enabling half of
/// `mlx5r_umr_update_xlt`.
fn fields(mask: MkeyMask, mkc: &Mkc) -> Vec<u8> {
    let umr = UmrCtrlSeg {
        flags: UmrFlags::new().with_inline(true),
        xlt_octowords: 0,
        offset: XltOffset::truncate(0),
        mkey_mask: mask,
    };
    let mut body = emit(&umr, UmrCtrlSeg::LEN);
    body.extend(emit(mkc, Mkc::LEN));
    body
}

impl Umrs {
    /// With so many buffers beside the last one.
    pub(crate) fn new(sim: &Sim, adapter: &mut Adapter, buffers: usize) -> Self {
        let qp = adapter.create_qp(0xc);
        adapter.connect(qp.qpn, 0);
        Self {
            qp: RefCell::new(qp),
            semaphore: Semaphore::new(sim, MAX_WR),
            lock: Lock::new(sim, Class::Umr),
            state: Cell::new(State::Active),
            contexts: RefCell::default(),
            free: RefCell::new(
                (0..buffers)
                    .map(|_| adapter.share(BUFFER, BUFFER))
                    .collect(),
            ),
            buffers,
            last: (
                Lock::new(sim, Class::LastUmr),
                adapter.share(BUFFER, BUFFER),
            ),
        }
    }

    /// A buffer: any if there is one, else the last.
    pub(crate) fn get(&self, thread: &Thread<'_>) -> Umr {
        let free = self.free.borrow_mut().pop();
        let is_last = free.is_none();
        let buffer = free.unwrap_or_else(|| {
            self.last.0.lock(thread);
            thread.sim.coverage(|c| c.last_umr += 1);
            self.last.1
        });
        Umr {
            buffer,
            is_last,
            context: None,
        }
    }

    pub(crate) fn put(&self, thread: &Thread<'_>, umr: &Umr) {
        if umr.is_last {
            self.last.0.unlock(thread);
        } else {
            self.free.borrow_mut().push(umr.buffer);
        }
    }

    /// Nothing is under way, and all of it is back.
    pub(crate) fn is_idle(&self) -> bool {
        self.contexts.borrow().is_empty()
            && self.free.borrow().len() == self.buffers
            && self.semaphore.count() == MAX_WR
    }

    /// The QP's number.
    pub(crate) fn qpn(&self) -> u32 {
        self.qp.borrow().qpn
    }

    fn context(&self, sim: &Sim, is_posted: bool) -> Rc<Context> {
        Rc::new(Context {
            status: Cell::new(None),
            done: sim.tasks.channel(),
            is_posted,
        })
    }

    /// `mlx5r_umr_post_send`.
    fn post_send(&self, sim: &Sim, mkey: Mkey, body: &[u8], context: &Rc<Context>) {
        sim.trace(|| format!("a UMR of {mkey:?} is posted"));
        let mut adapter = sim.adapter.borrow_mut();
        let index = adapter.post(&mut self.qp.borrow_mut(), WqeOpcode::UMR, mkey.get(), body);
        let old = self.contexts.borrow_mut().insert(index, Rc::clone(context));
        drop(adapter);
        if old.is_some() {
            sim.fail("the UMR QP overflows", format_args!("WQE {index}"));
        }
    }

    /// The completion handler.
    pub(crate) fn completed(&self, sim: &Sim, completion: &Completion) {
        let status = match completion.syndrome {
            0 => Status::Success,
            FLUSHED => Status::Flushed,
            _ => {
                // `mlx5_poll_one`.
                self.state.set(State::Recover);
                Status::Failed
            }
        };
        sim.trace(|| format!("a UMR is done: {completion:?}"));
        let Some(context) = self.contexts.borrow_mut().remove(&completion.index) else {
            return sim.fail("a completion of nothing", format_args!("{completion:?}"));
        };
        context.status.set(Some(status));
        if context.is_posted {
            self.semaphore.up(sim);
        }
        sim.tasks.wake(context.done);
    }

    fn wait_for(thread: &Thread<'_>, context: &Context) -> Status {
        loop {
            if let Some(status) = context.status.get() {
                return status;
            }
            if thread.sim.is_over() {
                return Status::Failed;
            }
            thread.wait(context.done);
        }
    }

    fn lock_active(&self, thread: &Thread<'_>, mkey: Mkey) {
        self.lock.lock(thread);
        while self.state.get() == State::Recover && !thread.sim.is_over() {
            self.lock.unlock(thread);
            if thread.sim.has(Mutant::RecoveryByTheWaiterAlone) {
                thread.sleep(Duration::from_millis(3));
            } else {
                self.recover(thread, mkey);
            }
            self.lock.lock(thread);
        }
    }

    /// `mlx5r_umr_post`, of what is in the buffer.
    pub(crate) fn post(&self, thread: &Thread<'_>, umr: &mut Umr, mkey: Mkey, piece: Piece) {
        let sim = thread.sim;
        let pa = sim.adapter.borrow().pa;
        let (mask, mkc) = (MkeyMask::new(), Mkc::default());
        let body = translations(pa, umr.buffer, piece, mask, &mkc);
        let context = self.context(sim, true);
        self.semaphore.down(thread);
        self.lock_active(thread, mkey);
        self.post_send(sim, mkey, &body, &context);
        self.lock.unlock(thread);
        umr.context = Some(context);
    }

    /// `mlx5r_umr_wait`.
    pub(crate) fn wait(&self, thread: &Thread<'_>, umr: &Umr, mkey: Mkey) -> Result<(), UmrError> {
        let Some(context) = &umr.context else {
            return Ok(());
        };
        let status = Self::wait_for(thread, context);
        if thread.sim.has(Mutant::IgnoredUmrFailure) {
            if status == Status::Failed {
                self.recover(thread, mkey);
            }
            return Ok(());
        }
        match status {
            Status::Success => Ok(()),
            Status::Flushed => Err(UmrError::Flushed),
            Status::Failed => {
                self.semaphore.down(thread);
                self.recover(thread, mkey);
                self.semaphore.up(thread.sim);
                Err(UmrError::Failed)
            }
        }
    }

    /// `mlx5r_umr_recover`: a barrier, then the QP again from RESET, unless somebody else has.
    ///
    /// Whoever finds the QP failed does so, not only who waits for the UMR that failed: between the
    /// two passes of an invalidation that one posts others first.
    fn recover(&self, thread: &Thread<'_>, mkey: Mkey) {
        let sim = thread.sim;
        self.lock.lock(thread);
        if self.state.get() != State::Recover {
            return self.lock.unlock(thread);
        }
        sim.coverage(|c| c.recoveries += 1);
        if sim.has(Mutant::RecoveryThatReclaims) {
            thread.allocate();
        }
        let barrier = self.context(sim, false);
        let body = fields(MkeyMask::new(), &Mkc::default());
        self.post_send(sim, mkey, &body, &barrier);
        Self::wait_for(thread, &barrier);
        thread.step();
        let mut adapter = sim.adapter.borrow_mut();
        let mut qp = self.qp.borrow_mut();
        adapter.reset(&mut qp);
        adapter.connect(qp.qpn, 0);
        drop((adapter, qp));
        self.state.set(State::Active);
        self.lock.unlock(thread);
    }

    /// `mlx5r_umr_post_send_wait`, of fields of the MKey.
    fn post_send_wait(&self, thread: &Thread<'_>, mkey: Mkey, body: &[u8]) -> Result<(), UmrError> {
        let sim = thread.sim;
        self.semaphore.down(thread);
        let result = loop {
            if sim.is_over() {
                break Err(UmrError::Failed);
            }
            let context = self.context(sim, false);
            self.lock_active(thread, mkey);
            self.post_send(sim, mkey, body, &context);
            self.lock.unlock(thread);
            match Self::wait_for(thread, &context) {
                Status::Success => break Ok(()),
                Status::Flushed => {}
                Status::Failed => {
                    self.recover(thread, mkey);
                    break Err(UmrError::Failed);
                }
            }
        };
        self.semaphore.up(sim);
        result
    }

    /// `mlx5r_umr_revoke_mr`.
    pub(crate) fn revoke(&self, thread: &Thread<'_>, mkey: Mkey) -> Result<(), UmrError> {
        let mask = MkeyMask::new().with_free(true);
        let mkc = Mkc {
            free: true,
            variant: mkey.variant(),
            ..Mkc::default()
        };
        self.post_send_wait(thread, mkey, &fields(mask, &mkc))
    }

    /// The enabling half of `mlx5r_umr_update_xlt`, with no translation.
    pub(crate) fn enable(
        &self,
        thread: &Thread<'_>,
        mkey: Mkey,
        mkc: &Mkc,
    ) -> Result<(), UmrError> {
        self.post_send_wait(thread, mkey, &fields(enabling(), mkc))
    }

    /// `mlx5r_umr_update_xlt` of a whole table, no longer than a buffer, which enables the MKey.
    pub(crate) fn enable_with(
        &self,
        thread: &Thread<'_>,
        mkey: Mkey,
        mkc: &Mkc,
        table: &[u8],
    ) -> Result<(), UmrError> {
        let umr = self.get(thread);
        let (first, len) = (0, table.len());
        let adapter = thread.sim.adapter.borrow();
        adapter.write(umr.buffer, table);
        let piece = Piece { first, len };
        let body = translations(adapter.pa, umr.buffer, piece, enabling(), mkc);
        drop(adapter);
        let enabled = self.post_send_wait(thread, mkey, &body);
        self.put(thread, &umr);
        enabled
    }
}
