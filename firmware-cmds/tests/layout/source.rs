// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Which layouts and fields the crate has, read from its source, so that none can be left out.

use std::collections::BTreeMap;
use std::path::Path;

/// A struct of the crate whose bytes go over the wire.
#[derive(Debug, Default)]
pub(crate) struct Struct {
    /// Made by `bitfield`.
    pub(crate) bitfield: bool,
    /// Names and types of its fields; without the padding of a bitfield.
    pub(crate) fields: Vec<(String, String)>,
}

/// Every struct of the crate that `zerocopy` reads from bytes, by name.
pub(crate) fn structs() -> Result<BTreeMap<String, Struct>, String> {
    let mut found = BTreeMap::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    )?;
    Ok(found)
}

fn visit(dir: &Path, found: &mut BTreeMap<String, Struct>) -> Result<(), String> {
    let context = |error: &dyn std::fmt::Display| format!("{}: {error}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(|error| context(&error))? {
        let path = entry.map_err(|error| context(&error))?.path();
        if path.is_dir() {
            visit(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).map_err(|error| context(&error))?;
            let file = syn::parse_file(&text).map_err(|error| context(&error))?;
            for item in &file.items {
                if let syn::Item::Struct(item) = item {
                    collect(item, found)?;
                }
            }
        }
    }
    Ok(())
}

fn collect(item: &syn::ItemStruct, found: &mut BTreeMap<String, Struct>) -> Result<(), String> {
    let mut wire = false;
    let mut bitfield = false;
    for attribute in &item.attrs {
        if attribute.path().is_ident("derive") {
            attribute
                .parse_nested_meta(|derive| {
                    wire |= derive.path.is_ident("FromBytes");
                    Ok(())
                })
                .map_err(|error| error.to_string())?;
        }
        bitfield |= attribute.path().is_ident("bitfield");
    }
    if !wire {
        return Ok(());
    }
    let name = item.ident.to_string();
    let mut fields = Vec::new();
    for field in &item.fields {
        let ident = field
            .ident
            .as_ref()
            .ok_or_else(|| format!("{name}: a field without name"))?
            .to_string();
        let padding = bitfield && ident.starts_with('_');
        if !padding {
            let public = matches!(field.vis, syn::Visibility::Public(_));
            if !public {
                return Err(format!("{name}.{ident} is private: no test can see it"));
            }
            let ty = match &field.ty {
                syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
                _ => None,
            };
            fields.push((ident, ty.unwrap_or_default()));
        }
    }
    match found.insert(name.clone(), Struct { bitfield, fields }) {
        None => Ok(()),
        Some(_) => Err(format!("two structs {name}")),
    }
}
