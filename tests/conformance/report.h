/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * One JSON object per line on stdout for each result; errors of usage or of the
 * environment go to stderr. The exit status is 0 iff every result was ok.
 */
#ifndef CONFORMANCE_REPORT_H
#define CONFORMANCE_REPORT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct report {
	char buf[4096];
	size_t len;
	bool ok;
	char detail[512];
};

void report_begin(struct report *r, const char *test);
void report_u64(struct report *r, const char *key, uint64_t value);
void report_i64(struct report *r, const char *key, int64_t value);
void report_null(struct report *r, const char *key);
void report_str(struct report *r, const char *key, const char *value);
void report_bool(struct report *r, const char *key, bool value);
void report_seconds(struct report *r, const char *key, double value);

/* Marks the result as failed; the first reason is kept as "detail". */
void report_fail(struct report *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Prints the line. Returns r->ok. */
bool report_end(struct report *r);

/* 0 iff at least one line was printed and all were ok. */
int report_exit_status(void);

/* Prints "PROGRAM: message" to stderr and exits with status 2. */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* CLOCK_MONOTONIC in seconds. */
double now(void);
void sleep_ms(unsigned int ms);

/* "64K", "64M", "1G", "1T" or plain bytes; dies on anything else. */
uint64_t parse_size(const char *what, const char *text);

#endif
