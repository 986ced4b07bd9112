/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Counters from outside of the verbs API: the software ConnectX's control port,
 * where the guest has one, and the MR statistics of restrack (`rdma statistic`).
 * Either may be missing (real hardware, rdma_rxe); the tests then do without.
 */
#ifndef CONFORMANCE_DEVCTL_H
#define CONFORMANCE_DEVCTL_H

#include <stdbool.h>
#include <stdint.h>

#define DEVCTL_PORT "/dev/virtio-ports/connectx.control"

/* Sends one JSON line, fills REPLY with the answer line. False if there is no port. */
bool devctl_request(const char *json, char *reply, unsigned int reply_size);

/*
 * Adds a rule to the software ConnectX, as tests/connectx/src/rules.rs has them, and
 * returns its number. Dies unless the device takes it.
 */
unsigned int device_rule(const char *rule);

/* Removes all rules of the software ConnectX; what they hold back goes on. */
void device_rules_clear(void);

/* The number behind "KEY": in a flat JSON object; false if there is none. */
bool devctl_number(const char *json, const char *key, uint64_t *value);

struct device_counters {
	bool valid;
	uint64_t faults;	/* page-fault events of all kinds */
	uint64_t faults_memory;
	uint64_t resumes_ok;
	uint64_t resumes_error;
	uint64_t resumes_repeated;	/* of an access that was resumed before */
	uint64_t rnr_naks_fault;
	uint64_t mtts_set;
	uint64_t mtts_cleared;
	uint64_t umr_wqes;
	uint64_t violations;
};

/* Not valid without a control port, and for a device that has no PCI function. */
void device_counters(const char *dev, struct device_counters *c);

struct mr_statistics {
	bool valid;
	uint64_t mrs;		/* ODP MRs (only those have statistics) */
	uint64_t page_faults;
	uint64_t page_faults_handled;
	uint64_t page_prefetch;
	uint64_t page_invalidations;
	uint64_t page_invalidations_handled;
};

/*
 * Sums the statistics of all ODP MRs that live on device DEV now, of all processes
 * (restrack does not tell whose they are): callers compare before and after.
 */
void mr_statistics(const char *dev, struct mr_statistics *s);

#endif
