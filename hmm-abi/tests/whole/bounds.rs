// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a fault does when it cannot win: on a host that follows a script.

use std::cell::{Cell, RefCell, RefMut};

use hmm_abi::whole::{self, fault, FaultError, Host, Proof, PASSES};
use hmm_abi::{
    Geometry, HmmPfn, Index, Indices, Need, Order, Pfn, RangeError, Sequence, Span, ATTEMPTS,
    BUSY_ATTEMPTS, WINDOW_PAGES,
};

const PAGE: u32 = 12;
/// Three windows.
const PAGES: usize = 3 * 512;

/// What happens around every range fault.
#[derive(Clone, Copy, PartialEq)]
enum Script {
    /// Nothing.
    Quiet,
    /// The host waits in vain.
    Busy,
    /// An invalidation between the range fault and the lock.
    Stale,
    /// An invalidation before the range fault: of memory that is not this mirror's, by a
    /// driver that clears no entry.
    Before,
    /// The range fault fails.
    Refused,
    /// The range fault of the last window fails.
    RefusedAtLast,
    /// The host waits in vain for the last window.
    BusyAtLast,
}

struct Scripted {
    script: Script,
    order: Order,
    faults: Cell<u32>,
    sequence: Cell<usize>,
    entries: RefCell<Vec<HmmPfn>>,
}

struct Locked<'h> {
    host: &'h Scripted,
    entries: RefMut<'h, Vec<HmmPfn>>,
}

/// The entry of a page that the driver has mapped for DMA.
fn dma_mapped(pfn: usize) -> HmmPfn {
    HmmPfn::from_bits(HmmPfn::present(Pfn(pfn), true, Order(0)).bits() | HmmPfn::DMA_MAPPED)
}

impl Scripted {
    fn new(script: Script) -> Self {
        Self {
            script,
            order: Order(0),
            faults: Cell::new(0),
            sequence: Cell::new(0),
            entries: RefCell::new(vec![HmmPfn::EMPTY; PAGES]),
        }
    }

    fn invalidate(&self) {
        self.sequence.set(self.sequence.get() + 2);
    }

    /// Faults all entries in.
    fn run(&self, need: Need, entry_shift: u32) -> Result<(), FaultError<&'static str>> {
        let geometry = Geometry::cover(0, PAGES << PAGE, PAGE, entry_shift).unwrap();
        self.run_some(need, &geometry, geometry.indices())
    }

    fn run_some(
        &self,
        need: Need,
        geometry: &Geometry,
        indices: Indices,
    ) -> Result<(), FaultError<&'static str>> {
        let mut scratch = vec![HmmPfn::EMPTY; geometry.scratch_len(indices)];
        let locked = fault(self, geometry, indices, need, &mut scratch)?;
        assert!(self.entries.try_borrow().is_err(), "the lock is held");
        drop(locked);
        Ok(())
    }

    fn valid(&self) -> usize {
        let entries = self.entries.borrow();
        entries.iter().filter(|entry| entry.is_valid()).count()
    }
}

impl Host for Scripted {
    type Error = &'static str;
    type Locked<'h> = Locked<'h>;

    fn lock(&self) -> Locked<'_> {
        Locked {
            host: self,
            entries: self.entries.borrow_mut(),
        }
    }

    fn range_fault(
        &self,
        span: &Span,
        _: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<&'static str>> {
        self.faults.set(self.faults.get() + 1);
        if self.script == Script::Before {
            self.invalidate();
        }
        let sequence = Sequence(self.sequence.get());
        for (page, entry) in found.iter_mut().enumerate() {
            assert_eq!(*entry, HmmPfn::EMPTY, "the scratch comes in empty");
            *entry = HmmPfn::present(Pfn((span.start >> PAGE) + page), true, self.order);
        }
        let is_last = span.end == PAGES << PAGE;
        match self.script {
            Script::RefusedAtLast if is_last => return Err(RangeError::Failed("refused")),
            Script::BusyAtLast if is_last => return Err(RangeError::Busy),
            Script::Busy => return Err(RangeError::Busy),
            Script::Refused => return Err(RangeError::Failed("refused")),
            Script::Stale => self.invalidate(),
            _ => {}
        }
        Ok(sequence)
    }
}

