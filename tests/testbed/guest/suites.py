#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""The suites of `cargo xtask test` beside the demo's tests, each in a machine of its own.

  suites.py disturb N      ours disturbed for N seconds in each direction and scheme; then with
                           implicit MRs
  suites.py cases          bad input, kills, faults as a card may raise them, on the C driver
                           and on ours: compared case by case
  suites.py mixed          the distribution's mlx5_ib on our ib_core: the demo's traffic
  suites.py rxe            rdma_rxe on the distribution's ib_core and on ours
  suites.py cycles         ours loaded and unloaded 20 times, with traffic
  suites.py kernel PATH... what drivers/kernel has, on the kernel; DMA by these paths
  suites.py iommu         ours, registered, faulted and disturbed; for each kind of IOMMU
  suites.py swiotlb       memory that would have to be bounced is refused, by both drivers
  suites.py zap clean      every zap takes effect
  suites.py zap caught     the device completes one without doing it, and ends the run
  suites.py debug          the demo's traffic on ours, in both schemes
  suites.py device         what the device does beside ODP, on the C driver
  suites.py hmm            the kernel's hmm-tests on its own test module and on ours
  suites.py large          one MR of 256 GiB on the C driver, of 1 TiB on ours
"""

import errno
import re
import sys

import bed
import conformance
import device
import traffic


def refusals(log):
    """Whoever lost a QP finds in the log why."""
    said = re.search(r"page fault refused: MKey 0x[0-9a-f]+ at 0x[0-9a-f]+: \w", log)
    return "" if said else "no refused page fault is in the log"


def cases():
    """Programs with tables of cases on both drivers, then case beside case."""
    for scheme in "memory", "transport":
        kept = []
        for name in "c", "rust":
            path = f"/tmp/{name}-{scheme}.jsonl"
            kept.append(path)
            with open(path, "w", encoding="utf-8") as keep, bed.Stack(name, scheme) as stack:
                for program, *options in (["odp_bad_input"], ["odp_bad_input", "--implicit"],
                                          ["odp_kill"], ["odp_srq"],
                                          ["odp_fault_shapes", "--scheme", scheme],
                            ["odp_implicit"], ["odp_advise"],
                            ["odp_indirect"], ["odp_lists"], ["odp_rereg"]):
                    stack.lines(program, conformance.program(program), "--dev", stack.dev,
                                *options, keep=keep)
                if name == "rust":
                    stack.run("refusals", "dmesg", check=refusals)
                    # Faults that the C driver never ends (c-driver.md, 18).
                    stack.lines("odp_indirect", conformance.program("odp_indirect"), "--dev",
                                stack.dev, "--blocks")
                stack.run("exporter", "insmod", "/modules/rust/odp_exporter.ko")
                stack.lines("odp_dmabuf", conformance.program("odp_dmabuf"), "--dev", stack.dev,
                            keep=keep)
                stack.run("no exporter", "rmmod", "odp_exporter")
        bed.emit("start", test=f"compare {scheme}")
        done = bed.command(*bed.script("compare.py"), *kept)
        for line in done.stdout.splitlines():
            bed.emit("text", text=line)
        bed.emit("result", test=f"compare {scheme}", ok=not done.returncode,
                 detail=bed.last_line(done.stderr) if done.returncode else "")


def disturb(seconds):
    """The demo disturbs for one round only."""
    for scheme in "memory", "transport":
        with bed.Stack("rust", scheme) as stack:
            stack.lines("disturbed", conformance.program("odp_traffic"), "--dev", stack.dev,
                        "--disturb", "--seconds", seconds)
            stack.lines("implicit", conformance.program("odp_traffic"), "--dev", stack.dev,
                        "--disturb", "--implicit")
            # The C driver refuses valid accesses there, and updates a key that is revoked.
            stack.lines("races", conformance.program("odp_implicit"), "--dev", stack.dev,
                        "--races")


def mixed():
    """A step of a series that goes in by parts: ib_core first."""
    for scheme in "memory", "transport":
        with bed.Stack("mixed", scheme) as stack:
            traffic.run(stack)


def kernel(*paths):
    """By a module that tests when it is loaded, and says in the log what came of it."""
    with bed.Stack("rust", "memory") as stack:
        stack.emit("start", test="kernel")
        done = bed.command("insmod", "/modules/rust/kernel_ext_test.ko")
        log = bed.command("dmesg").stdout
        results = dict(re.findall(r"kernel_ext_test: (.+?): (ok|FAILED.*)$", log, re.MULTILINE))
        for test, said in results.items():
            stack.emit("result", group="kernel", test=test, ok=said == "ok",
                       detail="" if said == "ok" else said)
        missing = {f"dma, {path}" for path in paths} - set(results)
        stack.emit("result", test="kernel", ok=not done.returncode and not missing,
                   detail=f"not tested: {missing}" if missing else bed.last_line(done.stderr))
        bed.command("rmmod", "kernel_ext_test")


def iommu():
    """How DMA is mapped depends on the machine; the bytes must not."""
    with bed.Stack("rust", "memory") as stack:
        stack.lines("statistics", *bed.script("stats_check.py"), "--dev", stack.dev)
        traffic_of = [conformance.program("odp_traffic"), "--dev", stack.dev, "--size", "16M"]
        stack.lines("traffic", *traffic_of, "--min-faults", "2")
        stack.lines("disturbed", *traffic_of, "--disturb", "--seconds", "5")


REGISTER = """
import sys
from pyverbs.device import Context
from pyverbs.enums import IBV_ACCESS_ON_DEMAND
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsRDMAError
try:
    MR(PD(Context(name=sys.argv[1])), 1 << 20, IBV_ACCESS_ON_DEMAND)
