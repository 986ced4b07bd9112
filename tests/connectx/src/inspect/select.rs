// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! A serializer that follows a path and builds only what it leads to.

use std::fmt::{self, Display};

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use serde_json::{Map, Value};

/// Names that an error lists at most.
const LISTED: usize = 64;

/// What is still to be done: the rest of the path, then so many levels.
#[derive(Clone, Copy)]
pub(super) struct Select<'a> {
    pub(super) path: &'a [&'a str],
    pub(super) depth: usize,
}

/// The path leads to nothing.
#[derive(Debug)]
pub(super) struct NotThere {
    /// Components that were left, the one in question included.
    pub(super) left: usize,
    /// What is there instead.
    pub(super) names: Vec<String>,
    /// And how much more.
    pub(super) more: usize,
}

#[derive(Debug)]
pub(super) enum Error {
    NotThere(NotThere),
    Other(String),
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Error {}

impl ser::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self::Other(message.to_string())
    }
}

/// A component names a child by its name, or by its number in any base.
fn names(component: &str, name: &str) -> bool {
    component == name || number(component).is_some_and(|n| number(name) == Some(n))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl<'a> Select<'a> {
    fn leaf(self, value: impl Into<Value>) -> Result<Value, Error> {
        if self.path.is_empty() {
            Ok(value.into())
        } else {
            Err(self.not_there(Vec::new()))
        }
    }

    fn not_there(self, names: Vec<String>) -> Error {
        Error::NotThere(NotThere {
            left: self.path.len(),
            names,
            more: 0,
        })
    }

    fn children(self, list: bool) -> Children<'a> {
        Children {
            select: self,
            list,
            wrapped: None,
            count: 0,
            names: Vec::new(),
            values: Vec::new(),
            key: String::new(),
            chosen: None,
        }
    }

    /// The content of an enum's variant. A path goes through the variant's name, which is
    /// not a level of its own.
    fn variant(self, variant: &'static str, list: bool) -> Result<Children<'a>, Error> {
        match self.path {
            [first, ..] if !names(first, variant) => Err(self.not_there(vec![variant.to_owned()])),
            [_, rest @ ..] => Ok(Select { path: rest, ..self }.children(list)),
            [] => {
                let mut children = self.children(list);
                children.wrapped = Some(variant);
                Ok(children)
            }
        }
    }
}

/// A node with children, under way.
pub(super) struct Children<'a> {
    select: Select<'a>,
    list: bool,
    wrapped: Option<&'static str>,
    /// Children so far.
    count: usize,
    /// Names of those that are shown, or, if the path goes on, of the first ones.
    names: Vec<String>,
    /// Values of those that are shown.
    values: Vec<Value>,
    /// Of the next entry of a map.
    key: String,
    /// The child that the path leads to.
    chosen: Option<Value>,
}

impl Children<'_> {
    fn child<T: Serialize + ?Sized>(&mut self, name: String, child: &T) -> Result<(), Error> {
        self.count += 1;
        match self.select.path {
            [first, rest @ ..] => {
                if self.chosen.is_none() && names(first, &name) {
                    let select = Select {
                        path: rest,
                        ..self.select
                    };
                    self.chosen = Some(child.serialize(select)?);
                }
                if self.names.len() < LISTED {
                    self.names.push(name);
                }
            }
            [] => {
                if let Some(depth) = self.select.depth.checked_sub(1) {
                    let select = Select {
                        depth,
                        ..self.select
                    };
                    self.values.push(child.serialize(select)?);
                    self.names.push(name);
                }
            }
        }
        Ok(())
    }

    fn item<T: Serialize + ?Sized>(&mut self, child: &T) -> Result<(), Error> {
        self.child(self.count.to_string(), child)
    }

    fn finish(self) -> Result<Value, Error> {
        let value = if !self.select.path.is_empty() {
            return self.chosen.ok_or(Error::NotThere(NotThere {
                left: self.select.path.len(),
                more: self.count - self.names.len(),
                names: self.names,
            }));
        } else if self.values.len() < self.count {
            match self.count {
                1 => Value::from("1 entry"),
                n => Value::from(format!("{n} entries")),
            }
        } else if self.list {
            Value::Array(self.values)
        } else {
            Value::Object(self.names.into_iter().zip(self.values).collect())
        };
        Ok(match self.wrapped {
            Some(variant) => wrap(variant, value),
            None => value,
        })
    }
}

fn wrap(variant: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(variant.to_owned(), value)]))
}

macro_rules! leaves {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, value: $type) -> Result<Value, Error> {
            self.leaf(value)
        })*
    };
}

impl<'a> Serializer for Select<'a> {
    type Ok = Value;
    type Error = Error;
    type SerializeSeq = Children<'a>;
    type SerializeTuple = Children<'a>;
    type SerializeTupleStruct = Children<'a>;
    type SerializeTupleVariant = Children<'a>;
    type SerializeMap = Children<'a>;
    type SerializeStruct = Children<'a>;
    type SerializeStructVariant = Children<'a>;

