// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* P7: how often the kernel links, syncs, unlinks and flushes IOVA, by kprobes. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#define TRACING		"/sys/kernel/tracing"
#define P7_SIZE		(4 * MiB)

/* What is counted. qi_submit_sync: requests that an Intel IOMMU flush. */
static const char *const functions[] = {
	"dma_iova_link", "dma_iova_sync", "dma_iova_unlink", "qi_submit_sync",
};

#define FUNCTIONS (sizeof(functions) / sizeof(functions[0]))

/*
 * Appends TEXT to a file of tracefs; false if that is refused. Not by stdio, which seeks to
 * the end, and tracefs knows none.
 */
static bool control(const char *file, const char *text)
{
	size_t len = strlen(text);
	char path[128];
	bool ok;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", TRACING, file);
	fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0)
		return false;
	ok = write(fd, text, len) == (ssize_t)len;
	close(fd);
	return ok;
}

static void probes_open(void)
{
	char text[160];
	size_t i;

	/* Mounted already in most systems. */
	mount("tracefs", TRACING, "tracefs", 0, NULL);
	for (i = 0; i < FUNCTIONS; i++) {
		snprintf(text, sizeof(text), "p:bench/%s %s\n", functions[i], functions[i]);
		if (!control("kprobe_events", text))
			die("no probe of %s: %s", functions[i], strerror(errno));
	}
	if (!control("events/bench/enable", "1\n"))
		die("the probes are not enabled: %s", strerror(errno));
}

static void probes_close(void)
{
	char text[160];
	size_t i;

	control("events/bench/enable", "0\n");
	for (i = 0; i < FUNCTIONS; i++) {
		snprintf(text, sizeof(text), "-:bench/%s\n", functions[i]);
		control("kprobe_events", text);
	}
}

static void probes_read(uint64_t hits[FUNCTIONS])
{
	FILE *f = fopen(TRACING "/kprobe_profile", "re");
	char line[256], name[128];
	unsigned long n;
	size_t i;

	memset(hits, 0, FUNCTIONS * sizeof(*hits));
	if (!f)
		die("kprobe_profile: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%127s %lu", name, &n) == 2)
			for (i = 0; i < FUNCTIONS; i++)
				if (!strcmp(name, functions[i]))
					hits[i] = n;
	fclose(f);
}

struct probed {
	struct meter m;
	uint64_t before[FUNCTIONS];
};

static void probed_begin(struct probed *p)
{
	probes_read(p->before);
	meter_begin(&p->m);
}

static void probed_report(struct probed *p, const char *section, unsigned int round)
{
	uint64_t after[FUNCTIONS];
	struct report r;
	char key[64];
	size_t i;

	meter_end(&p->m, &r, "P7", section, round, 1);
	probes_read(after);
	for (i = 0; i < FUNCTIONS; i++) {
		snprintf(key, sizeof(key), "probe.%s", functions[i]);
		report_u64(&r, key, after[i] - p->before[i]);
	}
	report_end(&r);
}

static void p7_pages(struct bench *b, unsigned int round, enum pages pages)
{
	const char *suffix = pages == HUGE_PAGES ? "thp" : "4k";
	uint8_t *mem = map_memory(P7_SIZE, pages);
	struct ibv_mr *mr = odp_mr(&b->dev, mem, P7_SIZE, RW);
	char section[32];
	struct probed p;

	/* By faults: registered before there is a page. */
	touch(mem, P7_SIZE);
	probed_begin(&p);
	sweep(b, IBV_WR_RDMA_READ, mr, P7_SIZE, P7_SIZE, P7_SIZE);
	snprintf(section, sizeof(section), "fault-%s", suffix);
	probed_report(&p, section, round);
	ibv_dereg_mr(mr);

	probed_begin(&p);
	mr = odp_mr(&b->dev, mem, P7_SIZE, RW);
	snprintf(section, sizeof(section), "register-%s", suffix);
	probed_report(&p, section, round);

	probed_begin(&p);
	unmap_memory(mem, P7_SIZE);
	snprintf(section, sizeof(section), "munmap-%s", suffix);
	probed_report(&p, section, round);
	ibv_dereg_mr(mr);
}

void line_p7(struct bench *b)
{
	unsigned int round;

	probes_open();
	for (round = 0; round < b->rounds; round++) {
		p7_pages(b, round, SMALL_PAGES);
		p7_pages(b, round, HUGE_PAGES);
	}
	probes_close();
}
