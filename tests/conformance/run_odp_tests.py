#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run rdma-core's ODP tests on RC, UD and XRC, unmodified, one JSON line each.

With a software ConnectX the line tells the faults the device raised meanwhile, and a
test that must fault but did not is a failure. Loads tests/test_odp.py alone: importing
all of rdma-core's tests takes half a minute on an emulated processor.
"""

import argparse
import io
import os
import sys
import time
import types
import unittest

import conformance

# Name -> must it fault? The two atomic tests do not call madvise: their memory may
# have been mapped in by the registration. What is prefetched is dropped before it is used.
TESTS = {
    "test_odp_rc_traffic": True,
    "test_odp_rc_mixed_mr": True,
    "test_odp_rc_rdma_read": True,
    "test_odp_rc_rdma_write": True,
    "test_odp_rc_atomic_cmp_and_swp": False,
    "test_odp_rc_atomic_fetch_and_add": False,
    "test_odp_ud_traffic": True,
    "test_odp_xrc_traffic": True,
    "test_odp_implicit_rc_traffic": True,
    "test_odp_sync_prefetch_rc_traffic": True,
    "test_odp_async_prefetch_rc_traffic": True,
    "test_odp_prefetch_sync_no_page_fault_rc_traffic": True,
    "test_odp_prefetch_async_no_page_fault_rc_traffic": True,
    "test_odp_implicit_sync_prefetch_rc_traffic": True,
    "test_odp_implicit_async_prefetch_rc_traffic": True,
}


def load(target, dev):
    """Imports tests.test_odp as run_tests.py would, without its siblings."""
    folder = os.path.join(target, "tests")
    sys.path[:0] = [target, folder]
    package = types.ModuleType("tests")
    package.__path__ = [folder]
    sys.modules["tests"] = package
    sys.argv = ["run_tests.py", "--dev", dev]
    from args_parser import parser  # pylint: disable=import-outside-toplevel,import-error
    parser.parse_args()
    __import__("tests.test_odp")
    return sys.modules["tests.test_odp"].OdpTestCase


def run(case, dev, name, results, delay_ms=0):
    """Runs one test; of implicit MRs with messages that are late."""
    log = io.StringIO()
    rule = None
    if delay_ms and "implicit" in name:
        rule = conformance.control(cmd="rule", add=f"message do=delay ms={delay_ms}")["id"]
    before, start = conformance.counters(dev), time.monotonic()
    outcome = unittest.TextTestRunner(stream=log, verbosity=0).run(case(name))
    seconds = time.monotonic() - start
    if rule is not None:
        conformance.control(cmd="remove-rule", id=rule)
    after = conformance.counters(dev)
    fields = {"seconds": round(seconds, 3), "faults": conformance.faults(before, after)}
    ok, state = outcome.wasSuccessful() and not outcome.skipped, "pass"
    if outcome.skipped:
        state, fields["detail"] = "skip", outcome.skipped[0][1]
    elif not ok:
        state = "fail"
        trace = (outcome.failures + outcome.errors)[0][1].strip()
        fields["detail"] = trace.splitlines()[-1]
        print(trace, file=sys.stderr)
    elif TESTS.get(name) and fields["faults"] == 0:
        ok, fields["detail"] = False, "the device raised no fault"
    results.emit(name, ok, result=state, **fields)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", required=True, help="RDMA device")
    parser.add_argument("--tests", default="/tmp/rdma-core",
                        help="where the unpacked tests are, or go (%(default)s)")
    parser.add_argument("--delay-implicit", type=int, default=0, metavar="MS",
                        help="in tests of implicit MRs the software ConnectX sends so late "
                             "(c-driver.md, 14)")
    parser.add_argument("name", nargs="*", default=list(TESTS),
                        help="tests of OdpTestCase (default: all but those in huge pages)")
    args = parser.parse_args()
    case = load(conformance.unpack_tests(args.tests), args.dev)
    results = conformance.Results()
    for name in args.name:
        run(case, args.dev, name, results, args.delay_implicit)
    sys.exit(results.status())


if __name__ == "__main__":
    main()
