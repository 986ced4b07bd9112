// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the kernel's own headers say about the ConnectX firmware interface, for tests that compare
//! their layouts with it.
//!
//! Reads `struct mlx5_ifc_*_bits` of `mlx5_ifc.h`, where an array's length counts bits, and the
//! plain structs of `qp.h` and `device.h`, by parsing the C source: enough C for these headers, and
//! an error for what goes beyond.
//!
//! ```
//! let oracle = ifc_oracle::Oracle::parse([
//!     "enum { WORDS = 1 << 1 };
//!      struct mlx5_ifc_pair_bits { u8 reserved_at_0[0x8]; u8 a[0x18]; u8 b[WORDS][0x20]; };",
//! ])?;
//! let pair = oracle.layout("mlx5_ifc_pair_bits")?;
//! let a = pair.field("a").ok_or("no a")?;
//! assert_eq!((a.offset, a.bits), (8, 24));
//! assert_eq!(a.get(&[1, 2, 3, 4]), 0x02_0304);
//! assert_eq!(pair.bits, 96);
//! # Ok::<(), ifc_oracle::Error>(())
//! ```

mod expr;
mod layout;
mod lex;
mod locate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub use layout::{Field, Layout};
pub use locate::require_or_skip;

use expr::Constant;
use lex::Token;

/// The headers that [`Oracle::load`] reads, below a kernel's `include`.
pub const HEADERS: [&str; 7] = [
    "linux/mlx5/mlx5_ifc.h",
    "linux/mlx5/mlx5_ifc_fpga.h",
    "linux/mlx5/device.h",
    "linux/mlx5/qp.h",
    "linux/mlx5/cq.h",
    "linux/mlx5/doorbell.h",
    "linux/mlx5/driver.h",
];

/// What else [`Oracle::load`] reads, below the directory of `include`, if it is there: a package
/// of headers does not have it.
pub const SOURCES: [&str; 1] = ["drivers/net/ethernet/mellanox/mlx5/core/cmd.c"];

/// What went wrong, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self(message)
    }
}

/// Parsed headers.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Structs and unions by name: kind and the tokens between the braces.
    definitions: BTreeMap<String, layout::Definition>,
    constants: BTreeMap<String, Constant>,
}

impl Oracle {
    /// Reads [`HEADERS`] below `include`, and those of [`SOURCES`] that are there.
    ///
    /// # Errors
    ///
    /// A header cannot be read, or not be taken apart into tokens.
    pub fn load(include: &Path) -> Result<Self, Error> {
        let mut sources = Vec::new();
        let headers = HEADERS.map(|header| include.join(header));
        let beside = SOURCES.map(|source| include.with_file_name(source));
        let beside = beside.into_iter().filter(|path| path.is_file());
        for path in headers.into_iter().chain(beside) {
            let source = std::fs::read_to_string(&path)
                .map_err(|error| Error(format!("{}: {error}", path.display())))?;
            sources.push(source);
        }
        Self::parse(sources.iter().map(String::as_str))
    }

