// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Faults as a card may raise them (fault_shapes.c): a responder that answers RNR NAK, events
 * that ask for pages around the missing ones, several events for one access, messages of
 * which a part has moved. How each operation ends is known; every byte is verified, nothing
 * outside of the MR may be mapped in, and every fault is resumed. Whether one was resumed more
 * than once is reported, for compare.py. Only the software ConnectX can be asked for all that.
 */
#define _GNU_SOURCE
#include "devctl.h"
#include "fault_shapes.h"
#include "options.h"
#include "pagemap.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ALL	(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | \
		 IBV_ACCESS_REMOTE_ATOMIC)
#define PEER	(8 * PAGE)
#define SEED	5
#define OLD	1000ull		/* what an atomic finds */
#define ADDEND	7
#define TIMEOUT_S 20

struct bench {
	struct device dev;
	struct pair pair;
	struct region peer;	/* pinned */
	uint8_t *arena, *mr_mem, *area;
	struct ibv_mr *mr;
};

static bool is_atomic(const struct fault_shape *s)
{
	return opcode_of(s->verb) == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

static size_t length(const struct fault_shape *s)
{
	return is_atomic(s) ? 8 : s->op_pages * PAGE;
}

static void protect(uint8_t *mem, size_t pages, int prot)
{
	if (mprotect(mem, pages * PAGE, prot))
		die("mprotect: %s", strerror(errno));
}

static void unmap(uint8_t *mem, size_t pages)
{
	if (munmap(mem, pages * PAGE))
		die("munmap: %s", strerror(errno));
}

static void damage(struct bench *b, const struct fault_shape *s)
{
	uint8_t *end = b->area + s->op_pages * PAGE;

	switch (s->damage) {
	case WHOLE:
		break;
	case HOLES_AROUND:
		unmap(b->area - PAGE, 1);
		unmap(end, 1);
		break;
	case NONE_AROUND:
		protect(b->area - PAGE, 1, PROT_NONE);
		protect(end, 1, PROT_NONE);
		break;
	case READ_ONLY_AROUND:
		protect(b->area - 9 * PAGE, 9, PROT_READ);
		protect(end, 9, PROT_READ);
		break;
	case HOLE_BOTH:
		unmap(end - PAGE, 1);
		unmap(b->area, 1);
		break;
	case HOLE_FIRST:
		unmap(b->area, 1);
		break;
	case HOLE_LAST:
		unmap(end - PAGE, 1);
		break;
	}
}

/*
 * Fills what the operation reads. A registration gives the device the pages that are there, so
 * the area is filled after it: then the device has to ask for them.
 */
static void fill(struct bench *b, const struct fault_shape *s)
{
	uint8_t *source = area_is_target(s->verb) ? b->peer.mem : b->area;
	uint64_t old = OLD;

	if (!is_atomic(s))
		pattern_fill(source, length(s), SEED, 0);
	else
		memcpy(s->verb == FETCH_ADD_ON ? b->area : b->peer.mem, &old, 8);
}

/* The first byte of what the operation wrote that is wrong, or its length. */
static size_t first_wrong(struct bench *b, const struct fault_shape *s)
{
	const uint8_t *target = area_is_target(s->verb) ? b->area : b->peer.mem;
	uint64_t at, answer;

	if (!is_atomic(s))
		return pattern_check(target, length(s), SEED, 0);
	memcpy(&at, s->verb == FETCH_ADD_ON ? b->area : b->peer.mem, 8);
	memcpy(&answer, s->verb == FETCH_ADD_ON ? b->peer.mem : b->area, 8);
	return at == OLD + ADDEND && answer == OLD ? 8 : 0;
}

/* Does the operation on its first LEN bytes, and returns its completion status. */
static int operate(struct bench *b, const struct fault_shape *s, size_t len)
{
	bool send = opcode_of(s->verb) == IBV_WR_SEND, to_area = s->verb == RECV_TO;
	bool remote = area_is_remote(s->verb) || to_area;
	struct transfer_op op = {
		.opcode = opcode_of(s->verb), .length = len, .add = ADDEND,
		.local = remote ? b->peer.mem : b->area,
		.lkey = remote ? b->peer.mr->lkey : b->mr->lkey,
		.remote = (uintptr_t)(remote ? b->area : b->peer.mem),
		.rkey = remote ? b->mr->rkey : b->peer.mr->rkey,
	};
	struct ibv_wc wc;
	int err, status;

	err = send ? pair_post_recv(&b->pair, 0, to_area ? b->area : b->peer.mem, len,
				    to_area ? b->mr->lkey : b->peer.mr->lkey) : 0;
	if (err)
		die("ibv_post_recv: %s", strerror(err));
	status = pair_do(&b->pair, &op, TIMEOUT_S);
	if (!status && send &&
	    (!pair_poll(&b->pair, RESPONDER, &wc, 1) || wc.status || wc.byte_len != len))
		die("a SEND succeeded, but its receive did not");
	return status;
}

/* An event of several that failed: the driver may answer it, and the last one as well. */
static bool may_repeat(const struct fault_shape *s)
{
	return s->pieces > 1 && s->damage >= HOLE_FIRST;
}

/*
 * Waits until the device waits for no resume any more, and a little for another one that is
 * one too many.
 */
static void settle(struct bench *b, const struct fault_shape *s,
		   const struct device_counters *before, struct device_counters *after,
		   struct report *r)
{
	double start = now();
	uint64_t faults, resumes;

	for (;;) {
		device_counters(b->dev.name, after);
		faults = after->faults - before->faults;
		resumes = after->resumes_ok - before->resumes_ok +
			  after->resumes_error - before->resumes_error;
		if (resumes >= faults &&
		    (!may_repeat(s) || now() - start > 0.5 ||
		     after->resumes_repeated != before->resumes_repeated))
			break;
		if (now() - start > TIMEOUT_S) {
			report_fail(r, "%llu of %llu faults were resumed",
				    (unsigned long long)resumes, (unsigned long long)faults);
			break;
		}
		sleep_ms(5);
	}
	report_u64(r, "faults", faults);
	report_u64(r, "naks", after->rnr_naks_fault - before->rnr_naks_fault);
	report_u64(r, "repeated", after->resumes_repeated - before->resumes_repeated);
	report_str(r, "resumes",
		   after->resumes_repeated == before->resumes_repeated ? "once" : "repeated");
	if (!faults)
		report_fail(r, "nothing faulted");
	if (after->violations != before->violations)
		report_fail(r, "the device saw a protocol violation");
}

/* Nothing outside of the MR may be mapped in, and inside not more than was asked for. */
static void check_pages(struct bench *b, const struct fault_shape *s, struct report *r)
{
	size_t behind = ARENA_PAGES - s->mr_page - s->mr_pages;
	uint8_t *mr_end = b->mr_mem + s->mr_pages * PAGE;
	size_t inside = s->mr_pages - absent_pages(b->mr_mem, s->mr_pages);
	size_t outside = ARENA_PAGES - s->mr_pages - absent_pages(b->arena, s->mr_page) -
			 absent_pages(mr_end, behind);

	report_u64(r, "present", inside);
	report_u64(r, "outside", outside);
	if (outside)
		report_fail(r, "%zu pages outside of the MR were mapped in", outside);
	if (inside > s->op_pages + 2 * s->hint)
		report_fail(r, "%zu pages were mapped in", inside);
}

static void set_up(struct bench *b, const struct fault_shape *s)
{
	b->arena = mmap(NULL, ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->arena == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(b->arena, ARENA_PAGES * PAGE, MADV_NOHUGEPAGE);
	b->mr_mem = b->arena + s->mr_page * PAGE;
	b->area = b->mr_mem + s->op_page * PAGE;
	memset(b->peer.mem, 0, PEER);
	damage(b, s);
	b->mr = odp_mr(&b->dev, b->mr_mem, s->mr_pages * PAGE, ALL);
	fill(b, s);
	b->pair.rnr_retry = s->rnr_retry;
	pair_reconnect(&b->pair);
}

/*
 * Lets the device have the first pages of the operation, and these alone: with a fault on them a
 * driver may bring in what it takes to be next.
 */
static void warm_up(struct bench *b, const struct fault_shape *s, struct report *r)
{
	struct ibv_sge pages = {
		.addr = (uintptr_t)b->area, .length = s->warm * PAGE, .lkey = b->mr->lkey,
	};
	int err = ibv_advise_mr(b->dev.pd, IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE,
				IBV_ADVISE_MR_FLAG_FLUSH, &pages, 1);

	if (err)
		report_fail(r, "warming up: ibv_advise_mr: %s", strerror(err));
}

/* The fault that ended it in an RNR NAK was served: now it has its page. */
static void do_again(struct bench *b, const struct fault_shape *s, struct report *r)
{
	int status;

	b->pair.rnr_retry = 7;
	pair_reconnect(&b->pair);
	status = operate(b, s, length(s));
	if (status)
		report_fail(r, "once more: %s", wc_status_name(status));
}

static void run(struct bench *b, const struct fault_shape *s)
{
	struct device_counters before, after;
	struct report r;
	bool done;
	int status;

	report_begin(&r, "fault-shapes");
	report_str(&r, "case", s->name);
	set_up(b, s);
	if (s->warm)
		warm_up(b, s, &r);
	device_counters(b->dev.name, &before);
	device_rule(s->rule);
	if (s->slow_umr)
		device_rule(s->slow_umr);
	status = operate(b, s, length(s));
	settle(b, s, &before, &after, &r);
	device_rules_clear();

	report_str(&r, "local", wc_status_name(status));
	if (status != (int)s->status)
		report_fail(&r, "%s", wc_status_name(status));
	if (after.rnr_naks_fault - before.rnr_naks_fault < s->min_naks)
		report_fail(&r, "fewer than %u RNR NAKs", s->min_naks);
	done = !status || s->status == IBV_WC_RNR_RETRY_EXC_ERR;
	if (status == IBV_WC_RNR_RETRY_EXC_ERR)
		do_again(b, s, &r);
	if (done && s->damage < HOLE_FIRST)
		check_pages(b, s, &r);
	if (done && first_wrong(b, s) != length(s))
		report_fail(&r, "byte %zu is wrong", first_wrong(b, s));
	if (ibv_dereg_mr(b->mr))
		report_fail(&r, "ibv_dereg_mr: %s", strerror(errno));
	munmap(b->arena, ARENA_PAGES * PAGE);
	report_end(&r);
}

struct options {
	const char *dev, *scheme, *only;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'c': o->only = arg; return 0;
	case 's':
		if (strcmp(arg, "memory") && strcmp(arg, "transport"))
			die("--scheme is memory or transport, not %s", arg);
		o->scheme = arg;
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "case", 'c', "PREFIX", 0, "Only cases whose names begin like this", 0 },
	{ "scheme", 's', "NAME", 0, "How the device reports faults: memory (default) or transport", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "What becomes of faults as a card may raise them.",
};

int main(int argc, char **argv)
{
	struct options o = { .scheme = "memory", .only = "" };
	struct device_counters counters;
	struct bench b = { 0 };
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	device_open(&b.dev, o.dev);
	device_counters(o.dev, &counters);
	if (!counters.valid)
		die("%s is no software ConnectX with a control port", o.dev);
	region_open(&b.peer, &b.dev, PEER, ALL);
	pair_create(&b.pair, &b.dev, 4, PAIR_TIMEOUT);
	for (i = 0; i < fault_shapes_count; i++) {
		const struct fault_shape *s = &fault_shapes[i];

		if (!strncmp(s->name, o.only, strlen(o.only)) &&
		    (!s->scheme || !strcmp(s->scheme, o.scheme)))
			run(&b, s);
	}
	pair_destroy(&b.pair);
	region_close(&b.peer);
	device_close(&b.dev);
	return report_exit_status();
}