impl whole::Locked for Locked<'_> {
    type LetGo = ();

    fn read_retry(&self, sequence: Sequence) -> bool {
        self.host.sequence.get() != sequence.0
    }

    fn entry(&self, index: Index) -> HmmPfn {
        self.entries[index.0]
    }

    fn store(&mut self, index: Index, entry: HmmPfn, _: &Proof) {
        self.entries[index.0] = entry;
    }

    fn dma_unmap(&mut self, _: Index, (): &()) {
        unreachable!("a fault does not unmap");
    }

    fn set_dirty(&mut self, _: Index, (): &()) {
        unreachable!("a fault does not dirty");
    }
}

#[test]
fn a_quiet_host_is_asked_once_for_each_window() {
    let host = Scripted::new(Script::Quiet);
    assert_eq!(host.run(Need::Write, PAGE), Ok(()));
    assert_eq!(host.faults.get(), 3);
    assert_eq!(host.valid(), PAGES);
}

#[test]
fn a_busy_host_is_given_up() {
    let host = Scripted::new(Script::Busy);
    assert_eq!(host.run(Need::Read, PAGE), Err(FaultError::Busy));
    assert_eq!(host.faults.get(), BUSY_ATTEMPTS);
    assert_eq!(host.valid(), 0);
}

#[test]
fn what_is_stale_is_never_merged() {
    let host = Scripted::new(Script::Stale);
    assert_eq!(host.run(Need::Read, PAGE), Err(FaultError::Busy));
    assert_eq!(host.faults.get(), ATTEMPTS);
    assert_eq!(host.valid(), 0);
}

#[test]
fn a_refusal_is_final() {
    let host = Scripted::new(Script::Refused);
    assert_eq!(host.run(Need::Read, PAGE), Err(FaultError::Host("refused")));
    assert_eq!(host.faults.get(), 1);
}

/// Nothing less than what was asked for is ever returned as success: who is told that a
/// range is in may map all of it.
#[test]
fn a_long_range_among_invalidations_is_busy() {
    let host = Scripted::new(Script::Before);
    assert_eq!(host.run(Need::Write, PAGE), Err(FaultError::Busy));
    assert_eq!(host.faults.get(), 3 * PASSES);
    let mut host = Scripted::new(Script::Before);
    host.order = Order(9);
    assert_eq!(host.run(Need::Write, PAGE + 9), Err(FaultError::Busy));
}

#[test]
fn a_window_among_invalidations_is_found_wherever_it_lies() {
    let host = Scripted::new(Script::Before);
    let geometry = Geometry::cover(0, PAGES << PAGE, PAGE, PAGE).unwrap();
    let window = Indices::new(300..300 + WINDOW_PAGES);
    assert_eq!(host.run_some(Need::Write, &geometry, window), Ok(()));
    assert_eq!((host.faults.get(), host.valid()), (1, WINDOW_PAGES));
}

#[test]
fn no_entries_are_no_success() {
    let host = Scripted::new(Script::Quiet);
    let geometry = Geometry::cover(0, PAGES << PAGE, PAGE, PAGE).unwrap();
    let none = host.run_some(Need::Read, &geometry, Indices::new(7..7));
    assert_eq!(none, Err(FaultError::Empty));
}

/// Who writes a device's table from the list must not find a page there that nobody has
/// validated lately; what is mapped is the driver's.
#[test]
fn an_error_exit_forgets_what_is_not_mapped() {
    for (script, error) in [
        (Script::RefusedAtLast, FaultError::Host("refused")),
        (Script::BusyAtLast, FaultError::Busy),
        (Script::Before, FaultError::Busy),
    ] {
        let host = Scripted::new(script);
        host.entries.borrow_mut()[7] = dma_mapped(7);
        assert_eq!(host.run(Need::Read, PAGE), Err(error));
        assert!(host.entries.borrow()[7].is_dma_mapped());
        assert_eq!(host.valid(), 1, "{error:?}");
    }
}

