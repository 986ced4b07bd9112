// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * ibv_advise_mr: what each advice brings in, and what it says where it cannot; the same with the
 * whole of the memory as MR. Then advices that are under way when the MR, the device's file or the
 * process goes, held by a userfaultfd.
 */
#define _GNU_SOURCE
#include "counted.h"
#include "options.h"
#include "pagemap.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"
#include "uffd.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES	  16
#define LEN	  (PAGES * PAGE)
#define TIMEOUT_S 30
#define ALL	  (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

enum memory { UNTOUCHED, TOUCHED, HOLE, READ_ONLY, NO_ACCESS };
enum key { OWN, READ_ONLY_MR, PINNED, UNKNOWN, OTHER_PD };

struct advice {
	const char *name;
	enum ib_uverbs_advise_mr_advice advice;
	enum memory memory;
	enum key key;
	int64_t off;		/* from the MR's first byte */
	uint32_t len;
	bool bad_flags;
	bool two;		/* a good element before it */
};

#define READ_	IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH
#define WRITE_	IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_WRITE
#define PRESENT	IB_UVERBS_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT

static const struct advice advices[] = {
	{ "read", READ_, UNTOUCHED, OWN, 0, LEN, false, false },
	{ "write", WRITE_, UNTOUCHED, OWN, 0, LEN, false, false },
	{ "present", PRESENT, UNTOUCHED, OWN, 0, LEN, false, false },
	{ "present-touched", PRESENT, TOUCHED, OWN, 0, LEN, false, false },
	{ "unaligned", READ_, UNTOUCHED, OWN, 100, 5 * PAGE, false, false },
	{ "empty", READ_, UNTOUCHED, OWN, 0, 0, false, false },
	{ "empty-unaligned", READ_, UNTOUCHED, OWN, 100, 0, false, false },
	{ "two", WRITE_, UNTOUCHED, OWN, 8 * PAGE, PAGE, false, true },
	{ "before", READ_, UNTOUCHED, OWN, -PAGE, PAGE, false, false },
	{ "across-the-start", READ_, UNTOUCHED, OWN, -1, PAGE, false, false },
	{ "beyond", READ_, UNTOUCHED, OWN, LEN, 1, false, false },
	{ "across-the-end", READ_, UNTOUCHED, OWN, LEN - 1, 2, false, false },
	{ "across-the-end-present", PRESENT, TOUCHED, OWN, LEN - 1, 2, false, false },
	{ "second-beyond", WRITE_, UNTOUCHED, OWN, LEN, 1, false, true },
	{ "hole", READ_, HOLE, OWN, 0, LEN, false, false },
	{ "hole-write", WRITE_, HOLE, OWN, 0, LEN, false, false },
	{ "hole-present", PRESENT, HOLE, OWN, 0, LEN, false, false },
	{ "no-access", READ_, NO_ACCESS, OWN, 0, LEN, false, false },
	{ "no-access-present", PRESENT, NO_ACCESS, OWN, 0, LEN, false, false },
	{ "read-only", READ_, READ_ONLY, OWN, 0, LEN, false, false },
	{ "read-only-write", WRITE_, READ_ONLY, OWN, 0, LEN, false, false },
	{ "read-only-present", PRESENT, READ_ONLY, OWN, 0, LEN, false, false },
	{ "read-only-mr", READ_, UNTOUCHED, READ_ONLY_MR, 0, LEN, false, false },
	{ "read-only-mr-write", WRITE_, UNTOUCHED, READ_ONLY_MR, 0, LEN, false, false },
	{ "pinned", READ_, UNTOUCHED, PINNED, 0, LEN, false, false },
	{ "unknown-key", READ_, UNTOUCHED, UNKNOWN, 0, LEN, false, false },
	{ "second-unknown-key", READ_, UNTOUCHED, UNKNOWN, 0, PAGE, false, true },
	{ "other-pd", READ_, UNTOUCHED, OTHER_PD, 0, LEN, false, false },
	{ "other-pd-write", WRITE_, UNTOUCHED, OTHER_PD, 0, LEN, false, false },
	{ "no-such-advice", 77, UNTOUCHED, OWN, 0, LEN, false, false },
	{ "no-such-flag", READ_, UNTOUCHED, OWN, 0, LEN, true, false },
};

