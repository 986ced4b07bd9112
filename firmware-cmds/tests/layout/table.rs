// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! How the fields of a layout are compared with those of a struct of the kernel.

use ifc_oracle::{Field, Oracle};

use crate::probe::Span;

/// What a field of ours is in the header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Is {
    /// The field of the same name.
    Same,
    /// The field of another name.
    Named(&'static str),
    /// Some bits of a field, those of the mask in a constant of the header.
    Part(&'static str, Mask),
    /// The field of the same name, which is of this struct.
    Struct(&'static str),
    /// In place of a reserved field, for the reason given.
    Over(
        &'static str,
        #[allow(dead_code, reason = "for the reader")] &'static str,
    ),
    /// Somewhere within a reserved field, for the reason given.
    Within(
        &'static str,
        #[allow(dead_code, reason = "for the reader")] &'static str,
    ),
}

/// How the header says which bits of a field count.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mask {
    /// This constant has them set.
    Constant(&'static str),
    /// Not at all; these are they, from the source named.
    Bits(
        u128,
        #[allow(dead_code, reason = "for the reader")] &'static str,
    ),
}

/// A field of ours.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Its name, dotted if it is within another.
    pub(crate) path: String,
    pub(crate) span: Result<Span, String>,
    pub(crate) is: Is,
}

impl Leaf {
    fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
}

/// One of our layouts and what it is compared with.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) layout: &'static str,
    /// Size in bytes.
    pub(crate) len: usize,
    /// Struct of the header.
    pub(crate) header: &'static str,
    /// Within it, if it is a union of several formats.
    pub(crate) within: &'static str,
    pub(crate) leaves: Vec<Leaf>,
    /// Fields of the header that we leave out, with all their members.
    pub(crate) unused: &'static [&'static str],
    /// Bits of a field of the header, of which we have the others.
    pub(crate) unused_bits: &'static [(&'static str, u128)],
}

/// Makes a [`Table`]. A field is written as one reads it; `=> Is` says what it is if it is not the
/// field of the same name.
macro_rules! table {
    (
        $layout:ident is $header:literal $(within $within:literal)? {
            $($first:ident $(. $next:ident)* $(($($call:tt)*))? $(=> $is:expr)?),* $(,)?
        }
        $(unused $unused:expr;)?
        $(partly $unused_bits:expr;)?
    ) => {
        $crate::table::Table {
            layout: stringify!($layout),
            len: size_of::<$layout>(),
            header: $header,
            within: [$($within,)? ""][0],
            leaves: vec![$($crate::table::Leaf {
                path: [stringify!($first) $(, stringify!($next))*].join("."),
                span: $crate::probe::probe(
                    |layout: &$layout| layout.$first $(.$next)* $(($($call)*))?
                ),
                is: [$($is,)? $crate::table::Is::Same][0],
            }),*],
            unused: [$(&$unused[..],)? &[]][0],
            unused_bits: [$(&$unused_bits[..],)? &[]][0],
        }
    };
}

pub(crate) use table;

/// A field of the header, as far as it is compared.
struct Seen<'a> {
    field: &'a Field,
    /// Bits that we have, the last of the field's as bit 0; all of them if it is compared whole.
    bits: u128,
}

/// All ones, `bits` of them.
fn ones(bits: u64) -> u128 {
    match bits {
        0 => 0,
        1..=127 => (1 << bits) - 1,
        _ => u128::MAX,
    }
}

/// Everything in which the layout of `table` is not what the header says.
pub(crate) fn compare(oracle: &Oracle, table: &Table) -> Result<Vec<String>, ifc_oracle::Error> {
    let header = oracle.layout(table.header)?;
    // Fields of the format of the union that is meant, their paths relative to it; and the rest.
    let (inside, outside): (Vec<_>, Vec<_>) = header
        .fields
        .iter()
        .cloned()
        .partition(|field| field.path.starts_with(table.within));
    let mut seen: Vec<Seen<'_>> = inside.iter().map(|field| Seen { field, bits: 0 }).collect();
    let mut wrong = Vec::new();
    for field in &outside {
        let encloses = table.within.starts_with(&format!("{}.", field.path));
        let unused = is_below(&field.path, table.unused);
        // What comes before the union is part of the format as well.
        if field.leaf && !encloses && !unused {
            seen.push(Seen { field, bits: 0 });
        }
    }
    for leaf in &table.leaves {
        match &leaf.span {
            Ok(span) => wrong.extend(check(oracle, table, leaf, *span, &mut seen)?),
            Err(error) => wrong.push(format!("{}: {error}", leaf.path)),
        }
    }
    let len = table.len as u64 * 8;
    for Seen { field, bits } in &seen {
        if !field.leaf || is_below(&field.path, table.unused) {
            continue;
        }
        let partly = table
            .unused_bits
            .iter()
            .find(|(name, _)| *name == relative(table, field))
            .map_or(0, |(_, unused)| *unused);
        if bits & partly != 0 {
            wrong.push(format!(
                "{}: bits {:#x} are both",
                field.path,
                bits & partly
            ));
        }
        let missing = ones(field.bits) & !(bits | partly);
        if !field.is_reserved() && (missing != 0 || field.bits == 0) {
            wrong.push(format!(
                "{}.{}: nothing of ours is bits {missing:#x}",
                table.header, field.path
            ));
        }
    }
    // Beyond the end of ours there is nothing but what is left out.
    if header.bits < len {
        wrong.push(format!("we have {len} bits, the header {}", header.bits));
    }
    for name in table.unused {
        if !header.fields.iter().any(|field| field.path == *name) {
            wrong.push(format!(
                "{}.{name} is not there to be left out",
                table.header
            ));
        }
    }
    Ok(wrong)
}

