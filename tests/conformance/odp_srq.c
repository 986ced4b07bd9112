// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Two connections whose responders share a receive queue of two WQEs on demand. The message of
 * the first connection is stuck in the page fault of the first WQE, by a userfaultfd: that WQE
 * stays with it, whoever comes meanwhile.
 */
#define _GNU_SOURCE
#include "options.h"
#include "pattern.h"
#include "rdma.h"
#include "report.h"
#include "uffd.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS	  2
#define TIMEOUT_S 20

enum { STUCK, OTHER };

struct bench {
	struct device dev;
	struct region source;	/* pinned; the message of each connection */
	struct ibv_srq *srq;
	struct pair pair[2];
	uint8_t *slot;
	struct ibv_mr *mr;
	int uffd;
};

static uint8_t *slot(struct bench *b, int n)
{
	return b->slot + n * PAGE;
}

static void post_receive(struct bench *b, int n)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)slot(b, n), .length = PAGE, .lkey = b->mr->lkey,
	};
	struct ibv_recv_wr wr = { .wr_id = n, .sg_list = &sge, .num_sge = 1 }, *bad;
	int err = ibv_post_srq_recv(b->srq, &wr, &bad);

	if (err)
		die("ibv_post_srq_recv: %s", strerror(err));
}

static struct transfer_op message(struct bench *b, int which)
{
	return (struct transfer_op){
		.opcode = IBV_WR_SEND, .local = b->source.mem + which * PAGE,
		.length = PAGE, .lkey = b->source.mr->lkey,
	};
}

