// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "transfer.h"
#include "pagemap.h"
#include "pattern.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POISON 0xa5
#define MAX_PASSES 1000		/* of one round: far more than chance can need */

int transfer_source(size_t size, uint64_t seed)
{
	int fd = memfd_create("source", MFD_CLOEXEC);
	void *fill;

	if (fd < 0 || ftruncate(fd, size))
		die("memfd of %zu bytes: %s", size, strerror(errno));
	fill = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fill == MAP_FAILED)
		die("mapping %zu bytes: %s", size, strerror(errno));
	pattern_fill(fill, size, seed, 0);
	munmap(fill, size);
	return fd;
}

static uint8_t *map(size_t size, int flags, int fd)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (mem == MAP_FAILED)
		die("mapping %zu bytes: %s", size, strerror(errno));
	return mem;
}

static void read_source(const struct transfer *t, uint8_t *to)
{
	size_t off = 0;
	ssize_t n;

	for (; off < t->size; off += n) {
		n = pread(t->source_fd, to + off, t->size - off, off);
		if (n <= 0)
			die("reading the memfd: %s", strerror(errno));
	}
}

static struct ibv_mr *register_side(struct transfer *t, void *mem, int access, bool pin)
{
	struct ibv_mr *mr;

	if (!pin && t->implicit)
		return implicit_mr(t->dev, access);
	if (!pin)
		return odp_mr(t->dev, mem, t->size, access);
	mr = ibv_reg_mr(t->dev->pd, mem, t->size, access);
	if (!mr)
		die("pinning %zu bytes: %s", t->size, strerror(errno));
	return mr;
}

