// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What a fault takes besides what is demanded.
//!
//! A fault costs a device more than many pages that come with it, so a fault takes what is likely
//! to be demanded next:
//!
//! - **Neighbours.** It looks at the pages around before it faults anything in, which for what is
//!   there is all it has to do. Where at least half of them are in memory and new to the device,
//!   or the page is a part of a huge one, it takes all of the chunk that is in memory: that costs
//!   one fault for each chunk. Nothing is faulted in for it, and a page that is alone costs a look
//!   at a few others.
//! - **Streams.** Three faults that follow each other are a stream. What comes next of it is faulted
//!   in, twice as much with every fault, up to [`MAX_STREAM`] entries.
//!
//! Both may fail without the fault doing so.

use core::ops::Range;

use crate::{Entry, FaultChunk, Given, HmmPfn, LockedChunk, Need, Order, Proof, Slots, State};

/// Entries of a stream that are brought in together at most, over several chunks: 8 MiB of pages of
/// 4 KiB. A fault that brings in so much takes about a millisecond, and there are few of them.
pub const MAX_STREAM: usize = 2048;

/// The fewest entries that a fault looks at.
const FEWEST: usize = 16;

/// What a fault takes besides what is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Around {
    /// Nothing.
    Nothing,
    /// What is likely to be demanded next.
    Likely {
        /// How many entries a stream wants next that has come to the end of the chunk before this
        /// one ([`carried`]); 0 for none.
        before: usize,
    },
    /// Nothing: it is itself what a stream is likely to demand next.
    Stream {
        /// How many entries the stream wants after that.
        next: usize,
    },
}

/// What a stream wants of the chunks after the one that was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// So many entries, from the first one of the next chunk on.
    pub entries: usize,
    /// What the stream wants after that, for [`Around::Stream`].
    pub next: usize,
}

/// The faults of a chunk that follow each other: the last of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// The first slot that was demanded.
    first: u16,
    /// How many were.
    own: u16,
    /// One past the last entry that it brought in; may be beyond the chunk. 0 if there was none.
    end: u16,
    /// How many entries the next one brings in; 0 for those that it demands.
    next: u16,
}

impl Stream {
    /// Of a chunk without a fault.
    pub(crate) const NONE: Self = Self {
        first: 0,
        own: 0,
        end: 0,
        next: 0,
    };

    /// The stream if `slots` are demanded next. The second fault is where the first one ended by
    /// accident, it may be; from the third on more is brought in than is demanded.
    fn follow(self, slots: Slots, before: usize) -> Self {
        let (first, own) = (slots.first(), slots.len());
        let (end, next) = (usize::from(self.end), usize::from(self.next));
        let is_same = first == usize::from(self.first) && own == usize::from(self.own);
        let doubled = |len: usize| (len, 2 * len);
        let (len, next) = match first {
            // The same again: it was refused, or the device repeats the access.
            _ if end != 0 && is_same => (end - first, next),
            first if end != 0 && first == end => doubled(next.max(own)),
            0 if before != 0 => doubled(before.max(own)),
            _ => (own, 0),
        };
        Self::new(slots, len.max(own), next.min(MAX_STREAM))
    }

    /// The stream whose last fault demanded `slots` and brought in `len` entries.
    fn new(slots: Slots, len: usize, next: usize) -> Self {
        // No more than a chunk's slots and `MAX_STREAM` or another chunk's: all of it fits.
        let narrow = |value| u16::try_from(value).unwrap_or(u16::MAX);
        Self {
            first: narrow(slots.first()),
            own: narrow(slots.len()),
            end: narrow(slots.first() + len),
            next: narrow(next),
        }
    }

    /// The slots of a chunk of `len` that it wants after `slots`.
    fn rest(self, slots: Slots, len: usize) -> Slots {
        Slots::new(slots.end()..usize::from(self.end).min(len).max(slots.end()))
    }

    /// What it wants of the chunks after one of `len` slots.
    fn beyond(self, len: usize) -> Ahead {
        Ahead {
            entries: usize::from(self.end).saturating_sub(len),
            next: usize::from(self.next),
        }
    }
}

/// How many entries a stream wants next that has come to the end of `chunk`, for the fault on the
/// first slot of the next one; 0 for none.
pub fn carried<C: FaultChunk>(chunk: &C) -> usize {
    let locked = chunk.lock();
    let stream = locked.book().stream;
    match usize::from(stream.end) >= locked.entries().len() {
        true => usize::from(stream.next),
        false => 0,
    }
}

/// What a fault finds in the entries, before it looks anywhere else.
pub(crate) enum Glance {
    /// The device has all that is demanded, and so the pages are there.
    Live {
        /// Since when.
        given: Given,
    },
    /// What to ask for.
    Missing(Plan),
}

/// What a range fault is to find of some slots of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    slots: Slots,
    faulted: Slots,
    need: Need,
}

