/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * /dev/odp_exporter, for tests: memory as a dma-buf that moves when it is told to.
 *
 * One buffer for each time the device is opened. read() and write() get at its content
 * wherever it is, at the file's position.
 */
#ifndef ODP_EXPORTER_H
#define ODP_EXPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define ODP_EXPORTER_PATH "/dev/odp_exporter"

struct odp_export {
	__u64 size;	/* in bytes: a multiple of the blocks' size, 1 GiB at most */
	__u32 order;	/* of the blocks of contiguous pages that it is made of */
	__u32 reserved;
};

struct odp_refuse {
	__u32 times;
	__u32 error;	/* a positive errno */
};

struct odp_exported {
	__u64 maps;	/* how often an importer has asked where the memory is */
	__u64 mapped;	/* importers that have been told, and for how many it is so still */
};

/* Makes the buffer, zeroed. Returns a file descriptor of the dma-buf. */
#define ODP_EXPORT	_IOW('o', 1, struct odp_export)
/*
 * Moves it into other memory, of blocks of this order; the old is overwritten. Importers
 * have let go of it by then.
 */
#define ODP_MOVE	_IOW('o', 2, __u32)
/* The next so many importers that ask are refused. */
#define ODP_REFUSE	_IOW('o', 3, struct odp_refuse)
#define ODP_EXPORTED	_IOR('o', 4, struct odp_exported)

#endif
