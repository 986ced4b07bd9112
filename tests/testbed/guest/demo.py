#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""The demo, in the guest: the same tests on the C driver and on ours, in both schemes.

  demo.py [SECONDS]    how long to disturb ours, in each direction
"""

import sys

import bed
import traffic


def main(args):
    """Runs all configurations."""
    for name, seconds in ("c", 0), ("rust", args[0] if args else 0):
        for scheme in ("memory", "transport"):
            with bed.Stack(name, scheme) as stack:
                traffic.run(stack, seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