impl Wanted {
    /// All of `slots`, as `need` wants it.
    pub(crate) const fn all(slots: Slots, need: Need) -> Self {
        Self {
            slots,
            faulted: slots,
            need,
        }
    }

    /// `faulted`, as `need` wants it; the rest of `slots`, among which that is, as it is.
    fn around(slots: Slots, faulted: Slots, need: Need) -> Self {
        let first = slots.first().min(faulted.first());
        let end = slots.end().max(faulted.end());
        Self {
            slots: Slots::new(first..end),
            faulted,
            need,
        }
    }

    /// No more than `slots`, among which what is to be faulted in is.
    pub(crate) fn narrowed(self, slots: Slots) -> Self {
        Self { slots, ..self }
    }

    /// All that is looked at.
    #[inline]
    pub(crate) const fn slots(&self) -> Slots {
        self.slots
    }

    /// What of it the need is about.
    #[inline]
    pub(crate) const fn faulted(&self) -> Slots {
        self.faulted
    }

    /// The same, counted from the first of all.
    #[inline]
    pub(crate) fn among(&self) -> Range<usize> {
        let first = self.faulted.first() - self.slots.first();
        first..first + self.faulted.len()
    }

    /// The need.
    #[inline]
    pub(crate) const fn need(&self) -> Need {
        self.need
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    demanded: Slots,
    pub(crate) wanted: Wanted,
    /// The chunk's slots if neighbours may be taken, else none.
    chunk: Slots,
    pub(crate) ahead: Ahead,
}

impl Plan {
    /// Only what is demanded.
    pub(crate) fn bare(demanded: Slots, need: Need) -> Self {
        Self {
            demanded,
            wanted: Wanted::all(demanded, need),
            chunk: Slots::NONE,
            ahead: Ahead::default(),
        }
    }

    pub(crate) fn is_bare(&self) -> bool {
        self.wanted.slots() == self.demanded
    }

    /// Whether more is to be faulted in than is demanded.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.wanted.faulted() != self.demanded
    }

    /// Asks for what is demanded, and no more.
    pub(crate) fn strip(&mut self) {
        *self = Self::bare(self.demanded, self.wanted.need());
    }

    /// What becomes of a plan of which `found` was found: see [`Next`].
    pub(crate) fn next<C: FaultChunk>(&self, chunk: &C, found: &[HmmPfn]) -> Next {
        let (slots, faulted) = (self.wanted.slots(), self.wanted.faulted());
        let others = slots.len() - faulted.len();
        if others == 0 || self.chunk.is_empty() {
            return Next::Merge(slots);
        }
        let (mut valid, mut first, mut end) = (0_usize, slots.len(), 0);
        for (at, page) in found.iter().enumerate() {
            if page.is_valid() {
                valid += 1;
                first = first.min(at);
                end = at + 1;
            }
        }
        let among = self.wanted.among();
        let merge = slots.first() + first.min(among.start)..slots.first() + end.max(among.end);
        let merge = Next::Merge(Slots::new(merge));
        if slots == self.chunk {
            return merge;
        }
        let is_huge = found
            .get(among.start)
            .is_some_and(|page| page.is_valid() && page.order() > Order(0));
        // What was faulted in is there.
        let is_half = |new: usize| 2 * new >= others;
        if !is_huge && !is_half(valid.saturating_sub(faulted.len())) {
            return merge;
        }
        if !is_huge {
            let locked = chunk.lock();
            let entries = locked.entries().get(slots.range()).unwrap_or_default();
            let is_new =
                |(entry, found): &(&Entry, &HmmPfn)| found.is_valid() && !entry.is_mapped();
            let new = entries.iter().zip(found).filter(is_new).count();
            if !is_half(new.saturating_sub(faulted.len())) {
                return merge;
            }
        }
        Next::Widen(Self {
            wanted: Wanted::around(self.chunk, faulted, self.wanted.need()),
            ..*self
        })
    }
}

/// What a fault does with what was found.
pub(crate) enum Next {
    /// It merges these slots: what was faulted in, and all neighbours that are there.
    Merge(Slots),
    /// It looks at all of the chunk, once, for that is worth it: what was faulted in is a part of
    /// something larger, or at least half of the neighbours are in memory and not mapped for the
    /// device yet.
    Widen(Plan),
}

