// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Inline functions and macros for the abstractions beside this file, and for the
 * drivers' own of ib_umem_odp. In a kernel tree these are
 * rust/helpers/{dma,hmm,ib_umem_odp,mmu_notifier,pid}.c.
 */

#include <linux/dma-mapping.h>
#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/hugetlb.h>
#include <linux/iommu.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/pci-p2pdma.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/userfaultfd_k.h>
#include <rdma/ib_umem_odp.h>
#include <rdma/ib_verbs.h>

/* linux/mmu_notifier.h */

bool rust_helper_mmu_interval_read_retry(struct mmu_interval_notifier *sub,
					 unsigned long seq);
bool rust_helper_mmu_interval_read_retry(struct mmu_interval_notifier *sub,
					 unsigned long seq)
{
	return mmu_interval_read_retry(sub, seq);
}

void rust_helper_mmu_interval_set_seq(struct mmu_interval_notifier *sub,
				      unsigned long seq);
void rust_helper_mmu_interval_set_seq(struct mmu_interval_notifier *sub,
				      unsigned long seq)
{
	mmu_interval_set_seq(sub, seq);
}

/* linux/pid.h */

struct pid *rust_helper_get_pid(struct pid *pid);
struct pid *rust_helper_get_pid(struct pid *pid)
{
	return get_pid(pid);
}

/* linux/dma-mapping.h */

int rust_helper_dma_mapping_error(struct device *dev, dma_addr_t addr);
int rust_helper_dma_mapping_error(struct device *dev, dma_addr_t addr)
{
	return dma_mapping_error(dev, addr);
}

/* linux/iommu.h */

unsigned long rust_helper_iommu_pgsize_bitmap(struct device *dev);
unsigned long rust_helper_iommu_pgsize_bitmap(struct device *dev)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	return domain ? domain->pgsize_bitmap : 0;
}

/* mm/hmm.c:hmm_dma_map_alloc(): what it refuses */

bool rust_helper_hmm_dma_needs_bounce(struct device *dev);
bool rust_helper_hmm_dma_needs_bounce(struct device *dev)
{
#ifdef CONFIG_DMA_NEED_SYNC
	if (!dev_dma_skip_sync(dev))
		return true;
#endif
	return dma_addressing_limited(dev);
}

/* linux/mm.h */

bool rust_helper_vma_may_read_ahead(struct vm_area_struct *vma, bool write);
bool rust_helper_vma_may_read_ahead(struct vm_area_struct *vma, bool write)
{
	return (!write || vma_is_anonymous(vma)) && !userfaultfd_armed(vma) &&
	       !(vma->vm_flags & (VM_IO | VM_PFNMAP | VM_RAND_READ));
}

/* linux/hmm.h: the page of an entry */

bool rust_helper_hmm_pfn_is_p2pdma(unsigned long hmm_pfn);
bool rust_helper_hmm_pfn_is_p2pdma(unsigned long hmm_pfn)
{
	return is_pci_p2pdma_page(hmm_pfn_to_page(hmm_pfn));
}

void rust_helper_hmm_pfn_get(unsigned long hmm_pfn);
void rust_helper_hmm_pfn_get(unsigned long hmm_pfn)
{
	get_page(hmm_pfn_to_page(hmm_pfn));
}

void rust_helper_hmm_pfn_set_dirty(unsigned long hmm_pfn);
void rust_helper_hmm_pfn_set_dirty(unsigned long hmm_pfn)
{
	/*
	 * The page lock cannot be had here: notifiers are called with and
	 * without it. Until the notifier returns, the mapping stays.
	 */
	set_page_dirty(compound_head(hmm_pfn_to_page(hmm_pfn)));
}

void rust_helper_hmm_pfn_put(unsigned long hmm_pfn);
void rust_helper_hmm_pfn_put(unsigned long hmm_pfn)
{
	put_page(hmm_pfn_to_page(hmm_pfn));
}

/* rdma/ib_verbs.h */

bool rust_helper_ib_uses_virt_dma(struct ib_device *dev);
bool rust_helper_ib_uses_virt_dma(struct ib_device *dev)
{
	return ib_uses_virt_dma(dev);
}

struct device *rust_helper_ib_dma_device(struct ib_device *dev);
struct device *rust_helper_ib_dma_device(struct ib_device *dev)
{
	return dev->dma_device;
}

bool rust_helper_ib_access_writable(int access);
bool rust_helper_ib_access_writable(int access)
{
	return ib_access_writable(access);
}

unsigned int rust_helper_ib_access_page_shift(int access);
unsigned int rust_helper_ib_access_page_shift(int access)
{
#ifdef CONFIG_HUGETLB_PAGE
	if (access & IB_ACCESS_HUGETLB)
		return HPAGE_SHIFT;
#endif
	return PAGE_SHIFT;
}

/* rdma/ib_umem_odp.h: implicit roots have a lock class of their own */

void rust_helper_umem_odp_root_mutex_init(struct mutex *umem_mutex);
void rust_helper_umem_odp_root_mutex_init(struct mutex *umem_mutex)
{
	mutex_init(umem_mutex);
}

void rust_helper_umem_odp_mutex_init(struct mutex *umem_mutex);
void rust_helper_umem_odp_mutex_init(struct mutex *umem_mutex)
{
	mutex_init(umem_mutex);
	/* Reclaim invalidates, and invalidation takes the lock: tell lockdep. */
	if (IS_ENABLED(CONFIG_LOCKDEP)) {
		fs_reclaim_acquire(GFP_KERNEL);
		mutex_lock(umem_mutex);
		mutex_unlock(umem_mutex);
		fs_reclaim_release(GFP_KERNEL);
	}
}
