/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* What of this process's memory is mapped in. Needs root. */
#ifndef CONFORMANCE_PAGEMAP_H
#define CONFORMANCE_PAGEMAP_H

#include <stddef.h>

/* How many of PAGES pages from ADDR on are not present; what is not mapped is not. */
size_t absent_pages(const void *addr, size_t pages);

#endif
