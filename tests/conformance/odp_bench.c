// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * What on-demand paging costs: the lines of `cargo xtask bench`, which runs this program on
 * the C driver and on ours. Each measured section is one JSON object; see meter.h for what
 * it holds.
 *
 * The process runs as SCHED_IDLE and spins on its CQ: kernel threads come first, and no
 * instruction of the kernel is this program's own where a section has no system call.
 */
#define _GNU_SOURCE
#include "bench.h"
#include "options.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

static const struct line {
	const char *name, *what;
	void (*run)(struct bench *b);
	bool shared_cpu;	/* threads of the program sleep or wait for each other */
} lines[] = {
	{ "P1", "one fault: READ, WRITE, local source, first touch", line_p1, false },
	{ "P2", "64 MiB in operations of 64 KiB", line_p2, false },
	{ "P3", "kernel memory of MRs", line_p3, false },
	{ "P4", "registering and deregistering", line_p4, false },
	{ "P5", "munmap and MADV_DONTNEED", line_p5, false },
	{ "P6", "1 to 8 threads fault in different chunks of one MR", line_p6, true },
	{ "P7", "IOVA links, syncs and flushes of 4 MiB", line_p7, false },
	{ "P8", "a process faults while another's faults are held", line_p8, true },
	{ "P9", "64 QPs fault on one page", line_p9, false },
	{ "P11", "256 faults in one 2 MiB", line_p11, false },
	{ "P12", "packet flood: 128 QPs, one page, then each its own", line_p12, false },
	{ "P13", "register, write once, deregister 256 MiB", line_p13, false },
	{ "unmap64", "munmap over 64 MRs on a slow device", line_unmap64, true },
};

