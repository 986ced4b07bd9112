// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Bad input to on-demand paging: what a registration answers, how an access ends on
 * both sides. Prints facts, one line per case, to be compared between drivers
 * (compare.py). By itself it fails only where no driver may behave so: an access that
 * never ends, a byte written outside of the operation or where the MR denies it, data
 * missing after a success, a write after ibv_dereg_mr() returned.
 */
#define _GNU_SOURCE
#include "bad_cases.h"
#include "bad_races.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE		(2ul << 20)
#define GUARD		(2 * PAGE)		/* before and behind the area */
#define ARENA		(GUARD + AREA + GUARD)
#define AREA_SEED	7
#define PEER_SEED	9
#define ADDEND		5
#define OP_TIMEOUT_S	5

struct bench {
	struct pair pair;
	uint8_t *reservation, *arena, *area;
	uint8_t *peer;				/* pinned, AREA bytes */
	struct ibv_mr *peer_mr;
	uint8_t before[ARENA], after[ARENA];	/* of the arena; unreadable: zero */
	uint8_t peer_before[AREA];
	bool readable[ARENA / PAGE];
};

static void *map_fixed(void *at, size_t len, int prot, int flags, int fd)
{
	void *p = mmap(at, len, prot, flags | MAP_FIXED, fd, 0);

	if (p == MAP_FAILED)
		die("mmap of %zu bytes: %s", len, strerror(errno));
	return p;
}

static void protect(void *at, size_t len, int prot)
{
	if (mprotect(at, len, prot))
		die("mprotect: %s", strerror(errno));
}

/*
 * Fresh pages at an address aligned to 2 MiB, so that IBV_ACCESS_HUGETLB rounds to
 * memory of ours, but never huge.
 */
