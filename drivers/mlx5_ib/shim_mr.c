// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * As shim.c, about regions: keys, implicit MRs, dma-bufs. No policy in here.
 */

#include "mlx5_ib.h"

#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <rdma/ib_umem_odp.h>

#include "umr.h"

#include "odp.h"
#include "shim.h"

/* --- Keys and regions ------------------------------------------------------ */

static enum mlx5r_odp_key kind_of(struct mlx5_ib_mkey *mkey, u32 key,
				  struct mlx5_ib_mr **mr)
{
	if (!mkey)
		return MLX5R_ODP_KEY_NONE;

	switch (mkey->type) {
	case MLX5_MKEY_MW:
	case MLX5_MKEY_INDIRECT_DEVX:
		/* Their users change the variant as they like. */
		return MLX5R_ODP_KEY_INDIRECT;
	case MLX5_MKEY_MR:
		if (mkey->key != key)
			return MLX5R_ODP_KEY_STALE;
		*mr = container_of(mkey, struct mlx5_ib_mr, mmkey);
		if (is_dmabuf_mr(*mr))
			return MLX5R_ODP_KEY_DMABUF;
		if (!is_odp_mr(*mr))
			return MLX5R_ODP_KEY_OTHER;
		return (*mr)->is_odp_implicit ? MLX5R_ODP_KEY_IMPLICIT :
						MLX5R_ODP_KEY_MR;
	case MLX5_MKEY_NULL:
		if (mkey->key != key)
			return MLX5R_ODP_KEY_STALE;
		*mr = container_of(mkey, struct mlx5_ib_mr, null_mmkey);
		return MLX5R_ODP_KEY_IMPLICIT;
	case MLX5_MKEY_IMPLICIT_CHILD:
		if (mkey->key != key)
			return MLX5R_ODP_KEY_STALE;
		*mr = container_of(mkey, struct mlx5_ib_mr, mmkey)->parent;
		return MLX5R_ODP_KEY_IMPLICIT;
	default:
		return mkey->key == key ? MLX5R_ODP_KEY_OTHER :
					  MLX5R_ODP_KEY_STALE;
	}
}

enum mlx5r_odp_key mlx5r_odp_get_mr(struct mlx5_ib_dev *dev, u32 key,
				    struct mlx5_ib_mr **mr)
{
	struct mlx5_ib_mkey *mkey;
	enum mlx5r_odp_key kind;

	xa_lock(&dev->odp_mkeys);
	mkey = xa_load(&dev->odp_mkeys, mlx5_base_mkey(key));
	kind = kind_of(mkey, key, mr);
	/*
	 * While a key is in the array it holds a reference itself; but the keys
	 * below an implicit MR are there for longer than its own.
	 */
	if ((kind == MLX5R_ODP_KEY_MR || kind == MLX5R_ODP_KEY_IMPLICIT ||
	     kind == MLX5R_ODP_KEY_DMABUF) && !mlx5r_odp_hold_mr(*mr))
		kind = MLX5R_ODP_KEY_NONE;
	xa_unlock(&dev->odp_mkeys);

	return kind;
}

int mlx5r_odp_get_prefetchable(struct ib_pd *pd, bool write, u32 key,
			       struct mlx5_ib_mr **mr)
{
	struct mlx5_ib_dev *dev = to_mdev(pd->device);
	struct mlx5_ib_mkey *mkey;
	int err = 0;

	xa_lock(&dev->odp_mkeys);
	mkey = xa_load(&dev->odp_mkeys, mlx5_base_mkey(key));
	if (!mkey || mkey->key != key) {
		err = -ENOENT;
		goto unlock;
	}
	if (mkey->type != MLX5_MKEY_MR) {
		err = -EINVAL;
		goto unlock;
	}
	*mr = container_of(mkey, struct mlx5_ib_mr, mmkey);
	if ((*mr)->ibmr.pd != pd || (write && !(*mr)->umem->writable))
		err = -EPERM;
	else
		refcount_inc(&mkey->usecount);
unlock:
	xa_unlock(&dev->odp_mkeys);
	return err;
}

