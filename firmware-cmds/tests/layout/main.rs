// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Every field of every layout against the kernel's own headers.
//!
//! - `source` reads from this crate's source which layouts and fields there are: a field that no
//!   table names fails.
//! - `probe` finds out where a field is by setting bits and reading it.
//! - `tables` says what each field is in the headers, by name; `ifc-oracle` reads the headers.
//!   Whatever a struct of the headers has and the table does not name fails, too.

mod constants;
mod probe;
mod source;
mod table;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use table::Table;

/// Fields of `layout`, dotted; those of a struct within it unless `whole` says that it is compared
/// as a whole.
fn fields(
    structs: &BTreeMap<String, source::Struct>,
    layout: &str,
    prefix: &str,
    whole: &BTreeSet<&str>,
    found: &mut BTreeSet<String>,
    used: &mut BTreeSet<String>,
) {
    used.insert(layout.to_owned());
    let Some(layout) = structs.get(layout) else {
        return;
    };
    for (name, ty) in &layout.fields {
        let path = format!("{prefix}{name}");
        if structs.contains_key(ty) && !whole.contains(path.as_str()) {
            fields(structs, ty, &format!("{path}."), whole, found, used);
        } else {
            found.insert(path);
        }
    }
}

#[test]
fn tables_name_every_field() {
    let structs = source::structs().expect("the crate's source");
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for Table {
        layout,
        header,
        leaves,
        ..
    } in tables::all()
    {
        let named: BTreeSet<&str> = leaves.iter().map(|leaf| leaf.path.as_str()).collect();
        assert_eq!(named.len(), leaves.len(), "{layout} has a field twice");
        let mut there = BTreeSet::new();
        fields(&structs, layout, "", &named, &mut there, &mut used);
        count += there.len();
        for path in &there {
            if !named.contains(path.as_str()) {
                wrong.push(format!("{layout}.{path} is not compared with {header}"));
            }
        }
        for path in &named {
            if !there.contains(*path) {
                wrong.push(format!("{layout} has no {path}"));
            }
        }
    }
    for (name, found) in &structs {
        if !used.contains(name) {
            let kind = if found.bitfield { "word" } else { "layout" };
            wrong.push(format!("the {kind} {name} is in no table"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 150, "only {count} fields");
    println!("{count} fields of {} structs", structs.len());
}

#[test]
fn fields_are_where_the_headers_say() {
    let Some(oracle) = ifc_oracle::require_or_skip("fields_are_where_the_headers_say") else {
        return;
    };
    let mut wrong = Vec::new();
    for table in tables::all() {
        let context = |error: String| format!("{} as {}: {error}", table.layout, table.header);
        match table::compare(&oracle, &table) {
            Ok(found) => wrong.extend(found.into_iter().map(context)),
            Err(error) => wrong.push(context(error.to_string())),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
