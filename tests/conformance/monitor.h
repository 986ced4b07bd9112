/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Another process with traffic of its own, to see that a stalled one does not stall
 * it: operations done and the longest time without one.
 */
#ifndef CONFORMANCE_MONITOR_H
#define CONFORMANCE_MONITOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct monitor_shared {
	_Atomic uint64_t ops;
	_Atomic uint64_t max_gap_us;
	_Atomic uint64_t restart;	/* raised by monitor_window() */
	atomic_bool failed, stop;
};

struct monitor {
	struct monitor_shared *shared;
	pid_t pid;
	uint64_t ops_before;
};

/*
 * Starts the process and waits for its first operations. With FAULTING each of them
 * takes a fault (its target is dropped before), else the memory is pinned.
 */
void monitor_start(struct monitor *m, const char *dev, bool faulting);

/* From now on count operations and gaps anew. */
void monitor_window(struct monitor *m);

/* The numbers since monitor_window(). */
void monitor_read(const struct monitor *m, uint64_t *ops, double *max_gap_s);

/* False if an operation of the monitor failed. */
bool monitor_stop(struct monitor *m);

#endif
