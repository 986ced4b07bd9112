// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One range of one region: faulted in, mapped, published.

use hmm_abi::{
    carried, serve, Ahead, Around, ChunkIndex, Fault, FaultChunk, FaultError, Given, Indices,
    MapError, Need, Outcome, PublishError, Served, Slots,
};

use crate::driver::{Driver, Intent};
use crate::region::{MemoryError, Pressure, Region};

/// How often a fault tries again in place before it goes back to the device, which will repeat
/// the access and fault again. Bounded, for the MR cannot be destroyed meanwhile.
pub const TRIES: u32 = 4;

/// Milliseconds after a publish in which the device may still write events of accesses that missed
/// what was published ([`hmm_abi::Device::LATE`]). An event takes the way through the firmware,
/// which writes them one after the other; the UMR's completion does not.
pub const LATE: u32 = 50;

/// Why a range is not in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotIn {
    /// The access is invalid: resume with error.
    Invalid,
    /// It is to be written, and may only be read: resume with error.
    ReadOnly,
    /// There is nothing to be brought in; no event is so.
    Empty,
    /// The device could not be told: resume with error.
    Device,
    /// Out of tries: resume without error, the device will ask again.
    Busy(Pressure),
}

/// What is known of who asks for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is to be done to them.
    pub intent: Intent,
    /// The number of the device's event ([`crate::EventQueue`]); `None` if the device has not
    /// asked.
    pub event: Option<u32>,
    /// The event is a part of its access, whose other parts have events of their own: one that
    /// follows another is no stream.
    pub is_part: bool,
}

impl Asked {
    /// By the device, with event `number`.
    pub const fn by_event(number: u32, intent: Intent) -> Self {
        Self {
            intent,
            event: Some(number),
            is_part: false,
        }
    }

    /// By nobody but ourselves.
    pub const fn by_nobody(intent: Intent) -> Self {
        Self {
            intent,
            event: None,
            is_part: false,
        }
    }

    /// Whether the device asked for what it had been given before `moment`. Event numbers wrap.
    fn after(&self, moment: u32) -> bool {
        self.event
            .is_some_and(|event| event.wrapping_sub(moment) <= u32::MAX / 2)
    }
}

/// Pages that are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BroughtIn {
    /// How many were demanded, of 4 KiB.
    pub base_pages: u64,
    /// How many came with them, as far as the device did not have them.
    pub others: u64,
    /// The device could read all of them when it asked, as far as is known.
    pub asked_again: bool,
}

impl BroughtIn {
    /// No page.
    pub(crate) const NOTHING: Self = Self {
        base_pages: 0,
        others: 0,
        asked_again: true,
    };

    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            base_pages: self.base_pages + other.base_pages,
            others: self.others + other.others,
            asked_again: self.asked_again && other.asked_again,
        }
    }
}

/// Brings the entries `indices` of `region` in; if the device has asked, with what it is likely to
/// ask for next ([`hmm_abi::Around`]).
///
/// # Errors
///
/// [`NotIn`]. Windows before the one that failed stay published.
pub fn bring_in<R: Region>(
    region: &R,
    indices: Indices,
    asked: Asked,
    driver: &impl Driver,
) -> Result<BroughtIn, NotIn> {
    let placement = region.placement();
    let (mut asked_again, mut others) = (true, 0);
    let mut scratch = region.scratch();
    let mut last = None;

    for (at, slots) in placement.geometry.by_chunk(indices) {
        // What the device does not wait for is not worth holding anybody up.
        if asked.event.is_none() && region.is_closing() {
            return Err(NotIn::Invalid);
        }
        let around = match (asked.event, &last) {
            (None, _) => Around::Nothing,
            (Some(_), _) if asked.is_part => Around::Nothing,
            (Some(_), None) => Around::Likely {
                before: stream_before(region, at, slots),
            },
            // It is the same fault's.
            (Some(_), Some(_)) => Around::Likely { before: 0 },
        };
        let mut window = Window {
            region,
            at,
            slots,
            around,
            driver,
            scratch: &mut scratch,
        };
        let result = window.bring_in(asked);
        match result {
            // The device will ask again.
            Err(NotIn::Busy(_)) if asked.event.is_some() => {}
            Err(_) => region.tidy(at),
            Ok(_) => {}
        }
        let done = result?;
        asked_again &= done.asked_again;
        others += done.others;
        last = Some((at, done));
    }
    if let Some((at, done)) = last {
        others += read_ahead(region, at, done.need, done.ahead, &mut scratch);
    }
    Ok(BroughtIn {
        base_pages: placement.base_pages(indices.len()),
        others: placement.base_pages(others),
        asked_again,
    })
}

