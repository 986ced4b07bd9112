// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What the guest's scripts report, and the demo's table.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::Sender;

use serde_json::{json, Map, Value};

/// Turns a stream of bytes into lines of JSON; other lines are handed on as text.
pub(crate) struct Lines {
    rest: Vec<u8>,
    sender: Sender<Value>,
}

impl Lines {
    /// Sends every object to `sender`.
    pub(crate) fn new(sender: Sender<Value>) -> Self {
        Self {
            rest: Vec::new(),
            sender,
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let value = match serde_json::from_str(line.trim()) {
                Ok(Value::Object(object)) => Value::Object(object),
                _ => json!({ "event": "text", "text": line.trim_end() }),
            };
            let _ = self.sender.send(value);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All that was reported, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Results of tests.
    pub(crate) results: Vec<Value>,
    /// By stack and scheme: what the device counted, and what was left in it.
    pub(crate) totals: Vec<Value>,
    /// A test that began and has not ended.
    pub(crate) open: Option<String>,
}

/// `stack/scheme test` of a line, whichever of them it has.
fn name(line: &Value) -> String {
    let word = |key: &str| line[key].as_str().unwrap_or_default();
    let place = match (word("stack"), word("scheme")) {
        ("", "") => String::new(),
        (stack, "") => format!("{stack} "),
        (stack, scheme) => format!("{stack}/{scheme} "),
    };
    let case = match (word("case"), word("phase")) {
        ("", "") => String::new(),
        (case, "") | ("", case) | (case, _) => format!(" {case}"),
    };
    format!("{place}{}{case}", word("test"))
}

impl Report {
    /// Takes a line; returns what to tell the user, if anything.
    pub(crate) fn take(&mut self, line: Value) -> Option<String> {
        match line["event"].as_str() {
            Some("start") => {
                self.open = Some(name(&line));
                None
            }
            Some("result") => {
                self.open = None;
                let verdict = if line["ok"] == true { "ok" } else { "FAILED" };
                let mut text = format!("{:<44} {verdict}", name(&line));
                for (key, unit) in [("faults", " faults"), ("seconds", " s")] {
                    if line[key].is_number() {
                        text += &format!("  {}{unit}", line[key]);
                    }
                }
                if let Some(detail) = line["detail"].as_str().filter(|d| !d.is_empty()) {
                    text += &format!("  {detail}");
                }
                self.results.push(line);
                Some(text)
            }
            Some("totals") => {
                self.totals.push(line);
                None
            }
            _ => Some(line["text"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// Adds a result that the guest could not report itself.
    pub(crate) fn add(&mut self, test: &str, ok: bool, detail: &str) {
        self.results
            .push(json!({ "test": test, "ok": ok, "detail": detail }));
    }

    /// Numbers of results that are ok and not.
    pub(crate) fn count(&self) -> (usize, usize) {
        let passed = self.results.iter().filter(|r| r["ok"] == true).count();
        (passed, self.results.len() - passed)
    }

    /// The names of the results that are not ok, with the reason.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.results
            .iter()
            .filter(|r| r["ok"] != true)
            .map(|r| format!("{}: {}", name(r), r["detail"].as_str().unwrap_or("failed")))
            .collect()
    }

    /// What the demo must show of `stacks`, and the report does not.
    pub(crate) fn missing(&self, stacks: &[&str]) -> Vec<String> {
        let mut missing = Vec::new();
        let places = SCHEMES
            .iter()
            .flat_map(|scheme| stacks.iter().map(move |stack| (*stack, *scheme)));
        for (stack, scheme) in places {
            let here = |line: &&Value| line["stack"] == stack && line["scheme"] == scheme;
            let place = format!("{stack}/{scheme}");
            for must in MUST {
                let result = self
                    .results
                    .iter()
                    .filter(here)
                    .find(|r| r["test"] == must.test);
                let Some(result) = result else {
                    missing.push(format!("{place} {}: did not run", must.test));
                    continue;
                };
                for (key, least) in [("faults", must.faults), ("bytes_verified", must.bytes)] {
                    let seen = result[key].as_u64().unwrap_or(0);
                    if seen < least {
                        missing.push(format!(
                            "{place} {}: {seen} {key}, at least {least} were due",
                            must.test
                        ));
                    }
                }
            }
            let Some(totals) = self.totals.iter().find(here) else {
                missing.push(format!("{place}: no counters of the device"));
                continue;
            };
            // The other scheme's events would mean that the switch did not work.
            let count = |key: &str| totals["counters"][key].as_u64().unwrap_or(0);
            let (own, other) = if scheme == "memory" {
                (MEMORY_EVENTS, TRANSPORT_EVENTS)
            } else {
                (TRANSPORT_EVENTS, MEMORY_EVENTS)
            };
            if own.iter().all(|key| count(key) == 0) {
                missing.push(format!("{place}: no page fault of this scheme"));
            }
            for key in other.iter().filter(|key| count(key) != 0) {
                missing.push(format!("{place}: {key} in the other scheme"));
            }
            for key in ["violations", "resumes_unknown", "unknown_commands"] {
                if count(key) != 0 {
                    missing.push(format!("{place}: {} {key}", count(key)));
                }
            }
        }
        missing
    }

    /// The figures of one stack in one scheme, in the order of the table.
    fn figures(&self, stack: &str, scheme: &str) -> Option<Map<String, Value>> {
        let here = |line: &&Value| line["stack"] == stack && line["scheme"] == scheme;
        let totals = self.totals.iter().find(here)?;
        let results: Vec<_> = self.results.iter().filter(here).collect();
        let device = |key: &str| totals["counters"][key].as_u64();
        // None if nobody reported it, which is not 0.
        let sum = |key: &str| -> Option<u64> {
            let values = results.iter().filter_map(|r| r[key].as_u64());
            values.fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
        };
        let seconds = totals["seconds"].as_f64();
        let mut figures = Map::new();
        for (row, counter) in DEVICE_ROWS {
            figures.insert((*row).to_owned(), device(counter).into());
        }
        for (row, key) in PROGRAM_ROWS {
            figures.insert((*row).to_owned(), sum(key).into());
        }
        figures.insert(
            "seconds, load to unload".to_owned(),
            seconds.map(|s| (s * 10.0).round() / 10.0).into(),
        );
        let failed = results.iter().filter(|r| r["ok"] != true).count();
        figures.insert("tests passed".to_owned(), (results.len() - failed).into());
        figures.insert("tests failed".to_owned(), failed.into());
        Some(figures)
    }

    /// The table as JSON: scheme -> stack -> figure; and every single result.
    pub(crate) fn json(&self) -> Value {
        let mut schemes = Map::new();
        for scheme in SCHEMES {
            let mut stacks = Map::new();
            for (stack, _) in STACKS {
                if let Some(figures) = self.figures(stack, scheme) {
                    stacks.insert((*stack).to_owned(), Value::Object(figures));
                }
            }
            schemes.insert((*scheme).to_owned(), Value::Object(stacks));
        }
        json!({ "figures": schemes, "results": self.results, "totals": self.totals })
    }

    /// The table: C beside Rust, for each scheme.
    pub(crate) fn table(&self) -> String {
        let columns: Vec<_> = SCHEMES
            .iter()
            .flat_map(|scheme| {
                STACKS
                    .iter()
                    .map(move |(stack, title)| (scheme, stack, title))
            })
            .map(|(scheme, stack, title)| (*scheme, *title, self.figures(stack, scheme)))
            .collect();
        let mut rows: Vec<String> = Vec::new();
        for (_, _, figures) in &columns {
            for row in figures.iter().flat_map(Map::keys) {
                if !rows.contains(row) {
                    rows.push(row.clone());
                }
            }
        }
        let mut text = format!("{:<42}", "");
        for scheme in SCHEMES {
            text += &format!("  {:^25}", format!("{scheme} scheme"));
        }
        text += &format!("\n{:<42}", "");
        for (_, title, _) in &columns {
            text += &format!("  {title:>12}");
        }
        text.push('\n');
        for row in rows {
            text += &format!("{row:<42}");
            for (_, _, figures) in &columns {
                let cell = figures
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |f| cell(&f[&row]));
                text += &format!("  {cell:>12}");
            }
            text.push('\n');
        }
        text
    }

    /// Each test beside itself: faults and seconds, by configuration.
    pub(crate) fn tests(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        let mut cells: BTreeMap<(&str, &str, &str), String> = BTreeMap::new();
        for result in &self.results {
            let word = |key: &str| result[key].as_str().unwrap_or_default();
            let (test, stack, scheme) = (word("test"), word("stack"), word("scheme"));
            // Ten phases of one test; their figures mean nothing side by side.
            if result["phase"].is_string() {
                continue;
            }
            if !names.contains(&test) {
                names.push(test);
            }
            let mut cell = match (result["ok"] == true, &result["faults"]) {
                (false, _) => "FAILED".to_owned(),
                (true, Value::Number(n)) => format!("{n} faults"),
                (true, _) => "ok".to_owned(),
            };
            if let Some(seconds) = result["seconds"].as_f64() {
                cell += &format!(" {seconds:.1}s");
            }
            cells.insert((test, stack, scheme), cell);
        }
        let mut text = format!("{:<34}", "");
        for scheme in SCHEMES {
            for (_, title) in STACKS {
                text += &format!("  {:>18}", format!("{title}, {scheme}"));
            }
        }
        text.push('\n');
        for test in names {
            text += &format!("{test:<34}");
            for scheme in SCHEMES {
                for (stack, _) in STACKS {
                    let cell = cells.get(&(test, *stack, *scheme)).map_or("-", |c| c);
                    text += &format!("  {cell:>18}");
                }
            }
            text.push('\n');
        }
        text
    }
}

const SCHEMES: &[&str] = &["memory", "transport"];
const STACKS: &[(&str, &str)] = &[("c", "C"), ("rust", "Rust")];

/// A test that each configuration of the demo must report.
struct Must {
    test: &'static str,
    faults: u64,
    bytes: u64,
}

/// A transfer of 64 MiB. A driver that reads ahead brings in 8 MiB at a time at most.
const fn transfer(test: &'static str) -> Must {
    Must {
        test,
        faults: 8,
        bytes: 64 << 20,
    }
}

/// Another test.
const fn test(test: &'static str, faults: u64) -> Must {
    Must {
        test,
        faults,
        bytes: 0,
    }
}

/// The tests, and what they cannot do without. rdma-core's atomic tests and pingpong write
/// to their memory before they register it: no fault is due. fetch-and-add-absent is ours
/// for that reason.
const MUST: &[Must] = &[
    test("ibv_devinfo", 0),
    test("rc_pingpong", 0),
    test("rc_pingpong -o", 0),
    test("test_odp_rc_traffic", 1),
    test("test_odp_rc_mixed_mr", 1),
    test("test_odp_rc_rdma_read", 1),
    test("test_odp_rc_rdma_write", 1),
    test("test_odp_rc_atomic_cmp_and_swp", 0),
    test("test_odp_rc_atomic_fetch_and_add", 0),
    test("test_odp_ud_traffic", 1),
    test("test_odp_implicit_rc_traffic", 1),
    test("test_odp_sync_prefetch_rc_traffic", 1),
    test("test_odp_async_prefetch_rc_traffic", 1),
    test("test_odp_prefetch_sync_no_page_fault_rc_traffic", 1),
    test("test_odp_prefetch_async_no_page_fault_rc_traffic", 1),
    test("test_odp_implicit_sync_prefetch_rc_traffic", 1),
    test("test_odp_implicit_async_prefetch_rc_traffic", 1),
    test("fetch-and-add-absent", 1),
    transfer("write-64m"),
    transfer("read-64m"),
    transfer("write-64m-implicit"),
    transfer("read-64m-implicit"),
    transfer("write-64m-disturb"),
    transfer("read-64m-disturb"),
    test("stats", 0),
    test("unload", 0),
];

const MEMORY_EVENTS: &[&str] = &["faults_memory"];
const TRANSPORT_EVENTS: &[&str] = &[
    "faults_wqe_requester",
    "faults_wqe_responder",
    "faults_rdma",
];

/// Rows that the device counted over all tests.
const DEVICE_ROWS: &[(&str, &str)] = &[
    ("page faults: memory", "faults_memory"),
    ("page faults: WQE, requester", "faults_wqe_requester"),
    ("page faults: WQE, responder", "faults_wqe_responder"),
    ("page faults: RDMA, responder", "faults_rdma"),
    ("resumes", "resumes_ok"),
    ("resumes with error", "resumes_error"),
    ("UMRs", "umr_wqes"),
    ("translations set", "mtts_set"),
    ("translations taken back", "mtts_cleared"),
    ("violations", "violations"),
];

/// Rows that the programs of tests/conformance report, all of them named odp_*: the MRs
/// of others are gone, with their statistics, before anybody could look.
const PROGRAM_ROWS: &[(&str, &str)] = &[
    ("pages mapped (rdma statistic of odp_*)", "page_faults"),
    ("pages invalidated (the same)", "page_invalidations"),
    ("bytes verified (by odp_*)", "bytes_verified"),
];

/// A figure with thousands apart.
fn cell(value: &Value) -> String {
    let Some(number) = value.as_u64() else {
        return match value {
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
    };
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Report {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut writer = Lines::new(sender);
        // In odd pieces, as a port delivers them.
        for piece in text.as_bytes().chunks(7) {
            writer.write_all(piece).unwrap();
        }
        drop(writer);
        let mut report = Report::default();
        for line in receiver {
            report.take(line);
        }
        report
    }

    const LOG: &str = r#"{"event":"start","stack":"c","scheme":"memory","test":"a"}
{"event":"result","stack":"c","scheme":"memory","test":"a","ok":true,"faults":1024,"seconds":1.5,"bytes_verified":67108864}
not json
{"event":"result","stack":"rust","scheme":"memory","test":"a","ok":false,"detail":"why"}
{"event":"totals","stack":"c","scheme":"memory","counters":{"faults_memory":1234567},"objects":{},"seconds":9.04}
{"event":"start","stack":"rust","scheme":"memory","test":"b"}
"#;

    #[test]
    fn results_are_counted() {
        let report = lines(LOG);
        assert_eq!(report.count(), (1, 1));
        assert_eq!(report.failures(), ["rust/memory a: why"]);
        assert_eq!(report.open.as_deref(), Some("rust/memory b"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut report = lines(LOG);
        let both = ["c", "rust"];
        let missing = report.missing(&both);
        assert!(missing.contains(&"c/memory ibv_devinfo: did not run".to_owned()));
        assert!(missing.contains(&"rust/transport: no counters of the device".to_owned()));
        let missing = report.missing(&["mixed"]);
        assert!(missing.iter().all(|line| line.starts_with("mixed/")));
        assert!(missing.contains(&"mixed/memory ibv_devinfo: did not run".to_owned()));
        // A whole demo, then with one figure too small.
        report = Report::default();
        for scheme in SCHEMES {
            for (stack, _) in STACKS {
                for must in MUST {
                    report.take(json!({
                        "event": "result", "stack": stack, "scheme": scheme, "ok": true,
                        "test": must.test, "faults": must.faults, "bytes_verified": must.bytes,
                    }));
                }
                let event = if *scheme == "memory" {
                    "faults_memory"
                } else {
                    "faults_rdma"
                };
                report.take(json!({
                    "event": "totals", "stack": stack, "scheme": scheme,
                    "counters": { event: 5 },
                }));
            }
        }
        assert_eq!(report.missing(&both), Vec::<String>::new());
        report.totals[0]["counters"]["violations"] = 1.into();
        report.results[3]["faults"] = 0.into();
        assert_eq!(
            report.missing(&both),
            [
                "c/memory test_odp_rc_traffic: 0 faults, at least 1 were due",
                "c/memory: 1 violations"
            ]
        );
    }

    #[test]
    fn figures_come_from_the_lines() {
        let report = lines(LOG);
        let json = report.json();
        let figures = &json["figures"]["memory"]["c"];
        assert_eq!(figures["page faults: memory"], 1_234_567);
        assert_eq!(figures["bytes verified (by odp_*)"], 67_108_864);
        // Of the whole stack, not the sum of its tests.
        assert_eq!(figures["seconds, load to unload"], 9.0);
        assert_eq!(figures["tests failed"], 0);
        // Never reported: absent, not zero.
        assert_eq!(json["figures"]["memory"]["rust"], Value::Null);
        assert_eq!(figures["UMRs"], Value::Null);
        assert_eq!(figures["pages invalidated (the same)"], Value::Null);
        assert!(report.table().contains("1,234,567"));
        assert!(report.tests().contains("1024 faults 1.5s"));
        assert!(report.tests().contains("FAILED"));
    }
}
