/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * What the lines of odp_bench share. A line is one function; it reports each measured
 * section once a round (meter.h).
 */
#ifndef CONFORMANCE_BENCH_H
#define CONFORMANCE_BENCH_H

#include "meter.h"
#include "rdma.h"

#define MiB	(1ull << 20)
#define GiB	(1ull << 30)
#define CHUNK	(2 * MiB)	/* what a page-table page of the CPU maps, and a huge page */

#define RW (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)

struct bench {
	struct device dev;
	struct pair pair;
	struct region local;	/* pinned: the other end of every operation */
	unsigned int rounds;
	/* Pairs for the lines that fault from many QPs at once; see crowd(). */
	struct pair *crowd;
	unsigned int crowd_size;
};

#define NO_TIMEOUT	0	/* of a pair: waits for ever for what is held on purpose */

#define LOCAL_SIZE	(4 * MiB)

/* Private anonymous memory, aligned to CHUNK, all or none of it in huge pages. */
enum pages { SMALL_PAGES, HUGE_PAGES };
uint8_t *map_memory(size_t len, enum pages pages);
void unmap_memory(void *mem, size_t len);

/* One page in so many bytes, and none between: a driver that looks around finds nothing. */
#define APART	(16 * PAGE)

/* Writes a byte of each page of the CPU. */
void touch(uint8_t *mem, size_t len);

/* The same of one page in STRIDE bytes. */
void touch_each(uint8_t *mem, size_t len, size_t stride);

/* Posts; dies if that is refused. */
void post(struct pair *pair, const struct transfer_op *op);

/*
 * Waits for the next completion and dies unless it is a success. Spins without a system
 * call: no instruction of the kernel is the measuring program's. It is SCHED_IDLE, so
 * that kernel threads come first all the same.
 */
void complete(struct pair *pair);

/* READs or WRITEs SIZE bytes at OFFSET of MR, and waits for it. */
void transfer(struct bench *b, enum ibv_wr_opcode opcode, struct ibv_mr *mr, size_t offset,
	      uint32_t size);

/* READs or WRITEs SIZE bytes at every STRIDE of MR's LEN bytes, one after the other. */
void sweep(struct bench *b, enum ibv_wr_opcode opcode, struct ibv_mr *mr, size_t len,
	   size_t stride, uint32_t size);

/* Makes sure of N pairs in b->crowd. */
void crowd(struct bench *b, unsigned int n);

/* What is posted on pair I of the crowd: SIZE bytes at OFFSET of MR. */
struct transfer_op crowd_op(struct bench *b, enum ibv_wr_opcode opcode, unsigned int i,
			    struct ibv_mr *mr, uint64_t offset, uint32_t size);

/* The lines. */
void line_p1(struct bench *b);	/* bench_fault.c */
void line_p2(struct bench *b);
void line_p3(struct bench *b);	/* bench_memory.c */
void line_p4(struct bench *b);	/* bench_mr.c */
void line_p5(struct bench *b);
void line_p13(struct bench *b);
void line_p6(struct bench *b);	/* bench_many.c */
void line_p9(struct bench *b);
void line_p11(struct bench *b);
void line_p12(struct bench *b);
void line_unmap64(struct bench *b);
void line_p7(struct bench *b);	/* bench_probe.c */
void line_p8(struct bench *b);	/* bench_held.c */

#endif
