// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Inputs of more than one step: one value of `postcard` behind the other. Unlike `arbitrary`'s
//! the format has an encoder, for seeds to be written as values.

use serde::de::DeserializeOwned;
use serde::Serialize;

/// The most steps that are taken, so that a run ends within some milliseconds.
const MOST: usize = 64;

/// The steps that bytes hold, up to the first that is none.
pub(crate) fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    let steps = std::iter::from_fn(move || {
        let (step, rest) = postcard::take_from_bytes(bytes).ok()?;
        bytes = rest;
        Some(step)
    });
    steps.take(MOST)
}

/// The bytes that hold these steps.
///
/// # Panics
///
/// Not for steps as the targets have them, which can all be written.
pub(crate) fn encode<T: Serialize>(steps: &[T]) -> Vec<u8> {
    let bytes = |step| postcard::to_allocvec(step).expect("a step can be written");
    steps.iter().flat_map(bytes).collect()
}
