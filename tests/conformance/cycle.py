#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Load our modules, run traffic, unload them, many times over.

One JSON line per cycle, one for the end. mlx5_core is not ours and stays, with the
completion EQs that it makes for its first user: after each unload the device must hold
what it held after the first one, no PD, CQ, QP or MKey among it; in the end, without
mlx5_core, nothing. The kernel's log may hold no new splat. Loads and unloads by
rdma-stack (tests/testbed/guest/bin).
"""

import argparse
import re
import subprocess
import sys
import time

import conformance

SPLAT = re.compile(r"WARNING:|BUG:|Call Trace|Oops|refcount_t")

# What every use of the device makes, and no idle device may hold.
OF_USERS = ("cq", "mkey", "pd", "qp", "stall")


def command(*argv):
    """Runs a command; returns what it said if it failed, else ""."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"{argv[0]}: {done.stderr.strip() or done.returncode}" if done.returncode else ""


def objects():
    """What the device holds; None without a software ConnectX."""
    return conformance.control(cmd="objects") if conformance.has_control() else None


def splats():
    """How many lines of the kernel's log complain."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace",
                         check=True).stdout
    return len(SPLAT.findall(log))


def left_behind(left, baseline):
    """What is wrong with the objects that a cycle has left, compared with the first."""
    if left is None:
        return []
    missing = [kind for kind in OF_USERS if kind not in left]
    if missing:
        return [f"the device does not tell of its objects: {', '.join(missing)}"]
    if left != baseline or any(left[kind] for kind in OF_USERS):
        return [f"left in the device: {left}, after the first cycle {baseline}"]
    return []


def traffic():
    """Returns (faults, what went wrong)."""
    dev, wrong = conformance.wait_for_port()
    if wrong:
        return 0, [wrong]
    status, lines = conformance.run_program("odp_traffic", "--dev", dev, "--size", "4M",
                                            "--min-faults", "1")
    bad = [line.get("detail", "failed") for line in lines if not line["ok"]]
    if status and not bad:
        bad = [f"odp_traffic: status {status}"]
    return sum(line["faults"] or 0 for line in lines), bad


def cycle(stack):
    """Returns (faults, what went wrong) of one cycle."""
    faults, bad = 0, [command("rdma-stack", "load", stack)]
    if not bad[0]:
        faults, bad = traffic()
    bad.append(command("rdma-stack", "unload", "mlx5_core"))
    return faults, [text for text in bad if text]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="cycles (%(default)s)")
    parser.add_argument("--stack", default="rust", help="stack of rdma-stack (%(default)s)")
    args = parser.parse_args()
    failed = command("rdma-stack", "unload")
    if failed:
        sys.exit(f"cycle.py: {failed}")
    results = conformance.Results()
    baseline, known = None, splats()
    for number in range(1, args.count + 1):
        start = time.monotonic()
        faults, bad = cycle(args.stack)
        left = objects()
        baseline = left if number == 1 else baseline
        bad += left_behind(left, baseline)
        if splats() != known:
            bad.append("splat in the kernel's log")
        results.emit("cycle", not bad, cycle=number, faults=faults,
                     seconds=round(time.monotonic() - start, 3), detail="; ".join(bad))
        if bad:
            break
    bad = [text for text in [command("rdma-stack", "unload")] if text]
    left = objects()
    if left == {} or left and any(left.values()):
        bad.append(f"left in the device: {left}")
    results.emit("cycles", not bad, cycles=number, detail="; ".join(bad))
    sys.exit(results.status())


if __name__ == "__main__":
    main()
