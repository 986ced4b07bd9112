// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "fail_nth.h"

#include "report.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEBUGFS	"/sys/kernel/debug/"
#define WORKERS	1024

/* What may fail, and what else is asked of it. */
static const char *const kinds[] = { "failslab", "fail_page_alloc" };

/* The workqueues' threads that are armed. */
static int workers[WORKERS];
static unsigned int count;

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	int error = errno;

	if (fd >= 0)
		close(fd);
	errno = error;
	return ok;
}

static void set(const char *kind, const char *what, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), DEBUGFS "%s/%s", kind, what);
	if (!write_text(path, value))
		die("%s: %s (a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS, as root?)", path,
		    strerror(errno));
}

static void set_all(const char *what, const char *value)
{
	unsigned int i;

	for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		set(kinds[i], what, value);
}

/* Counts only what has an address from FIRST to END on its stack. */
static void set_filter(uint64_t first, uint64_t end)
{
	char text[32];

	snprintf(text, sizeof(text), "%#llx", (unsigned long long)first);
	set_all("require-start", text);
	snprintf(text, sizeof(text), "%#llx", (unsigned long long)end);
	set_all("require-end", text);
}

void fail_nth_open(void)
{
	set_all("verbose", "0");
	set_all("ignore-gfp-wait", "N");
	set("fail_page_alloc", "ignore-gfp-highmem", "N");
	set("fail_page_alloc", "min-order", "0");
	set_all("stacktrace-depth", "32");
	set_filter(0, UINT64_MAX);
}

void fail_nth_close(void)
{
	set_all("ignore-gfp-wait", "Y");
	set("fail_page_alloc", "ignore-gfp-highmem", "Y");
	set("fail_page_alloc", "min-order", "1");
	set_filter(0, UINT64_MAX);
}

static void fail_nth_path(char *path, size_t size, int pid)
{
	if (pid)
		snprintf(path, size, "/proc/%d/task/%d/fail-nth", pid, pid);
	else
		snprintf(path, size, "/proc/thread-self/fail-nth");
}

/* False if there is no such task any more. */
static bool set_nth(int pid, unsigned int n)
{
	char path[64], text[16];

	fail_nth_path(path, sizeof(path), pid);
	snprintf(text, sizeof(text), "%u", n);
	if (write_text(path, text))
		return true;
	if (!pid || (errno != ENOENT && errno != ESRCH))
		die("%s: %s (a kernel with CONFIG_FAULT_INJECTION, as root?)", path,
		    strerror(errno));
	return false;
}

/* What is left of it; 0 once one has failed. Negative if there is no such task any more. */
static long nth_left(int pid)
{
	char path[64], text[16] = "";
	ssize_t len;
	int fd;

	fail_nth_path(path, sizeof(path), pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	len = read(fd, text, sizeof(text) - 1);
	close(fd);
	return len > 0 ? strtol(text, NULL, 10) : -1;
}

void fail_nth_arm(unsigned int n)
{
	set_nth(0, n);
}

bool fail_nth_disarm(void)
{
	bool failed = nth_left(0) == 0;

	set_nth(0, 0);
	return failed;
}

/* Where the code of MODULE is. */
static void find_module(const char *module, uint64_t *first, uint64_t *end)
{
	char line[512], kind, name[256], owner[64];
	unsigned long long address;
	FILE *file = fopen("/proc/kallsyms", "re");

	if (!file)
		die("/proc/kallsyms: %s", strerror(errno));
	*first = UINT64_MAX;
	*end = 0;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%llx %c %255s [%63[^]]]", &address, &kind, name, owner) != 4)
			continue;
		if (strcmp(owner, module) || (kind != 't' && kind != 'T'))
			continue;
		*first = address < *first ? address : *first;
		*end = address > *end ? address : *end;
	}
	fclose(file);
	if (!*end)
		die("/proc/kallsyms has no function of %s", module);
	/* The last function has an end. */
	*end += 4096;
}

void fail_nth_arm_workers(unsigned int n, const char *module)
{
	uint64_t first, end;
	struct dirent *entry;
	char path[300], comm[32];
	DIR *proc = opendir("/proc");
	int fd;

	if (!proc)
		die("/proc: %s", strerror(errno));
	find_module(module, &first, &end);
	set_filter(first, end);
	count = 0;
	while ((entry = readdir(proc)) && count < WORKERS) {
		int pid = atoi(entry->d_name);
		ssize_t len;

		if (pid <= 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/comm", pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		len = read(fd, comm, sizeof(comm) - 1);
		close(fd);
		if (len < 8 || strncmp(comm, "kworker/", 8) || !set_nth(pid, n))
			continue;
		workers[count++] = pid;
	}
	closedir(proc);
	if (!count)
		die("there is no workqueue's thread in /proc");
}

bool fail_nth_disarm_workers(void)
{
	bool failed = false;
	unsigned int i;

	for (i = 0; i < count; i++) {
		failed |= nth_left(workers[i]) == 0;
		set_nth(workers[i], 0);
	}
	count = 0;
	set_filter(0, UINT64_MAX);
	return failed;
}
