// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A tree from what `Debug` shows: for types of firmware-cmds, which is also compiled in the
//! kernel and knows nothing of `serde`.

use std::fmt::Debug;

use serde_json::{Map, Value};

/// What derived `Debug` shows of a value. The names of structs go, those of variants with
/// data stay.
pub(super) fn tree(value: &dyn Debug) -> Value {
    let text = format!("{value:#?}");
    let mut lines = text.lines().map(|line| line.trim().trim_end_matches(','));
    let first = lines.next().unwrap_or_default();
    node(first, &mut lines)
}

/// The value that starts with `first` and ends with its closing bracket, if it has one.
fn node<'a>(first: &'a str, lines: &mut dyn Iterator<Item = &'a str>) -> Value {
    let Some((at, open @ ('{' | '(' | '['))) = first.char_indices().next_back() else {
        return scalar(first);
    };
    let name = first[..at].trim();
    let mut fields = Map::new();
    let mut items = Vec::new();
    while let Some(line) = lines.next() {
        if matches!(line, "}" | ")" | "]") {
            break;
        }
        match line.split_once(": ").filter(|_| open == '{') {
            Some((key, rest)) => {
                fields.insert(key.to_owned(), node(rest, lines));
            }
            None => items.push(node(line, lines)),
        }
    }
    match (open, name) {
        ('{', _) if items.is_empty() => Value::Object(fields),
        ('(', _) if items.len() == 1 && name == "Some" => items.remove(0),
        ('(', name) if items.len() == 1 && !name.is_empty() => {
            Value::Object(Map::from_iter([(name.to_owned(), items.remove(0))]))
        }
        _ => Value::Array(items),
    }
}

fn scalar(text: &str) -> Value {
    match text {
        "None" => return Value::Null,
        "true" => return true.into(),
        "false" => return false.into(),
        "[]" => return Value::Array(Vec::new()),
        "{}" => return Value::Object(Map::new()),
        _ => {}
    }
    if let Ok(number) = text.parse::<u64>() {
        return number.into();
    }
    // A handle: `Qpn(0x41)`.
    match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((_, number)) => number.into(),
        None => text.trim_matches('"').into(),
    }
}

#[cfg(test)]
mod tests {
    use firmware_cmds::{AccessMode, Klm, MemoryToken, Mkc, Mkey, Qpn};
    use serde_json::json;

    use super::*;

    #[test]
    fn types_of_firmware_cmds() {
        let klm = Klm {
            bcount: 7,
            key: Mkey::new(0x1234),
            va: firmware_cmds::Iova::new(0x5000),
        };
        let shown = json!({ "bcount": 7, "key": "0x1234", "va": "0x5000" });
        assert_eq!(tree(&klm), shown);
        assert_eq!(tree(&Some(vec![klm])), json!([shown]));
        assert_eq!(tree(&None::<Klm>), Value::Null);
        let token = firmware_cmds::FaultToken::Memory(MemoryToken::truncate(5));
        assert_eq!(tree(&token), json!({ "Memory": "0x5" }));
        let mkc = Mkc {
            access_mode: AccessMode::Ksm,
            qpn: Qpn::ANY,
            ..Mkc::default()
        };
        let shown = tree(&mkc);
        assert_eq!(shown["access_mode"], "Ksm");
        assert_eq!(shown["qpn"], "0xffffff");
        assert_eq!(shown["access"]["local_read"], false);
        assert_eq!(shown["len"], 0);
    }

    #[test]
    fn maps_and_other_types() {
        let map = std::collections::BTreeMap::from([(3, "three"), (4, "four")]);
        assert_eq!(tree(&map), json!({ "3": "three", "4": "four" }));
        assert_eq!(tree(&(1, -2)), json!([1, "-2"]));
        assert_eq!(tree(&[0; 0]), json!([]));
        assert_eq!(
            tree(&std::collections::BTreeMap::<u8, u8>::new()),
            json!({})
        );
        let time = std::time::Duration::from_micros(1500);
        assert_eq!(tree(&Some(time)), "1.5ms");
    }
}
