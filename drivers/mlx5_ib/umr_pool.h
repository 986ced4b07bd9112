/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * UMRs that write translations, with buffers that are mapped for DMA once.
 *
 * A zap must not allocate, and waits for no other zap: when all are in use there
 * is a last one, which is held for as long as its UMR takes and no longer.
 */
#ifndef MLX5R_ODP_UMR_POOL_H
#define MLX5R_ODP_UMR_POOL_H

#include <linux/types.h>

struct mlx5_ib_dev;
struct mlx5_ib_mr;
struct mlx5r_odp_umr;
struct mlx5r_odp_umrs;

/* Of MTTs or KSMs: as much as a chunk has. */
#define MLX5R_ODP_UMR_BYTES 4096

struct mlx5r_odp_umrs *mlx5r_odp_umrs_create(struct mlx5_ib_dev *dev);
/* No UMR is in use any more. */
void mlx5r_odp_umrs_destroy(struct mlx5r_odp_umrs *umrs);

/* One that nobody uses, or NULL. Does not sleep. */
struct mlx5r_odp_umr *mlx5r_odp_umr_get(struct mlx5r_odp_umrs *umrs);
/* The last one, when nobody uses it. */
struct mlx5r_odp_umr *mlx5r_odp_umr_get_last(struct mlx5r_odp_umrs *umrs);
/* Either, when it is not under way. */
void mlx5r_odp_umr_put(struct mlx5r_odp_umr *umr);

/* The MLX5R_ODP_UMR_BYTES bytes that it writes. */
void *mlx5r_odp_umr_xlt(struct mlx5r_odp_umr *umr);
/*
 * Writes `bytes` of them, whole blocks, into the table of the MKey of `mr` from
 * byte `first` on; mlx5r_odp_umr_wait() has to follow. If `blank`, MTTs that are not
 * present are written instead.
 */
int mlx5r_odp_umr_post(struct mlx5r_odp_umr *umr, struct mlx5_ib_mr *mr,
		       u64 first, u32 bytes, bool blank);
/* -EAGAIN if it was flushed because of another one. */
int mlx5r_odp_umr_wait(struct mlx5r_odp_umr *umr, struct mlx5_ib_mr *mr);

#endif
