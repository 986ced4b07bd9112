// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * What CQs do beside reporting completions, on pinned memory: the time of each, as the
 * device's clock shows it and as the time of day; and another size while one thread posts
 * and resizes and another one polls, none lost, doubled or out of order.
 */
#define _GNU_SOURCE
#include "options.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPERATIONS	64	/* with a time */
#define DEPTH		32
#define POSTED		4096	/* while the CQ changes its size */
#define POSTED_BETWEEN	24	/* from one size to the next */
#define NS_PER_S	1000000000ull
/* The time of day is kept by the driver and drifts from the system's. */
#define DAY_TOLERANCE	(60 * NS_PER_S)

static struct transfer_op write_op(struct region *region)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = region->mem, .length = 8,
		.lkey = region->mr->lkey, .remote = (uintptr_t)region->mem + PAGE,
		.rkey = region->mr->rkey,
	};

	return op;
}

/* The device's clock, in its ticks. */
static bool device_clock(struct device *dev, uint64_t *ticks)
{
	struct ibv_values_ex values = { .comp_mask = IBV_VALUES_MASK_RAW_CLOCK };

	if (ibv_query_rt_values_ex(dev->ctx, &values) ||
	    !(values.comp_mask & IBV_VALUES_MASK_RAW_CLOCK))
		return false;
	*ticks = (uint64_t)values.raw_clock.tv_sec * NS_PER_S + values.raw_clock.tv_nsec;
	return true;
}