    /// Reads the text of headers.
    ///
    /// # Errors
    ///
    /// Text that is no C.
    pub fn parse<'a>(sources: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut oracle = Self::default();
        for source in sources {
            let (tokens, defines) = lex::lex(source)?;
            for (name, value) in defines {
                oracle.constants.insert(name, Constant::Define(value));
            }
            oracle.index(&tokens)?;
        }
        Ok(oracle)
    }

    /// The layout of a struct or union, named as in C without the keyword
    /// (`mlx5_ifc_mkc_bits`, `mlx5_wqe_ctrl_seg`).
    ///
    /// # Errors
    ///
    /// It is not there, or uses C beyond what this crate knows.
    pub fn layout(&self, name: &str) -> Result<Layout, Error> {
        layout::of(self, name)
    }

    /// The value of an enumerator or of a macro without parameters.
    ///
    /// # Errors
    ///
    /// It is not there, or its value is no constant expression that this crate knows.
    pub fn constant(&self, name: &str) -> Result<u64, Error> {
        expr::constant(self, name)
    }

    /// Names of all constants that start with `prefix`.
    pub fn constants_with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.constants
            .keys()
            .map(String::as_str)
            .filter(move |name| name.starts_with(prefix))
    }

    /// Names of all structs and unions that start with `prefix`.
    pub fn layouts_with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.definitions
            .keys()
            .map(String::as_str)
            .filter(move |name| name.starts_with(prefix))
    }

    /// Notes where structs, unions and enums are; they are read when asked for.
    fn index(&mut self, tokens: &[Token]) -> Result<(), Error> {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let Token::Word(keyword) = token else {
                at += 1;
                continue;
            };
            let (name, open) = match (tokens.get(at + 1), tokens.get(at + 2)) {
                (Some(Token::Word(name)), Some(Token::Punct("{"))) => (Some(name), at + 2),
                (Some(Token::Punct("{")), _) => (None, at + 1),
                _ => {
                    at += 1;
                    continue;
                }
            };
            match (keyword.as_str(), name) {
                ("struct" | "union", Some(name)) => {
                    let close = lex::matching(tokens, open)?;
                    let packed =
                        matches!(tokens.get(close + 1), Some(Token::Word(w)) if w == "__packed");
                    let definition = layout::Definition {
                        union: keyword == "union",
                        packed,
                        body: tokens[open + 1..close].to_vec(),
                    };
                    self.definitions.insert(name.clone(), definition);
                    // Structs defined within are found as well: go on inside.
                    at = open + 1;
                }
                ("enum", _) => {
                    let close = lex::matching(tokens, open)?;
                    self.index_enum(&tokens[open + 1..close])?;
                    at = close;
                }
                _ => at = open + 1,
            }
        }
        Ok(())
    }

    fn index_enum(&mut self, body: &[Token]) -> Result<(), Error> {
        let mut previous: Option<String> = None;
        for item in lex::split(body, ",") {
            let Some(Token::Word(name)) = item.first() else {
                continue;
            };
            let constant = match item.get(1) {
                Some(Token::Punct("=")) => Constant::Define(item[2..].to_vec()),
                None => Constant::After(previous.take()),
                Some(other) => return Err(Error(format!("enumerator {name}: found {other}"))),
            };
            self.constants.insert(name.clone(), constant);
            previous = Some(name.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "
        /* A comment { with a brace. */
        #define BAD 2ERR_QP
        #define SHIFT 4 // and another
        #define CALL(x) (x)
        #define MASK (GENMASK(7, SHIFT) | BIT(0))
        #define LONG \\
            (1ull << 40)
        enum { FIRST, SECOND, TENTH = 9 + 1, NEXT, SIZE = sizeof(struct frame) };
        struct mlx5_ifc_inner_bits {
            u8 reserved_at_0[0x1];
            u8 flag[0x1];
            u8 number[0x1e];
        };
        struct mlx5_ifc_outer_bits {
            u8 head[0x20];
            struct mlx5_ifc_inner_bits inner[SECOND + 1];
            union { u8 whole[0x40]; struct { u8 upper[0x20]; u8 lower[0x20]; } parts; };
            u8 list[2][0x10];
            u8 tail[][0x40];
        };
        struct frame {
            u8 kind;
            __be32 word;
            struct_group(end,
                u8 pad[3];
                union { __be16 a; struct { u8 b, c; } d; };
            );
            struct { u8 x; __be32 y; } __packed tight;
            u8 low:1, middle : SHIFT;
            u8 :2;
            u8 whole:8;
            DECLARE_FLEX_ARRAY(u8, rest);
        };
    ";

    fn fields(layout: &Layout) -> Vec<(&str, u64, u64)> {
        layout
            .fields
            .iter()
            .map(|field| (field.path.as_str(), field.offset, field.bits))
            .collect()
    }

    #[test]
    fn constants() -> Result<(), Error> {
        let oracle = Oracle::parse([SOURCE])?;
        assert_eq!(oracle.constant("MASK")?, 0xf1);
        assert_eq!(oracle.constant("LONG")?, 1 << 40);
        assert_eq!(oracle.constant("FIRST")?, 0);
        assert_eq!(oracle.constant("SECOND")?, 1);
        assert_eq!(oracle.constant("NEXT")?, 11);
        assert_eq!(oracle.constant("SIZE")?, 24);
        assert!(oracle.constant("BAD").is_err());
        assert!(oracle.constant("CALL").is_err());
        assert!(oracle.constant("MISSING").is_err());
        Ok(())
    }

    #[test]
    fn ifc_struct() -> Result<(), Error> {
        let oracle = Oracle::parse([SOURCE])?;
        let outer = oracle.layout("mlx5_ifc_outer_bits")?;
        assert_eq!(
            fields(&outer),
            [
                ("head", 0, 32),
                ("inner", 32, 64),
                ("inner.reserved_at_0", 32, 1),
                ("inner.flag", 33, 1),
                ("inner.number", 34, 30),
                ("whole", 96, 64),
                ("parts", 96, 64),
                ("parts.upper", 96, 32),
                ("parts.lower", 128, 32),
                ("list", 160, 32),
                ("tail", 192, 0),
            ]
        );
        assert_eq!(outer.bits, 192);
        Ok(())
    }

    #[test]
    fn plain_struct() -> Result<(), Error> {
        let oracle = Oracle::parse([SOURCE])?;
        let frame = oracle.layout("frame")?;
        assert_eq!(
            fields(&frame),
            [
                ("kind", 0, 8),
                ("word", 32, 32),
                ("pad", 64, 24),
                ("a", 96, 16),
                ("d", 96, 16),
                ("d.b", 96, 8),
                ("d.c", 104, 8),
                ("tight", 112, 40),
                ("tight.x", 112, 8),
                ("tight.y", 120, 32),
                ("low", 159, 1),
                ("middle", 155, 4),
                ("whole", 160, 8),
                ("rest", 168, 0),
            ]
        );
        assert_eq!(frame.bits, 192);
        let wide = Oracle::parse(["struct wide { __be32 word:8; };"])?;
        assert!(wide.layout("wide").is_err());
        Ok(())
    }

    #[test]
    fn numbers_in_bytes() -> Result<(), Error> {
        let oracle = Oracle::parse([SOURCE])?;
        let outer = oracle.layout("mlx5_ifc_outer_bits")?;
        let field = |path| outer.field(path).ok_or("no such field");
        let mut bytes = [0xff; 24];
        field("inner.number")?.set(&mut bytes, 0x1234_5678);
        field("parts.upper")?.set(&mut bytes, 0);
        assert_eq!(bytes[4..8], [0xd2, 0x34, 0x56, 0x78]);
        assert_eq!(bytes[8..16], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(field("inner.number")?.get(&bytes), 0x1234_5678);
        assert_eq!(field("inner.flag")?.get(&bytes), 1);
        assert_eq!(field("whole")?.get(&bytes), 0xffff_ffff);
        let frame = oracle.layout("frame")?;
        let middle = frame.field("middle").ok_or("no middle")?;
        middle.set(&mut bytes, 0b1001);
        assert_eq!(bytes[19], 0b1111_0011);
        Ok(())
    }

    /// The headers themselves: their `reserved_at_XX` names say where the fields must be.
    #[test]
    fn reserved_fields_are_where_their_names_say() -> Result<(), Error> {
        let Some(oracle) = require_or_skip("reserved_fields_are_where_their_names_say") else {
            return Ok(());
        };
        let mut checked = 0;
        let mut misnamed = 0;
        for name in oracle.layouts_with_prefix("mlx5_ifc_") {
            for field in &oracle.layout(name)?.fields {
                let Some(offset) = field.path.strip_prefix("reserved_at_") else {
                    continue;
                };
                checked += 1;
                if u64::from_str_radix(offset, 16) != Ok(field.offset) {
                    println!("{name}.{} is at {:#x}", field.path, field.offset);
                    misnamed += 1;
                }
            }
        }
        // A handful are wrong in the headers (19 of 2554 in Linux 7.3).
        assert!(checked > 2000, "only {checked} reserved fields");
        assert!(misnamed * 100 < checked, "{misnamed} of {checked}");
        Ok(())
    }
}
