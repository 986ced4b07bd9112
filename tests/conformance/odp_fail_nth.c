// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * What an allocation that fails leaves behind: the first, the second and so on of each
 * thing that is done with an MR, until none is left to fail. That may then be refused, or
 * not; done again it must not be, whatever the device has of the memory must be the
 * memory, and nothing hangs. What leaks, the debug kernel says in the end.
 */
#define _GNU_SOURCE
#include "fail_nth.h"
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PAGES	  8
#define LEN	  (PAGES * PAGE)
#define TIMEOUT_S 120
#define ALL	  (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)
/* More allocations than anything of this takes. */
#define MOST	  2000
/* A workqueue's thread may be one that was not there to be armed. */
#define IN_VAIN	  3

struct bench {
	struct device dev;
	struct pair pair;
	struct region peer;
	uint8_t *mem;
	struct ibv_mr *mr;
	uint32_t rkey;		/* of the last MR */
	bool implicit;
	unsigned int n;
	struct report *report;
};

/* One thing that is done. Each returns 0 or an errno, and can be done again after that. */
struct action {
	const char *name;
	/* Whether there is an MR before, and one afterwards. */
	bool begins, ends;
	/* It is done by a workqueue's thread of mlx5_ib, not by this one. */
	bool by_worker;
	/* The device has translations of all pages before. */
	bool warm;
	int (*act)(struct bench *b);
};

static int do_register(struct bench *b)
{
	int access = ALL | IBV_ACCESS_ON_DEMAND;

	b->mr = b->implicit ? ibv_reg_mr(b->dev.pd, NULL, SIZE_MAX, access) :
			      ibv_reg_mr(b->dev.pd, b->mem, LEN, access);
	if (!b->mr)
		return errno;
	b->rkey = b->mr->rkey;
	return 0;
}

static int do_dereg(struct bench *b)
{
	int err = ibv_dereg_mr(b->mr);

	if (!err)
		b->mr = NULL;
	return err;
}

/* The device's access to all of it. Returns a completion status. */
static int access_by_device(struct bench *b, enum ibv_wr_opcode opcode)
{
	struct transfer_op op = {
		.opcode = opcode, .local = b->peer.mem, .length = LEN,
		.lkey = b->peer.mr->lkey, .remote = (uintptr_t)b->mem, .rkey = b->rkey,
	};
	int status = pair_do(&b->pair, &op, TIMEOUT_S);

	if (status != IBV_WC_SUCCESS)
		pair_reconnect(&b->pair);
	return status;
}

static int do_fault(struct bench *b)
{
	pattern_fill(b->peer.mem, LEN, b->n, 0);
	switch (access_by_device(b, IBV_WR_RDMA_WRITE)) {
	case IBV_WC_SUCCESS: break;
	case IBV_WC_REM_ACCESS_ERR: return EACCES;
	default: return ETIMEDOUT;
	}
	if (pattern_check(b->mem, LEN, b->n, 0) != LEN)
		report_fail(b->report, "allocation %u: what was written is not there", b->n);
	return 0;
}

static int do_advise(struct bench *b)
{
	struct ibv_sge sge = { (uintptr_t)b->mem, LEN, b->mr->lkey };

	return ibv_advise_mr(b->dev.pd, IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE,
			     IBV_ADVISE_MR_FLAG_FLUSH, &sge, 1);
}

static int do_drop(struct bench *b)
{
	return madvise(b->mem, LEN, MADV_DONTNEED) ? errno : 0;
}

static int do_protect(struct bench *b)
{
	return mprotect(b->mem, LEN, PROT_READ) ? errno : 0;
}

