/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * What mr.c and umr.c have for On-Demand Paging, and it for them: in a kernel
 * tree, prototypes of mlx5_ib.h and umr.h.
 */
#ifndef MLX5R_ODP_H
#define MLX5R_ODP_H

#include <linux/types.h>

struct ib_umem_odp;
struct mlx5_ib_dev;
struct mlx5_ib_mr;
struct mlx5r_umr_context;
struct mlx5r_umr_wqe;

/*
 * A mirror of memory of the current process, for an MR that is about to be made.
 * It begins with a struct ib_umem_odp of which nothing but `umem`, `page_shift`
 * and the notifier's addresses are in use; mlx5r_odp_mirror_put() frees it, when
 * the MKey is gone, and nothing else does.
 */
struct ib_umem_odp *mlx5r_odp_mirror_get(struct mlx5_ib_dev *dev, u64 start,
					 u64 length, u64 iova, int access);
void mlx5r_odp_mirror_put(struct ib_umem_odp *odp);

/* mlx5r_umr_revoke_mr(), after every UMR that the mirror has posted. */
int mlx5r_odp_revoke(struct mlx5_ib_mr *mr);
/*
 * The same because the MKey is about to be destroyed: even if it cannot be revoked,
 * no UMR names it before mlx5r_odp_closed(), which says whether it was destroyed.
 */
void mlx5r_odp_close(struct mlx5_ib_mr *mr);
void mlx5r_odp_closed(struct mlx5_ib_mr *mr, bool destroyed);

int mlx5r_umr_post(struct mlx5_ib_dev *dev, u32 mkey,
		   struct mlx5r_umr_context *context,
		   struct mlx5r_umr_wqe *wqe);
int mlx5r_umr_wait(struct mlx5_ib_dev *dev, u32 mkey,
		   struct mlx5r_umr_context *context,
		   struct mlx5r_umr_wqe *wqe);

#endif
