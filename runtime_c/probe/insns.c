/* A plugin for QEMU's user-mode emulators that counts the instructions of the emulated program.
 *
 *   qemu-aarch64 -d plugin -D LOG -plugin insns.so PROGRAM
 *
 * LOG ends with "insns: N". The count is the emulated processor's: it does not depend on how busy this machine is.
 * What is declared here is the part of qemu-plugin.h that is used; it is the same from QEMU 6 to 10. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

enum { most_threads = 64 };

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_info_t;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*callback)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*callback)(unsigned, void *), int flags,
                                          void *user);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*callback)(plugin_id, void *), void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_outs(const char *text);

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;
__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc,
                                                               char **argv);

/* One counter per emulated thread, a cache line each. */
static struct {
    uint64_t insns, unused[7];
} counts[most_threads];

static void executed(unsigned thread, void *n_insns) {
    counts[thread % most_threads].insns += (uint64_t)(uintptr_t)n_insns;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    void *n_insns = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block); /* NOLINT(performance-no-int-to-ptr) */
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, n_insns);
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
}

int qemu_plugin_install(plugin_id id, const struct qemu_info_t *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
