// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "indirect.h"
#include "report.h"

#include <endian.h>
#include <errno.h>
#include <infiniband/mlx5dv.h>
#include <string.h>
#include <sys/mman.h>

#define REMOTE (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

static const char *const names[KINDS] = {
	"window-1", "window-2", "window-implicit", "list", "strided", "ksm", "levels-4",
	"levels-5",
};

/* CREATE_MKEY, as the PRM has it. */
struct create_mkey {
	__be16 opcode, uid, reserved0, op_mod;
	__be32 reserved1, flags;
	__be32 mkc_flags, mkc_qpn, mkc_reserved, mkc_pd;
	__be64 mkc_start, mkc_len;
	__be32 mkc_bsf, mkc_reserved1[3], mkc_vhca, mkc_octwords, mkc_page, mkc_tph;
	__be32 reserved2[4];
	__be32 octwords, umem_id;
	__be64 umem_offset;
	__be32 reserved3[40];
};

/* KLM, KSM, strided block or entry of one: an octword. */
union entry {
	struct { __be32 bcount, key; __be64 va; } klm;
	struct { __be32 cycle, op, repeat; __be16 reserved, entries; } block;
	struct { __be16 stride, bcount; __be32 key; __be64 va; } stride;
};

#define LIST_LEN 16
#define KLMS	 2
#define KSMS	 3
#define STRIDE_OP 0x400

static void add_piece(struct target *t, uint8_t *at, size_t len)
{
	if (t->pieces == MAX_PIECES)
		die("too many pieces");
	t->piece[t->pieces++] = (struct piece){ at, len };
	t->len += len;
}

/* A key that starts at 0 and is as long as the pieces; returns it. */
static uint32_t devx_key(struct target *t, struct device *dev, int n, int mode,
			 const union entry *list, int entries)
{
	uint8_t in[sizeof(struct create_mkey) + LIST_LEN * sizeof(union entry)] = { 0 };
	struct mlx5dv_pd pd;
	struct mlx5dv_obj obj = { .pd = { .in = dev->pd, .out = &pd } };
	struct create_mkey create = {
		.opcode = htobe16(0x200),
		/* Every right. */
		.mkc_flags = htobe32(0x1f << 10 | mode << 8),
		.mkc_qpn = htobe32(0xffffffu << 8),
		.mkc_len = htobe64(t->len),
		.mkc_octwords = htobe32(LIST_LEN),
		.mkc_page = htobe32(mode == KSMS ? 12 : 0),
		.octwords = htobe32(LIST_LEN),
	};
	__be32 out[4] = { 0 };

	if (mlx5dv_init_obj(&obj, MLX5DV_OBJ_PD))
		die("%s: mlx5dv_init_obj: %s", dev->name, strerror(errno));
	create.mkc_pd = htobe32(pd.pdn);
	memcpy(in, &create, sizeof(create));
	memcpy(in + sizeof(create), list, entries * sizeof(*list));
	t->obj[n] = mlx5dv_devx_obj_create(dev->ctx, in, sizeof(in), out, sizeof(out));
	if (!t->obj[n])
		die("%s: CREATE_MKEY: %s, syndrome %#x", dev->name, strerror(errno),
		    be32toh(out[1]));
	return be32toh(out[2]) << 8;
}

static void open_list(struct target *t, struct device *dev)
{
	const struct { int region; size_t from, len; } part[] = {
		{ 0, 100, 2 * PAGE }, { 1, PAGE - 8, 16 }, { 0, 9 * PAGE, 4000 },
		{ 1, 5 * PAGE + 2000, PAGE },
	};
	union entry list[LIST_LEN] = { 0 };
	size_t i;

	for (i = 0; i < sizeof(part) / sizeof(part[0]); i++) {
		uint8_t *at = t->mem[part[i].region] + part[i].from;

		add_piece(t, at, part[i].len);
		list[i].klm.bcount = htobe32(part[i].len);
		list[i].klm.key = htobe32(t->mr[part[i].region]->lkey);
		list[i].klm.va = htobe64((uintptr_t)at);
	}
	t->key = devx_key(t, dev, 0, KLMS, list, i);
}

static void open_strided(struct target *t, struct device *dev)
{
	enum { REPEAT = 40 };
	const struct { size_t from, stride, len; } part[REGIONS] = {
		{ 200, 1000, 72 }, { 8, 1600, 128 },
	};
	union entry list[LIST_LEN] = { 0 };
	int i, n;

	list[0].block.cycle = htobe32(part[0].len + part[1].len);
	list[0].block.op = htobe32(STRIDE_OP);
	list[0].block.repeat = htobe32(REPEAT);
	list[0].block.entries = htobe16(REGIONS);
	for (i = 0; i < REGIONS; i++) {
		list[1 + i].stride.stride = htobe16(part[i].stride);
		list[1 + i].stride.bcount = htobe16(part[i].len);
		list[1 + i].stride.key = htobe32(t->mr[i]->lkey);
		list[1 + i].stride.va = htobe64((uintptr_t)t->mem[i] + part[i].from);
	}
	for (n = 0; n < REPEAT; n++)
		for (i = 0; i < REGIONS; i++)
			add_piece(t, t->mem[i] + part[i].from + n * part[i].stride, part[i].len);
	t->key = devx_key(t, dev, 0, KLMS, list, 1 + REGIONS);
}

