// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * SIGKILL of a process whose device fault is held: by userfaultfd, or by a device that
 * is slow to complete UMRs (knob umr_delay_ms of the software ConnectX; left out where
 * there is none). It must be gone within a bounded time and leave nothing behind;
 * meanwhile another process's traffic, faulting itself, goes on.
 *
 * The descriptor of the child's userfaultfd is opened after the device: at exit the
 * kernel closes it first. The other order waits for itself: the release of the device
 * file waits for the fault, the fault for the release of the userfaultfd.
 */
#define _GNU_SOURCE
#include "devctl.h"
#include "monitor.h"
#include "options.h"
#include "rdma.h"
#include "report.h"
#include "uffd.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN		(1ul << 20)
#define OP_LEN		(64u << 10)
#define UMR_DELAY_MS	1500
#define UFFD_KILL_MS	1000	/* from the start of the stall to SIGKILL, at least */
#define UMR_KILL_MS	300
#define HOLD_ON_MS	800	/* userfaultfd holds on for so long after SIGKILL */
#define GONE_WITHIN_S	8.0	/* after the hold has ended */
#define OTHERS_OPS	5	/* of the other process while the fault is held ... */
#define OTHERS_MS	10000	/* ... however slow the machine is */

enum stall { STALL_UFFD_PARENT, STALL_UFFD_CHILD, STALL_UMR_FAULT, STALL_UMR_INVALIDATION };

struct kill_case {
	const char *name;
	enum stall stall;
};

static const struct kill_case cases[] = {
	{ "kill-held-by-other", STALL_UFFD_PARENT },
	{ "kill-held-by-itself", STALL_UFFD_CHILD },
	{ "kill-umr-delay-fault", STALL_UMR_FAULT },
	{ "kill-umr-delay-invalidation", STALL_UMR_INVALIDATION },
};

#define SLOW_INVALIDATION "umr-delay-fault-during-invalidation"
#define N_CASES (sizeof(cases) / sizeof(cases[0]))

