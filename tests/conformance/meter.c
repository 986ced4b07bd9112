// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "meter.h"
#include "devctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PF_KTHREAD 0x00200000	/* include/linux/sched.h */

/*
 * A 7-byte nop whose displacement means something to the testbed's QEMU plugin
 * (tests/testbed/plugin), and nothing anywhere else. No system call, no trap. Other
 * architectures have no such plugin.
 */
#ifdef __x86_64__
#define MARK(what) asm volatile(".byte 0x0f, 0x1f, 0x80, " #what ", 0x52, 0x45, 0x50" \
				::: "memory")
#else
#define MARK(what) do { } while (0)
#endif
#define MARK_BEGIN	MARK(0x00)	/* all counts are 0 */
#define MARK_END	MARK(0x01)	/* the counts are written down as the next profile */

static unsigned int next_profile;

static bool read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	close(fd);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	return true;
}

static bool is_kthread(const char *pid)
{
	char path[300], buf[512];
	unsigned int flags;
	const char *end;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	if (!read_file(path, buf, sizeof(buf)))
		return false;
	/* pid (comm) state ppid pgrp session tty tpgid flags */
	end = strrchr(buf, ')');
	return end && sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
	       flags & PF_KTHREAD;
}

static double kthreads_ns(void)
{
	char path[300], buf[128];
	struct dirent *entry;
	double sum = 0;
	DIR *proc = opendir("/proc");

	if (!proc)
		die("/proc: %s", strerror(errno));
	while ((entry = readdir(proc))) {
		const char *pid = entry->d_name;

		if (*pid < '0' || *pid > '9' || !is_kthread(pid))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/schedstat", pid);
		if (read_file(path, buf, sizeof(buf)))
			sum += strtod(buf, NULL);
	}
	closedir(proc);
	return sum;
}

/* The seventh number of each processor in /proc/schedstat (kernel, sched-stats.rst). */
static double tasks_ns(void)
{
	FILE *file = fopen("/proc/schedstat", "re");
	char line[1024];
	double sum = 0, ns;

	if (!file)
		die("/proc/schedstat: %s", strerror(errno));
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "cpu", 3) &&
		    sscanf(line, "%*s %*s %*s %*s %*s %*s %*s %lf", &ns) == 1)
			sum += ns;
	fclose(file);
	return sum;
}

static double self_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static bool device_state(char *buf, size_t size)
{
	return devctl_request("{\"cmd\":\"counters\"}", buf, size);
}

void meter_init(unsigned int profiles)
{
	next_profile = profiles;
}

void meter_begin(struct meter *m)
{
	m->has_device = device_state(m->device, sizeof(m->device));
	/* What the request woke up ends before the figures begin. */
	sleep_ms(1);
	m->kthreads_ns = kthreads_ns();
	m->tasks_ns = tasks_ns();
	m->self_ns = self_ns();
	m->at = now();
	MARK_BEGIN;
}

/* Adds every counter of the device that moved. */
static void report_device(const struct meter *m, struct report *r)
{
	char after[sizeof(m->device)], key[72];
	const char *at, *end;
	uint64_t a, b;

	if (!m->has_device || !device_state(after, sizeof(after)))
		return;
	for (at = after; (at = strchr(at, '"')); at = end + 1) {
		end = strchr(at + 1, '"');
		if (!end)
			break;
		if (end[1] != ':' || end - at > 60)
			continue;
		snprintf(key, sizeof(key), "%.*s", (int)(end - at - 1), at + 1);
		a = 0;
		if (!devctl_number(after, key, &b))
			continue;
		devctl_number(m->device, key, &a);
		if (b == a)
			continue;
		snprintf(key, sizeof(key), "device.%.*s", (int)(end - at - 1), at + 1);
		report_u64(r, key, b - a);
	}
}

void meter_end(struct meter *m, struct report *r, const char *line, const char *section,
	       unsigned int round, uint64_t n)
{
	double self, seconds;

	MARK_END;
	seconds = now() - m->at;
	self = self_ns() - m->self_ns;
	/* Worker threads are charged when they leave the processor. */
	sleep_ms(1);
	report_begin(r, line);
	report_str(r, "section", section);
	report_u64(r, "round", round);
	report_u64(r, "n", n);
	report_u64(r, "profile", next_profile++);
	report_u64(r, "kthreads_ns", kthreads_ns() - m->kthreads_ns);
	report_u64(r, "tasks_ns", tasks_ns() - m->tasks_ns);
	report_u64(r, "self_ns", self);
	report_seconds(r, "seconds", seconds);
	report_device(m, r);
}

void meter_report(struct meter *m, const char *line, const char *section,
		  unsigned int round, uint64_t n)
{
	struct report r;

	meter_end(m, &r, line, section, round, n);
	report_end(&r);
}