/// Compares one field of ours and notes in `seen` what of the header it is.
fn check(
    oracle: &Oracle,
    table: &Table,
    leaf: &Leaf,
    span: Span,
    seen: &mut [Seen<'_>],
) -> Result<Vec<String>, ifc_oracle::Error> {
    let name = match leaf.is {
        Is::Same | Is::Struct(_) => leaf.name(),
        Is::Named(name) | Is::Part(name, _) | Is::Over(name, _) | Is::Within(name, _) => name,
    };
    let mut wrong = Vec::new();
    let mut named = (0..seen.len()).filter(|at| relative(table, seen[*at].field) == name);
    // A reserved field of the format may have the name of one before it.
    let found = named
        .clone()
        .find(|at| seen[*at].field.offset == span.offset)
        .or_else(|| named.next());
    let Some(found) = found else {
        return Ok(vec![format!(
            "{}: no {name} in {}",
            leaf.path, table.header
        )]);
    };
    let field = seen[found].field;
    if let Is::Within(..) = leaf.is {
        let inside = field.offset <= span.offset && span.end() <= field.end();
        if !inside || !field.is_reserved() {
            wrong.push(format!(
                "{}: not within a reserved {}",
                leaf.path, field.path
            ));
        }
        return Ok(wrong);
    }
    let mut expect = |what: &str, ours: u64, theirs: u64| {
        if ours != theirs {
            wrong.push(format!(
                "{}: {what} is {ours:#x}, that of {}.{} is {theirs:#x}",
                leaf.path, table.header, field.path
            ));
        }
    };
    let bits = if let Is::Part(_, mask) = leaf.is {
        let mask = match mask {
            Mask::Constant(constant) => u128::from(oracle.constant(constant)?),
            Mask::Bits(bits, _) => bits,
        };
        // The header's masks are of the whole field, bit 0 its last.
        expect(
            "last bit",
            span.end() + u64::from(mask.trailing_zeros()),
            field.end(),
        );
        expect("number of bits", span.bits, u64::from(mask.count_ones()));
        if mask >> mask.trailing_zeros() != ones(span.bits) {
            wrong.push(format!("{}: the mask is {mask:#x}", leaf.path));
        }
        mask
    } else {
        expect("first bit", span.offset, field.offset);
        expect("number of bits", span.bits, field.bits);
        ones(field.bits)
    };
    // What the header has no name for needs a reason.
    let reasoned = matches!(leaf.is, Is::Over(..) | Is::Part(_, Mask::Bits(..)));
    if field.is_reserved() && !reasoned && !leaf_is_reserved(leaf) {
        wrong.push(format!("{}: {} is reserved", leaf.path, field.path));
    }
    if let Is::Struct(name) = leaf.is {
        let expected = oracle.layout(name)?;
        let prefix = format!("{}.", field.path);
        let within: Vec<_> = seen
            .iter()
            .filter_map(|seen| {
                let path = seen.field.path.strip_prefix(&prefix)?;
                Some((
                    path.to_owned(),
                    seen.field.offset - field.offset,
                    seen.field.bits,
                ))
            })
            .collect();
        let expected: Vec<_> = expected
            .fields
            .into_iter()
            .map(|field| (field.path, field.offset, field.bits))
            .collect();
        if within != expected {
            wrong.push(format!("{}: {} is no {name}", leaf.path, field.path));
        }
    }
    // What is compared whole is so with its members.
    let path = seen[found].field.path.clone();
    for seen in seen {
        if seen.field.path == path {
            if seen.bits & bits != 0 {
                wrong.push(format!("{}: {path} is something else already", leaf.path));
            }
            seen.bits |= bits;
        } else if is_below(&seen.field.path, &[&path]) {
            seen.bits = ones(seen.field.bits);
        }
    }
    Ok(wrong)
}

fn leaf_is_reserved(leaf: &Leaf) -> bool {
    leaf.name().starts_with("reserved") || leaf.name().starts_with("rsvd")
}

/// The field's path within the format that is meant.
fn relative<'a>(table: &Table, field: &'a Field) -> &'a str {
    field.path.strip_prefix(table.within).unwrap_or(&field.path)
}

/// Whether `path` is one of `roots` or a member of one.
fn is_below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}
