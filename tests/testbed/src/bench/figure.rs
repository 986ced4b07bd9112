// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! Figures: where each comes from, and how far it is to be trusted.

use super::section::Section;

/// How a figure was got, hence how much it may move by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Instructions, counted one by one; events of the device or of a kprobe.
    Exact,
    /// Run time of tasks (schedstat), kernel memory.
    Sampled,
    /// Wall time: an order of magnitude.
    Time,
}

impl Kind {
    /// In JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Sampled => "sampled",
            Self::Time => "time",
        }
    }

    /// The one called `name`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Exact, Self::Sampled, Self::Time]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// By what part a ratio may be worse than the committed one; none for figures that are
    /// not compared.
    pub(crate) fn tolerance(self) -> Option<f64> {
        match self {
            Self::Exact => Some(0.03),
            Self::Sampled => Some(0.06),
            Self::Time => None,
        }
    }
}

/// Where a figure comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// Instructions of all kernel contexts.
    Kernel,
    /// Instructions in these modules.
    Modules(&'static [&'static str]),
    /// Run time of kernel threads, and of the program's system calls where `own`.
    Tasks {
        /// With the program's own time: for sections that are system calls.
        own: bool,
    },
    /// The sum of these numbers.
    Sum(&'static [&'static str]),
    /// The section's n for each second.
    Rate,
    /// Wall time, in delays of the device's UMRs.
    Delays,
}

impl Source {
    /// How it is got.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Kernel | Self::Modules(_) => Kind::Exact,
            Self::Tasks { .. } => Kind::Sampled,
            Self::Sum(keys) if keys.iter().any(|key| key.ends_with("_kib")) => Kind::Sampled,
            Self::Sum(keys) if keys.iter().any(|key| key.ends_with("_ms")) => Kind::Time,
            Self::Sum(_) => Kind::Exact,
            Self::Rate | Self::Delays => Kind::Time,
        }
    }

    /// The number of one round.
    fn of(self, section: &Section) -> Option<f64> {
        let count = |n: u64| {
            // Below 2^53 by far.
            #[allow(clippy::cast_precision_loss)]
            let n = n as f64;
            n
        };
        match self {
            Self::Kernel => Some(count(section.profile.as_ref()?.kernel)),
            Self::Modules(names) => Some(count(section.profile.as_ref()?.in_modules(names))),
            Self::Tasks { own } => {
                let kthreads = section.number("kthreads_ns")?;
                let own = if own { section.number("self_ns")? } else { 0.0 };
                Some(kthreads + own)
            }
            Self::Sum(keys) => keys.iter().map(|key| section.number(key)).sum(),
            Self::Rate => Some(section.n / section.number("seconds")?),
            Self::Delays => Some(section.number("seconds")? * 1000.0 / UMR_DELAY_MS),
        }
    }
}

/// Of `SLOW_UPDATES` in `tests/conformance/bench_many.c`.
const UMR_DELAY_MS: f64 = 25.0;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    /// The section of the line.
    pub(crate) section: &'static str,
    /// What it is.
    pub(crate) what: &'static str,
    /// Where it comes from.
    pub(crate) source: Source,
    /// What the number, over the section's n, is multiplied by; 0 for one that is not
    /// divided.
    pub(crate) scale: f64,
    /// Of the result.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more: bool,
}

impl Figure {
    /// Its value in one round.
    pub(crate) fn value(&self, section: &Section) -> Option<f64> {
        let number = self.source.of(section)?;
        Some(if self.scale == 0.0 {
            number
        } else {
            number * self.scale / section.n
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UMRS: Source = Source::Sum(&["device.umr_wqes"]);

    fn figure(source: Source, scale: f64) -> Figure {
        Figure {
            section: "",
            what: "",
            source,
            scale,
            unit: "",
            more: false,
        }
    }

    #[test]
    fn figures_are_scaled() {
        let mut section = Section {
            n: 64.0,
            ..Section::default()
        };
        section.numbers.insert("device.umr_wqes".to_owned(), 1024.0);
        section.numbers.insert("seconds".to_owned(), 0.5);
        let scaled = |scale| figure(UMRS, scale).value(&section);
        assert_eq!(scaled(1024.0), Some(16384.0));
        assert_eq!(scaled(0.0), Some(1024.0));
        assert_eq!(figure(Source::Rate, 0.0).value(&section), Some(128.0));
        assert_eq!(figure(Source::Delays, 0.0).value(&section), Some(20.0));
        assert_eq!(figure(Source::Kernel, 1.0).value(&section), None);
    }
}
