/* verify: every file against the manifest. */
#include "posix.h"

#include <stdio.h>
#include <unistd.h>

#include "program.h"
#include "trust.h"

typedef struct meter {
    uint64_t total;
    double shown_ms;
    bool tty;
} meter;

static void show(uint64_t done, uint64_t total, void *user) {
    meter *m = user;
    m->total = total;
    double now = clock_ms();
    if (m->tty && (now - m->shown_ms > 100 || done == total)) {
        m->shown_ms = now;
        fprintf(stderr, "\rverifying %3.0f %% of %.1f MB", total > 0 ? 100.0 * (double)done / (double)total : 100.0,
                (double)total / 1e6);
    }
}

ellm_status verify_main(const settings *s, ellm_error *error) {
    meter m = {.tty = isatty(STDERR_FILENO) != 0};
    double start = clock_ms();
    trust t;
    ellm_status status = trust_find(&t, error);
    status = status != ELLM_OK ? status : ellm_bundle_verify_trusted(s->directory, &t.files, show, &m, error);
    if (m.tty && m.shown_ms > 0) {
        fprintf(stderr, "\r\x1b[K");
    }
    double took_ms = clock_ms() - start;
    if (status == ELLM_OK && s->json) {
        printf("{\"verified\":true,\"bytes\":%llu,\"ms\":%.1f}\n", (unsigned long long)m.total, took_ms);
    } else if (status == ELLM_OK) {
        printf("intact: %.1f MB in %.2f s\n", (double)m.total / 1e6, took_ms / 1e3);
    }
    return status;
}
