// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "monitor.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN	(64u << 10)

static void traffic(struct monitor_shared *s, const char *name, bool faulting)
{
	struct transfer_op op = { .opcode = IBV_WR_RDMA_WRITE, .length = LEN };
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
	struct ibv_mr *src_mr, *dst_mr;
	uint64_t window = 0;
	struct device dev;
	struct pair pair;
	uint8_t *src, *dst;
	struct ibv_wc wc;
	double last;

	device_open(&dev, name);
	src = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (src == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	dst = src + LEN;
	src_mr = ibv_reg_mr(dev.pd, src, LEN, 0);
	if (faulting)
		access |= IBV_ACCESS_ON_DEMAND;
	dst_mr = ibv_reg_mr(dev.pd, dst, LEN, access);
	if (!src_mr || !dst_mr)
		die("registering memory: %s", strerror(errno));
	pair_create(&pair, &dev, 1, PAIR_TIMEOUT);
	op.local = src;
	op.lkey = src_mr->lkey;
	op.remote = (uintptr_t)dst;
	op.rkey = dst_mr->rkey;
	last = now();
	while (!s->stop) {
		uint64_t gap;

		if (faulting && madvise(dst, LEN, MADV_DONTNEED))
			die("MADV_DONTNEED: %s", strerror(errno));
		memset(src, (int)s->ops + 1, 64);
		if (pair_post(&pair, &op))
			die("ibv_post_send failed");
		if (!pair_poll(&pair, REQUESTER, &wc, 20) || wc.status ||
		    memcmp(src, dst, 64)) {
			s->failed = true;
			break;
		}
		if (window != s->restart) {
			window = s->restart;
			s->max_gap_us = 0;
		}
		gap = (now() - last) * 1e6;
		if (gap > s->max_gap_us)
			s->max_gap_us = gap;
		last = now();
		s->ops++;
		usleep(5000);
	}
	pair_destroy(&pair);
	ibv_dereg_mr(src_mr);
	ibv_dereg_mr(dst_mr);
	device_close(&dev);
}

void monitor_start(struct monitor *m, const char *dev, bool faulting)
{
	double start = now();

	m->shared = mmap(NULL, sizeof(*m->shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m->shared == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	m->pid = fork();
	if (m->pid < 0)
		die("fork: %s", strerror(errno));
	if (!m->pid) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		traffic(m->shared, dev, faulting);
		_exit(0);
	}
	while (m->shared->ops < 3) {
		if (waitpid(m->pid, NULL, WNOHANG) || now() - start > 20)
			die("the monitor does not get its traffic going");
		sleep_ms(10);
	}
}

void monitor_window(struct monitor *m)
{
	m->ops_before = m->shared->ops;
	m->shared->max_gap_us = 0;
	m->shared->restart++;
}

void monitor_read(const struct monitor *m, uint64_t *ops, double *max_gap_s)
{
	*ops = m->shared->ops - m->ops_before;
	*max_gap_s = m->shared->max_gap_us * 1e-6;
}

bool monitor_stop(struct monitor *m)
{
	bool ok;

	m->shared->stop = true;
	waitpid(m->pid, NULL, 0);
	ok = !m->shared->failed;
	munmap(m->shared, sizeof(*m->shared));
	return ok;
}
