/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * What the Rust side of mlx5 ODP cannot reach by itself: macros, inline functions
 * and structs that are not bound. No policy in here.
 */

#ifndef MLX5_ODP_SHIM_H
#define MLX5_ODP_SHIM_H

#include <linux/types.h>
#include <linux/workqueue.h>
#include <rdma/ib_umem_odp.h>

struct ib_pd;
struct mlx5_ib_dev;
struct mlx5_ib_mr;
struct mlx5_ib_pf_eq;
struct mlx5_ib_qp;
struct mlx5r_odp_umrs;

/* --- Keys and regions ------------------------------------------------------ */

enum mlx5r_odp_key {
	/* No ODP key has this index. */
	MLX5R_ODP_KEY_NONE,
	/* The index is in use with another variant. */
	MLX5R_ODP_KEY_STALE,
	/* An explicit MR; its reference has been taken. */
	MLX5R_ODP_KEY_MR,
	/* A key that refers to keys. */
	MLX5R_ODP_KEY_INDIRECT,
	/* Any other region: implicit, dma-buf. */
	MLX5R_ODP_KEY_OTHER,
};

enum mlx5r_odp_key mlx5r_odp_get_mr(struct mlx5_ib_dev *dev, u32 key,
				    struct mlx5_ib_mr **mr);
void mlx5r_odp_put_mr(struct mlx5_ib_mr *mr);
u32 mlx5r_odp_mkey(struct mlx5_ib_mr *mr);
struct ib_umem_odp *mlx5r_odp_umem(struct mlx5_ib_mr *mr);
u32 mlx5r_odp_pdn(struct ib_pd *pd);
u32 mlx5r_odp_terminate_key(struct mlx5_ib_dev *dev);

/* In pages of 4 KiB; restrack shows pages of the CPU. */
void mlx5r_odp_count_faults(struct mlx5_ib_mr *mr, s64 pages);
void mlx5r_odp_count_invalidations(struct mlx5_ib_mr *mr, s64 pages);
void mlx5r_odp_count_prefetch(struct mlx5_ib_mr *mr, s64 pages);

/* --- Mirrors ------------------------------------------------------------------ */

/* IB_ACCESS_HUGETLB means pages of this size. */
#define MLX5R_ODP_HUGE_SHIFT 21

struct mlx5r_odp_mirror {
	struct ib_umem_odp odp;
	struct work_struct reap;
};

void mlx5r_odp_mirror_init(struct mlx5r_odp_mirror *mirror,
			   struct mlx5_ib_dev *dev, struct mm_struct *mm,
			   unsigned long address, size_t length,
			   unsigned long start, unsigned long end,
			   unsigned int page_shift, bool writable);
/* Has mlx5r_odp_reap() called by a worker, unless it was stopped. */
void mlx5r_odp_mirror_reap_later(struct mlx5r_odp_mirror *mirror);
/* Waits for that worker; there will be none any more. */
void mlx5r_odp_mirror_stop(struct mlx5r_odp_mirror *mirror);

bool mlx5r_odp_access_writable(int access);
bool mlx5r_odp_access_hugetlb(int access);

/* --- Device ----------------------------------------------------------------- */

int mlx5r_odp_enable(struct mlx5_ib_mr *mr, int pages, int page_shift,
		     u32 pdn);
struct device *mlx5r_odp_dma_device(struct mlx5_ib_dev *dev);
struct mlx5r_odp_umrs *mlx5r_odp_umrs_of(struct mlx5_ib_mr *mr);
/* What users can cause is limited in rate; what must not be lost is not. */
void mlx5r_odp_warn(struct mlx5_ib_dev *dev, const char *what, u32 value);
void mlx5r_odp_error(struct mlx5_ib_mr *mr, const char *what);
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev);
bool mlx5r_odp_supported(struct mlx5_ib_dev *dev);
/* Milliseconds; wraps. */
u32 mlx5r_odp_now(void);
/* Events before this number were written to the EQ before now. */
u32 mlx5r_odp_moment(struct mlx5_ib_mr *mr);

/* --- Queue pairs -------------------------------------------------------------- */

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
size_t mlx5r_odp_recv_wqe_size(struct mlx5_ib_qp *qp);
int mlx5r_odp_read_sq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied);
int mlx5r_odp_read_rq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied);

/* --- Event queue ---------------------------------------------------------------- */

#define MLX5R_ODP_EQE_SIZE 64
#define MLX5R_ODP_RESUME_SIZE 16

struct mlx5r_odp_event;

int mlx5r_odp_eq_create(struct mlx5_ib_dev *dev, struct mlx5_ib_pf_eq *eq);
void mlx5r_odp_eq_destroy(struct mlx5_ib_dev *dev);
/* With the EQ locked, possibly in interrupt context. */
const u8 *mlx5r_odp_eq_peek(struct mlx5_ib_pf_eq *eq, u32 ahead);
struct mlx5r_odp_event *mlx5r_odp_event_alloc(struct mlx5_ib_pf_eq *eq);
void mlx5r_odp_event_queue(struct mlx5r_odp_event *event, const u8 *eqe,
			   u32 number);
/*
 * Sends PAGE_FAULT_RESUME. True if it is under way: the event is freed when it is
 * done, which may be before this returns.
 */
bool mlx5r_odp_resume(struct mlx5r_odp_event *event, const u8 *command);
void mlx5r_odp_eq_later(struct mlx5_ib_pf_eq *eq);
u32 mlx5r_odp_eq_consumed(struct mlx5_ib_pf_eq *eq);
void mlx5r_odp_eq_consume(struct mlx5_ib_pf_eq *eq, u32 count, bool arm);

/* The Rust side of it: odp_entry.rs. */
void mlx5r_odp_drain(struct mlx5_ib_pf_eq *eq);
u32 mlx5r_odp_count(struct mlx5_ib_pf_eq *eq);
/* What mlx5r_odp_resume() has returned, if the event was answered. */
bool mlx5r_odp_serve(struct mlx5_ib_dev *dev, struct mlx5r_odp_event *event,
		     const u8 *eqe, u32 number);
void mlx5r_odp_reap(struct ib_umem_odp *odp);

#endif /* MLX5_ODP_SHIM_H */
