// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Keys that refer to keys over memory on demand: memory windows, and keys that a user makes
 * by commands of its own (DEVX). Each kind of access, to memory that is not there; every byte
 * verified. For mlx5 devices.
 */
#define _GNU_SOURCE
#include "indirect.h"
#include "counted.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TIMEOUT_S 10
#define SEED	  7

enum op { WRITE, READ, GATHER, SCATTER, RECEIVE, OPS };

static const char *const op_names[OPS] = { "write", "read", "gather", "scatter", "receive" };

struct options {
	const char *dev;
	bool blocks;
};

struct bench {
	struct device dev;
	struct pair pair;
	struct region buf;	/* pinned: the other end of each access */
};

/* The device has to ask for all of it again. */
static void drop(struct target *t)
{
	int i;

	for (i = 0; i < REGIONS; i++)
		if (madvise(t->mem[i], REGION_LEN, MADV_DONTNEED))
			die("MADV_DONTNEED: %s", strerror(errno));
}

/* Between the pieces and one buffer, in the order of the key's addresses. */
static void copy(const struct target *t, uint8_t *flat, bool to_pieces)
{
	int i;

	for (i = 0; i < t->pieces; i++) {
		if (to_pieces)
			memcpy(t->piece[i].at, flat, t->piece[i].len);
		else
			memcpy(flat, t->piece[i].at, t->piece[i].len);
		flat += t->piece[i].len;
	}
}

/* What is not in a piece must stay as it was: zero. */
static bool rest_is_zero(const struct target *t)
{
	int i, j;
	size_t n;

	for (i = 0; i < t->pieces; i++)
		memset(t->piece[i].at, 0, t->piece[i].len);
	for (i = 0; i < REGIONS; i++)
		for (j = 0; j < REGION_LEN / PAGE; j++)
			for (n = 0; n < PAGE; n++)
				if (t->mem[i][j * PAGE + n])
					return false;
	return true;
}

static int access_by(struct bench *b, const struct target *t, enum op op)
{
	bool local = op == GATHER || op == SCATTER;
	struct transfer_op wr = {
		.opcode = op == READ || op == SCATTER ? IBV_WR_RDMA_READ :
			  op == RECEIVE ? IBV_WR_SEND : IBV_WR_RDMA_WRITE,
		.local = local ? (void *)t->addr : b->buf.mem,
		.lkey = local ? t->key : b->buf.mr->lkey,
		.remote = local ? (uintptr_t)b->buf.mem : t->addr,
		.rkey = local ? b->buf.mr->rkey : t->key,
		.length = t->len,
	};
	struct ibv_wc wc;
	int status, err;

	if (op == RECEIVE) {
		err = pair_post_recv(&b->pair, 0, (void *)t->addr, t->len, t->key);
		if (err)
			die("ibv_post_recv: %s", strerror(err));
	}
	status = pair_do(&b->pair, &wr, TIMEOUT_S);
	if (status || op != RECEIVE)
		return status;
	return pair_poll(&b->pair, RESPONDER, &wc, TIMEOUT_S) ? (int)wc.status : NO_COMPLETION;
}

static void run(struct bench *b, struct target *t, enum op op)
{
	bool into = op == WRITE || op == SCATTER || op == RECEIVE;
	uint8_t *flat = malloc(t->len);
	struct counted before, after;
	char name[64];
	struct report r;
	int status;
	bool all;

	if (!flat)
		die("no memory");
	snprintf(name, sizeof(name), "%s-%s", t->name, op_names[op]);
	report_begin(&r, "indirect");
	report_str(&r, "case", name);
	drop(t);
	pattern_fill(flat, t->len, SEED, op * BUFFER_LEN);
	if (into) {
		memcpy(b->buf.mem, flat, t->len);
	} else {
		/* Present in the process, but not to the device. */
		copy(t, flat, true);
		memset(b->buf.mem, 0, t->len);
	}
	counted_now(b->dev.name, &before);
	status = access_by(b, t, op);
	counted_now(b->dev.name, &after);
	if (into)
		copy(t, flat, false);
	all = !memcmp(flat, b->buf.mem, t->len);
	report_str(&r, "local", wc_status_name(status));
	report_str(&r, "effect", all ? "all" : "not all");
	if (status != t->status)
		report_fail(&r, "%s, not %s", wc_status_name(status), wc_status_name(t->status));
	if (all != !t->status)
		report_fail(&r, all ? "the bytes have moved" : "the bytes have not all moved");
	if (!rest_is_zero(t))
		report_fail(&r, "something lies beside the pieces");
	/* The pages are missing, unless the access ends before. */
	report_counted(&r, &before, &after, t->status ? 0 : 1);
	report_end(&r);
	if (status)
		pair_reconnect(&b->pair);
	free(flat);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	(void)arg;
	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'b': o->blocks = true; return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "blocks", 'b', NULL, 0, "Strided blocks and KSMs, and nothing else", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "Memory windows and DEVX keys over memory on demand.",
};

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct bench b = { 0 };
	struct target t;
	int kind, op;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	device_open(&b.dev, o.dev);
	region_open(&b.buf, &b.dev, BUFFER_LEN, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
						IBV_ACCESS_REMOTE_READ);
	pair_create(&b.pair, &b.dev, 4, PAIR_TIMEOUT);
	for (kind = 0; kind < KINDS; kind++) {
		if (o.blocks != (kind == STRIDED || kind == KSM))
			continue;
		target_open(&t, &b.dev, b.pair.qp[RESPONDER], kind);
		for (op = 0; op < OPS; op++)
			if (op == WRITE || op == READ || t.is_local)
				run(&b, &t, op);
		target_close(&t);
	}
	pair_destroy(&b.pair);
	region_close(&b.buf);
	device_close(&b.dev);
	return report_exit_status();
}
