// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P1 and P2: what one fault costs, and how many a transfer takes. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define P1_PAGES	1024
#define P1_STRIDE	389	/* prime to P1_PAGES: visits each page once, in no order */
#define P2_SIZE		(64 * MiB)
#define P2_OP		65536
#define P2_SPARSE	(512 * PAGE)

/* Memory and MR of P1: registered before there is a page, so that each access faults. */
static struct ibv_mr *absent_mr(struct bench *b, size_t len, enum pages pages)
{
	return odp_mr(&b->dev, map_memory(len, pages), len, RW);
}

static void drop_mr(struct ibv_mr *mr)
{
	void *mem = mr->addr;
	size_t len = mr->length;

	ibv_dereg_mr(mr);
	unmap_memory(mem, len);
}

/*
 * Pages that the CPU has, and the device has not: HMM finds them at once. Each is alone, so that
 * it is its own fault.
 */
static void p1_minor(struct bench *b, unsigned int round)
{
	size_t len = P1_PAGES * APART, i;
	struct ibv_mr *mr = absent_mr(b, len, SMALL_PAGES);
	struct meter m;

	touch_each(mr->addr, len, APART);
	meter_begin(&m);
	sweep(b, IBV_WR_RDMA_READ, mr, len, APART, 8);
	meter_report(&m, "P1", "read", round, P1_PAGES);
	drop_mr(mr);

	mr = absent_mr(b, len, SMALL_PAGES);
	touch_each(mr->addr, len, APART);
	meter_begin(&m);
	for (i = 0; i < P1_PAGES; i++) {
		struct transfer_op op = {
			.opcode = IBV_WR_RDMA_WRITE, .local = b->local.mem, .length = 8,
			.lkey = b->local.mr->lkey, .rkey = mr->rkey,
			.remote = (uintptr_t)mr->addr + i * P1_STRIDE % P1_PAGES * APART,
		};

		post(&b->pair, &op);
		complete(&b->pair);
	}
	meter_report(&m, "P1", "write-shuffled", round, P1_PAGES);
	drop_mr(mr);

	mr = absent_mr(b, len, SMALL_PAGES);
	touch_each(mr->addr, len, APART);
	meter_begin(&m);
	for (i = 0; i < P1_PAGES; i++) {
		struct transfer_op op = {
			.opcode = IBV_WR_RDMA_WRITE, .length = 8,
			.local = (uint8_t *)mr->addr + i * APART, .lkey = mr->lkey,
			.remote = (uintptr_t)b->local.mem, .rkey = b->local.mr->rkey,
		};

		post(&b->pair, &op);
		complete(&b->pair);
	}
	meter_report(&m, "P1", "local-source", round, P1_PAGES);
	drop_mr(mr);
}

void line_p1(struct bench *b)
{
	size_t len = P1_PAGES * APART;
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		struct ibv_mr *mr;
		struct meter m;

		p1_minor(b, round);
		/* Pages that nobody has: each is allocated and zeroed, too. */
		mr = absent_mr(b, len, SMALL_PAGES);
		meter_begin(&m);
		sweep(b, IBV_WR_RDMA_WRITE, mr, len, APART, 8);
		meter_report(&m, "P1", "first-touch", round, P1_PAGES);
		drop_mr(mr);
	}
}

/* WRITEs all of SIZE, a P2_OP after the other or in no order. */
static void p2_transfer(struct bench *b, unsigned int round, const char *section, size_t size,
			enum pages pages, bool present, bool shuffled)
{
	const size_t ops = size / P2_OP;
	struct ibv_mr *mr = absent_mr(b, size, pages);
	struct meter m;
	size_t i;

	if (present)
		touch(mr->addr, size);
	meter_begin(&m);
	for (i = 0; i < ops; i++) {
		size_t at = shuffled ? i * P1_STRIDE % ops : i;

		transfer(b, IBV_WR_RDMA_WRITE, mr, at * P2_OP, P2_OP);
	}
	meter_report(&m, "P2", section, round, size / MiB);
	drop_mr(mr);
}

/* Of LEN bytes of private memory, the pages that there are. */
static unsigned int resident_pages(void *mem, size_t len)
{
	unsigned char there[P2_SIZE / PAGE];
	unsigned int n = 0;
	size_t i;

	if (mincore(mem, len, there))
		die("mincore: %s", strerror(errno));
	for (i = 0; i < len / PAGE; i++)
		n += there[i] & 1;
	return n;
}

/* One page in P2_SPARSE, in no order, of memory that nobody has: who allocates more? */
static void p2_sparse(struct bench *b, unsigned int round)
{
	const size_t pages = P2_SIZE / P2_SPARSE;
	struct ibv_mr *mr = absent_mr(b, P2_SIZE, SMALL_PAGES);
	struct report r;
	struct meter m;
	size_t i;

	meter_begin(&m);
	for (i = 0; i < pages; i++)
		transfer(b, IBV_WR_RDMA_WRITE, mr, i * P1_STRIDE % pages * P2_SPARSE, 8);
	meter_end(&m, &r, "P2", "sparse", round, pages);
	report_u64(&r, "resident", resident_pages(mr->addr, P2_SIZE));
	report_end(&r);
	drop_mr(mr);
}

void line_p2(struct bench *b)
{
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		p2_transfer(b, round, "first-touch-4k", P2_SIZE, SMALL_PAGES, false, false);
		p2_transfer(b, round, "first-touch-thp", P2_SIZE, HUGE_PAGES, false, false);
		p2_transfer(b, round, "shuffled-thp", P2_SIZE, HUGE_PAGES, false, true);
		p2_transfer(b, round, "present-4k", P2_SIZE, SMALL_PAGES, true, false);
		p2_sparse(b, round);
	}
}
