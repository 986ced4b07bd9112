// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Doorbells: the UAR pages of BAR 0 (`mlx5_core/uar.c`, `mlx5_core/lib/eq.h`,
//! `include/linux/mlx5/{cq,doorbell}.h`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use firmware_cmds::{Cqn, Eqn, Qpn, Uar};
use serde::Serialize;

use crate::device::Device;
use crate::inspect::show;
use crate::numbers::Numbers;

/// Bytes of a UAR page.
pub const UAR_SIZE: u64 = 4096;
const CQ_ARM: u64 = 0x20;
const EQ_ARM: u64 = 0x40;
const EQ_UPDATE: u64 = 0x48;
const SQ: std::ops::Range<u64> = 0x800..0x1000;

/// All UAR pages.
#[derive(Debug, Serialize)]
pub struct Uars {
    /// Those allocated.
    #[serde(serialize_with = "show::debug")]
    pub pages: BTreeSet<Uar>,
    /// Numbers for new ones. The first pages of the BAR are the init segment.
    pub numbers: Numbers,
    /// First halves of 8-byte doorbells that come as two writes, by address in the BAR.
    #[serde(serialize_with = "show::by_number")]
    halves: BTreeMap<u64, u32>,
    /// Where in a page somebody tried to read.
    reads: BTreeSet<u64>,
}

impl Uars {
    /// Pages for a BAR of `bar_size` bytes.
    #[must_use]
    pub fn new(bar_size: u64) -> Self {
        let last = u32::try_from(bar_size / UAR_SIZE - 1).unwrap_or(u32::MAX);
        Self {
            pages: BTreeSet::new(),
            numbers: Numbers::new(16, last),
            halves: BTreeMap::new(),
            reads: BTreeSet::new(),
        }
    }

    /// Forgets the doorbells of a page that were written to half.
    pub(crate) fn forget_halves(&mut self, uar: Uar) {
        self.halves
            .retain(|&at, _| at / UAR_SIZE != u64::from(uar.get()));
    }
}

impl Device {
    /// A write into the UAR part of BAR 0.
    pub(crate) fn uar_write(&mut self, offset: u64, data: &[u8]) {
        let uar = Uar::truncate(u32::try_from(offset / UAR_SIZE).unwrap_or(u32::MAX));
        let at = offset % UAR_SIZE;
        if !self.uars.pages.contains(&uar) {
            self.violation(format_args!(
                "write of {} bytes at {at:#x} of UAR {uar}, which is not allocated",
                data.len()
            ));
            return;
        }
        match (at, data) {
            (EQ_ARM | EQ_UPDATE, &[eqn, a, b, c]) => {
                let consumer = u32::from_be_bytes([0, a, b, c]);
                self.counters.doorbells += 1;
                self.eq_doorbell(uar, Eqn::new(eqn), consumer, at == EQ_ARM);
            }
            (_, &[a, b, c, d, e, f, g, h]) if is_doorbell64(at) => {
                let high = u32::from_be_bytes([a, b, c, d]);
                let low = u32::from_be_bytes([e, f, g, h]);
                self.doorbell64(uar, at, high, low);
            }
            (_, &[a, b, c, d]) if is_doorbell64(at) => {
                let half = u32::from_be_bytes([a, b, c, d]);
                self.uars.halves.insert(offset, half);
            }
            (4.., &[a, b, c, d]) if is_doorbell64(at - 4) => {
                let low = u32::from_be_bytes([a, b, c, d]);
                match self.uars.halves.remove(&(offset - 4)) {
                    Some(high) => self.doorbell64(uar, at - 4, high, low),
                    None => self.unknown_doorbell(uar, at, data.len()),
                }
            }
            _ => self.unknown_doorbell(uar, at, data.len()),
        }
    }

    fn doorbell64(&mut self, uar: Uar, at: u64, high: u32, low: u32) {
        self.counters.doorbells += 1;
        if at == CQ_ARM {
            let solicited = high >> 24 & 1 == 1;
            self.cq_doorbell(uar, Cqn::truncate(low), high & 0xff_ffff, solicited);
        } else {
            self.journal.trace(format_args!(
                "doorbell uar={uar} sq {high:#010x} {low:#010x}"
            ));
            self.ring_sq(uar, Qpn::truncate(low >> 8));
        }
    }

    fn unknown_doorbell(&mut self, uar: Uar, at: u64, len: usize) {
        self.refuse_doorbell(
            uar,
            format_args!("write of {len} bytes at {at:#x} of UAR {uar}: no such doorbell"),
        );
    }

    /// A doorbell that means nothing. In the driver's own page, the one its EQs have, that
    /// breaks the protocol; any other may be mapped to a user, who can write what it likes.
    pub(crate) fn refuse_doorbell(&mut self, uar: Uar, line: fmt::Arguments<'_>) {
        self.counters.doorbells_refused += 1;
        if self.events.queues.values().any(|eq| eq.uar == uar) {
            self.violation(line);
        } else {
            self.journal.note(line);
        }
    }

    /// Notes a read of a doorbell page, once for each place: there is nothing to read.
    pub(crate) fn uar_read(&mut self, offset: u64) {
        let at = offset % UAR_SIZE;
        if self.uars.reads.insert(at) {
            let uar = offset / UAR_SIZE;
            self.journal.note(format_args!(
                "read at {at:#x} of UAR {uar:#x}: no such register"
            ));
        }
    }
}

/// Whether a doorbell of 8 bytes is at this place of its page.
fn is_doorbell64(at: u64) -> bool {
    at == CQ_ARM || at % 8 == 0 && SQ.contains(&at)
}
