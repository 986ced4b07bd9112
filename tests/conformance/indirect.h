/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* Keys that refer to keys over regions on demand, of each kind that a user can make. */
#ifndef CONFORMANCE_INDIRECT_H
#define CONFORMANCE_INDIRECT_H

#include "rdma.h"

struct mlx5dv_devx_obj;

#define REGIONS	   2
#define REGION_LEN (16 * PAGE)
#define BUFFER_LEN (REGIONS * REGION_LEN)
#define MAX_PIECES 128
#define MAX_LEVELS 5

enum kind {
	WINDOW_1,	/* a memory window of type 1 */
	WINDOW_2,
	WINDOW_IMPLICIT,/* over an implicit MR */
	LIST,		/* KLMs over two regions, neither end at a page's */
	STRIDED,	/* a strided block of both */
	KSM,		/* the pages of a region, last to first */
	LEVELS_4,	/* a key below a key, as deep as a ConnectX goes */
	LEVELS_5,	/* one more: refused */
	KINDS,
};

struct piece {
	uint8_t *at;
	size_t len;
};

/* A key, and the memory that it leads to. */
struct target {
	const char *name;
	uint32_t key;
	uint64_t addr;
	size_t len;
	bool is_local;		/* the key is a local one too */
	int status;		/* of every access */
	struct piece piece[MAX_PIECES];
	int pieces;
	uint8_t *mem[REGIONS];
	struct ibv_mr *mr[REGIONS];
	struct ibv_mw *mw;
	struct mlx5dv_devx_obj *obj[MAX_LEVELS];
};

/* Windows are bound on QP. Dies on failure. */
void target_open(struct target *t, struct device *dev, struct ibv_qp *qp, enum kind kind);
void target_close(struct target *t);

#endif