bool mlx5r_odp_hold_mr(struct mlx5_ib_mr *mr)
{
	return refcount_inc_not_zero(&mr->mmkey.usecount);
}

void mlx5r_odp_put_mr(struct mlx5_ib_mr *mr)
{
	mlx5r_deref_odp_mkey(&mr->mmkey);
}

struct mlx5_ib_mkey *mlx5r_odp_get_indirect(struct mlx5_ib_dev *dev, u32 key,
					    u32 *entries)
{
	struct mlx5_ib_mkey *mkey;
	struct mlx5_ib_mr *mr;

	xa_lock(&dev->odp_mkeys);
	mkey = xa_load(&dev->odp_mkeys, mlx5_base_mkey(key));
	if (kind_of(mkey, key, &mr) == MLX5R_ODP_KEY_INDIRECT) {
		refcount_inc(&mkey->usecount);
		*entries = mkey->ndescs;
	} else {
		mkey = NULL;
	}
	xa_unlock(&dev->odp_mkeys);
	return mkey;
}

void mlx5r_odp_put_indirect(struct mlx5_ib_mkey *mkey)
{
	mlx5r_deref_odp_mkey(mkey);
}

u8 mlx5r_odp_max_indirection(struct mlx5_ib_dev *dev)
{
	return MLX5_CAP_GEN(dev->mdev, max_indirection);
}

bool mlx5r_odp_is_closing(struct mlx5_ib_mr *mr)
{
	struct mlx5_ib_mr *known = mr->parent ?: mr;

	return xa_load(&mr_to_mdev(known)->odp_mkeys,
		       mlx5_base_mkey(known->mmkey.key)) != &known->mmkey;
}

bool mlx5r_odp_is_implicit(struct mlx5_ib_mr *mr)
{
	return mr->is_odp_implicit;
}

u32 mlx5r_odp_mkey(struct mlx5_ib_mr *mr)
{
	return mr->mmkey.key;
}

u64 mlx5r_odp_iova(struct mlx5_ib_mr *mr)
{
	return mr->ibmr.iova;
}

u64 mlx5r_odp_length(struct mlx5_ib_mr *mr)
{
	return mr->umem->length;
}

bool mlx5r_odp_is_writable(struct mlx5_ib_mr *mr)
{
	return mr->umem->writable;
}

bool mlx5r_odp_is_dmabuf(struct mlx5_ib_mr *mr)
{
	return is_dmabuf_mr(mr);
}

struct ib_umem_odp *mlx5r_odp_umem(struct mlx5_ib_mr *mr)
{
	return to_ib_umem_odp(mr->umem);
}

struct ib_pd *mlx5r_odp_pd(struct mlx5_ib_mr *mr)
{
	return mr->ibmr.pd;
}

u32 mlx5r_odp_pdn(struct ib_pd *pd)
{
	return to_mpd(pd)->pdn;
}

u32 mlx5r_odp_terminate_key(struct mlx5_ib_dev *dev)
{
	return be32_to_cpu(dev->mkeys.terminate_scatter_list_mkey);
}

static s64 cpu_pages(s64 pages)
{
	return pages >> (PAGE_SHIFT - MLX5_ADAPTER_PAGE_SHIFT);
}

static struct mlx5_ib_mr *counted(struct mlx5_ib_mr *mr)
{
	return mr->parent ?: mr;
}

void mlx5r_odp_count_faults(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats_with_handled(counted(mr), faults,
					   cpu_pages(pages));
}

void mlx5r_odp_count_invalidations(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats_with_handled(counted(mr), invalidations,
					   cpu_pages(pages));
}

void mlx5r_odp_count_prefetch(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats(counted(mr), prefetch, cpu_pages(pages));
}

/* --- dma-bufs ------------------------------------------------------------- */

static struct dma_resv *resv(struct mlx5_ib_mr *mr)
{
	return to_ib_umem_dmabuf(mr->umem)->attach->dmabuf->resv;
}

void mlx5r_dmabuf_lock(struct mlx5_ib_mr *mr)
{
	dma_resv_lock(resv(mr), NULL);
}

void mlx5r_dmabuf_unlock(struct mlx5_ib_mr *mr)
{
	dma_resv_unlock(resv(mr));
}

