/* A plugin for QEMU's user-mode emulators that counts the instructions of the emulated program.
 *
 *   qemu-aarch64 -d plugin -D LOG -plugin insns.so[,blocks=FILE] PROGRAM
 *
 * LOG ends with "insns: N". The count is the emulated processor's: it does not depend on how busy this machine is.
 * FILE gets a line for each block of instructions: its address in hexadecimal, how often it was executed (right for one
 * thread), its symbol or -, and its bytes in hexadecimal.
 * What is declared here is the part of qemu-plugin.h that is used; it is the same from QEMU 6 to 8. */
#define _POSIX_C_SOURCE 200809L /* strdup */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { most_threads = 64 };
enum { inline_add_u64 = 0 };

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*callback)(unsigned, void *), int flags,
                                          void *user);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int what, void *counter, uint64_t by);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*callback)(plugin_id, void *), void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *insn);
void qemu_plugin_outs(const char *text);

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;
__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc,
                                                               char **argv);

/* One counter per emulated thread, a cache line each. */
static struct {
    uint64_t insns, unused[7];
} counts[most_threads];

static struct block {
    struct block *next;
    uint64_t address, executed;
    char *symbol;
    size_t n_bytes;
    unsigned char bytes[];
} *blocks;
static const char *blocks_file;

/* Keeps a block with a counter of its own. */
static void keep(struct qemu_plugin_tb *tb) {
    size_t n = qemu_plugin_tb_n_insns(tb), n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        n_bytes += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(tb, i));
    }
    struct block *block = calloc(1, sizeof *block + n_bytes);
    if (block == NULL) {
        abort();
    }
    for (size_t i = 0; i < n; i++) {
        const struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        memcpy(block->bytes + block->n_bytes, qemu_plugin_insn_data(insn), qemu_plugin_insn_size(insn));
        block->n_bytes += qemu_plugin_insn_size(insn);
    }
    const char *symbol = n > 0 ? qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(tb, 0)) : NULL;
    block->symbol = symbol && symbol[0] ? strdup(symbol) : NULL;
    block->address = qemu_plugin_tb_vaddr(tb);
    block->next = blocks, blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, inline_add_u64, &block->executed, 1);
}

static void write_blocks(void) {
    FILE *file = fopen(blocks_file, "w");
    if (file == NULL) {
        abort();
    }
    for (const struct block *block = blocks; block; block = block->next) {
        fprintf(file, "%" PRIx64 " %" PRIu64 " %s ", block->address, block->executed,
                block->symbol ? block->symbol : "-");
        for (size_t i = 0; i < block->n_bytes; i++) {
            fprintf(file, "%02x", block->bytes[i]);
        }
        fputc('\n', file);
    }
    if (fclose(file) != 0) {
        abort();
    }
}

static void executed(unsigned thread, void *n_insns) {
    counts[thread % most_threads].insns += (uint64_t)(uintptr_t)n_insns;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    void *n_insns = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block); /* NOLINT(performance-no-int-to-ptr) */
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, n_insns);
    if (blocks_file != NULL) {
        keep(block);
    }
}

static void finished(plugin_id id, void *user) {
    (void)id, (void)user;
    uint64_t total = 0;
    char text[64];
    for (int i = 0; i < most_threads; i++) {
        total += counts[i].insns;
    }
    snprintf(text, sizeof text, "insns: %" PRIu64 "\n", total);
    qemu_plugin_outs(text);
    if (blocks_file != NULL) {
        write_blocks();
    }
}

int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc, char **argv) {
    (void)info;
    static const char option[] = "blocks=";
    if (argc > 0 && strncmp(argv[0], option, sizeof option - 1) == 0) {
        blocks_file = strdup(argv[0] + sizeof option - 1);
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
