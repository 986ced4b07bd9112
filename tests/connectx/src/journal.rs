// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! The journal: one line per thing worth knowing, and the list of protocol violations.

use std::fmt;

use serde::Serialize;

/// Violations kept word by word; later ones are only counted.
const KEPT: usize = 256;

/// Where the device writes its lines.
#[derive(Serialize)]
pub struct Journal {
    #[serde(skip)]
    sink: Box<dyn FnMut(&str) + Send>,
    violations: Vec<String>,
    count: u64,
    /// Write a line for each command, doorbell, CQE and EQE too.
    pub trace: bool,
}

impl Journal {
    /// A journal that hands each line, without its newline, to `sink`.
    pub fn new(sink: impl FnMut(&str) + Send + 'static) -> Self {
        Self {
            sink: Box::new(sink),
            violations: Vec::new(),
            count: 0,
            trace: false,
        }
    }

    /// Something the guest asked for and was refused, or another rare event.
    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        (self.sink)(&line.to_string());
    }

    /// A line of the trace; costs nothing when tracing is off.
    pub fn trace(&mut self, line: fmt::Arguments<'_>) {
        if self.trace {
            (self.sink)(&line.to_string());
        }
    }

    /// The guest's driver broke the protocol. In strict mode the owner of the device ends
    /// the run.
    pub fn violation(&mut self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        (self.sink)(&format!("violation: {line}"));
        self.count += 1;
        if self.violations.len() < KEPT {
            self.violations.push(line);
        }
    }

    /// The first violations since the start, in order.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Number of violations since the start.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.count
    }
}

impl Default for Journal {
    /// A journal that keeps violations and drops every line.
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("violations", &self.violations)
            .finish_non_exhaustive()
    }
}
