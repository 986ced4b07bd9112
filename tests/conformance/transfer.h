/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Rounds of RDMA WRITE or READ that copy SRC to DST, and the exact rule by which
 * DST is judged while another thread takes its pages away.
 *
 * SRC is a shared mapping of a memfd: dropping its pages loses nothing. (Or it is pinned:
 * see transfer_setup().) DST is private anonymous memory. Round R copies SRC rotated by R operations, so that no
 * page of DST keeps its content from one round to the next.
 *
 * After all operations of a round, with the disturbing thread held (transfer.world):
 *   - a page of DST whose last MADV_DONTNEED returned before the (last) operation on
 *     it was posted, holds that operation's data, every byte;
 *   - any other page holds, 64-bit word by word, that data or zero.
 * So a write that lands in a page that was taken back is seen: it is missing here. The
 * operations that have pages of the second kind are done again, disturbed again, until
 * each one has been found exact: a round verifies every byte.
 */
#ifndef CONFORMANCE_TRANSFER_H
#define CONFORMANCE_TRANSFER_H

#include "devctl.h"
#include "rdma.h"
#include "report.h"

#include <pthread.h>
#include <stdatomic.h>

enum direction { DIR_WRITE, DIR_READ };

/* Bookkeeping of one operation's range; times are values of transfer.clock. */
struct op_state {
	uint64_t posted;		/* when it was last posted in this round */
	_Atomic uint64_t read_only_end;	/* when DST became writable again */
	atomic_bool read_only;		/* DST is, or is about to be, read-only */
};

struct transfer {
	struct device *dev;
	struct pair pair;
	enum direction dir;
	size_t size, op_size;
	size_t ops, pages;
	uint64_t seed;
	double stall_s;			/* an operation may take this long */
	bool implicit;			/* what is on demand is all of the memory */
	int source_fd;			/* transfer_source() */

	uint8_t *src, *dst;
	struct ibv_mr *src_mr, *dst_mr;
	size_t src_absent, dst_absent;	/* pages not mapped in before the traffic */

	/* Held by the disturbing thread for each action, by verification. */
	pthread_mutex_t world;
	_Atomic uint64_t clock;
	_Atomic uint64_t round;
	struct op_state *op;		/* per operation */
	size_t *todo, todo_len;		/* operations of this pass, ascending */
	_Atomic uint64_t cursor;	/* the first of them that is not completed */
	uint64_t *dropped;		/* per page: when its last drop had returned */

	_Atomic uint64_t completed;	/* operations, in all */
	uint64_t denied;		/* operations refused while DST was read-only */
	uint64_t repeated;		/* operations done again to be found exact */
	uint64_t verified;		/* bytes, each found exact */
	struct report *report;
};

/* A memfd with the data of SRC, for as many transfers of this SIZE and SEED as need it. */
int transfer_source(size_t size, uint64_t seed);

/*
 * With ONE_SIDED only the side is on demand that the transfer is about, so that every fault
 * is one of it: the target of a WRITE, the source of a READ. The other one is private
 * anonymous memory, pinned.
 */
void transfer_setup(struct transfer *t, bool one_sided, unsigned int depth);
void transfer_teardown(struct transfer *t);

/* Runs one round and verifies it. False (and a failed report) ends the test. */
bool transfer_round(struct transfer *t);

/* The offset in SRC that round ROUND copies to offset OFF of DST. */
size_t transfer_src_offset(const struct transfer *t, uint64_t round, size_t off);

#endif
