// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What odp_bench reports (`tests/conformance/meter.h`): one section a line.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::profile::Profile;

/// One round of one measured section.
#[derive(Debug, Clone, Default)]
pub(crate) struct Section {
    /// The line, such as `P1`.
    pub(crate) line: String,
    /// Which of the line's sections.
    pub(crate) name: String,
    /// What figures are divided by: faults, MiB, MRs.
    pub(crate) n: f64,
    /// Every other number, by its key.
    pub(crate) numbers: BTreeMap<String, f64>,
    /// The number of its instruction profile.
    pub(crate) index: Option<u64>,
    /// That profile.
    pub(crate) profile: Option<Profile>,
}

impl Section {
    /// Reads one object of odp_bench.
    pub(crate) fn parse(value: &Value) -> Result<Self> {
        let fields = value.as_object().context("no object")?;
        let word = |key: &str| -> Result<String> {
            let word = value[key].as_str();
            Ok(word.with_context(|| format!("no {key}"))?.to_owned())
        };
        let numbers: BTreeMap<_, _> = fields
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_f64()?)))
            .collect();
        Ok(Self {
            line: word("test")?,
            name: word("section")?,
            n: *numbers.get("n").context("no n")?,
            index: value["profile"].as_u64(),
            profile: None,
            numbers,
        })
    }

    /// The number `key`. A counter of the device that did not move is not reported: 0.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        let number = self.numbers.get(key).copied();
        number.or_else(|| key.starts_with("device.").then_some(0.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_section_is_read() {
        let section = Section::parse(&json!({
            "test": "P1", "section": "read", "round": 1, "n": 2048, "profile": 7,
            "kthreads_ns": 77221725_u64, "seconds": 0.466, "device.umr_wqes": 2048, "ok": true,
        }))
        .unwrap();
        assert_eq!((&*section.line, &*section.name), ("P1", "read"));
        assert_eq!(section.index, Some(7));
        assert_eq!(section.number("device.umr_wqes"), Some(2048.0));
        assert_eq!(section.number("device.faults_wqe_requester"), Some(0.0));
        assert_eq!(section.number("kernel_kib"), None);
    }

    #[test]
    fn what_lacks_something_is_an_error() {
        for value in [
            json!(3),
            json!({ "test": "P1", "n": 1 }),
            json!({ "test": "P1", "section": "read" }),
        ] {
            assert!(Section::parse(&value).is_err(), "{value}");
        }
    }
}
