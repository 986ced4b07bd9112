#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Tests of what the suites judge by: `python3 -m unittest test_scripts`, on any machine."""

import contextlib
import io
import json
import tempfile
import unittest
import unittest.mock

import compare
import conformance
import cycle
import run_hmm
import run_rdma_core
import run_rxe


def case(**fields):
    """One result of a case."""
    return {"ok": True, **fields}


class Compare(unittest.TestCase):
    """compare.py"""

    def test_equal_and_different(self):
        ours, theirs = case(errno="0", local="success"), case(errno="0", local="success")
        self.assertEqual(compare.verdict("x", ours, theirs), ("equal", True))
        theirs["local"] = "remote-access"
        self.assertEqual(compare.verdict("x", ours, theirs), ("DIFFERENT", False))

    def test_a_row_must_compare_something(self):
        both = case(gone_s=0.1)
        self.assertFalse(compare.verdict("kill-x", both, both)[1])
        self.assertFalse(compare.verdict("x", case(errno="0"), case(local="success"))[1])

    def test_missing_and_failed(self):
        self.assertFalse(compare.verdict("x", None, case(errno="0"))[1])
        self.assertFalse(compare.verdict("x", {"ok": False, "errno": "0"}, case(errno="0"))[1])

    def test_better_only_as_declared(self):
        name, (good, _) = next(iter(compare.BETTER.items()))
        theirs = case(errno="0", local="remote-access", effect="none")
        self.assertTrue(compare.verdict(name, case(errno="0", **good), theirs)[1])
        self.assertFalse(compare.verdict("x", case(errno="0", **good), theirs)[1])
        worse = {**good, "local_qp": "ERR"}
        self.assertFalse(compare.verdict(name, case(errno="0", **worse), theirs)[1])

    def test_no_memory_for_an_impossible_range_is_not_better(self):
        self.assertFalse(compare.verdict("reg-length-2^63", case(errno="0"),
                                         case(errno="EINVAL"))[1])


class Hmm(unittest.TestCase):
    """run_hmm.py"""

    LOG = """TAP version 13
1..4
#  RUN           hmm.private.open_close ...
#            OK  hmm.private.open_close
ok 1 hmm.private.open_close
#  RUN           hmm.private.exclusive ...
# hmm-tests.c:1200:exclusive:Expected ret (-1) == 0 (0)
# exclusive: Test terminated by assertion
#          FAIL  hmm.private.exclusive
not ok 2 hmm.private.exclusive
#  RUN           hmm.coherent.exclusive ...
#      SKIP      DEVICE_COHERENT not available
ok 3 hmm.coherent.exclusive # SKIP DEVICE_COHERENT not available
ok 4 hmm.private.odd # XFAIL known
# FAILED: 2 / 4 tests passed.
# Totals: pass:1 fail:1 xfail:1 xpass:0 skip:1 error:0
"""

    LIST = """\
# [INFO] detected hugetlb page size: 2048 KiB
# FIXTURE            VARIANT                   TEST
global
--------------------------------------------------------------------------------
hmm                  hmm_device_private        open_close
                     hmm_device_coherent       anon_read
                                               anon_write
--------------------------------------------------------------------------------
hmm2                 hmm2_device_private       snapshot
"""

    def test_what_is_listed_is_found(self):
        found = run_hmm.listed(self.LIST)
        self.assertEqual(len(found), 7)
        self.assertIn(("hmm", "hmm_device_coherent", "anon_write"), found)
        self.assertEqual(found[-1], ("hmm2", "hmm2_device_private", "snapshot"))

    def test_results_are_read_and_counted_twice(self):
        found = run_hmm.parse(self.LOG)
        self.assertEqual(found, {"hmm.private.open_close": "pass", "hmm.private.odd": "fail",
                                 "hmm.private.exclusive": "fail",
                                 "hmm.coherent.exclusive": "skip"})
        self.assertEqual(run_hmm.counts(found), {"pass": 1, "skip": 1, "fail": 2})
        self.assertEqual(run_hmm.totals(self.LOG), run_hmm.counts(found))
        ended_early = self.LOG[:self.LOG.index("# Totals")]
        self.assertIsNone(run_hmm.totals(ended_early))

    def test_what_a_test_said(self):
        said = run_hmm.said(self.LOG, "hmm.private.exclusive")
        self.assertEqual(len(said), 3)
        self.assertIn("Expected ret", said[0])

    def test_ours_must_not_be_less(self):
        self.assertTrue(run_hmm.alike("pass", "pass"))
        self.assertTrue(run_hmm.alike("skip", "skip"))
        self.assertTrue(run_hmm.alike("fail", "pass"))
        less = [("pass", "fail"), ("pass", "skip"), ("pass", "missing"),
                ("fail", "fail"), ("fail", "skip"), ("missing", "pass")]
        for pair in less:
            self.assertFalse(run_hmm.alike(*pair))