uint8_t *map_memory(size_t len, enum pages pages)
{
	/* The mapping's own, and what aligns it. */
	uint8_t *all = mmap(NULL, len + CHUNK, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *mem = (uint8_t *)(((uintptr_t)all + CHUNK - 1) & ~(CHUNK - 1));

	if (all == MAP_FAILED)
		die("mapping %zu bytes: %s", len, strerror(errno));
	if (mem > all)
		munmap(all, mem - all);
	munmap(mem + len, all + CHUNK - mem);
	if (mprotect(mem, len, PROT_READ | PROT_WRITE) ||
	    madvise(mem, len, pages == HUGE_PAGES ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("%zu bytes of memory: %s", len, strerror(errno));
	return mem;
}

void unmap_memory(void *mem, size_t len)
{
	if (munmap(mem, len))
		die("munmap: %s", strerror(errno));
}

void touch_each(uint8_t *mem, size_t len, size_t stride)
{
	size_t offset;

	for (offset = 0; offset < len; offset += stride)
		mem[offset] = 1;
}

void touch(uint8_t *mem, size_t len)
{
	touch_each(mem, len, PAGE);
}

void post(struct pair *pair, const struct transfer_op *op)
{
	int err = pair_post(pair, op);

	if (err)
		die("ibv_post_send: %s", strerror(err));
}

/*
 * An instruction each time, but an emulated processor lets go for a while: where time is
 * instructions, waiting for the device then takes less of it, and fewer ticks.
 */
static void relax(void)
{
#ifdef __x86_64__
	unsigned int i;

	for (i = 0; i < 16; i++)
		__builtin_ia32_pause();
#endif
}

void complete(struct pair *pair)
{
	double start = now();
	unsigned int spins = 0;
	struct ibv_wc wc;
	int n;

	while (!(n = ibv_poll_cq(pair->cq[REQUESTER], 1, &wc))) {
		relax();
		if (!(++spins & 0xfff) && now() - start > 60)
			die("no completion within 60 s");
	}
	if (n < 0)
		die("ibv_poll_cq failed");
	if (wc.status != IBV_WC_SUCCESS)
		die("completion: %s", wc_status_name(wc.status));
}

void transfer(struct bench *b, enum ibv_wr_opcode opcode, struct ibv_mr *mr, size_t offset,
	      uint32_t size)
{
	struct transfer_op op = {
		.opcode = opcode, .local = b->local.mem, .length = size,
		.lkey = b->local.mr->lkey,
		.remote = (uintptr_t)mr->addr + offset, .rkey = mr->rkey,
	};

	post(&b->pair, &op);
	complete(&b->pair);
}

void sweep(struct bench *b, enum ibv_wr_opcode opcode, struct ibv_mr *mr, size_t len,
	   size_t stride, uint32_t size)
{
	size_t offset;

	for (offset = 0; offset < len; offset += stride)
		transfer(b, opcode, mr, offset, size);
}

void crowd(struct bench *b, unsigned int n)
{
	if (b->crowd_size >= n)
		return;
	b->crowd = realloc(b->crowd, n * sizeof(*b->crowd));
	if (!b->crowd)
		die("out of memory");
	while (b->crowd_size < n)
		pair_create(&b->crowd[b->crowd_size++], &b->dev, 4, NO_TIMEOUT);
}

struct transfer_op crowd_op(struct bench *b, enum ibv_wr_opcode opcode, unsigned int i,
			    struct ibv_mr *mr, uint64_t offset, uint32_t size)
{
	return (struct transfer_op){
		.opcode = opcode, .local = b->local.mem + 64 * i, .length = size,
		.lkey = b->local.mr->lkey,
		.remote = (uintptr_t)mr->addr + offset, .rkey = mr->rkey,
	};
}

static void set_policy(int policy)
{
	struct sched_param param = { 0 };

	if (sched_setscheduler(0, policy, &param))
		die("scheduling policy %d: %s", policy, strerror(errno));
}

static const struct line *find(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
		if (!strcmp(lines[i].name, name))
			return &lines[i];
	return NULL;
}

struct arguments {
	const char *dev;
	unsigned int rounds, profiles;
	const struct line *chosen[sizeof(lines) / sizeof(lines[0])];
	unsigned int n;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct arguments *a = state->input;
	size_t i;

	switch (key) {
	case ARGP_KEY_INIT:
		return init_device_option(state, &a->dev);
	case 'r':
		a->rounds = strtoul(arg, NULL, 0);
		if (a->rounds < 1 || a->rounds > 100)
			argp_error(state, "--rounds takes 1 to 100");
		return 0;
	case 'p':
		a->profiles = strtoul(arg, NULL, 0);
		return 0;
	case 'l':
		for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
			printf("%-8s %s\n", lines[i].name, lines[i].what);
		exit(0);
	case ARGP_KEY_ARG:
		if (!find(arg))
			argp_error(state, "there is no line %s (--list)", arg);
		if (a->n == sizeof(a->chosen) / sizeof(a->chosen[0]))
			argp_error(state, "too many lines");
		a->chosen[a->n++] = find(arg);
		return 0;
	case ARGP_KEY_END:
		if (!a->n)
			argp_error(state, "which line? (--list)");
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "rounds", 'r', "N", 0, "how often each section is measured (3)", 0 },
	{ "profiles", 'p', "N", 0, "instruction profiles that there are already (0)", 0 },
	{ "list", 'l', NULL, 0, "what lines there are", 0 },
	{ 0 },
};

int main(int argc, char **argv)
{
	static const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	static const struct argp argp = {
		.options = options, .parser = parse, .args_doc = "LINE...",
		.doc = "Measures what on-demand paging costs.", .children = device_option,
	};
	struct arguments a = { .rounds = 3 };
	struct bench b = { 0 };
	unsigned int i;

	argp_parse(&argp, argc, argv, 0, NULL, &a);
	b.rounds = a.rounds;
	/* What is pinned counts as locked. */
	if (setrlimit(RLIMIT_MEMLOCK, &unlimited))
		die("RLIMIT_MEMLOCK: %s", strerror(errno));
	device_open(&b.dev, a.dev);
	region_open(&b.local, &b.dev, LOCAL_SIZE, RW);
	pair_create(&b.pair, &b.dev, 64, PAIR_TIMEOUT);
	meter_init(a.profiles);
	for (i = 0; i < a.n; i++) {
		set_policy(a.chosen[i]->shared_cpu ? SCHED_OTHER : SCHED_IDLE);
		a.chosen[i]->run(&b);
	}
	return report_exit_status();
}
