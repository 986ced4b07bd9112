// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * SIGKILL of a process whose device fault is held: by userfaultfd, or by a device that
 * is slow to complete UMRs (a rule of the software ConnectX; left out where
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
#include <stdatomic.h>
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
#define HELD_WITHIN_MS	10000	/* the fault, after the child has begun */
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

static void delay_umrs(void)
{
	char rule[64];

	snprintf(rule, sizeof(rule), "umr do=delay ms=%u", UMR_DELAY_MS);
	device_rule(rule);
}

/* How far a child is with what a slow device must hold up; shared with it. */
enum progress { SETTING_UP, BEGUN, THROUGH };

struct victim {
	struct device dev;
	struct pair pair;
	struct region target, src;
};

static void victim_setup(struct victim *v, const char *dev)
{
	device_open(&v->dev, dev);
	region_open(&v->src, &v->dev, OP_LEN, 0);
	memset(v->src.mem, 0x77, OP_LEN);
	region_open(&v->target, &v->dev, LEN, IBV_ACCESS_ON_DEMAND | IBV_ACCESS_LOCAL_WRITE |
					      IBV_ACCESS_REMOTE_WRITE);
	pair_create(&v->pair, &v->dev, 4, 21);
}

static struct transfer_op victim_write(const struct victim *v, size_t off)
{
	return (struct transfer_op) {
		.opcode = IBV_WR_RDMA_WRITE, .local = v->src.mem, .length = OP_LEN,
		.lkey = v->src.mr->lkey, .remote = (uintptr_t)v->target.mem + off,
		.rkey = v->target.mr->rkey,
	};
}

static void victim_first_write(struct victim *v)
{
	struct transfer_op op = victim_write(v, 0);
	int status = pair_do(&v->pair, &op, 10);

	if (status)
		die("the first WRITE: %s", wc_status_name(status));
}

static void victim_main(const char *dev, enum stall stall, int sock, _Atomic int *progress)
{
	struct transfer_op op;
	struct victim v;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	victim_setup(&v, dev);
	op = victim_write(&v, 0);
	switch (stall) {
	case STALL_UFFD_PARENT:
		fd = uffd_hold(v.target.mem, LEN);
		tell(sock, fd);
		close(fd);
		pair_do(&v.pair, &op, 0);
		break;
	case STALL_UFFD_CHILD:
		fd = uffd_hold(v.target.mem, LEN);
		pair_do(&v.pair, &op, 0);
		if (!uffd_wait(fd, 10000))
			die("the device does not fault");
		tell(sock, -1);
		break;
	case STALL_UMR_FAULT:
		delay_umrs();
		tell(sock, -1);
		*progress = BEGUN;
		pair_do(&v.pair, &op, 30);
		*progress = THROUGH;
		break;
	case STALL_UMR_INVALIDATION:
		victim_first_write(&v);
		delay_umrs();
		tell(sock, -1);
		*progress = BEGUN;
		madvise(v.target.mem, LEN, MADV_DONTNEED);
		*progress = THROUGH;
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

/* What run_case() waits for, each within a time. */
struct scene {
	struct monitor monitor;
	const char *dev;
	enum stall stall;
	_Atomic int *progress;
	struct device_counters before;	/* of the child's own faults */
};

/* Does the slow device hold what the child has begun? */
static bool held_by_umr(const struct scene *s)
{
	struct device_counters now;

	if (*s->progress != BEGUN)
		return false;
	/* madvise() waits for the device. A fault is one that was not resumed. */
	if (s->stall == STALL_UMR_INVALIDATION)
		return true;
	device_counters(s->dev, &now);
	return now.faults - s->before.faults > now.resumes_ok - s->before.resumes_ok +
					       now.resumes_error - s->before.resumes_error;
}

static bool others_served(const struct scene *s)
{
	return monitor_ops(&s->monitor) >= OTHERS_OPS;
}

static bool wait_for(bool (*what)(const struct scene *), const struct scene *s,
		     unsigned int ms)
{
	double start = now();

	while (!what(s)) {
		if (now() - start > ms * 1e-3)
			return false;
		sleep_ms(5);
	}
	return true;
}

static void run_case(const char *dev, const struct kill_case *c)
{
	bool umr = c->stall == STALL_UMR_FAULT || c->stall == STALL_UMR_INVALIDATION;
	struct scene s = { .dev = dev, .stall = c->stall };
	char before[256], after[256];
	double start, killed, gone_s;
	struct report r;
	int socks[2], fd;
	pid_t child;
	bool gone;

	report_begin(&r, "kill");
	report_str(&r, "case", c->name);
	/* The rule makes all UMRs slow, so the other process must not need any. */
	monitor_start(&s.monitor, dev, !umr);
	count_objects(dev, before, sizeof(before));
	device_counters(dev, &s.before);
	s.progress = mmap(NULL, sizeof(*s.progress), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s.progress == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		die("socketpair: %s", strerror(errno));
	child = fork();
	if (child < 0)
		die("fork: %s", strerror(errno));
	if (!child) {
		close(socks[0]);
		victim_main(dev, c->stall, socks[1], s.progress);
	}
	close(socks[1]);
	fd = hear(socks[0]);
	if (fd >= 0 && !uffd_wait(fd, HELD_WITHIN_MS))
		report_fail(&r, "the device does not fault");
	if (umr && !wait_for(held_by_umr, &s, HELD_WITHIN_MS))
		report_fail(&r, "the slow device holds nothing");
	start = now();
	monitor_window(&s.monitor);
	sleep_ms(umr ? UMR_KILL_MS : UFFD_KILL_MS);
	/* userfaultfd holds until the child is killed: who waits for it, waits for ever. */
	if (!wait_for(others_served, &s, umr ? UMR_DELAY_MS : OTHERS_MS))
		report_fail(&r, "the other process is stalled while the fault is held");
	if (umr && !held_by_umr(&s))
		report_fail(&r, "nothing is held any more when SIGKILL comes, after %.3f s",
			    now() - start);
	report_seconds(&r, "held_s", now() - start);
	report_u64(&r, "others_ops", monitor_ops(&s.monitor));
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
	report_str(&r, "end", gone ? "gone" : "stays");
	if (!gone)
		report_fail(&r, "the child is still there %.1f s after SIGKILL", gone_s);
	report_seconds(&r, "gone_s", gone_s);
	if (umr)
		device_rules_clear();
	/* The process is gone; on a busy machine what it had open may go a little later. */
	count_objects(dev, after, sizeof(after));
	for (start = now(); strcmp(before, after) && now() - start < GONE_WITHIN_S;) {
		sleep_ms(20);
		count_objects(dev, after, sizeof(after));
	}
	report_str(&r, "objects", after);
	if (strcmp(before, after))
		report_fail(&r, "left behind: before %s, after %s", before, after);
	if (!monitor_stop(&s.monitor))
		report_fail(&r, "an operation of the other process failed");
	close(socks[0]);
	munmap((void *)s.progress, sizeof(*s.progress));
	report_end(&r);
}

static void *drop_thread(void *arg)
{
	struct victim *v = arg;

	madvise(v->target.mem, LEN / 2, MADV_DONTNEED);
	return NULL;
}

/*
 * Not a kill: a fault on one half of an MR that has to wait longer than HMM's second
 * for the invalidation of the other half, whose UMR is slow. Tells how the access ends.
 */
static void slow_invalidation(const char *dev)
{
	struct transfer_op op;
	struct victim v;
	struct report r;
	pthread_t thread;
	double start;
	int status;

	report_begin(&r, "kill");
	report_str(&r, "case", SLOW_INVALIDATION);
	victim_setup(&v, dev);
	victim_first_write(&v);
	delay_umrs();
	start = now();
	if (pthread_create(&thread, NULL, drop_thread, &v))
		die("pthread_create failed");
	sleep_ms(100);
	op = victim_write(&v, LEN / 2);
	status = pair_do(&v.pair, &op, 20);
	report_str(&r, "local", wc_status_name(status));
	if (status == NO_COMPLETION)
		report_fail(&r, "no completion within 20 s");
	report_seconds(&r, "seconds", now() - start);
	device_rules_clear();
	pthread_join(thread, NULL);
	sleep_ms(50);
	report_str(&r, "local_qp", qp_state_name(pair_state(&v.pair, REQUESTER)));
	report_str(&r, "remote_qp", qp_state_name(pair_state(&v.pair, RESPONDER)));
	if (status == IBV_WC_SUCCESS && memcmp(v.target.mem + LEN / 2, v.src.mem, OP_LEN))
		report_fail(&r, "success, but the data is not there");
	pair_destroy(&v.pair);
	region_close(&v.target);
	region_close(&v.src);
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
	if (o.umr)
		atexit(device_rules_clear);	/* the next program gets a quick device */
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
