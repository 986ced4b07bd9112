// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P6, P9, P11, P12, unmap64: many accesses, QPs or MRs at once. */
#define _GNU_SOURCE
#include "bench.h"
#include "devctl.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* Of the lines that count in delays; tests/testbed/src/bench/figure.rs knows it too. */
#define SLOW_UPDATES	"umr do=delay ms=25"

static uint64_t faults_so_far(struct bench *b)
{
	struct device_counters c;

	device_counters(b->dev.name, &c);
	if (!c.valid)
		die("no control port: nobody tells what the device stalls");
	return c.faults;
}

/*
 * Posts READs or WRITEs of 8 bytes on N pairs, each at FIRST and its own multiple of STRIDE
 * in MR, and waits for all of them. The device holds every new translation back until all
 * accesses are stalled: no fault is served before the last is raised. The result fails if
 * they were not.
 */
static void measure_burst(struct bench *b, const char *line, const char *section,
			  unsigned int round, unsigned int n, enum ibv_wr_opcode opcode,
			  struct ibv_mr *mr, uint64_t first, size_t stride)
{
	double deadline = now() + 10;
	uint64_t before, stalled;
	struct report r;
	struct meter m;
	unsigned int i;

	before = faults_so_far(b);
	device_rule("umr kind=map do=hold");
	meter_begin(&m);
	for (i = 0; i < n; i++) {
		struct transfer_op op = crowd_op(b, opcode, i, mr, first + i * stride, 8);

		post(&b->crowd[i], &op);
	}
	do
		stalled = faults_so_far(b) - before;
	while (stalled < n && now() < deadline);
	device_rules_clear();
	for (i = 0; i < n; i++)
		complete(&b->crowd[i]);
	meter_end(&m, &r, line, section, round, n);
	report_u64(&r, "stalled", stalled);
	if (stalled < n)
		report_fail(&r, "only %llu of %u accesses were stalled at once",
			    (unsigned long long)stalled, n);
	report_end(&r);
}

/* The same in memory of its own, which the CPU has and the device has not. */
static void present_burst(struct bench *b, const char *line, const char *section,
			  unsigned int round, unsigned int n, enum ibv_wr_opcode opcode,
			  size_t stride)
{
	uint8_t *mem = map_memory(CHUNK, SMALL_PAGES);
	struct ibv_mr *mr = odp_mr(&b->dev, mem, CHUNK, RW);

	touch(mem, CHUNK);
	measure_burst(b, line, section, round, n, opcode, mr, 0, stride);
	ibv_dereg_mr(mr);
	unmap_memory(mem, CHUNK);
}

void line_p9(struct bench *b)
{
	unsigned int round;

	crowd(b, 64);
	for (round = 0; round < b->rounds; round++) {
		present_burst(b, "P9", "read", round, 64, IBV_WR_RDMA_READ, 0);
		present_burst(b, "P9", "write", round, 64, IBV_WR_RDMA_WRITE, 8);
	}
}

void line_p11(struct bench *b)
{
	unsigned int round;

	crowd(b, 256);
	for (round = 0; round < b->rounds; round++)
		present_burst(b, "P11", "read", round, 256, IBV_WR_RDMA_READ, CHUNK / 256);
}

/*
 * Fukuoka, Sato, Taura: "Pitfalls of InfiniBand with On-Demand Paging" (ISPASS 2021): many
 * QPs fault on one page that nobody has, then each on its own.
 */
void line_p12(struct bench *b)
{
	const unsigned int n = 128;
	size_t len = (n + 1) * APART;
	unsigned int round;

	crowd(b, n);
	for (round = 0; round < b->rounds; round++) {
		uint8_t *mem = map_memory(len, SMALL_PAGES);
		struct ibv_mr *mr = odp_mr(&b->dev, mem, len, RW);

		measure_burst(b, "P12", "one-page", round, n, IBV_WR_RDMA_READ, mr, 0, 0);
		measure_burst(b, "P12", "own-page", round, n, IBV_WR_RDMA_READ, mr, APART,
			      APART);
		ibv_dereg_mr(mr);
		unmap_memory(mem, len);
	}
}

/* One thread of P6: faults on FAULTS pages of a chunk of its own. */
struct worker {
	pthread_t thread;
	struct pair pair;
	struct bench *b;
	struct ibv_mr *mr;
	pthread_barrier_t *gate;
	unsigned int index, faults;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	unsigned int i;
	int status;

	pthread_barrier_wait(w->gate);
	for (i = 0; i < w->faults; i++) {
		struct transfer_op op = crowd_op(w->b, IBV_WR_RDMA_READ, w->index, w->mr,
						 w->index * CHUNK + i * APART, 8);

		status = pair_do(&w->pair, &op, 60);
		if (status != IBV_WC_SUCCESS)
			die("P6: completion: %s", wc_status_name(status));
	}
	return NULL;
}

static void p6_threads(struct bench *b, unsigned int round, unsigned int threads)
{
	const size_t len = 8 * CHUNK;
	uint8_t *mem = map_memory(len, SMALL_PAGES);
	struct ibv_mr *mr = odp_mr(&b->dev, mem, len, RW);
	struct worker workers[8];
	pthread_barrier_t gate;
	char section[32];
	struct meter m;
	unsigned int i;

	touch_each(mem, len, APART);
	pthread_barrier_init(&gate, NULL, threads + 1);
	for (i = 0; i < threads; i++) {
		workers[i] = (struct worker){
			.b = b, .mr = mr, .gate = &gate, .index = i, .faults = CHUNK / APART,
		};
		pair_create(&workers[i].pair, &b->dev, 4, PAIR_TIMEOUT);
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("no thread");
	}
	device_rule(SLOW_UPDATES);
	meter_begin(&m);
	pthread_barrier_wait(&gate);
	for (i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	snprintf(section, sizeof(section), "%u-threads", threads);
	meter_report(&m, "P6", section, round, threads * workers[0].faults);
	device_rules_clear();
	for (i = 0; i < threads; i++)
		pair_destroy(&workers[i].pair);
	ibv_dereg_mr(mr);
	unmap_memory(mem, len);
}

void line_p6(struct bench *b)
{
	unsigned int round, threads;

	for (round = 0; round < b->rounds; round++)
		for (threads = 1; threads <= 8; threads *= 2)
			p6_threads(b, round, threads);
}

void line_unmap64(struct bench *b)
{
	enum { MRS = 64 };
	struct ibv_mr *mrs[MRS];
	unsigned int round, i;

	for (round = 0; round < b->rounds; round++) {
		uint8_t *mem = map_memory(MRS * PAGE, SMALL_PAGES);
		struct meter m;

		for (i = 0; i < MRS; i++) {
			mrs[i] = odp_mr(&b->dev, mem + i * PAGE, PAGE, RW);
			sweep(b, IBV_WR_RDMA_WRITE, mrs[i], PAGE, PAGE, 8);
		}
		device_rule(SLOW_UPDATES);
		meter_begin(&m);
		unmap_memory(mem, MRS * PAGE);
		meter_report(&m, "unmap64", "munmap", round, 1);
		device_rules_clear();
		for (i = 0; i < MRS; i++)
			ibv_dereg_mr(mrs[i]);
	}
}