/// What a stream wants next that `slots` of chunk `at` may go on with from the chunk before.
fn stream_before<R: Region>(region: &R, at: ChunkIndex, slots: Slots) -> usize {
    let before = at.0.checked_sub(1).filter(|_| slots.first() == 0);
    let chunk = before.and_then(|before| region.find(ChunkIndex(before)));
    chunk.map_or(0, |chunk| carried(&chunk))
}

/// Brings in what a stream wants of the chunks after `at`, until something is in the way. Returns how
/// many entries.
fn read_ahead<R: Region>(
    region: &R,
    at: ChunkIndex,
    need: Need,
    ahead: Ahead,
    scratch: &mut R::Scratch,
) -> usize {
    let geometry = &region.placement().geometry;
    let mut rest = ahead.entries;
    let mut at = at;
    while rest > 0 && !region.is_closing() {
        at = ChunkIndex(at.0 + 1);
        let most = Slots::new(0..rest.min(geometry.chunk(at).len()));
        if most.is_empty() {
            break;
        }
        let Ok(chunk) = region.find_or_make(at) else {
            break;
        };
        let slots = chunk.read_ahead(most, need);
        let fault = Fault {
            slots,
            need,
            around: Around::Stream { next: ahead.next },
        };
        if serve(&chunk, geometry, &fault, scratch).is_err() {
            region.tidy(at);
            break;
        }
        rest -= slots.len();
        if slots != most {
            break;
        }
    }
    ahead.entries - rest
}

/// Tries until something else than pressure comes back, or [`TRIES`] are used up.
///
/// # Errors
///
/// The last one's.
pub(crate) fn patiently<T>(
    driver: &impl Driver,
    mut once: impl FnMut() -> Result<T, NotIn>,
) -> Result<T, NotIn> {
    for attempt in 1.. {
        match once() {
            // The mirror has been patient, and its caller holds up the MR's destruction.
            Err(NotIn::Busy(why)) if why != Pressure::Held && attempt < TRIES => {
                // A race is over as soon as it is noticed; want of memory is not.
                if why == Pressure::Memory {
                    driver.sleep(4 << attempt);
                }
            }
            result => return result,
        }
    }
    unreachable!("the loop ends by returning")
}

/// A part of one chunk, no more than one range fault takes.
struct Window<'a, R: Region, D> {
    region: &'a R,
    at: ChunkIndex,
    slots: Slots,
    around: Around,
    driver: &'a D,
    scratch: &'a mut R::Scratch,
}

/// A window that is in.
struct Done {
    /// The device could read it all when it asked.
    asked_again: bool,
    /// The access that it was brought in for.
    need: Need,
    /// Entries that were brought in besides.
    others: usize,
    /// What a stream wants next.
    ahead: Ahead,
}

