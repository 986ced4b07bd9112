// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P8: does a process whose faults nobody serves hold up another's? */
#define _GNU_SOURCE
#include "bench.h"
#include "uffd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define HELD	64	/* faults of the process that is held */
#define TRIED	200	/* faults of the other one */
#define PATIENCE 15	/* seconds that one of these may take */

static void say(int fd)
{
	if (write(fd, "x", 1) != 1)
		die("pipe: %s", strerror(errno));
}

static void hear(int fd)
{
	char c;

	if (read(fd, &c, 1) != 1)
		die("the other process is gone");
}

/*
 * Process A: faults on HELD pages that a userfaultfd holds, one QP each; says so when all
 * that the driver serves at once are held; lets go when it is told to.
 */
static void hold(const char *name, int ready, int release)
{
	struct bench a = { 0 };
	struct ibv_mr *mr;
	unsigned int i;
	uint8_t *mem;
	int fd;

	/* Whatever becomes of the measuring process, its faults must not stay. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	device_open(&a.dev, name);
	region_open(&a.local, &a.dev, LOCAL_SIZE, RW);
	crowd(&a, HELD);
	mem = map_memory(HELD * PAGE, SMALL_PAGES);
	mr = odp_mr(&a.dev, mem, HELD * PAGE, RW);
	fd = uffd_hold(mem, HELD * PAGE);
	for (i = 0; i < HELD; i++) {
		struct transfer_op op = crowd_op(&a, IBV_WR_RDMA_WRITE, i, mr, i * PAGE, 8);

		post(&a.crowd[i], &op);
	}
	while (uffd_wait(fd, 2000))
		;
	say(ready);
	hear(release);
	if (!uffd_release(fd, mem, HELD * PAGE))
		die("userfaultfd: the pages are not taken");
	for (i = 0; i < HELD; i++)
		complete(&a.crowd[i]);
	exit(0);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Faults on TRIED pages, one after the other, until one takes too long. */
static void p8_faults(struct bench *b, const char *section, unsigned int round)
{
	size_t len = TRIED * APART;
	uint8_t *mem = map_memory(len, SMALL_PAGES);
	struct ibv_mr *mr = odp_mr(&b->dev, mem, len, RW);
	double took[TRIED], start;
	struct pair pair;
	unsigned int done;
	struct report r;
	struct meter m;
	struct ibv_wc wc;

	touch_each(mem, len, APART);
	pair_create(&pair, &b->dev, 4, NO_TIMEOUT);
	meter_begin(&m);
	for (done = 0; done < TRIED; done++) {
		struct transfer_op op = crowd_op(b, IBV_WR_RDMA_READ, 0, mr, done * APART, 8);

		start = now();
		post(&pair, &op);
		if (!pair_poll(&pair, REQUESTER, &wc, PATIENCE))
			break;
		if (wc.status != IBV_WC_SUCCESS)
			die("P8: completion: %s", wc_status_name(wc.status));
		took[done] = now() - start;
	}
	meter_end(&m, &r, "P8", section, round, TRIED);
	report_u64(&r, "completed", done);
	if (done) {
		qsort(took, done, sizeof(took[0]), compare);
		report_seconds(&r, "median_ms", took[done / 2] * 1000);
	}
	report_end(&r);
	/* A fault that is still held ends with the process that holds it up. */
	if (done == TRIED) {
		pair_destroy(&pair);
		ibv_dereg_mr(mr);
		unmap_memory(mem, len);
	}
}

void line_p8(struct bench *b)
{
	int ready[2], release[2], status;
	pid_t a;

	if (pipe(ready) || pipe(release))
		die("pipe: %s", strerror(errno));
	p8_faults(b, "idle", 0);
	fflush(stdout);
	a = fork();
	if (a < 0)
		die("fork: %s", strerror(errno));
	if (!a)
		hold(b->dev.name, ready[1], release[0]);
	hear(ready[0]);
	p8_faults(b, "held", 0);
	say(release[1]);
	if (waitpid(a, &status, 0) != a || status)
		die("P8: the held process ended with status %#x", status);
	close(ready[0]);
	close(ready[1]);
	close(release[0]);
	close(release[1]);
}
