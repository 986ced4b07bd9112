#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Check that the device's counters agree with `rdma statistic`.

Runs odp_stats: one ODP MR of N pages, 64 KiB operations one at a time from a pinned
buffer, so that each device fault concerns this MR and each stalled operation has one
ODP segment. All rules are about what was counted during one phase:

  quiet    nothing faults where no page is absent: page_faults, page_faults_handled and
           the device's faults are all 0; likewise page_invalidations and the entries
           cleared where no page was taken away
  events   page_faults_handled == the device's faults - its resumes with error
           (restrack counts a fault event when it has been served)
  resumes  the device's resumes == its faults: every stall is resumed, once
  pages    page_faults counts the pages of the ranges that the faults were about, and
           page_prefetch those that were brought in besides: both together are at least the
           pages that were absent, and page_faults all of those of the operations that
           faulted at most (the transport scheme names the whole operation)
  entries  the device's valid entries written >= the pages that were absent, and at most
           7 entries before and 7 after each fault's range more than these two (a UMR
           writes entries in groups of 8, those around with their present value)
  zaps     page_invalidations == the pages that were present and taken away, or more by
           one for each run of pages but the last (the C driver adds one for a run that
           ends at a hole: c-driver.md #12); the device's entries cleared >= them
"""

import argparse
import sys

import conformance

OP_PAGES = 16

# phase -> (absent pages accessed, present pages taken away, runs they form), of N pages.
PHASES = {
    "register-absent": lambda n: (0, 0, 0),
    "nothing": lambda n: (0, 0, 0),
    "write-absent": lambda n: (n, 0, 0),
    "write-present": lambda n: (0, 0, 0),
    "drop-present": lambda n: (0, n, 1),
    "drop-absent": lambda n: (0, 0, 0),
    "write-dropped": lambda n: (n, 0, 0),
    "drop-half": lambda n: (0, n // 2, n // 16),
    "write-half": lambda n: (n // 2, 0, 0),
    "unmap": lambda n: (0, n, 1),
}


def broken_rules(line):
    """Returns the rules that one phase breaks, as text."""
    absent, taken, runs = PHASES[line["phase"]](line["pages"])
    bad = []

    def rule(name, holds, text):
        if not holds:
            bad.append(f"{name}: {text}")

    faults, events = line["page_faults"], line["page_faults_handled"]
    zapped, besides = line["page_invalidations"], line["page_prefetch"]
    rule("pages", absent <= faults + besides and faults <= OP_PAGES * events,
         f"page_faults {faults} and page_prefetch {besides} in {events} events, "
         f"{absent} pages were absent")
    rule("zaps", taken <= zapped <= taken + max(runs - 1, 0),
         f"page_invalidations {zapped}, {taken} pages were taken away in {runs} runs")
    rule("quiet", absent or not events, f"page_faults_handled {events} without an absent page")
    if "device_resumes_ok" not in line:
        return bad
    raised, errors = line["faults"], line["device_resumes_error"]
    resumed = line["device_resumes_ok"] + errors
    entries, cleared = line["device_mtts_set"], line["device_mtts_cleared"]
    rule("events", events == raised - errors,
         f"page_faults_handled {events}, the device raised {raised}, {errors} failed")
    rule("resumes", resumed == raised, f"{resumed} resumes of {raised} faults")
    rule("entries", absent <= entries <= faults + besides + 14 * raised,
         f"{entries} entries set, {absent} pages were absent, page_faults {faults} "
         f"and page_prefetch {besides} in {raised} faults")
    rule("zaps", cleared >= taken, f"{cleared} entries cleared for {taken} pages")
    # Registration writes the whole table as absent; only later phases can be quiet.
    if not absent and not taken and line["phase"] != "register-absent":
        rule("quiet", not raised and not cleared,
             f"{raised} faults and {cleared} cleared entries without a reason")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", required=True, help="RDMA device, otherwise unused")
    parser.add_argument("--pages", type=int, default=512, help="pages of the MR (%(default)s)")
    args = parser.parse_args()
    status, lines = conformance.run_program("odp_stats", "--dev", args.dev,
                                            "--pages", str(args.pages))
    results = conformance.Results()
    if [line["phase"] for line in lines] != list(PHASES):
        results.emit("stats", False, detail=f"odp_stats ended early with status {status}")
    for line in lines:
        if "page_faults" not in line:
            sys.exit(f"stats_check.py: {args.dev} has no statistics of ODP MRs")
        bad = broken_rules(line) if line["ok"] else [line["detail"]]
        line.pop("test"), line.pop("ok"), line.pop("detail", None)
        results.emit("stats", not bad, **line, **({"detail": "; ".join(bad)} if bad else {}))
    sys.exit(results.status())


if __name__ == "__main__":
    main()
