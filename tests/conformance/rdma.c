// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

static void select_gid(struct device *dev)
{
	struct ibv_gid_entry entry;
	bool found = false;
	uint32_t i;

	for (i = 0; i < (uint32_t)dev->port.gid_tbl_len && i < 256; i++) {
		if (ibv_query_gid_ex(dev->ctx, RDMA_PORT, i, &entry, 0))
			continue;
		/* RoCE v2 crosses IP stacks as it is; v1 is the last resort. */
		if (found && entry.gid_type != IBV_GID_TYPE_ROCE_V2)
			continue;
		dev->gid = entry.gid;
		dev->gid_index = i;
		found = true;
		if (entry.gid_type == IBV_GID_TYPE_ROCE_V2)
			return;
	}
	if (!found)
		die("%s: port %d has no GID", dev->name, RDMA_PORT);
}

void device_open(struct device *dev, const char *name)
{
	struct ibv_device **list;
	int i, n;

	memset(dev, 0, sizeof(*dev));
	dev->name = name;
	list = ibv_get_device_list(&n);
	if (!list)
		die("ibv_get_device_list: %s", strerror(errno));
	for (i = 0; i < n; i++)
		if (!strcmp(ibv_get_device_name(list[i]), name))
			break;
	if (i == n)
		die("no RDMA device is called %s (%d found)", name, n);
	dev->ctx = ibv_open_device(list[i]);
	if (!dev->ctx)
		die("%s: cannot open: %s", name, strerror(errno));
	ibv_free_device_list(list);

	if (ibv_query_port(dev->ctx, RDMA_PORT, &dev->port))
		die("%s: ibv_query_port: %s", name, strerror(errno));
	if (dev->port.state != IBV_PORT_ACTIVE)
		die("%s: port %d is %s, not ACTIVE", name, RDMA_PORT,
		    ibv_port_state_str(dev->port.state));
	if (ibv_query_device_ex(dev->ctx, NULL, &dev->attr))
		die("%s: ibv_query_device_ex: %s", name, strerror(errno));
	if (!(dev->attr.odp_caps.general_caps & IBV_ODP_SUPPORT))
		die("%s: no on-demand paging", name);
	if (dev->port.link_layer == IBV_LINK_LAYER_ETHERNET)
		select_gid(dev);
	dev->pd = ibv_alloc_pd(dev->ctx);
	if (!dev->pd)
		die("%s: ibv_alloc_pd: %s", name, strerror(errno));
}

void device_close(struct device *dev)
{
	if (ibv_dealloc_pd(dev->pd))
		die("%s: ibv_dealloc_pd: %s", dev->name, strerror(errno));
	if (ibv_close_device(dev->ctx))
		die("%s: ibv_close_device: %s", dev->name, strerror(errno));
}

static void modify(struct pair *pair, int side, struct ibv_qp_attr *attr, int mask)
{
	int err = ibv_modify_qp(pair->qp[side], attr, mask);

	if (err)
		die("%s: ibv_modify_qp to %s: %s", pair->dev->name,
		    qp_state_name(attr->qp_state), strerror(err));
}

static void to_init(struct pair *pair, int side)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = RDMA_PORT,
		/* Everything: what the tests deny, they deny by the MR. */
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE |
				   IBV_ACCESS_REMOTE_READ |
				   IBV_ACCESS_REMOTE_ATOMIC,
	};

	modify(pair, side, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX |
				  IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static void to_rtr(struct pair *pair, int side)
{
	const struct device *dev = pair->dev;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = dev->port.active_mtu,
		.dest_qp_num = pair->qp[!side]->qp_num,
		.max_dest_rd_atomic = 4,
		.min_rnr_timer = 12,
		.ah_attr.port_num = RDMA_PORT,
	};

	if (dev->port.link_layer == IBV_LINK_LAYER_ETHERNET) {
		attr.ah_attr.is_global = 1;
		attr.ah_attr.grh.dgid = dev->gid;
		attr.ah_attr.grh.sgid_index = dev->gid_index;
		attr.ah_attr.grh.hop_limit = 64;
	} else {
		attr.ah_attr.dlid = dev->port.lid;
	}
	modify(pair, side, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU |
				  IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
				  IBV_QP_MAX_DEST_RD_ATOMIC |
				  IBV_QP_MIN_RNR_TIMER);
}

