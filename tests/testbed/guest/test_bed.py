#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Tests of bed.py: `python3 -m unittest test_bed`, on any machine."""

import contextlib
import io
import json
import sys
import unittest

import bed


def run(script):
    """What `lines` makes of a program: (our lines, what went to stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        bed.lines("group", sys.executable, "-c", script)
    return [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


class Lines(unittest.TestCase):
    """Programs that report JSON lines."""

    def test_much_on_stderr_holds_nobody_up(self):
        script = ("import sys; sys.stderr.write('noise\\n' * 50000);"
                  "print('{\"test\": \"a\", \"ok\": true}')")
        events, said = run(script)
        self.assertEqual([e["event"] for e in events], ["start", "result"])
        self.assertEqual(said.count("noise"), 50000)

    def test_an_end_without_a_result_is_told(self):
        events, _ = run("import sys; sys.stderr.write('no port\\n'); sys.exit(2)")
        self.assertFalse(events[-1]["ok"])
        self.assertEqual(events[-1]["detail"], "status 2: no port")


if __name__ == "__main__":
    unittest.main()
