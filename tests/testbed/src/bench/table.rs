// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What is shown: the table, and symbols side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::lines::LINES;
use super::result::Row;
use super::rig::Rig;
use super::section::Section;

/// Puts rows in the order of the lines and rigs.
pub(crate) fn sort(rows: &mut [Row]) {
    rows.sort_by_key(|row| {
        (
            LINES.iter().position(|line| line.name == row.line),
            Rig::ALL.iter().position(|rig| rig.name() == row.rig),
        )
    });
}

/// `12,345`, `12.3`, `0.12`.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", &*text),
    };
    let (whole, fraction) = rest.find('.').map_or((rest, ""), |dot| rest.split_at(dot));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{fraction}")
}

/// The table, in Markdown that is also read as it is.
pub(crate) fn table(rows: &[Row]) -> String {
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let mut cells =
        vec![["line", "on", "what", "C", "ours", "ours / C", "unit"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        [
            row.line.clone(),
            row.rig.clone(),
            row.what.clone(),
            value(row.c),
            value(row.ours),
            row.ratio()
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}")),
            match row.more {
                true => format!("{} (more is better)", row.unit),
                false => row.unit.clone(),
            },
        ]
    }));
    let width: Vec<_> = (0..7)
        .map(|column| cells.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        text.push('|');
        for (column, cell) in row.iter().enumerate() {
            let width = width[column];
            let _ = match column {
                3..=5 => write!(text, " {cell:>width$} |"),
                _ => write!(text, " {cell:<width$} |"),
            };
        }
        text.push('\n');
        if index == 0 {
            text.push('|');
            for (column, width) in width.iter().enumerate() {
                let right = if (3..=5).contains(&column) { ":" } else { "-" };
                let _ = write!(text, "{}{right}|", "-".repeat(width + 1));
            }
            text.push('\n');
        }
    }
    text
}

/// Instructions by symbol and module for each of the section's n, the mean of its rounds.
fn symbols(rounds: &[&Section]) -> BTreeMap<(String, String), f64> {
    // Both below 2^53 by far.
    #[allow(clippy::cast_precision_loss)]
    let float = |n: u64| n as f64;
    let divisor = float(rounds.len().try_into().unwrap_or(u64::MAX));
    let mut sums = BTreeMap::new();
    for section in rounds {
        for (symbol, count) in section.profile.iter().flat_map(|p| &p.symbols) {
            *sums.entry(symbol.clone()).or_insert(0.0) += float(*count) / section.n / divisor;
        }
    }
    sums
}

/// The `top` symbols of each section in which the two drivers differ most.
pub(crate) fn symbols_beside(rig: Rig, c: &[Section], ours: &[Section], top: usize) -> String {
    let mut names: Vec<(&str, &str)> = Vec::new();
    for section in c.iter().chain(ours).filter(|s| s.profile.is_some()) {
        if !names.contains(&(&section.line, &section.name)) {
            names.push((&section.line, &section.name));
        }
    }
    let mut text = String::new();
    for (line, name) in names {
        let rounds = |sections: &'_ [Section]| -> BTreeMap<(String, String), f64> {
            let here = |s: &&Section| s.line == line && s.name == name;
            symbols(&sections.iter().filter(here).collect::<Vec<_>>())
        };
        let (left, right) = (rounds(c), rounds(ours));
        let _ = writeln!(
            text,
            "\n{line} {name} ({}): C {}, ours {}",
            rig.name(),
            number(left.values().sum()),
            number(right.values().sum())
        );
        let keys: BTreeSet<_> = left.keys().chain(right.keys()).collect();
        let count = |map: &BTreeMap<_, f64>, key| map.get(key).copied().unwrap_or(0.0);
        let mut both: Vec<_> = keys
            .into_iter()
            .map(|key| (key, count(&left, key), count(&right, key)))
            .collect();
        both.sort_by(|(_, l, r), (_, l2, r2)| (r2 - l2).abs().total_cmp(&(r - l).abs()));
        for ((symbol, module), l, r) in both.into_iter().take(top) {
            let _ = writeln!(
                text,
                "  {:>+12.1}  C {l:>12.1}  ours {r:>12.1}  {:#} [{module}]",
                r - l,
                rustc_demangle::demangle(symbol)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::figure::Kind;
    use super::super::profile::Profile;
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (value, text) in [
            (0.0, "0"),
            (65.0, "65"),
            (1_234_567.2, "1,234,567"),
            (-2052.4, "-2,052"),
            (57.31, "57.3"),
            (5.613, "5.61"),
            (0.012, "0.0120"),
            (999.6, "1,000"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn rows_are_one_table() {
        let row = |line: &str, c, ours| Row {
            line: line.to_owned(),
            rig: "memory".to_owned(),
            what: "READ".to_owned(),
            unit: "insn".to_owned(),
            kind: Kind::Exact,
            more: false,
            c,
            ours,
        };
        let mut rows = [
            row("P4", Some(0.0), None),
            row("P1", Some(2028.0), Some(4585.0)),
        ];
        sort(&mut rows);
        let table = table(&rows);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines.iter().all(|line| line.len() == lines[0].len()),
            "{table}"
        );
        assert_eq!(
            lines[2],
            "| P1   | memory | READ | 2,028 | 4,585 |    2.261 | insn |"
        );
        assert!(lines[3].ends_with("|     0 |     - |        - | insn |"));
    }

    #[test]
    fn symbols_are_ordered_by_difference() {
        let section = |symbols: &[(&str, u64)]| Section {
            line: "P1".to_owned(),
            name: "read".to_owned(),
            n: 10.0,
            profile: Some(Profile {
                symbols: symbols
                    .iter()
                    .map(|(name, n)| (((*name).to_owned(), "ib_core".to_owned()), *n))
                    .collect(),
                ..Profile::default()
            }),
            ..Section::default()
        };
        let c = [section(&[("a", 100), ("b", 10)]), section(&[("a", 120)])];
        let ours = [section(&[("a", 100), ("z", 500)])];
        let text = symbols_beside(Rig::Real, &c, &ours, 2);
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains("[ib_core]"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].contains("+50.0") && lines[0].contains(" z "),
            "{text}"
        );
        assert!(
            lines[1].contains("-1.0") && lines[1].contains(" a "),
            "{text}"
        );
    }
}
