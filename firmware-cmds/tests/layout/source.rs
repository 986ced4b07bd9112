// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which layouts and fields the crate has, read from its source, so that none can be left out.
//!
//! What cannot be read so, and could hide a layout, is an error: a layout that is no struct, or
//! that a macro makes.

use std::collections::BTreeMap;
use std::path::Path;

use syn::visit::{self, Visit};

/// A struct of the crate whose bytes go over the wire.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Struct {
    /// Made by `bitfield`.
    pub(crate) bitfield: bool,
    /// Names and types of its fields; without the padding of a bitfield.
    pub(crate) fields: Vec<(String, String)>,
}

/// Every struct of the crate that `zerocopy` reads from bytes, by name.
pub(crate) fn structs() -> Result<BTreeMap<String, Struct>, String> {
    let mut found = Found::default();
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    )?;
    found.finish()
}

fn read(dir: &Path, found: &mut Found) -> Result<(), String> {
    let context = |error: &dyn std::fmt::Display| format!("{}: {error}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(|error| context(&error))? {
        let path = entry.map_err(|error| context(&error))?.path();
        if path.is_dir() {
            read(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).map_err(|error| context(&error))?;
            found.add(&text).map_err(|error| context(&error))?;
        }
    }
    Ok(())
}

/// What the source has shown so far.
#[derive(Default)]
struct Found {
    structs: BTreeMap<String, Struct>,
    /// Of every `impl Wire`: the type and its layout.
    wires: Vec<(String, String)>,
    wrong: Vec<String>,
}

impl Found {
    fn add(&mut self, text: &str) -> syn::Result<()> {
        self.visit_file(&syn::parse_file(text)?);
        Ok(())
    }

    fn finish(mut self) -> Result<BTreeMap<String, Struct>, String> {
        for (name, layout) in &self.wires {
            if !self.structs.contains_key(layout) {
                self.wrong.push(format!(
                    "{name}: its layout {layout} is none that was found"
                ));
            }
        }
        if self.wrong.is_empty() {
            Ok(self.structs)
        } else {
            Err(self.wrong.join("\n"))
        }
    }

    fn struct_of(&mut self, item: &syn::ItemStruct) -> Struct {
        let bitfield = item.attrs.iter().any(|attribute| {
            let path = attribute.path();
            path.segments.last().is_some_and(|s| s.ident == "bitfield")
        });
        let mut fields = Vec::new();
        for field in &item.fields {
            let Some(ident) = &field.ident else {
                self.wrong
                    .push(format!("{}: a field without name", item.ident));
                continue;
            };
            let ident = ident.to_string();
            if bitfield && ident.starts_with('_') {
                continue;
            }
            if !matches!(field.vis, syn::Visibility::Public(_)) {
                self.wrong.push(format!(
                    "{}.{ident} is private: no test can see it",
                    item.ident
                ));
            }
            fields.push((ident, last_name(&field.ty).unwrap_or_default()));
        }
        Struct { bitfield, fields }
    }
}

/// Items at any depth: in modules and functions, too.
impl<'ast> Visit<'ast> for Found {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if is_layout(&item.attrs) {
            let name = item.ident.to_string();
            let found = self.struct_of(item);
            if self.structs.insert(name, found).is_some() {
                self.wrong.push(format!("two structs {}", item.ident));
            }
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if is_layout(&item.attrs) {
            self.wrong.push(format!("{} is an enum", item.ident));
        }
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        if is_layout(&item.attrs) {
            self.wrong.push(format!("{} is a union", item.ident));
        }
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        if has_word(&item.tokens, "FromBytes") {
            let name = item.path.segments.last().map(|s| s.ident.to_string());
            self.wrong.push(format!(
                "the macro {} makes a layout",
                name.unwrap_or_default()
            ));
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let of_wire = item.trait_.as_ref().is_some_and(|(_, path, _)| {
            let last = path.segments.last();
            last.is_some_and(|segment| segment.ident == "Wire")
        });
        if of_wire {
            for inner in &item.items {
                if let syn::ImplItem::Type(layout) = inner {
                    if layout.ident == "Layout" {
                        let name = last_name(&item.self_ty).unwrap_or_default();
                        let layout = last_name(&layout.ty).unwrap_or_default();
                        self.wires.push((name, layout));
                    }
                }
            }
        }
        visit::visit_item_impl(self, item);
    }
}

/// Whether the item derives `FromBytes`, by whatever path and under whatever condition.
fn is_layout(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) => {
            let path = &list.path;
            (path.is_ident("derive") || path.is_ident("cfg_attr"))
                && has_word(&list.tokens, "FromBytes")
        }
        _ => false,
    })
}

fn has_word(tokens: &impl ToString, word: &str) -> bool {
    tokens
        .to_string()
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|found| found == word)
}

/// The type's name without its path; `None` if it is no path.
fn last_name(ty: &syn::Type) -> Option<String> {
    match ty {
        syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
        _ => None,
    }
}

fn found_in(text: &str) -> Result<BTreeMap<String, Struct>, String> {
    let mut found = Found::default();
    found.add(text).map_err(|error| error.to_string())?;
    found.finish()
}

#[test]
fn layouts_are_found_wherever_they_are() {
    let found = found_in(
        "mod inner {
            #[derive(Clone, zerocopy_derive::FromBytes)]
            pub struct Path { pub field: big_endian::U32 }
            mod deeper {
                #[cfg_attr(any(), derive(FromBytes))]
                pub struct Conditional { pub a: u8 }
            }
        }
        fn function() {
            #[bitfield_struct::bitfield(u8)]
            #[derive(FromBytes)]
            pub struct Word { #[bits(4)] __: u8, #[bits(4)] pub low: u8 }
        }
        #[derive(Clone)]
        struct Value;
        impl crate::wire::Wire for Value { type Layout = inner::Path; }",
    );
    let fields = |name: &str, ty: &str| vec![(name.to_owned(), ty.to_owned())];
    let expected = [
        ("Conditional", false, fields("a", "u8")),
        ("Path", false, fields("field", "U32")),
        ("Word", true, fields("low", "u8")),
    ]
    .map(|(name, bitfield, fields)| (name.to_owned(), Struct { bitfield, fields }));
    assert_eq!(found, Ok(BTreeMap::from(expected)));
}

#[test]
fn layouts_that_cannot_be_seen_fail() {
    for (text, why) in [
        (
            "impl Wire for Value { type Layout = Hidden; }",
            "Value: its layout Hidden is none that was found",
        ),
        (
            "impl Wire for Value { type Layout = [u8; 8]; }",
            "Value: its layout  is none that was found",
        ),
        (
            "layout! { #[derive(FromBytes)] struct Made { a: u8 } }",
            "the macro layout makes a layout",
        ),
        ("#[derive(FromBytes)] enum Kind { A }", "Kind is an enum"),
        (
            "#[derive(FromBytes)] union Either { a: u8 }",
            "Either is a union",
        ),
        (
            "#[derive(FromBytes)] struct Private { a: u8 }",
            "Private.a is private: no test can see it",
        ),
        (
            "#[derive(FromBytes)] struct Pair(pub u8);",
            "Pair: a field without name",
        ),
        (
            "#[derive(FromBytes)] struct Twin {} mod m { #[derive(FromBytes)] struct Twin {} }",
            "two structs Twin",
        ),
    ] {
        assert_eq!(found_in(text), Err(why.to_owned()), "{text}");
    }
}
