#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Is a driver that skips one zap caught, and one that skips none not accused?

usage: skipped_zap.py --dev NAME --expect clean|caught

Runs odp_zap and looks at the violations that the software ConnectX has counted. With
`--expect caught` the device must have seen at least one access through a translation
that was taken back; whether stale data came along depends on who owns the page now and
on the IOMMU, and is told, not judged. If the device runs with --strict, it ends the
machine at the first violation (exit status 3): then this program does not return, and
whoever started the machine sees it.
"""

import argparse
import sys

import conformance


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", required=True, help="RDMA device")
    parser.add_argument("--expect", required=True, choices=("clean", "caught"))
    args = parser.parse_args()
    if not conformance.has_control():
        sys.exit("skipped_zap.py: needs the software ConnectX's control port")
    before = conformance.control(cmd="violations")["count"]
    status, lines = conformance.run_program("odp_zap", "--dev", args.dev)
    if len(lines) != 1:
        sys.exit(f"skipped_zap.py: odp_zap ended with status {status} and no result")
    after = conformance.control(cmd="violations")
    count = after["count"] - before
    fields = {"violations": count, "data_ok": lines[0]["ok"]}
    if count:
        fields["first"] = after["violations"][-count:][0]
    if "detail" in lines[0]:
        fields["data_detail"] = lines[0]["detail"]
    ok = count > 0 if args.expect == "caught" else not count and lines[0]["ok"]
    results = conformance.Results()
    results.emit(f"zap-{args.expect}", ok, **fields)
    sys.exit(results.status())


if __name__ == "__main__":
    main()
