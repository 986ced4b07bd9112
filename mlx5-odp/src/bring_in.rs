// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! One range of one region: faulted in, mapped, published.

use hmm_abi::{
    ChunkIndex, FaultError, Given, Indices, MapError, Need, PublishError, Served, Slots,
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
}

impl Asked {
    /// By nobody but ourselves.
    pub const fn by_nobody(intent: Intent) -> Self {
        Self {
            intent,
            event: None,
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
    /// How many, of 4 KiB.
    pub base_pages: u64,
    /// The device could read all of them when it asked, as far as is known.
    pub asked_again: bool,
}

impl BroughtIn {
    /// No page.
    pub(crate) const NOTHING: Self = Self {
        base_pages: 0,
        asked_again: true,
    };

    /// Both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            base_pages: self.base_pages + other.base_pages,
            asked_again: self.asked_again && other.asked_again,
        }
    }
}

/// Brings the entries `indices` of `region` in.
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
    let mut asked_again = true;
    let pages = placement.geometry.scratch_len(indices);
    let mut scratch = region.scratch(pages).map_err(NotIn::Busy)?;

    for (at, slots) in placement.geometry.by_chunk(indices) {
        // What the device does not wait for is not worth holding anybody up.
        if asked.event.is_none() && region.is_closing() {
            return Err(NotIn::Invalid);
        }
        let mut window = Window {
            region,
            at,
            slots,
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
        asked_again &= result?;
    }
    Ok(BroughtIn {
        base_pages: placement.base_pages(indices.len()),
        asked_again,
    })
}

/// A part of one chunk, no more than one range fault takes.
struct Window<'a, R: Region, D> {
    region: &'a R,
    at: ChunkIndex,
    slots: Slots,
    driver: &'a D,
    scratch: &'a mut R::Scratch,
}

impl<R: Region, D: Driver> Window<'_, R, D> {
    /// Picks the access to ask for. Returns whether the device could read it all when it asked.
    ///
    /// Write is asked for only when the device is known, or may be assumed, to write: otherwise a
    /// READ would break COW, dirty the page, and fail on read-only memory. Where it is refused,
    /// the pages are published as they are, each for writing if it can be written to.
    fn bring_in(&mut self, asked: Asked) -> Result<bool, NotIn> {
        let writable = self.region.placement().writable;
        let mut refused = false;
        let served = match asked.intent {
            // The MKey does not allow it; with read access the device would fault for ever.
            Intent::Write if !writable => return Err(NotIn::ReadOnly),
            Intent::Write => self.retrying(Need::Write)?,
            Intent::Unknown if writable => match self.retrying(Need::Write)? {
                None => {
                    refused = true;
                    self.retrying(Need::Read)?
                }
                served => served,
            },
            Intent::Unknown | Intent::Read => self.retrying(Need::Read)?,
        };
        match served {
            None => Err(NotIn::ReadOnly),
            Some(Served::New) => Ok(false),
            Some(Served::Nothing { given }) => {
                Ok(writable && self.missed_again(asked, given, refused))
            }
        }
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

    /// Tries until something else than pressure comes back, or [`TRIES`] are used up. `None` if
    /// writing is refused.
    fn retrying(&mut self, need: Need) -> Result<Option<Served>, NotIn> {
        for attempt in 1.. {
            let why = match self.once(need) {
                Ok(served) => return Ok(Some(served)),
                Err(Failed::WriteRefused) => return Ok(None),
                Err(Failed::Final(why)) => return Err(why),
                Err(Failed::Again(why)) => why,
            };
            // The mirror has been patient, and its caller holds up the MR's destruction.
            if why == Pressure::Held || attempt == TRIES {
                return Err(NotIn::Busy(why));
            }
            // A race is over as soon as it is noticed; want of memory is not.
            if why == Pressure::Memory {
                self.driver.sleep(4 << attempt);
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn once(&mut self, need: Need) -> Result<Served, Failed> {
        let geometry = &self.region.placement().geometry;
        let chunk = self.region.find_or_make(self.at)?;
        let scratch = self.scratch.as_mut();
        hmm_abi::serve(&chunk, geometry, self.slots, need, scratch).map_err(Failed::from)
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
            FaultError::Map(MapError::Memory) | FaultError::Publish(PublishError::Again) => {
                Self::Again(Pressure::Memory)
            }
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
    let pages = geometry.scratch_len(indices);
    let mut scratch = region.scratch(pages).map_err(NotIn::Busy)?;

    for (at, slots) in geometry.by_chunk(indices) {
        if region.is_closing() {
            return Err(NotIn::Invalid);
        }
        if !occupied(at, slots) {
            continue;
        }
        let result = region
            .find_or_make(at)
            .map_err(FaultError::Host)
            .and_then(|chunk| {
                hmm_abi::serve(&chunk, geometry, slots, Need::Snapshot, scratch.as_mut())
            });
        if !matches!(result, Ok(Served::New)) {
            region.tidy(at);
        }
        match result {
            // It never will be as large as the entries.
            Err(FaultError::Fragmented) => return Err(NotIn::Invalid),
            Err(FaultError::Publish(PublishError::Failed)) => return Err(NotIn::Device),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
