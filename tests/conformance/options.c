// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "options.h"

static error_t parse_device(int key, char *arg, struct argp_state *state)
{
	const char **dev = state->input;

	switch (key) {
	case ARGP_KEY_INIT:
		argp_err_exit_status = 2;
		return 0;
	case 'd':
		*dev = arg;
		return 0;
	case ARGP_KEY_END:
		if (!*dev)
			argp_error(state, "--dev is missing");
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {
	{ "dev", 'd', "NAME", 0, "RDMA device, as ibv_devices lists it", 0 },
	{ 0 },
};

static const struct argp device_argp = { .options = options, .parser = parse_device };

const struct argp_child device_option[] = { { .argp = &device_argp }, { 0 } };
