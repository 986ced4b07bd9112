// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Macros, inline functions and structs for odp_entry.rs. No policy in here.
 */

#include "mlx5_ib.h"

#include <linux/mlx5/eq.h>
#include <rdma/ib_umem_odp.h>

#include "cmd.h"
#include "qp.h"
#include "umr.h"

#include "odp.h"
#include "shim.h"
#include "umr_pool.h"

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
		if (!is_odp_mr(*mr) || (*mr)->is_odp_implicit)
			return MLX5R_ODP_KEY_OTHER;
		return MLX5R_ODP_KEY_MR;
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
	/* While the key is in the array it holds a reference itself. */
	if (kind == MLX5R_ODP_KEY_MR)
		refcount_inc(&mkey->usecount);
	xa_unlock(&dev->odp_mkeys);

	return kind;
}

void mlx5r_odp_put_mr(struct mlx5_ib_mr *mr)
{
	mlx5r_deref_odp_mkey(&mr->mmkey);
}

u32 mlx5r_odp_mkey(struct mlx5_ib_mr *mr)
{
	return mr->mmkey.key;
}

struct ib_umem_odp *mlx5r_odp_umem(struct mlx5_ib_mr *mr)
{
	return to_ib_umem_odp(mr->umem);
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

void mlx5r_odp_count_faults(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats_with_handled(mr, faults, cpu_pages(pages));
}

void mlx5r_odp_count_invalidations(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats_with_handled(mr, invalidations, cpu_pages(pages));
}

void mlx5r_odp_count_prefetch(struct mlx5_ib_mr *mr, s64 pages)
{
	mlx5_update_odp_stats(mr, prefetch, cpu_pages(pages));
}

/* --- Mirrors ------------------------------------------------------------------ */

static void reap_work(struct work_struct *work)
{
	struct mlx5r_odp_mirror *mirror =
		container_of(work, struct mlx5r_odp_mirror, reap);

	mlx5r_odp_reap(&mirror->odp);
}

void mlx5r_odp_mirror_init(struct mlx5r_odp_mirror *mirror,
			   struct mlx5_ib_dev *dev, struct mm_struct *mm,
			   unsigned long address, size_t length,
			   unsigned long start, unsigned long end,
			   unsigned int page_shift, bool writable)
{
	struct ib_umem_odp *odp = &mirror->odp;

	BUILD_BUG_ON(HPAGE_SHIFT != MLX5R_ODP_HUGE_SHIFT);

	memset(mirror, 0, sizeof(*mirror));
	odp->umem.ibdev = &dev->ib_dev;
	odp->umem.owning_mm = mm;
	odp->umem.address = address;
	odp->umem.length = length;
	odp->umem.writable = writable;
	odp->umem.is_odp = 1;
	odp->page_shift = page_shift;
	/* ib_umem_odp_num_pages() looks here; it is never inserted. */
	odp->notifier.interval_tree.start = start;
	odp->notifier.interval_tree.last = end - 1;
	INIT_WORK(&mirror->reap, reap_work);
}

void mlx5r_odp_mirror_reap_later(struct mlx5r_odp_mirror *mirror)
{
	struct mlx5_ib_dev *dev = to_mdev(mirror->odp.umem.ibdev);

	queue_work(dev->odp_pf_eq.wq, &mirror->reap);
}

void mlx5r_odp_mirror_stop(struct mlx5r_odp_mirror *mirror)
{
	disable_work_sync(&mirror->reap);
}

bool mlx5r_odp_access_writable(int access)
{
	return ib_access_writable(access);
}

bool mlx5r_odp_access_hugetlb(int access)
{
	return IS_ENABLED(CONFIG_HUGETLB_PAGE) && (access & IB_ACCESS_HUGETLB);
}

/* --- Device ----------------------------------------------------------------- */

int mlx5r_odp_enable(struct mlx5_ib_mr *mr, int pages, int page_shift, u32 pdn)
{
	return mlx5r_umr_update_xlt(mr, 0, pages, page_shift,
				    MLX5_IB_UPD_XLT_ATOMIC |
					    MLX5_IB_UPD_XLT_ENABLE,
				    pdn);
}

struct device *mlx5r_odp_dma_device(struct mlx5_ib_dev *dev)
{
	return dev->ib_dev.dma_device;
}

void mlx5r_odp_warn(struct mlx5_ib_dev *dev, const char *what, u32 value)
{
	dev_warn_ratelimited(&dev->ib_dev.dev, "%s (0x%x)\n", what, value);
}

void mlx5r_odp_error(struct mlx5_ib_mr *mr, const char *what)
{
	dev_err(&mr->ibmr.device->dev, "%s (0x%x)\n", what, mr->mmkey.key);
}

#define ODP_CAP(dev, transport, op, flag)                                      \
	(MLX5_CAP_ODP_SCHEME((dev)->mdev, transport##_odp_caps.op) ?           \
		 IB_ODP_SUPPORT_##flag :                                       \
		 0)

/*
 * What internal_fill_odp_caps() fills in, less what is not served: implicit MRs,
 * and in the transport scheme shared receive queues.
 */
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev)
{
	struct ib_odp_caps *caps = &dev->odp_caps;
	u32 srq = IB_ODP_SUPPORT_SRQ_RECV;

	memset(caps, 0, sizeof(*caps));

	if (!MLX5_CAP_GEN(dev->mdev, pg) || !mlx5r_umr_can_load_pas(dev, 0))
		return;

	caps->general_caps = IB_ODP_SUPPORT;

	if (MLX5_CAP_GEN(dev->mdev, umr_extended_translation_offset))
		dev->odp_max_size = U64_MAX;
	else
		dev->odp_max_size = BIT_ULL(MLX5_MAX_UMR_SHIFT + PAGE_SHIFT);

	caps->per_transport_caps.ud_odp_caps =
		ODP_CAP(dev, ud, send, SEND) |
		ODP_CAP(dev, ud, srq_receive, SRQ_RECV);
	caps->per_transport_caps.rc_odp_caps =
		ODP_CAP(dev, rc, send, SEND) | ODP_CAP(dev, rc, receive, RECV) |
		ODP_CAP(dev, rc, write, WRITE) | ODP_CAP(dev, rc, read, READ) |
		ODP_CAP(dev, rc, atomic, ATOMIC) |
		ODP_CAP(dev, rc, srq_receive, SRQ_RECV);
	caps->per_transport_caps.xrc_odp_caps =
		ODP_CAP(dev, xrc, send, SEND) |
		ODP_CAP(dev, xrc, receive, RECV) |
		ODP_CAP(dev, xrc, write, WRITE) |
		ODP_CAP(dev, xrc, read, READ) |
		ODP_CAP(dev, xrc, atomic, ATOMIC) |
		ODP_CAP(dev, xrc, srq_receive, SRQ_RECV);

	if (!MLX5_CAP_ODP(dev->mdev, mem_page_fault)) {
		caps->per_transport_caps.ud_odp_caps &= ~srq;
		caps->per_transport_caps.rc_odp_caps &= ~srq;
		caps->per_transport_caps.xrc_odp_caps &= ~srq;
	}

	mutex_init(&dev->odp_eq_mutex);
}

bool mlx5r_odp_supported(struct mlx5_ib_dev *dev)
{
	return dev->odp_caps.general_caps & IB_ODP_SUPPORT;
}

/* --- Queue pairs -------------------------------------------------------------- */

struct mlx5_ib_qp *mlx5r_odp_get_qp(struct mlx5_ib_dev *dev, u32 number)
{
	struct mlx5_core_rsc_common *res =
		mlx5_core_res_hold(dev, number, MLX5_RES_QP);

