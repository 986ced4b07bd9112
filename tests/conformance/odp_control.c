// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/* Sends one JSON line to the software ConnectX's control port, prints the answer. */
#include "devctl.h"
#include "report.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	static char reply[65536];

	if (argc != 2 || argv[1][0] != '{') {
		fputs("usage: odp_control '{\"cmd\":\"objects\"}'\n", stderr);
		return 2;
	}
	if (!devctl_request(argv[1], reply, sizeof(reply)))
		die("%s is not there", DEVCTL_PORT);
	fputs(reply, stdout);
	return strstr(reply, "\"error\"") ? 1 : 0;
}
