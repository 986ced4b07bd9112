// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The control protocol: one JSON object per line in, one per line out.
//!
//! | request | reply |
//! |---|---|
//! | `{"cmd":"counters"}` | every counter by name |
//! | `{"cmd":"reset-counters"}` | `{"ok":true}` |
//! | `{"cmd":"objects"}` | live objects by kind |
//! | `{"cmd":"rule","add":"umr do=delay ms=25"}` | `{"ok":true,"id":3}`: see [`crate::rules`] |
//! | `{"cmd":"rule","add":{"point":"umr","do":"drop"}}` | the same |
//! | `{"cmd":"rules"}` | `{"rules":[{"id":3,"rule":"umr ...","matches":7,"acts":1,"opened":false}]}` |
//! | `{"cmd":"remove-rule","id":3}` | `{"ok":true}`; what it held back goes on |
//! | `{"cmd":"clear-rules"}` | `{"ok":true}`; the same for all |
//! | `{"cmd":"set","scheme":"transport"}` | `{"ok":true}`; the next ENABLE_HCA takes it |
//! | `{"cmd":"inspect","path":"qp/0x41"}` | `{"inspect":...}`: see [`inspect()`]; without a path the top level, `"depth":3` for more |
//! | `{"cmd":"violations"}` | `{"count":1,"violations":["..."]}` |
//!
//! A request that cannot be served changes nothing and is answered `{"error":"..."}`.

use firmware_cmds::Scheme;
use serde::Deserialize;
use serde_json::{json, Map, Value};

use crate::counters::Counters;
use crate::device::Device;
use crate::inspect::inspect;
use crate::rules::Rule;

/// A request.
#[derive(Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    Counters {},
    ResetCounters {},
    Objects {},
    Rule {
        add: NewRule,
    },
    Rules {},
    RemoveRule {
        id: u64,
    },
    ClearRules {},
    Inspect {
        #[serde(default)]
        path: String,
        depth: Option<usize>,
    },
    Set {
        scheme: SchemeName,
    },
    Violations {},
}

/// A rule as a request has it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a rule is a text or an object")]
enum NewRule {
    Text(String),
    Words(Map<String, Value>),
}

/// The names of the schemes.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SchemeName {
    Memory,
    Transport,
}

/// Serves one request; the reply has no newline.
pub fn serve(dev: &mut Device, line: &str) -> String {
    match reply(dev, line) {
        Ok(value) => value.to_string(),
        Err(error) => json!({ "error": error }).to_string(),
    }
}

/// Counters as a JSON object.
#[must_use]
pub fn counters(counters: &Counters) -> Value {
    let all = counters.all().into_iter();
    all.map(|(name, n)| (name.to_owned(), Value::from(n)))
        .collect()
}

fn reply(dev: &mut Device, line: &str) -> Result<Value, String> {
    let request = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let done = Ok(json!({ "ok": true }));
    match request {
        Request::Counters {} => Ok(counters(&dev.counters)),
        Request::ResetCounters {} => {
            dev.counters = Counters::default();
            done
        }
        Request::Objects {} => {
            let objects = dev.objects().into_iter();
            Ok(objects
                .map(|(kind, n)| (kind.to_owned(), json!(n)))
                .collect())
        }
        Request::Rule { add } => {
            let rule = match add {
                NewRule::Text(text) => text.parse(),
                NewRule::Words(words) => Rule::from_words(words),
            };
            let rule = rule.map_err(|error| error.to_string())?;
            Ok(json!({ "ok": true, "id": dev.rules.insert(rule) }))
        }
        Request::Rules {} => Ok(json!({ "rules": dev.rules.entries() })),
        Request::RemoveRule { id } if dev.rules.remove(id) => done,
        Request::RemoveRule { id } => Err(format!("there is no rule {id}")),
        Request::ClearRules {} => {
            dev.rules.clear();
            done
        }
        Request::Inspect { path, depth } => Ok(json!({ "inspect": inspect(dev, &path, depth)? })),
        Request::Set { scheme } => {
            dev.scheme = match scheme {
                SchemeName::Memory => Scheme::Memory,
                SchemeName::Transport => Scheme::Transport,
            };
            done
        }
        Request::Violations {} => Ok(json!({
            "count": dev.journal.violation_count(),
            "violations": dev.journal.violations(),
        })),
    }
}
