// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Rows of the table: the C beside ours. Reading, writing, comparing them.

use serde_json::{json, Value};

use super::figure::{Figure, Kind};
use super::lines::Line;
use super::rig::Rig;
use super::section::Section;

/// A row: one figure of both drivers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// The line.
    pub(crate) line: String,
    /// The rig.
    pub(crate) rig: String,
    /// What it is.
    pub(crate) what: String,
    /// Its unit; nothing for events.
    pub(crate) unit: String,
    /// How it was got.
    pub(crate) kind: Kind,
    /// Whether more is better.
    pub(crate) more: bool,
    /// Of the C driver; none if there is no figure.
    pub(crate) c: Option<f64>,
    /// Of ours.
    pub(crate) ours: Option<f64>,
}

/// The middle of the rounds; none without any.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Row {
    /// The row of `figure`, from all rounds of both drivers on one rig.
    pub(crate) fn new(
        line: &Line,
        rig: Rig,
        figure: &Figure,
        c: &[Section],
        ours: &[Section],
    ) -> Self {
        let value = |sections: &[Section]| {
            let rounds = sections
                .iter()
                .filter(|s| s.line == line.name && s.name == figure.section);
            median(rounds.filter_map(|s| figure.value(s)).collect())
        };
        Self {
            line: line.name.to_owned(),
            rig: rig.name().to_owned(),
            what: figure.what.to_owned(),
            unit: figure.unit.to_owned(),
            kind: figure.source.kind(),
            more: figure.more,
            c: value(c),
            ours: value(ours),
        }
    }

    /// Ours over the C's; none where the C's is 0.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let (c, ours) = (self.c?, self.ours?);
        (c != 0.0).then(|| ours / c)
    }

    /// Whether both are of the same thing.
    pub(crate) fn same(&self, other: &Self) -> bool {
        (&self.line, &self.rig, &self.what) == (&other.line, &other.rig, &other.what)
    }

    /// For the user: where it is in the table.
    fn name(&self) -> String {
        format!("{} ({}): {}", self.line, self.rig, self.what)
    }

    /// What is worse than in the row `before`, if anything is.
    pub(crate) fn worse_than(&self, before: &Self) -> Option<String> {
        let tolerance = self.kind.tolerance()?;
        if self.c.is_none() || self.ours.is_none() {
            return Some(format!("{}: no figure", self.name()));
        }
        // Without a ratio, ours itself.
        let (what, now, then) = match (self.ratio(), before.ratio()) {
            (Some(now), Some(then)) => ("ratio", now, then),
            _ => ("ours", self.ours?, before.ours?),
        };
        let worse = if self.more {
            now < then * (1.0 - tolerance)
        } else {
            now > then * (1.0 + tolerance)
        };
        worse.then(|| {
            format!(
                "{}: {what} {now:.3}, was {then:.3} (more than {:.0} % worse)",
                self.name(),
                tolerance * 100.0
            )
        })
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Value {
        json!({
            "line": self.line,
            "rig": self.rig,
            "what": self.what,
            "unit": self.unit,
            "kind": self.kind.name(),
            "more": self.more,
            "c": self.c.map(rounded),
            "ours": self.ours.map(rounded),
            "ratio": self.ratio().map(|ratio| (ratio * 1e4).round() / 1e4),
        })
    }

    /// Reads what [`Self::json`] wrote.
    pub(crate) fn parse(value: &Value) -> Option<Self> {
        let word = |key: &str| Some(value[key].as_str()?.to_owned());
        Some(Self {
            line: word("line")?,
            rig: word("rig")?,
            what: word("what")?,
            unit: word("unit")?,
            kind: Kind::parse(value["kind"].as_str()?)?,
            more: value["more"].as_bool()?,
            c: value["c"].as_f64(),
            ours: value["ours"].as_f64(),
        })
    }
}

/// To five digits: what there is of noise is more.
fn rounded(value: f64) -> f64 {
    if value == 0.0 {
        return 0.0;
    }
    let digits = 10f64.powf(4.0 - value.abs().log10().floor());
    (value * digits).round() / digits
}

