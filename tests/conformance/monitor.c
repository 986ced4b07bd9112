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
	struct region src, dst;
	struct device dev;
	struct pair pair;

	device_open(&dev, name);
	if (faulting)
		access |= IBV_ACCESS_ON_DEMAND;
	region_open(&src, &dev, LEN, 0);
	region_open(&dst, &dev, LEN, access);
	pair_create(&pair, &dev, 1, PAIR_TIMEOUT);
	op.local = src.mem;
	op.lkey = src.mr->lkey;
	op.remote = (uintptr_t)dst.mem;
	op.rkey = dst.mr->rkey;
	while (!s->stop) {
		if (faulting && madvise(dst.mem, LEN, MADV_DONTNEED))
			die("MADV_DONTNEED: %s", strerror(errno));
		memset(src.mem, (int)s->ops + 1, 64);
		if (pair_do(&pair, &op, 20) || memcmp(src.mem, dst.mem, 64)) {
			s->failed = true;
			break;
		}
		s->ops++;
		usleep(5000);
	}
	pair_destroy(&pair);
	region_close(&src);
	region_close(&dst);
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
}

uint64_t monitor_ops(const struct monitor *m)
{
	return m->shared->ops - m->ops_before;
}

bool monitor_stop(struct monitor *m)
{
	int status;
	bool ok;

	m->shared->stop = true;
	/* It may also have died, of a resource that it could not give back. */
	ok = waitpid(m->pid, &status, 0) == m->pid && !status && !m->shared->failed;
	munmap(m->shared, sizeof(*m->shared));
	return ok;
}
