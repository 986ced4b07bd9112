// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB

//! What is measured.

use super::figure::{Figure, Source};
use super::rig::{Rig, COUNTED};
use crate::vm::Scheme;

/// A line of the bench.
pub(crate) struct Line {
    /// As odp_bench calls it.
    pub(crate) name: &'static str,
    /// What it measures.
    pub(crate) what: &'static str,
    /// The hardware it runs on.
    pub(crate) rigs: &'static [Rig],
    /// Its rows, in groups.
    pub(crate) figures: &'static [&'static [Figure]],
}

impl Line {
    /// Its rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Figure> {
        self.figures.iter().copied().flatten()
    }
}

/// The names of all lines.
pub(crate) fn names() -> Vec<&'static str> {
    LINES.iter().map(|line| line.name).collect()
}

const DRIVERS: Source = Source::Modules(&["mlx5_ib", "ib_core"]);
const FAULTS: Source = Source::Sum(&[
    "device.faults_memory",
    "device.faults_wqe_requester",
    "device.faults_wqe_responder",
    "device.faults_rdma",
]);
const UMRS: Source = Source::Sum(&["device.umr_wqes"]);
const RESUMES: Source = Source::Sum(&["device.resumes_ok"]);

const fn figure(
    section: &'static str,
    what: &'static str,
    source: Source,
    scale: f64,
    unit: &'static str,
) -> Figure {
    Figure {
        section,
        what,
        source,
        scale,
        unit,
        more: false,
    }
}

/// Instructions of all kernel contexts for each of the section's n.
const fn kernel(section: &'static str, what: &'static str) -> Figure {
    figure(section, what, Source::Kernel, 1.0, "insn")
}

/// The same of the two drivers only.
const fn drivers(section: &'static str, what: &'static str) -> Figure {
    figure(section, what, DRIVERS, 1.0, "insn")
}

/// The same of kernel threads, by schedstat.
const fn threads(section: &'static str, what: &'static str) -> Figure {
    figure(section, what, Source::Tasks { own: false }, 1.0, "ns")
}

/// Millions of instructions of all kernel contexts, of the whole section.
const fn millions(section: &'static str, what: &'static str) -> Figure {
    figure(section, what, Source::Kernel, 1e-6, "Minsn")
}

/// The same of kernel threads and the program, by schedstat.
const fn tasks(section: &'static str, what: &'static str) -> Figure {
    figure(section, what, Source::Tasks { own: true }, 1e-6, "ms")
}

/// KiB of kernel memory for each of the section's n.
const fn memory(section: &'static str, what: &'static str, unit: &'static str) -> Figure {
    figure(section, what, Source::Sum(&["kernel_kib"]), 1.0, unit)
}

/// The same of the IOMMU's page tables.
const fn iommu(section: &'static str, what: &'static str, unit: &'static str) -> Figure {
    figure(section, what, Source::Sum(&["iommu_kib"]), 1.0, unit)
}

/// Faults a second.
const fn rate(section: &'static str, what: &'static str) -> Figure {
    Figure {
        more: true,
        ..figure(section, what, Source::Rate, 0.0, "/s")
    }
}

/// How often something happened in the whole section.
const fn count(section: &'static str, what: &'static str, source: Source) -> Figure {
    figure(section, what, source, 0.0, "")
}

/// Of one kind of fault: all kernel contexts, kernel threads alone, the drivers alone.
macro_rules! faults {
    ($($section:literal $what:literal),* $(,)?) => {
        [$(
            kernel($section, $what),
            threads($section, concat!($what, ", kernel threads")),
            drivers($section, concat!($what, ", mlx5_ib + ib_core")),
        )*]
    };
}

/// Of system calls that are a section each: all kernel contexts, and schedstat's figure.
macro_rules! calls {
    ($($section:literal $what:literal),* $(,)?) => {
        [$(
            millions($section, $what),
            tasks($section, concat!($what, ", run time")),
        )*]
    };
}

/// Hits of kprobes.
macro_rules! probes {
    ($($section:literal $what:literal),* $(,)?) => {
        [$(
            count($section, concat!($what, ": links"), Source::Sum(&["probe.dma_iova_link"])),
            count($section, concat!($what, ": syncs"), Source::Sum(&["probe.dma_iova_sync"])),
            count($section, concat!($what, ": unlinks"), Source::Sum(&["probe.dma_iova_unlink"])),
            count($section, concat!($what, ": flushes"), Source::Sum(&["probe.qi_submit_sync"])),
        )*]
    };
}

