/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * The table of faults as a card may raise them: what they look like, on what memory, and
 * how the operation must end. The area is ODP memory that the device has never seen; the
 * MR is a part of the mapping around it, and the operation is about a part of the MR.
 */
#ifndef CONFORMANCE_FAULT_SHAPES_H
#define CONFORMANCE_FAULT_SHAPES_H

#include "verb.h"

#include <stddef.h>

#define ARENA_PAGES	128

/* What is wrong with the area, around the operation's pages or in them. */
enum damage {
	WHOLE,
	HOLES_AROUND,		/* the pages before and behind are unmapped */
	NONE_AROUND,		/* ... PROT_NONE */
	READ_ONLY_AROUND,	/* ... and eight more on each side PROT_READ */
	HOLE_FIRST,		/* the operation's first page is unmapped */
	HOLE_LAST,
	HOLE_BOTH,
};

struct fault_shape {
	const char *name;
	const char *scheme;	/* NULL: either */
	const char *rule;	/* of the software ConnectX: what the fault looks like */
	const char *slow_umr;	/* another rule, or NULL */
	enum verb verb;
	enum damage damage;
	unsigned int mr_page, mr_pages;	/* in the mapping */
	unsigned int op_page, op_pages;	/* in the MR; an atomic is 8 bytes */
	unsigned int warm;	/* pages of the operation that the device has already */
	unsigned int hint;	/* pages that the device asks for on each side */
	unsigned int pieces;	/* events for the access, if more than one */
	int rnr_retry;
	enum ibv_wc_status status;
	unsigned int min_naks;	/* RNR NAKs for a fault */
};

extern const struct fault_shape fault_shapes[];
extern const size_t fault_shapes_count;

#endif
