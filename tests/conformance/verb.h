/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/* What an operation does with the memory under test, its area. */
#ifndef CONFORMANCE_VERB_H
#define CONFORMANCE_VERB_H

#include <infiniband/verbs.h>
#include <stdbool.h>

enum verb {
	REGISTER_ONLY,		/* only the registration is of interest */
	WRITE_TO,		/* the area is the remote buffer of ... */
	READ_FROM,
	FETCH_ADD_ON,
	WRITE_FROM,		/* ... the local buffer of ... */
	READ_TO,
	FETCH_ADD_TO,
	SEND_FROM,
	RECV_TO,
};

/* Is the area written? */
static inline bool area_is_target(enum verb verb)
{
	return verb == WRITE_TO || verb == FETCH_ADD_ON || verb == READ_TO ||
	       verb == FETCH_ADD_TO || verb == RECV_TO;
}

/* Does the requester name it by its rkey? */
static inline bool area_is_remote(enum verb verb)
{
	return verb == WRITE_TO || verb == READ_FROM || verb == FETCH_ADD_ON;
}

static inline enum ibv_wr_opcode opcode_of(enum verb verb)
{
	switch (verb) {
	case WRITE_TO:
	case WRITE_FROM:
		return IBV_WR_RDMA_WRITE;
	case READ_FROM:
	case READ_TO:
		return IBV_WR_RDMA_READ;
	case FETCH_ADD_ON:
	case FETCH_ADD_TO:
		return IBV_WR_ATOMIC_FETCH_AND_ADD;
	default:
		return IBV_WR_SEND;
	}
}

#endif
