// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * One MR over all of the process's memory: accesses over two of its children, at both ends of the
 * address space and beyond, to memory that is not mapped; fork. With --races: children that are
 * freed when they are empty and made again, threads that empty them, the MR destroyed under
 * traffic, processes that exit and leave it behind. Every byte is verified.
 */
#define _GNU_SOURCE
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define GIB	  (1ull << 30)
#define CHILDREN  8
#define LEN	  (4 * PAGE)
#define TIMEOUT_S 30
#define TASK_END  ((1ull << 47) - PAGE)
#define ALL	  (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | \
		   IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC)

struct bench {
	struct device dev;
	struct pair pair;
	struct region peer;	/* pinned */
	struct ibv_mr *mr;	/* all of the memory */
	uint8_t *space;		/* CHILDREN + 1 GiB that nothing else is in, aligned to one */
	uint64_t seed;
};

/* Memory at exactly this address, never in huge pages. False if there is something. */
static bool map_at(uint64_t addr, size_t len, int prot)
{
	void *at = (void *)addr;
	void *mem = mmap(at, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			 -1, 0);

	if (mem != at)
		return false;
	madvise(mem, len, MADV_NOHUGEPAGE);
	return true;
}

static uint64_t in_child(struct bench *b, int child, uint64_t off)
{
	return (uintptr_t)b->space + child * GIB + off;
}

static void must_map(struct bench *b, int child, uint64_t off, size_t len)
{
	if (!map_at(in_child(b, child, off), len, PROT_READ | PROT_WRITE))
		die("mapping %zu bytes in child %d: %s", len, child, strerror(errno));
}

static int write_to(struct bench *b, uint64_t addr, uint32_t len)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = b->peer.mem, .length = len,
		.lkey = b->peer.mr->lkey, .remote = addr, .rkey = b->mr->rkey,
	};

	pattern_fill(b->peer.mem, len, ++b->seed, 0);
	return pair_do(&b->pair, &op, TIMEOUT_S);
}

static int read_from(struct bench *b, uint64_t addr, uint32_t len)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_READ, .local = b->peer.mem, .length = len,
		.lkey = b->peer.mr->lkey, .remote = addr, .rkey = b->mr->rkey,
	};

	memset(b->peer.mem, 0xa5, len);
	return pair_do(&b->pair, &op, TIMEOUT_S);
}

/* The memory is the local buffer of a WRITE into the peer. */
static int gather(struct bench *b, uint64_t addr, uint32_t len)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = (void *)addr, .length = len,
		.lkey = b->mr->lkey, .remote = (uintptr_t)b->peer.mem,
		.rkey = b->peer.mr->rkey,
	};

	return pair_do(&b->pair, &op, TIMEOUT_S);
}

static void must_be(struct report *r, const char *what, int status, int wanted)
{
	if (status != wanted)
		report_fail(r, "%s: %s, not %s", what, wc_status_name(status),
			    wc_status_name(wanted));
}

static void must_hold(struct bench *b, struct report *r, const void *mem, uint32_t len)
{
	size_t at = pattern_check(mem, len, b->seed, 0);

	if (at != len)
		report_fail(r, "byte %zu at %p is wrong", at, mem);
}

/* A cold WRITE and a cold READ, verified. */
static void both_ways(struct bench *b, struct report *r, uint64_t addr, uint32_t len)
{
	must_be(r, "write", write_to(b, addr, len), IBV_WC_SUCCESS);
	must_hold(b, r, (void *)addr, len);
	must_be(r, "read", read_from(b, addr, len), IBV_WC_SUCCESS);
	must_hold(b, r, b->peer.mem, len);
}

static void begin(struct bench *b, struct report *r, const char *name)
{
	report_begin(r, "implicit");
	report_str(r, "case", name);
	pair_reconnect(&b->pair);
}

static void end(struct report *r)
{
	report_str(r, "effect", r->ok ? "all" : "wrong");
	report_end(r);
}

