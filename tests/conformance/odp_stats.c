// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * A known sequence of faults and invalidations on one ODP MR, alone on the device.
 * Prints, for each phase, what the device and restrack counted meanwhile;
 * stats_check.py holds the rules that these numbers must follow.
 */
#define _GNU_SOURCE
#include "devctl.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	4096u
#define OP_LEN	(64u << 10)

struct state {
	struct device dev;
	struct pair pair;
	struct ibv_mr *mr, *src_mr;
	uint8_t *mem, *src;
	uint64_t pages;
	struct device_counters dc;
	struct mr_statistics ms;
};

static void counters(struct state *s)
{
	mr_statistics(s->dev.name, &s->ms);
	device_counters(s->dev.name, &s->dc);
}

static void report_phase(struct state *s, const char *phase, const char *error)
{
	struct device_counters dc = s->dc;
	struct mr_statistics ms = s->ms;
	struct report r;

	counters(s);
	report_begin(&r, "stats");
	report_str(&r, "phase", phase);
	report_u64(&r, "pages", s->pages);
	if (s->ms.valid) {
		report_u64(&r, "page_faults", s->ms.page_faults - ms.page_faults);
		report_u64(&r, "page_faults_handled",
			   s->ms.page_faults_handled - ms.page_faults_handled);
		report_u64(&r, "page_invalidations",
			   s->ms.page_invalidations - ms.page_invalidations);
		report_u64(&r, "page_invalidations_handled",
			   s->ms.page_invalidations_handled -
			   ms.page_invalidations_handled);
	}
	if (s->dc.valid) {
		report_u64(&r, "device_faults", s->dc.faults - dc.faults);
		report_u64(&r, "device_resumes_ok", s->dc.resumes_ok - dc.resumes_ok);
		report_u64(&r, "device_resumes_error",
			   s->dc.resumes_error - dc.resumes_error);
		report_u64(&r, "device_mtts_set", s->dc.mtts_set - dc.mtts_set);
		report_u64(&r, "device_mtts_cleared",
			   s->dc.mtts_cleared - dc.mtts_cleared);
	}
	if (error)
		report_fail(&r, "%s", error);
	report_end(&r);
}

static const char *write_all(struct state *s)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = s->src, .length = OP_LEN,
		.lkey = s->src_mr->lkey, .rkey = s->mr->rkey,
	};
	struct ibv_wc wc;
	uint64_t off;

	for (off = 0; off < s->pages * PAGE; off += OP_LEN) {
		op.remote = (uintptr_t)s->mem + off;
		if (pair_post(&s->pair, &op))
			return "ibv_post_send failed";
		if (!pair_poll(&s->pair, REQUESTER, &wc, 20))
			return "no completion";
		if (wc.status)
			return wc_status_name(wc.status);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "dev", required_argument, NULL, 'd' },
		{ "pages", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	static const char use[] = "usage: odp_stats --dev NAME [--pages N]\n";
	struct state s = { .pages = 512 };
	const char *dev = NULL, *error;
	size_t len;
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'd': dev = optarg; break;
		case 'p': s.pages = parse_size("--pages", optarg); break;
		case 'h':
			fputs(use, stdout);
			return 0;
		default:
			fputs(use, stderr);
			return 2;
		}
	}
	if (!dev || optind != argc) {
		fputs(use, stderr);
		return 2;
	}
	len = s.pages * PAGE;
	if (!len || len % OP_LEN)
		die("--pages must be a multiple of %u", OP_LEN / PAGE);
	device_open(&s.dev, dev);
	s.mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	s.src = mmap(NULL, OP_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s.mem == MAP_FAILED || s.src == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	/* A huge page may only go as a whole, and come when nobody asked. */
	madvise(s.mem, len, MADV_NOHUGEPAGE);
	s.src_mr = ibv_reg_mr(s.dev.pd, s.src, OP_LEN, 0);
	if (!s.src_mr)
		die("registering memory: %s", strerror(errno));
	pair_create(&s.pair, &s.dev, 1, PAIR_TIMEOUT);

	counters(&s);
	s.mr = odp_mr(&s.dev, s.mem, len, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	report_phase(&s, "register-absent", NULL);
	report_phase(&s, "nothing", NULL);
	error = write_all(&s);
	report_phase(&s, "write-absent", error);
	error = write_all(&s);
	report_phase(&s, "write-present", error);
	error = madvise(s.mem, len, MADV_DONTNEED) ? strerror(errno) : NULL;
	report_phase(&s, "drop-present", error);
	error = madvise(s.mem, len, MADV_DONTNEED) ? strerror(errno) : NULL;
	report_phase(&s, "drop-absent", error);
	error = write_all(&s);
	report_phase(&s, "write-dropped", error);
	/* Eight pages of every sixteen: eight entries are one UMR octword group. */
	for (size_t page = 0; page < s.pages; page += 16)
		madvise(s.mem + page * PAGE, 8 * PAGE, MADV_DONTNEED);
	report_phase(&s, "drop-half", NULL);
	error = write_all(&s);
	report_phase(&s, "write-half", error);
	error = munmap(s.mem, len) ? strerror(errno) : NULL;
	report_phase(&s, "unmap", error);

	pair_destroy(&s.pair);
	ibv_dereg_mr(s.mr);
	ibv_dereg_mr(s.src_mr);
	device_close(&s.dev);
	return report_exit_status();
}
