/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* The shim, and the prototypes that odp_entry.rs implements. */

#include <linux/mlx5/device.h>
#include <linux/mlx5/driver.h>
#include <linux/mlx5/eq.h>
#include <rdma/ib_umem_odp.h>
#include "mlx5_ib.h"
#include "umr.h"
#include "odp.h"
#include "shim.h"
#include "umr_pool.h"

/* BIT() is beyond bindgen. */
enum mlx5r_odp_xlt_flag {
	MLX5R_ODP_XLT_INDIRECT = MLX5_IB_UPD_XLT_INDIRECT,
};
