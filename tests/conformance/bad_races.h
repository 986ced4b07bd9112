/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * A key destroyed while the device faults on it. Which of two outcomes comes is a
 * matter of time; neither an endless wait, nor a third outcome, nor a write after
 * ibv_dereg_mr() returned is right.
 */
#ifndef CONFORMANCE_BAD_RACES_H
#define CONFORMANCE_BAD_RACES_H

#include "rdma.h"

#include <stddef.h>

struct bad_race {
	const char *name;
	bool remote;	/* the key is the remote one (WRITE), else the local (READ) */
	bool held;	/* the fault is held by userfaultfd until after the dereg call */
};

extern const struct bad_race bad_races[];
extern const size_t bad_races_count;

void bad_race_run(struct pair *pair, const struct bad_race *race);

#endif
