/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * A thread that takes memory away from a running transfer, and what is checked:
 *
 *   drop-src      MADV_DONTNEED on SRC (shared: only the mapping goes). The data that
 *                 arrives must be right, no operation may fail.
 *   drop-dst      MADV_DONTNEED on DST (private: the pages go). See transfer.h.
 *   protect-src   mprotect(PROT_READ) on SRC and back. The MR of SRC has no write
 *                 access, so no operation may fail.
 *   protect-dst   mprotect(PROT_READ) on DST and back. While it is read-only its
 *                 content must not change; operations on this range may be refused
 *                 (they are posted again after a reconnect), no others.
 *   fork          The child's snapshot of DST must not change while the parent's
 *                 traffic goes on, and consist of words of this round, the round
 *                 before or (dropped pages) zero. Then the child overwrites it,
 *                 which must not be seen by the parent (its verification tells).
 */
#ifndef CONFORMANCE_DISTURB_H
#define CONFORMANCE_DISTURB_H

#include "transfer.h"

enum disturbance {
	DROP_SRC, DROP_DST, PROTECT_SRC, PROTECT_DST, FORK, DISTURBANCES
};

extern const char *const disturbance_names[DISTURBANCES];

struct disturber {
	struct transfer *t;
	unsigned int enabled;		/* bits of enum disturbance */
	unsigned int every;		/* operations of the traffic, one disturbance */
	uint64_t seed;

	pthread_t thread;
	atomic_bool stop;
	pid_t child;
	_Atomic uint64_t count[DISTURBANCES];
	atomic_bool failed;		/* reason in the fields below, when joined */
	char reason[256];
};

void disturb_start(struct disturber *d);

/* Joins. False if a check of the thread or of a child failed (reason[] says which). */
bool disturb_stop(struct disturber *d);

/* Has each enabled disturbance been done at least N times? */
bool disturb_enough(const struct disturber *d, uint64_t n);

#endif
