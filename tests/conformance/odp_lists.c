// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Work requests with lists: over regions of different rights, on demand and pinned, with
 * elements of no length, and inline. What is on demand was never touched, or is in memory but
 * not known to the device; every byte verified.
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

#define LEN	  (8 * PAGE)
#define SGES	  4
#define INLINE_LEN 64
#define TIMEOUT_S 20
#define SEED	  5

enum which { WRITABLE, READ_ONLY, FIXED, REGIONS };

struct part {
	enum which which;
	uint32_t from, len;
};

enum what { SEND, SEND_INLINE, READ, RECEIVE, SHARED_RECEIVE };

struct list_case {
	const char *name;
	enum what what;
	struct part part[SGES];
	int status;	/* of the side that has the list */
};

#define LOCAL_PROT IBV_WC_LOC_PROT_ERR

static const struct list_case cases[] = {
	{ "gather-rw-ro", SEND, { { WRITABLE, 104, 5000 }, { READ_ONLY, PAGE - 8, 16 } }, 0 },
	{ "gather-ro-rw", SEND, { { READ_ONLY, 8, 2 * PAGE }, { WRITABLE, 3 * PAGE, 8 } }, 0 },
	{ "gather-pinned", SEND, { { FIXED, 0, 8 }, { WRITABLE, PAGE, PAGE }, { FIXED, PAGE, 24 },
				   { READ_ONLY, 2 * PAGE + 8, 800 } }, 0 },
	{ "gather-empty", SEND, { { WRITABLE, 0, 16 }, { WRITABLE, 5 * PAGE, 0 },
				  { READ_ONLY, 7 * PAGE, 32 } }, 0 },
	{ "gather-nothing", SEND, { { WRITABLE, 0, 0 } }, 0 },
	{ "gather-inline", SEND_INLINE, { { WRITABLE, 16, 24 }, { READ_ONLY, 64, 40 } }, 0 },
	{ "scatter-rw", READ, { { WRITABLE, PAGE + 8, 8 }, { FIXED, 0, 3000 },
				{ WRITABLE, 3 * PAGE - 800, 1600 } }, 0 },
	{ "scatter-rw-ro", READ, { { WRITABLE, 0, 64 }, { READ_ONLY, 0, 64 } }, LOCAL_PROT },
	{ "scatter-ro-rw", READ, { { READ_ONLY, 0, 64 }, { WRITABLE, 0, 64 } }, LOCAL_PROT },
	{ "receive", RECEIVE, { { WRITABLE, 2 * PAGE - 16, 32 }, { FIXED, 8, 64 },
				{ WRITABLE, 6 * PAGE, PAGE } }, 0 },
	{ "receive-ro", RECEIVE, { { WRITABLE, 0, 64 }, { READ_ONLY, 0, 64 } }, LOCAL_PROT },
	{ "shared-receive", SHARED_RECEIVE, { { WRITABLE, PAGE - 8, 16 }, { FIXED, 0, 8 },
					      { WRITABLE, 4 * PAGE + 800, 4000 } }, 0 },
	{ "shared-receive-ro", SHARED_RECEIVE, { { WRITABLE, 0, 64 }, { READ_ONLY, 0, 64 } },
	  LOCAL_PROT },
};

struct bench {
	struct device dev;
	struct region buf;	/* pinned: the other end */
	struct region region[REGIONS];
	struct ibv_srq *srq;
	struct pair pair[2];	/* with a receive queue of its own, and with a shared one */
};

/* The memory of all regions is dropped, what is pinned is cleared. */
static void drop(struct bench *b)
{
	int i;

	for (i = 0; i < REGIONS; i++) {
		if (i == FIXED)
			memset(b->region[i].mem, 0, LEN);
		else if (madvise(b->region[i].mem, LEN, MADV_DONTNEED))
			die("MADV_DONTNEED: %s", strerror(errno));
	}
}

static int make_list(struct bench *b, const struct list_case *c, struct ibv_sge *sge,
		     uint32_t *total)
{
	int n;

	*total = 0;
	for (n = 0; n < SGES && (!n || c->part[n].len || c->part[n].from); n++) {
		const struct part *part = &c->part[n];
		struct region *region = &b->region[part->which];

		sge[n] = (struct ibv_sge){
			.addr = (uintptr_t)region->mem + part->from, .length = part->len,
			.lkey = region->mr->lkey,
		};
		*total += part->len;
	}
	return n;
}

static bool gathers(const struct list_case *c)
{
	return c->what == SEND || c->what == SEND_INLINE;
}

static int wait_for(struct pair *pair, int side)
{
	struct ibv_wc wc;

	return pair_poll(pair, side, &wc, TIMEOUT_S) ? (int)wc.status : NO_COMPLETION;
}

