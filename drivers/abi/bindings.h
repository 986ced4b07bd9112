/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* What bindings.params lists is bound from these. */

#include <linux/hmm.h>
#include <linux/hmm-dma.h>
#include <linux/mmu_notifier.h>
#include <rdma/ib_umem_odp.h>
