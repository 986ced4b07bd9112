// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Bytes written out by hand, read and written.

mod commands;
mod faults;
mod posted;
mod segments;
mod wqes;

use std::fmt::Debug;

use firmware_cmds::wire::{Error, Wire};

/// Bytes from hexadecimal digits; blanks do not count.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hexadecimal digit"))
        .collect();
    assert!(digits.len() % 2 == 0, "half a byte in {text}");
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).expect("two digits"))
        .collect()
}

/// `value` is `bytes`, in both directions: every byte is written, none beyond, and fewer bytes are
/// neither read nor touched.
fn golden<T: Wire + PartialEq + Debug>(value: &T, bytes: &[u8]) {
    assert_eq!(T::LEN, bytes.len());
    assert_eq!(T::parse(bytes).as_ref(), Ok(value));

    let mut dirty = vec![0xa5; bytes.len() + 3];
    assert_eq!(value.emit(&mut dirty), Ok(()));
    assert_eq!(&dirty[..bytes.len()], bytes);
    assert_eq!(&dirty[bytes.len()..], [0xa5; 3]);

    let mut longer = bytes.to_vec();
    longer.extend([1, 2, 3]);
    let (parsed, rest) = T::parse_prefix(&longer).expect("the same value");
    assert_eq!((&parsed, rest), (value, &[1, 2, 3][..]));

    for available in 0..bytes.len() {
        let truncated = Error::Truncated {
            needed: bytes.len(),
            available,
        };
        assert_eq!(T::parse(&bytes[..available]), Err(truncated));
        let mut short = vec![0xa5; available];
        assert_eq!(value.emit(&mut short), Err(truncated));
        assert!(short.iter().all(|byte| *byte == 0xa5));
    }
}

/// Reads the same from bytes whose reserved bits are set as from bytes where they are clear.
fn ignores<T: Wire + PartialEq + Debug>(value: &T, bytes: &[u8]) {
    assert_eq!(T::parse(bytes).as_ref(), Ok(value));
}
