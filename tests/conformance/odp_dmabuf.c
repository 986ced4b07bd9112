// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * MRs of a dma-buf: bytes, with an exporter that moves the memory before, between and during
 * accesses, into blocks of other sizes; that refuses to say where it is for a while, and for
 * good; accesses that the MR does not allow. The exporter is odp_exporter.ko.
 */
#define _GNU_SOURCE
#include "counted.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include "../../drivers/odp_exporter/odp_exporter.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LEN	  (1 << 20)
#define TIMEOUT_S 30
#define ALL	  (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)
#define READ_ONLY IBV_ACCESS_REMOTE_READ
#define ORDER_0	  0
#define ORDER_4	  4
#define ROUNDS	  100
#define MOVES	  6	/* in each of them */

/* An exporter's buffer, and an MR of a part of it. */
struct buffer {
	int exporter, fd;
	struct ibv_mr *mr;
	size_t offset, len;
	uint64_t iova;
};

struct bench {
	struct device dev;
	struct pair pair;
	struct region peer;
};

static void export(struct buffer *b, size_t size, unsigned int order)
{
	struct odp_export arg = { .size = size, .order = order };

	b->exporter = open(ODP_EXPORTER_PATH, O_RDWR | O_CLOEXEC);
	if (b->exporter < 0)
		die("%s: %s (odp_exporter.ko)", ODP_EXPORTER_PATH, strerror(errno));
	b->fd = ioctl(b->exporter, ODP_EXPORT, &arg);
	if (b->fd < 0)
		die("ODP_EXPORT: %s", strerror(errno));
}

static void move(struct buffer *b, uint32_t order)
{
	if (ioctl(b->exporter, ODP_MOVE, &order))
		die("ODP_MOVE: %s", strerror(errno));
}

static void refuse(struct buffer *b, uint32_t times, int error)
{
	struct odp_refuse arg = { .times = times, .error = error };

	if (ioctl(b->exporter, ODP_REFUSE, &arg))
		die("ODP_REFUSE: %s", strerror(errno));
}

static uint64_t mapped(struct buffer *b)
{
	struct odp_exported exported;

	if (ioctl(b->exporter, ODP_EXPORTED, &exported))
		die("ODP_EXPORTED: %s", strerror(errno));
	return exported.mapped;
}

/* Reads, or writes, all of what the MR is of, from wherever it is. */
static void copy(struct buffer *b, uint8_t *bytes, bool write)
{
	size_t at = 0;
	ssize_t done;

	while (at < b->len) {
		off_t pos = b->offset + at;

		done = write ? pwrite(b->exporter, bytes + at, b->len - at, pos) :
			       pread(b->exporter, bytes + at, b->len - at, pos);
		if (done <= 0)
			die("%s: %s", ODP_EXPORTER_PATH, strerror(errno));
		at += done;
	}
}

/* NULL, with errno, if it is refused. */
static struct ibv_mr *reg(struct bench *bench, struct buffer *b, size_t offset, size_t len,
			  uint64_t iova, int access)
{
	b->offset = offset;
	b->len = len;
	b->iova = iova;
	b->mr = ibv_reg_dmabuf_mr(bench->dev.pd, offset, len, iova, b->fd, access);
	return b->mr;
}

/* Of all of a buffer of its own. */
static void open_buffer(struct bench *bench, struct buffer *b, unsigned int order, int access)
{
	export(b, LEN, order);
	if (!reg(bench, b, 0, LEN, 0x10000000, access))
		die("ibv_reg_dmabuf_mr: %s", strerror(errno));
}

static void close_buffer(struct buffer *b, struct report *r)
{
	if (b->mr && ibv_dereg_mr(b->mr))
		report_fail(r, "ibv_dereg_mr: %s", strerror(errno));
	if (b->mr && mapped(b))
		report_fail(r, "still mapped after the MR is gone");
	close(b->fd);
	close(b->exporter);
}

static void begin(struct report *r, const char *name)
{
	char text[80];

	snprintf(text, sizeof(text), "dmabuf-%s", name);
	report_begin(r, "dmabuf");
	report_str(r, "case", text);
}

/* One access of all of the MR, or of LEN bytes of it from OFF on. */
static int access_at(struct bench *bench, struct buffer *b, enum ibv_wr_opcode opcode,
		     int64_t off, size_t len)
{
	struct transfer_op op = {
		.opcode = opcode, .local = bench->peer.mem, .length = len,
		.lkey = bench->peer.mr->lkey, .remote = b->iova + off, .rkey = b->mr->rkey,
	};

	return pair_do(&bench->pair, &op, TIMEOUT_S);
}

