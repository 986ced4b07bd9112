// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A chunk and its device that do as a script says and write down what is asked of them.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::fmt::Debug;

use hmm_abi::{
    serve, Around, Book, Chunk, Device, Entry, Fault, FaultChunk, FaultError, Geometry, HmmPfn,
    Index, LetGo, LockedChunk, MapError, Need, NotZapped, Order, Outcome, Pfn, Proof, PublishError,
    RangeError, Sequence, Served, Slots, State, Table, Zap,
};

pub(crate) const ENTRIES: usize = 12;

/// What a call answers in turn; when it has run out, success.
type Answers<T> = RefCell<VecDeque<T>>;

/// What comes of a range fault, other than success.
#[derive(Clone, Copy)]
pub(crate) enum Trouble {
    Busy,
    Refused,
    /// An invalidation comes right after it.
    Stale,
    /// Nothing.
    None,
}

#[derive(Clone, Copy)]
pub(crate) enum ZapAnswer {
    NotPosted,
    Gone,
}

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) range_fault: Answers<Trouble>,
    pub(crate) map: Answers<Result<(), MapError>>,
    pub(crate) sync: Answers<Result<(), MapError>>,
    pub(crate) publish: Answers<Result<(), PublishError>>,
    pub(crate) zap: Answers<ZapAnswer>,
    pub(crate) settle: Answers<Result<(), NotZapped>>,
    pub(crate) cut_off: Answers<Result<(), NotZapped>>,
    /// Done in the middle of the next `settle`.
    pub(crate) meanwhile: RefCell<Option<fn(&Double)>>,
}

pub(crate) struct Double {
    pub(crate) geometry: Geometry,
    pub(crate) script: Script,
    /// What a range fault finds, by CPU page.
    pub(crate) pages: RefCell<Vec<HmmPfn>>,
    pub(crate) sequence: Cell<usize>,
    calls: RefCell<Vec<String>>,
    tickets: Cell<u32>,
    /// A fault makes pages, huge ones if so.
    pub(crate) fills: Cell<bool>,
    pub(crate) huge: Cell<bool>,
    /// Entries for which there is scratch.
    pub(crate) room: Cell<usize>,
    /// Slots before this one may be read ahead.
    pub(crate) may_read_ahead: Cell<usize>,
    /// The clock.
    pub(crate) now: Cell<u32>,
    moments: Cell<u32>,
    kept: RefCell<Kept>,
}

struct Kept {
    entries: Vec<Entry>,
    book: Book<u32>,
}

pub(crate) struct Locked<'c> {
    double: &'c Double,
    kept: RefMut<'c, Kept>,
}

/// All of `answers` in turn.
pub(crate) fn say<T>(to: &Answers<T>, answers: impl IntoIterator<Item = T>) {
    to.borrow_mut().extend(answers);
}

fn answer<T>(answers: &Answers<Result<(), T>>) -> Result<(), T> {
    answers.borrow_mut().pop_front().unwrap_or(Ok(()))
}

/// Pages that are found: `w` writable, `r` read-only, `-` none.
fn pages(pages: &str, order: Order) -> Vec<HmmPfn> {
    let page = |(at, kind)| match kind {
        '-' => HmmPfn::EMPTY,
        kind => HmmPfn::present(Pfn(0x100 + at), kind == 'w', order),
    };
    pages.chars().enumerate().map(page).collect()
}

impl Double {
    /// Entries of a page, which are found as [`pages`] has it.
    pub(crate) fn new(found: &str) -> Self {
        Self::with_entries(found, 12, Order(0))
    }

    pub(crate) fn with_entries(found: &str, entry_shift: u32, order: Order) -> Self {
        Self::of(ENTRIES, pages(found, order), entry_shift)
    }

    /// A chunk of `entries` entries, of whose pages those `found` are found.
    pub(crate) fn long(entries: usize, found: &str) -> Self {
        Self::of(entries, pages(found, Order(0)), 12)
    }

    fn of(entries: usize, mut found: Vec<HmmPfn>, entry_shift: u32) -> Self {
        let geometry = Geometry::cover(0, entries << entry_shift, 12, entry_shift).unwrap();
        found.resize(entries * geometry.pages_per_entry(), HmmPfn::EMPTY);
        Self {
            geometry,
            script: Script::default(),
            pages: RefCell::new(found),
            sequence: Cell::new(1),
            calls: RefCell::default(),
            tickets: Cell::new(0),
            fills: Cell::new(false),
            huge: Cell::new(false),
            room: Cell::new(entries),
            may_read_ahead: Cell::new(entries),
            now: Cell::new(0),
            moments: Cell::new(0),
            kept: RefCell::new(Kept {
                entries: vec![Entry::EMPTY; entries],
                book: Book::new(),
            }),
        }
    }

