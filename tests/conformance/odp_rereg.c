// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * ibv_rereg_mr() of memory on demand: which changes are made, which are refused, and what a
 * peer may do afterwards. What comes of each is read off the driver in C (mr.c:
 * mlx5_ib_rereg_user_mr()).
 */
#define _GNU_SOURCE
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"
#include "uffd.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN	  (8 * PAGE)
#define TIMEOUT_S 20
#define SEED	  11

#define RIGHTS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)
#define ODP    IBV_ACCESS_ON_DEMAND
#define TRANS  IBV_REREG_MR_CHANGE_TRANSLATION
#define PD     IBV_REREG_MR_CHANGE_PD
#define ACCESS IBV_REREG_MR_CHANGE_ACCESS

enum memory { EXPLICIT, IMPLICIT, PINNED };
enum held { NOT_HELD, HELD };

struct rereg_case {
	const char *name;
	enum memory before;
	int access;		/* before */
	int flags;
	int new_access;
	int error;
	/* Completion of a WRITE of a QP in the old domain, and in the new one. */
	int old_pd, new_pd;
	enum held held;		/* a page fault of the MR is under way meanwhile */
};

#define REFUSED IBV_WC_REM_ACCESS_ERR

static const struct rereg_case cases[] = {
	{ "pd", EXPLICIT, ODP | RIGHTS, PD, 0, 0, REFUSED, 0, NOT_HELD },
	{ "pd-held", EXPLICIT, ODP | RIGHTS, PD, 0, 0, REFUSED, 0, HELD },
	{ "less-access", EXPLICIT, ODP | RIGHTS, ACCESS, ODP | IBV_ACCESS_LOCAL_WRITE, 0,
	  REFUSED, REFUSED, NOT_HELD },
	{ "less-access-held", EXPLICIT, ODP | RIGHTS, ACCESS, ODP | IBV_ACCESS_LOCAL_WRITE, 0,
	  REFUSED, REFUSED, HELD },
	{ "more-access", EXPLICIT, ODP | IBV_ACCESS_LOCAL_WRITE, ACCESS, ODP | RIGHTS, 0,
	  0, REFUSED, NOT_HELD },
	{ "pd-access", EXPLICIT, ODP | IBV_ACCESS_LOCAL_WRITE, PD | ACCESS, ODP | RIGHTS, 0,
	  REFUSED, 0, NOT_HELD },
	/* It was registered for reading: the memory may be such. */
	{ "write-access", EXPLICIT, ODP, ACCESS, ODP | RIGHTS, EACCES, REFUSED, REFUSED,
	  NOT_HELD },
	{ "no-odp", EXPLICIT, ODP | RIGHTS, ACCESS, RIGHTS, EOPNOTSUPP, 0, REFUSED, NOT_HELD },
	{ "translation", EXPLICIT, ODP | RIGHTS, TRANS, 0, 0, 0, REFUSED, NOT_HELD },
	{ "translation-pd", EXPLICIT, ODP | RIGHTS, TRANS | PD, 0, 0, REFUSED, 0, NOT_HELD },
	{ "translation-pinned", EXPLICIT, ODP | RIGHTS, TRANS | ACCESS, RIGHTS, 0, 0, REFUSED,
	  NOT_HELD },
	{ "translation-odp", PINNED, RIGHTS, TRANS | ACCESS, ODP | RIGHTS, 0, 0, REFUSED,
	  NOT_HELD },
	{ "implicit-pd", IMPLICIT, ODP | RIGHTS, PD, 0, 0, REFUSED, 0, NOT_HELD },
	{ "implicit-less-access", IMPLICIT, ODP | RIGHTS, ACCESS, ODP | IBV_ACCESS_LOCAL_WRITE, 0,
	  REFUSED, REFUSED, NOT_HELD },
	{ "implicit-no-odp", IMPLICIT, ODP | RIGHTS, ACCESS, RIGHTS, EOPNOTSUPP, 0, REFUSED,
	  NOT_HELD },
	{ "implicit-translation", IMPLICIT, ODP | RIGHTS, TRANS, 0, 0, 0, REFUSED, NOT_HELD },
};

struct bench {
	struct device dev, other;	/* the same but for the domain */
	struct pair pair[2];		/* in either domain */
	struct region source[2];	/* pinned, in either */
	uint8_t *mem[2];		/* before and afterwards */
};

static uint8_t *map(void)
{
	uint8_t *mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		die("mapping %d bytes: %s", LEN, strerror(errno));
	madvise(mem, LEN, MADV_NOHUGEPAGE);
	return mem;
}

