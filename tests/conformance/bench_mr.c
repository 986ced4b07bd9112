// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P4, P5 and P13: registering, taking memory back, and the whole life of an MR. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PRESENT_SIZE	(256 * MiB)
#define SPARSE_SIZE	GiB
#define SPARSE_STRIDE	(100 * PAGE)	/* 1 % of the pages */
#define OP_SIZE		65536

static void deregister(struct ibv_mr *mr)
{
	int err = ibv_dereg_mr(mr);

	if (err)
		die("ibv_dereg_mr: %s", strerror(err));
}

/* Address space without a page: registration finds nothing to map. */
static void p4_untouched(struct bench *b, unsigned int round, size_t gib, bool accessible)
{
	const char *kind = accessible ? "untouched" : "none";
	uint8_t *mem = mmap(NULL, gib * GiB, accessible ? PROT_READ | PROT_WRITE : PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char section[64];
	struct ibv_mr *mr;
	struct meter m;

	if (mem == MAP_FAILED)
		die("mapping %zu GiB: %s", gib, strerror(errno));
	meter_begin(&m);
	mr = odp_mr(&b->dev, mem, gib * GiB, RW);
	snprintf(section, sizeof(section), "register-%zug-%s", gib, kind);
	meter_report(&m, "P4", section, round, 1);

	meter_begin(&m);
	deregister(mr);
	snprintf(section, sizeof(section), "deregister-%zug-%s", gib, kind);
	meter_report(&m, "P4", section, round, 1);
	unmap_memory(mem, gib * GiB);
}

static void p4_present(struct bench *b, unsigned int round)
{
	uint8_t *mem = map_memory(PRESENT_SIZE, SMALL_PAGES);
	struct ibv_mr *mr;
	struct meter m;

	touch(mem, PRESENT_SIZE);
	meter_begin(&m);
	mr = odp_mr(&b->dev, mem, PRESENT_SIZE, RW);
	meter_report(&m, "P4", "register-256m-present", round, 1);

	/* What was present when it was registered raises no fault. */
	meter_begin(&m);
	sweep(b, IBV_WR_RDMA_READ, mr, PRESENT_SIZE, MiB, MiB);
	meter_report(&m, "P4", "read-256m-present", round, 1);

	meter_begin(&m);
	deregister(mr);
	meter_report(&m, "P4", "deregister-256m-present", round, 1);
	unmap_memory(mem, PRESENT_SIZE);
}

void line_p4(struct bench *b)
{
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		p4_untouched(b, round, 1, true);
		p4_untouched(b, round, 1, false);
		p4_present(b, round);
	}
	/* Once: billions of instructions, and the same within a thousandth. */
	p4_untouched(b, 0, 64, true);
	p4_untouched(b, 0, 64, false);
}

static void take_back(uint8_t *mem, size_t len, bool unmap)
{
	if (unmap ? munmap(mem, len) : madvise(mem, len, MADV_DONTNEED))
		die("taking %zu bytes back: %s", len, strerror(errno));
}

static void p5_sparse(struct bench *b, unsigned int round, bool unmap)
{
	uint8_t *mem = map_memory(SPARSE_SIZE, SMALL_PAGES);
	struct ibv_mr *mr = odp_mr(&b->dev, mem, SPARSE_SIZE, RW);
	struct meter m;

	sweep(b, IBV_WR_RDMA_WRITE, mr, SPARSE_SIZE, SPARSE_STRIDE, 8);
	meter_begin(&m);
	take_back(mem, SPARSE_SIZE, unmap);
	meter_report(&m, "P5", unmap ? "munmap-1g-sparse" : "dontneed-1g-sparse", round, 1);
	deregister(mr);
	if (!unmap)
		unmap_memory(mem, SPARSE_SIZE);
}

static void p5_full(struct bench *b, unsigned int round, bool unmap)
{
	uint8_t *mem = map_memory(PRESENT_SIZE, SMALL_PAGES);
	struct ibv_mr *mr;
	struct meter m;

	touch(mem, PRESENT_SIZE);
	mr = odp_mr(&b->dev, mem, PRESENT_SIZE, RW);
	/* Every page is the device's, whether registration mapped it or not. */
	sweep(b, IBV_WR_RDMA_READ, mr, PRESENT_SIZE, MiB, MiB);
	meter_begin(&m);
	take_back(mem, PRESENT_SIZE, unmap);
	meter_report(&m, "P5", unmap ? "munmap-256m-full" : "dontneed-256m-full", round, 1);
	deregister(mr);
	if (!unmap)
		unmap_memory(mem, PRESENT_SIZE);
}

void line_p5(struct bench *b)
{
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		p5_sparse(b, round, true);
		p5_sparse(b, round, false);
		p5_full(b, round, true);
		p5_full(b, round, false);
	}
}

/* What a user weighs: the whole cost of using memory once, pinned and on demand. */
static void p13_life(struct bench *b, unsigned int round, enum pages pages, bool on_demand)
{
	uint8_t *mem = map_memory(PRESENT_SIZE, pages);
	char section[32];
	struct ibv_mr *mr;
	struct meter m;

	meter_begin(&m);
	mr = ibv_reg_mr(b->dev.pd, mem, PRESENT_SIZE,
			on_demand ? RW | IBV_ACCESS_ON_DEMAND : RW);
	if (!mr)
		die("registering %llu bytes: %s", PRESENT_SIZE, strerror(errno));
	sweep(b, IBV_WR_RDMA_WRITE, mr, PRESENT_SIZE, OP_SIZE, OP_SIZE);
	deregister(mr);
	snprintf(section, sizeof(section), "%s-%s", on_demand ? "odp" : "pinned",
		 pages == HUGE_PAGES ? "thp" : "4k");
	meter_report(&m, "P13", section, round, 1);
	unmap_memory(mem, PRESENT_SIZE);
}

void line_p13(struct bench *b)
{
	unsigned int round;

	for (round = 0; round < b->rounds; round++) {
		p13_life(b, round, SMALL_PAGES, false);
		p13_life(b, round, SMALL_PAGES, true);
		p13_life(b, round, HUGE_PAGES, false);
		p13_life(b, round, HUGE_PAGES, true);
	}
}