static void to_rts(struct pair *pair, int side)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTS,
		.timeout = pair->timeout,
		.retry_cnt = 7,
		.rnr_retry = pair->rnr_retry,
		.max_rd_atomic = 4,
	};

	modify(pair, side, &attr, IBV_QP_STATE | IBV_QP_TIMEOUT |
				  IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				  IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

static void pair_connect(struct pair *pair)
{
	int side;

	for (side = 0; side < 2; side++)
		to_init(pair, side);
	for (side = 0; side < 2; side++)
		to_rtr(pair, side);
	for (side = 0; side < 2; side++)
		to_rts(pair, side);
}

static void create(struct pair *pair, struct device *dev, struct ibv_cq *const cq[2],
		   struct ibv_srq *srq, unsigned int depth, uint8_t timeout,
		   unsigned int sges, unsigned int inline_len)
{
	struct ibv_qp_init_attr init = {
		.qp_type = IBV_QPT_RC,
		.cap = {
			.max_send_wr = depth,
			.max_recv_wr = depth,
			.max_send_sge = sges,
			.max_recv_sge = sges,
			.max_inline_data = inline_len,
		},
	};
	int side;

	pair->dev = dev;
	pair->depth = depth;
	pair->timeout = timeout;
	pair->rnr_retry = 7;
	for (side = 0; side < 2; side++) {
		pair->cq[side] = cq[side];
		init.send_cq = pair->cq[side];
		init.recv_cq = pair->cq[side];
		init.srq = side == RESPONDER ? srq : NULL;
		pair->qp[side] = ibv_create_qp(dev->pd, &init);
		if (!pair->qp[side])
			die("%s: ibv_create_qp: %s", dev->name, strerror(errno));
	}
	pair_connect(pair);
}

void pair_create_on(struct pair *pair, struct device *dev, struct ibv_cq *const cq[2],
		    unsigned int depth, uint8_t timeout)
{
	create(pair, dev, cq, NULL, depth, timeout, 1, 0);
}

static void create_cqs(struct device *dev, struct ibv_cq *cq[2], unsigned int depth)
{
	int side;

	for (side = 0; side < 2; side++) {
		cq[side] = ibv_create_cq(dev->ctx, 2 * depth, NULL, NULL, 0);
		if (!cq[side])
			die("%s: ibv_create_cq: %s", dev->name, strerror(errno));
	}
}

void pair_create_srq(struct pair *pair, struct device *dev, struct ibv_srq *srq,
		     unsigned int depth, uint8_t timeout)
{
	struct ibv_cq *cq[2];

	create_cqs(dev, cq, depth);
	create(pair, dev, cq, srq, depth, timeout, 1, 0);
}

void pair_create_lists(struct pair *pair, struct device *dev, struct ibv_srq *srq,
		       unsigned int sges, unsigned int inline_len, uint8_t timeout)
{
	struct ibv_cq *cq[2];

	create_cqs(dev, cq, 1);
	create(pair, dev, cq, srq, 1, timeout, sges, inline_len);
}

void pair_create(struct pair *pair, struct device *dev, unsigned int depth,
		 uint8_t timeout)
{
	pair_create_srq(pair, dev, NULL, depth, timeout);
}

void pair_destroy(struct pair *pair)
{
	int side;

	for (side = 0; side < 2; side++)
		if (ibv_destroy_qp(pair->qp[side]))
			die("%s: ibv_destroy_qp: %s", pair->dev->name,
			    strerror(errno));
	for (side = 0; side < 2; side++)
		if (ibv_destroy_cq(pair->cq[side]))
			die("%s: ibv_destroy_cq: %s", pair->dev->name,
			    strerror(errno));
}

void pair_reconnect(struct pair *pair)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };
	struct ibv_wc wc;
	int side;

	for (side = 0; side < 2; side++)
		modify(pair, side, &attr, IBV_QP_STATE);
	for (side = 0; side < 2; side++)
		while (ibv_poll_cq(pair->cq[side], 1, &wc) > 0)
			;
	pair_connect(pair);
}

int pair_post(struct pair *pair, const struct transfer_op *op)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)op->local,
		.length = op->length,
		.lkey = op->lkey,
	};
	struct ibv_send_wr wr = {
		.wr_id = op->wr_id,
		.opcode = op->opcode,
		.send_flags = IBV_SEND_SIGNALED,
		.sg_list = &sge,
		.num_sge = 1,
	};
	struct ibv_send_wr *bad;

	if (op->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
		wr.wr.atomic.remote_addr = op->remote;
		wr.wr.atomic.rkey = op->rkey;
		wr.wr.atomic.compare_add = op->add;
	} else {
		wr.wr.rdma.remote_addr = op->remote;
		wr.wr.rdma.rkey = op->rkey;
	}
	return ibv_post_send(pair->qp[REQUESTER], &wr, &bad);
}

