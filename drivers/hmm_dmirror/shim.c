// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* Inline functions and macros that the Rust half of hmm_dmirror_rust.ko needs. No policy. */

#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>

#include "mirror.h"

unsigned long hmm_dmirror_backing_pfn(unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);
	struct folio *folio = page_folio(page);
	struct page *backing;

	if (!is_device_private_page(page))
		return pfn;
	/* test_hmm.c notes it in the first page of a folio. */
	backing = folio_zone_device_data(folio);
	return page_to_pfn(backing) + folio_page_idx(folio, page);
}

void hmm_dmirror_copy_from_page(void *to, unsigned long pfn)
{
	memcpy_from_page(to, pfn_to_page(pfn), 0, PAGE_SIZE);
}

void hmm_dmirror_copy_to_page(unsigned long pfn, const void *from)
{
	memcpy_to_page(pfn_to_page(pfn), 0, from, PAGE_SIZE);
}

struct page *hmm_dmirror_make_exclusive(struct mm_struct *mm,
					unsigned long addr, void *owner,
					unsigned long *pfn)
{
	struct folio *folio;
	struct page *page;

	mmap_read_lock(mm);
	page = make_device_exclusive(mm, addr, owner, &folio);
	mmap_read_unlock(mm);
	if (!IS_ERR(page))
		*pfn = page_to_pfn(page);
	return page;
}

void hmm_dmirror_put_exclusive(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_unlock(folio);
	folio_put(folio);
}