/// Of every committed row whose line and rig were measured now: what is worse, or missing.
pub(crate) fn compare(now: &[Row], committed: &[Row]) -> Vec<String> {
    let measured = |row: &&Row| now.iter().any(|n| n.line == row.line && n.rig == row.rig);
    committed
        .iter()
        .filter(measured)
        .filter_map(|before| match now.iter().find(|row| row.same(before)) {
            Some(row) => row.worse_than(before),
            None => Some(format!("{}: is no more", before.name())),
        })
        .collect()
}

/// The committed rows with what was measured now in the place of what it replaces.
pub(crate) fn merge(now: &[Row], committed: Vec<Row>) -> Vec<Row> {
    let measured = |row: &Row| now.iter().any(|n| n.line == row.line && n.rig == row.rig);
    let mut rows: Vec<_> = committed.into_iter().filter(|r| !measured(r)).collect();
    rows.extend(now.iter().cloned());
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: Kind, c: f64, ours: f64) -> Row {
        Row {
            line: "P1".to_owned(),
            rig: "memory".to_owned(),
            what: "READ".to_owned(),
            unit: "insn".to_owned(),
            kind,
            more: false,
            c: Some(c),
            ours: Some(ours),
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_ratio_may_be_a_little_worse() {
        let before = row(Kind::Exact, 1000.0, 1100.0);
        let now = |kind, worse: f64| row(kind, 2000.0, 2200.0 * worse);
        assert_eq!(now(Kind::Exact, 1.029).worse_than(&before), None);
        let text = now(Kind::Exact, 1.031).worse_than(&before).unwrap();
        assert!(
            text.starts_with("P1 (memory): READ: ratio 1.134, was 1.100"),
            "{text}"
        );
        assert_eq!(now(Kind::Exact, 0.5).worse_than(&before), None);
        assert_eq!(now(Kind::Sampled, 1.031).worse_than(&before), None);
        assert!(now(Kind::Sampled, 1.061).worse_than(&before).is_some());
        assert_eq!(now(Kind::Time, 9.0).worse_than(&before), None);
    }

    #[test]
    fn more_may_be_better() {
        let mut before = row(Kind::Exact, 10.0, 100.0);
        before.more = true;
        let now = |ours| Row {
            ours: Some(ours),
            ..before.clone()
        };
        assert_eq!(now(97.1).worse_than(&before), None);
        assert!(now(96.9).worse_than(&before).is_some());
        assert_eq!(now(900.0).worse_than(&before), None);
    }

    #[test]
    fn without_a_ratio_ours_is_compared() {
        let before = row(Kind::Exact, 0.0, 0.0);
        assert_eq!(before.ratio(), None);
        assert_eq!(row(Kind::Exact, 0.0, 0.0).worse_than(&before), None);
        assert!(row(Kind::Exact, 0.0, 1.0).worse_than(&before).is_some());
    }

    #[test]
    fn what_is_missing_is_told_but_not_what_did_not_run() {
        let mut other = row(Kind::Exact, 1.0, 1.0);
        other.line = "P2".to_owned();
        let committed = [row(Kind::Exact, 10.0, 10.0), other];
        let mut now = row(Kind::Exact, 10.0, 10.0);
        assert!(compare(&[now.clone()], &committed).is_empty());
        now.ours = None;
        assert_eq!(compare(&[now.clone()], &committed).len(), 1);
        now.what = "another".to_owned();
        assert!(compare(&[now], &committed)[0].ends_with("is no more"));
        assert!(compare(&[], &committed).is_empty());
    }

    #[test]
    fn rows_survive_the_file() {
        let mut before = row(Kind::Sampled, 37_706.123, 39_005.5);
        let read = Row::parse(&before.json()).unwrap();
        assert_eq!(read.c, Some(37_706.0));
        before.c = read.c;
        before.ours = read.ours;
        assert_eq!(read, before);
        assert!(Row::parse(&json!({ "line": "P1" })).is_none());
    }

    #[test]
    fn what_was_not_measured_stays() {
        let mut other = row(Kind::Exact, 1.0, 1.0);
        other.rig = "transport".to_owned();
        let committed = vec![row(Kind::Exact, 10.0, 10.0), other.clone()];
        let now = row(Kind::Exact, 5.0, 5.0);
        let merged = merge(std::slice::from_ref(&now), committed);
        assert_eq!(merged, [other, now]);
    }
}
