# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""What the suites share: results as JSON lines, the device's control port, the
statistics of restrack, the programs of this folder and the rdma-core tests."""

import gzip
import json
import os
import select
import shutil
import subprocess
import sys
import time

PORT = "/dev/virtio-ports/connectx.control"
SYSFS = "/sys/class/infiniband"
TESTS = "/usr/share/doc/rdma-core/tests"

# Page-fault events of all kinds, by the names of the device's counters.
FAULTS = ("faults_memory", "faults_wqe_requester", "faults_wqe_responder", "faults_rdma")


class Results:
    """Prints one JSON object per line; status() is what to exit with."""

    def __init__(self):
        self.count = self.failed = 0

    def emit(self, test, ok, **fields):
        """Prints one result."""
        self.count += 1
        self.failed += not ok
        print(json.dumps({"test": test, **fields, "ok": ok}), flush=True)

    def status(self):
        """0 iff there was a result and all were ok."""
        return 0 if self.count and not self.failed else 1


def has_control():
    """Is there a software ConnectX to talk to?"""
    return os.path.exists(PORT)


def control(**request):
    """Sends one request to the software ConnectX, returns its answer (a dict)."""
    deadline = time.monotonic() + 10
    while True:
        try:
            fd = os.open(PORT, os.O_RDWR)
            break
        except OSError as error:
            # The port has one user at a time.
            if time.monotonic() > deadline:
                sys.exit(f"{PORT}: {error.strerror}")
            time.sleep(0.02)
    try:
        os.write(fd, json.dumps(request).encode() + b"\n")
        reply = b""
        while not reply.endswith(b"\n"):
            if not select.select([fd], [], [], 10)[0]:
                sys.exit(f"{PORT}: no answer to {request}")
            chunk = os.read(fd, 65536)
            if not chunk:
                sys.exit(f"{PORT}: closed before the answer to {request}")
            reply += chunk
    finally:
        os.close(fd)
    answer = json.loads(reply)
    if "error" in answer:
        sys.exit(f"{PORT}: {request}: {answer['error']}")
    return answer


def counters(dev=None):
    """The device's counters; {} without a software ConnectX, or if DEV is not one."""
    if dev and not os.path.exists(f"/sys/class/infiniband/{dev}/device"):
        return {}
    return control(cmd="counters") if has_control() else {}


def faults(before, after):
    """Page faults of all kinds between two counters(); None if there are none to see."""
    if not before:
        return None
    return sum(after[name] - before[name] for name in FAULTS)


def rdma_statistics(dev):
    """The sums of the statistics of the ODP MRs that live on DEV, {} without any."""
    out = subprocess.run(["rdma", "-j", "statistic", "show", "mr"],
                         capture_output=True, text=True, check=False).stdout
    sums = {}
    for mr in json.loads(out or "[]"):
        for name, value in mr.items():
            if mr["ifname"] == dev and name.startswith("page_"):
                sums[name] = sums.get(name, 0) + value
    return sums


def wait_for_port(seconds=30):
    """Waits for an RDMA device with an ACTIVE port 1; returns (its name, what is wrong)."""
    deadline = time.monotonic() + seconds
    state = "no RDMA device"
    while time.monotonic() < deadline:
        for dev in os.listdir(SYSFS) if os.path.isdir(SYSFS) else []:
            with open(f"{SYSFS}/{dev}/ports/1/state", encoding="ascii") as file:
                state = f"{dev}: port is {file.read().strip()}"
            if "ACTIVE" in state:
                return dev, ""
        time.sleep(0.1)
    return None, state


def program(name):
    """The path of a program of this folder: $CONFORMANCE_BIN, or beside this file."""
    folder = os.environ.get("CONFORMANCE_BIN", os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(folder, name)
    if not os.access(path, os.X_OK):
        sys.exit(f"{path} is not there: make -C tests/conformance O=DIR, CONFORMANCE_BIN=DIR")
    return path


def run_program(name, *args):
    """Runs a program; returns (exit status, its JSON lines)."""
    done = subprocess.run([program(name), *args], stdout=subprocess.PIPE, text=True,
                          check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, lines


def unpack_tests(target):
    """Copies rdma-core's tests to TARGET/tests, unpacked; returns TARGET."""
    folder = os.path.join(target, "tests")
    if os.path.isdir(folder):
        return target
    if not os.path.isdir(TESTS):
        sys.exit(f"{TESTS} is not there: install python3-pyverbs")
    os.makedirs(folder)
    for name in os.listdir(TESTS):
        path = os.path.join(TESTS, name)
        if name.endswith(".py.gz"):
            with gzip.open(path) as src, open(os.path.join(folder, name[:-3]), "wb") as dst:
                shutil.copyfileobj(src, dst)
        elif name.endswith(".py"):
            shutil.copy(path, folder)
    return target
