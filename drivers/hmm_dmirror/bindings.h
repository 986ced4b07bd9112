/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* The border between the halves, and the prototypes that mirror_entry.rs implements. */

#include <linux/mm_types.h>
#include "test_hmm_uapi.h"
#include "mirror.h"