int mlx5r_dmabuf_map(struct mlx5_ib_mr *mr)
{
	return ib_umem_dmabuf_map_pages(to_ib_umem_dmabuf(mr->umem));
}

void mlx5r_dmabuf_unmap(struct mlx5_ib_mr *mr)
{
	ib_umem_dmabuf_unmap_pages(to_ib_umem_dmabuf(mr->umem));
}

u32 mlx5r_dmabuf_page_shift(struct mlx5_ib_mr *mr)
{
	unsigned long size = mlx5_umem_dmabuf_find_best_pgsz(
		to_ib_umem_dmabuf(mr->umem),
		mr->data_direct ? MLX5_MKC_ACCESS_MODE_KSM :
				  MLX5_MKC_ACCESS_MODE_MTT);

	return size ? order_base_2(size) : 0;
}

int mlx5r_dmabuf_write(struct mlx5_ib_mr *mr, u32 page_shift, bool enable,
		       u32 pdn)
{
	u32 flags = enable ? MLX5_IB_UPD_XLT_ENABLE : 0;
	u32 before = mr->page_shift;
	int err;

	if (page_shift != before && mr->dmabuf_faulted) {
		err = mlx5r_umr_dmabuf_update_pgsz(mr, flags, pdn, page_shift);
	} else {
		mr->page_shift = page_shift;
		if (mr->data_direct)
			err = mlx5r_umr_update_data_direct_ksm_pas(mr, flags);
		else
			err = mlx5r_umr_update_mr_pas(mr, flags, pdn);
	}
	if (err)
		mr->page_shift = before;
	else
		mr->dmabuf_faulted = 1;
	return err;
}

u64 mlx5r_dmabuf_pages(struct mlx5_ib_mr *mr)
{
	return (u64)ib_umem_num_pages(mr->umem)
	       << (PAGE_SHIFT - MLX5_ADAPTER_PAGE_SHIFT);
}

u32 mlx5r_dmabuf_pdn(struct mlx5_ib_mr *mr, struct ib_pd *pd)
{
	return mr->data_direct ? mr_to_mdev(mr)->ddr.pdn : to_mpd(pd)->pdn;
}

/* --- Implicit MRs --------------------------------------------------------------- */

struct ib_pd *mlx5r_odp_ibpd(struct mlx5_ib_pd *pd)
{
	return &pd->ibpd;
}

struct mlx5_ib_dev *mlx5r_odp_pd_dev(struct ib_pd *pd)
{
	return to_mdev(pd->device);
}

static struct mlx5_ib_mr *alloc_mr(struct ib_pd *pd, int access, int mode,
				   struct ib_umem_odp *odp, int entries)
{
	struct mlx5_ib_dev *dev = to_mdev(pd->device);
	struct mlx5_ib_mr *mr;

	mr = mlx5_mr_cache_alloc(dev, access, mode, entries);
	if (IS_ERR(mr))
		return mr;

	mr->access_flags = access;
	mr->ibmr.pd = pd;
	mr->ibmr.device = &dev->ib_dev;
	mr->ibmr.lkey = mr->mmkey.key;
	mr->ibmr.rkey = mr->mmkey.key;
	mr->umem = &odp->umem;
	return mr;
}

struct mlx5_ib_mr *mlx5r_odp_alloc_parent(struct ib_pd *pd, int access,
					  struct ib_umem_odp *odp, int entries)
{
	struct mlx5_ib_mr *mr;

	mr = alloc_mr(pd, access, MLX5_MKC_ACCESS_MODE_KSM, odp, entries);
	if (IS_ERR(mr))
		return mr;
	mr->is_odp_implicit = true;
	xa_init(&mr->implicit_children);
	return mr;
}

struct mlx5_ib_mr *mlx5r_odp_alloc_child(struct mlx5_ib_mr *parent,
					 struct ib_umem_odp *odp, int entries)
{
	struct mlx5_ib_mr *mr;

