// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#include "pattern.h"

#include <string.h>

void pattern_fill(void *mem, size_t len, uint64_t seed, uint64_t off)
{
	uint64_t *word = mem;
	size_t i;

	for (i = 0; i < len / 8; i++)
		word[i] = pattern_word(seed, off + i * 8);
}

size_t pattern_check(const void *mem, size_t len, uint64_t seed, uint64_t off)
{
	const uint64_t *word = mem;
	uint64_t diff;
	size_t i;

	for (i = 0; i < len / 8; i++) {
		diff = word[i] ^ pattern_word(seed, off + i * 8);
		if (diff)
			return i * 8 + __builtin_ctzll(diff) / 8;
	}
	return len;
}

uint64_t memory_hash(const volatile void *mem, size_t len)
{
	const volatile uint64_t *word = mem;
	uint64_t hash = 0xcbf29ce484222325ull;
	size_t i;

	for (i = 0; i < len / 8; i++)
		hash = (hash ^ word[i]) * 0x100000001b3ull;
	return hash;
}