/* Writes bytes that are then in the buffer, and reads others that were put there. */
static void both_ways(struct bench *bench, struct buffer *b, struct report *r, uint64_t seed)
{
	uint8_t *bytes = malloc(b->len);
	int status;

	if (!bytes)
		die("out of memory");
	pattern_fill(bench->peer.mem, b->len, seed, 0);
	status = access_at(bench, b, IBV_WR_RDMA_WRITE, 0, b->len);
	if (status != IBV_WC_SUCCESS) {
		report_fail(r, "RDMA WRITE: %s", wc_status_name(status));
		goto free;
	}
	copy(b, bytes, false);
	if (pattern_check(bytes, b->len, seed, 0) != b->len)
		report_fail(r, "what was written is not there");

	pattern_fill(bytes, b->len, seed + 1, 0);
	copy(b, bytes, true);
	memset(bench->peer.mem, 0, b->len);
	status = access_at(bench, b, IBV_WR_RDMA_READ, 0, b->len);
	if (status != IBV_WC_SUCCESS)
		report_fail(r, "RDMA READ: %s", wc_status_name(status));
	else if (pattern_check(bench->peer.mem, b->len, seed + 1, 0) != b->len)
		report_fail(r, "what was read is not what is there");
free:
	free(bytes);
}

/* It moves before and between accesses, each time into blocks of another size. */
static void moves(struct bench *bench)
{
	static const unsigned int orders[] = { 0, 0, 4, 8, 1, 0, 8 };
	struct buffer b;
	struct report r;
	size_t i;

	begin(&r, "moves");
	open_buffer(bench, &b, ORDER_0, ALL);
	for (i = 0; i < sizeof(orders) / sizeof(*orders) && r.ok; i++) {
		both_ways(bench, &b, &r, 2 * i + 1);
		move(&b, orders[i]);
		if (mapped(&b))
			report_fail(&r, "still mapped after it has moved");
	}
	report_str(&r, "effect", r.ok ? "all" : "not");
	close_buffer(&b, &r);
	report_end(&r);
}

/* A part of a buffer; where the MR begins, for the device and in the buffer, in all ways. */
static void parts(struct bench *bench)
{
	static const struct {
		size_t offset, len;
		uint64_t iova;
	} parts[] = {
		{ 0, LEN, 0 },
		{ 0, PAGE, 0x7000 },
		{ 3 * PAGE, 5 * PAGE, 0x123000 },
		{ LEN - PAGE, PAGE, 0x40000000 },
		{ 100, 3 * PAGE, 0x10000064 },
		{ PAGE + 8, 8, 0x20001008 },
	};
	char name[80];
	size_t i;

	for (i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
		struct buffer b;
		struct report r;

		snprintf(name, sizeof(name), "part-%zu", i);
		begin(&r, name);
		export(&b, LEN, ORDER_4);
		if (!reg(bench, &b, parts[i].offset, parts[i].len, parts[i].iova, ALL)) {
			report_str(&r, "errno", strerrorname_np(errno));
			report_fail(&r, "ibv_reg_dmabuf_mr: %s", strerror(errno));
		} else {
			both_ways(bench, &b, &r, 1);
			move(&b, ORDER_0);
			both_ways(bench, &b, &r, 3);
			report_str(&r, "effect", r.ok ? "all" : "not");
		}
		close_buffer(&b, &r);
		report_end(&r);
	}
}

/* Registrations that must be refused. */
static void bad_registrations(struct bench *bench)
{
	static const struct {
		const char *name;
		uint64_t offset, len;
		bool not_dmabuf;
		int access;
	} bad[] = {
		{ "beyond-the-end", 0, LEN + 1, false, ALL },
		{ "offset-beyond", LEN, PAGE, false, ALL },
		{ "wraps", UINT64_MAX, 2, false, ALL },
		{ "empty", 0, 0, false, ALL },
		{ "no-dmabuf", 0, LEN, true, ALL },
		{ "remote-write-alone", 0, LEN, false, IBV_ACCESS_REMOTE_WRITE },
	};
	struct buffer b;
	struct report r;
	char name[80];
	size_t i;

	export(&b, LEN, ORDER_0);
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct ibv_mr *mr;

		snprintf(name, sizeof(name), "register-%s", bad[i].name);
		begin(&r, name);
		errno = 0;
		mr = ibv_reg_dmabuf_mr(bench->dev.pd, bad[i].offset, bad[i].len, 0x1000000,
				       bad[i].not_dmabuf ? b.exporter : b.fd, bad[i].access);
		report_str(&r, "errno", mr ? "0" : strerrorname_np(errno));
		if (mr) {
			report_fail(&r, "it was registered");
			ibv_dereg_mr(mr);
		}
		report_end(&r);
	}

	begin(&r, "register-refused");
	refuse(&b, 1, ENOSPC);
	errno = 0;
	if (reg(bench, &b, 0, LEN, 0, ALL))
		report_fail(&r, "it was registered");
	report_str(&r, "errno", strerrorname_np(errno));
	report_end(&r);
	close_buffer(&b, &r);
}