static void open_ksm(struct target *t, struct device *dev)
{
	union entry list[LIST_LEN] = { 0 };
	int i, pages = 4;

	for (i = 0; i < pages; i++) {
		uint8_t *at = t->mem[1] + (pages - 1 - i) * PAGE;

		add_piece(t, at, PAGE);
		list[i].klm.key = htobe32(t->mr[1]->lkey);
		list[i].klm.va = htobe64((uintptr_t)at);
	}
	t->key = devx_key(t, dev, 0, KSMS, list, pages);
}

static void open_levels(struct target *t, struct device *dev, int levels)
{
	uint8_t *at = t->mem[0] + 3 * PAGE + 40;
	union entry list[LIST_LEN] = { 0 };
	int n;

	add_piece(t, at, 2 * PAGE);
	list[0].klm.bcount = htobe32(t->len);
	list[0].klm.key = htobe32(t->mr[0]->lkey);
	list[0].klm.va = htobe64((uintptr_t)at);
	for (n = 0; n < levels; n++) {
		t->key = devx_key(t, dev, n, KLMS, list, 1);
		list[0].klm.key = htobe32(t->key);
		list[0].klm.va = 0;
	}
}

static void wait_for_bind(struct ibv_qp *qp)
{
	struct ibv_wc wc;
	int n;

	do
		n = ibv_poll_cq(qp->send_cq, 1, &wc);
	while (!n);
	if (n < 0 || wc.status)
		die("binding a window: %s", wc_status_name(n < 0 ? NO_COMPLETION : (int)wc.status));
}

static void open_window(struct target *t, struct device *dev, struct ibv_qp *qp,
			enum ibv_mw_type type)
{
	uint8_t *at = t->mem[0] + PAGE + 300;
	struct ibv_mw_bind_info info = {
		.mr = t->mr[0], .addr = (uintptr_t)at, .length = 3 * PAGE,
		.mw_access_flags = REMOTE,
	};
	struct ibv_mw_bind bind = { .send_flags = IBV_SEND_SIGNALED, .bind_info = info };
	struct ibv_send_wr wr = {
		.opcode = IBV_WR_BIND_MW, .send_flags = IBV_SEND_SIGNALED,
	}, *bad;
	int err;

	add_piece(t, at, info.length);
	t->mw = ibv_alloc_mw(dev->pd, type);
	if (!t->mw)
		die("%s: ibv_alloc_mw: %s", dev->name, strerror(errno));
	if (type == IBV_MW_TYPE_1) {
		err = ibv_bind_mw(qp, t->mw, &bind);
		t->key = t->mw->rkey;
	} else {
		wr.bind_mw.mw = t->mw;
		wr.bind_mw.rkey = t->key = ibv_inc_rkey(t->mw->rkey);
		wr.bind_mw.bind_info = info;
		err = ibv_post_send(qp, &wr, &bad);
	}
	if (err)
		die("%s: binding a window: %s", dev->name, strerror(err));
	wait_for_bind(qp);
	t->addr = info.addr;
	t->is_local = false;
}

void target_open(struct target *t, struct device *dev, struct ibv_qp *qp, enum kind kind)
{
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND;
	int i;

	*t = (struct target){ .name = names[kind], .is_local = true };
	for (i = 0; i < REGIONS; i++) {
		t->mem[i] = mmap(NULL, REGION_LEN, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (t->mem[i] == MAP_FAILED)
			die("mapping %d bytes: %s", REGION_LEN, strerror(errno));
		madvise(t->mem[i], REGION_LEN, MADV_NOHUGEPAGE);
		t->mr[i] = kind == WINDOW_IMPLICIT ? implicit_mr(dev, access) :
						     odp_mr(dev, t->mem[i], REGION_LEN, access);
	}
	switch (kind) {
	case WINDOW_1:
	case WINDOW_IMPLICIT:
		open_window(t, dev, qp, IBV_MW_TYPE_1);
		break;
	case WINDOW_2:
		open_window(t, dev, qp, IBV_MW_TYPE_2);
		break;
	case LIST:
		open_list(t, dev);
		break;
	case STRIDED:
		open_strided(t, dev);
		break;
	case KSM:
		open_ksm(t, dev);
		break;
	case LEVELS_4:
		open_levels(t, dev, 4);
		break;
	case LEVELS_5:
		open_levels(t, dev, 5);
		/* Of a local key it is an error of one's own. */
		t->is_local = false;
		t->status = IBV_WC_REM_ACCESS_ERR;
		break;
	case KINDS:
		break;
	}
}

void target_close(struct target *t)
{
	int i;

	if (t->mw && ibv_dealloc_mw(t->mw))
		die("ibv_dealloc_mw: %s", strerror(errno));
	for (i = MAX_LEVELS - 1; i >= 0; i--)
		if (t->obj[i] && mlx5dv_devx_obj_destroy(t->obj[i]))
			die("destroying a key: %s", strerror(errno));
	for (i = 0; i < REGIONS; i++) {
		if (ibv_dereg_mr(t->mr[i]))
			die("ibv_dereg_mr: %s", strerror(errno));
		munmap(t->mem[i], REGION_LEN);
	}
}
