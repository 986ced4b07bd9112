// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The control protocol: one JSON object per line in, one per line out.
//!
//! | request | reply |
//! |---|---|
//! | `{"cmd":"counters"}` | every counter by name |
//! | `{"cmd":"reset-counters"}` | `{"ok":true}` |
//! | `{"cmd":"objects"}` | live objects by kind |
//! | `{"cmd":"knobs"}` | every knob by name |
//! | `{"cmd":"set","umr_delay_ms":1500}` | `{"ok":true}`; any number of knobs at once |
//! | `{"cmd":"set","scheme":"transport"}` | `{"ok":true}`; the next ENABLE_HCA takes it |
//! | `{"cmd":"inspect","path":"qp/0x41"}` | `{"inspect":...}`: see [`inspect()`]; without a path the top level, `"depth":3` for more |
//! | `{"cmd":"violations"}` | `{"count":1,"violations":["..."]}` |
//!
//! A request that cannot be served changes nothing and is answered `{"error":"..."}`.

use serde_json::{json, Map, Value};

use crate::counters::Counters;
use crate::device::Device;
use crate::inspect::inspect;
use crate::knobs::{Knobs, Scheme};

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
    numbers(counters.all())
}

fn numbers(all: Vec<(&'static str, u64)>) -> Value {
    let map: Map<String, Value> = all
        .into_iter()
        .map(|(name, n)| (name.to_owned(), n.into()))
        .collect();
    Value::Object(map)
}

fn reply(dev: &mut Device, line: &str) -> Result<Value, String> {
    let request: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    let cmd = request
        .get("cmd")
        .and_then(Value::as_str)
        .ok_or("no \"cmd\" in the request")?;
    let done = Ok(json!({ "ok": true }));
    match cmd {
        "counters" => Ok(counters(&dev.counters)),
        "reset-counters" => {
            dev.counters = Counters::default();
            done
        }
        "objects" => {
            let objects = dev.objects().into_iter();
            Ok(objects
                .map(|(kind, n)| (kind.to_owned(), json!(n)))
                .collect())
        }
        "knobs" => {
            let mut knobs = numbers(dev.knobs.all());
            knobs["scheme"] = dev.knobs.scheme.name().into();
            Ok(knobs)
        }
        "set" => {
            dev.knobs = set(dev.knobs, &request)?;
            done
        }
        "inspect" => {
            let path = match request.get("path") {
                None => "",
                Some(path) => path.as_str().ok_or("\"path\" is a string")?,
            };
            let depth = match request.get("depth") {
                None => None,
                Some(depth) => Some(
                    depth
                        .as_u64()
                        .and_then(|depth| usize::try_from(depth).ok())
                        .ok_or("\"depth\" must be a number that is not negative")?,
                ),
            };
            Ok(json!({ "inspect": inspect(dev, path, depth)? }))
        }
        "violations" => Ok(json!({
            "count": dev.journal.violation_count(),
            "violations": dev.journal.violations(),
        })),
        other => Err(format!("unknown command {other:?}")),
    }
}

fn set(mut knobs: Knobs, request: &Map<String, Value>) -> Result<Knobs, String> {
    for (name, value) in request.iter().filter(|(name, _)| *name != "cmd") {
        if name == "scheme" {
            knobs.scheme = value
                .as_str()
                .and_then(Scheme::parse)
                .ok_or("\"scheme\" is \"memory\" or \"transport\"")?;
            continue;
        }
        let number = value
            .as_u64()
            .ok_or_else(|| format!("{name:?} must be a number that is not negative"))?;
        if !knobs.set(name, number) {
            return Err(format!("unknown knob {name:?}"));
        }
    }
    Ok(knobs)
}