/* What the MR does not allow, and what lies outside of it. */
static void denied(struct bench *bench)
{
	static const struct {
		const char *name;
		int access;
		enum ibv_wr_opcode opcode;
		int64_t off;
		size_t len;
		bool allowed;
	} cases[] = {
		{ "read-only-read", READ_ONLY, IBV_WR_RDMA_READ, 0, LEN, true },
		{ "read-only-write", READ_ONLY, IBV_WR_RDMA_WRITE, 0, 8, false },
		{ "last-byte", ALL, IBV_WR_RDMA_WRITE, LEN - 1, 1, true },
		{ "one-beyond", ALL, IBV_WR_RDMA_WRITE, LEN - 1, 2, false },
		{ "before", ALL, IBV_WR_RDMA_READ, -1, 2, false },
		{ "behind", ALL, IBV_WR_RDMA_READ, LEN, 1, false },
	};
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct buffer b;
		struct report r;
		int status;

		begin(&r, cases[i].name);
		pair_reconnect(&bench->pair);
		open_buffer(bench, &b, ORDER_0, cases[i].access);
		/* So that it faults. */
		move(&b, ORDER_0);
		status = access_at(bench, &b, cases[i].opcode, cases[i].off, cases[i].len);
		report_str(&r, "local", wc_status_name(status));
		if ((status == IBV_WC_SUCCESS) != cases[i].allowed)
			report_fail(&r, "%s", wc_status_name(status));
		close_buffer(&b, &r);
		report_end(&r);
	}
	pair_reconnect(&bench->pair);
}

/*
 * An exporter that cannot say where it is for so often, or for good. What comes of it is for
 * compare.py to judge.
 */
static void refused(struct bench *bench, const char *name, uint32_t times, int error)
{
	struct buffer b;
	struct report r;
	int status;

	begin(&r, name);
	open_buffer(bench, &b, ORDER_0, ALL);
	move(&b, ORDER_0);
	refuse(&b, times, error);
	status = access_at(bench, &b, IBV_WR_RDMA_WRITE, 0, LEN);
	report_str(&r, "local", wc_status_name(status));
	if (status == NO_COMPLETION)
		report_fail(&r, "no completion");
	close_buffer(&b, &r);
	pair_reconnect(&bench->pair);
	report_end(&r);
}

/* The MR's own side: what a READ brings goes into the buffer, what a WRITE takes is of it. */
static void local(struct bench *bench)
{
	struct transfer_op op = {
		.length = LEN, .remote = (uintptr_t)bench->peer.mem,
		.rkey = bench->peer.mr->rkey,
	};
	uint8_t *bytes = malloc(LEN);
	struct buffer b;
	struct report r;
	int status;

	begin(&r, "local");
	if (!bytes)
		die("out of memory");
	open_buffer(bench, &b, ORDER_4, ALL);
	op.local = (void *)(uintptr_t)b.iova;
	op.lkey = b.mr->lkey;

	move(&b, ORDER_0);
	pattern_fill(bench->peer.mem, LEN, 11, 0);
	op.opcode = IBV_WR_RDMA_READ;
	status = pair_do(&bench->pair, &op, TIMEOUT_S);
	copy(&b, bytes, false);
	if (status != IBV_WC_SUCCESS)
		report_fail(&r, "RDMA READ: %s", wc_status_name(status));
	else if (pattern_check(bytes, LEN, 11, 0) != LEN)
		report_fail(&r, "what was read is not in the buffer");

	move(&b, ORDER_4);
	memset(bench->peer.mem, 0, LEN);
	op.opcode = IBV_WR_RDMA_WRITE;
	status = pair_do(&bench->pair, &op, TIMEOUT_S);
	if (status != IBV_WC_SUCCESS)
		report_fail(&r, "RDMA WRITE: %s", wc_status_name(status));
	else if (pattern_check(bench->peer.mem, LEN, 11, 0) != LEN)
		report_fail(&r, "what was written is not what is in the buffer");
	report_str(&r, "effect", r.ok ? "all" : "not");
	close_buffer(&b, &r);
	report_end(&r);
	free(bytes);
}

struct mover {
	struct buffer *buffer;
	atomic_bool stop;
	atomic_uint rounds;
	uint64_t moves;
};

/*
 * So many times in each round and no more: an access to memory that always moves before the
 * device gets on with it never ends, on a busy host.
 */
static void *keep_moving(void *arg)
{
	static const unsigned int orders[] = { 0, 4, 2, 8 };
	struct mover *m = arg;

	while (!atomic_load(&m->stop)) {
		if (m->moves / MOVES > atomic_load(&m->rounds))
			sleep_ms(1);
		else
			move(m->buffer, orders[m->moves++ % 4]);
	}
	return NULL;
}

