// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! From bytes to values and back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::cmd::Opcode;

/// What a layout must be: plain bytes, at any address, without padding.
pub trait Layout: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy> Layout for T {}

/// A value with one fixed byte layout.
///
/// Reserved bits are ignored when read and zero when written.
pub trait Wire: Sized {
    /// The bytes, field by field.
    type Layout: Layout;

    /// Length in bytes.
    const LEN: usize = size_of::<Self::Layout>();

    /// Checks a layout and takes the value out of it.
    ///
    /// # Errors
    ///
    /// What the format does not define. A type that accepts every layout says so.
    fn decode(layout: &Self::Layout) -> Result<Self, Error>;

    /// The layout of this value.
    fn encode(&self) -> Self::Layout;

    /// Reads the value at the start of `bytes` and returns it with the bytes behind it.
    ///
    /// # Errors
    ///
    /// - [`Error::Truncated`]: `bytes` is shorter than [`Wire::LEN`].
    /// - Those of [`Wire::decode`].
    fn parse_prefix(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (layout, rest) = read::<Self::Layout>(bytes)?;
        Ok((Self::decode(&layout)?, rest))
    }

    /// Reads the value at the start of `bytes`; what follows it is not looked at.
    ///
    /// # Errors
    ///
    /// As [`Wire::parse_prefix`].
    fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse_prefix(bytes).map(|(value, _)| value)
    }

    /// Writes [`Wire::LEN`] bytes to the start of `bytes`, all of them; what follows is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Truncated`]: `bytes` is shorter than [`Wire::LEN`]. Nothing was written.
    fn emit(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let available = bytes.len();
        self.encode()
            .write_to_prefix(bytes)
            .map_err(|_| Error::Truncated {
                needed: Self::LEN,
                available,
            })
    }
}

/// Reads the layout at the start of `bytes` and returns it with the bytes behind it.
pub(crate) fn read<L: Layout>(bytes: &[u8]) -> Result<(L, &[u8]), Error> {
    L::read_from_prefix(bytes).map_err(|_| Error::Truncated {
        needed: size_of::<L>(),
        available: bytes.len(),
    })
}

/// Why bytes are not the value they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Fewer bytes than the format has.
    Truncated {
        /// Length of the format.
        needed: usize,
        /// Length of what was given.
        available: usize,
    },
    /// A command other than the expected one.
    Opcode {
        /// The command that was to be decoded.
        expected: Opcode,
        /// The opcode found.
        found: u16,
    },
    /// A modifier that the command does not define.
    OpMod(u16),
    /// A command status that the firmware does not define.
    Status(u8),
    /// An access mode of an MKey that the firmware does not define.
    AccessMode(u8),
    /// A page's address whose low bits would be taken for others of the entry.
    Misaligned(u64),
    /// A WQE of no length: its DS is 0.
    EmptyWqe,
    /// A send opcode whose WQE this crate does not know how to read.
    WqeOpcode(u8),
    /// Inline data where only pointers may be.
    Inline,
    /// What a translation entry that is no head of a strided block has in place of its mark.
    StrideBlock(u32),
    /// A translation list that does not hold what an access needs, or contradicts itself.
    Xlt,
}
