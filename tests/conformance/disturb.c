// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "disturb.h"
#include "pattern.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_PAGES	64	/* of one action */
#define SNAPSHOT_OPS	8	/* that a child looks at */
#define FORK_EVERY	8	/* rounds of the other disturbances */
#define READ_ONLY_US	1500
#define SNAPSHOT_MS	20
#define POLL_US		300

enum child_result { CHILD_OK, CHILD_CHANGED, CHILD_FOREIGN };

const char *const disturbance_names[DISTURBANCES] = {
	[DROP_SRC] = "drop-src", [DROP_DST] = "drop-dst",
	[PROTECT_SRC] = "protect-src", [PROTECT_DST] = "protect-dst",
	[FORK] = "fork",
};

static void fail(struct disturber *d, const char *fmt, ...)
{
	va_list args;

	if (d->failed)
		return;
	va_start(args, fmt);
	vsnprintf(d->reason, sizeof(d->reason), fmt, args);
	va_end(args);
	d->failed = true;
}

static uint64_t random_below(struct disturber *d, uint64_t limit)
{
	d->seed++;
	return pattern_word(d->seed, 0) % limit;
}

/* An operation in flight, or about to be; held still by the caller. */
static size_t pick_op(struct disturber *d)
{
	struct transfer *t = d->t;
	size_t at = t->cursor + random_below(d, t->pair.depth + 4);

	return t->todo_len ? t->todo[at % t->todo_len] : at % t->ops;
}

/* Mostly where the traffic is just now, else anywhere. */
static size_t pick_page(struct disturber *d, bool src)
{
	struct transfer *t = d->t;
	size_t off;

	if (!random_below(d, 4))
		return random_below(d, t->pages);
	off = pick_op(d) * t->op_size;
	if (src)
		off = transfer_src_offset(t, t->round, off);
	return off / PAGE + random_below(d, t->op_size / PAGE);
}

static size_t pick_count(struct disturber *d, size_t first)
{
	size_t n = 1 + random_below(d, MAX_PAGES);

	return n < d->t->pages - first ? n : d->t->pages - first;
}

static void drop(struct disturber *d, bool src)
{
	struct transfer *t = d->t;
	size_t first = pick_page(d, src), n = pick_count(d, first), i;
	uint8_t *at = (src ? t->src : t->dst) + first * PAGE;
	uint64_t when;

	if (madvise(at, n * PAGE, MADV_DONTNEED)) {
		fail(d, "MADV_DONTNEED: %s", strerror(errno));
		return;
	}
	when = ++t->clock;
	for (i = 0; !src && i < n; i++)
		t->dropped[first + i] = when;
}

static void protect(struct disturber *d, bool src)
{
	struct transfer *t = d->t;
	size_t first = pick_page(d, src), n = pick_count(d, first), op;
	size_t first_op = first * PAGE / t->op_size;
	size_t last_op = ((first + n) * PAGE - 1) / t->op_size;
	uint8_t *at = (src ? t->src : t->dst) + first * PAGE;
	uint64_t before, after;

	for (op = first_op; !src && op <= last_op; op++)
		t->op[op].read_only = true;
	if (mprotect(at, n * PAGE, PROT_READ))
		fail(d, "mprotect(PROT_READ): %s", strerror(errno));
	before = memory_hash(at, n * PAGE);
	usleep(READ_ONLY_US);
	after = memory_hash(at, n * PAGE);
	if (before != after)
		fail(d, "round %llu: %s changed while read-only, offset %zu, %zu pages",
		     (unsigned long long)t->round, src ? "source" : "target",
		     first * PAGE, n);
	if (mprotect(at, n * PAGE, PROT_READ | PROT_WRITE))
		fail(d, "mprotect(PROT_READ | PROT_WRITE): %s", strerror(errno));
	for (op = first_op; !src && op <= last_op; op++) {
		t->op[op].read_only_end = ++t->clock;
		t->op[op].read_only = false;
	}
}