/* Posts the list, and the other side's part. Returns the status of the list's side. */
static int transfer(struct bench *b, const struct list_case *c, struct ibv_sge *sge, int n,
		    uint32_t total, int *other)
{
	struct pair *pair = &b->pair[c->what == SHARED_RECEIVE];
	struct ibv_recv_wr recv = { .sg_list = sge, .num_sge = n }, *bad_recv;
	struct ibv_send_wr wr = {
		.sg_list = sge, .num_sge = n, .send_flags = IBV_SEND_SIGNALED,
		.opcode = c->what == READ ? IBV_WR_RDMA_READ : IBV_WR_SEND,
		.wr.rdma.remote_addr = (uintptr_t)b->buf.mem, .wr.rdma.rkey = b->buf.mr->rkey,
	}, *bad;
	struct transfer_op op = {
		.opcode = IBV_WR_SEND, .local = b->buf.mem, .length = total,
		.lkey = b->buf.mr->lkey,
	};
	int err = 0, status;

	if (c->what == SEND_INLINE)
		wr.send_flags |= IBV_SEND_INLINE;
	switch (c->what) {
	case SEND:
	case SEND_INLINE:
		err = pair_post_recv(pair, 0, b->buf.mem, LEN, b->buf.mr->lkey);
		/* fall through */
	case READ:
		err = err ?: ibv_post_send(pair->qp[REQUESTER], &wr, &bad);
		break;
	case RECEIVE:
		err = ibv_post_recv(pair->qp[RESPONDER], &recv, &bad_recv);
		break;
	case SHARED_RECEIVE:
		err = ibv_post_srq_recv(b->srq, &recv, &bad_recv);
		break;
	}
	if (err)
		die("posting: %s", strerror(err));
	if (c->what == RECEIVE || c->what == SHARED_RECEIVE) {
		err = pair_post(pair, &op);
		if (err)
			die("ibv_post_send: %s", strerror(err));
		status = wait_for(pair, RESPONDER);
		*other = wait_for(pair, REQUESTER);
	} else {
		status = wait_for(pair, REQUESTER);
		*other = gathers(c) && !status ? wait_for(pair, RESPONDER) : 0;
	}
	return status;
}

static void run(struct bench *b, const struct list_case *c)
{
	struct counted before, after;
	struct ibv_sge sge[SGES];
	struct report r;
	uint32_t total, done = 0;
	int n, i, status, other;
	bool all = true, absent = false;

	report_begin(&r, "lists");
	report_str(&r, "case", c->name);
	drop(b);
	n = make_list(b, c, sge, &total);
	memset(b->buf.mem, 0, LEN);
	if (!gathers(c))
		pattern_fill(b->buf.mem, total, SEED, 0);
	for (i = 0; i < n; done += sge[i++].length) {
		absent |= c->part[i].which != FIXED && sge[i].length && c->what != SEND_INLINE;
		if (gathers(c))
			/* In memory, and not known to the device. */
			pattern_fill((void *)sge[i].addr, sge[i].length, SEED, done);
	}
	counted_now(b->dev.name, &before);
	status = transfer(b, c, sge, n, total, &other);
	counted_now(b->dev.name, &after);
	for (i = 0, done = 0; i < n; done += sge[i++].length) {
		void *is = gathers(c) ? b->buf.mem + done : (void *)sge[i].addr;

		all &= pattern_check(is, sge[i].length, SEED, done) == sge[i].length;
	}
	report_str(&r, "local", wc_status_name(status));
	report_str(&r, "other", wc_status_name(other));
	report_str(&r, "effect", all ? "all" : "not all");
	if (status != c->status)
		report_fail(&r, "%s, not %s", wc_status_name(status), wc_status_name(c->status));
	if (!status && other)
		report_fail(&r, "the other side: %s", wc_status_name(other));
	if (all != !c->status)
		report_fail(&r, all ? "the bytes have moved" : "the bytes have not all moved");
	report_counted(&r, &before, &after, !c->status && absent);
	report_end(&r);
	if (status || other)
		pair_reconnect(&b->pair[c->what == SHARED_RECEIVE]);
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
	.doc = "Lists over regions on demand.",
};

int main(int argc, char **argv)
{
	static const int access[REGIONS] = {
		[WRITABLE] = IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE,
		[READ_ONLY] = IBV_ACCESS_ON_DEMAND,
		[FIXED] = IBV_ACCESS_LOCAL_WRITE,
	};
	struct ibv_srq_init_attr init = { .attr = { .max_wr = 4, .max_sge = SGES } };
	struct bench b = { 0 };
	const char *name;
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	device_open(&b.dev, name);
	region_open(&b.buf, &b.dev, LEN, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	for (i = 0; i < REGIONS; i++)
		region_open(&b.region[i], &b.dev, LEN, access[i]);
	b.srq = ibv_create_srq(b.dev.pd, &init);
	if (!b.srq)
		die("%s: ibv_create_srq: %s", name, strerror(errno));
	for (i = 0; i < 2; i++)
		pair_create_lists(&b.pair[i], &b.dev, i ? b.srq : NULL, SGES, INLINE_LEN,
				  PAIR_TIMEOUT);
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		run(&b, &cases[i]);
	for (i = 0; i < 2; i++)
		pair_destroy(&b.pair[i]);
	if (ibv_destroy_srq(b.srq))
		die("ibv_destroy_srq: %s", strerror(errno));
	for (i = 0; i < REGIONS; i++)
		region_close(&b.region[i]);
	region_close(&b.buf);
	device_close(&b.dev);
	return report_exit_status();
}
