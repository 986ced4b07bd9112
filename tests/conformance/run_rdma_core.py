#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run all of rdma-core's tests, unmodified, one JSON line each and one with the sums.

A test that fails or ends in an error fails the run; so do fewer passes than --passes.
Takes five minutes on an emulated processor. Three tests need huge pages, which are set
aside for as long as the tests run.
"""

import argparse
import importlib
import os
import sys
import time
import unittest

import conformance

HUGEPAGES = "/proc/sys/vm/nr_hugepages"
# Of 2 MiB: what test_mlx5_huge_page.py and the huge tests of test_odp.py take, and more.
NEEDED_HUGEPAGES = 32

RESULTS = "pass", "skip", "fail", "error"


class Lines(unittest.TestResult):
    """A line for each test as it ends. In those of implicit MRs the device sends each message
    `delay_ms` after it was posted, if that is not 0."""

    def __init__(self, results, delay_ms=0):
        super().__init__()
        self.results = results
        self.delay_ms = delay_ms
        self.rule = None
        self.sums = dict.fromkeys(RESULTS, 0)
        self.start = time.monotonic()

    def startTest(self, test):
        super().startTest(test)
        if self.delay_ms and "implicit" in test.id():
            text = f"message do=delay ms={self.delay_ms}"
            self.rule = conformance.control(cmd="rule", add=text)["id"]
        self.start = time.monotonic()

    def stopTest(self, test):
        super().stopTest(test)
        if self.rule is not None:
            conformance.control(cmd="remove-rule", id=self.rule)
            self.rule = None

    def line(self, test, result, detail=""):
        """One test ended."""
        self.sums[result] += 1
        self.results.emit("rdma-core", result in ("pass", "skip"), case=test.id(),
                          result=result, seconds=round(time.monotonic() - self.start, 3),
                          detail=detail)

    def broken(self, test, result, err):
        """One test raised something; the whole of it goes to stderr."""
        trace = self._exc_info_to_string(err, test).strip()
        print(trace, file=sys.stderr)
        self.line(test, result, trace.splitlines()[-1])

    def addSuccess(self, test):
        super().addSuccess(test)
        self.line(test, "pass")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line(test, "skip", reason)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.broken(test, "fail", err)

    def addError(self, test, err):
        super().addError(test, err)
        self.broken(test, "error", err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.broken(subtest, "fail", err)


def load(target, dev, patterns):
    """The suite that run_tests.py would run."""
    sys.path[:0] = [target, os.path.join(target, "tests")]
    sys.argv = ["run_tests.py", "--dev", dev]
    parser = importlib.import_module("args_parser").parser
    parser.parse_args()
    loader = unittest.TestLoader()
    # As unittest's -k does.
    loader.testNamePatterns = [p if "*" in p else f"*{p}*" for p in patterns] or None
    return loader.loadTestsFromModule(importlib.import_module("tests"))


def set_hugepages(count):
    """Sets huge pages aside; returns how many there were."""
    with open(HUGEPAGES, "r+", encoding="ascii") as file:
        before = int(file.read())
        file.seek(0)
        file.write(str(count))
    return before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dev", required=True, help="RDMA device")
    parser.add_argument("--tests", default="/tmp/rdma-core",
                        help="where the unpacked tests are, or go (%(default)s)")
    parser.add_argument("--passes", type=int, default=1, metavar="N",
                        help="fail if fewer tests pass (%(default)s)")
    parser.add_argument("--delay-implicit", type=int, default=0, metavar="MS",
                        help="in tests of implicit MRs the software ConnectX sends so late "
                             "that the C driver does not lose its race (c-driver.md #14)")
    parser.add_argument("-k", dest="patterns", action="append", default=[],
                        metavar="PATTERN", help="only tests whose name has it")
    args = parser.parse_args()
    suite = load(conformance.unpack_tests(args.tests), args.dev, args.patterns)
    results = conformance.Results()
    lines = Lines(results, args.delay_implicit)
    before = set_hugepages(NEEDED_HUGEPAGES)
    try:
        suite.run(lines)
    finally:
        set_hugepages(before)
    enough = lines.sums["pass"] >= args.passes
    results.emit("rdma-core-sums", enough, **lines.sums, tests=lines.testsRun,
                 detail="" if enough else f"fewer than {args.passes} passed")
    sys.exit(results.status())


if __name__ == "__main__":
    main()