	if (!res)
		return NULL;
	if (res->res != MLX5_RES_QP) {
		mlx5_core_res_put(res);
		return NULL;
	}
	return to_mibqp(container_of(res, struct mlx5_core_qp, common));
}

void mlx5r_odp_put_qp(struct mlx5_ib_qp *qp)
{
	mlx5_core_res_put(&qp->trans_qp.base.mqp.common);
}

enum mlx5r_odp_transport mlx5r_odp_qp_transport(struct mlx5_ib_qp *qp)
{
	switch (qp->type) {
	case IB_QPT_RC:
	case IB_QPT_UC:
		return MLX5R_ODP_CONNECTED;
	case IB_QPT_XRC_INI:
		return MLX5R_ODP_XRC_INITIATOR;
	case IB_QPT_UD:
	case MLX5_IB_QPT_DCI:
		return MLX5R_ODP_DATAGRAM;
	default:
		return MLX5R_ODP_OTHER_TRANSPORT;
	}
}

bool mlx5r_odp_qp_signature(struct mlx5_ib_qp *qp)
{
	return qp->flags_en & MLX5_QP_FLAG_SIGNATURE;
}

size_t mlx5r_odp_recv_wqe_size(struct mlx5_ib_qp *qp)
{
	return 1UL << qp->rq.wqe_shift;
}

int mlx5r_odp_read_sq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied)
{
	return mlx5_ib_read_wqe_sq(qp, index, buffer, len, copied);
}

int mlx5r_odp_read_rq(struct mlx5_ib_qp *qp, u16 index, void *buffer,
		      size_t len, size_t *copied)
{
	return mlx5_ib_read_wqe_rq(qp, index, buffer, len, copied);
}

/* --- Event queue ---------------------------------------------------------------- */