/* One child, emptied and touched again; what it was is forgotten each time. */
static void again(struct bench *b)
{
	struct report r;
	int i;

	begin(b, &r, "implicit-again");
	for (i = 0; i < 50 && r.ok; i++) {
		must_map(b, 0, PAGE, LEN);
		both_ways(b, &r, in_child(b, 0, PAGE), LEN);
		munmap((void *)in_child(b, 0, PAGE), LEN);
	}
	report_u64(&r, "rounds", i);
	end(&r);
}

/* Where two children meet: both, one of them gone, back again. */
static void two_children(struct bench *b)
{
	uint64_t border = in_child(b, 2, 0);
	struct report r;
	int status;

	begin(b, &r, "implicit-two-children");
	must_map(b, 1, GIB - 2 * PAGE, LEN);
	both_ways(b, &r, border - 2 * PAGE, LEN);
	munmap((void *)border, 2 * PAGE);
	status = write_to(b, border - 2 * PAGE, LEN);
	report_str(&r, "local", wc_status_name(status));
	if (status == IBV_WC_SUCCESS)
		report_fail(&r, "written to where nothing is mapped");
	pair_reconnect(&b->pair);
	both_ways(b, &r, border - 2 * PAGE, 2 * PAGE);
	must_map(b, 2, 0, 2 * PAGE);
	both_ways(b, &r, border - 2 * PAGE, LEN);
	munmap((void *)(border - 2 * PAGE), LEN);
	end(&r);
}

static void at_the_ends(struct bench *b)
{
	uint64_t ends[] = { 1 << 16, TASK_END - PAGE };
	struct report r;
	size_t i;

	begin(b, &r, "implicit-ends");
	for (i = 0; i < 2; i++) {
		if (!map_at(ends[i], PAGE, PROT_READ | PROT_WRITE)) {
			report_fail(&r, "cannot map %#llx: %s", (unsigned long long)ends[i],
				    strerror(errno));
			break;
		}
		both_ways(b, &r, ends[i], PAGE);
		munmap((void *)ends[i], PAGE);
	}
	end(&r);
}

/* Nobody has mapped this. */
static void refused(struct bench *b, const char *name, uint64_t addr, uint32_t len,
		    int (*access)(struct bench *, uint64_t, uint32_t))
{
	struct report r;
	int status;

	begin(b, &r, name);
	status = access(b, addr, len);
	report_str(&r, "local", wc_status_name(status));
	report_str(&r, "local_qp", qp_state_name(pair_state(&b->pair, REQUESTER)));
	if (status == IBV_WC_SUCCESS || status == NO_COMPLETION)
		report_fail(&r, "%s", wc_status_name(status));
	report_end(&r);
}

/* A forked child keeps what it saw; the device writes to the parent's pages. */
static void forked(struct bench *b)
{
	uint8_t *mem = (uint8_t *)in_child(b, 3, 0);
	int to_child[2], status;
	struct report r;
	pid_t pid;
	char go;

	begin(b, &r, "implicit-fork");
	must_map(b, 3, 0, LEN);
	memset(mem, 7, LEN);
	if (pipe(to_child))
		die("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		close(to_child[1]);
		if (read(to_child[0], &go, 1) < 0)
			_exit(2);
		_exit(mem[0] != 7 || memcmp(mem, mem + 1, LEN - 1));
	}
	close(to_child[0]);
	both_ways(b, &r, (uintptr_t)mem, LEN);
	close(to_child[1]);
	if (waitpid(pid, &status, 0) != pid || status)
		report_fail(&r, "the forked child's memory has changed");
	munmap(mem, LEN);
	end(&r);
}

struct dropper {
	pthread_t thread;
	void *mem;
	atomic_bool *stop;
	uint64_t drops;
};

static void *drop(void *arg)
{
	struct dropper *d = arg;

	while (!*d->stop) {
		madvise(d->mem, PAGE, MADV_DONTNEED);
		d->drops++;
		sleep_ms(1);
	}
	return NULL;
}

