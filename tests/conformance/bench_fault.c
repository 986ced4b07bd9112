// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P1 and P2: what one fault costs, and how many a transfer takes. */
#define _GNU_SOURCE
#include "bench.h"

#include <stdio.h>
#include <sys/mman.h>

#define P1_PAGES	1024
#define P1_STRIDE	389	/* prime to P1_PAGES: visits each page once, in no order */
#define P2_SIZE		(64 * MiB)
#define P2_OP		65536

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

/* Pages that the CPU has, and the device has not: HMM finds them at once. */
static void p1_minor(struct bench *b, unsigned int round)
{
	size_t len = P1_PAGES * PAGE, i;
	struct ibv_mr *mr = absent_mr(b, len, SMALL_PAGES);
	struct meter m;

	touch(mr->addr, len);
	meter_begin(&m);
	sweep(b, IBV_WR_RDMA_READ, mr, len, PAGE, 8);
	meter_report(&m, "P1", "read", round, P1_PAGES);
	drop_mr(mr);

	mr = absent_mr(b, len, SMALL_PAGES);
	touch(mr->addr, len);
	meter_begin(&m);
	for (i = 0; i < P1_PAGES; i++) {
		struct transfer_op op = {
			.opcode = IBV_WR_RDMA_WRITE, .local = b->local.mem, .length = 8,
			.lkey = b->local.mr->lkey, .rkey = mr->rkey,
			.remote = (uintptr_t)mr->addr + i * P1_STRIDE % P1_PAGES * PAGE,
		};

		post(&b->pair, &op);
		complete(&b->pair);
	}
	meter_report(&m, "P1", "write-shuffled", round, P1_PAGES);
	drop_mr(mr);

	mr = absent_mr(b, len, SMALL_PAGES);
	touch(mr->addr, len);
	meter_begin(&m);
	for (i = 0; i < P1_PAGES; i++) {
		struct transfer_op op = {
			.opcode = IBV_WR_RDMA_WRITE, .length = 8,
			.local = (uint8_t *)mr->addr + i * PAGE, .lkey = mr->lkey,
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
	size_t len = P1_PAGES * PAGE;
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		struct ibv_mr *mr;
		struct meter m;

		p1_minor(b, round);
		/* Pages that nobody has: each is allocated and zeroed, too. */
		mr = absent_mr(b, len, SMALL_PAGES);
		meter_begin(&m);
		sweep(b, IBV_WR_RDMA_WRITE, mr, len, PAGE, 8);
		meter_report(&m, "P1", "first-touch", round, P1_PAGES);
		drop_mr(mr);
	}
}

static void p2_transfer(struct bench *b, unsigned int round, const char *section,
			enum pages pages, bool present)
{
	struct ibv_mr *mr = absent_mr(b, P2_SIZE, pages);
	struct meter m;

	if (present)
		touch(mr->addr, P2_SIZE);
	meter_begin(&m);
	sweep(b, IBV_WR_RDMA_WRITE, mr, P2_SIZE, P2_OP, P2_OP);
	meter_report(&m, "P2", section, round, P2_SIZE / MiB);
	drop_mr(mr);
}

void line_p2(struct bench *b)
{
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		p2_transfer(b, round, "first-touch-4k", SMALL_PAGES, false);
		p2_transfer(b, round, "first-touch-thp", HUGE_PAGES, false);
		p2_transfer(b, round, "present-4k", SMALL_PAGES, true);
	}
}
