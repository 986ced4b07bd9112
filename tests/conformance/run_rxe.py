#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run rdma-core's ODP tests on rdma_rxe: on the distribution's ib_core, then on ours.

`run_tests.py --dev rxe0 -v -k odp` must give the same result for each test. Prints one
JSON line per test, with both results, and one with the sums. Loads and unloads the
RDMA stack by rdma-stack (tests/testbed/guest/bin).
"""

import argparse
import re
import subprocess
import sys

import conformance

# "test_x (tests.test_odp.OdpTestCase.test_x) ... ok"; a docstring may stand between.
NAME = re.compile(r"^(test_\w+) \(([\w.]+)\)")
END = re.compile(r" \.\.\. (ok|skipped|FAIL|ERROR|expected failure)\b")


def run(*command):
    """Runs a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"run_rxe.py: {' '.join(command)}: {done.stderr.strip()}")


def parse(log):
    """Returns {test: result} of unittest's verbose output."""
    found, name = {}, None
    for line in log.splitlines():
        start, end = NAME.match(line), END.search(line)
        if start:
            name = start.group(2)
        if end and name:
            found[name], name = end.group(1), None
    return found


def test(stack, target):
    """Loads STACK and runs the tests on a fresh rxe0; returns {test: result}."""
    run("rdma-stack", "load", stack)
    run("modprobe", "rdma_rxe")
    run("modprobe", "dummy", "numdummies=0")
    run("ip", "link", "add", "odp0", "type", "dummy")
    run("ip", "link", "set", "odp0", "mtu", "4200", "up")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "odp0")
    run("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "odp0")
    done = subprocess.run([sys.executable, f"{target}/tests/run_tests.py", "--dev", "rxe0",
                           "-v", "-k", "odp"], capture_output=True, text=True, check=False)
    run("rdma", "link", "delete", "rxe0")
    run("ip", "link", "delete", "odp0")
    run("rdma-stack", "unload")
    found = parse(done.stderr)
    if not found:
        sys.exit(f"run_rxe.py: no test ran:\n{done.stderr}")
    return found


def sums(results):
    """How many of one side's tests passed and were skipped."""
    words = list(results.values())
    return {word: words.count(word) for word in ("ok", "skipped")}


def sums_agree(first, second):
    """The same on both sides; and some test has to have passed for that to mean a thing."""
    return first == second and first["ok"] > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", default="/tmp/rdma-core",
                        help="where the unpacked tests are, or go (%(default)s)")
    parser.add_argument("--stacks", nargs=2, default=("c", "rust"),
                        help="two stacks of rdma-stack (%(default)s)")
    args = parser.parse_args()
    target = conformance.unpack_tests(args.tests)
    # Nothing may be loaded: the first stack is the distribution's.
    run("rdma-stack", "unload")
    first, second = (test(stack, target) for stack in args.stacks)
    results = conformance.Results()
    for name in sorted(first.keys() | second.keys()):
        theirs, ours = first.get(name, "missing"), second.get(name, "missing")
        same = theirs == ours and theirs in ("ok", "skipped")
        results.emit("rxe", same, case=name.rsplit(".", maxsplit=1)[-1],
                     **{args.stacks[0]: theirs, args.stacks[1]: ours})
    both = sums(first), sums(second)
    results.emit("rxe-sums", sums_agree(*both), **dict(zip(args.stacks, both)))
    sys.exit(results.status())


if __name__ == "__main__":
    main()