static int do_replace(struct bench *b)
{
	void *mem = mmap(b->mem, LEN, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	return mem == MAP_FAILED ? errno : 0;
}

static const struct action actions[] = {
	{ "register", false, true, false, false, do_register },
	{ "fault", true, true, true, false, do_fault },
	{ "advise", true, true, false, false, do_advise },
	{ "drop", true, true, false, true, do_drop },
	{ "protect", true, true, false, true, do_protect },
	{ "replace", true, true, false, true, do_replace },
	{ "dereg", true, false, false, true, do_dereg },
};

/* Read-only memory stays as it is; from then on it is not. */
static void check_protected(struct bench *b)
{
	memset(b->peer.mem, 0xa5, LEN);
	if (access_by_device(b, IBV_WR_RDMA_WRITE) != IBV_WC_REM_ACCESS_ERR ||
	    pattern_check(b->mem, LEN, 1, 0) != LEN)
		report_fail(b->report, "allocation %u: the device writes to what is read-only",
			    b->n);
	if (mprotect(b->mem, LEN, PROT_READ | PROT_WRITE))
		die("mprotect: %s", strerror(errno));
}

/* What the device has of the memory is the memory, or it has nothing. */
static void check(struct bench *b, const struct action *a)
{
	int status;

	if (!a->ends) {
		status = access_by_device(b, IBV_WR_RDMA_READ);
		if (status != IBV_WC_REM_ACCESS_ERR)
			report_fail(b->report, "allocation %u: a key that is gone: %s", b->n,
				    wc_status_name(status));
		return;
	}
	if (a->act == do_protect)
		check_protected(b);
	pattern_fill(b->mem, LEN, b->n + 1, 0);
	memset(b->peer.mem, 0, LEN);
	status = access_by_device(b, IBV_WR_RDMA_READ);
	if (status != IBV_WC_SUCCESS)
		report_fail(b->report, "allocation %u, then a READ: %s", b->n,
			    wc_status_name(status));
	else if (pattern_check(b->peer.mem, LEN, b->n + 1, 0) != LEN)
		report_fail(b->report, "allocation %u: the device reads something else", b->n);
}

static void map_memory(struct bench *b)
{
	b->mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(b->mem, LEN, MADV_NOHUGEPAGE);
}

static void prepare(struct bench *b, const struct action *a)
{
	int err;

	map_memory(b);
	err = a->begins ? do_register(b) : 0;
	if (err)
		die("registering: %s", strerror(err));
	if (!a->warm)
		return;
	pattern_fill(b->peer.mem, LEN, 1, 0);
	if (access_by_device(b, IBV_WR_RDMA_WRITE) != IBV_WC_SUCCESS)
		report_fail(b->report, "allocation %u: no access before", b->n);
}

/* Whether an allocation failed; adds to REFUSED if the action did too. */
static bool run_once(struct bench *b, const struct action *a, uint64_t *refused)
{
	bool failed;
	int err;

	prepare(b, a);
	if (a->by_worker)
		fail_nth_arm_workers(b->n, "mlx5_ib");
	else
		fail_nth_arm(b->n);
	err = a->act(b);
	failed = a->by_worker ? fail_nth_disarm_workers() : fail_nth_disarm();
	if (err && !failed)
		report_fail(b->report, "no allocation failed, and yet: %s", strerror(err));
	if (err) {
		*refused += 1;
		err = a->act(b);
	}
	if (err)
		report_fail(b->report, "allocation %u failed once, and then: %s", b->n,
			    strerror(err));
	if (b->report->ok)
		check(b, a);
	if (b->mr && do_dereg(b))
		report_fail(b->report, "allocation %u: ibv_dereg_mr fails afterwards", b->n);
	munmap(b->mem, LEN);
	return failed;
}

static void run(struct bench *b, const struct action *a)
{
	unsigned int in_vain = 0, enough = a->by_worker ? IN_VAIN : 1;
	uint64_t failed = 0, refused = 0;
	struct report r;
	char name[80];

	snprintf(name, sizeof(name), "fail-nth-%s%s", b->implicit ? "implicit-" : "", a->name);
	report_begin(&r, "fail-nth");
	report_str(&r, "case", name);
	b->report = &r;
	for (b->n = 1; in_vain < enough && r.ok; b->n++) {
		if (run_once(b, a, &refused)) {
			failed++;
			in_vain = 0;
		} else {
			in_vain++;
		}
		if (b->n == MOST)
			report_fail(&r, "allocation %u fails still", b->n);
	}
	report_u64(&r, "failed", failed);
	report_u64(&r, "refused", refused);
	report_end(&r);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	const char **dev = state->input;

	(void)arg;
	if (key == ARGP_KEY_INIT)
		return init_device_option(state, dev);
	return ARGP_ERR_UNKNOWN;
}

static const struct argp argp = {
	.parser = parse, .children = device_option,
	.doc = "Every allocation of what is done with an MR fails, one at a time.",
};

int main(int argc, char **argv)
{
	struct bench b = { 0 };
	const char *dev = NULL;
	unsigned int i;

	argp_parse(&argp, argc, argv, 0, NULL, &dev);
	device_open(&b.dev, dev);
	region_open(&b.peer, &b.dev, LEN, IBV_ACCESS_LOCAL_WRITE);
	pair_create(&b.pair, &b.dev, 1, PAIR_TIMEOUT);
	fail_nth_open();
	for (i = 0; i < 2 * sizeof(actions) / sizeof(*actions); i++) {
		b.implicit = i % 2;
		run(&b, &actions[i / 2]);
	}
	fail_nth_close();
	pair_destroy(&b.pair);
	region_close(&b.peer);
	device_close(&b.dev);
	return report_exit_status();
}
