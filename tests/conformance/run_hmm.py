#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Run the kernel's own hmm-tests, unmodified, on its test_hmm.ko and on ours, in turn.

What passes on C must pass on ours. Prints one JSON line per test, with both results, and
one with the counts of both. Arguments are handed to both modules (`spm_addr_dev0=...` for
memory that is coherent with the device's). The benchmark among the tests, which moves
gigabytes and judges nothing but that, is left out unless asked for: on a busy machine it takes
longer than the two minutes that it gives itself, and C's module does not always survive
that a test is killed.

With --each every test has a module that was just loaded, C's first: the two devices' coherent
memory is 256 MiB each, and once a module has used up its own, C's ends the kernel.
"""

import argparse
import re
import subprocess
import sys

import conformance

# "ok 3 hmm.hmm_device_private.anon_read", "not ok 4 hmm.x.y",
# "ok 5 hmm.x.z # SKIP DEVICE_COHERENT not available".
LINE = re.compile(r"^(not ok|ok) \d+ (\S+)(?: # (SKIP|XFAIL|XPASS)\b)?")

# The count that the program makes itself.
TOTALS = re.compile(r"^# Totals: pass:(\d+) fail:(\d+) xfail:(\d+) xpass:(\d+) skip:(\d+) "
                    r"error:(\d+)", re.MULTILINE)

WORDS = ("pass", "skip", "fail")

BENCHMARK = "benchmark_thp_migration"


def parse(log):
    """Returns {test: "pass", "skip" or "fail"} of kselftest's output."""
    found = {}
    for line in log.splitlines():
        match = LINE.match(line)
        if match:
            verdict, name, directive = match.groups()
            words = {None: "pass", "SKIP": "skip"} if verdict == "ok" else {}
            found[name] = words.get(directive, "fail")
    return found


def counts(results):
    """How many of one side's tests passed, were skipped, failed."""
    words = list(results.values())
    return {word: words.count(word) for word in WORDS}


def totals(log):
    """The same as the program counts it; None if it did not come to its end."""
    match = TOTALS.search(log)
    if not match:
        return None
    passed, failed, xfail, xpass, skip, error = map(int, match.groups())
    return {"pass": passed, "skip": skip, "fail": failed + xfail + xpass + error}


def alike(theirs, ours):
    """Whether one test's results will do: what passes on C passes on ours. C's may fail for
    once, on a busy machine, where pages cannot be migrated; ours does not then have to."""
    return ours == "pass" if theirs == "fail" else theirs == ours and ours in ("pass", "skip")


def test(module, arguments, command):
    """Loads MODULE and runs COMMAND, the tests; returns their results and all that was said."""
    name = module.rsplit("/", maxsplit=1)[-1].removesuffix(".ko")
    loaded = subprocess.run(["insmod", module, *arguments], capture_output=True, text=True,
                            check=False)
    if loaded.returncode:
        sys.exit(f"run_hmm.py: insmod {module}: {loaded.stderr.strip()}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", check=False)
    removed = subprocess.run(["rmmod", name], capture_output=True, text=True, check=False)
    if removed.returncode:
        sys.exit(f"run_hmm.py: rmmod {name}: {removed.stderr.strip()}")
    found = parse(done.stdout)
    if totals(done.stdout) != counts(found):
        sys.exit(f"run_hmm.py: {name}: counted {counts(found)} of:\n{done.stdout}")
    return found, done.stdout


def listed(text):
    """The tests that the program lists, each as fixture, variant, test."""
    found, fixture, variants, tests = [], "", [], []
    for line in [*text.splitlines(), "---"]:
        if line.startswith("---"):
            found += [(fixture, v, t) for v in variants for t in tests]
            variants, tests = [], []
        elif not line.startswith("#"):
            # As it prints them: two columns, of 20 and of 25 characters.
            fixture = line[:21].strip() or fixture
            variants += line[21:47].split()
            tests += line[47:].split()
    return found


def one_by_one(modules, arguments, program, without):
    """Runs each test by itself on both modules; gives its name, both results, what ours said."""
    done = subprocess.run([program, "-l"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=True)
    names = listed(done.stdout)
    for fixture, variant, name in names:
        if name in without:
            continue
        others = {v for f, v, _ in names if f == fixture and v != variant}
        # What is left out comes first: the first match decides.
        command = [program, *(word for v in sorted(others) for word in ("-V", v)), "-t", name]
        whole = f"{fixture}.{variant}.{name}"
        (theirs, _), (ours, log) = (test(module, arguments, command) for module in modules)
        if {whole} != theirs.keys() | ours.keys():
            sys.exit(f"run_hmm.py: {command} ran {theirs} and {ours}")
        yield whole, (theirs[whole], ours[whole]), log


def said(log, name):
    """The lines that a test has said, from the one that says that it is run."""
    lines, inside = [], False
    for line in log.splitlines():
        if line.startswith("#  RUN  "):
            inside = line.split()[2] == name
        elif inside and not LINE.match(line):
            lines.append(line)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="/modules/hmm-tests/hmm-tests",
                        help="the kernel's hmm-tests (%(default)s)")
    parser.add_argument("--modules", nargs=2, metavar=("C", "OURS"),
                        default=("/modules/rust/test_hmm.ko",
                                 "/modules/rust/hmm_dmirror_rust.ko"),
                        help="two modules that make /dev/hmm_dmirror* (%(default)s)")
    parser.add_argument("--benchmark", action="store_true", help="run the benchmark as well")
    parser.add_argument("--each", action="store_true",
                        help="load the modules for each test anew")
    parser.add_argument("--without", action="append", default=[], metavar="TEST",
                        help="leave this test out")
    parser.add_argument("arguments", nargs="*", help="NAME=VALUE for both modules")
    args = parser.parse_args()
    without = args.without if args.benchmark else [BENCHMARK, *args.without]
    results = conformance.Results()

    def compare(name, pair, log):
        results.emit("hmm", alike(*pair), case=name, c=pair[0], rust=pair[1],
                     detail=f"C {pair[0]}, ours {pair[1]}")
        if pair[1] == "fail":
            print("\n".join(said(log, name)), flush=True)

    theirs, ours = {}, {}
    if args.each:
        for name, pair, log in one_by_one(args.modules, args.arguments, args.program, without):
            theirs[name], ours[name] = pair
            compare(name, pair, log)
    else:
        command = [args.program, *(word for name in without for word in ("-T", name))]
        (theirs, _), (ours, log) = (test(module, args.arguments, command)
                                    for module in args.modules)
        for name in sorted(theirs.keys() | ours.keys()):
            compare(name, (theirs.get(name, "missing"), ours.get(name, "missing")), log)
    both = counts(theirs), counts(ours)
    for side, count in zip(("C", "ours"), both):
        text = ", ".join(f"{count[word]} {word}" for word in WORDS)
        print(f"hmm-tests on {side + ':':<6}{text}", flush=True)
    # Some test has to have passed for that to mean a thing.
    results.emit("hmm-counts", both[1]["pass"] >= both[0]["pass"] > 0 and not both[1]["fail"],
                 c=both[0], rust=both[1])
    sys.exit(results.status())


if __name__ == "__main__":
    main()