/// What the lines measure.
pub(crate) const LINES: &[Line] = &[
    Line {
        name: "P1",
        what: "one fault of 4 KiB: kernel instructions",
        rigs: &[
            COUNTED,
            Rig::Counted {
                iommu: false,
                scheme: Scheme::Memory,
            },
            Rig::Counted {
                iommu: true,
                scheme: Scheme::Transport,
            },
            Rig::Counted {
                iommu: false,
                scheme: Scheme::Transport,
            },
        ],
        figures: &[&faults! {
            "read" "READ of a present page",
            "write-shuffled" "WRITE to a present page, in no order",
            "local-source" "WRITE from a present page",
            "first-touch" "WRITE to a page that nobody has",
        }],
    },
    Line {
        name: "P2",
        what: "64 MiB in WRITEs of 64 KiB: faults for each GiB, kernel instructions",
        rigs: &[COUNTED],
        figures: &[&[
            figure(
                "first-touch-4k",
                "absent, 4 KiB pages: faults",
                FAULTS,
                1024.0,
                "/GiB",
            ),
            figure(
                "first-touch-4k",
                "absent, 4 KiB pages: UMRs",
                UMRS,
                1024.0,
                "/GiB",
            ),
            figure(
                "first-touch-thp",
                "absent, THP: faults",
                FAULTS,
                1024.0,
                "/GiB",
            ),
            figure(
                "shuffled-thp",
                "absent, THP, in no order: faults",
                FAULTS,
                1024.0,
                "/GiB",
            ),
            count("sparse", "one page in 512, absent: faults", FAULTS),
            count(
                "sparse",
                "one page in 512, absent: pages that there are then",
                Source::Sum(&["resident"]),
            ),
            figure(
                "present-4k",
                "present, 4 KiB pages: faults",
                FAULTS,
                1024.0,
                "/GiB",
            ),
            millions("first-touch-4k", "absent, 4 KiB pages"),
            millions("first-touch-thp", "absent, THP"),
            millions("shuffled-thp", "absent, THP, in no order"),
            millions("present-4k", "present, 4 KiB pages"),
            tasks("present-4k", "present, 4 KiB pages, run time"),
        ]],
    },
    Line {
        name: "P3",
        what: "kernel memory of a registered GiB and of an MR, IOMMU page tables apart",
        rigs: &[Rig::Real],
        figures: &[&[
            memory("untouched", "untouched", "KiB/GiB"),
            memory("touched", "touched whole", "KiB/GiB"),
            iommu("touched", "touched whole: IOMMU tables", "KiB/GiB"),
            memory("one-chunk-in-64", "one 2 MiB in 64 touched", "KiB/GiB"),
            memory(
                "one-page-a-chunk",
                "one page in each 2 MiB touched",
                "KiB/GiB",
            ),
            memory("4096-mrs-untouched", "4,096 MRs of 16 KiB", "KiB/MR"),
            memory("4096-mrs-touched", "4,096 MRs of 16 KiB, touched", "KiB/MR"),
        ]],
    },
    Line {
        name: "P4",
        what: "registering and deregistering: all kernel instructions",
        rigs: &[COUNTED],
        figures: &[
            &calls! {
                "register-1g-untouched" "register 1 GiB, untouched",
                "register-1g-none" "register 1 GiB, PROT_NONE",
                "register-64g-untouched" "register 64 GiB, untouched",
                "register-64g-none" "register 64 GiB, PROT_NONE",
                "register-256m-present" "register 256 MiB, present",
                "deregister-1g-untouched" "deregister 1 GiB, untouched",
                "deregister-64g-untouched" "deregister 64 GiB, untouched",
                "deregister-256m-present" "deregister 256 MiB, present",
            },
            &[
                count("register-64g-untouched", "register 64 GiB: UMRs", UMRS),
                count(
                    "read-256m-present",
                    "READ of what was present: faults",
                    FAULTS,
                ),
            ],
        ],
    },
    Line {
        name: "P5",
        what: "taking memory back: all kernel instructions",
        rigs: &[COUNTED],
        figures: &[
            &calls! {
                "munmap-1g-sparse" "munmap of 1 GiB, 1 % mapped",
                "dontneed-1g-sparse" "MADV_DONTNEED of 1 GiB, 1 % mapped",
                "munmap-256m-full" "munmap of 256 MiB, all mapped",
                "dontneed-256m-full" "MADV_DONTNEED of 256 MiB, all mapped",
            },
            &[
                count(
                    "munmap-1g-sparse",
                    "munmap of 1 GiB, 1 % mapped: UMRs",
                    UMRS,
                ),
                count(
                    "munmap-256m-full",
                    "munmap of 256 MiB, all mapped: UMRs",
                    UMRS,
                ),
            ],
        ],
    },
    Line {
        name: "P6",
        what: "threads fault in different 2 MiB of one MR, UMRs of 25 ms: faults a second",
        rigs: &[Rig::Real],
        figures: &[&[
            rate("1-threads", "1 thread"),
            rate("2-threads", "2 threads"),
            rate("4-threads", "4 threads"),
            rate("8-threads", "8 threads"),
        ]],
    },
    Line {
        name: "P7",
        what: "4 MiB mapped for DMA and unmapped: IOVA operations",
        rigs: &[COUNTED],
        figures: &[&probes! {
            "fault-4k" "one READ, 4 KiB pages",
            "fault-thp" "one READ, THP",
            "register-4k" "register, 4 KiB pages",
            "register-thp" "register, THP",
            "munmap-4k" "munmap, 4 KiB pages",
            "munmap-thp" "munmap, THP",
        }],
    },
    Line {
        name: "P8",
        what: "200 faults of one process while 64 of another hang in userfaultfd",
        rigs: &[Rig::Real],
        figures: &[&[
            Figure {
                more: true,
                ..count(
                    "held",
                    "served within 15 s each",
                    Source::Sum(&["completed"]),
                )
            },
            figure(
                "idle",
                "median, nothing held",
                Source::Sum(&["median_ms"]),
                0.0,
                "ms",
            ),
            figure(
                "held",
                "median, 64 held",
                Source::Sum(&["median_ms"]),
                0.0,
                "ms",
            ),
        ]],
    },
    Line {
        name: "P9",
        what: "64 QPs fault on one page at once: what it takes",
        rigs: &[COUNTED],
        figures: &[&[
            count("read", "READ: faults", FAULTS),
            count("read", "READ: UMRs", UMRS),
            count("read", "READ: resumes", RESUMES),
            count("write", "WRITE: UMRs", UMRS),
        ]],
    },
    Line {
        name: "P11",
        what: "256 faults in one 2 MiB of one MR at once: what it takes",
        rigs: &[COUNTED],
        figures: &[&[
            count("read", "faults", FAULTS),
            count("read", "UMRs", UMRS),
            count("read", "resumes", RESUMES),
        ]],
    },
    Line {
        name: "P12",
        what: "packet flood: 128 QPs READ 8 bytes of one untouched page, then each its own",
        rigs: &[COUNTED],
        figures: &[&[
            count("one-page", "one page: faults", FAULTS),
            count("one-page", "one page: UMRs", UMRS),
            count("own-page", "own pages: faults", FAULTS),
            count("own-page", "own pages: UMRs", UMRS),
        ]],
    },
    Line {
        name: "P13",
        what: "register 256 MiB, WRITE once in 64 KiB, deregister: all kernel instructions",
        rigs: &[COUNTED],
        figures: &[&calls! {
            "pinned-4k" "pinned, 4 KiB pages",
            "odp-4k" "on demand, 4 KiB pages",
            "pinned-thp" "pinned, THP",
            "odp-thp" "on demand, THP",
        }],
    },
    Line {
        name: "unmap64",
        what: "one munmap over 64 MRs, UMRs of 25 ms: how many of these it waits for",
        rigs: &[Rig::Real],
        figures: &[&[
            figure("munmap", "wall time", Source::Delays, 0.0, "UMRs"),
            count("munmap", "UMRs", UMRS),
        ]],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_rows_are_told_apart() {
        let names = names();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name} twice");
        }
        for line in LINES {
            assert!(!line.rigs.is_empty());
            for figure in line.rows() {
                let twins = line.rows().filter(|other| other.what == figure.what);
                assert_eq!(twins.count(), 1, "{} {}", line.name, figure.what);
                // Instructions take a rig that counts them.
                if matches!(figure.source, Source::Kernel | Source::Modules(_)) {
                    assert!(line.rigs.iter().all(|rig| rig.counted()), "{}", line.name);
                }
            }
        }
    }
}
