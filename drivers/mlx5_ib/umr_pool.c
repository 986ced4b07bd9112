// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Lock order: `last`, then what mlx5r_umr_post() takes. `lock` is a leaf.
 */

#include "mlx5_ib.h"
#include "umr.h"

#include "odp.h"
#include "umr_pool.h"

/* About what the UMR QP takes at a time; a page of memory each. */
#define NUM_UMRS 64

struct mlx5r_odp_umr {
	struct mlx5r_umr_context context;
	struct mlx5r_umr_wqe wqe;
	struct mlx5r_odp_umrs *umrs;
	struct mlx5r_odp_umr *next;
	void *xlt;
	dma_addr_t dma;
};

struct mlx5r_odp_umrs {
	struct mlx5_ib_dev *dev;
	/* Protects free. */
	spinlock_t lock;
	struct mlx5r_odp_umr *free;
	/* Who holds it has all[NUM_UMRS]. */
	struct mutex last;
	/* MTTs none of which is present, for every UMR that writes no other. */
	void *blank;
	dma_addr_t blank_dma;
	struct mlx5r_odp_umr all[NUM_UMRS + 1];
};

void mlx5r_odp_umrs_destroy(struct mlx5r_odp_umrs *umrs)
{
	struct device *ddev = &umrs->dev->mdev->pdev->dev;
	int i;

	for (i = 0; i <= NUM_UMRS; i++)
		if (umrs->all[i].xlt)
			dma_free_coherent(ddev, MLX5R_ODP_UMR_BYTES, umrs->all[i].xlt,
					  umrs->all[i].dma);
	if (umrs->blank)
		dma_free_coherent(ddev, MLX5R_ODP_UMR_BYTES, umrs->blank, umrs->blank_dma);
	mutex_destroy(&umrs->last);
	kvfree(umrs);
}

struct mlx5r_odp_umrs *mlx5r_odp_umrs_create(struct mlx5_ib_dev *dev)
{
	struct device *ddev = &dev->mdev->pdev->dev;
	struct mlx5r_odp_umrs *umrs;
	int i;

	umrs = kvzalloc(sizeof(*umrs), GFP_KERNEL);
	if (!umrs)
		return NULL;
	umrs->dev = dev;
	spin_lock_init(&umrs->lock);
	mutex_init(&umrs->last);

	/* Comes zeroed. */
	umrs->blank = dma_alloc_coherent(ddev, MLX5R_ODP_UMR_BYTES, &umrs->blank_dma,
					 GFP_KERNEL);
	if (!umrs->blank)
		goto destroy;
	for (i = 0; i <= NUM_UMRS; i++) {
		struct mlx5r_odp_umr *umr = &umrs->all[i];

		umr->umrs = umrs;
		umr->xlt = dma_alloc_coherent(ddev, MLX5R_ODP_UMR_BYTES, &umr->dma,
					       GFP_KERNEL);
		if (!umr->xlt)
			goto destroy;
		if (i < NUM_UMRS) {
			umr->next = umrs->free;
			umrs->free = umr;
		}
	}
	return umrs;

destroy:
	mlx5r_odp_umrs_destroy(umrs);
	return NULL;
}

struct mlx5r_odp_umr *mlx5r_odp_umr_get(struct mlx5r_odp_umrs *umrs)
{
	struct mlx5r_odp_umr *umr;

	spin_lock(&umrs->lock);
	umr = umrs->free;
	if (umr)
		umrs->free = umr->next;
	spin_unlock(&umrs->lock);
	return umr;
}

struct mlx5r_odp_umr *mlx5r_odp_umr_get_last(struct mlx5r_odp_umrs *umrs)
{
	mutex_lock(&umrs->last);
	return &umrs->all[NUM_UMRS];
}

void mlx5r_odp_umr_put(struct mlx5r_odp_umr *umr)
{
	struct mlx5r_odp_umrs *umrs = umr->umrs;

	if (umr == &umrs->all[NUM_UMRS]) {
		mutex_unlock(&umrs->last);
		return;
	}
	spin_lock(&umrs->lock);
	umr->next = umrs->free;
	umrs->free = umr;
	spin_unlock(&umrs->lock);
}

void *mlx5r_odp_umr_xlt(struct mlx5r_odp_umr *umr)
{
	return umr->xlt;
}

int mlx5r_odp_umr_post(struct mlx5r_odp_umr *umr, struct mlx5_ib_mr *mr,
		       u64 first, u32 bytes, bool blank)
{
	u64 offset = first / MLX5_IB_UMR_OCTOWORD;
	struct mlx5_wqe_umr_ctrl_seg *ctrl = &umr->wqe.ctrl_seg;
	struct mlx5_wqe_data_seg *data = &umr->wqe.data_seg;
	struct mlx5_ib_dev *dev = umr->umrs->dev;

	/* Nothing of the MKey but its translations: the mask is 0. */
	memset(&umr->wqe, 0, sizeof(umr->wqe));
	ctrl->flags = MLX5_UMR_CHECK_FREE | MLX5_UMR_TRANSLATION_OFFSET_EN;
	ctrl->xlt_octowords = cpu_to_be16(mlx5r_umr_get_xlt_octo(bytes));
	ctrl->xlt_offset = cpu_to_be16(offset & 0xffff);
	ctrl->xlt_offset_47_16 = cpu_to_be32(offset >> 16);
	data->byte_count = cpu_to_be32(bytes);
	data->lkey = cpu_to_be32(dev->umrc.pd->local_dma_lkey);
	data->addr = cpu_to_be64(blank ? umr->umrs->blank_dma : umr->dma);

	return mlx5r_umr_post(dev, mr->mmkey.key, &umr->context, &umr->wqe);
}

int mlx5r_odp_umr_wait(struct mlx5r_odp_umr *umr, struct mlx5_ib_mr *mr)
{
	return mlx5r_umr_wait(umr->umrs->dev, mr->mmkey.key, &umr->context,
			      &umr->wqe);
}
