// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * RDMA WRITE into memory that was never touched and RDMA READ from memory that is not
 * mapped in, every byte verified; with --disturb while another thread takes the memory
 * away. The rules are in transfer.h and disturb.h.
 */
#include "counted.h"
#include "disturb.h"
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENOUGH_DISTURBANCES 5

struct options {
	const char *dev;
	uint64_t size, op_size, seed, min_faults;
	unsigned int depth, every, disturb;
	double seconds, stall_s;
	bool write, read, implicit;
};

static unsigned int parse_disturb(char *list)
{
	unsigned int bits = 0, kind;
	char *name;

	if (!list || !strcmp(list, "all"))
		return (1u << DISTURBANCES) - 1;
	for (name = strtok(list, ","); name; name = strtok(NULL, ",")) {
		for (kind = 0; kind < DISTURBANCES; kind++)
			if (!strcmp(name, disturbance_names[kind]))
				break;
		if (kind == DISTURBANCES)
			die("--disturb: '%s' is unknown", name);
		bits |= 1u << kind;
	}
	return bits;
}

static void run_direction(struct device *dev, const struct options *o, int source_fd,
			  enum direction dir)
{
	struct transfer t = {
		.dev = dev, .dir = dir, .size = o->size, .op_size = o->op_size,
		.seed = o->seed, .stall_s = o->stall_s, .source_fd = source_fd,
		.implicit = o->implicit,
	};
	struct disturber d = {
		.t = &t, .enabled = o->disturb, .every = o->every,
		.seed = o->seed,
	};
	bool in_mib = o->size % (1 << 20) == 0;
	struct counted before, after;
	struct report r;
	char name[64];
	double start;
	int kind;

	snprintf(name, sizeof(name), "%s-%llu%s%s%s", dir == DIR_WRITE ? "write" : "read",
		 (unsigned long long)o->size >> (in_mib ? 20 : 10), in_mib ? "m" : "k",
		 o->implicit ? "-implicit" : "", o->disturb ? "-disturb" : "");
	report_begin(&r, name);
	t.report = &r;

	transfer_setup(&t, !o->disturb, o->depth);
	report_u64(&r, "src_absent_pages", t.src_absent);
	report_u64(&r, "dst_absent_pages", t.dst_absent);
	if (dir == DIR_WRITE && t.dst_absent != t.pages)
		report_fail(&r, "the target is mapped in before the traffic");
	if (dir == DIR_READ && t.src_absent != t.pages)
		report_fail(&r, "the source is mapped in before the traffic");

	counted_now(o->dev, &before);
	start = now();
	if (o->disturb)
		disturb_start(&d);
	while (transfer_round(&t) && o->disturb && !d.failed)
		if (now() - start >= o->seconds &&
		    disturb_enough(&d, ENOUGH_DISTURBANCES))
			break;
	if (o->disturb && !disturb_stop(&d))
		report_fail(&r, "%s", d.reason);
	report_seconds(&r, "seconds", now() - start);
	counted_now(o->dev, &after);
	report_counted(&r, &before, &after, o->min_faults);
	report_u64(&r, "rounds", t.round);
	report_u64(&r, "bytes_verified", t.verified);
	for (kind = 0; kind < DISTURBANCES; kind++)
		if (o->disturb & 1u << kind)
			report_u64(&r, disturbance_names[kind], d.count[kind]);
	if (o->disturb) {
		report_u64(&r, "repeated", t.repeated);
		report_u64(&r, "denied", t.denied);
	}
	report_end(&r);
	transfer_teardown(&t);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 's': o->size = parse_size("--size", arg); return 0;
	case 'o': o->op_size = parse_size("--op-size", arg); return 0;
	case 'q': o->depth = parse_size("--depth", arg); return 0;
	case 'r': o->seed = parse_size("--seed", arg); return 0;
	case 'f': o->min_faults = parse_size("--min-faults", arg); return 0;
	case 'x': o->disturb = parse_disturb(arg); return 0;
	case 't': o->seconds = parse_size("--seconds", arg); return 0;
	case 'e': o->every = parse_size("--every", arg); return 0;
	case 'i': o->implicit = true; return 0;
	case 'T': o->stall_s = parse_size("--stall", arg); return 0;
	case 'D':
		o->write = !strcmp(arg, "write") || !strcmp(arg, "both");
		o->read = !strcmp(arg, "read") || !strcmp(arg, "both");
		if (!o->write && !o->read)
			argp_error(state, "--direction: write, read or both, not '%s'", arg);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "size", 's', "BYTES", 0, "Memory to transfer per round (64M)", 0 },
	{ "op-size", 'o', "BYTES", 0, "Size of one operation, a multiple of 4K (64K)", 0 },
	{ "depth", 'q', "N", 0, "Operations in flight (16)", 0 },
	{ "direction", 'D', "D", 0, "write, read or both (both)", 0 },
	{ "seed", 'r', "N", 0, "Of the data and the disturbances (1)", 0 },
	{ "min-faults", 'f', "N", 0, "Fail if the device reports fewer faults (0)", 0 },
	{ "disturb", 'x', "LIST", OPTION_ARG_OPTIONAL,
	  "All, or some of drop-src,drop-dst,protect-src,protect-dst,fork", 0 },
	{ "seconds", 't', "S", 0, "Go on disturbing for S seconds per direction (0: until "
	  "each disturbance was done 5 times)", 0 },
	{ "every", 'e', "N", 0, "One disturbance per N operations (4)", 0 },
	{ "implicit", 'i', NULL, 0, "One MR over all of the memory for each side", 0 },
	{ "stall", 'T', "S", 0, "Longest time for one operation (30)", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "RDMA WRITE and READ of memory that is not there, every byte verified.",
};

int main(int argc, char **argv)
{
	struct options o = {
		.size = 64 << 20, .op_size = 64 << 10, .seed = 1, .depth = 16,
		.every = 4, .stall_s = 30, .write = true, .read = true,
	};
	struct device dev;
	int source_fd;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (!o.op_size || o.op_size % PAGE || !o.size || o.size % o.op_size ||
	    o.op_size > UINT32_MAX || !o.depth)
		die("--size must be a multiple of --op-size, and that of 4K; --depth not 0");

	device_open(&dev, o.dev);
	source_fd = transfer_source(o.size, o.seed);
	if (o.write)
		run_direction(&dev, &o, source_fd, DIR_WRITE);
	if (o.read)
		run_direction(&dev, &o, source_fd, DIR_READ);
	device_close(&dev);
	return report_exit_status();
}