    /// Changes what is found.
    pub(crate) fn find(&self, found: &str) {
        let mut found = pages(found, Order(0));
        found.resize(self.pages.borrow().len().max(found.len()), HmmPfn::EMPTY);
        self.pages.replace(found);
    }

    /// What is missing can be had, if the test says so.
    fn fill(&self, slots: Slots, need: Need) {
        if need == Need::Snapshot || !self.fills.get() {
            return;
        }
        let order = match self.huge.get() {
            true => Order(9),
            false => Order(0),
        };
        let mut pages = self.pages.borrow_mut();
        let range = match self.huge.get() {
            true => 0..pages.len(),
            false => slots.range(),
        };
        for slot in range {
            if !need.is_met_by(pages[slot]) {
                pages[slot] = HmmPfn::present(Pfn(0x100 + slot), need == Need::Write, order);
            }
        }
    }

    pub(crate) fn serve(
        &self,
        slots: std::ops::Range<usize>,
        need: Need,
    ) -> Result<Served, FaultError<&'static str>> {
        let fault = Fault::exactly(Slots::new(slots), need);
        self.serve_fault(&fault).map(|outcome| outcome.served)
    }

    /// Serves a fault that takes what is likely to be demanded next.
    pub(crate) fn serve_around(
        &self,
        slots: std::ops::Range<usize>,
        need: Need,
        before: usize,
    ) -> Result<Outcome, FaultError<&'static str>> {
        self.serve_fault(&Fault {
            slots: Slots::new(slots),
            need,
            around: Around::Likely { before },
        })
    }

    pub(crate) fn serve_fault(&self, fault: &Fault) -> Result<Outcome, FaultError<&'static str>> {
        let room = self.room.get() * self.geometry.pages_per_entry();
        let mut scratch = vec![HmmPfn::EMPTY; room];
        serve(self, &self.geometry, fault, scratch.as_mut_slice())
    }

    /// A chunk of which the device has what is found in the first slots.
    pub(crate) fn live(found: &str) -> Self {
        let double = Self::new(found);
        let served = double.serve(0..found.len(), Need::Snapshot);
        assert_eq!(served, Ok(Served::New));
        double.calls();
        double
    }

    fn note(&self, call: &str, what: impl Debug) {
        self.calls.borrow_mut().push(format!("{call} {what:?}"));
    }

    /// What was asked since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.take()
    }

    /// How many entries are mapped, by the book; and the states: `.` empty, `m` mapped,
    /// `o` offered, `l` live, `x` leaving, `s` stuck, a capital letter if writable.
    pub(crate) fn states(&self) -> (usize, String) {
        let kept = self.kept.borrow();
        let letter = |entry: &Entry| {
            let letter = match entry.state() {
                State::Empty => '.',
                State::Mapped => 'm',
                State::Offered => 'o',
                State::Live => 'l',
                State::Leaving => 'x',
                State::Stuck => 's',
            };
            match entry.is_writable() {
                true => letter.to_ascii_uppercase(),
                false => letter,
            }
        };
        let mapped = kept.entries.iter().filter(|e| e.is_mapped()).count();
        assert_eq!(kept.book.mapped(), mapped, "every mapped entry counts once");
        let states: String = kept.entries.iter().map(letter).collect();
        (mapped, states.trim_end_matches('.').into())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.kept.borrow().book.is_idle()
    }
}

/// As `pages` has it.
fn shown<L: LockedChunk>(table: &Table<'_, L>) -> String {
    let letters = table.translations().map(|translation| match translation {
        None => '-',
        Some(translation) if translation.write => 'w',
        Some(_) => 'r',
    });
    let letters: String = letters.collect();
    assert_eq!(table.len(), letters.len());
    assert_eq!(table.is_blank(), !letters.contains(['r', 'w']));
    format!("{}: {letters}", table.first().0)
}

impl Device for Double {
    const GRANULE: usize = 4;
    const LATE: u32 = 10;

    type Ticket = u32;

    fn publish<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<(), PublishError> {
        self.calls
            .borrow_mut()
            .push(format!("publish {}", shown(table)));
        answer(&self.script.publish)
    }

    fn zap<L: LockedChunk>(&self, table: &Table<'_, L>) -> Result<Zap<u32>, NotZapped> {
        self.calls
            .borrow_mut()
            .push(format!("zap {}", shown(table)));
        match self.script.zap.borrow_mut().pop_front() {
            Some(ZapAnswer::NotPosted) => return Err(NotZapped),
            Some(ZapAnswer::Gone) => return Ok(Zap::Gone),
            None => {}
        }
        self.tickets.set(self.tickets.get() + 1);
        Ok(Zap::Posted(self.tickets.get()))
    }

