// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! How values look in the tree that derive nothing: for `serialize_with`.

use std::collections::BTreeMap;
use std::fmt::{Debug, LowerHex};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::debug::tree;
use crate::ifc::{Field, LAYOUTS};

/// What `Debug` shows, as a tree: handles, types of firmware-cmds, times.
pub(crate) fn debug<T: Debug, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    tree(value).serialize(to)
}

/// Objects by number.
pub(crate) fn by_number<K: LowerHex, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(
        map.iter()
            .map(|(number, value)| (format!("{number:#x}"), value)),
    )
}

/// Bits.
pub(crate) fn hex<T: LowerHex, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{value:#x}"))
}

/// Several of them.
pub(crate) fn hexes<T: LowerHex, S: Serializer, const N: usize>(
    values: &[T; N],
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(|value| format!("{value:#x}")))
}

/// The fields of an image, below each other where their paths say so.
pub(crate) fn fields<S: Serializer>(
    layout: &[(&str, Field)],
    image: &[u8],
    to: S,
) -> Result<S::Ok, S::Error> {
    let mut all = Map::new();
    for (path, field) in layout {
        let mut at = &mut all;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let entry = at.entry(name);
            if names.peek().is_none() {
                entry.or_insert(Value::from(field.get(image)));
                break;
            }
            match entry.or_insert_with(|| Value::Object(Map::new())) {
                Value::Object(below) => at = below,
                _ => break,
            }
        }
    }
    all.serialize(to)
}

/// Serializers of images whose layout stands in [`crate::ifc`].
macro_rules! images {
    ($($layout:ident),*) => {
        $(pub(crate) fn $layout<T: AsRef<[u8]>, S: Serializer>(
            image: &T,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            let layout = LAYOUTS.iter().find(|(name, _)| *name == stringify!($layout));
            fields(layout.map_or(&[], |(_, fields)| fields), image.as_ref(), to)
        })*
    };
}

images!(cmd_hca_cap, odp_cap, atomic_caps, cqc);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_lie_below_each_other() {
        let layout = [
            ("state", Field::new(0, 4)),
            ("path.port", Field::new(8, 8)),
            ("path.rlid", Field::new(16, 16)),
        ];
        let image = [0x30, 1, 0, 9];
        let shown = fields(&layout, &image, serde_json::value::Serializer).unwrap();
        assert_eq!(
            shown,
            json!({ "state": 3, "path": { "port": 1, "rlid": 9 } })
        );
    }

    #[test]
    fn images_have_their_layout() {
        let shown = cqc(&[0xff; 64], serde_json::value::Serializer).unwrap();
        assert_eq!(shown["log_cq_size"], 31);
    }
}
