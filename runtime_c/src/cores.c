#include "posix.h"

#include "cores.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { path_bytes = 4096 };

/* Reads a small text file; false if it cannot be read. */
static bool read_text(const char *root, const char *path, char *text, size_t cap) {
    char full[path_bytes];
    int length = snprintf(full, sizeof full, "%s%s", root, path);
    int file = length < 0 || (size_t)length >= sizeof full ? -1 : open(full, O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : read(file, text, cap - 1);
    if (file >= 0) {
        close(file);
    }
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* The number at the start of a file of one processor, -1 if there is none. "0,4" and "0-1" give 0. */
static int64_t read_number(const char *root, size_t processor, const char *name) {
    char path[96], text[32];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%zu/%s", processor, name);
    if (!read_text(root, path, text, sizeof text) || text[0] < '0' || text[0] > '9') {
        return -1;
    }
    return strtoll(text, NULL, 10);
}

/* Processors' worth of time that the control group grants, rounded up; `most` without a limit.
 * Documentation/admin-guide/cgroup-v2.rst: cpu.max holds "$MAX $PERIOD"; every group above counts as well. */
static int32_t read_quota(const char *root, int32_t most) {
    char text[path_bytes], path[path_bytes + 64], line[64];
    const char *at = read_text(root, "/proc/self/cgroup", text, sizeof text) ? strstr(text, "0::/") : NULL;
    if (at == NULL) {
        return most;
    }
    char *group = text + (at - text) + strlen("0::");
    group[strcspn(group, "\n")] = '\0';
    for (size_t n = strlen(group);; n--) { /* from the group up to the root */
        if (n == 0 || group[n] == '/' || group[n] == '\0') {
            char *end;
            snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/cpu.max", (int)n, group);
            long long quota = read_text(root, path, line, sizeof line) ? strtoll(line, &end, 10) : 0;
            long long period = quota > 0 ? strtoll(end, NULL, 10) : 0;
            if (period > 0 && (quota + period - 1) / period < most) {
                most = (int32_t)((quota + period - 1) / period);
            }
        }
        if (n == 0) {
            return most > 0 ? most : 1;
        }
    }
}

void ellm_cores_read_at(const char *root, const cpu_set_t *allowed, ellm_cores *cores) {
    int64_t speeds[ELLM_CORES];
    cpu_set_t seen;
    CPU_ZERO(&seen);
    *cores = (ellm_cores){0};
    for (size_t i = 0; i < CPU_SETSIZE && cores->n < ELLM_CORES; i++) {
        if (!CPU_ISSET(i, allowed)) {
            continue;
        }
        /* A core counts once: for the lowest of its sibling threads that this process may use. */
        int64_t first = read_number(root, i, "topology/thread_siblings_list");
        size_t core = first >= 0 && first < CPU_SETSIZE ? (size_t)first : i;
        if (CPU_ISSET(core, &seen)) {
            continue;
        }
        CPU_SET(core, &seen);
        int64_t speed = read_number(root, i, "cpu_capacity");
        if (speed < 0) {
            speed = read_number(root, i, "cpufreq/cpuinfo_max_freq");
        }
        int32_t at = cores->n++; /* insertion: faster ones first, else by number */
        for (; at > 0 && speeds[at - 1] < speed; at--) {
            speeds[at] = speeds[at - 1];
            cores->number[at] = cores->number[at - 1];
        }
        speeds[at] = speed;
        cores->number[at] = (uint16_t)i;
    }
    if (cores->n == 0) { /* the system says nothing */
        cores->n = 1;
        speeds[0] = 0;
    }
    while (cores->n_fast < cores->n && 4 * speeds[cores->n_fast] >= 3 * speeds[0]) {
        cores->n_fast++;
    }
    cores->n_fast = cores->n_fast > 0 ? cores->n_fast : cores->n; /* speeds unknown */
    cores->n_useful = read_quota(root, cores->n);
}

void ellm_cores_read(ellm_cores *cores) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    (void)sched_getaffinity(0, sizeof allowed, &allowed);
    ellm_cores_read_at("", &allowed, cores);
}

void ellm_cores_set(const ellm_cores *cores, int32_t n_threads, cpu_set_t *set) {
    CPU_ZERO(set);
    int32_t n = n_threads <= cores->n_fast ? cores->n_fast : cores->n;
    for (int32_t i = 0; i < n; i++) {
        CPU_SET(cores->number[i], set);
    }
}