/* Only async-signal-safe things here: the parent has threads. */
static enum child_result check_snapshot(const struct transfer *t, size_t op)
{
	uint8_t *at = t->dst + op * t->op_size;
	size_t ops = t->ops - op < SNAPSHOT_OPS ? t->ops - op : SNAPSHOT_OPS;
	size_t len = ops * t->op_size, i;
	uint64_t round = t->round, hash = memory_hash(at, len);

	for (i = 0; i < len; i += 8) {
		size_t off = op * t->op_size + i;
		uint64_t word = *(uint64_t *)(at + i);

		if (word == pattern_word(t->seed, transfer_src_offset(t, round, off)))
			continue;
		if (round ? word == pattern_word(t->seed,
						 transfer_src_offset(t, round - 1, off)) :
			    word == 0 || word == 0xa5a5a5a5a5a5a5a5ull)
			continue;
		if (!word && t->dropped[off / PAGE])
			continue;
		return CHILD_FOREIGN;
	}
	sleep_ms(SNAPSHOT_MS);
	if (memory_hash(at, len) != hash)
		return CHILD_CHANGED;
	memset(at, 0x5a, len);
	return CHILD_OK;
}

static void reap(struct disturber *d)
{
	int status;

	if (!d->child)
		return;
	if (waitpid(d->child, &status, 0) < 0)
		fail(d, "waitpid: %s", strerror(errno));
	else if (!WIFEXITED(status))
		fail(d, "the child ended with wait status %#x", status);
	else if (WEXITSTATUS(status) == CHILD_CHANGED)
		fail(d, "the snapshot of a forked child changed");
	else if (WEXITSTATUS(status) == CHILD_FOREIGN)
		fail(d, "the snapshot of a forked child holds foreign data");
	d->child = 0;
}

static void fork_child(struct disturber *d)
{
	size_t op;

	reap(d);
	op = pick_op(d);
	d->child = fork();
	if (d->child < 0) {
		d->child = 0;
		fail(d, "fork: %s", strerror(errno));
	} else if (!d->child) {
		_exit(check_snapshot(d->t, op));
	}
}

static void *disturb_thread(void *arg)
{
	struct disturber *d = arg;
	unsigned int kind = 0, forks = 0;
	uint64_t due = 0;

	/* Paced by the traffic: on a slow machine it would not get ahead otherwise. */
	while (!d->stop && !d->failed) {
		if (d->t->completed < due) {
			usleep(POLL_US);
			continue;
		}
		do {
			kind = (kind + 1) % DISTURBANCES;
		} while (!(d->enabled & 1u << kind));
		/* A fork takes all of DST away and costs more than all others. */
		if (kind == FORK && d->enabled != 1u << FORK && ++forks % FORK_EVERY)
			continue;
		pthread_mutex_lock(&d->t->world);
		switch (kind) {
		case DROP_SRC:
		case DROP_DST:
			drop(d, kind == DROP_SRC);
			break;
		case PROTECT_SRC:
		case PROTECT_DST:
			protect(d, kind == PROTECT_SRC);
			break;
		case FORK:
			fork_child(d);
			break;
		}
		pthread_mutex_unlock(&d->t->world);
		d->count[kind]++;
		due = d->t->completed + d->every;
	}
	return NULL;
}

void disturb_start(struct disturber *d)
{
	int err = pthread_create(&d->thread, NULL, disturb_thread, d);

	if (err)
		die("pthread_create: %s", strerror(err));
}

bool disturb_stop(struct disturber *d)
{
	d->stop = true;
	pthread_join(d->thread, NULL);
	reap(d);
	return !d->failed;
}

bool disturb_enough(const struct disturber *d, uint64_t n)
{
	int kind;

	for (kind = 0; kind < DISTURBANCES; kind++)
		if (d->enabled & 1u << kind && d->count[kind] < n)
			return false;
	return true;
}
