/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* What was counted during a test, by the device and by restrack, as a result's fields. */
#ifndef CONFORMANCE_COUNTED_H
#define CONFORMANCE_COUNTED_H

#include "devctl.h"
#include "report.h"

struct counted {
	struct device_counters dc;
	struct mr_statistics ms;
};

void counted_now(const char *dev, struct counted *c);

/*
 * Reports the differences, as far as there is anybody who counts. "faults" are the
 * device's, or those that restrack knows, or null; fewer than MIN_FAULTS are a failure,
 * and so are protocol violations.
 */
void report_counted(struct report *r, const struct counted *before,
		    const struct counted *after, uint64_t min_faults);

#endif
