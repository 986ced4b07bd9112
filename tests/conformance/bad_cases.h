/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * The table of bad input: what memory, how registered, how accessed. It tells no
 * expectation: the results of two drivers are compared case by case (compare.py).
 */
#ifndef CONFORMANCE_BAD_CASES_H
#define CONFORMANCE_BAD_CASES_H

#include "rdma.h"
#include "verb.h"

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AREA		(4 * PAGE)	/* the memory under test */

/* What is mapped at the area when it is registered. */
enum memory {
	TOUCHED,	/* private anonymous, filled */
	UNTOUCHED,	/* private anonymous, never touched */
	NO_ACCESS,	/* filled, then PROT_NONE */
	READ_ONLY,	/* filled, then PROT_READ */
	READ_ONLY_FILE,	/* shared mapping of a descriptor that is read-only */
	HOLE,		/* filled, then page 1 unmapped */
};

/* What happens between registration and access. */
enum event {
	NOTHING,
	DROPPED,	/* MADV_DONTNEED: mapped by the registration, absent now */
	UNMAPPED,	/* munmap of the area */
	REPLACED,	/* munmap, then fresh memory at the same place */
	PROTECTED,	/* mprotect(PROT_READ) */
	DEREGISTERED,
};

enum key { KEY_RIGHT, KEY_VARIANT, KEY_UNKNOWN };

struct bad_case {
	const char *name;
	enum memory memory;
	int access;		/* IBV_ACCESS_ON_DEMAND is added */
	int64_t reg_off;	/* from the area; ABSOLUTE: reg_off is the address */
	uint64_t reg_len;
	enum event event;
	enum verb verb;
	int64_t op_off;
	uint32_t op_len;
	enum key key;
	bool absolute;
	bool denied;		/* by the MR itself: not one byte may change */
};

extern const struct bad_case bad_cases[];
extern const size_t bad_cases_count;

#endif
