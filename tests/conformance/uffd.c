// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "uffd.h"
#include "rdma.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int uffd_hold(void *addr, size_t len)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	/* Not UFFD_USER_MODE_ONLY: the device's faults are taken by the kernel. */
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		die("userfaultfd: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_API, &api))
		die("UFFDIO_API: %s", strerror(errno));
	if (ioctl(fd, UFFDIO_REGISTER, &reg))
		die("UFFDIO_REGISTER: %s", strerror(errno));
	return fd;
}

bool uffd_wait(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&pfd, 1, timeout_ms) <= 0)
		return false;
	return read(fd, &msg, sizeof(msg)) == sizeof(msg) &&
	       msg.event == UFFD_EVENT_PAGEFAULT;
}

bool uffd_release(int fd, void *addr, size_t len)
{
	struct uffdio_zeropage zero = {
		.range = { .start = (uintptr_t)addr, .len = len },
	};
	struct uffdio_range range = zero.range;

	/* Pages that came in meanwhile give EEXIST after some progress: go on behind. */
	while (ioctl(fd, UFFDIO_ZEROPAGE, &zero)) {
		if (errno != EEXIST && errno != EAGAIN)
			return false;
		if (zero.zeropage > 0) {
			zero.range.start += zero.zeropage;
			zero.range.len -= zero.zeropage;
		} else if (errno == EEXIST) {
			zero.range.start += PAGE;
			zero.range.len -= PAGE;
		}
		if (!zero.range.len)
			break;
	}
	ioctl(fd, UFFDIO_WAKE, &range);
	return true;
}
