// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "pagemap.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

size_t absent_pages(const void *addr, size_t pages)
{
	off_t off = (uintptr_t)addr / PAGE * sizeof(uint64_t);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	size_t i, absent = 0;
	uint64_t entry[512];
	ssize_t n;

	if (fd < 0)
		die("/proc/self/pagemap: %s", strerror(errno));
	while (pages) {
		size_t want = pages < 512 ? pages : 512;

		n = pread(fd, entry, want * sizeof(*entry), off);
		if (n != (ssize_t)(want * sizeof(*entry)))
			die("/proc/self/pagemap: short read");
		for (i = 0; i < want; i++)
			absent += !(entry[i] >> 63);	/* bit 63: present */
		off += n;
		pages -= want;
	}
	close(fd);
	return absent;
}