/// Entries beyond the range that failed are somebody else's.
#[test]
fn an_error_exit_forgets_its_own_only() {
    let host = Scripted::new(Script::RefusedAtLast);
    let geometry = Geometry::cover(0, PAGES << PAGE, PAGE, PAGE).unwrap();
    let first = Indices::new(0..4);
    assert_eq!(host.run_some(Need::Read, &geometry, first), Ok(()));
    let rest = Indices::new(4..PAGES);
    let refused = host.run_some(Need::Read, &geometry, rest);
    assert_eq!(refused, Err(FaultError::Host("refused")));
    assert_eq!(host.valid(), 4);
}

/// A registration needs no page: what does not hold still is a hole.
#[test]
fn a_snapshot_that_stays_stale_has_holes_and_does_not_fail() {
    for (script, entries, faults) in [
        (Script::Stale, 4, ATTEMPTS),
        (Script::Busy, 4, BUSY_ATTEMPTS),
        (Script::Stale, PAGES, 3 * ATTEMPTS),
        (Script::Busy, PAGES, 3 * BUSY_ATTEMPTS),
    ] {
        let host = Scripted::new(script);
        host.entries.borrow_mut()[2] = dma_mapped(2);
        host.entries.borrow_mut()[3] = HmmPfn::present(Pfn(99), true, Order(0));
        let geometry = Geometry::cover(0, PAGES << PAGE, PAGE, PAGE).unwrap();
        let indices = Indices::new(0..entries);
        let snapshot = host.run_some(Need::Snapshot, &geometry, indices);
        assert_eq!((snapshot, host.faults.get()), (Ok(()), faults));
        assert!(host.entries.borrow()[2].is_dma_mapped());
        assert_eq!(host.valid(), 1, "not what an older fault has left");
    }
}

/// One window that does not hold still costs the others nothing but a look.
#[test]
fn a_snapshot_with_one_busy_window_is_whole() {
    let host = Scripted::new(Script::BusyAtLast);
    assert_eq!(host.run(Need::Snapshot, PAGE), Ok(()));
    // None of the others is known to be valid together with the last.
    assert_eq!((host.faults.get(), host.valid()), (2 + BUSY_ATTEMPTS, 0));
}

/// A refusal is no race.
#[test]
fn a_snapshot_that_is_refused_fails() {
    let host = Scripted::new(Script::RefusedAtLast);
    let refused = host.run(Need::Snapshot, PAGE);
    assert_eq!(refused, Err(FaultError::Host("refused")));
    assert_eq!(host.valid(), 0);
}

/// What another page is mapped for cannot be mapped again.
#[test]
fn an_entry_that_is_mapped_for_another_page_is_stuck() {
    let host = Scripted::new(Script::Quiet);
    host.entries.borrow_mut()[600] = dma_mapped(99);
    assert_eq!(host.run(Need::Read, PAGE), Err(FaultError::Stuck));
    assert_eq!(host.valid(), 1, "the driver's");
}

#[test]
fn a_snapshot_among_invalidations_keeps_what_it_knows() {
    let host = Scripted::new(Script::Before);
    host.entries.borrow_mut()[7] = dma_mapped(7);
    assert_eq!(host.run(Need::Snapshot, PAGE), Ok(()));
    // The last window was valid under the lock, and what is mapped is the driver's.
    assert_eq!(host.valid(), 512 + 1);
    assert!(host.entries.borrow()[7].is_dma_mapped());
}

#[test]
fn an_entry_of_many_pages_wants_one_mapping() {
    let mut host = Scripted::new(Script::Quiet);
    assert_eq!(host.run(Need::Read, PAGE + 9), Err(FaultError::Fragmented));
    host.order = Order(9);
    assert_eq!(host.run(Need::Read, PAGE + 9), Ok(()));
    // HmmPfn `i` is huge page `i`, not the `i`th page of what HMM reported.
    let pfns = [0, 1, 2].map(|i| host.entries.borrow()[i].pfn());
    assert_eq!(pfns, [Pfn(0), Pfn(512), Pfn(1024)]);
}
