// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * One MR on demand over far more memory than there is: an RDMA WRITE to its first page,
 * its last and some between, each of which faults, and every byte of them verified.
 */
#define _GNU_SOURCE
#include "counted.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define SEED	1
#define PAGES	5	/* that are written */

struct options {
	const char *dev;
	uint64_t size;
};

static void run(struct device *dev, const struct options *o)
{
	uint64_t pages = o->size / PAGE, page;
	struct counted before, after;
	struct transfer_op op = { .opcode = IBV_WR_RDMA_WRITE, .length = PAGE };
	struct region source;
	struct pair pair;
	struct ibv_mr *mr;
	struct report r;
	uint8_t *mem;
	double start;
	int i, status;

	region_open(&source, dev, PAGES * PAGE, IBV_ACCESS_LOCAL_WRITE);
	pattern_fill(source.mem, PAGES * PAGE, SEED, 0);
	pair_create(&pair, dev, 1, PAIR_TIMEOUT);
	mem = mmap(NULL, o->size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		die("mapping %" PRIu64 " bytes: %s", o->size, strerror(errno));
	madvise(mem, o->size, MADV_NOHUGEPAGE);

	report_begin(&r, "large");
	report_u64(&r, "bytes", o->size);
	counted_now(dev->name, &before);
	start = now();
	mr = ibv_reg_mr(dev->pd, mem, o->size, IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE |
						IBV_ACCESS_REMOTE_WRITE);
	report_seconds(&r, "registered_s", now() - start);
	if (!mr) {
		report_fail(&r, "registering: %s", strerror(errno));
		report_end(&r);
		return;
	}
	op.lkey = source.mr->lkey;
	op.rkey = mr->rkey;
	for (i = 0; i < PAGES && r.ok; i++) {
		page = i ? (pages - 1) / (PAGES - 1) * i : 0;
		if (i == PAGES - 1)
			page = pages - 1;
		op.local = source.mem + i * PAGE;
		op.remote = (uintptr_t)mem + page * PAGE;
		status = pair_do(&pair, &op, 20);
		if (status)
			report_fail(&r, "page %" PRIu64 ": %s", page, wc_status_name(status));
		else if (memcmp(mem + page * PAGE, op.local, PAGE))
			report_fail(&r, "page %" PRIu64 " holds other bytes", page);
	}
	counted_now(dev->name, &after);
	report_counted(&r, &before, &after, PAGES);
	start = now();
	if (ibv_dereg_mr(mr))
		die("ibv_dereg_mr: %s", strerror(errno));
	report_seconds(&r, "deregistered_s", now() - start);
	report_end(&r);

	munmap(mem, o->size);
	pair_destroy(&pair);
	region_close(&source);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 's': o->size = parse_size("--size", arg); return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "size", 's', "SIZE", 0, "Bytes of the MR (256G)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "One MR on demand over more memory than there is.",
};

int main(int argc, char **argv)
{
	struct options o = { .size = 256ull << 30 };
	struct device dev;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (o.size < PAGES * PAGE)
		die("--size must be at least %d", PAGES * PAGE);
	device_open(&dev, o.dev);
	run(&dev, &o);
	device_close(&dev);
	return report_exit_status();
}
