#include "posix.h"

#include "load.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "watch.h"

enum { text_bytes = 8192 }; /* the lines of 64 processors */
static const int64_t tick_ns = 10000000;

int64_t ellm_load_parse_idle(const ellm_cores *cores, const char *text) {
    int64_t idle = -1;
    for (const char *at = strstr(text, "\ncpu"); at != NULL; at = strstr(at, "\ncpu")) {
        at += strlen("\ncpu");
        char *end;
        long number = strtol(at, &end, 10);
        long long ticks[5] = {0}; /* user, nice, system, idle, iowait: proc(5) */
        for (int i = 0; i < 5; i++) {
            ticks[i] = strtoll(end, &end, 10);
        }
        for (int32_t i = 0; i < cores->n; i++) {
            if (cores->number[i] == number && *end == ' ') {
                idle = (idle < 0 ? 0 : idle) + (ticks[1] + ticks[3] + ticks[4]) * tick_ns;
            }
        }
    }
    return idle;
}

void ellm_load_read(const ellm_cores *cores, ellm_load *load) {
    char text[text_bytes];
    struct timespec own = {0};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    int file = open("/proc/stat", O_RDONLY | O_CLOEXEC); /* Android's applications may not */
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    text[n > 0 ? n : 0] = '\0';
    *load = (ellm_load){.wall_ns = ellm_now_ns(),
                        .own_ns = (int64_t)own.tv_sec * 1000000000 + own.tv_nsec,
                        .idle_ns = ellm_load_parse_idle(cores, text)};
}

bool ellm_load_leaves(const ellm_load *before, const ellm_load *after, int32_t n_threads) {
    if (before->idle_ns < 0 || after->idle_ns < 0) {
        return true;
    }
    double wall = (double)(after->wall_ns - before->wall_ns);
    double ours = (double)(after->idle_ns - before->idle_ns + after->own_ns - before->own_ns);
    return ours > wall * ((double)n_threads - 0.2); /* ticks are coarse */
}
