// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The library has no thread, no clock, no state of its own beside the device, no I/O and
//! nothing whose order is random: whoever runs a device in process decides all of that.
//! Read from its source, word by word; what the program adds is in `src/bin`.

use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

/// Words that the library has no use for, and what they would bring in.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("a thread", &["thread", "spawn", "rayon"]),
    ("a clock", &["Instant", "SystemTime", "UNIX_EPOCH"]),
    (
        "global state",
        &[
            "static",
            "thread_local",
            "OnceLock",
            "LazyLock",
            "lazy_static",
        ],
    ),
    ("I/O", &["fs", "net", "io", "process", "env", "os"]),
    (
        "an order that differs from run to run",
        &["HashMap", "HashSet", "RandomState", "mpsc"],
    ),
    (
        "what only the program needs",
        &["vfio_user", "vfio_bindings", "vm_memory", "clap"],
    ),
];

/// The sources of the library.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("src/bin") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every word of the code; comments have none, and `'static` is a lifetime.
fn words(code: TokenStream, found: &mut Vec<String>) {
    let mut lifetime = false;
    for token in code {
        let starts_lifetime = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '\'');
        match token {
            TokenTree::Ident(word) if !lifetime => found.push(word.to_string()),
            TokenTree::Group(group) => words(group.stream(), found),
            _ => {}
        }
        lifetime = starts_lifetime;
    }
}

/// What a source has that it must not have.
fn faults(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    words(text.parse().unwrap(), &mut found);
    let faults = FORBIDDEN.iter().flat_map(|(what, forbidden)| {
        let used = found
            .iter()
            .filter(|word| forbidden.contains(&word.as_str()));
        used.map(move |word| format!("{word}: {what}"))
    });
    faults.collect()
}

#[test]
fn the_library_is_the_device_alone() {
    let mut paths = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut paths,
    );
    assert!(paths.len() > 30, "{paths:?}");
    let faults: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let faults = faults(&std::fs::read_to_string(path).unwrap());
            faults
                .into_iter()
                .map(move |fault| format!("{}: {fault}", path.display()))
        })
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn what_it_must_not_have_is_found() {
    for code in [
        "fn f() { let start = std::time::Instant::now(); }",
        "static mut COUNT: u64 = 0;",
        "macro_rules! m { () => { std::thread::spawn(|| {}) } }",
        "mod a { use std::{collections::HashMap, fmt}; }",
        "fn f(m: vm_memory::MmapRegion) {}",
    ] {
        assert!(!faults(code).is_empty(), "{code}");
    }
    let fine = "/// A thread. \n fn f(s: &'static str) -> &str { \"Instant\" } // static";
    assert_eq!(faults(fine), [""; 0]);
}