/*
 * It moves in every round. A WRITE that is under way while it does may be repeated, but what it
 * wrote is where the buffer is in the end.
 */
static void under_traffic(struct bench *bench, uint64_t rounds)
{
	struct mover mover = { .moves = 0 };
	uint64_t round;
	pthread_t thread;
	struct buffer b;
	struct report r;

	begin(&r, "under-traffic");
	open_buffer(bench, &b, ORDER_0, ALL);
	mover.buffer = &b;
	if (pthread_create(&thread, NULL, keep_moving, &mover))
		die("pthread_create failed");
	for (round = 0; round < rounds && r.ok; round++) {
		both_ways(bench, &b, &r, 2 * round + 1);
		atomic_fetch_add(&mover.rounds, 1);
	}
	atomic_store(&mover.stop, true);
	pthread_join(thread, NULL);
	if (mover.moves < rounds / 10)
		report_fail(&r, "it moved %llu times only", (unsigned long long)mover.moves);
	report_str(&r, "effect", r.ok ? "all" : "not");
	report_u64(&r, "moves", mover.moves);
	if (r.ok)
		report_u64(&r, "bytes_verified", 2 * rounds * LEN);
	close_buffer(&b, &r);
	report_end(&r);
}

/* The MR goes while it moves. */
static void dereg_while_it_moves(struct bench *bench)
{
	struct mover mover = { .moves = 0 };
	struct buffer b;
	struct report r;
	pthread_t thread;
	size_t i;

	begin(&r, "dereg-while-it-moves");
	export(&b, LEN, ORDER_0);
	mover.buffer = &b;
	if (pthread_create(&thread, NULL, keep_moving, &mover))
		die("pthread_create failed");
	for (i = 0; i < 50 && r.ok; i++) {
		if (!reg(bench, &b, 0, LEN, 0x10000000, ALL)) {
			report_fail(&r, "ibv_reg_dmabuf_mr: %s", strerror(errno));
			break;
		}
		access_at(bench, &b, IBV_WR_RDMA_WRITE, 0, LEN);
		if (ibv_dereg_mr(b.mr))
			report_fail(&r, "ibv_dereg_mr: %s", strerror(errno));
		b.mr = NULL;
		atomic_fetch_add(&mover.rounds, 1);
	}
	atomic_store(&mover.stop, true);
	pthread_join(thread, NULL);
	if (mapped(&b))
		report_fail(&r, "still mapped after the MRs are gone");
	report_str(&r, "effect", r.ok ? "all" : "not");
	close_buffer(&b, &r);
	report_end(&r);
}

/* ibv_advise_mr brings it in. */
static void advised(struct bench *bench)
{
	struct device_counters before, after;
	struct ibv_sge sge = { .length = PAGE };
	struct buffer b;
	struct report r;
	int err;

	begin(&r, "advised");
	open_buffer(bench, &b, ORDER_0, ALL);
	move(&b, ORDER_0);
	sge.addr = b.iova;
	sge.lkey = b.mr->lkey;
	err = ibv_advise_mr(bench->dev.pd, IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE,
			    IBV_ADVISE_MR_FLAG_FLUSH, &sge, 1);
	report_str(&r, "errno", err ? strerrorname_np(err) : "0");
	device_counters(bench->dev.name, &before);
	both_ways(bench, &b, &r, 1);
	device_counters(bench->dev.name, &after);
	if (before.valid && after.faults != before.faults)
		report_fail(&r, "%llu faults",
			    (unsigned long long)(after.faults - before.faults));
	close_buffer(&b, &r);
	report_end(&r);
}

struct options {
	const char *dev;
	uint64_t rounds;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'r': o->rounds = parse_size("--rounds", arg); return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "rounds", 'r', "N", 0, "Rounds in which the buffer moves (100)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "MRs of a dma-buf whose exporter moves it, every byte verified.",
};

int main(int argc, char **argv)
{
	struct options o = { .rounds = ROUNDS };
	struct bench bench;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	device_open(&bench.dev, o.dev);
	region_open(&bench.peer, &bench.dev, LEN, ALL);
	pair_create(&bench.pair, &bench.dev, 1, PAIR_TIMEOUT);

	moves(&bench);
	parts(&bench);
	local(&bench);
	bad_registrations(&bench);
	denied(&bench);
	advised(&bench);
	refused(&bench, "busy", 3, EBUSY);
	refused(&bench, "no-memory", 3, ENOMEM);
	refused(&bench, "gone", UINT32_MAX, ENODEV);
	under_traffic(&bench, o.rounds);
	dereg_while_it_moves(&bench);

	pair_destroy(&bench.pair);
	region_close(&bench.peer);
	device_close(&bench.dev);
	return report_exit_status();
}
