// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Words that rules of several points share.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::time::Duration;

use firmware_cmds::wqe::WqeOpcode;
use firmware_cmds::{CmdStatus, EventType};
use serde::{Deserialize, Serialize};

use super::text::number;
use crate::command;
use crate::completion::{cqe_opcode, syndrome};
use crate::ifc::{self, Field};

/// A number as a rule says it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number or a name")]
enum Said {
    Number(u64),
    Text(String),
}

/// A number that is written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "String")]
pub struct Number(pub u64);

impl From<Number> for String {
    fn from(Number(value): Number) -> Self {
        format!("{value:#x}")
    }
}

impl TryFrom<Said> for Number {
    type Error = String;

    fn try_from(said: Said) -> Result<Self, String> {
        match said {
            Said::Number(value) => Ok(Self(value)),
            Said::Text(text) => number(&text)
                .map(Self)
                .ok_or_else(|| format!("{text:?} is not a number")),
        }
    }
}

/// A kind of number of which many have names.
pub trait Names: Copy + fmt::Debug {
    /// What it is, for messages.
    const WHAT: &'static str;
    /// The largest number.
    const MAX: u64;

    /// The numbers that have names.
    fn names() -> Vec<(u64, String)>;
}

/// A number by its name, or by itself.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "String", bound = "N: Names")]
pub struct Named<N>(u64, PhantomData<N>);

impl<N: Names> Named<N> {
    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<N: Names> fmt::Debug for Named<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(*self))
    }
}

impl<N: Names> From<Named<N>> for String {
    fn from(named: Named<N>) -> Self {
        let mut names = N::names().into_iter();
        names
            .find(|&(value, _)| value == named.0)
            .map_or_else(|| format!("{:#x}", named.0), |(_, name)| name)
    }
}

impl<N: Names> TryFrom<Said> for Named<N> {
    type Error = String;

    fn try_from(said: Said) -> Result<Self, String> {
        let value = match said {
            Said::Number(value) => value,
            Said::Text(text) => {
                let names = N::names();
                let named = names.iter().find(|(_, name)| *name == text);
                match named.map(|&(value, _)| value).or_else(|| number(&text)) {
                    Some(value) => value,
                    None => {
                        let known: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
                        return Err(format!(
                            "there is no {} {text:?}; there are {}",
                            N::WHAT,
                            known.join(", ")
                        ));
                    }
                }
            }
        };
        if value <= N::MAX {
            Ok(Self(value, PhantomData))
        } else {
            Err(format!("{value:#x} is too large for a {}", N::WHAT))
        }
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident $what:literal $int:ident $names:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            pub struct $name;

            impl Names for $name {
                const WHAT: &'static str = $what;
                // CAST: widens.
                const MAX: u64 = $int::MAX as u64;

                fn names() -> Vec<(u64, String)> {
                    $names
                        .map(|(value, name)| (u64::from(value), name.to_string()))
                        .collect()
                }
            }
        )*
    };
}

names! {
    /// Opcode of a command.
    CommandOp "command" u16
        command::all().map(|command| (command.opcode, command.name));
    /// Status of a command.
    Status "command status" u8
        (1..=u8::MAX)
            .filter_map(|value| CmdStatus::try_from(value).ok())
            .map(|status| (status.get(), screaming(&format!("{status:?}"))));
    /// Type of an event.
    Type "event type" u8
        EventType::NAMES.iter().map(|(value, name)| (value.0, name));
    /// Opcode of a send WQE.
    WqeOp "WQE opcode" u8
        WqeOpcode::NAMES.iter().map(|(value, name)| (value.0, name));
    /// Opcode of a CQE.
    CqeOp "CQE opcode" u8
        cqe_opcode::NAMES.iter().map(|&(value, name)| (value, name));
    /// Syndrome of a CQE.
    Syndrome "CQE syndrome" u8
        syndrome::NAMES.iter().map(|&(value, name)| (value, name));
}

