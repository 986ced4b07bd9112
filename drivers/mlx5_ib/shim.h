/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * What the Rust side of mlx5 ODP cannot reach by itself: macros, inline functions
 * and structs that are not bound. No policy in here.
 */

#ifndef MLX5_ODP_SHIM_H
#define MLX5_ODP_SHIM_H

#include <linux/types.h>

struct ib_device;
struct ib_pd;
struct ib_umem_odp;
struct mlx5_core_dev;
struct mlx5_ib_dev;
struct mlx5_ib_mkey;
struct mlx5_ib_mr;
struct mlx5_ib_qp;
struct mlx5_ib_srq;

/* --- Keys and regions ------------------------------------------------------ */

enum mlx5r_odp_key {
	/* No ODP key has this index. */
	MLX5R_ODP_KEY_NONE,
	/* The index is in use with another variant. */
	MLX5R_ODP_KEY_STALE,
	/* An explicit MR; its reference has been taken. */
	MLX5R_ODP_KEY_MR,
	/* An implicit MR, by its own key or one below it; its reference has been taken. */
	MLX5R_ODP_KEY_IMPLICIT,
	/* A key that refers to keys: mlx5r_odp_get_indirect(). */
	MLX5R_ODP_KEY_INDIRECT,
	/* The MR of a dma-buf; its reference has been taken. */
	MLX5R_ODP_KEY_DMABUF,
	/* Any other region. */
	MLX5R_ODP_KEY_OTHER,
};

enum mlx5r_odp_key mlx5r_odp_get_mr(struct mlx5_ib_dev *dev, u32 key,
				    struct mlx5_ib_mr **mr);
/* What is to be prefetched, its reference taken; or the errno of get_prefetchable_mr(). */
int mlx5r_odp_get_prefetchable(struct ib_pd *pd, bool write, u32 key,
			       struct mlx5_ib_mr **mr);
/* False if its destruction has begun. */
bool mlx5r_odp_hold_mr(struct mlx5_ib_mr *mr);
void mlx5r_odp_put_mr(struct mlx5_ib_mr *mr);
/* Its reference taken, and how many entries it has room for; NULL if it is none. */
struct mlx5_ib_mkey *mlx5r_odp_get_indirect(struct mlx5_ib_dev *dev, u32 key,
					    u32 *entries);
void mlx5r_odp_put_indirect(struct mlx5_ib_mkey *mkey);
u8 mlx5r_odp_max_indirection(struct mlx5_ib_dev *dev);
bool mlx5r_odp_is_closing(struct mlx5_ib_mr *mr);
bool mlx5r_odp_is_implicit(struct mlx5_ib_mr *mr);
bool mlx5r_odp_is_dmabuf(struct mlx5_ib_mr *mr);
bool mlx5r_odp_is_writable(struct mlx5_ib_mr *mr);
u32 mlx5r_odp_mkey(struct mlx5_ib_mr *mr);
u64 mlx5r_odp_iova(struct mlx5_ib_mr *mr);
/* In bytes. */
u64 mlx5r_odp_length(struct mlx5_ib_mr *mr);
struct ib_umem_odp *mlx5r_odp_umem(struct mlx5_ib_mr *mr);
struct ib_pd *mlx5r_odp_pd(struct mlx5_ib_mr *mr);
u32 mlx5r_odp_pdn(struct ib_pd *pd);
struct ib_pd *mlx5r_odp_ibpd(struct mlx5_ib_pd *pd);
struct mlx5_ib_dev *mlx5r_odp_pd_dev(struct ib_pd *pd);
u32 mlx5r_odp_terminate_key(struct mlx5_ib_dev *dev);

/* In pages of 4 KiB; restrack shows pages of the CPU. What is a child's is its parent's. */
void mlx5r_odp_count_faults(struct mlx5_ib_mr *mr, s64 pages);
void mlx5r_odp_count_invalidations(struct mlx5_ib_mr *mr, s64 pages);
void mlx5r_odp_count_prefetch(struct mlx5_ib_mr *mr, s64 pages);

/* --- dma-bufs ------------------------------------------------------------- */

/* The exporter does not move a dma-buf whose reservation is locked. */
void mlx5r_dmabuf_lock(struct mlx5_ib_mr *mr);
void mlx5r_dmabuf_unlock(struct mlx5_ib_mr *mr);
/* Has the exporter say where the memory is, and waits until it is there. Locked, as below. */
int mlx5r_dmabuf_map(struct mlx5_ib_mr *mr);
void mlx5r_dmabuf_unmap(struct mlx5_ib_mr *mr);
/* The largest page that fits to how it lies; 0 if the device has none. */
u32 mlx5r_dmabuf_page_shift(struct mlx5_ib_mr *mr);
/* Writes all translations; `enable` for the first time, with `pdn`. */
int mlx5r_dmabuf_write(struct mlx5_ib_mr *mr, u32 page_shift, bool enable,
		       u32 pdn);