class RdmaCore(unittest.TestCase):
    """run_rdma_core.py"""

    class Cases(unittest.TestCase):
        """One test of each result, and one that a rule is for."""

        def runTest(self):
            """Passes."""

        def implicit(self):
            """Passes, and is about implicit MRs."""

        def skipped(self):
            """Is skipped."""
            self.skipTest("no such thing")

        def failed(self):
            """Fails."""
            self.assertEqual(1, 2)

        def broken(self):
            """Ends in an error."""
            raise OSError("went away")

    def test_each_skip_is_expected_or_fails_the_run(self):
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write('[[skip]]\nreason = "r"\ntests = ["*.skipped", "no.such.test"]\n')
            file.flush()
            skips = run_rdma_core.Skips(file.name)
        self.assertEqual(skips.reason("a.skipped"), "r")
        self.assertIsNone(skips.reason("a.other"))
        self.assertEqual(skips.unused(), ["no.such.test"])
        nothing = run_rdma_core.Skips()
        nothing.entries = []
        for skips, ok in (skips, 0), (run_rdma_core.Skips(), 0), (nothing, 1):
            results = conformance.Results()
            lines = run_rdma_core.Lines(results, skips=skips)
            with contextlib.redirect_stdout(io.StringIO()):
                self.Cases("skipped").run(lines)
            self.assertEqual((lines.sums["skip"], results.status()), (1, ok))

    def test_messages_are_late_in_tests_of_implicit_mrs_only(self):
        asked = []

        def control(**request):
            asked.append(request)
            return {"id": 7}
        with contextlib.redirect_stdout(io.StringIO()), \
                unittest.mock.patch.object(conformance, "control", control):
            lines = run_rdma_core.Lines(conformance.Results(), delay_ms=5)
            for name in "runTest", "implicit":
                self.Cases(name).run(lines)
        self.assertEqual(asked, [{"cmd": "rule", "add": "message do=delay ms=5"},
                                 {"cmd": "remove-rule", "id": 7}])

    def test_each_result_is_a_line_and_counted(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            results = conformance.Results()
            lines = run_rdma_core.Lines(results)
            for name in "runTest", "skipped", "failed", "broken":
                self.Cases(name).run(lines)
        said = [json.loads(line) for line in out.getvalue().splitlines()]
        self.assertEqual([(line["result"], line["ok"]) for line in said],
                         [("pass", True), ("skip", True), ("fail", False), ("error", False)])
        self.assertEqual(said[1]["detail"], "no such thing")
        self.assertEqual(said[3]["detail"], "OSError: went away")
        self.assertEqual(set(lines.sums.values()), {1})
        self.assertEqual(results.status(), 1)


class Rxe(unittest.TestCase):
    """run_rxe.py"""

    def test_skips_alone_show_nothing(self):
        skipped = run_rxe.sums({"a": "skipped", "b": "skipped"})
        self.assertFalse(run_rxe.sums_agree(skipped, skipped))
        some = run_rxe.sums({"a": "ok", "b": "skipped"})
        self.assertTrue(run_rxe.sums_agree(some, some))
        self.assertFalse(run_rxe.sums_agree(some, skipped))

    def test_results_are_read(self):
        log = ("test_a (tests.test_odp.OdpTestCase.test_a) ... ok\n"
               "test_b (tests.test_odp.OdpTestCase.test_b)\n"
               "Of a docstring. ... skipped 'not here'\n")
        self.assertEqual(run_rxe.parse(log), {"tests.test_odp.OdpTestCase.test_a": "ok",
                                              "tests.test_odp.OdpTestCase.test_b": "skipped"})


class Cycle(unittest.TestCase):
    """cycle.py"""

    IDLE = {"cq": 0, "mkey": 0, "pd": 0, "qp": 0, "stall": 0, "eq": 3}

    def test_what_is_left(self):
        self.assertEqual(cycle.left_behind(self.IDLE, self.IDLE), [])
        self.assertTrue(cycle.left_behind({**self.IDLE, "eq": 4}, self.IDLE))
        held = {**self.IDLE, "mkey": 1}
        self.assertTrue(cycle.left_behind(held, held))

    def test_no_answer_is_no_proof(self):
        self.assertTrue(cycle.left_behind({}, {}))
        # No software ConnectX to ask.
        self.assertEqual(cycle.left_behind(None, None), [])


if __name__ == "__main__":
    unittest.main()
