#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""Compare the results of two drivers case by case.

usage: compare.py C.jsonl RUST.jsonl

Both files hold the output of odp_bad_input, odp_kill, odp_srq, odp_fault_shapes, odp_implicit,
odp_advise, odp_indirect, odp_lists, odp_rereg and odp_dmabuf. Prints a table of all cases and exits
1 if a case differs without being declared below, is missing on one side, tells nothing that could
be compared, or was not ok on either side.
"""

import json
import sys

# What a case is judged by; the other fields (times, counts) are for reading.
FIELDS = ("errno", "local", "other", "remote", "local_qp", "remote_qp", "effect", "resumes", "end")

# Cases in which ours may be better: case -> (fields that may differ, ours, the number
# of the defect of the C driver in c-driver.md). Ours must be exactly this.
GOOD = {"local": "success", "remote": "none", "local_qp": "RTS", "remote_qp": "RTS",
        "effect": "all"}
BETTER = {
    # Reading read-only memory through a writable MR needs no write access.
    "read-only-lw-read": (GOOD, 6),
    "read-only-lw-read-dropped": (GOOD, 6),
    "read-only-lw-local-write": (GOOD, 6),
    "read-only-lw-local-write-dropped": (GOOD, 6),
    "read-only-lw-send-dropped": ({**GOOD, "remote": "success"}, 6),
    "read-only-file-lw-read-dropped": (GOOD, 6),
    "protected-read": (GOOD, 6),
    # An access of which two events are answered, the one that fails and the last one.
    **{f"split-{split}": ({"resumes": "once"}, 16)
       for split in ("2-first-hole-last", "2-first-hole-both", "2-final-hole-first",
                     "2-final-hole-both", "8-first-hole-last", "8-first-hole-both",
                     "8-final-hole-first", "8-final-hole-both")},
    # An exporter that cannot say at once where its memory is.
    "dmabuf-busy": ({"local": "success"}, 19),
    "dmabuf-no-memory": ({"local": "success"}, 19),
    # More than a second of waiting for an invalidation is no error of the access.
    "umr-delay-fault-during-invalidation": ({"local": "success", "local_qp": "RTS",
                                             "remote_qp": "RTS"}, 5),
}
# The same over an MR of all of the memory.
BETTER |= {f"implicit-{case}": better for case, better in BETTER.items() if better[1] == 6}


def load(path):
    """Returns {case: result} of a file of JSON lines; other lines are ignored."""
    cases = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("{"):
                continue
            result = json.loads(line)
            if "case" in result:
                cases[result["case"]] = result
    if not cases:
        sys.exit(f"compare.py: no case in {path}")
    return cases


def text(result):
    """One cell of the table."""
    if result is None:
        return "missing"
    shown = [str(result[f]) for f in FIELDS if f in result]
    return " ".join(shown) + ("" if result["ok"] else " NOT OK")


def verdict(case, ours, theirs):
    """Returns (words, acceptable) for one case."""
    if ours is None or theirs is None:
        return "missing", False
    if not ours["ok"] or not theirs["ok"]:
        who = "both" if not ours["ok"] and not theirs["ok"] else \
            "Rust" if not ours["ok"] else "C"
        # A defect of C alone may be a declared one; ours never is.
        if who != "C" or case not in BETTER:
            return f"not ok: {who}", False
    if not any(f in ours and f in theirs for f in FIELDS):
        return "nothing to compare", False
    if all(ours.get(f) == theirs.get(f) for f in FIELDS):
        return "equal", True
    if case in BETTER:
        expected, number = BETTER[case]
        if all(ours.get(f) == v for f, v in expected.items()):
            return f"better, c-driver.md #{number}", True
    return "DIFFERENT", False


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    theirs, ours = load(sys.argv[1]), load(sys.argv[2])
    rows, bad = [], 0
    for case in list(theirs) + [c for c in ours if c not in theirs]:
        words, fine = verdict(case, ours.get(case), theirs.get(case))
        bad += not fine
        rows.append((case, text(theirs.get(case)), text(ours.get(case)), words))
    head = ("case", "C", "Rust", "")
    width = [max(len(r[i]) for r in rows + [head]) for i in range(4)]
    for row in [head] + rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip())
    counts = {}
    for row in rows:
        counts[row[3].split(",")[0]] = counts.get(row[3].split(",")[0], 0) + 1
    print(f"{len(rows)} cases: " + ", ".join(f"{n} {w}" for w, n in counts.items()))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
