#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run all of rdma-core's tests, unmodified, one JSON line each and one with the sums.

A test that fails or ends in an error fails the run; so do fewer passes than --passes, and with
--skips a skip that the file does not expect, or one less. Takes five minutes on an emulated
processor. Some tests need huge pages, and those of rdma_cm an IPoIB interface; both are there
for as long as the tests run.
"""

import argparse
import collections
import fnmatch
import importlib
import os
import sys
import time
import tomllib
import unittest

import conformance
import ipoib

HUGEPAGES = "/proc/sys/vm/nr_hugepages"
# Of 2 MiB: what test_mlx5_huge_page.py and the huge tests of test_odp.py take, and more.
NEEDED_HUGEPAGES = 32

RESULTS = "pass", "skip", "fail", "error"


class Skips:
    """Which tests are expected to be skipped, and why: a TOML file of entries with a `reason`
    and a list of `tests`, each a name or a pattern. Without a file every skip is expected."""

    def __init__(self, path=None):
        self.entries = None
        self.seen = collections.Counter()
        if path:
            with open(path, "rb") as file:
                self.entries = [(entry["reason"], name) for entry in tomllib.load(file)["skip"]
                                for name in entry["tests"]]

    def reason(self, test_id):
        """Why the test is skipped; None if nobody expects it."""
        if self.entries is None:
            return ""
        for reason, name in self.entries:
            if fnmatch.fnmatchcase(test_id, name):
                self.seen[name] += 1
                return reason
        return None

    def unused(self):
        """Entries that no skip was looked up in."""
        return [name for _, name in self.entries or [] if not self.seen[name]]


class Lines(unittest.TestResult):
    """A line for each test as it ends. In those of implicit MRs the device sends each message
    `delay_ms` after it was posted, if that is not 0."""

    def __init__(self, results, delay_ms=0, skips=Skips()):
        super().__init__()
        self.results = results
        self.skips = skips
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

    def line(self, test, result, detail="", expected=True):
        """One test ended."""
        self.sums[result] += 1
        self.results.emit("rdma-core", expected and result in ("pass", "skip"), case=test.id(),
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
        expected = self.skips.reason(test.id())
        if expected is None:
            self.line(test, "skip", f"not expected: {reason}", expected=False)
        else:
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
    parser.add_argument("--skips", metavar="FILE",
                        help="the skips that are expected, with their reasons "
                             "(rdma_core_skips.toml: software ConnectX, C driver, memory scheme)")
    args = parser.parse_args()
    suite = load(conformance.unpack_tests(args.tests), args.dev, args.patterns)
    results = conformance.Results()
    skips = Skips(args.skips)
    lines = Lines(results, args.delay_implicit, skips)
    before = set_hugepages(NEEDED_HUGEPAGES)
    try:
        with ipoib.Interface(args.dev) as interface:
            if interface.why_not:
                print(f"no tests of rdma_cm: {interface.why_not}", file=sys.stderr)
            suite.run(lines)
    finally:
        set_hugepages(before)
    if args.skips and not args.patterns:
        unused = skips.unused()
        results.emit("rdma-core-skips", not unused, unused=unused,
                     detail="these are not skipped any more" if unused else "")
    enough = lines.sums["pass"] >= args.passes
    results.emit("rdma-core-sums", enough, **lines.sums, tests=lines.testsRun,
                 detail="" if enough else f"fewer than {args.passes} passed")
    sys.exit(results.status())


if __name__ == "__main__":
    main()
