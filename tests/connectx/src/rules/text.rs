// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The text form of rules: the point, then words `key=value`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Rule, RuleError};

/// A number, in decimal or after `0x` in hexadecimal.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut words = text.split_whitespace();
        let point = words
            .next()
            .ok_or_else(|| RuleError("a rule starts with its point".to_owned()))?;
        let mut map = Map::new();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| RuleError(format!("{word:?} is not key=value")))?;
            let value = number(value).map_or_else(|| value.into(), Value::from);
            if map.insert(key.to_owned(), value).is_some() {
                return Err(RuleError(format!("{key:?} is there twice")));
            }
        }
        Self::from_point(point, map)
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (point, words) = self.words();
        f.write_str(point)?;
        for (key, value) in words.map_err(|_| fmt::Error)? {
            match value {
                Value::String(text) => write!(f, " {key}={text}")?,
                other => write!(f, " {key}={other}")?,
            }
        }
        Ok(())
    }
}