    leaves! {
        serialize_bool: bool,
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64,
        serialize_str: &str,
    }

    fn serialize_char(self, value: char) -> Result<Value, Error> {
        self.leaf(value.to_string())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<Value, Error> {
        value.serialize(self)
    }

    fn serialize_none(self) -> Result<Value, Error> {
        self.leaf(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, Error> {
        self.leaf(Value::Null)
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<Value, Error> {
        self.leaf(name)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Value, Error> {
        self.leaf(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Error> {
        match self.path {
            [first, ..] if !names(first, variant) => Err(self.not_there(vec![variant.to_owned()])),
            [_, rest @ ..] => value.serialize(Select { path: rest, ..self }),
            [] => Ok(wrap(variant, value.serialize(self)?)),
        }
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Children<'a>, Error> {
        Ok(self.children(true))
    }

    fn serialize_tuple(self, _: usize) -> Result<Children<'a>, Error> {
        Ok(self.children(true))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Children<'a>, Error> {
        Ok(self.children(true))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Children<'a>, Error> {
        self.variant(variant, true)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Children<'a>, Error> {
        Ok(self.children(false))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Children<'a>, Error> {
        Ok(self.children(false))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Children<'a>, Error> {
        self.variant(variant, false)
    }
}

macro_rules! lists {
    ($($collector:ident: $method:ident),*) => {
        $(impl $collector for Children<'_> {
            type Ok = Value;
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.item(value)
            }

            fn end(self) -> Result<Value, Error> {
                self.finish()
            }
        })*
    };
}

lists! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
}

macro_rules! structs {
    ($($collector:ident),*) => {
        $(impl $collector for Children<'_> {
            type Ok = Value;
            type Error = Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.child(name.to_owned(), value)
            }

            fn end(self) -> Result<Value, Error> {
                self.finish()
            }
        })*
    };
}

structs!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Children<'_> {
    type Ok = Value;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let all = Select {
            path: &[],
            depth: 0,
        };
        self.key = match key.serialize(all)? {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let key = std::mem::take(&mut self.key);
        self.child(key, value)
    }

    fn end(self) -> Result<Value, Error> {
        self.finish()
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    enum Wait {
        Nothing,
        Until(u32),
        Both { first: u32, second: [u8; 3] },
    }

    #[derive(Serialize)]
    struct Tree {
        name: &'static str,
        missing: Option<u8>,
        #[serde(flatten)]
        by_number: std::collections::BTreeMap<String, Vec<Wait>>,
    }

    fn get(path: &str, depth: usize) -> Result<Value, Error> {
        let waits = || {
            let (first, second) = (7, [1, 2, 3]);
            vec![Wait::Nothing, Wait::Until(5), Wait::Both { first, second }]
        };
        let tree = Tree {
            name: "it",
            missing: None,
            by_number: [("0x10".to_owned(), waits()), ("0x11".to_owned(), vec![])].into(),
        };
        let path: Vec<&str> = path.split_terminator('/').collect();
        tree.serialize(Select { path: &path, depth })
    }

    /// Whether the answer is `expected`; of fields the order does not count.
    fn is(path: &str, depth: usize, expected: &str) {
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(get(path, depth).unwrap(), expected, "{path:?} {depth}");
    }

    #[test]
    fn what_is_deeper_is_counted() {
        let top = r#"{"0x10":"3 entries","0x11":[],"missing":null,"name":"it"}"#;
        is("", 1, top);
        is("", 0, r#""4 entries""#);
        is("0x10", 1, r#"["Nothing",{"Until":5},{"Both":"2 entries"}]"#);
        let whole = r#"["Nothing",{"Until":5},{"Both":{"first":7,"second":[1,2,3]}}]"#;
        is("0x10", 9, whole);
    }

    #[test]
    fn a_path_goes_through_names_numbers_and_variants() {
        is("name", 0, r#""it""#);
        is("16/1", 3, r#"{"Until":5}"#);
        is("0x10/1/Until", 0, "5");
        is("0x10/2/Both/second/0x2", 0, "3");
    }

    #[test]
    fn what_is_not_there_says_what_is() {
        let missing = |path: &str| match get(path, 1) {
            Err(Error::NotThere(NotThere { left, names, .. })) => (left, names.join(" ")),
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(missing("0x12"), (1, "name missing 0x10 0x11".to_owned()));
        assert_eq!(missing("0x10/2/Until"), (1, "Both".to_owned()));
        assert_eq!(
            missing("0x10/2/Both/third/1"),
            (2, "first second".to_owned())
        );
        assert_eq!(missing("name/letter"), (1, String::new()));
    }
}
