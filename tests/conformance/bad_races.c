// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "bad_races.h"
#include "pattern.h"
#include "report.h"
#include "uffd.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN		(1ul << 20)
#define ROUNDS		20
#define HELD_ROUNDS	2
#define HOLD_MS		300
#define TIMEOUT_S	15

const struct bad_race bad_races[] = {
	{ "destroyed-while-faulting-write", true, false },
	{ "destroyed-while-faulting-local-read", false, false },
	{ "destroyed-while-held-write", true, true },
	{ "destroyed-while-held-local-read", false, true },
};

const size_t bad_races_count = sizeof(bad_races) / sizeof(bad_races[0]);

struct dereg {
	struct ibv_mr *mr;
	int err;
	atomic_bool done;
};

static void *dereg_thread(void *arg)
{
	struct dereg *d = arg;

	d->err = ibv_dereg_mr(d->mr);
	d->done = true;
	return NULL;
}

static void hold_over_dereg(struct dereg *d, int fd, void *mem, struct report *r)
{
	pthread_t thread;
	double start;

	if (!uffd_wait(fd, TIMEOUT_S * 1000))
		report_fail(r, "the device did not fault within %d s", TIMEOUT_S);
	if (pthread_create(&thread, NULL, dereg_thread, d))
		die("pthread_create failed");
	sleep_ms(HOLD_MS);
	uffd_release(fd, mem, LEN);
	close(fd);
	for (start = now(); !d->done; sleep_ms(5))
		if (now() - start > TIMEOUT_S)
			die("ibv_dereg_mr still waits %d s after the fault was released",
			    TIMEOUT_S);
	pthread_join(thread, NULL);
}

static int one_round(struct pair *pair, const struct bad_race *race, uint8_t *peer,
		     struct ibv_mr *peer_mr, unsigned int delay_us, struct report *r)
{
	struct transfer_op op = {
		.opcode = race->remote ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
		.length = LEN,
	};
	struct ibv_wc wc = { .status = -1 };
	struct dereg d = { 0 };
	uint64_t hash;
	uint8_t *mem;
	int err, fd = -1;

	mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	if (race->held)
		fd = uffd_hold(mem, LEN);
	d.mr = odp_mr(pair->dev, mem, LEN, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	pair_reconnect(pair);
	op.local = race->remote ? peer : mem;
	op.lkey = race->remote ? peer_mr->lkey : d.mr->lkey;
	op.remote = (uintptr_t)(race->remote ? mem : peer);
	op.rkey = race->remote ? d.mr->rkey : peer_mr->rkey;
	err = pair_post(pair, &op);
	if (err)
		die("ibv_post_send: %s", strerror(err));
	if (race->held) {
		hold_over_dereg(&d, fd, mem, r);
	} else {
		usleep(delay_us);
		dereg_thread(&d);
	}
	if (d.err)
		report_fail(r, "ibv_dereg_mr: %s", strerror(d.err));
	hash = memory_hash(mem, LEN);
	if (!pair_poll(pair, REQUESTER, &wc, TIMEOUT_S))
		report_fail(r, "no completion within %d s", TIMEOUT_S);
	usleep(2000);
	if (memory_hash(mem, LEN) != hash)
		report_fail(r, "memory was written after ibv_dereg_mr returned");
	munmap(mem, LEN);
	return wc.status;
}

void bad_race_run(struct pair *pair, const struct bad_race *race)
{
	int denied = race->remote ? IBV_WC_REM_ACCESS_ERR : IBV_WC_LOC_PROT_ERR;
	int i, rounds = race->held ? HELD_ROUNDS : ROUNDS, status;
	unsigned int successes = 0, denials = 0;
	struct ibv_mr *peer_mr;
	struct report r;
	uint8_t *peer;

	peer = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (peer == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	pattern_fill(peer, LEN, 3, 0);
	peer_mr = ibv_reg_mr(pair->dev->pd, peer, LEN,
			     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	if (!peer_mr)
		die("registering the peer's buffer: %s", strerror(errno));

	report_begin(&r, "bad-input");
	report_str(&r, "case", race->name);
	for (i = 0; i < rounds && r.ok; i++) {
		status = one_round(pair, race, peer, peer_mr, i * 250, &r);
		successes += status == IBV_WC_SUCCESS;
		denials += status == denied;
		if (status != IBV_WC_SUCCESS && status != denied)
			report_fail(&r, "round %d ended with %s (%d)", i,
				    wc_status_name(status), status);
	}
	report_str(&r, "errno", "0");
	report_str(&r, "local", race->remote ? "success|remote-access" :
					       "success|local-protection");
	report_u64(&r, "successes", successes);
	report_u64(&r, "denials", denials);
	report_end(&r);
	ibv_dereg_mr(peer_mr);
	munmap(peer, LEN);
}
