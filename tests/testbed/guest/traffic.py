# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""The demo's tests for one stack."""

import subprocess
import time

import bed
import conformance


def devinfo(stack):
    """The device as user space sees it."""
    def check(text):
        if "PORT_ACTIVE" not in text:
            return "no port is active"
        return "" if "rc_odp_caps" in text else "no ODP for RC"
    stack.run("ibv_devinfo", "ibv_devinfo", "-v", "-d", stack.dev, check=check)


def with_itself(stack, test, program, *options):
    """A program that is server and client: ibv_rc_pingpong, or one of perftest."""
    stack.emit("start", test=test)
    argv = ["timeout", "120", program, "-d", stack.dev, *options]
    before, start = conformance.counters(), time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True) as server:
        for _ in range(200):
            with open("/proc/net/tcp6", encoding="ascii") as v6, \
                    open("/proc/net/tcp", encoding="ascii") as v4:
                # 18515 is the default port of all of them; 0A is LISTEN.
                if any(":4853 " in line and " 0A " in line for line in [*v6, *v4]):
                    break
            if server.poll() is not None:
                break
            time.sleep(0.05)
        done = bed.command(*argv, "127.0.0.1")
        if done.returncode:
            server.terminate()
        said = server.communicate()[0]
    if not done.returncode and server.returncode:
        done.returncode, done.stderr = server.returncode, said
    stack.judge(test, done, before, start)


def pingpong(stack, test, *options):
    """ibv_rc_pingpong, contents checked (-c). Its buffer is written before it is
    registered: no fault is due, with -o either."""
    with_itself(stack, test, "ibv_rc_pingpong", "-c", *options)


def run(stack):
    """Everything the demo shows, for one loaded stack."""
    devinfo(stack)
    pingpong(stack, "rc_pingpong")
    pingpong(stack, "rc_pingpong -o", "-o")
    # Without the delay the C driver may lose a race in them (c-driver.md, 14).
    late = [] if stack.stack == "rust" else ["--delay-implicit", "50"]
    stack.lines("rdma-core", *bed.script("run_odp_tests.py"), "--dev", stack.dev, *late)
    stack.lines("atomic", conformance.program("odp_atomic"), "--dev", stack.dev,
                "--min-faults", "1")
    traffic = [conformance.program("odp_traffic"), "--dev", stack.dev]
    # 64 MiB, of which a driver that reads ahead takes 8 MiB at a time at most.
    stack.lines("traffic", *traffic, "--min-faults", "8")
    stack.lines("implicit", *traffic, "--min-faults", "8", "--implicit")
    stack.lines("disturbed", *traffic, "--disturb")
    stack.lines("statistics", *bed.script("stats_check.py"), "--dev", stack.dev)