/* A message of the first connection whose WQE faults, and is held there. */
static void set_up(struct bench *b, struct report *r)
{
	struct ibv_srq_init_attr init = { .attr = { .max_wr = SLOTS, .max_sge = 1 } };
	struct transfer_op op = message(b, STUCK);
	int i, err;

	b->slot = mmap(NULL, SLOTS * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->slot == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(b->slot, SLOTS * PAGE, MADV_NOHUGEPAGE);
	b->uffd = uffd_hold(slot(b, 0), PAGE);
	b->mr = odp_mr(&b->dev, b->slot, SLOTS * PAGE, IBV_ACCESS_LOCAL_WRITE);
	b->srq = ibv_create_srq(b->dev.pd, &init);
	if (!b->srq)
		die("%s: ibv_create_srq: %s", b->dev.name, strerror(errno));
	for (i = 0; i < SLOTS; i++)
		post_receive(b, i);
	for (i = 0; i < 2; i++)
		pair_create_srq(&b->pair[i], &b->dev, b->srq, 4, PAIR_TIMEOUT);
	err = pair_post(&b->pair[STUCK], &op);
	if (err)
		die("ibv_post_send: %s", strerror(err));
	if (!uffd_wait(b->uffd, TIMEOUT_S * 1000))
		report_fail(r, "the device did not fault within %d s", TIMEOUT_S);
}

static void tear_down(struct bench *b)
{
	int i;

	for (i = 0; i < 2; i++)
		pair_destroy(&b->pair[i]);
	if (ibv_destroy_srq(b->srq))
		die("ibv_destroy_srq: %s", strerror(errno));
	if (ibv_dereg_mr(b->mr))
		die("ibv_dereg_mr: %s", strerror(errno));
	close(b->uffd);
	munmap(b->slot, SLOTS * PAGE);
}

/* The completion of a receive, which must be that of slot N; returns its status. */
static int received(struct bench *b, int which, int n, struct report *r)
{
	struct ibv_wc wc;

	if (!pair_poll(&b->pair[which], RESPONDER, &wc, TIMEOUT_S))
		return NO_COMPLETION;
	if (wc.wr_id != (uint64_t)n)
		report_fail(r, "slot %d was received into, not %d", (int)wc.wr_id, n);
	if (!wc.status && pattern_check(slot(b, n), PAGE, which + 1, 0) != PAGE)
		report_fail(r, "slot %d holds other bytes", n);
	return wc.status;
}

static void expect(struct report *r, const char *what, int status, int wanted)
{
	report_str(r, what, wc_status_name(status));
	if (status != wanted)
		report_fail(r, "%s: %s, not %s", what, wc_status_name(status),
			    wc_status_name(wanted));
}

/* The other connection gets the second WQE, and then there is none left for it. */
static void overtake(struct bench *b, struct report *r)
{
	struct transfer_op op = message(b, OTHER);
	struct pair *other = &b->pair[OTHER];
	struct ibv_wc wc;
	int side;

	expect(r, "overtakes", pair_do(other, &op, TIMEOUT_S), IBV_WC_SUCCESS);
	expect(r, "overtakes_remote", received(b, OTHER, 1, r), IBV_WC_SUCCESS);
	other->rnr_retry = 0;
	pair_reconnect(other);
	expect(r, "third", pair_do(other, &op, TIMEOUT_S), IBV_WC_RNR_RETRY_EXC_ERR);
	for (side = 0; side < 2; side++)
		if (ibv_poll_cq(b->pair[STUCK].cq[side], 1, &wc))
			report_fail(r, "the message that is stuck has completed");
}

static void let_go(struct bench *b)
{
	if (!uffd_release(b->uffd, slot(b, 0), PAGE))
		die("UFFDIO_ZEROPAGE: %s", strerror(errno));
}

/* The message goes on once the page is there, into its own WQE. */
static void goes_on(struct bench *b)
{
	struct report r;
	struct ibv_wc wc;

	report_begin(&r, "srq");
	report_str(&r, "case", "srq-goes-on");
	set_up(b, &r);
	overtake(b, &r);
	let_go(b);
	expect(&r, "remote", received(b, STUCK, 0, &r), IBV_WC_SUCCESS);
	expect(&r, "local", pair_poll(&b->pair[STUCK], REQUESTER, &wc, TIMEOUT_S) ?
			    (int)wc.status : NO_COMPLETION, IBV_WC_SUCCESS);
	report_end(&r);
	tear_down(b);
}

/* The responder fails meanwhile: the WQE is flushed with it, and nothing comes into it. */
static void flushed(struct bench *b)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	struct transfer_op op = message(b, OTHER);
	struct report r;

	report_begin(&r, "srq");
	report_str(&r, "case", "srq-flushed");
	set_up(b, &r);
	overtake(b, &r);
	if (ibv_modify_qp(b->pair[STUCK].qp[RESPONDER], &attr, IBV_QP_STATE))
		die("ibv_modify_qp to ERR: %s", strerror(errno));
	expect(&r, "remote", received(b, STUCK, 0, &r), IBV_WC_WR_FLUSH_ERR);
	let_go(b);
	/* A slot that is posted again is another's. */
	post_receive(b, 1);
	b->pair[OTHER].rnr_retry = 7;
	pair_reconnect(&b->pair[OTHER]);
	expect(&r, "local", pair_do(&b->pair[OTHER], &op, TIMEOUT_S), IBV_WC_SUCCESS);
	expect(&r, "again", received(b, OTHER, 1, &r), IBV_WC_SUCCESS);
	if (slot(b, 0)[0] || memcmp(slot(b, 0), slot(b, 0) + 1, PAGE - 1))
		report_fail(&r, "something was received into the slot that was flushed");
	report_end(&r);
	tear_down(b);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	const char **dev = state->input;

	(void)arg;
	if (key != ARGP_KEY_INIT)
		return ARGP_ERR_UNKNOWN;
	return init_device_option(state, dev);
}

static const struct argp argp = {
	.parser = parse, .children = device_option,
	.doc = "Receives on demand of a queue that is shared.",
};

int main(int argc, char **argv)
{
	struct bench b = { 0 };
	const char *name;
	int i;

	argp_parse(&argp, argc, argv, 0, NULL, &name);
	device_open(&b.dev, name);
	if (!(b.dev.attr.odp_caps.per_transport_caps.rc_odp_caps & IBV_ODP_SUPPORT_SRQ_RECV))
		die("%s: no receives on demand of a shared queue", name);
	region_open(&b.source, &b.dev, 2 * PAGE, IBV_ACCESS_LOCAL_WRITE);
	for (i = 0; i < 2; i++)
		pattern_fill(b.source.mem + i * PAGE, PAGE, i + 1, 0);
	goes_on(&b);
	flushed(&b);
	region_close(&b.source);
	device_close(&b.dev);
	return report_exit_status();
}
