/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Command lines, by glibc's argp. A program gives its own options and a parser for
 * them, and includes device_option as a child, with the address of a `const char *`
 * as the child's input.
 */
#ifndef CONFORMANCE_OPTIONS_H
#define CONFORMANCE_OPTIONS_H

#include <argp.h>

/* --dev NAME. Without it the program ends, as on all errors of usage, with status 2. */
extern const struct argp_child device_option[];

/* For ARGP_KEY_INIT of a program's parser. */
static inline error_t init_device_option(struct argp_state *state, const char **dev)
{
	state->child_inputs[0] = dev;
	return 0;
}

#endif
