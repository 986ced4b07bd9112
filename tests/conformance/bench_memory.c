// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * P3: kernel memory of MRs.
 *
 * What is free is counted with the pages that processors keep aside, so that it is exact
 * to a page. What processes, their page tables and the IOMMU's page tables take is
 * counted by the kernel, and apart from the rest: the rest is drivers' memory.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SMALL_MRS	4096
#define SMALL_MR	16384
#define SPREAD		64	/* of so many chunks one is touched */

/* KiB. */
struct memory {
	long free, processes, iommu, slab, vmalloc;
};

/* Adds to the sum each line of FILE that starts with KEY, times UNIT. */
static long sum_of(const char *file, const char *key, long unit)
{
	FILE *f = fopen(file, "re");
	size_t len = strlen(key);
	char line[256], *at;
	long sum = 0;

	if (!f)
		die("%s: %s", file, strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		at = line + strspn(line, " ");
		if (!strncmp(at, key, len))
			sum += strtol(at + len, NULL, 10) * unit;
	}
	fclose(f);
	return sum;
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	if (!f || fputs(text, f) < 0 || fclose(f))
		die("%s: %s", path, strerror(errno));
}

static struct memory memory_now(void)
{
	static const char meminfo[] = "/proc/meminfo";
	const long page = PAGE / 1024;

	/* What RCU and workqueues free, they free within this. */
	sleep_ms(500);
	write_file("/proc/sys/vm/drop_caches", "3\n");
	sleep_ms(100);
	/* Counters that processors keep apart. */
	write_file("/proc/sys/vm/stat_refresh", "1\n");
	return (struct memory){
		.free = sum_of("/proc/zoneinfo", "nr_free_pages ", page) +
			sum_of("/proc/zoneinfo", "count:", page),
		.processes = sum_of(meminfo, "AnonPages:", 1) +
			     sum_of(meminfo, "Cached:", 1) +
			     sum_of(meminfo, "Buffers:", 1) +
			     sum_of(meminfo, "PageTables:", 1) +
			     sum_of(meminfo, "KernelStack:", 1),
		.iommu = sum_of(meminfo, "SecPageTables:", 1),
		.slab = sum_of(meminfo, "Slab:", 1),
		.vmalloc = sum_of(meminfo, "VmallocUsed:", 1),
	};
}

/* N: GiB or MRs, what the table divides by. */
static void report_memory(const char *section, unsigned int round, uint64_t n,
			  const struct memory *before)
{
	struct memory after = memory_now();
	long used = before->free - after.free;
	long others = after.processes - before->processes;
	long iommu = after.iommu - before->iommu;
	const struct { const char *key; long value; } figures[] = {
		{ "kernel_kib", used - others - iommu }, { "iommu_kib", iommu },
		{ "slab_kib", after.slab - before->slab },
		{ "vmalloc_kib", after.vmalloc - before->vmalloc },
	};
	struct report r;
	size_t i;

	report_begin(&r, "P3");
	report_str(&r, "section", section);
	report_u64(&r, "round", round);
	report_u64(&r, "n", n);
	for (i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
		report_i64(&r, figures[i].key, figures[i].value);
	report_end(&r);
}

static void deregister(struct ibv_mr *mr)
{
	int err = ibv_dereg_mr(mr);

	if (err)
		die("ibv_dereg_mr: %s", strerror(err));
}

static void p3_untouched(struct bench *b, unsigned int round)
{
	const size_t gib = 16;
	uint8_t *mem = map_memory(gib * GiB, SMALL_PAGES);
	struct memory before = memory_now();
	struct ibv_mr *mr = odp_mr(&b->dev, mem, gib * GiB, RW);

	report_memory("untouched", round, gib, &before);
	deregister(mr);
	unmap_memory(mem, gib * GiB);
}

/*
 * The device reads SIZE bytes at each STRIDE of GIB GiB. The CPU has the pages before, so
 * that only what the device's side takes is counted.
 */
static void p3_touched(struct bench *b, unsigned int round, const char *section, size_t gib,
		       size_t stride, uint32_t size)
{
	size_t len = gib * GiB, offset;
	uint8_t *mem = map_memory(len, SMALL_PAGES);
	struct memory before;
	struct ibv_mr *mr;

	for (offset = 0; offset < len; offset += stride)
		touch(mem + offset, size);
	before = memory_now();
	mr = odp_mr(&b->dev, mem, len, RW);
	sweep(b, IBV_WR_RDMA_READ, mr, len, stride, size);
	report_memory(section, round, gib, &before);
	deregister(mr);
	unmap_memory(mem, len);
}

static void p3_small(struct bench *b, unsigned int round, bool touched)
{
	static struct ibv_mr *mrs[SMALL_MRS];
	const size_t len = (size_t)SMALL_MRS * SMALL_MR;
	uint8_t *mem = map_memory(len, SMALL_PAGES);
	struct memory before;
	unsigned int i;

	if (touched)
		touch(mem, len);
	before = memory_now();
	for (i = 0; i < SMALL_MRS; i++)
		mrs[i] = odp_mr(&b->dev, mem + (size_t)i * SMALL_MR, SMALL_MR, RW);
	if (touched)
		for (i = 0; i < SMALL_MRS; i++)
			sweep(b, IBV_WR_RDMA_READ, mrs[i], SMALL_MR, SMALL_MR, SMALL_MR);
	report_memory(touched ? "4096-mrs-touched" : "4096-mrs-untouched", round, SMALL_MRS,
		      &before);
	for (i = 0; i < SMALL_MRS; i++)
		deregister(mrs[i]);
	unmap_memory(mem, len);
}

void line_p3(struct bench *b)
{
	unsigned int round;

	/* The first round fills the driver's caches of MKeys. */
	for (round = 0; round < b->rounds; round++) {
		p3_untouched(b, round);
		p3_touched(b, round, "touched", 1, MiB, MiB);
		p3_touched(b, round, "one-chunk-in-64", 16, SPREAD * CHUNK, CHUNK);
		p3_touched(b, round, "one-page-a-chunk", 4, CHUNK, PAGE);
		p3_small(b, round, false);
		p3_small(b, round, true);
	}
}