	mr = alloc_mr(parent->ibmr.pd, parent->access_flags,
		      MLX5_MKC_ACCESS_MODE_MTT, odp, entries);
	if (IS_ERR(mr))
		return mr;
	mr->ibmr.iova = odp->umem.address;
	mr->parent = parent;
	mr->mmkey.type = MLX5_MKEY_IMPLICIT_CHILD;
	return mr;
}

int mlx5r_odp_make_known(struct mlx5_ib_mr *mr)
{
	return mlx5r_store_odp_mkey(mr_to_mdev(mr), &mr->mmkey);
}

int mlx5r_odp_dereg(struct mlx5_ib_mr *mr)
{
	return mlx5_ib_dereg_mr(&mr->ibmr, NULL);
}

/* As alloc_implicit_mr_null_mkey(): every access that `parent` allows faults. */
int mlx5r_odp_make_null_key(struct mlx5_ib_mr *parent)
{
	u32 in[MLX5_ST_SZ_DW(create_mkey_in) + 16] = {};
	struct mlx5_ib_dev *dev = mr_to_mdev(parent);
	void *mkc = MLX5_ADDR_OF(create_mkey_in, in, memory_key_mkey_entry);
	int err;

	MLX5_SET(create_mkey_in, in, translations_octword_actual_size, 4);
	MLX5_SET(create_mkey_in, in, pg_access, 1);
	MLX5_SET(mkc, mkc, a, 1);
	MLX5_SET(mkc, mkc, rw, 1);
	MLX5_SET(mkc, mkc, rr, 1);
	MLX5_SET(mkc, mkc, lw, 1);
	MLX5_SET(mkc, mkc, lr, 1);
	MLX5_SET(mkc, mkc, access_mode_1_0, MLX5_MKC_ACCESS_MODE_MTT);
	MLX5_SET(mkc, mkc, translations_octword_size, 4);
	MLX5_SET(mkc, mkc, log_page_size, 61);
	MLX5_SET(mkc, mkc, length64, 1);
	MLX5_SET(mkc, mkc, pd, to_mpd(parent->ibmr.pd)->pdn);
	MLX5_SET(mkc, mkc, qpn, 0xffffff);

	err = mlx5_core_create_mkey(dev->mdev, &parent->null_mmkey.key, in,
				    sizeof(in));
	if (err)
		return err;

	init_waitqueue_head(&parent->null_mmkey.wait);
	parent->null_mmkey.type = MLX5_MKEY_NULL;
	err = mlx5r_store_odp_mkey(dev, &parent->null_mmkey);
	if (err) {
		mlx5_core_destroy_mkey(dev->mdev, parent->null_mmkey.key);
		parent->null_mmkey.key = 0;
	}
	return err;
}

void mlx5r_odp_destroy_null_key(struct mlx5_ib_mr *parent)
{
	struct mlx5_ib_dev *dev = mr_to_mdev(parent);

	if (!parent->null_mmkey.key)
		return;
	xa_erase(&dev->odp_mkeys, mlx5_base_mkey(parent->null_mmkey.key));
	mlx5_core_destroy_mkey(dev->mdev, parent->null_mmkey.key);
}

u32 mlx5r_odp_null_key(struct mlx5_ib_mr *parent)
{
	return parent->null_mmkey.key ?:
	       be32_to_cpu(mr_to_mdev(parent)->mkeys.null_mkey);
}

int mlx5r_odp_enable_parent(struct mlx5_ib_mr *mr, int entries, int shift)
{
	return mlx5r_umr_update_xlt(mr, 0, entries, shift,
				    MLX5_IB_UPD_XLT_INDIRECT |
					    MLX5_IB_UPD_XLT_ZAP |
					    MLX5_IB_UPD_XLT_ENABLE,
				    to_mpd(mr->ibmr.pd)->pdn);
}

bool mlx5r_odp_memory_scheme(struct mlx5_ib_dev *dev)
{
	return MLX5_CAP_ODP(dev->mdev, mem_page_fault);
}

u64 mlx5r_odp_task_size(void)
{
	return TASK_SIZE;
}

bool mlx5r_odp_can_load(struct mlx5_ib_dev *dev, size_t bytes)
{
	return mlx5r_umr_can_load_pas(dev, bytes);
}
