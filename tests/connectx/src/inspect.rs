// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The whole state of the device as a tree, for people: `qp/0x41/sq` is what the send queue
//! of QP 0x41 looks like now.
//!
//! The tree is what `serde` derives for the state itself, so a field that is added to it
//! shows up; nothing here knows what there is. Only what the path leads to is built.
//!
//! - [`select`]: follows the path.
//! - [`show`]: how values look that derive nothing: numbers of objects, contexts as images,
//!   types of firmware-cmds.

mod debug;
mod select;
pub(crate) mod show;

use serde::Serialize;
use serde_json::Value;

use crate::device::Device;
use select::{NotThere, Select};

/// What `path` leads to, down to `depth` levels; what lies deeper is counted.
///
/// Components are names, or numbers in any base that Rust knows. Without a path it is the
/// top level. One level by default there, two elsewhere.
///
/// # Errors
///
/// A message that says which component is not there, and what is.
pub fn inspect(dev: &Device, path: &str, depth: Option<usize>) -> Result<Value, String> {
    let path: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let depth = depth.unwrap_or(if path.is_empty() { 1 } else { 2 });
    let select = Select { path: &path, depth };
    dev.serialize(select).map_err(|error| match error {
        select::Error::NotThere(not_there) => complaint(&path, &not_there),
        select::Error::Other(message) => message,
    })
}

fn complaint(path: &[&str], not_there: &NotThere) -> String {
    let (above, rest) = path.split_at(path.len() - not_there.left);
    let parent = if above.is_empty() {
        "the device".to_owned()
    } else {
        format!("{:?}", above.join("/"))
    };
    let name = rest.first().unwrap_or(&"");
    if not_there.names.is_empty() {
        return format!("no {name:?} in {parent}, which has nothing in it");
    }
    let more = match not_there.more {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!(
        "no {name:?} in {parent}, but {}{more}",
        not_there.names.join(", ")
    )
}