struct bench {
	struct device dev;
	struct pair pair;
	struct ibv_pd *other_pd;
	struct region peer;
	uint8_t *mem;
	bool implicit;
};

static void map_memory(struct bench *b, enum memory memory)
{
	int prot = memory == NO_ACCESS ? PROT_NONE :
		   memory == READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE;

	/* A page before and behind that nobody has. */
	b->mem = mmap(NULL, LEN + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	b->mem += PAGE;
	madvise(b->mem, LEN, MADV_NOHUGEPAGE);
	if (memory == READ_ONLY) {
		mprotect(b->mem, LEN, PROT_READ | PROT_WRITE);
		memset(b->mem, 1, LEN);
	}
	if (mprotect(b->mem, LEN, prot))
		die("mprotect: %s", strerror(errno));
	if (memory == TOUCHED)
		memset(b->mem, 1, LEN);
	if (memory == HOLE)
		munmap(b->mem + 4 * PAGE, PAGE);
}

static void unmap_memory(struct bench *b)
{
	munmap(b->mem - PAGE, LEN + 2 * PAGE);
}

static struct ibv_mr *register_for(struct bench *b, enum key key)
{
	int access = key == READ_ONLY_MR ? IBV_ACCESS_REMOTE_READ : ALL;
	struct ibv_pd *pd = key == OTHER_PD ? b->other_pd : b->dev.pd;
	bool pinned = key == PINNED;
	struct ibv_mr *mr;

	if (b->implicit && !pinned)
		mr = ibv_reg_mr(pd, NULL, SIZE_MAX, access | IBV_ACCESS_ON_DEMAND);
	else
		mr = ibv_reg_mr(pd, b->mem, LEN, pinned ? access : access | IBV_ACCESS_ON_DEMAND);
	if (!mr)
		die("registering: %s", strerror(errno));
	return mr;
}

/* Only what was advised, and it all, if it went well. No bytes are their page, or none. */
static void check_present(struct bench *b, const struct advice *a, struct report *r)
{
	size_t first = (a->off > 0 ? a->off : 0) / PAGE;
	size_t end = (a->off + a->len + PAGE - 1) / PAGE;
	size_t i, missing = 0, wrong = 0;

	if (a->memory != UNTOUCHED)
		return;
	for (i = 0; i < PAGES; i++) {
		bool present = !absent_pages(b->mem + i * PAGE, 1);
		bool advised = a->advice != PRESENT && (a->len || !b->implicit) &&
			       i >= first && i < end;

		if (a->two && i == 0)
			continue;
		missing += advised && !present;
		wrong += present && !advised;
	}
	if (missing || wrong)
		report_fail(r, "%zu pages are missing, %zu were not asked for", missing, wrong);
}

static void run_advice(struct bench *b, const struct advice *a, bool flush)
{
	int flags = (flush ? IBV_ADVISE_MR_FLAG_FLUSH : 0) | (a->bad_flags ? 8 : 0);
	struct ibv_sge sge[2];
	struct report r;
	struct ibv_mr *mr;
	char name[80];
	int err;

	snprintf(name, sizeof(name), "advise-%s%s-%s", b->implicit ? "implicit-" : "",
		 flush ? "now" : "later", a->name);
	report_begin(&r, "advise");
	report_str(&r, "case", name);
	map_memory(b, a->memory);
	mr = register_for(b, a->key);
	sge[0].addr = (uintptr_t)b->mem;
	sge[0].length = PAGE;
	sge[0].lkey = mr->lkey;
	sge[a->two].addr = (uintptr_t)b->mem + a->off;
	sge[a->two].length = a->len;
	sge[a->two].lkey = a->key == UNKNOWN ? mr->lkey + 0x10000 : mr->lkey;
	if (a->two && a->key == UNKNOWN)
		sge[0].lkey = mr->lkey;
	err = ibv_advise_mr(b->dev.pd, a->advice, flags, sge, 1 + a->two);
	report_str(&r, "errno", err ? strerrorname_np(err) : "0");
	/* Destruction waits for what is under way. What a later one came to cannot be known. */
	if (ibv_dereg_mr(mr))
		report_fail(&r, "ibv_dereg_mr: %s", strerror(errno));
	if (flush && !err)
		check_present(b, a, &r);
	unmap_memory(b);
	report_end(&r);
}

/* What was advised does not fault any more; what was to be written neither when it is. */
static void no_fault(struct bench *b, enum ib_uverbs_advise_mr_advice advice, const char *what)
{
	struct transfer_op op = {
		.opcode = advice == WRITE_ ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
		.local = b->peer.mem, .length = LEN, .lkey = b->peer.mr->lkey,
	};
	enum memory memory = advice == PRESENT ? TOUCHED : UNTOUCHED;
	struct device_counters before, after;
	struct ibv_sge sge;
	struct report r;
	struct ibv_mr *mr;
	char name[80];
	int err, status;

	snprintf(name, sizeof(name), "advise-%s%s-then-no-fault", b->implicit ? "implicit-" : "",
		 what);
	report_begin(&r, "advise");
	report_str(&r, "case", name);
	pair_reconnect(&b->pair);
	map_memory(b, UNTOUCHED);
	mr = register_for(b, OWN);
	if (memory == TOUCHED)
		memset(b->mem, 1, LEN);
	sge = (struct ibv_sge){ (uintptr_t)b->mem, LEN, mr->lkey };
	err = ibv_advise_mr(b->dev.pd, advice, IBV_ADVISE_MR_FLAG_FLUSH, &sge, 1);
	report_str(&r, "errno", err ? strerrorname_np(err) : "0");
	pattern_fill(b->peer.mem, LEN, 3, 0);
	op.remote = (uintptr_t)b->mem;
	op.rkey = mr->rkey;
	device_counters(b->dev.name, &before);
	status = pair_do(&b->pair, &op, TIMEOUT_S);
	device_counters(b->dev.name, &after);
	report_str(&r, "local", wc_status_name(status));
	if (status != IBV_WC_SUCCESS)
		report_fail(&r, "%s", wc_status_name(status));
	else if (advice == WRITE_ && pattern_check(b->mem, LEN, 3, 0) != LEN)
		report_fail(&r, "what was written is not there");
	else if (advice != WRITE_ && memcmp(b->mem, b->peer.mem, LEN))
		report_fail(&r, "what was read is not what is there");
	if (before.valid && after.faults != before.faults)
		report_fail(&r, "%llu faults",
			    (unsigned long long)(after.faults - before.faults));
	ibv_dereg_mr(mr);
	unmap_memory(b);
	report_end(&r);
}

struct release {
	int uffd;
	void *mem;
};

/* Gives the page when somebody waits for it, and a while later. */
static void *release(void *arg)
{
	struct release *rel = arg;

	sleep_ms(200);
	uffd_release(rel->uffd, rel->mem, LEN);
	return NULL;
}

/* An advice without FLUSH is held when its MR goes: that waits, and ends. */
static void dereg_waits(struct bench *b)
{
	struct release rel;
	struct ibv_sge sge;
	struct report r;
	struct ibv_mr *mr;
	pthread_t thread;
	int err;

	report_begin(&r, "advise");
	report_str(&r, "case", b->implicit ? "advise-implicit-dereg-waits" : "advise-dereg-waits");
	map_memory(b, UNTOUCHED);
	mr = register_for(b, OWN);
	rel.mem = b->mem;
	rel.uffd = uffd_hold(b->mem, LEN);
	sge = (struct ibv_sge){ (uintptr_t)b->mem, LEN, mr->lkey };
	err = ibv_advise_mr(b->dev.pd, WRITE_, 0, &sge, 1);
	report_str(&r, "errno", err ? strerrorname_np(err) : "0");
	if (!uffd_wait(rel.uffd, TIMEOUT_S * 1000))
		report_fail(&r, "nothing is brought in");
	if (pthread_create(&thread, NULL, release, &rel))
		die("pthread_create failed");
	if (ibv_dereg_mr(mr))
		report_fail(&r, "ibv_dereg_mr: %s", strerror(errno));
	pthread_join(thread, NULL);
	close(rel.uffd);
	unmap_memory(b);
	report_end(&r);
}

/* A process goes while an advice of its is held: with SIGKILL, waiting for it or not; or by exit. */
static void process_goes(struct bench *b, const char *what, int flags, bool killed)
{
	struct bench own = { .implicit = b->implicit };
	int started[2], uffd, status;
	struct ibv_sge sge;
	struct report r;
	struct ibv_mr *mr;
	char name[80];
	pid_t pid;
	char c;

	snprintf(name, sizeof(name), "advise-%s%s", b->implicit ? "implicit-" : "", what);
	report_begin(&r, "advise");
	report_str(&r, "case", name);
	if (pipe(started))
		die("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		device_open(&own.dev, b->dev.name);
		map_memory(&own, UNTOUCHED);
		mr = register_for(&own, OWN);
		uffd = uffd_hold(own.mem, LEN);
		sge = (struct ibv_sge){ (uintptr_t)own.mem, LEN, mr->lkey };
		if (flags && write(started[1], "", 1) != 1)
			_exit(2);
		if (ibv_advise_mr(own.dev.pd, WRITE_, flags, &sge, 1))
			_exit(3);
		if (!uffd_wait(uffd, TIMEOUT_S * 1000))
			_exit(4);
		if (!flags && write(started[1], "", 1) != 1)
			_exit(2);
		if (killed)
			pause();
		_exit(0);
	}
	close(started[1]);
	if (read(started[0], &c, 1) != 1)
		report_fail(&r, "the process did not get so far");
	if (flags)
		sleep_ms(200);
	if (killed)
		kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid ||
	    (killed ? !WIFSIGNALED(status) : status != 0))
		report_fail(&r, "the process ended with status %#x", status);
	close(started[0]);
	report_str(&r, "end", killed ? "killed" : "exit");
	report_end(&r);
}

