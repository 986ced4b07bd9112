/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * The two halves of hmm_dmirror_rust.ko: what mirror_entry.rs implements for the kernel's own
 * test_hmm.c, which owns the device's memory and migrates to it, and what it needs from C.
 */

#ifndef HMM_DMIRROR_MIRROR_H
#define HMM_DMIRROR_MIRROR_H

#include <linux/types.h>

struct dmirror_device;
struct hmm_dmirror_cmd;
struct hmm_dmirror_mirror;
struct hmm_dmirror_move;
struct mm_struct;
struct page;

/* --- mirror_entry.rs ----------------------------------------------------------- */

/* A mirror of all of the current process's memory, for the device that owns its pages. */
struct hmm_dmirror_mirror *
hmm_dmirror_mirror_open(struct dmirror_device *mdevice);
void hmm_dmirror_mirror_release(struct hmm_dmirror_mirror *mirror);

/* The commands of test_hmm_uapi.h, by whose names they go. */
int hmm_dmirror_mirror_read(struct hmm_dmirror_mirror *mirror,
			    struct hmm_dmirror_cmd *cmd);
int hmm_dmirror_mirror_write(struct hmm_dmirror_mirror *mirror,
			     struct hmm_dmirror_cmd *cmd);
int hmm_dmirror_mirror_snapshot(struct hmm_dmirror_mirror *mirror,
				struct hmm_dmirror_cmd *cmd);
int hmm_dmirror_mirror_exclusive(struct hmm_dmirror_mirror *mirror,
				 struct hmm_dmirror_cmd *cmd);
int hmm_dmirror_mirror_check_exclusive(struct hmm_dmirror_mirror *mirror,
				       struct hmm_dmirror_cmd *cmd);
/* A read that faults nothing in: -ENOENT for a page that the device does not have. */
int hmm_dmirror_mirror_peek(struct hmm_dmirror_mirror *mirror,
			    struct hmm_dmirror_cmd *cmd);

/*
 * The current task migrates pages between start and end to the device: without the mmap lock,
 * as hmm_dmirror_move_end(), which has the device use what was moved.
 */
struct hmm_dmirror_move *
hmm_dmirror_move_begin(struct hmm_dmirror_mirror *mirror, unsigned long start,
		       unsigned long end);
int hmm_dmirror_move_end(struct hmm_dmirror_move *move);
/* These pages are about to be copied: the device has to let go of them. */
void hmm_dmirror_move_withdraw(struct hmm_dmirror_move *move,
			       unsigned long addr, unsigned long npages);
/* These pages are in the device's memory now, and locked still. */
void hmm_dmirror_move_moved(struct hmm_dmirror_move *move, unsigned long addr,
			    unsigned long npages);

/* --- test_hmm.c ------------------------------------------------------------------ */

/* What HMM_DMIRROR_SNAPSHOT reports of a page: entry is what hmm_range_fault() says of it. */
unsigned char hmm_dmirror_protection(struct dmirror_device *mdevice,
				     unsigned long entry);

/* --- shim.c ------------------------------------------------------------------------ */

/* Where the contents of a page are: a page of device-private memory has another behind it. */
unsigned long hmm_dmirror_backing_pfn(unsigned long pfn);
void hmm_dmirror_copy_from_page(void *to, unsigned long pfn);
void hmm_dmirror_copy_to_page(unsigned long pfn, const void *from);

/* The page at addr, exclusive to a device until hmm_dmirror_put_exclusive() at least. */
struct page *hmm_dmirror_make_exclusive(struct mm_struct *mm,
					unsigned long addr, void *owner,
					unsigned long *pfn);
void hmm_dmirror_put_exclusive(struct page *page);

#endif
