/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * The Nth allocation of a task fails, once: /proc/PID/task/TID/fail-nth
 * (Documentation/fault-injection). Slab and page allocations are counted together, those
 * that may reclaim too. Needs a kernel that can do so (`cargo xtask vm --debug-kernel`),
 * and root.
 */
#ifndef CONFORMANCE_FAIL_NTH_H
#define CONFORMANCE_FAIL_NTH_H

#include <stdbool.h>

/* Has the kernel fail any allocation that is asked for, in silence; dies if it cannot. */
void fail_nth_open(void);

/* As it was before. */
void fail_nth_close(void);

/* The Nth allocation of this thread from now on fails. */
void fail_nth_arm(unsigned int n);

/* None does from now on. Returns whether one did. */
bool fail_nth_disarm(void);

/*
 * The same for all workqueues' threads, of each its own Nth; of their allocations only
 * those count that MODULE is on the stack of. A thread that starts afterwards is none of
 * them.
 */
void fail_nth_arm_workers(unsigned int n, const char *module);
bool fail_nth_disarm_workers(void);

#endif
