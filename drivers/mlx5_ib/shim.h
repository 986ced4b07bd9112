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
	/* An implicit MR, by its own key or one below it; its reference has been taken. */
	MLX5R_ODP_KEY_IMPLICIT,
	/* A key that refers to keys. */
	MLX5R_ODP_KEY_INDIRECT,
	/* Any other region: dma-buf. */
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
bool mlx5r_odp_is_closing(struct mlx5_ib_mr *mr);
bool mlx5r_odp_is_implicit(struct mlx5_ib_mr *mr);
u32 mlx5r_odp_mkey(struct mlx5_ib_mr *mr);
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

/* --- Mirrors ------------------------------------------------------------------ */

/* IB_ACCESS_HUGETLB means pages of this size. */
#define MLX5R_ODP_HUGE_SHIFT 21

struct mlx5r_odp_mirror {
	struct ib_umem_odp odp;
	struct delayed_work reap;
	/* Of those that wait for events to be served; protected by the EQ's lock. */
	struct list_head waiting;
};

void mlx5r_odp_mirror_init(struct mlx5r_odp_mirror *mirror,
			   struct mlx5_ib_dev *dev, struct mm_struct *mm,
			   unsigned long address, size_t length,
			   unsigned long start, unsigned long end,
			   unsigned int page_shift, bool writable);
/* Has mlx5r_odp_reap(), or mlx5r_odp_retire(), called by a worker, unless it was stopped. */
void mlx5r_odp_mirror_reap_later(struct mlx5r_odp_mirror *mirror);
/* The same, in so many milliseconds, unless it is called anyway. */
void mlx5r_odp_mirror_reap_in(struct mlx5r_odp_mirror *mirror, u32 ms);
/*
 * The same when all events before number `since` are served; false, and nothing is
 * done, if they are.
 */
bool mlx5r_odp_mirror_reap_after(struct mlx5r_odp_mirror *mirror, u32 since);
/* Waits for that worker; there will be none any more. */
void mlx5r_odp_mirror_stop(struct mlx5r_odp_mirror *mirror);

bool mlx5r_odp_access_writable(int access);
bool mlx5r_odp_access_hugetlb(int access);

/* --- Implicit MRs --------------------------------------------------------------- */

/* The mirror of no memory, which stands for all of it. */
void mlx5r_odp_parent_init(struct mlx5r_odp_mirror *mirror,
			   struct mlx5_ib_dev *dev, struct mm_struct *mm,
			   bool writable);
bool mlx5r_odp_is_parent(struct ib_umem_odp *odp);
/* The MR of such a mirror, with a table of so many KSMs. It is not enabled. */
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
struct device *mlx5r_odp_dma_device(struct mlx5_ib_dev *dev);
struct mlx5r_odp_umrs *mlx5r_odp_umrs_of(struct mlx5_ib_mr *mr);
/* What users can cause is limited in rate; what must not be lost is not. */
void mlx5r_odp_warn(struct mlx5_ib_dev *dev, const char *what, u32 value);
void mlx5r_odp_error(struct mlx5_ib_mr *mr, const char *what);
/* `ksm_shift` of implicit MRs; 0 if there are none. */
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev, u8 ksm_shift);
bool mlx5r_odp_supported(struct mlx5_ib_dev *dev);
/* Milliseconds; wraps. */
u32 mlx5r_odp_now(void);
/* Events before this number were written to the EQ before now. */
u32 mlx5r_odp_moment(struct mlx5_ib_mr *mr);
/* Events before this number have been served. */
u32 mlx5r_odp_served(struct mlx5_ib_mr *mr);

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

/* Where prefetches wait; there since the EQ is. */
struct workqueue_struct *mlx5r_odp_prefetches(struct mlx5_ib_dev *dev);
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
void mlx5r_odp_retire(struct ib_umem_odp *odp);

#endif /* MLX5_ODP_SHIM_H */