enum {
	/* Entries of the EQ. */
	NUM_EQE = 0x1000,
	/* Events that there is always memory for. */
	NUM_RESERVED = 64,
	/*
	 * Faults served at a time. Each of them may wait for a process, so
	 * that there must be more than a process is likely to stall.
	 */
	NUM_CONCURRENT = 512,
};

struct mlx5r_odp_event {
	struct work_struct work;
	struct mlx5_ib_pf_eq *eq;
	u32 number;
	u8 eqe[MLX5R_ODP_EQE_SIZE];
	/* The command that answers it. */
	struct mlx5_async_work resume;
	u32 out[MLX5_ST_SZ_DW(page_fault_resume_out)];
};

/* What a device has besides its struct mlx5_ib_pf_eq, whose pool is the first. */
struct mlx5r_odp_device {
	mempool_t events;
	struct mlx5r_odp_umrs *umrs;
	struct mlx5_async_ctx resumes;
	/* Protected by the EQ's lock. */
	u32 consumed;
};

static struct mlx5r_odp_device *device_of(struct mlx5_ib_pf_eq *eq)
{
	return container_of(eq->pool, struct mlx5r_odp_device, events);
}

struct mlx5r_odp_umrs *mlx5r_odp_umrs_of(struct mlx5_ib_mr *mr)
{
	return device_of(&mr_to_mdev(mr)->odp_pf_eq)->umrs;
}

u32 mlx5r_odp_now(void)
{
	return jiffies_to_msecs(jiffies);
}

u32 mlx5r_odp_moment(struct mlx5_ib_mr *mr)
{
	struct mlx5_ib_pf_eq *eq = &mr_to_mdev(mr)->odp_pf_eq;
	unsigned long flags;
	u32 moment;

	spin_lock_irqsave(&eq->lock, flags);
	moment = mlx5r_odp_count(eq);
	spin_unlock_irqrestore(&eq->lock, flags);
	return moment;
}

static void event_work(struct work_struct *work)
{
	struct mlx5r_odp_event *event =
		container_of(work, struct mlx5r_odp_event, work);
	struct mlx5_ib_pf_eq *eq = event->eq;

	if (!mlx5r_odp_serve(eq->dev, event, event->eqe, event->number))
		mempool_free(event, eq->pool);
}

static void warn_not_resumed(struct mlx5_ib_dev *dev, int err)
{
	mlx5r_odp_warn(dev, "a page fault could not be resumed", -err);
}

static void resume_done(int status, struct mlx5_async_work *work)
{
	struct mlx5r_odp_event *event =
		container_of(work, struct mlx5r_odp_event, resume);
	struct mlx5_ib_pf_eq *eq = event->eq;

	if (status)
		warn_not_resumed(eq->dev, status);
	mempool_free(event, eq->pool);
}

bool mlx5r_odp_resume(struct mlx5r_odp_event *event, const u8 *command)
{
	struct mlx5_ib_pf_eq *eq = event->eq;
	u32 in[MLX5_ST_SZ_DW(page_fault_resume_in)];
	int err;

	BUILD_BUG_ON(sizeof(in) != MLX5R_ODP_RESUME_SIZE);
	memcpy(in, command, sizeof(in));
	/*
	 * Nobody has to wait for it. Only without waiting it is sent by memory
	 * that is there at once.
	 */
	err = mlx5_cmd_exec_cb(&device_of(eq)->resumes, in, sizeof(in),
			       event->out, sizeof(event->out), resume_done,
			       &event->resume);
	if (!err)
		return true;
	err = mlx5_cmd_exec(eq->dev->mdev, in, sizeof(in), event->out,
			    sizeof(event->out));
	if (err)
		warn_not_resumed(eq->dev, err);
	return false;
}

const u8 *mlx5r_odp_eq_peek(struct mlx5_ib_pf_eq *eq, u32 ahead)
{
	BUILD_BUG_ON(sizeof(struct mlx5_eqe) != MLX5R_ODP_EQE_SIZE);
	return (const u8 *)mlx5_eq_get_eqe(eq->core, ahead);
}

struct mlx5r_odp_event *mlx5r_odp_event_alloc(struct mlx5_ib_pf_eq *eq)
{
	struct mlx5r_odp_event *event = mempool_alloc(eq->pool, GFP_ATOMIC);

	if (event)
		event->eq = eq;
	return event;
}

void mlx5r_odp_event_queue(struct mlx5r_odp_event *event, const u8 *eqe,
			   u32 number)
{
	event->number = number;
	memcpy(event->eqe, eqe, sizeof(event->eqe));
	INIT_WORK(&event->work, event_work);
	queue_work(event->eq->wq, &event->work);
}

void mlx5r_odp_eq_later(struct mlx5_ib_pf_eq *eq)
{
	queue_work(eq->wq, &eq->work);
}

u32 mlx5r_odp_eq_consumed(struct mlx5_ib_pf_eq *eq)
{
	return device_of(eq)->consumed;
}

