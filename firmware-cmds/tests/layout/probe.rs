// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Where a field is, found by trying: set each bit of a layout in turn and look at the field.

use firmware_cmds::wire::Layout;
use firmware_cmds::{handle, mkc, page_fault, wqe};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::IntoBytes;

/// Bits of a layout, bit 0 the most significant of byte 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) bits: u64,
}

impl Span {
    pub(crate) fn end(self) -> u64 {
        self.offset + self.bits
    }
}

/// What a field of a layout may be.
pub(crate) trait Value {
    /// The value, most significant byte first.
    fn big_endian(&self) -> Vec<u8>;
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Value for $int {
            fn big_endian(&self) -> Vec<u8> {
                self.to_be_bytes().to_vec()
            }
        }
    )*};
}

integers!(u8 u16 u32 u64);

/// Types with a `get` that returns an integer.
macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Value for $number {
            fn big_endian(&self) -> Vec<u8> {
                self.get().big_endian()
            }
        }
    )*};
}

numbers!(U16 U32 U64);
numbers!(handle::MkeyIndex handle::Qpn handle::Srqn handle::WqNumber handle::Pdn);
numbers!(handle::TransportToken handle::MkeyVariant);
numbers!(mkc::LogPageSize mkc::MaTranslationMode mkc::TphHint);
numbers!(page_fault::FaultType page_fault::DemandPages);
numbers!(wqe::FenceMode wqe::CompletionMode wqe::ByteCount wqe::FlowLabel);
numbers!(wqe::Ds wqe::StatRate wqe::ServiceLevel);

impl Value for wqe::WqeOpcode {
    fn big_endian(&self) -> Vec<u8> {
        self.0.big_endian()
    }
}

impl Value for bool {
    fn big_endian(&self) -> Vec<u8> {
        vec![u8::from(*self)]
    }
}

impl<const N: usize> Value for [u8; N] {
    fn big_endian(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Value for mkc::MkcLayout {
    fn big_endian(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

/// Bits set in `bytes`, bit 0 the least significant of the last byte.
fn bits_set(bytes: &[u8]) -> Vec<u64> {
    let bits = bytes
        .iter()
        .rev()
        .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    (0..)
        .zip(bits)
        .filter(|(_, set)| *set)
        .map(|(bit, _)| bit)
        .collect()
}

/// Where the field that `get` reads is.
///
/// Fails unless it is one run of bits, each of which weighs in the value what its place says.
pub(crate) fn probe<L: Layout, V: Value>(get: impl Fn(&L) -> V) -> Result<Span, String> {
    let mut bytes = vec![0u8; size_of::<L>()];
    let read = |bytes: &[u8]| {
        let layout = L::read_from_bytes(bytes).map_err(|error| error.to_string())?;
        Ok::<_, String>(bits_set(&get(&layout).big_endian()))
    };
    if !read(&bytes)?.is_empty() {
        return Err("not zero in a layout of zeros".to_owned());
    }
    let mut weights = Vec::new();
    for (byte, first) in (0..bytes.len()).zip((0u64..).step_by(8)) {
        for bit in 0..8u8 {
            bytes[byte] = 0x80 >> bit;
            match read(&bytes)?.as_slice() {
                [] => {}
                [weight] => weights.push((first + u64::from(bit), *weight)),
                several => return Err(format!("bit {bit} of byte {byte} sets {several:?}")),
            }
        }
        bytes[byte] = 0;
    }
    let Some(&(offset, _)) = weights.first() else {
        return Err("reads no bit".to_owned());
    };
    let bits = u64::try_from(weights.len()).map_err(|error| error.to_string())?;
    for (at, weight) in &weights {
        if at + weight + 1 != offset + bits {
            return Err(format!("bit {at} has weight {weight}: {weights:?}"));
        }
    }
    Ok(Span { offset, bits })
}