/* Of 4 KiB. */
u64 mlx5r_dmabuf_pages(struct mlx5_ib_mr *mr);
/* With data direct it is the device's own. */
u32 mlx5r_dmabuf_pdn(struct mlx5_ib_mr *mr, struct ib_pd *pd);

/* --- Implicit MRs --------------------------------------------------------------- */

/* The MR of a parent, with a table of so many KSMs. It is not enabled. */
struct mlx5_ib_mr *mlx5r_odp_alloc_parent(struct ib_pd *pd, int access,
					  struct ib_umem_odp *odp, int entries);
/*
 * The MR of a child's mirror, with a table of so many MTTs. Not enabled; faults do
 * not know its key.
 */
struct mlx5_ib_mr *mlx5r_odp_alloc_child(struct mlx5_ib_mr *parent,
					 struct ib_umem_odp *odp, int entries);
/* Makes the key known to faults, or users. */
int mlx5r_odp_make_known(struct mlx5_ib_mr *mr);
int mlx5r_odp_dereg(struct mlx5_ib_mr *mr);
/* The memory scheme's null key of a parent. */
int mlx5r_odp_make_null_key(struct mlx5_ib_mr *parent);
void mlx5r_odp_destroy_null_key(struct mlx5_ib_mr *parent);
/* That, or the device's. */
u32 mlx5r_odp_null_key(struct mlx5_ib_mr *parent);
int mlx5r_odp_enable_parent(struct mlx5_ib_mr *mr, int entries, int shift);
bool mlx5r_odp_memory_scheme(struct mlx5_ib_dev *dev);
/* TASK_SIZE of the processes that there are. */
u64 mlx5r_odp_task_size(void);
bool mlx5r_odp_can_load(struct mlx5_ib_dev *dev, size_t bytes);

/* --- Device ----------------------------------------------------------------- */

int mlx5r_odp_enable(struct mlx5_ib_mr *mr, int pages, int page_shift,
		     u32 pdn);
struct ib_device *mlx5r_odp_ibdev(struct mlx5_ib_dev *dev);
struct device *mlx5r_odp_dma_device(struct mlx5_ib_dev *dev);
/* What users can cause is limited in rate; what must not be lost is not. */
void mlx5r_odp_warn(struct mlx5_ib_dev *dev, const char *what, u32 value);
void mlx5r_odp_refused(struct mlx5_ib_dev *dev, const char *what, u32 number,
		       u64 at, const char *why);
void mlx5r_odp_error(struct mlx5_ib_mr *mr, const char *what);
/* `ksm_shift` of implicit MRs; 0 if there are none. */
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev, u8 ksm_shift);
bool mlx5r_odp_supported(struct mlx5_ib_dev *dev);

/* --- Queues ------------------------------------------------------------------- */

enum mlx5r_odp_transport {
	MLX5R_ODP_CONNECTED,
	MLX5R_ODP_XRC_INITIATOR,
	MLX5R_ODP_DATAGRAM,
	MLX5R_ODP_OTHER_TRANSPORT,
};

struct mlx5_ib_qp *mlx5r_odp_get_qp(struct mlx5_ib_dev *dev, u32 number);
void mlx5r_odp_put_qp(struct mlx5_ib_qp *qp);
enum mlx5r_odp_transport mlx5r_odp_qp_transport(struct mlx5_ib_qp *qp);
bool mlx5r_odp_qp_signature(struct mlx5_ib_qp *qp);
size_t mlx5r_odp_rq_wqe_size(struct mlx5_ib_qp *qp);
int mlx5r_odp_read_sq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied);
int mlx5r_odp_read_rq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied);

/* Of XRC as well. */
struct mlx5_ib_srq *mlx5r_odp_get_srq(struct mlx5_ib_dev *dev, u32 number);
void mlx5r_odp_put_srq(struct mlx5_ib_srq *srq);
size_t mlx5r_odp_srq_wqe_size(struct mlx5_ib_srq *srq);
int mlx5r_odp_read_srq(struct mlx5_ib_srq *srq, u16 index, void *buffer,
		       size_t len, size_t *copied);

/* --- Page faults ------------------------------------------------------------------ */

#define MLX5R_ODP_EQE_SIZE 64
#define MLX5R_ODP_RESUME_SIZE 16

struct mlx5r_odp_faults;

/* Milliseconds; wraps. */
u32 mlx5r_odp_now(void);
struct mlx5_core_dev *mlx5r_odp_mdev(struct mlx5_ib_dev *dev);
/* What a device has for page faults: made before its first ODP MR. */
int mlx5r_odp_faults_create(struct mlx5_ib_dev *dev);
struct mlx5r_odp_faults *mlx5r_odp_faults_of(struct mlx5_ib_dev *dev);
void mlx5r_odp_faults_destroy(struct mlx5_ib_dev *dev);

/* The Rust side of it: odp_entry.rs. */
struct mlx5r_odp_faults *mlx5r_odp_faults_new(struct mlx5_ib_dev *dev);
void mlx5r_odp_faults_drop(struct mlx5r_odp_faults *faults);

#endif /* MLX5_ODP_SHIM_H */