/// `BadResState` in the way of constants, `BAD_RES_STATE`.
fn screaming(camel: &str) -> String {
    let mut name = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// For how long something is put off: milliseconds and microseconds together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "DelayWords", into = "DelayWords")]
pub struct Delay(pub Duration);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DelayWords {
    ms: Option<u64>,
    us: Option<u64>,
}

impl TryFrom<DelayWords> for Delay {
    type Error = &'static str;

    fn try_from(words: DelayWords) -> Result<Self, &'static str> {
        if words.ms.is_none() && words.us.is_none() {
            return Err("a delay needs `ms` or `us`");
        }
        let ms = Duration::from_millis(words.ms.unwrap_or(0));
        let us = Duration::from_micros(words.us.unwrap_or(0));
        Ok(Self(ms.saturating_add(us)))
    }
}

impl From<Delay> for DelayWords {
    fn from(Delay(duration): Delay) -> Self {
        let ms = u64::try_from(duration.as_millis()).ok();
        let us = Some(u64::from(duration.subsec_micros() % 1000));
        Self {
            ms: ms.filter(|&ms| ms > 0),
            us: us.filter(|&us| us > 0 || duration.as_millis() == 0),
        }
    }
}

/// Holds back until the rule is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Or until so many accesses are stalled on page faults at the same time. From then on the
    /// rule holds nothing back any more.
    pub stalls: Option<NonZeroUsize>,
}

/// Inverts bits of an entry or an output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "CorruptWords", into = "CorruptWords")]
pub struct Corrupt {
    /// By name, `STRUCTURE.FIELD` of [`crate::ifc`].
    pub name: Option<String>,
    /// Where the bits are.
    pub field: Field,
    /// Which of them, as a number of the field's width.
    pub xor: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CorruptWords {
    field: Option<String>,
    bit: Option<usize>,
    width: Option<usize>,
    xor: Option<Number>,
}

impl TryFrom<CorruptWords> for Corrupt {
    type Error = String;

    fn try_from(words: CorruptWords) -> Result<Self, String> {
        let field = match (&words.field, words.bit, words.width) {
            (Some(name), None, None) => {
                ifc::find(name).ok_or_else(|| format!("there is no field {name:?}"))?
            }
            (None, Some(bit), width) => {
                let width = width.unwrap_or(1);
                // No structure of the firmware is as long.
                if !(1..=64).contains(&width) || bit > 1 << 30 {
                    return Err("a field has 1 to 64 bits".to_owned());
                }
                Field::new(bit, width)
            }
            _ => return Err("to corrupt needs either `field` or `bit`".to_owned()),
        };
        let all = u64::MAX >> (64 - field.width);
        let xor = words.xor.map_or(all, |Number(xor)| xor);
        if xor == 0 || xor & !all != 0 {
            return Err(format!(
                "xor={xor:#x} is not a change of {} bits",
                field.width
            ));
        }
        Ok(Self {
            name: words.field,
            field,
            xor,
        })
    }
}

impl From<Corrupt> for CorruptWords {
    fn from(corrupt: Corrupt) -> Self {
        let bits = corrupt.name.is_none().then_some(corrupt.field);
        Self {
            field: corrupt.name,
            bit: bits.map(|field| field.bit),
            width: bits.map(|field| field.width),
            xor: Some(Number(corrupt.xor)),
        }
    }
}

impl Corrupt {
    /// Whether all of it lies in `len` bytes.
    pub fn fits(&self, len: usize) -> bool {
        self.field.bit + self.field.width <= len * 8
    }

    /// Changes the bits; those beyond the end of `bytes` are not there to change.
    pub fn apply(&self, bytes: &mut [u8]) {
        if self.fits(bytes.len()) {
            let value = self.field.get(bytes);
            self.field.set(bytes, value ^ self.xor);
        }
    }
}
