// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "fault_shapes.h"

#define MID	.mr_pages = ARENA_PAGES, .op_page = 40, .op_pages = 8
#define DENIED	.status = IBV_WC_REM_ACCESS_ERR

/*
 * A responder that answers RNR NAK. A slow UMR makes the requester come back often; a page that
 * is none needs no UMR.
 */
#define NAK	"fault do=shape reply=rnr"
#define NAKS	MID, .rnr_retry = 7, .min_naks = 3, \
		.slow_umr = "umr do=delay ms=20"
#define NAK_7	NAKS, .rule = NAK
#define NAK_NONE MID, .rnr_retry = 7, .min_naks = 1, .rule = NAK
#define NAK_0	MID, .rule = NAK, .rnr_retry = 0, .status = IBV_WC_RNR_RETRY_EXC_ERR, \
		.min_naks = 1

/* Memory scheme: hints on both sides. */
#define HINT(n)	.scheme = "memory", .rnr_retry = 7, .hint = (n), \
		.rule = "fault do=shape pre=" #n " post=" #n

/* Memory scheme: several events for one access. */
#define SPLIT(n, which) MID, .scheme = "memory", .rnr_retry = 7, .pieces = (n), \
		.rule = "fault do=shape pieces=" #n " last=" #which

/* Transport scheme: half of the operation has moved when the other half faults. */
#define COMMIT	MID, .scheme = "transport", .rnr_retry = 7, .warm = 4, \
		.rule = "fault do=shape committed=packets"

const struct fault_shape fault_shapes[] = {
	{ "rnr-7-write", .verb = WRITE_TO, NAK_7 },
	{ "rnr-7-read", .verb = READ_FROM, NAK_7 },
	{ "rnr-7-send", .verb = RECV_TO, NAK_7 },
	{ "rnr-7-atomic", .verb = FETCH_ADD_ON, NAK_7 },
	{ "rnr-7-hole", .verb = WRITE_TO, NAK_NONE, .damage = HOLE_FIRST, DENIED },
	{ "rnr-7-each-faults", .verb = WRITE_TO, NAKS, .rule = NAK "_each_faults" },
	{ "rnr-0-write", .verb = WRITE_TO, NAK_0 },
	{ "rnr-0-read", .verb = READ_FROM, NAK_0 },
	{ "rnr-0-send", .verb = RECV_TO, NAK_0 },
	{ "rnr-0-atomic", .verb = FETCH_ADD_ON, NAK_0 },

#define HINTS(n) \
	{ "hint-" #n "-one-page", .verb = WRITE_TO, HINT(n), \
	  .mr_page = 64, .mr_pages = 1, .op_pages = 1 }, \
	{ "hint-" #n "-first-page", .verb = WRITE_TO, HINT(n), \
	  .mr_page = 32, .mr_pages = 64, .op_pages = 1 }, \
	{ "hint-" #n "-last-page", .verb = WRITE_TO, HINT(n), \
	  .mr_page = 32, .mr_pages = 64, .op_page = 63, .op_pages = 1 }, \
	{ "hint-" #n "-read", .verb = READ_FROM, HINT(n), MID }, \
	{ "hint-" #n "-receive", .verb = RECV_TO, HINT(n), MID }, \
	{ "hint-" #n "-holes-around", .verb = WRITE_TO, HINT(n), MID, \
	  .damage = HOLES_AROUND }, \
	{ "hint-" #n "-none-around", .verb = WRITE_TO, HINT(n), MID, .damage = NONE_AROUND }, \
	{ "hint-" #n "-read-only-around", .verb = WRITE_TO, HINT(n), MID, \
	  .damage = READ_ONLY_AROUND }, \
	{ "hint-" #n "-hole-first", .verb = WRITE_TO, HINT(n), MID, .damage = HOLE_FIRST, \
	  DENIED }, \
	{ "hint-" #n "-hole-last", .verb = WRITE_TO, HINT(n), MID, .damage = HOLE_LAST, DENIED }
	HINTS(4),
	HINTS(65535),

#define SPLITS(n, which) \
	{ "split-" #n "-" #which "-write", .verb = WRITE_TO, SPLIT(n, which) }, \
	{ "split-" #n "-" #which "-read", .verb = READ_FROM, SPLIT(n, which) }, \
	{ "split-" #n "-" #which "-receive", .verb = RECV_TO, SPLIT(n, which) }, \
	{ "split-" #n "-" #which "-local", .verb = READ_TO, SPLIT(n, which) }, \
	{ "split-" #n "-" #which "-hole-first", .verb = WRITE_TO, SPLIT(n, which), \
	  .damage = HOLE_FIRST, DENIED }, \
	{ "split-" #n "-" #which "-hole-last", .verb = WRITE_TO, SPLIT(n, which), \
	  .damage = HOLE_LAST, DENIED }, \
	{ "split-" #n "-" #which "-hole-both", .verb = WRITE_TO, SPLIT(n, which), \
	  .damage = HOLE_BOTH, DENIED }
	SPLITS(2, first),
	SPLITS(2, final),
	SPLITS(8, first),
	SPLITS(8, final),

	{ "committed-write", .verb = WRITE_TO, COMMIT },
	{ "committed-read", .verb = READ_FROM, COMMIT },
	{ "committed-receive", .verb = RECV_TO, COMMIT },
	{ "committed-write-local", .verb = WRITE_FROM, COMMIT },
	{ "committed-read-local", .verb = READ_TO, COMMIT },
	{ "committed-send-local", .verb = SEND_FROM, COMMIT },
	{ "committed-hole-last", .verb = WRITE_TO, COMMIT, .damage = HOLE_LAST, DENIED },
};

const size_t fault_shapes_count = sizeof(fault_shapes) / sizeof(fault_shapes[0]);
