/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * A userfaultfd in missing mode: whoever touches the range, a device's fault handler
 * included, waits until the pages are given.
 */
#ifndef CONFORMANCE_UFFD_H
#define CONFORMANCE_UFFD_H

#include <stdbool.h>
#include <stddef.h>

/* Returns the descriptor; dies if the kernel or the privileges lack it. */
int uffd_hold(void *addr, size_t len);

/* Waits until somebody is held. False after TIMEOUT_MS. */
bool uffd_wait(int fd, int timeout_ms);

/* Gives zero pages to the range and wakes everybody. False if the range is gone. */
bool uffd_release(int fd, void *addr, size_t len);

#endif