static void run_all(struct bench *b)
{
	size_t i;
	int flush;

	for (flush = 1; flush >= 0; flush--)
		for (i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
			run_advice(b, &advices[i], flush);
	no_fault(b, READ_, "read");
	no_fault(b, WRITE_, "write");
	no_fault(b, PRESENT, "present");
	dereg_waits(b);
	process_goes(b, "killed-later", 0, true);
	process_goes(b, "killed-now", IBV_ADVISE_MR_FLAG_FLUSH, true);
	process_goes(b, "exits", 0, false);
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
	.doc = "ibv_advise_mr, case by case.",
};

int main(int argc, char **argv)
{
	struct bench b = { 0 };
	const char *name;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	device_open(&b.dev, name);
	b.other_pd = ibv_alloc_pd(b.dev.ctx);
	if (!b.other_pd)
		die("%s: ibv_alloc_pd: %s", name, strerror(errno));
	region_open(&b.peer, &b.dev, LEN, ALL);
	pair_create(&b.pair, &b.dev, 4, PAIR_TIMEOUT);
	run_all(&b);
	if (b.dev.attr.odp_caps.general_caps & IBV_ODP_SUPPORT_IMPLICIT) {
		b.implicit = true;
		run_all(&b);
	}
	pair_destroy(&b.pair);
	region_close(&b.peer);
	ibv_dealloc_pd(b.other_pd);
	device_close(&b.dev);
	return report_exit_status();
}
