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

/* --- Device ----------------------------------------------------------------- */

int mlx5r_odp_enable(struct mlx5_ib_mr *mr, int pages, int page_shift, u32 pdn)
{
	return mlx5r_umr_update_xlt(mr, 0, pages, page_shift,
				    MLX5_IB_UPD_XLT_ENABLE, pdn);
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

static const struct ib_device_ops odp_ops = {
	.advise_mr = mlx5_ib_advise_mr,
};

/*
 * What internal_fill_odp_caps() fills in, less what is not served: in the transport
 * scheme shared receive queues.
 */
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev, u8 ksm_shift)
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

	if (MLX5_CAP_GEN(dev->mdev, fixed_buffer_size) &&
	    MLX5_CAP_GEN(dev->mdev, null_mkey) &&
	    MLX5_CAP_GEN(dev->mdev, umr_extended_translation_offset) &&
	    !MLX5_CAP_GEN(dev->mdev, umr_indirect_mkey_disabled) &&
	    ksm_shift && ksm_shift <= get_max_log_entity_size_cap(
					      dev, MLX5_MKC_ACCESS_MODE_KSM))
		caps->general_caps |= IB_ODP_SUPPORT_IMPLICIT;

	ib_set_device_ops(&dev->ib_dev, &odp_ops);
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
	/* Of those that are not served, in their order. */
	struct list_head unserved;
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
	/* Not the faults' queue, whose workers prefetches might use up. */
	struct workqueue_struct *prefetches;
	/* These are protected by the EQ's lock. */
	u32 consumed;
	struct list_head unserved;
	/* Mirrors to be reaped when events are served. */
	struct list_head waiting;
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

struct workqueue_struct *mlx5r_odp_prefetches(struct mlx5_ib_dev *dev)
{
	return device_of(&dev->odp_pf_eq)->prefetches;
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

static u32 served(struct mlx5r_odp_device *odp)
{
	struct mlx5r_odp_event *first = list_first_entry_or_null(
		&odp->unserved, struct mlx5r_odp_event, unserved);

	return first ? first->number : odp->consumed;
}

u32 mlx5r_odp_served(struct mlx5_ib_mr *mr)
{
	struct mlx5_ib_pf_eq *eq = &mr_to_mdev(mr)->odp_pf_eq;
	unsigned long flags;
	u32 number;

	spin_lock_irqsave(&eq->lock, flags);
	number = served(device_of(eq));
	spin_unlock_irqrestore(&eq->lock, flags);
	return number;
}

bool mlx5r_odp_mirror_reap_after(struct mlx5r_odp_mirror *mirror, u32 since)
{
	struct mlx5_ib_dev *dev = to_mdev(mirror->odp.umem.ibdev);
	struct mlx5_ib_pf_eq *eq = &dev->odp_pf_eq;
	bool wait;

	spin_lock_irq(&eq->lock);
	wait = (s32)(served(device_of(eq)) - since) < 0;
	if (wait && list_empty(&mirror->waiting))
		list_add_tail(&mirror->waiting, &device_of(eq)->waiting);
	spin_unlock_irq(&eq->lock);
	return wait;
}

/* Its key will not be looked for any more. */
static void event_served(struct mlx5r_odp_event *event)
{
	struct mlx5_ib_pf_eq *eq = event->eq;
	struct mlx5r_odp_device *odp = device_of(eq);
	struct mlx5r_odp_mirror *mirror, *next;
	unsigned long flags;
	bool was_first;

	spin_lock_irqsave(&eq->lock, flags);
	was_first = odp->unserved.next == &event->unserved;
	list_del_init(&event->unserved);
	if (was_first) {
		list_for_each_entry_safe(mirror, next, &odp->waiting, waiting) {
			list_del_init(&mirror->waiting);
			mod_delayed_work(eq->wq, &mirror->reap, 0);
		}
	}
	spin_unlock_irqrestore(&eq->lock, flags);
}

static void event_work(struct work_struct *work)
{
	struct mlx5r_odp_event *event =
		container_of(work, struct mlx5r_odp_event, work);
	struct mlx5_ib_pf_eq *eq = event->eq;

	if (mlx5r_odp_serve(eq->dev, event, event->eqe, event->number))
		return;
	event_served(event);
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
	event_served(event);
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
	list_add_tail(&event->unserved, &device_of(event->eq)->unserved);
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
	INIT_LIST_HEAD(&odp->unserved);
	INIT_LIST_HEAD(&odp->waiting);
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
	odp->prefetches = alloc_workqueue("mlx5_ib_prefetch", WQ_UNBOUND, 0);
	if (!odp->prefetches) {
		err = -ENOMEM;
		goto destroy_wq;
	}

	core = mlx5_eq_create_generic(dev->mdev, &param);
	if (IS_ERR(core)) {
		err = PTR_ERR(core);
		goto destroy_prefetches;
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
destroy_prefetches:
	destroy_workqueue(odp->prefetches);
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
	destroy_workqueue(odp->prefetches);
	destroy_workqueue(eq->wq);
	mlx5r_odp_umrs_destroy(odp->umrs);
	mempool_exit(&odp->events);
	kfree(odp);
}
