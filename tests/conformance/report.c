// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#define _GNU_SOURCE
#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static unsigned int lines, failures;

static void put(struct report *r, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(r->buf + r->len, sizeof(r->buf) - r->len, fmt, args);
	va_end(args);
	if (n < 0 || (size_t)n >= sizeof(r->buf) - r->len)
		die("result line longer than %zu bytes", sizeof(r->buf));
	r->len += n;
}

static void put_quoted(struct report *r, const char *s)
{
	put(r, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			put(r, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			put(r, "\\u%04x", *s);
		else
			put(r, "%c", *s);
	}
	put(r, "\"");
}

static void put_key(struct report *r, const char *key)
{
	put(r, "%s\"%s\":", r->len > 1 ? "," : "", key);
}

void report_begin(struct report *r, const char *test)
{
	r->len = 0;
	r->ok = true;
	r->detail[0] = '\0';
	put(r, "{");
	report_str(r, "test", test);
}

void report_u64(struct report *r, const char *key, uint64_t value)
{
	put_key(r, key);
	put(r, "%llu", (unsigned long long)value);
}

void report_i64(struct report *r, const char *key, int64_t value)
{
	put_key(r, key);
	put(r, "%lld", (long long)value);
}

void report_null(struct report *r, const char *key)
{
	put_key(r, key);
	put(r, "null");
}

void report_str(struct report *r, const char *key, const char *value)
{
	put_key(r, key);
	put_quoted(r, value);
}

void report_bool(struct report *r, const char *key, bool value)
{
	put_key(r, key);
	put(r, "%s", value ? "true" : "false");
}

void report_seconds(struct report *r, const char *key, double value)
{
	put_key(r, key);
	put(r, "%.3f", value);
}

void report_fail(struct report *r, const char *fmt, ...)
{
	va_list args;

	if (!r->ok)
		return;
	r->ok = false;
	va_start(args, fmt);
	vsnprintf(r->detail, sizeof(r->detail), fmt, args);
	va_end(args);
}

bool report_end(struct report *r)
{
	report_bool(r, "ok", r->ok);
	if (r->detail[0])
		report_str(r, "detail", r->detail);
	put(r, "}");
	puts(r->buf);
	fflush(stdout);
	lines++;
	failures += !r->ok;
	return r->ok;
}

int report_exit_status(void)
{
	return lines && !failures ? 0 : 1;
}

void die(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

uint64_t parse_size(const char *what, const char *text)
{
	unsigned int shift = 0;
	uint64_t value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (end == text || errno || strchr(text, '-'))
		die("%s: '%s' is not a size", what, text);
	switch (*end) {
	case 'K': shift = 10; end++; break;
	case 'M': shift = 20; end++; break;
	case 'G': shift = 30; end++; break;
	case 'T': shift = 40; end++; break;
	}
	if (*end || value > UINT64_MAX >> shift)
		die("%s: '%s' is not a size", what, text);
	return value << shift;
}