/// What a fault on `demanded` of `chunk` has to ask for. Where the device has it all, and may write
/// if that is needed, there is nothing to walk the page table for: who faulted first has served
/// whoever faulted with it.
pub(crate) fn glance<C: FaultChunk>(
    chunk: &C,
    demanded: Slots,
    need: Need,
    around: Around,
) -> Glance {
    if need == Need::Snapshot {
        return Glance::Missing(Plan::bare(demanded, need));
    }
    let proof = Proof::new();
    let mut locked = chunk.lock();
    let len = locked.entries().len();
    let entries = locked.entries().get(demanded.range());
    let entries = entries.unwrap_or_default();
    if !entries.is_empty() && entries.iter().all(|&entry| has(entry, need)) {
        let given = locked.book_mut(proof).given(chunk.device());
        return Glance::Live { given };
    }
    let stream = match around {
        Around::Nothing => return Glance::Missing(Plan::bare(demanded, need)),
        Around::Likely { before } => locked.book().stream.follow(demanded, before),
        Around::Stream { next } => {
            locked.book_mut(proof).stream = Stream::new(demanded, demanded.len(), next);
            return Glance::Missing(Plan::bare(demanded, need));
        }
    };
    locked.book_mut(proof).stream = stream;
    drop(locked);

    let mut ahead = stream.beyond(len);
    let rest = stream.rest(demanded, len);
    let mut faulted = demanded;
    if !rest.is_empty() {
        let granted = chunk.read_ahead(rest, need);
        if granted != rest {
            ahead = Ahead::default();
        }
        faulted = Slots::new(demanded.first()..granted.end().clamp(demanded.end(), rest.end()));
    }
    Glance::Missing(Plan {
        demanded,
        wanted: Wanted::around(neighbourhood(faulted, len), faulted, need),
        chunk: Slots::new(0..len),
        ahead,
    })
}

/// Whether the device has an entry as `need` wants it.
#[inline]
fn has(entry: Entry, need: Need) -> bool {
    entry.state() == State::Live && (need != Need::Write || entry.is_writable())
}

/// The slots to look at for a fault on `slots` of a chunk of `len`: the smallest aligned group, of a
/// power of two, that holds more than these.
fn neighbourhood(slots: Slots, len: usize) -> Slots {
    let mut group = FEWEST;
    while group < len {
        let first = slots.first() & !(group - 1);
        if slots.end() <= first + group && slots.len() < group {
            return Slots::new(first..(first + group).min(len));
        }
        group *= 2;
    }
    Slots::new(0..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(first: usize, end: usize) -> Slots {
        Slots::new(first..end)
    }

    #[test]
    fn neighbours_are_more_than_what_is_demanded() {
        let cases = [
            ((3, 4), (0, 16)),
            ((15, 17), (0, 32)),
            ((16, 32), (0, 32)),
            ((32, 48), (32, 64)),
            ((500, 501), (496, 512)),
            ((0, 256), (0, 512)),
            ((255, 257), (0, 512)),
            ((0, 512), (0, 512)),
        ];
        for ((first, end), (from, to)) in cases {
            assert_eq!(neighbourhood(slots(first, end), 512), slots(from, to));
        }
        assert_eq!(neighbourhood(slots(17, 18), 20), slots(16, 20));
        assert_eq!(neighbourhood(slots(0, 1), 1), slots(0, 1));
    }

    fn len(stream: Stream) -> u16 {
        stream.end - stream.first
    }

    #[test]
    fn a_stream_doubles_and_goes_on_in_the_next_chunk() {
        let mut stream = Stream::NONE;
        let mut at = 0;
        for brought_in in [16, 16, 32, 64, 128, 256] {
            assert!(at < 512);
            stream = stream.follow(slots(at, at + 16), 0);
            assert_eq!(len(stream), brought_in);
            at = usize::from(stream.end);
        }
        assert_eq!((at, stream.beyond(512).entries), (512, 0));
        let next = Stream::NONE.follow(slots(0, 16), usize::from(stream.next));
        assert_eq!(len(next), 512);
        assert_eq!(next.rest(slots(0, 16), 512), slots(16, 512));
        let next = Stream::NONE.follow(slots(0, 16), usize::from(next.next));
        assert_eq!(
            (next.beyond(512).entries, next.beyond(512).next),
            (512, 2048)
        );
        let most = Stream::NONE.follow(slots(0, 16), usize::from(next.next));
        assert_eq!(usize::from(len(most)), MAX_STREAM);
        assert_eq!(usize::from(most.next), MAX_STREAM);
    }

    #[test]
    fn what_does_not_follow_is_no_stream() {
        let stream = Stream::NONE.follow(slots(0, 4), 0);
        assert_eq!(len(stream), 4);
        let stream = stream.follow(slots(4, 8), 0);
        assert_eq!(len(stream), 4, "an accident, it may be");
        for other in [slots(1, 5), slots(9, 13), slots(100, 104)] {
            assert_eq!(len(stream.follow(other, 0)), 4);
        }
        let stream = stream.follow(slots(8, 12), 0);
        assert_eq!(len(stream), 8);
        // The same again goes on with it, a part of that does not.
        assert_eq!(len(stream.follow(slots(8, 12), 0)), 8);
        assert_eq!(len(stream.follow(slots(8, 9), 0)), 1);
    }
}
