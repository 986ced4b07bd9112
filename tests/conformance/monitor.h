/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Another process with traffic of its own, to see that a stalled one does not stall
 * it: the operations it does.
 */
#ifndef CONFORMANCE_MONITOR_H
#define CONFORMANCE_MONITOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct monitor_shared {
	_Atomic uint64_t ops;
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

/* From now on count operations anew. */
void monitor_window(struct monitor *m);

/* Since monitor_window(). */
uint64_t monitor_ops(const struct monitor *m);

/* False if an operation of the monitor failed, or its end. */
bool monitor_stop(struct monitor *m);

#endif
