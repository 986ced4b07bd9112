// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Does the device lose its translation when memory is taken back? Faults ranges in,
 * takes each away (MADV_DONTNEED or munmap), lets the device read it again. It reads:
 * a stale translation then shows old data, and does no harm to whoever owns the page
 * now. With the software ConnectX behind an IOMMU the strict mode sees it as well.
 *
 * With --fail-zaps the software ConnectX fails the UMRs by which the driver takes the
 * first translations back (the kernel's umr.c warns of that, once). The driver may then
 * have to refuse the device any access, but still must not let it read a dropped page.
 */
#define _GNU_SOURCE
#include "devctl.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define RANGE	(64u << 10)

struct zap {
	struct device dev;
	struct pair pair;
	struct region target, sink;
	struct report *report;
	unsigned int fail_zaps;
	unsigned int refused;
};

/* Reads range I by the device; returns the completion status. */
static int device_read(struct zap *z, unsigned int i)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_READ, .local = z->sink.mem, .length = RANGE,
		.lkey = z->sink.mr->lkey, .remote = (uintptr_t)z->target.mem + i * RANGE,
		.rkey = z->target.mr->rkey,
	};

	memset(z->sink.mem, 0xa5, RANGE);
	return pair_do(&z->pair, &op, 20);
}

static void check_dropped(struct zap *z, unsigned int i)
{
	int status = device_read(z, i);
	size_t off;

	if (status == IBV_WC_REM_ACCESS_ERR && z->fail_zaps) {
		z->refused++;
		pair_reconnect(&z->pair);
		return;
	}
	if (status != IBV_WC_SUCCESS) {
		report_fail(z->report, "range %u, dropped: %s", i, wc_status_name(status));
		pair_reconnect(&z->pair);
		return;
	}
	for (off = 0; off < RANGE; off++)
		if (z->sink.mem[off])
			break;
	if (off < RANGE)
		report_fail(z->report, "range %u: the device still reads the dropped page, offset %zu is %#x",
			    i, off, z->sink.mem[off]);
}

static void check_unmapped(struct zap *z, unsigned int i)
{
	int status = device_read(z, i);

	if (status != IBV_WC_REM_ACCESS_ERR)
		report_fail(z->report, "range %u, unmapped: %s", i, wc_status_name(status));
	if (status != IBV_WC_SUCCESS)
		pair_reconnect(&z->pair);
}

static void fail_zaps(unsigned int times)
{
	char rule[64];

	snprintf(rule, sizeof(rule), "umr kind=zap times=%u do=fail", times);
	device_rule(rule);
}

static void run(struct zap *z, unsigned int ranges)
{
	struct device_counters before, after;
	struct report r;
	unsigned int i;
	int status;

	report_begin(&r, "zap");
	z->report = &r;
	device_counters(z->dev.name, &before);
	for (i = 0; i < ranges && r.ok; i++) {
		pattern_fill(z->target.mem + i * RANGE, RANGE, 1, i * RANGE);
		status = device_read(z, i);
		if (status || pattern_check(z->sink.mem, RANGE, 1, i * RANGE) != RANGE)
			report_fail(&r, "range %u, present: %s", i,
				    status ? wc_status_name(status) : "wrong data");
	}
	if (z->fail_zaps)
		fail_zaps(z->fail_zaps);
	/* All are taken away before the first is accessed, so that pages are reused. */
	for (i = 0; i < ranges && r.ok; i++)
		if (i % 4 == 3 ? munmap(z->target.mem + i * RANGE, RANGE) :
				 madvise(z->target.mem + i * RANGE, RANGE, MADV_DONTNEED))
			die("taking range %u away: %s", i, strerror(errno));
	for (i = 0; i < ranges; i++)
		if (i % 4 == 3)
			check_unmapped(z, i);
		else
			check_dropped(z, i);
	device_counters(z->dev.name, &after);
	report_u64(&r, "ranges", ranges);
	if (z->fail_zaps) {
		device_rules_clear();
		report_u64(&r, "refused", z->refused);
	}
	if (after.valid)
		report_u64(&r, "violations", after.violations - before.violations);
	else
		report_null(&r, "violations");
	if (after.violations != before.violations)
		report_fail(&r, "the device saw accesses through translations that were taken back");
	report_end(&r);
}

struct options {
	const char *dev;
	unsigned int ranges, fail_zaps;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'f': o->fail_zaps = parse_size("--fail-zaps", arg); return 0;
	case 'n': o->ranges = parse_size("--ranges", arg); return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "ranges", 'n', "N", 0, "Ranges of 64 KiB to take away (64)", 0 },
	{ "fail-zaps", 'f', "N", 0, "Let the device fail the first N zaps (0)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "Does the device lose its translation when memory is taken back?",
};

int main(int argc, char **argv)
{
	struct options o = { .ranges = 64 };
	struct zap z = { 0 };

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (!o.ranges)
		die("--ranges must not be 0");
	z.fail_zaps = o.fail_zaps;
	device_open(&z.dev, o.dev);
	region_open(&z.sink, &z.dev, RANGE, IBV_ACCESS_LOCAL_WRITE);
	region_open(&z.target, &z.dev, (size_t)o.ranges * RANGE,
		    IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	pair_create(&z.pair, &z.dev, 1, PAIR_TIMEOUT);
	run(&z, o.ranges);
	pair_destroy(&z.pair);
	region_close(&z.target);
	region_close(&z.sink);
	device_close(&z.dev);
	return report_exit_status();
}