static void prepare(struct bench *b, enum memory memory)
{
	char path[32];
	int fd;

	map_fixed(b->reservation, 2 * HUGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(b->reservation, 2 * HUGE, MADV_NOHUGEPAGE);
	if (memory == UNTOUCHED)
		return;
	pattern_fill(b->arena, ARENA, AREA_SEED, 0);
	switch (memory) {
	case NO_ACCESS:
		protect(b->area, AREA, PROT_NONE);
		break;
	case READ_ONLY:
		protect(b->area, AREA, PROT_READ);
		break;
	case READ_ONLY_FILE:
		fd = memfd_create("read-only", MFD_CLOEXEC);
		if (fd < 0 || write(fd, b->area, AREA) != AREA)
			die("memfd: %s", strerror(errno));
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		close(STDIN_FILENO);
		if (open(path, O_RDONLY) != STDIN_FILENO)
			die("%s: %s", path, strerror(errno));
		close(fd);
		map_fixed(b->area, AREA, PROT_READ, MAP_SHARED, STDIN_FILENO);
		break;
	case HOLE:
		munmap(b->area + PAGE, PAGE);
		break;
	default:
		break;
	}
}

static void do_event(struct bench *b, enum event event, struct ibv_mr **mr)
{
	switch (event) {
	case DROPPED:
		if (madvise(b->area, AREA, MADV_DONTNEED))
			die("MADV_DONTNEED: %s", strerror(errno));
		break;
	case UNMAPPED:
		munmap(b->area, AREA);
		break;
	case REPLACED:
		munmap(b->area, AREA);
		map_fixed(b->area, AREA, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1);
		break;
	case PROTECTED:
		protect(b->area, AREA, PROT_READ);
		break;
	case DEREGISTERED:
		if (ibv_dereg_mr(*mr))
			die("ibv_dereg_mr: %s", strerror(errno));
		*mr = NULL;
		break;
	case NOTHING:
		break;
	}
}

/* Copies what can be read: a pipe refuses the rest with EFAULT. */
static void snapshot(struct bench *b, uint8_t *copy, const struct bad_case *c)
{
	int pipefd[2];
	size_t page;

	if (pipe(pipefd))
		die("pipe: %s", strerror(errno));
	/* What may have been written behind PROT_NONE must be seen, too. */
	if (c->memory == NO_ACCESS)
		protect(b->area, AREA, PROT_READ);
	for (page = 0; page < ARENA / PAGE; page++) {
		uint8_t *to = copy + page * PAGE;

		b->readable[page] = write(pipefd[1], b->arena + page * PAGE, PAGE) == PAGE;
		if (!b->readable[page])
			memset(to, 0, PAGE);
		else if (read(pipefd[0], to, PAGE) != PAGE)
			die("pipe: %s", strerror(errno));
	}
	if (c->memory == NO_ACCESS)
		protect(b->area, AREA, PROT_NONE);
	close(pipefd[0]);
	close(pipefd[1]);
}

static uint32_t damaged_key(uint32_t key, enum key how)
{
	switch (how) {
	case KEY_VARIANT:
		return key ^ 1;			/* the consumer's 8 bits */
	case KEY_UNKNOWN:
		return key ^ 0x5a5a00;		/* another index */
	default:
		return key;
	}
}

static void post(struct bench *b, const struct bad_case *c, uint32_t key)
{
	uint8_t *area = b->area + c->op_off;
	struct transfer_op op = {
		.opcode = opcode_of(c->verb), .length = c->op_len, .add = ADDEND,
	};
	bool remote = area_is_remote(c->verb);
	int err;

	key = damaged_key(key, c->key);
	if (c->verb == RECV_TO)
		err = pair_post_recv(&b->pair, 0, area, c->op_len, key);
	else
		err = pair_post_recv(&b->pair, 0, b->peer, AREA, b->peer_mr->lkey);
	if (err)
		die("ibv_post_recv: %s", strerror(err));

	op.local = remote || c->verb == RECV_TO ? b->peer : area;
	op.lkey = remote || c->verb == RECV_TO ? b->peer_mr->lkey : key;
	op.remote = (uintptr_t)(remote ? area : b->peer);
	op.rkey = remote ? key : b->peer_mr->rkey;
	err = pair_post(&b->pair, &op);
	if (err)
		die("ibv_post_send: %s", strerror(err));
}

static const char *wait_remote(struct bench *b, const struct bad_case *c, int local)
{
	bool is_send = c->verb == SEND_FROM || c->verb == RECV_TO;
	bool refused = local == IBV_WC_REM_ACCESS_ERR || local == IBV_WC_REM_OP_ERR ||
		       local == IBV_WC_REM_INV_REQ_ERR;
	double start = now();
	struct ibv_wc wc;

	/* The refusal may arrive before the responder's state has changed. */
	while (refused && pair_state(&b->pair, RESPONDER) != IBV_QPS_ERR &&
	       now() - start < 0.2)
		sleep_ms(5);
	if (!(is_send && (refused || local == IBV_WC_SUCCESS)) &&
	    pair_state(&b->pair, RESPONDER) != IBV_QPS_ERR)
		return "none";
	return pair_poll(&b->pair, RESPONDER, &wc, 1) ? wc_status_name(wc.status) : "none";
}

/* Compares target memory with what was there and what should be there now. */
static const char *effect_of(struct bench *b, const struct bad_case *c, struct report *r,
			     bool success)
{
	bool to_area = area_is_target(c->verb);
	size_t at = GUARD + c->op_off, i, old = 0, new = 0;
	const uint8_t *was = to_area ? b->before + at : b->peer_before;
	const uint8_t *is = to_area ? b->after + at : b->peer;
	const uint8_t *data = to_area ? b->peer_before : b->before + at;
	uint8_t sum[8];
	uint64_t word;

	if (c->verb == FETCH_ADD_ON) {
		memcpy(&word, was, 8);
		word += ADDEND;
		memcpy(sum, &word, 8);
		data = sum;
	} else if (c->verb == FETCH_ADD_TO) {
		data = b->peer_before;
	}
	for (i = 0; i < ARENA; i++)
		if (!(to_area && i >= at && i < at + c->op_len) &&
		    b->readable[i / PAGE] && b->before[i] != b->after[i])
			report_fail(r, "memory outside of the operation changed, arena offset %zu", i);
	for (i = 0; i < c->op_len; i++) {
		if (to_area && !b->readable[(at + i) / PAGE])
			continue;
		old += is[i] != was[i];
		new += is[i] != data[i];
	}
	if (old && c->denied)
		report_fail(r, "%zu bytes were changed although access is denied", old);
	if (new && success)
		report_fail(r, "success, but %zu of %u bytes are wrong", new, c->op_len);
	return !old ? "none" : !new ? "all" : "part";
}

static void access_area(struct bench *b, const struct bad_case *c, struct ibv_mr **mr,
		   struct report *r)
{
	uint32_t key = area_is_remote(c->verb) ? (*mr)->rkey : (*mr)->lkey;
	struct ibv_wc wc = { .status = -1 };
	const char *remote;

	pair_reconnect(&b->pair);
	if (c->memory == UNTOUCHED) {
		pattern_fill(b->arena, GUARD, AREA_SEED, 0);
		pattern_fill(b->area + AREA, GUARD, AREA_SEED, GUARD + AREA);
	}
	pattern_fill(b->peer, AREA, PEER_SEED, 0);
	memcpy(b->peer_before, b->peer, AREA);
	do_event(b, c->event, mr);
	/* Looking at absent memory would map it in: it is zero, or what the file holds. */
	if (c->memory == UNTOUCHED || c->event == DROPPED) {
		memset(b->before, 0, ARENA);
		pattern_fill(b->before, GUARD, AREA_SEED, 0);
		pattern_fill(b->before + GUARD + AREA, GUARD, AREA_SEED, GUARD + AREA);
		if (c->memory == READ_ONLY_FILE)
			pattern_fill(b->before + GUARD, AREA, AREA_SEED, GUARD);
	} else {
		snapshot(b, b->before, c);
	}

	post(b, c, key);
	if (!pair_poll(&b->pair, REQUESTER, &wc, OP_TIMEOUT_S)) {
		report_str(r, "local", "timeout");
		report_fail(r, "no completion within %d s", OP_TIMEOUT_S);
		return;
	}
	remote = wait_remote(b, c, wc.status);
	report_str(r, "local", wc_status_name(wc.status));
	report_str(r, "remote", remote);
	report_str(r, "local_qp", qp_state_name(pair_state(&b->pair, REQUESTER)));
	report_str(r, "remote_qp", qp_state_name(pair_state(&b->pair, RESPONDER)));
	snapshot(b, b->after, c);
	report_str(r, "effect", effect_of(b, c, r, wc.status == IBV_WC_SUCCESS));
}

/* Whether it matters to the case only what memory there is, and not where the MR ends. */
static bool fits_implicit(const struct bad_case *c)
{
	return c->verb != REGISTER_ONLY && !c->reg_off && c->reg_len == AREA &&
	       c->op_off >= 0 && c->op_off + c->op_len <= AREA;
}

static void run_case(struct bench *b, const struct bad_case *c, bool implicit)
{
	int flags = c->access | IBV_ACCESS_ON_DEMAND;
	size_t len = implicit ? SIZE_MAX : c->reg_len;
	struct report r;
	struct ibv_mr *mr;
	char name[80];
	uint8_t *addr;

	report_begin(&r, "bad-input");
	snprintf(name, sizeof(name), "%s%s", implicit ? "implicit-" : "", c->name);
	report_str(&r, "case", name);
	prepare(b, c->memory);
	addr = c->absolute ? (uint8_t *)c->reg_off : b->area + c->reg_off;
	errno = 0;
	mr = ibv_reg_mr(b->pair.dev->pd, implicit ? NULL : addr, len, flags);
	report_str(&r, "errno", mr ? "0" : strerrorname_np(errno));
	if (mr && c->verb != REGISTER_ONLY)
		access_area(b, c, &mr, &r);
	if (mr && ibv_dereg_mr(mr))
		report_fail(&r, "ibv_dereg_mr: %s", strerror(errno));
	report_end(&r);
}

static void bench_setup(struct bench *b, struct device *dev)
{
	b->reservation = mmap(NULL, 3 * HUGE, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (b->reservation == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	b->reservation = (void *)(((uintptr_t)b->reservation + HUGE - 1) & ~(HUGE - 1));
	b->arena = b->reservation;
	b->area = b->arena + GUARD;
	b->peer = mmap(NULL, AREA, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	b->peer_mr = ibv_reg_mr(dev->pd, b->peer, AREA,
				IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
				IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC);
	if (!b->peer_mr)
		die("registering the peer's buffer: %s", strerror(errno));
	pair_create(&b->pair, dev, 4, PAIR_TIMEOUT);
}

#define MAX_ONLY 64

struct options {
	const char *dev;
	const char *only[MAX_ONLY];
	unsigned int count;
	bool implicit;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;
	size_t i;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'c':
		if (o->count == MAX_ONLY)
			die("too many --case");
		o->only[o->count++] = arg;
		return 0;
	case 'i': o->implicit = true; return 0;
	case 'l':
		for (i = 0; i < bad_cases_count; i++)
			puts(bad_cases[i].name);
		for (i = 0; i < bad_races_count; i++)
			puts(bad_races[i].name);
		exit(0);
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "case", 'c', "NAME", 0, "Only this case, and others so named", 0 },
	{ "implicit", 'i', NULL, 0, "Those of memory alone, with an MR over all of it", 0 },
	{ "list", 'l', NULL, 0, "List the cases", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "What registration and the device make of bad input, case by case.",
};

static bool wanted(const char *name, const struct options *o)
{
	unsigned int i;

	for (i = 0; i < o->count; i++)
		if (!strcmp(name, o->only[i]))
			return true;
	return !o->count;
}

int main(int argc, char **argv)
{
	static struct bench bench;
	struct options o = { 0 };
	struct device dev;
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	device_open(&dev, o.dev);
	bench_setup(&bench, &dev);
	for (i = 0; i < bad_cases_count; i++)
		if (wanted(bad_cases[i].name, &o) &&
		    (!o.implicit || fits_implicit(&bad_cases[i])))
			run_case(&bench, &bad_cases[i], o.implicit);
	for (i = 0; i < bad_races_count && !o.implicit; i++)
		if (wanted(bad_races[i].name, &o))
			bad_race_run(&bench.pair, &bad_races[i]);
	pair_destroy(&bench.pair);
	ibv_dereg_mr(bench.peer_mr);
	device_close(&dev);
	return report_exit_status();
}