/* Each child is emptied again and again while it is written to: no access may fail. */
static void dropped(struct bench *b)
{
	struct dropper d[CHILDREN] = { 0 };
	uint64_t drops = 0, ops = 0;
	atomic_bool stop = false;
	struct report r;
	int i;

	begin(b, &r, "implicit-dropped");
	for (i = 0; i < CHILDREN; i++) {
		must_map(b, i, PAGE, PAGE);
		d[i].mem = (void *)in_child(b, i, PAGE);
		d[i].stop = &stop;
		if (pthread_create(&d[i].thread, NULL, drop, &d[i]))
			die("pthread_create failed");
	}
	while (ops < 200 && r.ok) {
		i = ops++ % CHILDREN;
		must_be(&r, "write", write_to(b, (uintptr_t)d[i].mem, PAGE),
			IBV_WC_SUCCESS);
	}
	stop = true;
	for (i = 0; i < CHILDREN; i++) {
		pthread_join(d[i].thread, NULL);
		drops += d[i].drops;
	}
	for (i = 0; i < CHILDREN; i++) {
		if (r.ok)
			both_ways(b, &r, (uintptr_t)d[i].mem, PAGE);
		munmap(d[i].mem, PAGE);
	}
	report_u64(&r, "operations", ops);
	report_u64(&r, "drops", drops);
	end(&r);
}

/* The MR goes with operations under way: each completes, and the next MR works. */
static void dereg_under_traffic(struct bench *b)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = b->peer.mem, .length = PAGE,
		.lkey = b->peer.mr->lkey,
	};
	int i, round, err, failed = 0;
	struct report r;
	struct ibv_wc wc;

	begin(b, &r, "implicit-dereg-under-traffic");
	for (round = 0; round < 20 && r.ok; round++) {
		for (i = 0; i < CHILDREN; i++) {
			must_map(b, i, 0, PAGE);
			op.remote = in_child(b, i, 0);
			op.rkey = b->mr->rkey;
			op.wr_id = i;
			err = pair_post(&b->pair, &op);
			if (err)
				die("ibv_post_send: %s", strerror(err));
		}
		if (ibv_dereg_mr(b->mr))
			die("ibv_dereg_mr: %s", strerror(errno));
		for (i = 0; i < CHILDREN; i++) {
			if (!pair_poll(&b->pair, REQUESTER, &wc, TIMEOUT_S)) {
				report_fail(&r, "operation %d does not complete", i);
				break;
			}
			failed += wc.status != IBV_WC_SUCCESS;
			if (wc.status != IBV_WC_SUCCESS && wc.status != IBV_WC_REM_ACCESS_ERR &&
			    wc.status != IBV_WC_WR_FLUSH_ERR)
				report_fail(&r, "operation %d: %s", i,
					    wc_status_name(wc.status));
		}
		b->mr = implicit_mr(&b->dev, ALL);
		pair_reconnect(&b->pair);
		for (i = 0; i < CHILDREN; i++) {
			both_ways(b, &r, in_child(b, i, 0), PAGE);
			munmap((void *)in_child(b, i, 0), PAGE);
		}
	}
	report_u64(&r, "rounds", round);
	report_u64(&r, "failed", failed);
	end(&r);
}

/* A process that leaves everything behind, with operations under way. */
static void left_behind(struct bench *b, const char *dev)
{
	struct bench own = { 0 };
	struct report r;
	int i, n, status;
	pid_t pid;

	begin(b, &r, "implicit-exit");
	for (n = 0; n < 20 && r.ok; n++) {
		pid = fork();
		if (pid < 0)
			die("fork: %s", strerror(errno));
		if (pid) {
			if (waitpid(pid, &status, 0) != pid || status)
				report_fail(&r, "the process ended with status %#x", status);
			continue;
		}
		own.space = b->space;
		device_open(&own.dev, dev);
		region_open(&own.peer, &own.dev, PAGE, ALL);
		pair_create(&own.pair, &own.dev, 2 * CHILDREN, PAIR_TIMEOUT);
		own.mr = implicit_mr(&own.dev, ALL);
		for (i = 0; i < CHILDREN; i++) {
			struct transfer_op op = {
				.opcode = IBV_WR_RDMA_WRITE, .local = own.peer.mem,
				.length = PAGE, .lkey = own.peer.mr->lkey,
				.remote = in_child(&own, i, 0), .rkey = own.mr->rkey,
			};

			must_map(&own, i, 0, PAGE);
			if (i & 1 ? pair_post(&own.pair, &op) :
				    pair_do(&own.pair, &op, TIMEOUT_S))
				_exit(4);
		}
		_exit(0);
	}
	report_u64(&r, "processes", n);
	end(&r);
}

