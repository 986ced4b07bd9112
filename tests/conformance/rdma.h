/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * One opened device and pairs of RC QPs of this process that are connected to each
 * other through port 1 (loopback). Failures to set up end the program.
 */
#ifndef CONFORMANCE_RDMA_H
#define CONFORMANCE_RDMA_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE		4096
#define RDMA_PORT	1

struct device {
	const char *name;
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_port_attr port;
	struct ibv_device_attr_ex attr;
	union ibv_gid gid;
	uint8_t gid_index;
};

/* Dies with a clear message unless the port is ACTIVE and RC ODP is offered. */
void device_open(struct device *dev, const char *name);
void device_close(struct device *dev);

/*
 * A requester and a responder, each with a CQ of its own so that a completion tells
 * which side it belongs to.
 */
struct pair {
	struct device *dev;
	struct ibv_cq *cq[2];
	struct ibv_qp *qp[2];
	unsigned int depth;
	uint8_t timeout;	/* exponent: 4.096 us * 2^timeout, 7 retries */
	uint8_t rnr_retry;	/* 7, no limit, unless changed before pair_reconnect() */
};

enum { REQUESTER, RESPONDER };

#define PAIR_TIMEOUT 19		/* 2.1 s: longer than what the tests hold a fault */

void pair_create(struct pair *pair, struct device *dev, unsigned int depth,
		 uint8_t timeout);
/* The same on CQs of the caller's, which pair_destroy() destroys. */
void pair_create_on(struct pair *pair, struct device *dev, struct ibv_cq *const cq[2],
		    unsigned int depth, uint8_t timeout);
/* The same on CQs of its own; the responder takes its receives from SRQ. */
void pair_create_srq(struct pair *pair, struct device *dev, struct ibv_srq *srq,
		     unsigned int depth, uint8_t timeout);
/*
 * The same for one request at a time, of as many elements as SGES, or so many bytes
 * inline. SRQ may be NULL.
 */
void pair_create_lists(struct pair *pair, struct device *dev, struct ibv_srq *srq,
		       unsigned int sges, unsigned int inline_len, uint8_t timeout);
void pair_destroy(struct pair *pair);

/* Takes both QPs through RESET to RTS again; drops all completions. */
void pair_reconnect(struct pair *pair);

struct transfer_op {
	enum ibv_wr_opcode opcode;
	uint64_t wr_id;
	void *local;
	uint32_t length;
	uint32_t lkey;
	uint64_t remote;
	uint32_t rkey;
	uint64_t add;		/* operand of IBV_WR_ATOMIC_FETCH_AND_ADD */
};

/* Posts a signalled operation on the requester. Returns 0 or an errno. */
int pair_post(struct pair *pair, const struct transfer_op *op);
int pair_post_recv(struct pair *pair, uint64_t wr_id, void *buf, uint32_t length,
		   uint32_t lkey);

/* Waits for one completion of SIDE; false after TIMEOUT_S seconds without one. */
bool pair_poll(struct pair *pair, int side, struct ibv_wc *wc, double timeout_s);

enum ibv_qp_state pair_state(struct pair *pair, int side);
const char *qp_state_name(enum ibv_qp_state state);

/*
 * Posts OP and waits for its completion. Returns the status, or NO_COMPLETION after
 * TIMEOUT_S seconds.
 */
int pair_do(struct pair *pair, const struct transfer_op *op, double timeout_s);

#define NO_COMPLETION (-1)

/* "success", "remote-access", ..., "no-completion" or "status-N". */
const char *wc_status_name(int status);

/* Private anonymous memory, never in huge pages, with an MR. */
struct region {
	uint8_t *mem;
	size_t len;
	struct ibv_mr *mr;
};

/* On demand only if ACCESS says so. Dies on failure. */
void region_open(struct region *region, struct device *dev, size_t len, int access);
void region_close(struct region *region);

/* Registers with IBV_ACCESS_ON_DEMAND added; dies on failure. */
struct ibv_mr *odp_mr(struct device *dev, void *addr, size_t length, int access);
/* All of the process's memory, the same way. */
struct ibv_mr *implicit_mr(struct device *dev, int access);

#endif
