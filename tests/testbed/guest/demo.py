#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
"""The demo, in the guest: the same tests on the C driver and on ours, in both schemes."""

import bed
import traffic


if __name__ == "__main__":
    for name in "c", "rust":
        for scheme in "memory", "transport":
            with bed.Stack(name, scheme) as stack:
                traffic.run(stack)
