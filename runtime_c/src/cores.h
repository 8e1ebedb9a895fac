/* cores.h: the cores this process may use, fastest first. */
#ifndef ELLM_CORES_H
#define ELLM_CORES_H

#include "posix.h"

#include <sched.h>
#include <stdint.h>

enum { ELLM_CORES = 64 }; /* more are not used */

typedef struct ellm_cores {
    int32_t n;                   /* physical cores, at least 1 */
    int32_t n_fast;              /* the first n_fast of them are about as fast as the fastest */
    int32_t n_useful;            /* threads that can run at once: n, or less where the control group has a quota */
    uint16_t number[ELLM_CORES]; /* the lowest logical processor of each that may be used */
} ellm_cores;

/* Reads affinity mask, topology, speeds (cpu_capacity, else the highest frequency) and CPU quota. */
void ellm_cores_read(ellm_cores *cores);
/* The same for any mask and any place where /sys and /proc lie: for tests. */
void ellm_cores_read_at(const char *root, const cpu_set_t *allowed, ellm_cores *cores);

/* Where one of n_threads threads should run: the fastest cores, as many as there are threads, and those as fast. A
 * set rather than one core each, so that the scheduler can step aside for other programs. */
void ellm_cores_set(const ellm_cores *cores, int32_t n_threads, cpu_set_t *set);

#endif