/* Registrations of all of the memory that there cannot be. */
static void registration(struct bench *b, const char *name, uint64_t addr, uint64_t iova,
			 int access)
{
	struct report r;
	struct ibv_mr *mr;

	begin(b, &r, name);
	errno = 0;
	mr = ibv_reg_mr_iova(b->dev.pd, (void *)addr, SIZE_MAX, iova,
			     access | IBV_ACCESS_ON_DEMAND);
	report_str(&r, "errno", mr ? "0" : strerrorname_np(errno));
	if (mr)
		ibv_dereg_mr(mr);
	report_end(&r);
}

static void reserve(struct bench *b)
{
	size_t len = (CHILDREN + 2) * GIB;
	void *mem = mmap(NULL, len, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		die("reserving %zu bytes: %s", len, strerror(errno));
	munmap(mem, len);
	b->space = (uint8_t *)(((uintptr_t)mem + GIB - 1) & ~(GIB - 1));
}

struct options {
	const char *dev;
	bool races;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	(void)arg;
	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'r': o->races = true; return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "races", 'r', NULL, 0, "What others do to the memory, the MR and the process", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "One MR over all of the memory, case by case.",
};

static void run_cases(struct bench *b)
{
	two_children(b);
	at_the_ends(b);
	refused(b, "implicit-unmapped-write", in_child(b, 4, PAGE), 8, write_to);
	refused(b, "implicit-unmapped-read", in_child(b, 4, PAGE), PAGE, read_from);
	refused(b, "implicit-unmapped-gather", in_child(b, 4, PAGE), PAGE, gather);
	refused(b, "implicit-null-write", 0, 8, write_to);
	refused(b, "implicit-over-the-end", TASK_END - PAGE, 2 * PAGE, write_to);
	refused(b, "implicit-beyond-write", 1ull << 47, 8, write_to);
	refused(b, "implicit-beyond-read", 1ull << 63, 8, read_from);
	refused(b, "implicit-beyond-gather", -(uint64_t)PAGE, 8, gather);
	forked(b);
	registration(b, "implicit-reg", 0, 0, ALL);
	registration(b, "implicit-reg-read-only", 0, 0, IBV_ACCESS_REMOTE_READ);
	registration(b, "implicit-reg-iova", 0, PAGE, ALL);
	registration(b, "implicit-reg-address", PAGE, PAGE, ALL);
	registration(b, "implicit-reg-hugetlb", 0, 0, ALL | IBV_ACCESS_HUGETLB);
	registration(b, "implicit-reg-remote-write-only", 0, 0, IBV_ACCESS_REMOTE_WRITE);
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	struct bench b = { 0 };

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	device_open(&b.dev, o.dev);
	if (!(b.dev.attr.odp_caps.general_caps & IBV_ODP_SUPPORT_IMPLICIT))
		die("%s: no implicit MRs", o.dev);
	reserve(&b);
	region_open(&b.peer, &b.dev, LEN, ALL);
	pair_create(&b.pair, &b.dev, 2 * CHILDREN, PAIR_TIMEOUT);
	b.mr = implicit_mr(&b.dev, ALL);
	if (o.races) {
		again(&b);
		dropped(&b);
		dereg_under_traffic(&b);
		left_behind(&b, o.dev);
	} else {
		run_cases(&b);
	}
	ibv_dereg_mr(b.mr);
	pair_destroy(&b.pair);
	region_close(&b.peer);
	device_close(&b.dev);
	return report_exit_status();
}
