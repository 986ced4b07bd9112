/* SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB */
/*
 * Test data that tells where it belongs: the 64-bit word at byte offset OFF is a
 * hash of OFF and a seed. No two offsets below 2^48 share a word for one seed.
 */
#ifndef CONFORMANCE_PATTERN_H
#define CONFORMANCE_PATTERN_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t pattern_word(uint64_t seed, uint64_t off)
{
	/* The finalizer of splitmix64: a bijection of (off ^ seed * odd). */
	uint64_t x = (off >> 3) ^ (seed * 0x9e3779b97f4a7c15ull);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Fills [mem, mem + len) with the pattern of offsets [off, off + len); 8-byte units. */
void pattern_fill(void *mem, size_t len, uint64_t seed, uint64_t off);

/*
 * Returns the index of the first byte of [mem, mem + len) that differs from the
 * pattern of offsets [off, off + len), or len if all are equal; 8-byte units.
 */
size_t pattern_check(const void *mem, size_t len, uint64_t seed, uint64_t off);

/* FNV-like hash over 64-bit words, for "has not changed". */
uint64_t memory_hash(const volatile void *mem, size_t len);

#endif
