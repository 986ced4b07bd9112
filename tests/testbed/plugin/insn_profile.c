// SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
/*
 * A TCG plugin for QEMU: how many guest instructions ran at which address, between marks
 * that a program in the guest executes (tests/conformance/meter.c). One processor.
 *
 *   -plugin insn_profile.so,out=PREFIX
 *
 * A mark is a 7-byte nop, 0f 1f 80 WHAT 52 45 50, in user space:
 *   WHAT 0  all counts are 0
 *   WHAT 1  the counts are written to PREFIX.0, PREFIX.1, ...; they are 0 again
 * A file has a line "ADDRESS COUNT" for each translation block that ran: the address of
 * its first instruction, hexadecimal, and how many instructions ran in it.
 *
 * Instructions are counted by block, as it is entered: one that a page fault or an access
 * to a device ends early counts whole. That is below 1 % here, and the same in each run.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * What is used of QEMU's qemu-plugin.h, which Debian does not package: version 7 of the
 * interface, of QEMU 11. QEMU refuses a plugin whose version it does not know.
 */
#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 7;

typedef uint64_t qemu_plugin_id_t;

struct qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;

typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;

enum { QEMU_PLUGIN_INLINE_ADD_U64 };
enum { QEMU_PLUGIN_CB_NO_REGS };

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score,
				  unsigned int vcpu_index);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   void (*cb)(struct qemu_plugin_tb *, void *),
					   void *userdata);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb, int op,
						       qemu_plugin_u64 entry, uint64_t imm);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
					    void (*cb)(unsigned int, void *), int flags,
					    void *userdata);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t idx);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t len);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

/* Different addresses of blocks that can be told apart; all above count at address 0. */
#define SLOTS	(1u << 19)
#define BUCKETS	(4 * SLOTS)	/* of the hash table: a quarter full at most */

static uint64_t address[SLOTS];
static uint32_t bucket[BUCKETS];	/* slot + 1 */
static unsigned int used = 1;		/* slot 0: the addresses above */
static struct qemu_plugin_scoreboard *counts;
static const char *prefix;
static unsigned int next_file;

enum mark { BEGIN, END };

static unsigned int slot_of(uint64_t pc)
{
	uint64_t hash = pc * 0x9e3779b97f4a7c15u >> 32;
	unsigned int i;

	for (i = hash % BUCKETS; bucket[i]; i = (i + 1) % BUCKETS)
		if (address[bucket[i] - 1] == pc)
			return bucket[i] - 1;
	if (used == SLOTS)
		return 0;
	address[used] = pc;
	bucket[i] = used + 1;
	return used++;
}

static void write_profile(const uint64_t *count)
{
	char name[4096];
	unsigned int i;
	FILE *f;

	snprintf(name, sizeof(name), "%s.%u", prefix, next_file++);
	f = fopen(name, "w");
	if (!f) {
		perror(name);
		exit(1);
	}
	for (i = 0; i < used; i++)
		if (count[i])
			fprintf(f, "%" PRIx64 " %" PRIu64 "\n", address[i], count[i]);
	if (fclose(f)) {
		perror(name);
		exit(1);
	}
}

static void on_mark(unsigned int vcpu, void *what)
{
	uint64_t *count = qemu_plugin_scoreboard_find(counts, vcpu);

	if ((uintptr_t)what == END)
		write_profile(count);
	memset(count, 0, SLOTS * sizeof(*count));
}

/* Whether INSN is a mark, and which. */
static bool is_mark(const struct qemu_plugin_insn *insn, uint8_t *what)
{
	static const uint8_t head[] = { 0x0f, 0x1f, 0x80 }, tail[] = { 0x52, 0x45, 0x50 };
	uint8_t bytes[7];

	if (qemu_plugin_insn_size(insn) != sizeof(bytes) ||
	    qemu_plugin_insn_data(insn, bytes, sizeof(bytes)) != sizeof(bytes) ||
	    memcmp(bytes, head, sizeof(head)) || memcmp(bytes + 4, tail, sizeof(tail)))
		return false;
	*what = bytes[3];
	return true;
}

static void on_translation(struct qemu_plugin_tb *tb, void *unused)
{
	size_t n = qemu_plugin_tb_n_insns(tb), i;
	uint64_t pc = qemu_plugin_tb_vaddr(tb);
	qemu_plugin_u64 entry = { counts, slot_of(pc) * sizeof(uint64_t) };
	uint8_t what;

	(void)unused;
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64,
							  entry, n);
	/* The upper half of the address space is the kernel's. */
	if (pc >> 63)
		return;
	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (is_mark(insn, &what))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark,
							       QEMU_PLUGIN_CB_NO_REGS,
							       (void *)(uintptr_t)what);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
			       char **argv)
{
	(void)info;
	if (argc != 1 || strncmp(argv[0], "out=", 4)) {
		fprintf(stderr, "insn_profile: one option is due: out=PREFIX\n");
		return 1;
	}
	prefix = strdup(argv[0] + 4);
	counts = qemu_plugin_scoreboard_new(SLOTS * sizeof(uint64_t));
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
	return 0;
}
