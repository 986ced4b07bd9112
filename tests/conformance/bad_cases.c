// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "bad_cases.h"

#define LW	IBV_ACCESS_LOCAL_WRITE
#define RW	(LW | IBV_ACCESS_REMOTE_WRITE)
#define RR	IBV_ACCESS_REMOTE_READ
#define RA	(LW | IBV_ACCESS_REMOTE_ATOMIC)
#define ALL	(RW | RR | RA)

#define REG(_name, _memory, _access, _off, _len, ...) \
	{ .name = _name, .memory = _memory, .access = _access, .reg_off = _off, \
	  .reg_len = _len, ##__VA_ARGS__ }
#define OP(_name, _memory, _access, _verb, _off, _len, ...) \
	{ .name = _name, .memory = _memory, .access = _access, .reg_len = AREA, \
	  .verb = _verb, .op_off = _off, .op_len = _len, ##__VA_ARGS__ }

const struct bad_case bad_cases[] = {
	/* Registration: lengths and ranges. */
	REG("reg-zero-length", TOUCHED, ALL, 0, 0),
	REG("reg-zero-length-unaligned", TOUCHED, ALL, 100, 0),
	REG("reg-wraps", TOUCHED, ALL, -PAGE, 2 * PAGE, .absolute = true),
	REG("reg-wraps-when-aligned", TOUCHED, ALL, -200, 100, .absolute = true),
	REG("reg-ends-at-2^64", TOUCHED, ALL, -PAGE, PAGE, .absolute = true),
	REG("reg-kernel-address", TOUCHED, ALL, INT64_MIN, PAGE, .absolute = true),
	REG("reg-null-zero-length", TOUCHED, ALL, 0, 0, .absolute = true),
	REG("reg-null-page", TOUCHED, ALL, 0, PAGE, .absolute = true),
	REG("reg-length-2^46", TOUCHED, ALL, 0, 1ull << 46),
	REG("reg-length-2^63", TOUCHED, ALL, 0, 1ull << 63),
	REG("reg-length-max", TOUCHED, ALL, 0, UINT64_MAX),

	/* Registration: access flags. */
	REG("reg-remote-write-only", TOUCHED, IBV_ACCESS_REMOTE_WRITE, 0, AREA),
	REG("reg-remote-atomic-only", TOUCHED, IBV_ACCESS_REMOTE_ATOMIC, 0, AREA),
	REG("reg-mw-bind", TOUCHED, ALL | IBV_ACCESS_MW_BIND, 0, AREA),
	REG("reg-unknown-flag", TOUCHED, ALL | 1 << 19, 0, AREA),
	REG("reg-hugetlb-touched", TOUCHED, ALL | IBV_ACCESS_HUGETLB, 0, AREA),

	/* Registration over memory that is not plain; ODP looks at access only. */
	REG("reg-no-access", NO_ACCESS, ALL, 0, AREA),
	REG("reg-hole", HOLE, ALL, 0, AREA),
	REG("reg-read-only-lw", READ_ONLY, ALL, 0, AREA),
	REG("reg-read-only", READ_ONLY, RR, 0, AREA),

	/* Unaligned MR: exactly its bytes. */
	REG("unaligned-write", TOUCHED, ALL, 123, 9000, .verb = WRITE_TO,
	    .op_off = 123, .op_len = 9000, .event = DROPPED),
	REG("unaligned-read", TOUCHED, ALL, 123, 9000, .verb = READ_FROM,
	    .op_off = 123, .op_len = 9000),
	REG("unaligned-write-one-before", TOUCHED, ALL, 123, 9000, .verb = WRITE_TO,
	    .op_off = 122, .op_len = 100, .denied = true),
	REG("unaligned-write-one-beyond", TOUCHED, ALL, 123, 9000, .verb = WRITE_TO,
	    .op_off = 9023, .op_len = 101, .denied = true),

	/* Memory that refuses. */
	OP("no-access-write", NO_ACCESS, ALL, WRITE_TO, 0, AREA, .denied = true),
	OP("no-access-read", NO_ACCESS, ALL, READ_FROM, 0, AREA, .denied = true),
	OP("no-access-atomic", NO_ACCESS, ALL, FETCH_ADD_ON, 0, 8, .denied = true),
	OP("no-access-local-write", NO_ACCESS, ALL, WRITE_FROM, 0, AREA, .denied = true),
	OP("no-access-local-read", NO_ACCESS, ALL, READ_TO, 0, AREA, .denied = true),
	OP("no-access-send", NO_ACCESS, ALL, SEND_FROM, 0, 1024, .denied = true),
	OP("no-access-recv", NO_ACCESS, ALL, RECV_TO, 0, 1024, .denied = true),
	OP("hole-write-across", HOLE, ALL, WRITE_TO, 0, AREA),
	OP("hole-read-across", HOLE, ALL, READ_FROM, 0, AREA),
	OP("hole-write-into", HOLE, ALL, WRITE_TO, PAGE, PAGE, .denied = true),
	OP("hole-write-before", HOLE, ALL, WRITE_TO, 0, PAGE),
	OP("hole-write-behind", HOLE, ALL, WRITE_TO, 2 * PAGE, 2 * PAGE),
	OP("hole-send", HOLE, ALL, SEND_FROM, PAGE - 100, 200),
	OP("hole-recv", HOLE, ALL, RECV_TO, PAGE - 100, 200),
	OP("read-only-lw-write", READ_ONLY, ALL, WRITE_TO, 0, AREA, .denied = true),
	OP("read-only-lw-read", READ_ONLY, ALL, READ_FROM, 0, AREA),
	OP("read-only-lw-read-dropped", READ_ONLY, ALL, READ_FROM, 0, AREA,
	   .event = DROPPED),
	OP("read-only-lw-atomic", READ_ONLY, ALL, FETCH_ADD_ON, 0, 8, .denied = true),
	OP("read-only-lw-local-read", READ_ONLY, ALL, READ_TO, 0, AREA, .denied = true),
	OP("read-only-lw-local-write", READ_ONLY, ALL, WRITE_FROM, 0, AREA),
	OP("read-only-lw-local-write-dropped", READ_ONLY, ALL, WRITE_FROM, 0, AREA,
	   .event = DROPPED),
	OP("read-only-lw-recv", READ_ONLY, ALL, RECV_TO, 0, 1024, .denied = true),
	OP("read-only-lw-send-dropped", READ_ONLY, ALL, SEND_FROM, 0, 1024,
	   .event = DROPPED),
	OP("read-only-read", READ_ONLY, RR, READ_FROM, 0, AREA),
	OP("read-only-read-dropped", READ_ONLY, RR, READ_FROM, 0, AREA,
	   .event = DROPPED),
	OP("read-only-local-write-dropped", READ_ONLY, 0, WRITE_FROM, 0, AREA,
	   .event = DROPPED),
	OP("read-only-file-read", READ_ONLY_FILE, RR, READ_FROM, 0, AREA),
	OP("read-only-file-lw-read-dropped", READ_ONLY_FILE, ALL, READ_FROM, 0, AREA,
	   .event = DROPPED),
	OP("read-only-file-lw-write", READ_ONLY_FILE, ALL, WRITE_TO, 0, AREA,
	   .denied = true),
	OP("hugetlb-flag-small-pages", UNTOUCHED, ALL | IBV_ACCESS_HUGETLB,
	   WRITE_TO, 0, PAGE),

	/* Memory that changes after the registration. */
	OP("unmapped-write", TOUCHED, ALL, WRITE_TO, 0, AREA, .event = UNMAPPED),
	OP("unmapped-read", TOUCHED, ALL, READ_FROM, 0, AREA, .event = UNMAPPED),
	OP("replaced-write", TOUCHED, ALL, WRITE_TO, 0, AREA, .event = REPLACED),
	OP("replaced-read", TOUCHED, ALL, READ_FROM, 0, AREA, .event = REPLACED),
	OP("protected-write", TOUCHED, ALL, WRITE_TO, 0, AREA, .event = PROTECTED,
	   .denied = true),
	OP("protected-read", TOUCHED, ALL, READ_FROM, 0, AREA, .event = PROTECTED),
	OP("protected-local-read", TOUCHED, ALL, READ_TO, 0, AREA, .event = PROTECTED,
	   .denied = true),

	/* Rights that the MR lacks. */
	OP("lacks-remote-write", TOUCHED, LW | RR | RA, WRITE_TO, 0, AREA, .denied = true),
	OP("lacks-remote-write-absent", UNTOUCHED, LW | RR | RA, WRITE_TO, 0, AREA,
	   .denied = true),
	OP("lacks-remote-read", TOUCHED, RW | RA, READ_FROM, 0, AREA, .denied = true),
	OP("lacks-remote-read-absent", UNTOUCHED, RW | RA, READ_FROM, 0, AREA,
	   .denied = true),
	OP("lacks-remote-atomic", TOUCHED, RW | RR, FETCH_ADD_ON, 0, 8, .denied = true),
	OP("lacks-remote-atomic-absent", UNTOUCHED, RW | RR, FETCH_ADD_ON, 0, 8,
	   .denied = true),
	OP("lacks-local-write-read", TOUCHED, RR, READ_TO, 0, AREA, .denied = true),
	OP("lacks-local-write-read-absent", UNTOUCHED, RR, READ_TO, 0, AREA,
	   .denied = true),
	OP("lacks-local-write-atomic", TOUCHED, RR, FETCH_ADD_TO, 0, 8, .denied = true),
	OP("lacks-local-write-recv", TOUCHED, RR, RECV_TO, 0, 1024, .denied = true),

	/* Beyond the MR, wrong keys. */
	OP("beyond-write", UNTOUCHED, ALL, WRITE_TO, AREA - 100, 200, .denied = true),
	OP("beyond-read", UNTOUCHED, ALL, READ_FROM, AREA - 100, 200, .denied = true),
	OP("beyond-write-behind", UNTOUCHED, ALL, WRITE_TO, AREA, 8, .denied = true),
	OP("beyond-write-before", UNTOUCHED, ALL, WRITE_TO, -8, 8, .denied = true),
	OP("beyond-atomic", UNTOUCHED, ALL, FETCH_ADD_ON, AREA, 8, .denied = true),
	OP("beyond-local-write", UNTOUCHED, ALL, WRITE_FROM, AREA - 100, 200,
	   .denied = true),
	OP("beyond-local-read", UNTOUCHED, ALL, READ_TO, AREA - 100, 200, .denied = true),
	OP("beyond-recv", UNTOUCHED, ALL, RECV_TO, AREA - 100, 200, .denied = true),
	OP("key-variant-write", UNTOUCHED, ALL, WRITE_TO, 0, PAGE, .key = KEY_VARIANT,
	   .denied = true),
	OP("key-unknown-write", UNTOUCHED, ALL, WRITE_TO, 0, PAGE, .key = KEY_UNKNOWN,
	   .denied = true),
	OP("key-variant-local-write", UNTOUCHED, ALL, WRITE_FROM, 0, PAGE,
	   .key = KEY_VARIANT, .denied = true),
	OP("key-unknown-local-read", UNTOUCHED, ALL, READ_TO, 0, PAGE,
	   .key = KEY_UNKNOWN, .denied = true),
	OP("deregistered-write", TOUCHED, ALL, WRITE_TO, 0, AREA, .event = DEREGISTERED,
	   .denied = true),
	OP("deregistered-read", TOUCHED, ALL, READ_FROM, 0, AREA, .event = DEREGISTERED,
	   .denied = true),
	OP("deregistered-local-write", TOUCHED, ALL, WRITE_FROM, 0, AREA,
	   .event = DEREGISTERED, .denied = true),
	OP("deregistered-local-read", TOUCHED, ALL, READ_TO, 0, AREA,
	   .event = DEREGISTERED, .denied = true),
};

const size_t bad_cases_count = sizeof(bad_cases) / sizeof(bad_cases[0]);
