// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Prefetch at the user's wish: `drivers/mlx5_ib/advise.rs`.

use firmware_cmds::Iova;
use mlx5_odp::{prefetch, Advice, Found, FoundBy, NotIn};

use super::region::{ImplicitMr, Mr, UserMr};
use super::Adapter;
use crate::memory::PAGE;
use crate::plan::Advise;
use crate::task::Thread;

/// An element of what a user has advised, with a reference on its MR.
pub(crate) struct Piece {
    mr: UserMr,
    advise: Advise,
    /// The step at which it was advised.
    since: usize,
}

impl<'t> Thread<'t> {
    /// `ibv_advise_mr`, of one element.
    pub(crate) fn advise(&'t self, advise: &Advise) {
        let sim = self.sim;
        let Some(mr) = sim.user_mr(advise.mr) else {
            return;
        };
        self.step();
        let is_write = advise.advice == Advice::Write;
        if !mr.is_known() || is_write && !mr.is_writable() {
            // `ENOENT`, `EPERM`.
            return;
        }
        sim.trace(|| format!("{}: {advise:x?}", self.name()));
        sim.coverage(|c| c.advised += 1);
        match &mr {
            UserMr::Explicit(mirror) => mirror.hold(),
            UserMr::Implicit(parent) => drop(parent.hold()),
        }
        let piece = Piece {
            mr,
            advise: advise.clone(),
            since: sim.steps(),
        };
        if advise.waits {
            self.prefetch(&piece);
        } else {
            sim.driver.prefetches.borrow_mut().push_back(piece);
            sim.tasks.wake(sim.advised);
        }
    }

    /// A worker of the queue for what nobody waits for.
    pub(crate) fn prefetch_later(&'t self) {
        let sim = self.sim;
        while !sim.closing.get() {
            let next = sim.driver.prefetches.borrow_mut().pop_front();
            match next {
                Some(piece) => self.prefetch(&piece),
                None => self.wait(sim.advised),
            }
        }
    }

    fn prefetch(&'t self, piece: &Piece) {
        let Advise { advice, pages, .. } = &piece.advise;
        let at = Iova::new(piece.mr.address(pages.start));
        let bytes = u64::try_from(pages.len() * PAGE).unwrap_or(0);
        let adapter = Adapter::without_event(self);
        let found: FoundBy<'_, Adapter<'_>> = match &piece.mr {
            UserMr::Explicit(mirror) => Found::Region(Mr::adopt(mirror, self)),
            UserMr::Implicit(parent) => Found::Implicit(ImplicitMr::adopt(parent, self)),
        };
        let result = prefetch(&found, at, bytes, *advice, &adapter);
        self.check_prefetch(piece, result);
        drop(found);
    }

    /// A prefetch fails only if it was against the rules at some moment, or the device had failed, or
    /// there was no memory.
    fn check_prefetch(&self, piece: &Piece, result: Result<(), NotIn>) {
        let Err(error) = result else { return };
        let sim = self.sim;
        let Advise { advice, pages, .. } = &piece.advise;
        let memory = sim.memory.lock();
        let was_refused = |page| memory.was_refused(page, *advice == Advice::Write, piece.since);
        let is_excused = matches!(error, NotIn::Busy(_))
            || *advice != Advice::Present && pages.clone().any(was_refused)
            || sim.mm_users.get() == 0
            || !piece.mr.covers(pages)
            || !piece.mr.is_known()
            || sim.trouble.umrs_fail;
        drop(memory);
        if !is_excused {
            let what = format_args!("{:x?}: {error:?}", piece.advise);
            sim.fail("a valid prefetch failed", what);
        }
    }
}
