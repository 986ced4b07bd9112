// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * Macros, inline functions and structs for odp_entry.rs. No policy in here.
 */

#include "mlx5_ib.h"

#include <rdma/ib_umem_odp.h>

#include "cmd.h"
#include "qp.h"
#include "umr.h"

#include "odp.h"
#include "shim.h"

/* --- Device ----------------------------------------------------------------- */

int mlx5r_odp_enable(struct mlx5_ib_mr *mr, int pages, int page_shift, u32 pdn)
{
	return mlx5r_umr_update_xlt(mr, 0, pages, page_shift,
				    MLX5_IB_UPD_XLT_ENABLE, pdn);
}

struct ib_device *mlx5r_odp_ibdev(struct mlx5_ib_dev *dev)
{
	return &dev->ib_dev;
}

struct device *mlx5r_odp_dma_device(struct mlx5_ib_dev *dev)
{
	return dev->ib_dev.dma_device;
}

void mlx5r_odp_warn(struct mlx5_ib_dev *dev, const char *what, u32 value)
{
	dev_warn_ratelimited(&dev->ib_dev.dev, "%s (0x%x)\n", what, value);
}

void mlx5r_odp_refused(struct mlx5_ib_dev *dev, const char *what, u32 number,
		       u64 at, const char *why)
{
	dev_warn_ratelimited(&dev->ib_dev.dev,
			     "page fault refused: %s 0x%x at 0x%llx: %s\n",
			     what, number, at, why);
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

/* What internal_fill_odp_caps() fills in. */
void mlx5r_odp_init_caps(struct mlx5_ib_dev *dev, u8 ksm_shift)
{
	struct ib_odp_caps *caps = &dev->odp_caps;

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

/* --- Queues ------------------------------------------------------------------- */

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

size_t mlx5r_odp_rq_wqe_size(struct mlx5_ib_qp *qp)
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

struct mlx5_ib_srq *mlx5r_odp_get_srq(struct mlx5_ib_dev *dev, u32 number)
{
	struct mlx5_core_srq *srq = mlx5_cmd_get_srq(dev, number);

	return srq ? to_mibsrq(srq) : NULL;
}

void mlx5r_odp_put_srq(struct mlx5_ib_srq *srq)
{
	mlx5_core_res_put(&srq->msrq.common);
}

size_t mlx5r_odp_srq_wqe_size(struct mlx5_ib_srq *srq)
{
	return 1UL << srq->msrq.wqe_shift;
}

int mlx5r_odp_read_srq(struct mlx5_ib_srq *srq, u16 index, void *buffer,
		       size_t len, size_t *copied)
{
	if (srq->msrq.common.res != MLX5_RES_SRQ &&
	    srq->msrq.common.res != MLX5_RES_XSRQ)
		return -EOPNOTSUPP;
	return mlx5_ib_read_wqe_srq(srq, index, buffer, len, copied);
}

/* --- Page faults ------------------------------------------------------------------ */

u32 mlx5r_odp_now(void)
{
	return jiffies_to_msecs(jiffies);
}

struct mlx5_core_dev *mlx5r_odp_mdev(struct mlx5_ib_dev *dev)
{
	BUILD_BUG_ON(sizeof(struct mlx5_eqe) != MLX5R_ODP_EQE_SIZE);
	BUILD_BUG_ON(MLX5_ST_SZ_BYTES(page_fault_resume_in) != MLX5R_ODP_RESUME_SIZE);
	return dev->mdev;
}

/* In a pointer of struct mlx5_ib_pf_eq of which no other field is in use. */
struct mlx5r_odp_faults *mlx5r_odp_faults_of(struct mlx5_ib_dev *dev)
{
	return (struct mlx5r_odp_faults *)dev->odp_pf_eq.pool;
}

int mlx5r_odp_faults_create(struct mlx5_ib_dev *dev)
{
	struct mlx5r_odp_faults *faults;
	int err = 0;

	mutex_lock(&dev->odp_eq_mutex);
	if (!dev->odp_pf_eq.pool) {
		faults = mlx5r_odp_faults_new(dev);
		err = PTR_ERR_OR_ZERO(faults);
		if (!err)
			dev->odp_pf_eq.pool = (mempool_t *)faults;
	}
	mutex_unlock(&dev->odp_eq_mutex);
	return err;
}

void mlx5r_odp_faults_destroy(struct mlx5_ib_dev *dev)
{
	if (dev->odp_pf_eq.pool)
		mlx5r_odp_faults_drop(mlx5r_odp_faults_of(dev));
	dev->odp_pf_eq.pool = NULL;
}