void mlx5r_odp_eq_consume(struct mlx5_ib_pf_eq *eq, u32 count, bool arm)
{
	device_of(eq)->consumed += count;
	mlx5_eq_update_ci(eq->core, count, arm);
}

static int eq_interrupt(struct notifier_block *nb, unsigned long type,
			void *data)
{
	struct mlx5_ib_pf_eq *eq =
		container_of(nb, struct mlx5_ib_pf_eq, irq_nb);
	unsigned long flags;

	if (spin_trylock_irqsave(&eq->lock, flags)) {
		mlx5r_odp_drain(eq);
		spin_unlock_irqrestore(&eq->lock, flags);
	} else {
		/* Its holder may have looked for the last time. */
		mlx5r_odp_eq_later(eq);
	}
	return IRQ_HANDLED;
}

static void eq_work(struct work_struct *work)
{
	struct mlx5_ib_pf_eq *eq =
		container_of(work, struct mlx5_ib_pf_eq, work);

	/* The reserve is what ran out. This waits until some of it is back. */
	while (eq->pool->curr_nr < eq->pool->min_nr)
		mempool_free(mempool_alloc(eq->pool, GFP_KERNEL), eq->pool);

	spin_lock_irq(&eq->lock);
	mlx5r_odp_drain(eq);
	spin_unlock_irq(&eq->lock);
}

int mlx5r_odp_eq_create(struct mlx5_ib_dev *dev, struct mlx5_ib_pf_eq *eq)
{
	struct mlx5_eq_param param = {
		.nent = NUM_EQE,
		.mask[0] = 1ull << MLX5_EVENT_TYPE_PAGE_FAULT,
	};
	struct mlx5r_odp_device *odp;
	struct mlx5_eq *core;
	int err = 0;

	mutex_lock(&dev->odp_eq_mutex);
	if (eq->core)
		goto unlock;

	INIT_WORK(&eq->work, eq_work);
	spin_lock_init(&eq->lock);
	eq->dev = dev;
	eq->irq_nb.notifier_call = eq_interrupt;

	odp = kzalloc(sizeof(*odp), GFP_KERNEL);
	if (!odp) {
		err = -ENOMEM;
		goto unlock;
	}
	err = mempool_init_kmalloc_pool(&odp->events, NUM_RESERVED,
					sizeof(struct mlx5r_odp_event));
	if (err)
		goto free_device;
	odp->umrs = mlx5r_odp_umrs_create(dev);
	if (!odp->umrs) {
		err = -ENOMEM;
		goto free_pool;
	}
	mlx5_cmd_init_async_ctx(dev->mdev, &odp->resumes);
	eq->pool = &odp->events;
	eq->wq = alloc_workqueue("mlx5_ib_page_fault",
				 WQ_HIGHPRI | WQ_UNBOUND | WQ_MEM_RECLAIM,
				 NUM_CONCURRENT);
	if (!eq->wq) {
		err = -ENOMEM;
		goto destroy_umrs;
	}

	core = mlx5_eq_create_generic(dev->mdev, &param);
	if (IS_ERR(core)) {
		err = PTR_ERR(core);
		goto destroy_wq;
	}
	eq->core = core;
	err = mlx5_eq_enable(dev->mdev, core, &eq->irq_nb);
	if (err)
		goto destroy_eq;

unlock:
	mutex_unlock(&dev->odp_eq_mutex);
	return err;

destroy_eq:
	mlx5_eq_destroy_generic(dev->mdev, core);
	eq->core = NULL;
destroy_wq:
	destroy_workqueue(eq->wq);
destroy_umrs:
	mlx5r_odp_umrs_destroy(odp->umrs);
free_pool:
	mempool_exit(&odp->events);
free_device:
	kfree(odp);
	goto unlock;
}

void mlx5r_odp_eq_destroy(struct mlx5_ib_dev *dev)
{
	struct mlx5_ib_pf_eq *eq = &dev->odp_pf_eq;
	struct mlx5r_odp_device *odp;

	if (!eq->core)
		return;
	odp = device_of(eq);

	/*
	 * No region is left and no queue pair, so what is still queued finds
	 * nothing and ends soon; a fault that waits for a process held a
	 * region, and its destruction has waited for that.
	 */
	mlx5_eq_disable(dev->mdev, eq->core, &eq->irq_nb);
	cancel_work_sync(&eq->work);
	drain_workqueue(eq->wq);
	mlx5_cmd_cleanup_async_ctx(&odp->resumes);
	mlx5_eq_destroy_generic(dev->mdev, eq->core);
	eq->core = NULL;
	destroy_workqueue(eq->wq);
	mlx5r_odp_umrs_destroy(odp->umrs);
	mempool_exit(&odp->events);
	kfree(odp);
}
