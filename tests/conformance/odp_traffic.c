// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * RDMA WRITE into memory that was never touched and RDMA READ from memory that is not
 * mapped in, every byte verified; with --disturb while another thread takes the memory
 * away. The rules are in transfer.h and disturb.h.
 */
#include "disturb.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENOUGH_DISTURBANCES 5

struct options {
	const char *dev;
	uint64_t size, op_size, seed, min_faults;
	unsigned int depth, every, disturb;
	double seconds, stall_s;
	bool write, read;
};

static void usage(FILE *out)
{
	fputs("usage: odp_traffic --dev NAME [options]\n"
	      "  --size BYTES        memory to transfer per round (64M)\n"
	      "  --op-size BYTES     size of one operation, multiple of 4K (64K)\n"
	      "  --depth N           operations in flight (16)\n"
	      "  --direction D       write, read or both (both)\n"
	      "  --seed N            of the data and the disturbances (1)\n"
	      "  --min-faults N      fail if the device reports fewer faults (0)\n"
	      "  --disturb[=LIST]    all, or some of drop-src,drop-dst,protect-src,\n"
	      "                      protect-dst,fork\n"
	      "  --seconds S         go on disturbing for S seconds per direction (0:\n"
	      "                      until each disturbance was done 5 times)\n"
	      "  --every N           one disturbance per N operations (4)\n"
	      "  --stall S           longest time for one operation (30)\n", out);
}

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

static void report_faults(struct report *r, const struct options *o,
			  const struct device_counters *dc0,
			  const struct mr_statistics *mr0)
{
	struct device_counters dc;
	struct mr_statistics mr;
	uint64_t faults = 0;
	bool known = false;

	mr_statistics(o->dev, &mr);
	device_counters(o->dev, &dc);
	if (mr.valid) {
		known = true;
		faults = mr.page_faults_handled - mr0->page_faults_handled;
		report_u64(r, "page_faults", mr.page_faults - mr0->page_faults);
		report_u64(r, "page_faults_handled", faults);
		report_u64(r, "page_invalidations",
			   mr.page_invalidations - mr0->page_invalidations);
	}
	if (dc.valid) {
		known = true;
		faults = dc.faults - dc0->faults;
		report_u64(r, "device_resumes_ok", dc.resumes_ok - dc0->resumes_ok);
		report_u64(r, "device_resumes_error",
			   dc.resumes_error - dc0->resumes_error);
		report_u64(r, "device_umr_wqes", dc.umr_wqes - dc0->umr_wqes);
		report_u64(r, "device_mtts_set", dc.mtts_set - dc0->mtts_set);
		report_u64(r, "device_mtts_cleared",
			   dc.mtts_cleared - dc0->mtts_cleared);
		if (dc.violations != dc0->violations)
			report_fail(r, "the device saw %llu protocol violations",
				    (unsigned long long)(dc.violations - dc0->violations));
	}
	if (!known) {
		report_null(r, "faults");
		return;
	}
	report_u64(r, "faults", faults);
	if (faults < o->min_faults)
		report_fail(r, "%llu faults, at least %llu were expected",
			    (unsigned long long)faults,
			    (unsigned long long)o->min_faults);
}

static void run_direction(struct device *dev, const struct options *o, enum direction dir)
{
	struct transfer t = {
		.dev = dev, .dir = dir, .size = o->size, .op_size = o->op_size,
		.seed = o->seed, .stall_s = o->stall_s,
	};
	struct disturber d = {
		.t = &t, .enabled = o->disturb, .every = o->every,
		.seed = o->seed,
	};
	struct device_counters dc;
	struct mr_statistics mr;
	struct report r;
	char name[64];
	double start;
	int kind;

	snprintf(name, sizeof(name), "%s-%lluk%s", dir == DIR_WRITE ? "write" : "read",
		 (unsigned long long)o->size >> 10, o->disturb ? "-disturb" : "");
	if (o->size % (1 << 20) == 0)
		snprintf(name, sizeof(name), "%s-%llum%s",
			 dir == DIR_WRITE ? "write" : "read",
			 (unsigned long long)o->size >> 20,
			 o->disturb ? "-disturb" : "");
	report_begin(&r, name);
	t.report = &r;

	/* A plain WRITE has a pinned source, so that every fault is one of its target. */
	transfer_setup(&t, dir == DIR_WRITE && !o->disturb, o->depth);
	report_u64(&r, "src_absent_pages", t.src_absent);
	report_u64(&r, "dst_absent_pages", t.dst_absent);
	if (dir == DIR_WRITE && t.dst_absent != t.pages)
		report_fail(&r, "the target is mapped in before the traffic");
	if (dir == DIR_READ && t.src_absent != t.pages)
		report_fail(&r, "the source is mapped in before the traffic");

	device_counters(o->dev, &dc);
	mr_statistics(o->dev, &mr);
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
	report_faults(&r, o, &dc, &mr);
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

int main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "dev", required_argument, NULL, 'd' },
		{ "size", required_argument, NULL, 's' },
		{ "op-size", required_argument, NULL, 'o' },
		{ "depth", required_argument, NULL, 'q' },
		{ "direction", required_argument, NULL, 'D' },
		{ "seed", required_argument, NULL, 'r' },
		{ "min-faults", required_argument, NULL, 'f' },
		{ "disturb", optional_argument, NULL, 'x' },
		{ "seconds", required_argument, NULL, 't' },
		{ "every", required_argument, NULL, 'e' },
		{ "stall", required_argument, NULL, 'T' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct options o = {
		.size = 64 << 20, .op_size = 64 << 10, .seed = 1, .depth = 16,
		.every = 4, .stall_s = 30, .write = true, .read = true,
	};
	struct device dev;
	int c;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		switch (c) {
		case 'd': o.dev = optarg; break;
		case 's': o.size = parse_size("--size", optarg); break;
		case 'o': o.op_size = parse_size("--op-size", optarg); break;
		case 'q': o.depth = parse_size("--depth", optarg); break;
		case 'r': o.seed = parse_size("--seed", optarg); break;
		case 'f': o.min_faults = parse_size("--min-faults", optarg); break;
		case 'x': o.disturb = parse_disturb(optarg); break;
		case 't': o.seconds = parse_size("--seconds", optarg); break;
		case 'e': o.every = parse_size("--every", optarg); break;
		case 'T': o.stall_s = parse_size("--stall", optarg); break;
		case 'D':
			o.write = !strcmp(optarg, "write") || !strcmp(optarg, "both");
			o.read = !strcmp(optarg, "read") || !strcmp(optarg, "both");
			if (!o.write && !o.read)
				die("--direction: write, read or both, not '%s'", optarg);
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (!o.dev || optind != argc) {
		usage(stderr);
		return 2;
	}
	if (!o.op_size || o.op_size % PAGE_SIZE || !o.size || o.size % o.op_size ||
	    o.op_size > UINT32_MAX || !o.depth)
		die("--size must be a multiple of --op-size, and that of 4K; --depth not 0");

	device_open(&dev, o.dev);
	if (o.write)
		run_direction(&dev, &o, DIR_WRITE);
	if (o.read)
		run_direction(&dev, &o, DIR_READ);
	device_close(&dev);
	return report_exit_status();
}