    fn settle(&self, ticket: u32) -> Result<(), NotZapped> {
        self.note("settle", ticket);
        assert!(self.kept.try_borrow_mut().is_ok(), "the lock is held");
        if let Some(meanwhile) = self.script.meanwhile.take() {
            meanwhile(self);
        }
        answer(&self.script.settle)
    }

    fn cut_off(&self) -> Result<(), NotZapped> {
        self.calls.borrow_mut().push("cut_off".into());
        assert!(self.kept.try_borrow_mut().is_ok(), "the lock is held");
        answer(&self.script.cut_off)
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    /// How often it was asked.
    fn moment(&self) -> u32 {
        self.moments.set(self.moments.get() + 1);
        self.moments.get()
    }
}

impl Chunk for Double {
    type Device = Self;
    type Locked<'c> = Locked<'c>;
    type NewSequence<'n> = usize;

    fn device(&self) -> &Self {
        self
    }

    fn lock(&self) -> Locked<'_> {
        self.try_lock().expect("the lock is held already")
    }

    fn try_lock(&self) -> Option<Locked<'_>> {
        let kept = self.kept.try_borrow_mut().ok()?;
        Some(Locked { double: self, kept })
    }

    fn set_sequence(&self, _: &mut Locked<'_>, sequence: usize) {
        self.note("set_sequence", sequence);
        self.sequence.set(sequence);
    }

    fn count_invalidated(&self, entries: usize) {
        self.note("count", entries);
    }

    fn not_zapped(&self, held: usize) {
        self.note("not_zapped", held);
    }
}

impl FaultChunk for Double {
    type Error = &'static str;

    fn range_fault(
        &self,
        slots: Slots,
        need: Need,
        found: &mut [HmmPfn],
    ) -> Result<Sequence, RangeError<&'static str>> {
        self.note("range_fault", (slots.range(), need));
        let per_entry = self.geometry.pages_per_entry();
        let pages = slots.first() * per_entry..slots.end() * per_entry;
        let sequence = self.sequence.get();
        let trouble = self.script.range_fault.borrow_mut().pop_front();
        if !matches!(trouble, Some(Trouble::Busy | Trouble::Refused)) {
            self.fill(slots, need);
        }
        found.copy_from_slice(&self.pages.borrow()[pages]);
        match trouble {
            Some(Trouble::Busy) => return Err(RangeError::Busy),
            Some(Trouble::Refused) => return Err(RangeError::Failed("refused")),
            Some(Trouble::Stale) => self.sequence.set(sequence + 2),
            Some(Trouble::None) | None => {}
        }
        Ok(Sequence(sequence))
    }

    fn read_ahead(&self, slots: Slots, need: Need) -> Slots {
        self.note("read_ahead", (slots.range(), need));
        Slots::new(slots.first()..slots.end().min(self.may_read_ahead.get()))
    }

    fn read_retry(&self, _: &Locked<'_>, sequence: Sequence) -> bool {
        self.sequence.get() != sequence.0
    }
}

impl LockedChunk for Locked<'_> {
    type Ticket = u32;

    fn first(&self) -> Index {
        Index(0)
    }

    fn entries(&self) -> &[Entry] {
        &self.kept.entries
    }

    fn entries_mut(&mut self, _: Proof) -> &mut [Entry] {
        &mut self.kept.entries
    }

    fn book(&self) -> &Book<u32> {
        &self.kept.book
    }

    fn book_mut(&mut self, _: Proof) -> &mut Book<u32> {
        &mut self.kept.book
    }

    fn map(&mut self, slots: Slots) -> Result<(), MapError> {
        self.double.note("map", slots.range());
        answer(&self.double.script.map)
    }

    fn sync(&mut self, slots: Slots) -> Result<(), MapError> {
        self.double.note("sync", slots.range());
        answer(&self.double.script.sync)
    }

    fn address(&self, slot: usize) -> u64 {
        let pfn = self.kept.entries[slot].pfn().0;
        u64::try_from(pfn << 12).unwrap()
    }

    fn unmap(&mut self, slots: Slots, _: &LetGo) {
        self.double.note("unmap", slots.range());
    }

    fn set_dirty(&mut self, slot: usize, _: &LetGo) {
        self.double.note("dirty", slot);
    }

    fn hold(&mut self, slot: usize) {
        self.double.note("hold", slot);
    }

    fn unhold(&mut self, slot: usize, _: &LetGo) {
        self.double.note("unhold", slot);
    }
}