except PyverbsRDMAError as error:
    print(error.error_code)
"""


def swiotlb():
    """The device uses memory while the process does: there is no moment to copy it."""
    for name in "c", "rust":
        with bed.Stack(name, "memory") as stack:
            stack.emit("start", test="refused")
            done = bed.command(sys.executable, "-c", REGISTER, stack.dev)
            ok = done.stdout.split() == [str(errno.EOPNOTSUPP)]
            detail = done.stdout.strip() or bed.last_line(done.stderr) or "it was registered"
            stack.emit("result", test="refused", ok=ok, detail="" if ok else detail)


def debug():
    """For the debug kernel, which is slow."""
    for scheme in "memory", "transport":
        with bed.Stack("rust", scheme) as stack:
            traffic.run(stack)


def beside_odp():
    """Devlink, link, times, events, resets."""
    with bed.Stack("c", "memory") as stack:
        device.run(stack)


def large():
    """One MR over far more memory than there is. The C driver's list of pages of 1 TiB would
    be 2 GiB, which the kernel does not allocate."""
    for name, size in ("c", "256G"), ("rust", "1T"):
        with bed.Stack(name, "memory") as stack:
            stack.lines("large", conformance.program("odp_large"), "--dev", stack.dev,
                        "--size", size)


def zap(expect):
    """Whether each zap takes effect."""
    with bed.Stack("rust", "memory") as stack:
        stack.lines("zap", *bed.script("skipped_zap.py"), "--dev", stack.dev,
                    "--expect", expect)


SUITES = {
    "disturb": disturb,
    "cases": cases,
    "mixed": mixed,
    "rxe": lambda: bed.lines("rxe", *bed.script("run_rxe.py")),
    "kernel": kernel,
    "iommu": iommu,
    "swiotlb": swiotlb,
    "hmm": lambda: bed.lines("hmm", *bed.script("run_hmm.py")),
    "cycles": lambda: bed.lines("cycles", *bed.script("cycle.py")),
    "zap": zap,
    "debug": debug,
    "device": beside_odp,
    "large": large,
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SUITES:
        sys.exit(__doc__)
    SUITES[sys.argv[1]](*sys.argv[2:])