impl<R: Region, D: Driver> Window<'_, R, D> {
    /// Picks the access to ask for.
    ///
    /// Write is asked for only when the device is known, or may be assumed, to write: otherwise a
    /// READ would break COW, dirty the page, and fail on read-only memory. Where it is refused,
    /// the pages are published as they are, each for writing if it can be written to.
    fn bring_in(&mut self, asked: Asked) -> Result<Done, NotIn> {
        let writable = self.region.placement().writable;
        let need = match asked.intent {
            // The MKey does not allow it; with read access the device would fault for ever.
            Intent::Write if !writable => return Err(NotIn::ReadOnly),
            Intent::Write => Need::Write,
            Intent::Unknown if writable => Need::Write,
            Intent::Unknown | Intent::Read => Need::Read,
        };
        let (need, refused, outcome) = match self.retrying(need)? {
            None if asked.intent == Intent::Unknown => {
                (Need::Read, true, self.retrying(Need::Read)?)
            }
            outcome => (need, false, outcome),
        };
        let outcome = outcome.ok_or(NotIn::ReadOnly)?;
        let asked_again = match outcome.served {
            Served::New => false,
            Served::Nothing { given } => writable && self.missed_again(asked, given, refused),
        };
        Ok(Done {
            asked_again,
            need,
            others: outcome.others,
            ahead: outcome.ahead,
        })
    }

    /// Whether the device missed what it had been given before. If writing was `refused` and it may
    /// be that the event is only late, the device repeats the access, and if it writes, it goes on
    /// doing so until that is known: not as fast as it can.
    fn missed_again(&self, asked: Asked, given: Given, refused: bool) -> bool {
        match given {
            Given::Before { moment } => asked.after(moment),
            Given::Lately { ago } => {
                if refused {
                    self.driver.sleep(ago.max(1));
                }
                false
            }
            Given::Never => false,
        }
    }

    /// Tries [`patiently`]. `None` if writing is refused.
    fn retrying(&mut self, need: Need) -> Result<Option<Outcome>, NotIn> {
        let driver = self.driver;
        patiently(driver, || match self.once(need) {
            Ok(outcome) => Ok(Some(outcome)),
            Err(Failed::WriteRefused) => Ok(None),
            Err(Failed::Final(why)) => Err(why),
            Err(Failed::Again(why)) => Err(NotIn::Busy(why)),
        })
    }

    fn once(&mut self, need: Need) -> Result<Outcome, Failed> {
        let geometry = &self.region.placement().geometry;
        let chunk = self.region.find_or_make(self.at)?;
        let fault = Fault {
            slots: self.slots,
            need,
            around: self.around,
        };
        Ok(serve(&chunk, geometry, &fault, self.scratch)?)
    }
}

/// Why one try failed.
enum Failed {
    WriteRefused,
    Again(Pressure),
    Final(NotIn),
}

impl From<MemoryError> for Failed {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Invalid => Self::Final(NotIn::Invalid),
            MemoryError::WriteRefused => Self::WriteRefused,
            MemoryError::Again(why) => Self::Again(why),
        }
    }
}

impl From<FaultError<MemoryError>> for Failed {
    fn from(error: FaultError<MemoryError>) -> Self {
        match error {
            FaultError::Host(error) => error.into(),
            FaultError::Race => Self::Again(Pressure::Race),
            FaultError::Busy => Self::Again(Pressure::Held),
            FaultError::Memory
            | FaultError::Map(MapError::Memory)
            | FaultError::Publish(PublishError::Again) => Self::Again(Pressure::Memory),
            FaultError::Map(MapError::Unreachable)
            | FaultError::Fragmented
            | FaultError::Empty
            | FaultError::Publish(PublishError::Gone) => Self::Final(NotIn::Invalid),
            FaultError::Stuck | FaultError::Publish(PublishError::Failed) => {
                Self::Final(NotIn::Device)
            }
        }
    }
}

/// Publishes what is in memory of `indices` already; what cannot be had at once is left for the
/// device to ask for. `occupied` says of slots of a chunk whether there is any.
///
/// # Errors
///
/// [`NotIn::Invalid`] for memory in smaller pieces than the region's entries, or if the region is
/// being destroyed, [`NotIn::Device`] if the device did not take translations, [`NotIn::Busy`] for
/// want of memory.
pub fn bring_in_present<R: Region>(
    region: &R,
    indices: Indices,
    mut occupied: impl FnMut(ChunkIndex, Slots) -> bool,
) -> Result<(), NotIn> {
    let geometry = &region.placement().geometry;
    let mut scratch = region.scratch();

    for (at, slots) in geometry.by_chunk(indices) {
        if region.is_closing() {
            return Err(NotIn::Invalid);
        }
        if !occupied(at, slots) {
            continue;
        }
        let fault = Fault::exactly(slots, Need::Snapshot);
        let result = region
            .find_or_make(at)
            .map_err(FaultError::Host)
            .and_then(|chunk| serve(&chunk, geometry, &fault, &mut scratch));
        if !result.is_ok_and(|outcome| outcome.served == Served::New) {
            region.tidy(at);
        }
        match result {
            // It never will be as large as the entries.
            Err(FaultError::Fragmented) => return Err(NotIn::Invalid),
            Err(FaultError::Publish(PublishError::Failed)) => return Err(NotIn::Device),
            Err(FaultError::Memory) => return Err(NotIn::Busy(Pressure::Memory)),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
