#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Is a translation caught that was not taken back, and a driver that takes all back not accused?

usage: skipped_zap.py --dev NAME --expect clean|caught

Runs odp_zap and looks at the violations that the software ConnectX has counted. With
`--expect caught` a rule lets the device complete the third zap, a UMR that takes
translations back, without doing it; it must then have seen at least one access through a
translation that was taken back. Whether stale data came along depends on who owns the page
now and on the IOMMU, and is told, not judged. If the device runs with --strict, it ends the
machine at the first violation (exit status 3): then this program does not return, and
whoever started the machine sees it.
"""

import argparse
import sys

import conformance

RULE = "umr kind=zap after=2 times=1 do=complete"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", required=True, help="RDMA device")
    parser.add_argument("--expect", required=True, choices=("clean", "caught"))
    args = parser.parse_args()
    if not conformance.has_control():
        sys.exit("skipped_zap.py: needs the software ConnectX's control port")
    before = conformance.control(cmd="violations")["count"]
    caught = args.expect == "caught"
    if caught:
        rule = conformance.control(cmd="rule", add=RULE)["id"]
    status, lines = conformance.run_program("odp_zap", "--dev", args.dev)
    if len(lines) != 1:
        sys.exit(f"skipped_zap.py: odp_zap ended with status {status} and no result")
    if caught:
        acts = {r["id"]: r["acts"] for r in conformance.control(cmd="rules")["rules"]}
        if acts[rule] != 1:
            sys.exit("skipped_zap.py: the device has skipped no zap")
        conformance.control(cmd="remove-rule", id=rule)
    after = conformance.control(cmd="violations")
    count = after["count"] - before
    fields = {"violations": count, "data_ok": lines[0]["ok"]}
    if count:
        fields["first"] = after["violations"][-count:][0]
    if "detail" in lines[0]:
        fields["data_detail"] = lines[0]["detail"]
    ok = count > 0 if caught else not count and lines[0]["ok"]
    results = conformance.Results()
    results.emit(f"zap-{args.expect}", ok, **fields)
    sys.exit(results.status())


if __name__ == "__main__":
    main()