int pair_post_recv(struct pair *pair, uint64_t wr_id, void *buf, uint32_t length,
		   uint32_t lkey)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)buf, .length = length, .lkey = lkey,
	};
	struct ibv_recv_wr wr = {
		.wr_id = wr_id, .sg_list = &sge, .num_sge = 1,
	};
	struct ibv_recv_wr *bad;

	return ibv_post_recv(pair->qp[RESPONDER], &wr, &bad);
}

bool pair_poll(struct pair *pair, int side, struct ibv_wc *wc, double timeout_s)
{
	unsigned int spins = 0;
	double start = 0;
	int n;

	for (;;) {
		n = ibv_poll_cq(pair->cq[side], 1, wc);
		if (n < 0)
			die("%s: ibv_poll_cq failed", pair->dev->name);
		if (n)
			return true;
		/* Leave the processor to the fault handlers, then to all others. */
		if (++spins < 64)
			continue;
		if (!start)
			start = now();
		else if (now() - start > timeout_s)
			return false;
		if (spins < 512)
			sched_yield();
		else
			sleep_ms(1);
	}
}

int pair_do(struct pair *pair, const struct transfer_op *op, double timeout_s)
{
	struct ibv_wc wc;
	int err = pair_post(pair, op);

	if (err)
		die("%s: ibv_post_send: %s", pair->dev->name, strerror(err));
	return pair_poll(pair, REQUESTER, &wc, timeout_s) ? (int)wc.status : NO_COMPLETION;
}

enum ibv_qp_state pair_state(struct pair *pair, int side)
{
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr;
	int err = ibv_query_qp(pair->qp[side], &attr, IBV_QP_STATE, &init);

	if (err)
		die("%s: ibv_query_qp: %s", pair->dev->name, strerror(err));
	return attr.qp_state;
}

const char *qp_state_name(enum ibv_qp_state state)
{
	static const char *const names[] = {
		[IBV_QPS_RESET] = "RESET", [IBV_QPS_INIT] = "INIT",
		[IBV_QPS_RTR] = "RTR", [IBV_QPS_RTS] = "RTS",
		[IBV_QPS_SQD] = "SQD", [IBV_QPS_SQE] = "SQE",
		[IBV_QPS_ERR] = "ERR",
	};

	return state <= IBV_QPS_ERR ? names[state] : "unknown";
}

const char *wc_status_name(int status)
{
	static char other[24];

	switch (status) {
	case NO_COMPLETION: return "no-completion";
	case IBV_WC_SUCCESS: return "success";
	case IBV_WC_LOC_LEN_ERR: return "local-length";
	case IBV_WC_LOC_QP_OP_ERR: return "local-qp-operation";
	case IBV_WC_LOC_PROT_ERR: return "local-protection";
	case IBV_WC_LOC_ACCESS_ERR: return "local-access";
	case IBV_WC_WR_FLUSH_ERR: return "flushed";
	case IBV_WC_REM_INV_REQ_ERR: return "remote-invalid-request";
	case IBV_WC_REM_ACCESS_ERR: return "remote-access";
	case IBV_WC_REM_OP_ERR: return "remote-operation";
	case IBV_WC_RETRY_EXC_ERR: return "retry-exceeded";
	case IBV_WC_RNR_RETRY_EXC_ERR: return "rnr-retry-exceeded";
	}
	snprintf(other, sizeof(other), "status-%d", status);
	return other;
}

struct ibv_mr *odp_mr(struct device *dev, void *addr, size_t length, int access)
{
	struct ibv_mr *mr;

	mr = ibv_reg_mr(dev->pd, addr, length, access | IBV_ACCESS_ON_DEMAND);
	if (!mr)
		die("%s: registering %zu bytes with access %#x on demand: %s",
		    dev->name, length, access, strerror(errno));
	return mr;
}

struct ibv_mr *implicit_mr(struct device *dev, int access)
{
	return odp_mr(dev, NULL, SIZE_MAX, access);
}

void region_open(struct region *region, struct device *dev, size_t len, int access)
{
	region->len = len;
	region->mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region->mem == MAP_FAILED)
		die("mapping %zu bytes: %s", len, strerror(errno));
	/* A huge page may only go as a whole, and come when nobody asked. */
	madvise(region->mem, len, MADV_NOHUGEPAGE);
	region->mr = ibv_reg_mr(dev->pd, region->mem, len, access);
	if (!region->mr)
		die("%s: registering %zu bytes with access %#x: %s", dev->name, len, access,
		    strerror(errno));
}

void region_close(struct region *region)
{
	int err = ibv_dereg_mr(region->mr);

	if (err)
		die("ibv_dereg_mr: %s", strerror(err));
	munmap(region->mem, region->len);
}
