// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Fields of firmware structures by bit offset and width, as `mlx5_ifc.h` lays them out.

/// A field of a big-endian structure. Bit 0 is the most significant bit of byte 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// First bit.
    pub bit: usize,
    /// Number of bits, at most 64.
    pub width: usize,
}

impl Field {
    /// A field of `width` bits from `bit` on.
    #[must_use]
    pub const fn new(bit: usize, width: usize) -> Self {
        assert!(width >= 1 && width <= 64);
        Self { bit, width }
    }

    /// Its value in a structure. What lies beyond the end of `bytes` reads as 0.
    #[must_use]
    pub fn get(self, bytes: &[u8]) -> u64 {
        let mut value = 0;
        for bit in self.bit..self.bit + self.width {
            let byte = bytes.get(bit / 8).copied().unwrap_or(0);
            value = value << 1 | u64::from(byte >> (7 - bit % 8) & 1);
        }
        value
    }

    /// Its value where it is known to fit 32 bits.
    ///
    /// # Panics
    ///
    /// If the field is wider than 32 bits.
    #[must_use]
    pub fn get32(self, bytes: &[u8]) -> u32 {
        assert!(self.width <= 32);
        u32::try_from(self.get(bytes)).unwrap_or(u32::MAX)
    }

    /// Whether its value is not 0.
    #[must_use]
    pub fn is_set(self, bytes: &[u8]) -> bool {
        self.get(bytes) != 0
    }

    /// Stores a value.
    ///
    /// # Panics
    ///
    /// If the field lies beyond the end of `bytes` or the value does not fit: both are
    /// decided by the model, never by the guest.
    pub fn set(self, bytes: &mut [u8], value: u64) {
        assert!(
            self.width == 64 || value >> self.width == 0,
            "{value:#x} does not fit {} bits",
            self.width
        );
        for (i, bit) in (self.bit..self.bit + self.width).rev().enumerate() {
            let mask = 1 << (7 - bit % 8);
            if value >> i & 1 == 1 {
                bytes[bit / 8] |= mask;
            } else {
                bytes[bit / 8] &= !mask;
            }
        }
    }
}
