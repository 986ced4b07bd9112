#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run rdma-core's RC ODP tests, unmodified, one JSON line each.

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
# have been mapped in by the registration.
TESTS = {
    "test_odp_rc_traffic": True,
    "test_odp_rc_mixed_mr": True,
    "test_odp_rc_rdma_read": True,
    "test_odp_rc_rdma_write": True,
    "test_odp_rc_atomic_cmp_and_swp": False,
    "test_odp_rc_atomic_fetch_and_add": False,
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


def run(case, dev, name, results):
    """Runs one test."""
    log = io.StringIO()
    before, start = conformance.counters(dev), time.monotonic()
    outcome = unittest.TextTestRunner(stream=log, verbosity=0).run(case(name))
    seconds = time.monotonic() - start
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
    parser.add_argument("name", nargs="*", default=list(TESTS),
                        help="tests of OdpTestCase (default: the RC tests)")
    args = parser.parse_args()
    case = load(conformance.unpack_tests(args.tests), args.dev)
    results = conformance.Results()
    for name in args.name:
        run(case, args.dev, name, results)
    sys.exit(results.status())


if __name__ == "__main__":
    main()