static struct transfer_op write_of(struct bench *b, int domain, uint8_t *to, struct ibv_mr *mr)
{
	return (struct transfer_op){
		.opcode = IBV_WR_RDMA_WRITE, .local = b->source[domain].mem, .length = LEN,
		.lkey = b->source[domain].mr->lkey, .remote = (uintptr_t)to, .rkey = mr->rkey,
	};
}

static void expect(struct report *r, struct bench *b, int domain, const char *what, int status,
		   int due, const uint8_t *to)
{
	bool all = pattern_check(to, LEN, SEED + domain, 0) == LEN;

	report_str(r, what, wc_status_name(status));
	if (status != due)
		report_fail(r, "%s: %s, not %s", what, wc_status_name(status), wc_status_name(due));
	if (all != !due)
		report_fail(r, "%s: %s", what, all ? "the bytes have moved" : "bytes are missing");
	if (status)
		pair_reconnect(&b->pair[domain]);
}

static void run(struct bench *b, const struct rereg_case *c)
{
	bool moves = c->flags & TRANS && !c->error;
	uint8_t *to;
	struct transfer_op op;
	struct ibv_mr *mr;
	struct report r;
	struct ibv_wc wc;
	int uffd = -1, i, err, status;

	report_begin(&r, "rereg");
	report_str(&r, "case", c->name);
	for (i = 0; i < 2; i++)
		b->mem[i] = map();
	to = b->mem[moves];
	if (c->held == HELD)
		uffd = uffd_hold(b->mem[0], LEN);
	mr = c->before == IMPLICIT ? ibv_reg_mr(b->dev.pd, NULL, SIZE_MAX, c->access) :
				     ibv_reg_mr(b->dev.pd, b->mem[0], LEN, c->access);
	if (!mr)
		die("ibv_reg_mr: %s", strerror(errno));

	if (c->held == HELD) {
		op = write_of(b, 0, to, mr);
		err = pair_post(&b->pair[0], &op);
		if (err)
			die("ibv_post_send: %s", strerror(err));
		if (!uffd_wait(uffd, TIMEOUT_S * 1000))
			report_fail(&r, "the device did not fault within %d s", TIMEOUT_S);
	}
	errno = 0;
	err = ibv_rereg_mr(mr, c->flags, c->flags & PD ? b->other.pd : NULL,
			   c->flags & TRANS ? b->mem[1] : NULL, c->flags & TRANS ? LEN : 0,
			   c->flags & ACCESS ? c->new_access : 0) ? errno : 0;
	report_u64(&r, "errno", err);
	if (err != c->error)
		report_fail(&r, "ibv_rereg_mr: %s", strerror(err));
	if (c->held == HELD) {
		if (!uffd_release(uffd, b->mem[0], LEN))
			die("UFFDIO_ZEROPAGE: %s", strerror(errno));
		status = pair_poll(&b->pair[0], REQUESTER, &wc, TIMEOUT_S) ? (int)wc.status :
									     NO_COMPLETION;
		expect(&r, b, 0, "local", status, c->old_pd, to);
	} else {
		op = write_of(b, 0, to, mr);
		expect(&r, b, 0, "local", pair_do(&b->pair[0], &op, TIMEOUT_S), c->old_pd, to);
	}
	op = write_of(b, 1, to, mr);
	expect(&r, b, 1, "other", pair_do(&b->pair[1], &op, TIMEOUT_S), c->new_pd, to);
	report_end(&r);

	if (ibv_dereg_mr(mr))
		die("ibv_dereg_mr: %s", strerror(errno));
	if (uffd >= 0)
		close(uffd);
	for (i = 0; i < 2; i++)
		munmap(b->mem[i], LEN);
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
	.doc = "Changes of registrations on demand.",
};

int main(int argc, char **argv)
{
	struct bench b = { 0 };
	const char *name;
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	device_open(&b.dev, name);
	b.other = b.dev;
	b.other.pd = ibv_alloc_pd(b.dev.ctx);
	if (!b.other.pd)
		die("%s: ibv_alloc_pd: %s", name, strerror(errno));
	for (i = 0; i < 2; i++) {
		struct device *dev = i ? &b.other : &b.dev;

		region_open(&b.source[i], dev, LEN, 0);
		pattern_fill(b.source[i].mem, LEN, SEED + i, 0);
		pair_create(&b.pair[i], dev, 1, PAIR_TIMEOUT);
	}
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		run(&b, &cases[i]);
	for (i = 0; i < 2; i++) {
		pair_destroy(&b.pair[i]);
		region_close(&b.source[i]);
	}
	if (ibv_dealloc_pd(b.other.pd))
		die("%s: ibv_dealloc_pd: %s", name, strerror(errno));
	device_close(&b.dev);
	return report_exit_status();
}