void transfer_setup(struct transfer *t, bool one_sided, unsigned int depth)
{
	bool pin_src = one_sided && t->dir == DIR_WRITE;
	bool pin_dst = one_sided && t->dir == DIR_READ;
	int src_access = t->dir == DIR_READ ? IBV_ACCESS_REMOTE_READ : 0;
	int dst_access = IBV_ACCESS_LOCAL_WRITE;

	if (t->dir == DIR_WRITE)
		dst_access |= IBV_ACCESS_REMOTE_WRITE;
	t->ops = t->size / t->op_size;
	t->pages = t->size / PAGE;
	t->op = calloc(t->ops, sizeof(*t->op));
	t->todo = calloc(t->ops, sizeof(*t->todo));
	t->dropped = calloc(t->pages, sizeof(*t->dropped));
	if (!t->op || !t->todo || !t->dropped)
		die("out of memory");
	pthread_mutex_init(&t->world, NULL);

	if (pin_src) {
		t->src = map(t->size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		read_source(t, t->src);
	} else {
		t->src = map(t->size, MAP_SHARED, t->source_fd);
	}
	t->dst = map(t->size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (t->dir == DIR_READ)
		memset(t->dst, POISON, t->size);
	t->src_mr = register_side(t, t->src, src_access, pin_src);
	t->dst_mr = register_side(t, t->dst, dst_access, pin_dst);
	t->src_absent = absent_pages(t->src, t->pages);
	t->dst_absent = absent_pages(t->dst, t->pages);
	pair_create(&t->pair, t->dev, depth, PAIR_TIMEOUT);
}

void transfer_teardown(struct transfer *t)
{
	pair_destroy(&t->pair);
	if (ibv_dereg_mr(t->src_mr) || ibv_dereg_mr(t->dst_mr))
		die("%s: ibv_dereg_mr: %s", t->dev->name, strerror(errno));
	munmap(t->src, t->size);
	munmap(t->dst, t->size);
	free(t->op);
	free(t->todo);
	free(t->dropped);
	pthread_mutex_destroy(&t->world);
}

size_t transfer_src_offset(const struct transfer *t, uint64_t round, size_t off)
{
	return (off + round % t->ops * t->op_size) % t->size;
}

static void post(struct transfer *t, size_t index)
{
	size_t off = index * t->op_size;
	uint8_t *src = t->src + transfer_src_offset(t, t->round, off);
	uint8_t *dst = t->dst + off;
	struct transfer_op op = { .wr_id = index, .length = t->op_size };
	int err;

	if (t->dir == DIR_WRITE) {
		op.opcode = IBV_WR_RDMA_WRITE;
		op.local = src;
		op.lkey = t->src_mr->lkey;
		op.remote = (uintptr_t)dst;
		op.rkey = t->dst_mr->rkey;
	} else {
		op.opcode = IBV_WR_RDMA_READ;
		op.local = dst;
		op.lkey = t->dst_mr->lkey;
		op.remote = (uintptr_t)src;
		op.rkey = t->src_mr->rkey;
	}
	t->op[index].posted = ++t->clock;
	err = pair_post(&t->pair, &op);
	if (err)
		die("%s: ibv_post_send: %s", t->dev->name, strerror(err));
}

/* May this operation have met DST while it was read-only? */
static bool denial_allowed(struct transfer *t, const struct ibv_wc *wc)
{
	const struct op_state *op = &t->op[wc->wr_id];

	switch (wc->status) {
	case IBV_WC_REM_ACCESS_ERR:
	case IBV_WC_REM_OP_ERR:
	case IBV_WC_LOC_PROT_ERR:
		break;
	default:
		return false;
	}
	/* In this order: read_only_end is set before read_only is cleared. */
	return op->read_only || op->read_only_end > op->posted;
}

/*
 * An operation was refused: collect what is flushed, connect anew. RC completes in
 * order, so the first index that did not succeed is where to go on. Waits until the
 * range is writable again, lest it is refused once more.
 */
static bool recover(struct transfer *t, size_t index)
{
	double start = now();

	t->denied++;
	pair_reconnect(&t->pair);
	while (t->op[index].read_only) {
		if (now() - start > t->stall_s) {
			report_fail(t->report, "the disturbing thread is stuck in mprotect");
			return false;
		}
		sleep_ms(1);
	}
	return true;
}

/* Does the operations of t->todo. */
static bool run(struct transfer *t)
{
	size_t posted = 0, done = 0;
	struct ibv_wc wc;

	while (done < t->todo_len) {
		size_t index = t->todo[done];

		t->cursor = done;
		while (posted < t->todo_len && posted - done < t->pair.depth)
			post(t, t->todo[posted++]);
		if (!pair_poll(&t->pair, REQUESTER, &wc, t->stall_s)) {
			report_fail(t->report, "round %llu: no completion for %.0f s, operation %zu (offset %zu), QP %s/%s",
				    (unsigned long long)t->round, t->stall_s, index,
				    index * t->op_size,
				    qp_state_name(pair_state(&t->pair, REQUESTER)),
				    qp_state_name(pair_state(&t->pair, RESPONDER)));
			return false;
		}
		if (wc.wr_id != index) {
			report_fail(t->report, "round %llu: operation %llu completed, expected %zu",
				    (unsigned long long)t->round,
				    (unsigned long long)wc.wr_id, index);
			return false;
		}
		if (wc.status == IBV_WC_SUCCESS) {
			done++;
			t->completed++;
			continue;
		}
		if (!denial_allowed(t, &wc)) {
			report_fail(t->report, "round %llu: operation %zu (offset %zu): %s (%d), vendor %#x",
				    (unsigned long long)t->round, index,
				    index * t->op_size, wc_status_name(wc.status),
				    wc.status, wc.vendor_err);
			return false;
		}
		if (!recover(t, index))
			return false;
		posted = done;
	}
	return true;
}

enum finding { EXACT, UNDECIDED, WRONG };

static enum finding verify_page(struct transfer *t, size_t page)
{
	size_t off = page * PAGE;
	size_t src_off = transfer_src_offset(t, t->round, off);
	const uint64_t *word = (const uint64_t *)(t->dst + off);
	bool may_be_zero = t->dropped[page] > t->op[off / t->op_size].posted;
	size_t bad;

	if (!may_be_zero) {
		bad = pattern_check(word, PAGE, t->seed, src_off);
	} else {
		for (bad = 0; bad < PAGE; bad += 8)
			if (word[bad / 8] && word[bad / 8] !=
			    pattern_word(t->seed, src_off + bad))
				break;
	}
	if (bad == PAGE)
		return may_be_zero ? UNDECIDED : EXACT;
	report_fail(t->report, "round %llu: first mismatch at offset %zu (page dropped %s the operation): expected %#llx, got %#llx",
		    (unsigned long long)t->round, off + bad,
		    may_be_zero ? "after or during" : "not since",
		    (unsigned long long)pattern_word(t->seed, src_off + (bad & ~7ul)),
		    (unsigned long long)word[bad / 8]);
	return WRONG;
}

/* Verifies the operations of t->todo, keeps there those that are not found exact. */
static bool verify(struct transfer *t)
{
	size_t per_op = t->op_size / PAGE, kept = 0, i, page;

	for (i = 0; i < t->todo_len; i++) {
		enum finding worst = EXACT;

		for (page = 0; page < per_op && worst != WRONG; page++) {
			enum finding found = verify_page(t, t->todo[i] * per_op + page);

			worst = found > worst ? found : worst;
		}
		if (worst == WRONG)
			return false;
		if (worst == EXACT)
			t->verified += t->op_size;
		else
			t->todo[kept++] = t->todo[i];
	}
	t->todo_len = kept;
	t->cursor = 0;
	return true;
}

bool transfer_round(struct transfer *t)
{
	unsigned int passes = 0;
	bool ok;

	pthread_mutex_lock(&t->world);
	for (t->todo_len = 0; t->todo_len < t->ops; t->todo_len++)
		t->todo[t->todo_len] = t->todo_len;
	t->cursor = 0;
	pthread_mutex_unlock(&t->world);
	do {
		t->repeated += passes ? t->todo_len : 0;
		ok = run(t);
		pthread_mutex_lock(&t->world);
		ok = ok && verify(t);
		if (ok && !t->todo_len)
			t->round++;
		pthread_mutex_unlock(&t->world);
		if (++passes == MAX_PASSES) {
			report_fail(t->report, "round %llu: %zu operations are not exact after %u passes",
				    (unsigned long long)t->round, t->todo_len, passes);
			return false;
		}
	} while (ok && t->todo_len);
	return ok;
}
