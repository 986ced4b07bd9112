// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * A known sequence of faults and invalidations on one ODP MR, alone on the device.
 * Prints, for each phase, what the device and restrack counted meanwhile;
 * stats_check.py holds the rules that these numbers must follow.
 */
#define _GNU_SOURCE
#include "counted.h"
#include "options.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define OP_LEN	(64u << 10)

struct state {
	struct device dev;
	struct pair pair;
	struct region target, src;
	uint64_t pages;
	struct counted counted;
};

static void report_phase(struct state *s, const char *phase, const char *error)
{
	struct counted before = s->counted;
	struct report r;

	counted_now(s->dev.name, &s->counted);
	report_begin(&r, "stats");
	report_str(&r, "phase", phase);
	report_u64(&r, "pages", s->pages);
	report_counted(&r, &before, &s->counted, 0);
	if (error)
		report_fail(&r, "%s", error);
	report_end(&r);
}

static const char *write_all(struct state *s)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = s->src.mem, .length = OP_LEN,
		.lkey = s->src.mr->lkey, .rkey = s->target.mr->rkey,
	};
	uint64_t off;
	int status;

	for (off = 0; off < s->target.len; off += OP_LEN) {
		op.remote = (uintptr_t)s->target.mem + off;
		status = pair_do(&s->pair, &op, 20);
		if (status)
			return wc_status_name(status);
	}
	return NULL;
}

struct options {
	const char *dev;
	uint64_t pages;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'p': o->pages = parse_size("--pages", arg); return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "pages", 'p', "N", 0, "Pages of the MR, a multiple of 16 (512)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "What is counted in a known sequence of faults and invalidations.",
};

int main(int argc, char **argv)
{
	struct options o = { .pages = 512 };
	struct state s = { 0 };
	const char *error;
	size_t len;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	s.pages = o.pages;
	len = s.pages * PAGE;
	if (!len || len % OP_LEN)
		die("--pages must be a multiple of %u", OP_LEN / PAGE);
	device_open(&s.dev, o.dev);
	region_open(&s.src, &s.dev, OP_LEN, 0);
	pair_create(&s.pair, &s.dev, 1, PAIR_TIMEOUT);

	counted_now(s.dev.name, &s.counted);
	region_open(&s.target, &s.dev, len, IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE |
					    IBV_ACCESS_REMOTE_WRITE);
	report_phase(&s, "register-absent", NULL);
	report_phase(&s, "nothing", NULL);
	error = write_all(&s);
	report_phase(&s, "write-absent", error);
	error = write_all(&s);
	report_phase(&s, "write-present", error);
	error = madvise(s.target.mem, len, MADV_DONTNEED) ? strerror(errno) : NULL;
	report_phase(&s, "drop-present", error);
	error = madvise(s.target.mem, len, MADV_DONTNEED) ? strerror(errno) : NULL;
	report_phase(&s, "drop-absent", error);
	error = write_all(&s);
	report_phase(&s, "write-dropped", error);
	/* Eight pages of every sixteen: eight entries are one UMR octword group. */
	for (size_t page = 0; page < s.pages; page += 16)
		madvise(s.target.mem + page * PAGE, 8 * PAGE, MADV_DONTNEED);
	report_phase(&s, "drop-half", NULL);
	error = write_all(&s);
	report_phase(&s, "write-half", error);
	error = munmap(s.target.mem, len) ? strerror(errno) : NULL;
	report_phase(&s, "unmap", error);

	pair_destroy(&s.pair);
	region_close(&s.target);
	region_close(&s.src);
	device_close(&s.dev);
	return report_exit_status();
}
