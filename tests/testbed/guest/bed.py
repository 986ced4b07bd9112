# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""What demo.py and suites.py share: stacks, commands, and lines for xtask.

Every line on stdout is one JSON object with an "event":
  start   a test begins: stack, scheme, test
  result  a test's result: the same, ok, seconds, and what its program reported
  text    a line for people
  totals  what one stack took: the device's counters, objects left after it, seconds

What programs say on stderr goes to ours, as they say it.
"""

import json
import os
import subprocess
import sys
import threading
import time

CONFORMANCE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../conformance")
sys.path.insert(0, CONFORMANCE)

import conformance  # noqa: E402  pylint: disable=wrong-import-position



def emit(event, **fields):
    """One line for xtask."""
    print(json.dumps({"event": event, **fields}), flush=True)


def pass_on(stream, said):
    """Copies a program's stderr to ours and into the list `said`."""
    for line in stream:
        said.append(line)
        print(line, end="", file=sys.stderr, flush=True)


def lines(group, *argv, keep=None, **place):
    """Runs a program that reports JSON lines itself; hands them on as they come, and to
    the file `keep`. `place` says where it ran."""
    emit("start", **place, test=group)
    count = failed = 0
    said = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, text=True, errors="replace") as child:
        # Beside stdout: a program waits when either pipe is full.
        other = threading.Thread(target=pass_on, args=(child.stderr, said))
        other.start()
        for line in child.stdout:
            if line.startswith("{"):
                if keep:
                    keep.write(line)
                fields = json.loads(line)
                count += 1
                failed += not fields["ok"]
                emit("result", **place, group=group, **fields)
            else:
                emit("text", text=line.rstrip())
        other.join()
    # Each failure was reported by its own line, unless there was none.
    if (child.returncode and not failed) or not count:
        emit("result", **place, test=group, ok=False,
             detail=f"status {child.returncode}: {last_line(''.join(said))}")


class Stack:
    """One loaded RDMA stack with one page-fault scheme of the device."""

    def __init__(self, stack, scheme):
        self.stack, self.scheme = stack, scheme
        self.dev = None
        self.before = {}
        self.start = time.monotonic()

    def emit(self, event, **fields):
        """A line about this stack."""
        emit(event, stack=self.stack, scheme=self.scheme, **fields)

    def __enter__(self):
        self.emit("start", test="load")
        self.start = start = time.monotonic()
        self.before = conformance.counters()
        if conformance.has_control():
            conformance.control(cmd="set", scheme=self.scheme)
        done = command("rdma-stack", "load", self.stack)
        detail = last_line(done.stderr)
        if done.returncode == 0:
            self.dev, detail = conformance.wait_for_port()
        self.emit("result", test="load", ok=not detail, detail=detail,
                  seconds=round(time.monotonic() - start, 3))
        if detail:
            sys.exit(1)
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            return
        self.emit("start", test="unload")
        start = time.monotonic()
        used = conformance.counters()
        done = command("rdma-stack", "unload")
        detail = last_line(done.stderr)
        left = conformance.control(cmd="objects") if conformance.has_control() else {}
        left = {name: count for name, count in left.items() if count}
        if not detail and left:
            detail = f"left in the device: {left}"
        self.emit("result", test="unload", ok=not detail, detail=detail,
                  seconds=round(time.monotonic() - start, 3))
        self.emit("totals", objects=left,
                  counters={name: used[name] - self.before.get(name, 0) for name in used},
                  seconds=round(time.monotonic() - self.start, 3))
        if done.returncode:
            sys.exit(1)

    def run(self, test, *argv, check=None):
        """Runs one command as one test. `check` looks at its output; says what is wrong."""
        self.emit("start", test=test)
        before, start = conformance.counters(), time.monotonic()
        done = command(*argv)
        self.judge(test, done, before, start, check)

    def judge(self, test, done, before, start, check=None):
        """Reports how one command ended."""
        seconds = time.monotonic() - start
        faults = conformance.faults(before, conformance.counters())
        detail = ""
        if done.returncode:
            print(done.stdout, done.stderr, sep="", end="", file=sys.stderr, flush=True)
            detail = f"status {done.returncode}: {last_line(done.stderr or done.stdout)}"
        elif check:
            detail = check(done.stdout)
        self.emit("result", test=test, ok=not detail, detail=detail, faults=faults,
                  seconds=round(seconds, 3))

    def lines(self, group, *argv, keep=None):
        """The same for a program that runs on this stack."""
        lines(group, *argv, keep=keep, stack=self.stack, scheme=self.scheme)


def command(*argv):
    """Runs a command to its end."""
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", check=False)


def last_line(text):
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def script(name):
    """A Python program of tests/conformance."""
    return sys.executable, f"{CONFORMANCE}/{name}"
