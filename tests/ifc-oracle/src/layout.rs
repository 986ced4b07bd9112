// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Layouts of structs and unions.

use crate::expr::eval;
use crate::lex::{matching, Token};
use crate::{Error, Oracle};

/// A struct or union as written.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) union: bool,
    pub(crate) packed: bool,
    pub(crate) body: Vec<Token>,
}

/// Layout of a struct or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size in bits.
    pub bits: u64,
    /// Every member, each before its own members, in the order of the source.
    pub fields: Vec<Field>,
}

/// A member of a struct or union, at any depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Names from the outermost on, joined by dots; members without a name add none. Elements of
    /// an array are not told apart: the members of an array's element are those of the first.
    pub path: String,
    /// First bit, counted from the start of the outermost struct; bit 0 is the most significant
    /// bit of byte 0.
    pub offset: u64,
    /// Size in bits, of all elements if it is an array.
    pub bits: u64,
    /// It has no members of its own.
    pub leaf: bool,
}

impl Field {
    /// First bit behind the field.
    pub fn end(&self) -> u64 {
        self.offset + self.bits
    }

    /// The number in the field, of `bytes` that start with the outermost struct.
    ///
    /// # Panics
    ///
    /// If the field has more than 64 bits or lies beyond the end of `bytes`.
    pub fn get(&self, bytes: &[u8]) -> u64 {
        assert!(self.bits <= 64, "{} is no number", self.path);
        (self.offset..self.end()).fold(0, |value, bit| {
            let (byte, mask) = place(bit);
            value << 1 | u64::from(bytes[byte] & mask != 0)
        })
    }

    /// Puts a number into the field, of `bytes` that start with the outermost struct.
    ///
    /// # Panics
    ///
    /// If the field has too few bits or lies beyond the end of `bytes`.
    pub fn set(&self, bytes: &mut [u8], value: u64) {
        for (weight, bit) in (0..).zip((self.offset..self.end()).rev()) {
            let (byte, mask) = place(bit);
            if weight < 64 && value >> weight & 1 == 1 {
                bytes[byte] |= mask;
            } else {
                bytes[byte] &= !mask;
            }
        }
        let fits = self.bits >= 64 || value >> self.bits == 0;
        assert!(fits, "{} has no room for {value:#x}", self.path);
    }

    /// The name says that the bits have no meaning.
    pub fn is_reserved(&self) -> bool {
        self.path
            .split('.')
            .any(|name| name.starts_with("reserved") || name.starts_with("rsvd"))
    }
}

/// Where bit `bit` is: its byte, and the mask of it there.
fn place(bit: u64) -> (usize, u8) {
    let byte = usize::try_from(bit / 8).expect("fields of a struct in memory");
    (byte, 0x80 >> (bit % 8))
}

impl Layout {
    /// The member with this path.
    pub fn field(&self, path: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.path == path)
    }

    /// Members without members of their own.
    pub fn leaves(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.leaf)
    }
}

/// The layout of the struct or union `name`.
pub(crate) fn of(oracle: &Oracle, name: &str) -> Result<Layout, Error> {
    let aggregate = named(oracle, name, 0)?;
    Ok(Layout {
        bits: aggregate.bits,
        fields: aggregate.fields,
    })
}

/// What C's `sizeof` says of a type, in bytes.
pub(crate) fn size_of(oracle: &Oracle, name: &str) -> Result<u64, Error> {
    match scalar_bits(name) {
        Some(bits) => Ok(bits / 8),
        None if is_ifc(name) => Ok(named(oracle, name, 0)?.bits),
        None => Ok(named(oracle, name, 0)?.bits / 8),
    }
}

/// In these structs a `u8` stands for one bit.
fn is_ifc(name: &str) -> bool {
    name.starts_with("mlx5_ifc_")
}

fn scalar_bits(name: &str) -> Option<u64> {
    match name {
        "u8" | "__u8" | "s8" | "char" | "bool" => Some(8),
        "u16" | "__u16" | "s16" | "__be16" | "__le16" => Some(16),
        "u32" | "__u32" | "s32" | "__be32" | "__le32" | "int" => Some(32),
        "u64" | "__u64" | "s64" | "__be64" | "__le64" | "dma_addr_t" => Some(64),
        _ => None,
    }
}

/// Structs contain others; a chain longer than this is a circle.
const DEPTH: u32 = 64;

#[derive(Clone, Debug, Default)]
struct Aggregate {
    union: bool,
    packed: bool,
    /// Where the next member of a struct goes.
    next: u64,
    /// Bits of the byte before `next` that bit-fields have taken; 0 if the last member was none.
    taken: u64,
    bits: u64,
    align: u64,
    fields: Vec<Field>,
}

fn named(oracle: &Oracle, name: &str, depth: u32) -> Result<Aggregate, Error> {
    let context = |error: Error| Error(format!("{name}: {error}"));
    if depth > DEPTH {
        return Err(Error(format!("{name} contains itself")));
    }
    let definition = oracle
        .definitions
        .get(name)
        .ok_or_else(|| Error(format!("no struct or union {name}")))?;
    let body = Body {
        oracle,
        unit: if is_ifc(name) { 1 } else { 8 },
        depth,
    };
    body.aggregate(&definition.body, definition.union, definition.packed)
        .map_err(context)
}

impl Aggregate {
    /// Adds a member of `size` bits that wants to be at a multiple of `align`.
    fn add(&mut self, name: Option<&str>, size: u64, align: u64, inner: &[Field]) {
        let align = if self.packed { 1 } else { align.max(1) };
        let offset = if self.union {
            0
        } else {
            self.next.next_multiple_of(align)
        };
        self.next = offset + size;
        self.taken = 0;
        self.bits = self.bits.max(self.next);
        self.align = self.align.max(align);
        if let Some(name) = name {
            self.fields.push(Field {
                path: name.to_owned(),
                offset,
                bits: size,
                leaf: inner.is_empty(),
            });
        }
        self.fields.extend(inner.iter().map(|field| Field {
            path: match name {
                Some(name) => format!("{name}.{}", field.path),
                None => field.path.clone(),
            },
            offset: offset + field.offset,
            ..field.clone()
        }));
    }
}

