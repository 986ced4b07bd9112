/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * What a stretch of work costs: run time of tasks, counters of the device, hits of
 * kprobes, and, where the guest runs under the instruction counter of the testbed, every
 * instruction.
 *
 * Under `-icount shift=0` a nanosecond of run time is an instruction.
 */
#ifndef CONFORMANCE_METER_H
#define CONFORMANCE_METER_H

#include "report.h"

#include <stdbool.h>

struct meter {
	char device[16384];	/* the device's counters, as it says them */
	bool has_device;
	double kthreads_ns;	/* run time of all kernel threads */
	double tasks_ns;	/* of all tasks */
	double self_ns;		/* of this process */
	double at;
};

/*
 * Tells how many profiles the instruction counter has written since the guest's start: each
 * section adds one. Zero for the first program that measures.
 */
void meter_init(unsigned int profiles);

void meter_begin(struct meter *m);

/*
 * Ends the section that began with M, and opens its result line: "test" is LINE, then
 * section, round, n (what the figures are divided by), profile (number of the instruction
 * profile), kthreads_ns, tasks_ns, self_ns, seconds, and device.NAME for each counter of
 * the device that moved. The caller may add to it, and ends it by report_end().
 */
void meter_end(struct meter *m, struct report *r, const char *line, const char *section,
	       unsigned int round, uint64_t n);

/* The same, with nothing to add. */
void meter_report(struct meter *m, const char *line, const char *section,
		  unsigned int round, uint64_t n);

#endif
