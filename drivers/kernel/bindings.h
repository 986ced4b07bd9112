/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* What bindings.params lists is bound from these. */

#include <linux/mman.h>

#include "helpers.c"
