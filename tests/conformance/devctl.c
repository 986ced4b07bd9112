// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "devctl.h"
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REPLY_TIMEOUT_MS 10000

bool devctl_request(const char *json, char *reply, unsigned int reply_size)
{
	struct pollfd pfd = { .events = POLLIN };
	unsigned int len = 0;
	int tries = 100;
	ssize_t n;

	/* The port has one user at a time; another test may be closing it. */
	do {
		pfd.fd = open(DEVCTL_PORT, O_RDWR | O_CLOEXEC);
	} while (pfd.fd < 0 && errno == EBUSY && tries-- && (sleep_ms(20), true));
	if (pfd.fd < 0) {
		if (errno == ENOENT)
			return false;
		die("%s: %s", DEVCTL_PORT, strerror(errno));
	}
	if (dprintf(pfd.fd, "%s\n", json) < 0)
		die("%s: write: %s", DEVCTL_PORT, strerror(errno));
	while (len + 1 < reply_size) {
		if (poll(&pfd, 1, REPLY_TIMEOUT_MS) <= 0)
			die("%s: no answer to %s", DEVCTL_PORT, json);
		n = read(pfd.fd, reply + len, reply_size - 1 - len);
		if (n <= 0)
			die("%s: closed while waiting for the answer to %s",
			    DEVCTL_PORT, json);
		len += n;
		if (reply[len - 1] == '\n')
			break;
	}
	reply[len] = '\0';
	close(pfd.fd);
	return true;
}

/* A request that the device must serve. */
static void device_request(const char *json, char *reply, unsigned int reply_size)
{
	if (!devctl_request(json, reply, reply_size))
		die("%s is not there", DEVCTL_PORT);
	if (strstr(reply, "\"error\""))
		die("the device refused %s: %s", json, reply);
}

unsigned int device_rule(const char *rule)
{
	char json[256], reply[1024];
	uint64_t id;

	snprintf(json, sizeof(json), "{\"cmd\":\"rule\",\"add\":\"%s\"}", rule);
	device_request(json, reply, sizeof(reply));
	if (!devctl_number(reply, "id", &id))
		die("the rule \"%s\" has no number: %s", rule, reply);
	return id;
}

void device_rules_clear(void)
{
	char reply[256];

	device_request("{\"cmd\":\"clear-rules\"}", reply, sizeof(reply));
}

bool devctl_number(const char *json, const char *key, uint64_t *value)
{
	char quoted[64];
	const char *at;

	snprintf(quoted, sizeof(quoted), "\"%s\"", key);
	at = strstr(json, quoted);
	if (!at)
		return false;
	at += strlen(quoted);
	at += strspn(at, " :");
	if (*at < '0' || *at > '9')
		return false;
	*value = strtoull(at, NULL, 10);
	return true;
}

void device_counters(const char *dev, struct device_counters *c)
{
	static const char *const kinds[] = {
		"faults_memory", "faults_wqe_requester",
		"faults_wqe_responder", "faults_rdma",
	};
	char reply[16384], path[128];
	uint64_t value;
	size_t i;

	memset(c, 0, sizeof(*c));
	/* rdma_rxe beside a software ConnectX: those counters are not about it. */
	snprintf(path, sizeof(path), "/sys/class/infiniband/%s/device", dev);
	if (access(path, F_OK))
		return;
	if (!devctl_request("{\"cmd\":\"counters\"}", reply, sizeof(reply)))
		return;
	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (!devctl_number(reply, kinds[i], &value))
			die("the device's counters lack %s", kinds[i]);
		c->faults += value;
		if (i == 0)
			c->faults_memory = value;
	}
	if (!devctl_number(reply, "resumes_ok", &c->resumes_ok) ||
	    !devctl_number(reply, "resumes_error", &c->resumes_error) ||
	    !devctl_number(reply, "resumes_repeated", &c->resumes_repeated) ||
	    !devctl_number(reply, "rnr_naks_fault", &c->rnr_naks_fault) ||
	    !devctl_number(reply, "mtts_set", &c->mtts_set) ||
	    !devctl_number(reply, "mtts_cleared", &c->mtts_cleared) ||
	    !devctl_number(reply, "umr_wqes", &c->umr_wqes) ||
	    !devctl_number(reply, "violations", &c->violations))
		die("the device's counters are incomplete: %s", reply);
	c->valid = true;
}

void mr_statistics(const char *dev, struct mr_statistics *s)
{
	char line[4096], name[96];
	char *out = NULL, *entry, *end;
	size_t len = 0, size = 0;
	uint64_t value;
	FILE *pipe;

	memset(s, 0, sizeof(*s));
	/* `rdma` has no filter by device here. */
	snprintf(name, sizeof(name), "\"ifname\":\"%s\"", dev);
	pipe = popen("rdma -j statistic show mr 2>/dev/null", "re");
	if (!pipe)
		return;
	while (fgets(line, sizeof(line), pipe)) {
		size_t n = strlen(line);

		if (len + n + 1 > size) {
			size = (len + n + 1) * 2;
			out = realloc(out, size);
			if (!out)
				die("out of memory");
		}
		memcpy(out + len, line, n + 1);
		len += n;
	}
	pclose(pipe);

	/* [{"ifindex":0,"ifname":"mlx5_0","mrn":7,"page_faults":3,...},{...}] */
	for (entry = out; entry && (entry = strchr(entry, '{')); entry = end + 1) {
		end = strchr(entry, '}');
		if (!end)
			break;
		*end = '\0';
		if (!strstr(entry, name) || !devctl_number(entry, "page_faults", &value))
			continue;
		s->valid = true;
		s->mrs++;
		s->page_faults += value;
		if (devctl_number(entry, "page_faults_handled", &value))
			s->page_faults_handled += value;
		if (devctl_number(entry, "page_prefetch", &value))
			s->page_prefetch += value;
		if (devctl_number(entry, "page_invalidations", &value))
			s->page_invalidations += value;
		if (devctl_number(entry, "page_invalidations_handled", &value))
			s->page_invalidations_handled += value;
	}
	free(out);
}
