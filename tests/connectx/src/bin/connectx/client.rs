// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The other end of the control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{json, Value};

/// The state at `path` of the device behind a control socket, as indented JSON.
///
/// # Errors
///
/// A message for the user: there is no such socket, or nothing at `path`.
pub(crate) fn inspect(socket: &Path, path: &str, depth: Option<u32>) -> Result<String, String> {
    let mut request = json!({ "cmd": "inspect", "path": path });
    if let Some(depth) = depth {
        request["depth"] = depth.into();
    }
    let reply = ask(socket, &request).map_err(|e| format!("{}: {e}", socket.display()))?;
    match (reply.get("inspect"), reply.get("error")) {
        (Some(tree), _) => Ok(format!("{tree:#}")),
        (None, Some(Value::String(error))) => Err(error.clone()),
        (None, _) => Err(format!("unknown reply {reply}")),
    }
}

fn ask(socket: &Path, request: &Value) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{request}")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    Ok(serde_json::from_str(&reply)?)
}
