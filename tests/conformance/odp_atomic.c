// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * FETCH_AND_ADD on memory that was never touched, its results into memory that was never
 * touched: both sides of the atomic fault. Each page is added to twice, so that the
 * second result tells what the first operation stored; then every byte is verified.
 */
#define _GNU_SOURCE
#include "counted.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define SEED	1

struct options {
	const char *dev;
	uint64_t pages, min_faults;
};

/* The operand for a page, and where in the page it goes. */
static uint64_t operand(uint64_t page)
{
	return pattern_word(SEED, page * 8);
}

static uint64_t place(uint64_t page)
{
	return page * PAGE + page * 8 % PAGE;
}

/* Adds to every page; each result, in a page of its own, must be EXPECTED operands. */
static void add_to_all(struct report *r, struct pair *pair, uint64_t pages,
		       struct region *target, struct region *result, uint64_t expected)
{
	struct transfer_op op = {
		.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .length = 8,
		.lkey = result->mr->lkey, .rkey = target->mr->rkey,
	};
	uint64_t page, old;
	int status;

	for (page = 0; page < pages && r->ok; page++) {
		op.local = result->mem + place(page);
		op.remote = (uintptr_t)target->mem + place(page);
		op.add = operand(page);
		status = pair_do(pair, &op, 20);
		if (status) {
			report_fail(r, "page %llu: %s", (unsigned long long)page,
				    wc_status_name(status));
			return;
		}
		memcpy(&old, result->mem + place(page), sizeof(old));
		if (old != expected * operand(page))
			report_fail(r, "page %llu: the device returned %#llx, not %#llx",
				    (unsigned long long)page, (unsigned long long)old,
				    (unsigned long long)(expected * operand(page)));
	}
}

/* Each page holds FACTOR operands in its place and nothing else. */
static void verify(struct report *r, const char *what, const struct region *region,
		   uint64_t pages, uint64_t factor)
{
	uint64_t off, word, due;

	for (off = 0; off < pages * PAGE; off += 8) {
		memcpy(&word, region->mem + off, sizeof(word));
		due = off == place(off / PAGE) ? factor * operand(off / PAGE) : 0;
		if (word != due) {
			report_fail(r, "%s, offset %llu: %#llx, not %#llx", what,
				    (unsigned long long)off, (unsigned long long)word,
				    (unsigned long long)due);
			return;
		}
	}
}

static void run(struct device *dev, const struct options *o)
{
	size_t len = o->pages * PAGE;
	struct region target, result;
	struct counted before, after;
	struct pair pair;
	struct report r;
	double start;

	region_open(&target, dev, len, IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE |
				       IBV_ACCESS_REMOTE_ATOMIC);
	region_open(&result, dev, len, IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE);
	pair_create(&pair, dev, 1, PAIR_TIMEOUT);
	report_begin(&r, "fetch-and-add-absent");
	counted_now(dev->name, &before);
	start = now();
	add_to_all(&r, &pair, o->pages, &target, &result, 0);
	if (madvise(result.mem, len, MADV_DONTNEED))
		die("MADV_DONTNEED: %s", strerror(errno));
	add_to_all(&r, &pair, o->pages, &target, &result, 1);
	report_seconds(&r, "seconds", now() - start);
	counted_now(dev->name, &after);
	if (r.ok) {
		verify(&r, "target", &target, o->pages, 2);
		verify(&r, "results", &result, o->pages, 1);
	}
	if (r.ok)
		report_u64(&r, "bytes_verified", 2 * len);
	report_counted(&r, &before, &after, o->min_faults);
	report_end(&r);

	pair_destroy(&pair);
	region_close(&target);
	region_close(&result);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'p': o->pages = parse_size("--pages", arg); return 0;
	case 'f': o->min_faults = parse_size("--min-faults", arg); return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "pages", 'p', "N", 0, "Pages of each side (128)", 0 },
	{ "min-faults", 'f', "N", 0, "Fail if the device reports fewer faults (0)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "FETCH_AND_ADD on memory that is not there, every byte verified.",
};

int main(int argc, char **argv)
{
	struct options o = { .pages = 128 };
	struct device dev;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (!o.pages)
		die("--pages must not be 0");
	device_open(&dev, o.dev);
	run(&dev, &o);
	device_close(&dev);
	return report_exit_status();
}
