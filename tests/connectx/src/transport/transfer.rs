// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The bytes of a connected message, chunk by chunk, between requester and responder.

use firmware_cmds::Qpn;

use super::connected::Path;
use super::mover::{Blocked, End, Obstacle, Segment, CHUNK};
use super::{Op, Outcome};
use crate::device::Device;
use crate::fault::shape::Committed;
use crate::fault::{Side, Stall, StallKind};
use crate::mkey::Access;
use crate::rules::points::FaultAct;

impl Device {
    /// Moves the next chunk between the requester's memory and the responder's;
    /// the responder's `access` says in which direction. `None` once all has moved.
    pub(super) fn transfer(
        &mut self,
        path: Path,
        op: &mut Op,
        remote: &[Segment],
        access: Access,
        kind: StallKind,
    ) -> Option<Outcome> {
        if op.done == op.request.len {
            return None;
        }
        let slice = self.order.slice(CHUNK);
        let (side, obstacle) = match self.move_piece(path, op, remote, access, slice) {
            Ok(len) => return self.progress(path.qpn, op, len),
            Err(met) => met,
        };
        let kind = match side {
            Side::Responder => kind,
            Side::Requester if access.writes() => StallKind::SendOrWrite,
            Side::Requester => StallKind::ReadOrAtomic,
        };
        if let Obstacle::Fault(target, missing) = obstacle {
            let at = match side {
                Side::Requester => path.qpn,
                Side::Responder => path.peer,
            };
            let stall = self.stall_of(at, path.qpn, op, kind, target, missing);
            if let Some(len) = self.commit(path, op, remote, access, &stall) {
                return self.progress(path.qpn, op, len);
            }
        }
        Some(match side {
            Side::Requester => self.requester_blocked(path.qpn, op, kind, obstacle),
            Side::Responder => self.responder_blocked(path, op, kind, obstacle),
        })
    }

    /// Moves at most `most` bytes.
    ///
    /// # Errors
    ///
    /// The end that is in the way, and what of it.
    fn move_piece(
        &mut self,
        path: Path,
        op: &Op,
        remote: &[Segment],
        access: Access,
        most: u64,
    ) -> Result<u64, (Side, Obstacle)> {
        let responder = End {
            list: remote,
            access,
            pd: self.responder_pd(path),
            qpn: path.peer,
        };
        let (done, total) = (op.done, op.request.len);
        if access.writes() {
            let local = self.local_end(path.qpn, &op.request.local, Access::LocalRead);
            self.move_chunk(&local, &responder, most, done, total)
                .map_err(|blocked| match blocked {
                    Blocked::Source(obstacle) => (Side::Requester, obstacle),
                    Blocked::Destination(obstacle) => (Side::Responder, obstacle),
                })
        } else {
            let local = self.local_end(path.qpn, &op.request.local, Access::LocalWrite);
            self.move_chunk(&responder, &local, most, done, total)
                .map_err(|blocked| match blocked {
                    Blocked::Destination(obstacle) => (Side::Requester, obstacle),
                    Blocked::Source(obstacle) => (Side::Responder, obstacle),
                })
        }
    }

    /// Moves the whole packets in front of the page that an access is about to stall on, if
    /// its fault is to report them as committed. `None` if nothing moves.
    fn commit(
        &mut self,
        path: Path,
        op: &mut Op,
        remote: &[Segment],
        access: Access,
        stall: &Stall,
    ) -> Option<u64> {
        if self.is_covered(op, stall) {
            return None;
        }
        match self.ruling_of(op, stall) {
            FaultAct::Shape(shape) if shape.committed == Committed::Packets => {}
            _ => return None,
        }
        let mut before = stall.missing.done;
        loop {
            let len = whole_packets(stall, before);
            if len == 0 {
                return None;
            }
            match self.move_piece(path, op, remote, access, len) {
                Ok(len) => return Some(len),
                // The other end lacks a page even further in front.
                Err((_, Obstacle::Fault(_, missing))) => before = missing.done,
                Err(_) => return None,
            }
        }
    }

    /// Notes that bytes have moved; `None` once all have.
    fn progress(&mut self, qpn: Qpn, op: &mut Op, len: u64) -> Option<Outcome> {
        op.done += len;
        if let Some(qp) = self.qps.get_mut(qpn) {
            // They were acknowledged.
            qp.sq.rnr_naks = 0;
        }
        (op.done < op.request.len).then_some(Outcome::More)
    }
}

/// Bytes of whole packets among the `before` bytes that a stalled access comes after.
fn whole_packets(stall: &Stall, before: u64) -> u64 {
    let mtu = u64::from(stall.mtu.max(1));
    ((stall.moved + before) / mtu * mtu).saturating_sub(stall.moved)
}