/* One byte says "stalled now"; a descriptor may come with it. */
static void tell(int sock, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = "S", .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *cmsg;

	if (fd >= 0) {
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	if (sendmsg(sock, &msg, 0) != 1)
		die("sendmsg: %s", strerror(errno));
}

/* Returns the descriptor, or -1 if none came along. */
static int hear(int sock)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char byte;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf, .msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		die("the child ended before its fault was held");
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

static void set_umr_delay(unsigned int ms)
{
	char json[64], reply[256];

	snprintf(json, sizeof(json), "{\"cmd\":\"set\",\"umr_delay_ms\":%u}", ms);
	if (!devctl_request(json, reply, sizeof(reply)) || strstr(reply, "error"))
		die("the device refused %s: %s", json, reply);
}

struct victim {
	struct device dev;
	struct pair pair;
	struct ibv_mr *mr, *src_mr;
	uint8_t *mem, *src;
};

static void victim_setup(struct victim *v, const char *dev)
{
	device_open(&v->dev, dev);
	v->mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	v->src = mmap(NULL, OP_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (v->mem == MAP_FAILED || v->src == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	memset(v->src, 0x77, OP_LEN);
	v->src_mr = ibv_reg_mr(v->dev.pd, v->src, OP_LEN, 0);
	if (!v->src_mr)
		die("registering memory: %s", strerror(errno));
	v->mr = odp_mr(&v->dev, v->mem, LEN, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	pair_create(&v->pair, &v->dev, 4, 21);
}

static void victim_write(struct victim *v, size_t off)
{
	struct transfer_op op = {
		.opcode = IBV_WR_RDMA_WRITE, .local = v->src, .length = OP_LEN,
		.lkey = v->src_mr->lkey, .remote = (uintptr_t)v->mem + off,
		.rkey = v->mr->rkey,
	};

	if (pair_post(&v->pair, &op))
		die("ibv_post_send failed");
}

static void victim_main(const char *dev, enum stall stall, int sock)
{
	struct victim v;
	struct ibv_wc wc;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	victim_setup(&v, dev);
	switch (stall) {
	case STALL_UFFD_PARENT:
		fd = uffd_hold(v.mem, LEN);
		tell(sock, fd);
		close(fd);
		victim_write(&v, 0);
		break;
	case STALL_UFFD_CHILD:
		fd = uffd_hold(v.mem, LEN);
		victim_write(&v, 0);
		if (!uffd_wait(fd, 10000))
			die("the device does not fault");
		tell(sock, -1);
		break;
	case STALL_UMR_FAULT:
		set_umr_delay(UMR_DELAY_MS);
		victim_write(&v, 0);
		tell(sock, -1);
		break;
	case STALL_UMR_INVALIDATION:
		victim_write(&v, 0);
		if (!pair_poll(&v.pair, REQUESTER, &wc, 10) || wc.status)
			die("the first WRITE failed");
		set_umr_delay(UMR_DELAY_MS);
		tell(sock, -1);
		madvise(v.mem, LEN, MADV_DONTNEED);
		break;
	}
	for (;;)
		pause();
}

/* Objects of the device by kind, as restrack tells: to see what a process left behind. */
static void count_objects(const char *dev, char *text, size_t size)
{
	char cmd[96];
	FILE *pipe;
	size_t n;

	snprintf(cmd, sizeof(cmd), "rdma res show %s 2>/dev/null", dev);
	pipe = popen(cmd, "re");
	n = pipe ? fread(text, 1, size - 1, pipe) : 0;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (pipe)
		pclose(pipe);
}

static bool wait_gone(pid_t pid, double deadline)
{
	while (waitpid(pid, NULL, WNOHANG) != pid) {
		if (now() > deadline)
			return false;
		sleep_ms(5);
	}
	return true;
}

static bool others_progress(const struct monitor *m)
{
	uint64_t ops;
	double gap;

	monitor_read(m, &ops, &gap);
	return ops >= OTHERS_OPS;
}

static void run_case(const char *dev, const struct kill_case *c)
{
	bool umr = c->stall == STALL_UMR_FAULT || c->stall == STALL_UMR_INVALIDATION;
	char before[256], after[256];
	double start, gap, killed, gone_s;
	struct monitor m;
	struct report r;
	int socks[2], fd;
	uint64_t ops;
	pid_t child;
	bool gone;

	report_begin(&r, "kill");
	report_str(&r, "case", c->name);
	/* All UMRs are slow with the knob set, so the other process must not need any. */
	monitor_start(&m, dev, !umr);
	count_objects(dev, before, sizeof(before));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		die("socketpair: %s", strerror(errno));
	child = fork();
	if (child < 0)
		die("fork: %s", strerror(errno));
	if (!child) {
		close(socks[0]);
		victim_main(dev, c->stall, socks[1]);
	}
	close(socks[1]);
	fd = hear(socks[0]);
	if (fd >= 0 && !uffd_wait(fd, 10000))
		report_fail(&r, "the device does not fault");
	start = now();
	monitor_window(&m);
	sleep_ms(umr ? UMR_KILL_MS : UFFD_KILL_MS);
	/* The hold lasts until the child is killed: who waits for it, waits for ever. */
	while (!umr && !others_progress(&m) && now() - start < OTHERS_MS * 1e-3)
		sleep_ms(5);
	if (!umr && !others_progress(&m))
		report_fail(&r, "the other process is stalled while the fault is held");
	report_seconds(&r, "held_s", now() - start);
	kill(child, SIGKILL);
	killed = now();
	gone = wait_gone(child, killed + HOLD_ON_MS * 1e-3);
	report_bool(&r, "gone_while_held", gone);
	gone_s = now() - killed;
	if (fd >= 0)
		close(fd);
	if (!gone) {
		gone = wait_gone(child, now() + GONE_WITHIN_S);
		gone_s = now() - killed;
	}
	if (!gone)
		report_fail(&r, "the child is still there %.1f s after SIGKILL", gone_s);
	report_seconds(&r, "gone_s", gone_s);
	monitor_read(&m, &ops, &gap);
	report_u64(&r, "others_ops", ops);
	report_seconds(&r, "others_max_gap_s", gap);
	if (umr && (!ops || gap >= UMR_DELAY_MS * 1e-3))
		report_fail(&r, "the other process was stalled for %.3f s", gap);
	if (umr)
		set_umr_delay(0);
	sleep_ms(100);
	count_objects(dev, after, sizeof(after));
	report_str(&r, "objects", after);
	if (strcmp(before, after))
		report_fail(&r, "left behind: before %s, after %s", before, after);
	if (!monitor_stop(&m))
		report_fail(&r, "an operation of the other process failed");
	close(socks[0]);
	report_end(&r);
}

static void *drop_thread(void *arg)
{
	struct victim *v = arg;

	madvise(v->mem, LEN / 2, MADV_DONTNEED);
	return NULL;
}

/*
 * Not a kill: a fault on one half of an MR that has to wait longer than HMM's second
 * for the invalidation of the other half, whose UMR is slow. Tells how the access ends.
 */
static void slow_invalidation(const char *dev)
{
	struct ibv_wc wc = { .status = -1 };
	struct victim v;
	struct report r;
	pthread_t thread;
	double start;

	report_begin(&r, "kill");
	report_str(&r, "case", SLOW_INVALIDATION);
	victim_setup(&v, dev);
	victim_write(&v, 0);
	if (!pair_poll(&v.pair, REQUESTER, &wc, 10) || wc.status)
		die("the first WRITE failed");
	set_umr_delay(UMR_DELAY_MS);
	start = now();
	if (pthread_create(&thread, NULL, drop_thread, &v))
		die("pthread_create failed");
	sleep_ms(100);
	victim_write(&v, LEN / 2);
	if (!pair_poll(&v.pair, REQUESTER, &wc, 20)) {
		report_str(&r, "local", "timeout");
		report_fail(&r, "no completion within 20 s");
	} else {
		report_str(&r, "local", wc_status_name(wc.status));
	}
	report_seconds(&r, "seconds", now() - start);
	set_umr_delay(0);
	pthread_join(thread, NULL);
	sleep_ms(50);
	report_str(&r, "local_qp", qp_state_name(pair_state(&v.pair, REQUESTER)));
	report_str(&r, "remote_qp", qp_state_name(pair_state(&v.pair, RESPONDER)));
	if (wc.status == IBV_WC_SUCCESS && memcmp(v.mem + LEN / 2, v.src, OP_LEN))
		report_fail(&r, "success, but the data is not there");
	pair_destroy(&v.pair);
	ibv_dereg_mr(v.mr);
	ibv_dereg_mr(v.src_mr);
	device_close(&v.dev);
	report_end(&r);
}

struct options {
	const char *dev, *only;
	unsigned int repeat;
	bool umr;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case ARGP_KEY_INIT: return init_device_option(state, &o->dev);
	case 'c': o->only = arg; return 0;
	case 'r': o->repeat = parse_size("--repeat", arg); return 0;
	case 'n': o->umr = false; return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "case", 'c', "NAME", 0, "Only this case", 0 },
	{ "repeat", 'r', "N", 0, "Run the cases N times (1)", 0 },
	{ "no-umr-delay", 'n', NULL, 0,
	  "No cases with a slow device, which need the software ConnectX's control port "
	  "and are left out without it", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options, .parser = parse, .children = device_option,
	.doc = "SIGKILL while a page fault is held.",
};

int main(int argc, char **argv)
{
	struct options o = { .repeat = 1, .umr = true };
	size_t i;

	argp_parse(&argp, argc, argv, 0, NULL, &o);
	if (o.umr && access(DEVCTL_PORT, F_OK)) {
		fputs("odp_kill: no control port, the cases with a slow device are left out\n",
		      stderr);
		o.umr = false;
	}
	while (o.repeat--) {
		for (i = 0; i < N_CASES; i++)
			if ((o.umr || cases[i].stall <= STALL_UFFD_CHILD) &&
			    (!o.only || !strcmp(o.only, cases[i].name)))
				run_case(o.dev, &cases[i]);
		if (o.umr && (!o.only || !strcmp(o.only, SLOW_INVALIDATION)))
			slow_invalidation(o.dev);
	}
	return report_exit_status();
}