static bool day_clock(struct device *dev, uint64_t *ns)
{
	struct timespec ts;

	(void)dev;
	if (clock_gettime(CLOCK_REALTIME, &ts))
		return false;
	*ns = (uint64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
	return true;
}

struct clock {
	const char *test;
	uint64_t wc_flags;
	bool (*now)(struct device *dev, uint64_t *time);
	uint64_t (*read)(struct ibv_cq_ex *cq);
	uint64_t tolerance;
};

static const struct clock clocks[] = {
	{ "timestamps", IBV_WC_EX_WITH_COMPLETION_TIMESTAMP, device_clock,
	  ibv_wc_read_completion_ts, 0 },
	{ "timestamps-time-of-day", IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK, day_clock,
	  ibv_wc_read_completion_wallclock_ns, DAY_TOLERANCE },
};

/* One operation; its completion must have happened since BEFORE, and not after LAST. */
static void timed(struct report *r, struct pair *pair, struct ibv_cq_ex *cq,
		  const struct clock *clock, const struct transfer_op *op, uint64_t *last)
{
	struct ibv_poll_cq_attr attr = { 0 };
	uint64_t before, after, at;
	double start = now();
	int err;

	if (!clock->now(pair->dev, &before)) {
		report_fail(r, "the clock cannot be read");
		return;
	}
	err = pair_post(pair, op);
	if (err)
		die("ibv_post_send: %s", strerror(err));
	while ((err = ibv_start_poll(cq, &attr)) == ENOENT) {
		if (now() - start > 20) {
			report_fail(r, "no completion");
			return;
		}
		sched_yield();
	}
	if (err)
		die("ibv_start_poll: %s", strerror(err));
	at = clock->read(cq);
	if (cq->status)
		report_fail(r, "%s", wc_status_name(cq->status));
	ibv_end_poll(cq);
	clock->now(pair->dev, &after);
	if (at + clock->tolerance < before || at > after + clock->tolerance)
		report_fail(r, "completed at %llu, but posted at %llu and seen at %llu",
			    (unsigned long long)at, (unsigned long long)before,
			    (unsigned long long)after);
	else if (at <= *last)
		report_fail(r, "completed at %llu, the one before at %llu",
			    (unsigned long long)at, (unsigned long long)*last);
	*last = at;
}

static void timestamps(struct device *dev, struct region *region, const struct clock *clock)
{
	struct ibv_cq_init_attr_ex attr = {
		.cqe = DEPTH, .wc_flags = IBV_WC_STANDARD_FLAGS | clock->wc_flags,
	};
	struct transfer_op op = write_op(region);
	struct ibv_cq_ex *cq[2];
	struct pair pair;
	struct report r;
	uint64_t last = 0;
	int side, i;

	report_begin(&r, clock->test);
	report_u64(&r, "clock_khz", dev->attr.hca_core_clock);
	if (!dev->attr.hca_core_clock || !dev->attr.completion_timestamp_mask)
		report_fail(&r, "the device has no clock");
	for (side = 0; side < 2; side++) {
		cq[side] = ibv_create_cq_ex(dev->ctx, &attr);
		if (!cq[side])
			die("%s: ibv_create_cq_ex: %s", dev->name, strerror(errno));
	}
	pair_create_on(&pair, dev,
		       (struct ibv_cq *[]){ ibv_cq_ex_to_cq(cq[0]), ibv_cq_ex_to_cq(cq[1]) },
		       DEPTH, PAIR_TIMEOUT);
	for (i = 0; i < OPERATIONS && r.ok; i++)
		timed(&r, &pair, cq[REQUESTER], clock, &op, &last);
	pair_destroy(&pair);
	report_end(&r);
}

/* Polls what POSTED operations complete, each once and in order. */
struct poller {
	struct pair *pair;
	struct report *report;
	_Atomic uint64_t polled;
	atomic_bool ended;
};

static void *poll_all(void *arg)
{
	struct poller *p = arg;
	struct ibv_wc wc;
	uint64_t due;

	for (due = 0; due < POSTED && p->report->ok; due++) {
		if (!pair_poll(p->pair, REQUESTER, &wc, 20))
			report_fail(p->report, "no completion after %llu of %d",
				    (unsigned long long)due, POSTED);
		else if (wc.status)
			report_fail(p->report, "%s", wc_status_name(wc.status));
		else if (wc.wr_id != due)
			report_fail(p->report, "completion %llu is that of operation %llu",
				    (unsigned long long)due, (unsigned long long)wc.wr_id);
		atomic_store(&p->polled, due + 1);
	}
	atomic_store(&p->ended, true);
	return NULL;
}

static void resize(struct device *dev, struct region *region)
{
	/* Each other than the one before, and none below what is outstanding. */
	static const int sizes[] = { 2 * DEPTH, 256, 48, 1024 };
	struct transfer_op op = write_op(region);
	uint64_t resized = 0;
	struct poller p = { 0 };
	struct pair pair;
	struct report r;
	pthread_t thread;
	int err, size;

	report_begin(&r, "resize");
	pair_create(&pair, dev, DEPTH, PAIR_TIMEOUT);
	p.pair = &pair;
	p.report = &r;
	err = pthread_create(&thread, NULL, poll_all, &p);
	if (err)
		die("pthread_create: %s", strerror(err));
	for (op.wr_id = 0; op.wr_id < POSTED && !atomic_load(&p.ended); op.wr_id++) {
		while (op.wr_id - atomic_load(&p.polled) >= DEPTH && !atomic_load(&p.ended))
			sched_yield();
		err = pair_post(&pair, &op);
		if (err)
			die("ibv_post_send: %s", strerror(err));
		if (op.wr_id % POSTED_BETWEEN)
			continue;
		size = sizes[resized++ % (sizeof(sizes) / sizeof(*sizes))];
		err = ibv_resize_cq(pair.cq[REQUESTER], size);
		if (err)
			die("%s: ibv_resize_cq to %d: %s", dev->name, size, strerror(err));
		if (pair.cq[REQUESTER]->cqe < size)
			die("%s: a CQ of %d, not of %d", dev->name, pair.cq[REQUESTER]->cqe,
			    size);
	}
	pthread_join(thread, NULL);
	report_u64(&r, "resized", resized);
	report_u64(&r, "completions", atomic_load(&p.polled));
	pair_destroy(&pair);
	report_end(&r);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	const char **dev = state->input;

	(void)arg;
	if (key != ARGP_KEY_INIT)
		return ARGP_ERR_UNKNOWN;
	return init_device_option(state, dev);
}

static const struct argp argp = {
	.parser = parse, .children = device_option,
	.doc = "Times of completions, and CQs that change their size.",
};

int main(int argc, char **argv)
{
	struct region region;
	struct device dev;
	const char *name;
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	device_open(&dev, name);
	region_open(&region, &dev, 2 * PAGE,
		    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	for (i = 0; i < sizeof(clocks) / sizeof(*clocks); i++)
		timestamps(&dev, &region, &clocks[i]);
	resize(&dev, &region);
	region_close(&region);
	device_close(&dev);
	return report_exit_status();
}