impl Aggregate {
    /// Adds a bit-field of C, of a `u8`, as a little-endian machine places it: in the lowest bits
    /// of its byte that are left.
    fn add_bit_field(&mut self, name: Option<&str>, width: u64) {
        let fits = self.taken > 0 && self.taken + width <= 8;
        if self.union || !fits {
            self.add(None, 8, 8, &[]);
        }
        if let Some(name) = name {
            self.fields.push(Field {
                path: name.to_owned(),
                offset: self.next - self.taken - width,
                bits: width,
                leaf: true,
            });
        }
        self.taken += width;
    }
}

/// Reads the members between a struct's braces.
struct Body<'a> {
    oracle: &'a Oracle,
    /// Bits of a `u8`.
    unit: u64,
    depth: u32,
}

impl Body<'_> {
    fn aggregate(&self, body: &[Token], union: bool, packed: bool) -> Result<Aggregate, Error> {
        let mut aggregate = Aggregate {
            union,
            packed,
            align: 1,
            ..Aggregate::default()
        };
        let mut rest = body;
        while !rest.is_empty() {
            rest = self.member(&mut aggregate, rest)?;
        }
        aggregate.bits = aggregate.bits.next_multiple_of(aggregate.align);
        Ok(aggregate)
    }

    /// Reads one member and returns what follows it.
    fn member<'t>(
        &self,
        aggregate: &mut Aggregate,
        tokens: &'t [Token],
    ) -> Result<&'t [Token], Error> {
        let word = |at: usize| match tokens.get(at) {
            Some(Token::Word(word)) => Some(word.as_str()),
            _ => None,
        };
        match (word(0), word(1)) {
            (None, _) if tokens.first() == Some(&Token::Punct(";")) => Ok(&tokens[1..]),
            (Some("struct_group"), _) => {
                // struct_group(name, members): the members, whatever the name.
                let close = matching(tokens, 1)?;
                let inner = self.aggregate(&tokens[4..close], false, aggregate.packed)?;
                aggregate.add(None, inner.bits, inner.align, &inner.fields);
                Ok(&tokens[close + 1..])
            }
            (Some("DECLARE_FLEX_ARRAY"), _) => {
                let close = matching(tokens, 1)?;
                let Some(Token::Word(name)) = tokens.get(close - 1) else {
                    return Err(Error::from("a flexible array without a name"));
                };
                aggregate.add(Some(name), 0, 1, &[]);
                Ok(&tokens[close + 1..])
            }
            (Some(kind @ ("struct" | "union")), name) => {
                let open = if name.is_some() { 2 } else { 1 };
                if tokens.get(open) != Some(&Token::Punct("{")) {
                    let name = name.ok_or("a struct without name and members")?;
                    let inner = named(self.oracle, name, self.depth + 1)?;
                    return self.declarators(aggregate, &tokens[2..], &inner);
                }
                let close = matching(tokens, open)?;
                let mut after = close + 1;
                let packed = word(after) == Some("__packed");
                if packed {
                    after += 1;
                }
                let inner = self.aggregate(&tokens[open + 1..close], kind == "union", packed)?;
                self.declarators(aggregate, &tokens[after..], &inner)
            }
            (Some(name), _) => {
                let bits =
                    scalar_bits(name).ok_or_else(|| Error(format!("unknown type {name}")))?;
                let bits = bits / 8 * self.unit;
                let inner = Aggregate {
                    bits,
                    align: bits,
                    ..Aggregate::default()
                };
                self.declarators(aggregate, &tokens[1..], &inner)
            }
            (None, _) => Err(Error(format!("unexpected {}", tokens[0]))),
        }
    }

    /// Reads the names and array lengths of members of one type, up to the semicolon.
    fn declarators<'t>(
        &self,
        aggregate: &mut Aggregate,
        tokens: &'t [Token],
        inner: &Aggregate,
    ) -> Result<&'t [Token], Error> {
        let end = tokens
            .iter()
            .position(|token| *token == Token::Punct(";"))
            .ok_or("a member without semicolon")?;
        for declarator in crate::lex::split(&tokens[..end], ",") {
            let (name, mut rest) = match declarator.split_first() {
                Some((Token::Word(name), rest)) => (Some(name.as_str()), rest),
                None | Some((Token::Punct(":"), _)) => (None, declarator),
                Some((other, _)) => return Err(Error(format!("unexpected {other}"))),
            };
            // Over all dimensions; none if the array is flexible.
            let mut elements = 1;
            if let Some((Token::Punct(":"), width)) = rest.split_first() {
                let width = eval(self.oracle, width)?;
                if self.unit != 8 || inner.bits != 8 || !inner.fields.is_empty() || width > 8 {
                    return Err(Error::from("a bit-field of more than a byte"));
                }
                aggregate.add_bit_field(name, width);
                continue;
            }
            while let Some(token) = rest.first() {
                if *token != Token::Punct("[") {
                    return Err(Error(format!("unexpected {token} after a member's name")));
                }
                let close = matching(rest, 0)?;
                elements *= match &rest[1..close] {
                    [] => 0,
                    length => eval(self.oracle, length)?,
                };
                rest = &rest[close + 1..];
            }
            aggregate.add(name, inner.bits * elements, inner.align, &inner.fields);
        }
        Ok(&tokens[end + 1..])
    }
}
